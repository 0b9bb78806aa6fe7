# What a model's runs cost, learned on line: what batches are cut by and what admission predicts from.
cimport cython
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

cdef extern from *:
    int __builtin_clzll(unsigned long long) nogil


cdef double MOST_OVER_MEAN = 1.15           # that a batch is cut for


@cython.final
cdef class Cost:
    """What a run of n rows takes: for each power of two of n a mean, which follows, and a high quantile.

    The quantile is the second largest of the last 64 runs, about the 97th percentile. While there are fewer, the
    largest of them and some more: three runs say little about the slowest of a hundred.
    """

    def __cinit__(self, int64_t budget_ns):
        self.budget_ns = budget_ns

    def __dealloc__(self):
        cdef int level
        for level in range(COST_LEVELS):
            free(self.window[level])

    cdef int level(self, Py_ssize_t rows) noexcept nogil:
        if rows <= 1:
            return 0
        return min(64 - __builtin_clzll(<unsigned long long>(rows - 1)), COST_LEVELS - 1)

    cdef void observe(self, Py_ssize_t rows, int64_t nanoseconds) noexcept nogil:
        cdef int level = self.level(rows)
        cdef double error = nanoseconds - self.mean[level]
        cdef double share = 0.125
        self.over[level] = self.over[level] + 1 if nanoseconds > self.high[level] else 0
        if self.over[level] > 1:
            share = 0.5  # one may be chance; two in a row, and the machine has become slower
        if self.seen[level] == 0:
            self.mean[level] = self.best[level] = nanoseconds
            self.deviation[level] = 0.25 * nanoseconds
            self.size[level] = rows
        else:
            self.mean[level] += share * error
            self.deviation[level] += 0.125 * ((error if error > 0 else -error) - self.deviation[level])
            self.size[level] += 0.125 * (rows - self.size[level])
            self.best[level] = min(self.best[level], <double>nanoseconds)
        self.keep(level, nanoseconds)
        self.changes += 1

    cdef void keep(self, int level, float took) noexcept nogil:
        """Put a run in place of the oldest that is kept, and learn the quantile again where that may change it."""
        cdef float* window = self.window[level]
        cdef float old, first = 0, second = 0
        cdef int i, n
        if window == NULL:
            window = self.window[level] = <float*>calloc(COST_WINDOW, sizeof(float))
            if window == NULL:
                self.high[level] = max(self.high[level], <double>took)
                self.seen[level] += 1
                return
        i = self.seen[level] % COST_WINDOW
        old = window[i]
        window[i] = took
        self.seen[level] += 1
        n = <int>min(self.seen[level], <uint64_t>COST_WINDOW)
        if n == COST_WINDOW and self.seen[level] > COST_WINDOW and old < self.high[level] and took <= self.high[level]:
            return
        for i in range(n):
            if window[i] > first:
                second = first
                first = window[i]
            elif window[i] > second:
                second = window[i]
        self.high[level] = second if n == COST_WINDOW else first * (1 + 1.5 / n)

    cdef double predict(self, Py_ssize_t rows) noexcept nogil:
        """Nanoseconds that about 95 of 100 such runs stay under; infinite when nothing is known.

        A size that was never run takes the nearest larger one, else the nearest smaller one scaled by rows. It forgets
        one slow run sooner than the quantile does: a fast model must not leave the loop for long because of one.
        """
        cdef int level = self.level(rows)
        cdef int i
        for i in range(level, COST_LEVELS):
            if self.seen[i]:
                return self.mean[i] + 2 * self.deviation[i]
        for i in range(level - 1, -1, -1):
            if self.seen[i]:
                return (self.mean[i] + 2 * self.deviation[i]) * (<Py_ssize_t>1 << (level - i))
        return INFINITY

    cdef Guess guess(self, Py_ssize_t rows) noexcept nogil:
        """What a run of so many rows is thought to take; ``known`` is False, and all of it 0, before the first run.

        Between two sizes that were run it is read off the line through them; past the largest it grows with the rows.
        """
        cdef Guess guess
        cdef int i, below = -1, above = -1, near, known = 0
        cdef double scale = 1, share
        guess.mean = guess.high = guess.best = 0
        for i in range(COST_LEVELS):
            if self.seen[i] == 0:
                continue
            if self.seen[i] > self.seen[known]:
                known = i
            if self.size[i] <= rows:
                below = i
            elif above < 0:
                above = i
        guess.known = below >= 0 or above >= 0
        if not guess.known:
            return guess
        if below >= 0 and above >= 0:
            share = (rows - self.size[below]) / (self.size[above] - self.size[below])
            guess.mean = self.mean[below] + share * (self.mean[above] - self.mean[below])
            guess.best = self.best[below] + share * (self.best[above] - self.best[below])
            near = below if share < 0.5 else above
        else:
            near = above if above >= 0 else below
            if below >= 0:
                scale = max(rows / self.size[below], 1.0)
            guess.mean = self.mean[near] * scale
            guess.best = self.best[near] * scale
        if self.seen[near] < COST_WINDOW // 4:
            near = known  # how much runs vary is much the same for all sizes, and this one was seldom run
        guess.high = guess.mean * max(self.high[near] / max(self.mean[near], 1.0), 1.0)
        return guess

    cdef void rescale(self, double ratio) noexcept nogil:
        """All runs take so many times as long as it seemed: what was learned was learned in another time."""
        cdef int level, i
        for level in range(COST_LEVELS):
            self.mean[level] *= ratio
            self.deviation[level] *= ratio
            self.high[level] *= ratio
            if self.window[level] != NULL:
                for i in range(COST_WINDOW):
                    self.window[level][i] *= ratio

    cdef Py_ssize_t most(self, double nanoseconds, Py_ssize_t limit) noexcept nogil:
        """The most rows, at least one and at most ``limit``, whose run stays under so long.

        At the high quantile, but no more than some over the mean: what makes single runs slow makes small ones slow
        too, and many small ones carry less.
        """
        cdef Py_ssize_t low = 1, high = limit, middle
        cdef Guess guess = self.guess(limit)
        if not guess.known or guess.high <= nanoseconds:
            return limit
        while low < high:
            middle = (low + high + 1) // 2
            guess = self.guess(middle)
            if min(guess.high, MOST_OVER_MEAN * guess.mean) <= nanoseconds:
                low = middle
            else:
                high = middle - 1
        return low

    cdef bint runs_inline(self, Py_ssize_t rows) noexcept nogil:
        """Whether such a run may be made on the loop; it comes back to the loop only at half the budget."""
        cdef int level = self.level(rows)
        cdef double limit = self.budget_ns // 2 if self.threaded[level] else self.budget_ns
        self.threaded[level] = self.predict(rows) > limit
        return not self.threaded[level]
