cimport cython
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

# A text value: bytes of the arena or of the program, or missing.
cdef struct Text:
    const char* data
    uint64_t size           # or NAN_TEXT, NONE_TEXT: missing, as pandas or as Python has it

cdef enum:
    BLOCK_ROWS = 256        # at most; wide programs take fewer, so that the registers stay in the cache

# Sparse rows: the columns and values of row i lie from starts[i] to starts[i + 1], the columns ascending.
cdef struct Vector:
    size_t* starts          # rows + 1
    int32_t* indices
    double* values
    size_t size
    size_t capacity

# One value of a sparse output.
cdef struct Entry:
    int32_t row             # of the block
    int32_t column
    double value

cdef struct Entries:
    Entry* data
    size_t size
    size_t capacity

# Rows of a sparse output, as a CSR matrix has them.
cdef struct SparseRows:
    double* values
    int32_t* columns
    int64_t* ends
    size_t size
    size_t capacity

# One run of a program over one block of rows. Registers hold a block's values of one column.
cdef struct Block:
    Slab* slabs             # the raw columns
    const char* arena
    double* numbers         # register r, row i: numbers[r * stride + i]; integers share the storage
    Text* texts
    Vector* vectors
    Py_ssize_t stride
    Py_ssize_t rows
    Py_ssize_t row          # the block's first row in the slabs
    Py_ssize_t offset       # the same, counted from the request's first
    char* out               # the block's first output row
    Entries* entries        # what a sparse output has instead
    Py_ssize_t width
    Failure* failure

cdef struct Operation

ctypedef bint (*Kernel)(const Operation* operation, const Block* block) noexcept nogil

cdef struct Operation:
    Kernel kernel
    Kernel enter            # of a store: its twin for a sparse output
    int32_t source          # register, or raw column of a load
    int32_t target          # register, or output column of a store
    int32_t* sources        # registers of a kernel that reads several, or writes several; owned by the program
    int32_t* targets
    int32_t n_sources
    int32_t n_targets
    int32_t column          # raw column that is named when it fails
    int32_t count           # entries of `table`, where it has several
    bint single             # the result is rounded to float32
    uint32_t flags
    double a
    double b
    void* table             # owned by the program


@cython.final
cdef class CompiledProgram:
    cdef readonly Signature columns     # inputs = raw columns, outputs = ()
    cdef readonly Py_ssize_t width      # features out
    cdef readonly str dtype             # "float32" | "float64"
    cdef size_t row_bytes               # of one output row
    cdef Operation* operations
    cdef Py_ssize_t n_operations
    cdef Py_ssize_t n_numbers           # registers
    cdef Py_ssize_t n_texts
    cdef Py_ssize_t n_vectors
    cdef Py_ssize_t block_rows
    cdef bint sparse                    # some outputs are written only where they are not zero
    cdef list widths                    # of each vector register, while operations are compiled
    cdef list owned                     # what the operations' tables point into

    cdef bint run(self, Rows columns, Py_ssize_t start, Py_ssize_t rows, char* out, Failure* failure) noexcept nogil
    cdef bint run_columns(self, Columns columns, Py_ssize_t stride, char* out, SparseRows* sparse,
                          Failure* failure) noexcept nogil
    cdef bint fill_block(self, Block* block, char* out) noexcept nogil
    cdef bint enter_block(self, Block* block, SparseRows* sparse) noexcept nogil
    cdef Columns taken(self, columns)
    cdef object error(self, Failure* failure, Request request)
