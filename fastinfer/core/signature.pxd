from libc.stdint cimport int32_t, int64_t, uint32_t

cdef struct TensorInfo:
    const char* name                # UTF-8, owned by the Signature
    Py_ssize_t name_size
    Datatype datatype
    size_t itemsize                 # bytes of an element in a slab (BYTES: a Span)
    int rank                        # of the whole tensor, as declared
    int64_t shape[MAX_RANK]         # -1 is variable
    bint nullable                   # a program's column that may be missing
    bint column                     # a program's column: [n] and [n, 1] are both accepted
    bint plain                      # JSON writes the name as it is: no character of it needs an escape

cdef struct NameSlot:
    uint32_t hash
    int32_t index                   # -1 empty

cdef class NameTable:
    cdef NameSlot* slots
    cdef uint32_t mask
    cdef list names                 # bytes, in order
    cdef const char** data
    cdef Py_ssize_t* sizes
    cdef int find(self, const char* name, Py_ssize_t size) noexcept nogil

cdef class Signature:
    cdef readonly tuple inputs      # of Tensor
    cdef readonly tuple outputs
    cdef readonly bint batched      # the first dimension of every tensor is the rows
    cdef bint ragged                # a row of an input has no fixed size: a dimension behind the first is variable
    cdef tuple keys                 # names of the inputs
    cdef int n_inputs
    cdef int n_outputs
    cdef TensorInfo* input_info
    cdef TensorInfo* output_info
    cdef NameTable input_names
    cdef NameTable output_names
    cdef readonly tuple features    # names of the one input's columns, where records may have them as fields
    cdef NameTable feature_names
    cdef int n_features
    cdef size_t least_field         # bytes of the shortest name
    cdef NameTable ignored_names    # fields that a record may have and nothing reads
    cdef int n_ignored
    cdef readonly bint lenient      # a record may have any other field too

cdef size_t datatype_size(Datatype datatype) noexcept nogil
