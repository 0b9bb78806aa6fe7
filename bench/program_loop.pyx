# distutils: language = c++
# What program.py times of the compiled core with no Python call between: compiled by program.py against _core.pxd.
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from fastinfer._core cimport MAX_RANK, CompiledProgram, Failure, Request, Rows, Signature

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    enum: CLOCK_THREAD_CPUTIME_ID
    int clock_gettime(int clock, timespec* out)


cdef int64_t cpu_ns() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return time.tv_sec * 1_000_000_000 + time.tv_nsec


def features_ns(Signature signature, CompiledProgram program, bytes body, Py_ssize_t calls):
    """Nanoseconds of CPU from a request's records to its rows of features, as the fast lane makes them."""
    cdef Request request = Request(signature)
    cdef Rows rows = Rows(signature)
    cdef Failure failure
    cdef const char* data = body
    cdef size_t size = len(body)
    cdef bint good = request.scan(1, data, size, -1, &failure)
    cdef char* out
    cdef int64_t began
    cdef Py_ssize_t k
    for k in range(signature.n_inputs):
        good = good and rows.set_dims(<int>k, request.ranks[k], &request.dims[k * MAX_RANK])
    if not good or not rows.reserve(request.rows):
        raise ValueError(body)
    out = <char*>malloc(<size_t>request.rows * program.row_bytes)
    try:
        began = cpu_ns()
        for k in range(calls):
            rows.arena_size = 0
            good = good and request.scan(1, data, size, -1, &failure) and request.fill(rows, 0, &failure)
            good = good and program.run(rows, 0, request.rows, out, &failure)
        if not good:
            raise request.error(&failure)
        return (cpu_ns() - began) / calls
    finally:
        free(out)
