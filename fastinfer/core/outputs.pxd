cimport numpy as cnp

# One output of a run: where its elements lie, C order.
cdef struct Result:
    Datatype datatype
    size_t itemsize
    Py_ssize_t count                # elements
    const char* data
    const char* arena               # of BYTES: the elements are Spans of it; NULL: they are Python objects
    int rank
    Py_ssize_t shape[MAX_RANK]

cdef class Outputs:
    cdef Signature signature                # the runtime's
    cdef Result* results                    # one an output
    cdef object owner                       # of the elements: a list of arrays, or a Call
    cdef int check_rows(self, Py_ssize_t rows) except -1
    cdef size_t nbytes(self) noexcept nogil
    cdef list shape(self, int k)
    cdef cnp.ndarray array(self, int k)
    cdef cnp.ndarray texts(self, int k)
