from libc.stdint cimport int64_t, uint64_t

cdef class Route:
    cdef Endpoint endpoint
    cdef int kind
    cdef int index                      # among the lane's routes
    cdef bytes path, model, version     # as the access log has them

cdef class Routes:
    cdef NameTable paths
    cdef list routes                    # in the order of paths

cdef enum:
    MAX_KNOWN = 16                      # heads that a lane keeps

cdef class Lane:
    cdef bytes prefix
    cdef int64_t max_body
    cdef NameTable paths
    cdef list routes                    # in the order of paths
    cdef bint server_timing             # every answer tells its durations
    cdef AccessLog access               # None where there is none
    cdef readonly Credentials credentials
    cdef Proxies proxies                # who may say whom they speak for
    cdef Connection dirty               # the first of a chain of connections with answers to write
    cdef Connection last_dirty
    cdef Writer answer, body            # reused
    cdef bytes json_opening             # of an answer, up to its X-Request-ID
    cdef bytes binary_opening
    cdef bytes refusal_opening
    cdef uint64_t sequence
    cdef uint64_t state                 # of the random numbers
    cdef int[REASON_COUNT] told         # refusals since the last tick
    cdef KnownHead[MAX_KNOWN] known
    cdef int next_known                 # which of them makes room
    cdef uint64_t changes               # of the routes
    cdef void forget_heads(self) noexcept
    cdef void know(self, Connection connection, const Head* head, const char* begin, const char* end) noexcept
    cdef bytes next_id(self)
    cdef void append_dirty(self, Connection connection)
    cdef int tell(self, protocol, Ticket ticket, bytes request_id) except -1
    cdef uint64_t random(self) noexcept
    cdef uint64_t jittered(self, int64_t retry_ns) noexcept
    cdef int flush(self) except -1
