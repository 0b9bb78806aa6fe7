from libc.stdint cimport int64_t

cdef class Session(Engine):
    cdef void* session
    cdef readonly list inputs, outputs
    cdef readonly bint plain
    cdef int n_inputs, n_outputs
    cdef list texts                         # what `names` points into
    cdef const char** names                 # of the inputs, then of the outputs
    cdef int* types                         # ONNX's element types, likewise
    cdef void* options                      # for the next run, or NULL
    cdef int describe(self) except -1
    cdef Call call(self, Rows rows, int first)

cdef class Call:
    cdef Session session
    cdef void* options                      # of a run that may be stopped, else NULL
    cdef int count
    cdef void** values                      # of the inputs, then of the outputs
    cdef list blocks                        # texts of the outputs, and where each lies
    cdef int put(self, int k, void* data, size_t size, const int64_t* shape, int rank) except -1
    cdef int stop(self) except -1
    cdef Outputs run(self, Signature signature, const void* options)
    cdef int look(self, Outputs outputs, int k) except -1
    cdef int read_texts(self, Result* result, void* value) except -1
