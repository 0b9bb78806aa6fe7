from libc.stdint cimport int64_t

# What becomes of a request: it is let in, or why it is not.
cdef enum Reason:
    ADMITTED, PAST_DEADLINE, ROWS_FULL, BYTES_FULL, SHARE_FULL, EXPIRED
    REASON_COUNT

# What a request asks of a queue.
cdef struct Asked:
    Py_ssize_t rows
    size_t nbytes
    int rank
    int64_t key
    int64_t now, arrived, deadline

cdef Reason judge(Batcher batcher, const Asked* asked, int64_t* retry_ns)
