from libc.stdint cimport int64_t, uint64_t

cdef class Credentials:
    cdef dict identities                # by digest; empty: off
    cdef object sha256
    cdef uint64_t changes               # of the table
    cdef int64_t identify(self, const Head* head, Connection connection) except -2
