from libc.stdint cimport int64_t, uint64_t

cdef struct Slab:
    char* data              # 64-byte aligned, or NULL
    size_t capacity         # bytes

cdef bint slab_reserve(Slab* slab, size_t used, size_t need) noexcept nogil
cdef void slab_free(Slab* slab) noexcept nogil

# An element of a BYTES tensor in a slab: a range of the Rows' arena. A missing value has length MISSING_BYTES.
cdef struct Span:
    uint64_t offset
    uint64_t length

cdef enum:
    SPAN_SIZE = 16

cdef class Rows:
    cdef readonly Signature signature
    cdef int count                  # inputs
    cdef Slab* slabs                # one an input
    cdef size_t* row_bytes          # bytes of one row of each input
    cdef int* ranks                 # dimensions of one row of each input
    cdef int64_t* dims              # count * MAX_RANK: the dimensions of one row
    cdef Py_ssize_t rows            # committed rows
    cdef Slab arena                 # payload of BYTES elements
    cdef size_t arena_size
    cdef int leases                 # arrays alive that look into the slabs

    cdef bint set_dims(self, int input, int rank, const int64_t* dims) noexcept nogil
    cdef bint same_dims(self, const int* ranks, const int64_t* dims) noexcept nogil
    cdef bint reserve(self, Py_ssize_t rows) noexcept nogil
    cdef bint arena_reserve(self, size_t extra) noexcept nogil
    cdef bint append(self, Rows source, Py_ssize_t start, Py_ssize_t rows) noexcept nogil
    cdef bint fill_up(self, Py_ssize_t rows) noexcept nogil
    cdef size_t nbytes(self) noexcept nogil
    cdef size_t held(self) noexcept nogil
    cdef bint reset(self) noexcept nogil

cdef inline char* rows_at(Rows rows, int input, Py_ssize_t row) noexcept nogil:
    return rows.slabs[input].data + <size_t>row * rows.row_bytes[input]

# A growing byte buffer for answers.
cdef struct Writer:
    char* data
    size_t size
    size_t capacity

cdef bint writer_reserve(Writer* writer, size_t extra) noexcept nogil
cdef bint writer_put(Writer* writer, const char* data, size_t size) noexcept nogil
cdef void writer_free(Writer* writer) noexcept nogil
