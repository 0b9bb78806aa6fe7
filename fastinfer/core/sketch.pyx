# Latency histograms: fixed bounds, one store an observation.
cimport cython
from libc.stdint cimport int64_t, uint64_t

# Upper bounds in seconds: 1, 2 and 5 of each decade; fine below a millisecond, where most requests are.
BOUNDS = (50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 100e-3, 200e-3, 500e-3,
          1.0, 2.0, 5.0, 10.0, 30.0)


@cython.final
cdef class Histogram:
    """Counts of durations between fixed bounds (seconds, in ``bounds``), and their sum."""

    bounds = BOUNDS

    def __cinit__(self):
        cdef int i
        for i in range(HISTOGRAM_BOUNDS):
            self.upper[i] = <int64_t>(BOUNDS[i] * 1e9)

    cdef void observe(self, int64_t nanoseconds) noexcept nogil:
        cdef int i = 0
        while i < HISTOGRAM_BOUNDS and nanoseconds > self.upper[i]:
            i += 1
        self.counts[i] += 1
        self.total += <uint64_t>max(nanoseconds, <int64_t>0)

    def snapshot(self):
        """Cumulative counts, one a bound and a last one for everything, and the sum in seconds."""
        cdef uint64_t running = 0
        cdef int i
        cumulative = []
        for i in range(HISTOGRAM_BOUNDS + 1):
            running += self.counts[i]
            cumulative.append(running)
        return cumulative, self.total / 1e9
