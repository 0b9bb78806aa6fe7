# distutils: language = c++
# What decode.py times of the compiled core with no Python call between: compiled by decode.py against _core.pxd.
from libc.stdint cimport int64_t

from fastinfer._core cimport DT_FP32, MAX_RANK, Encoder, Failure, Outputs, Request, Rows, Signature, Writer, writer_free

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


def decode_ns(Signature signature, bytes body, Py_ssize_t calls):
    """Nanoseconds of CPU to decode an inference request into rows that are there already."""
    cdef Request request = Request(signature)
    cdef Rows rows = Rows(signature)
    cdef Failure failure
    cdef const char* data = body
    cdef size_t size = len(body)
    cdef bint good = request.scan(0, data, size, -1, &failure)
    cdef int64_t began
    cdef Py_ssize_t k
    for k in range(signature.n_inputs):
        good = good and rows.set_dims(<int>k, request.ranks[k], &request.dims[k * MAX_RANK])
    if not good or not rows.reserve(request.rows):
        raise ValueError(body)
    began = cpu_ns()
    for k in range(calls):
        good = good and request.scan(0, data, size, -1, &failure) and request.fill(rows, 0, &failure)
    if not good:
        raise request.error(&failure)
    return (cpu_ns() - began) / calls


def encode_ns(Encoder encoder, bytes body, const float[:, ::1] values, Py_ssize_t calls):
    """Nanoseconds of CPU to answer ``body`` with ``values`` as the one output."""
    cdef Request request = Request(encoder.signature)
    cdef Outputs outputs = Outputs(encoder.signature)
    cdef Writer writer = Writer(NULL, 0, 0)
    cdef Failure failure
    cdef int64_t began
    cdef Py_ssize_t k
    outputs.results[0].datatype = DT_FP32
    outputs.results[0].data = <const char*>&values[0, 0]
    outputs.results[0].count = values.shape[0] * values.shape[1]
    outputs.results[0].itemsize = sizeof(float)
    outputs.results[0].rank = 2
    outputs.results[0].shape[0] = values.shape[0]
    outputs.results[0].shape[1] = values.shape[1]
    if not request.scan(0, body, len(body), -1, &failure):
        raise request.error(&failure)
    try:
        began = cpu_ns()
        for k in range(calls):
            writer.size = 0
            encoder.write(&writer, request, outputs, 0, values.shape[0])
        return (cpu_ns() - began) / calls
    finally:
        writer_free(&writer)
