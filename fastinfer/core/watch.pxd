cdef int watch_from_here() except -1
cdef int run_here(Batcher batcher, Batch batch) except -1
