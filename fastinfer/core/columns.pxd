cimport cython
cimport numpy as cnp
from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum Held:                 # how a segment holds its values
    HELD_INT8, HELD_INT16, HELD_INT32, HELD_INT64, HELD_UINT8, HELD_UINT16, HELD_UINT32, HELD_UINT64
    HELD_FLOAT32, HELD_FLOAT64
    HELD_BOOL, HELD_BITS
    HELD_SPANS, HELD_STRINGS, HELD_LARGE_STRINGS, HELD_VIEWS
    HELD_NULLS                  # no value at all
    HELD_OTHERWISE

# Rows of a column that lie in memory as one array.
cdef struct Segment:
    Py_ssize_t begin, end
    Held held
    bint direct                 # as a slab has them
    const char* data            # of row `begin`; of bits, of the whole array
    Py_ssize_t stride
    const uint8_t* valid        # Arrow's bits, or NULL where no value is missing
    uint64_t missing            # the offset of a missing text's Span
    int64_t first_bit           # of row `begin`
    const char* pool            # the bytes of strings
    const void** buffers        # of string views
    const Span* spans           # of codes: what each stands for; else NULL
    int64_t n_spans

cdef struct Source:
    Segment first
    Segment* more               # those behind it
    Py_ssize_t count            # of segments
    Py_ssize_t capacity         # of `more`
    Py_ssize_t current          # that of the last block
    bint taken
    char* scratch               # a block's values, where they do not lie as in a slab


@cython.final
cdef class Columns:
    cdef Signature signature
    cdef bytes objects
    cdef list owned                 # what the sources point into
    cdef char* pool                 # free bytes
    cdef size_t pool_left
    cdef size_t text_bytes          # copied
    cdef bint foreign               # some are not ours
    cdef uint64_t missing           # of the segments that are added
    cdef int count                  # of columns: the collector may take the signature before us
    cdef Source* sources
    cdef Slab* slabs                # of a block
    cdef char* scratch
    cdef Py_ssize_t rows            # -1: nothing taken yet

    cdef bint take_objects(self, int i, const char* values, Py_ssize_t count, Py_ssize_t stride, bint boxed) except -1
    cdef bint take_numbers(self, int i, cnp.ndarray array, const char* data, Py_ssize_t stride, bint explicit) except -1
    cdef bint put_value(self, int i, value, char* out, bint boxed) except -1
    cdef char* copied(self, const char* data, Py_ssize_t size) except NULL
    cdef char* room(self, size_t size) except NULL
    cdef int add_slab(self, int i, Py_ssize_t rows, const char* data) except -1
    cdef Segment* add_segment(self, int i, Py_ssize_t rows) except NULL
    cdef int close_source(self, int i) except -1
    cdef bint is_quick(self, Py_ssize_t width)
    cdef Py_ssize_t open(self, Py_ssize_t rows) except -1
    cdef void seek(self, Py_ssize_t row, Py_ssize_t rows) noexcept nogil
