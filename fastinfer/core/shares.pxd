from libc.stdint cimport int64_t

cdef bint has_company(Batcher batcher, int64_t now) noexcept
cdef int take_turns(Batcher batcher) except -1
cdef int keep_places(Batcher batcher) except -1
cdef int give_way(Batcher batcher) except -1
