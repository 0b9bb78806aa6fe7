from libc.stdint cimport int64_t, uint64_t

cdef enum:
    COST_LEVELS = 17                    # powers of two of the rows
    COST_WINDOW = 64                    # runs that a level's quantile is of

# Nanoseconds that a run is thought to take.
cdef struct Guess:
    bint known
    double mean
    double high                         # which few such runs are over
    double best                         # which none was under

cdef class Cost:
    cdef int64_t budget_ns
    cdef double mean[COST_LEVELS]
    cdef double deviation[COST_LEVELS]
    cdef double high[COST_LEVELS]
    cdef double best[COST_LEVELS]
    cdef double size[COST_LEVELS]       # rows, on average
    cdef float* window[COST_LEVELS]     # the last runs, where there were any
    cdef uint64_t seen[COST_LEVELS]
    cdef uint64_t changes               # runs
    cdef bint threaded[COST_LEVELS]
    cdef int over[COST_LEVELS]          # runs, the last ones, that were over the quantile
    cdef int level(self, Py_ssize_t rows) noexcept nogil
    cdef void observe(self, Py_ssize_t rows, int64_t nanoseconds) noexcept nogil
    cdef void keep(self, int level, float took) noexcept nogil
    cdef double predict(self, Py_ssize_t rows) noexcept nogil
    cdef Guess guess(self, Py_ssize_t rows) noexcept nogil
    cdef void rescale(self, double ratio) noexcept nogil
    cdef Py_ssize_t most(self, double nanoseconds, Py_ssize_t limit) noexcept nogil
    cdef bint runs_inline(self, Py_ssize_t rows) noexcept nogil
