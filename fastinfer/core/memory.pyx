# Aligned slabs, reused between batches, and the growing buffer that answers are written into.
cimport cython
cimport numpy as cnp
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, strlen

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void** memory, size_t alignment, size_t size)

cdef extern from *:
    bint mul_overflow "__builtin_mul_overflow"(size_t a, size_t b, size_t* out) noexcept nogil

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)

import numpy as np

cnp.import_array()

NUMPY_TYPES = tuple([np.dtype(name).num for name in DTYPES])  # in the order of Datatype
cdef uint64_t MISSING_BYTES = <uint64_t>0xFFFFFFFFFFFFFFFF  # a Span's length for a missing value
cdef uint64_t TIME_BYTES = <uint64_t>0xFFFFFFFFFFFFFFFE     # and where its offset is a time, of a program's column
cdef size_t ALIGNMENT = 64                                  # a cache line, and the widest vector load
cdef size_t MAX_SLAB = <size_t>1 << 46


cdef bint slab_reserve(Slab* slab, size_t used, size_t need) noexcept nogil:
    """Grow to at least ``need`` bytes, keeping the first ``used``; False when there is no memory."""
    cdef size_t capacity
    cdef void* data = NULL
    if need <= slab.capacity:
        return True
    if need > MAX_SLAB:
        return False
    capacity = slab.capacity * 2 if slab.capacity > need // 2 else need
    capacity = (capacity + ALIGNMENT - 1) & ~(ALIGNMENT - 1)
    if posix_memalign(&data, ALIGNMENT, capacity) != 0:
        return False
    if used:
        memcpy(data, slab.data, used)
    free(slab.data)
    slab.data = <char*>data
    slab.capacity = capacity
    return True


cdef void slab_free(Slab* slab) noexcept nogil:
    free(slab.data)
    slab.data = NULL
    slab.capacity = 0


@cython.final
cdef class Memory:
    """Zeroed bytes that live as long as somebody holds this."""

    cdef void* data

    def __cinit__(self, size_t size):
        self.data = calloc(max(size, <size_t>1), 1)
        if self.data == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.data)


@cython.final
cdef class Rows:
    """Decoded values of one request or of one batch: a slab an input, the same row range in each.

    A row of an input is the tensor without its first dimension, C order; where the model is not batched, the
    whole tensor is the one row. An element of a BYTES input is a Span of the arena. Rows past ``rows`` are free
    for a decoder to write into; they count only once ``rows`` is raised.
    """

    def __cinit__(self, Signature signature not None):
        cdef int i, axis, first = 1 if signature.batched else 0
        cdef TensorInfo* info
        cdef int64_t dims[MAX_RANK]
        self.signature = signature
        self.count = signature.n_inputs
        self.slabs = <Slab*>calloc(self.count + 1, sizeof(Slab))
        self.row_bytes = <size_t*>calloc(self.count + 1, sizeof(size_t))
        self.ranks = <int*>calloc(self.count + 1, sizeof(int))
        self.dims = <int64_t*>calloc(self.count + 1, MAX_RANK * sizeof(int64_t))
        if self.slabs == NULL or self.row_bytes == NULL or self.ranks == NULL or self.dims == NULL:
            raise MemoryError
        for i in range(self.count):
            info = &signature.input_info[i]
            for axis in range(first, info.rank):
                dims[axis - first] = info.shape[axis] if info.shape[axis] >= 0 else 0
            if not self.set_dims(i, max(info.rank - first, 0), dims):
                raise MemoryError

    def __dealloc__(self):
        cdef int i
        if self.slabs != NULL:
            for i in range(self.count):
                slab_free(&self.slabs[i])
        slab_free(&self.arena)
        free(self.slabs)
        free(self.row_bytes)
        free(self.ranks)
        free(self.dims)

    cdef bint set_dims(self, int input, int rank, const int64_t* dims) noexcept nogil:
        """Set the dimensions of one row, only while empty; False when their product overflows."""
        cdef size_t size = self.signature.input_info[input].itemsize
        cdef int axis
        for axis in range(rank):
            if mul_overflow(size, <size_t>dims[axis], &size) or size > MAX_SLAB:
                return False
            self.dims[input * MAX_RANK + axis] = dims[axis]
        self.ranks[input] = rank
        self.row_bytes[input] = size
        return True

    cdef bint same_dims(self, const int* ranks, const int64_t* dims) noexcept nogil:
        """Whether a row has these dimensions in every input (laid out as ``self.ranks``, ``self.dims``)."""
        cdef int i
        for i in range(self.count):
            if ranks[i] != self.ranks[i] or memcmp(&dims[i * MAX_RANK], &self.dims[i * MAX_RANK],
                                                   ranks[i] * sizeof(int64_t)) != 0:
                return False
        return True

    cdef bint reserve(self, Py_ssize_t rows) noexcept nogil:
        """Room for ``rows`` rows in all; False when there is no memory."""
        cdef int i
        cdef size_t need
        for i in range(self.count):
            if mul_overflow(self.row_bytes[i], <size_t>rows, &need):
                return False
            if not slab_reserve(&self.slabs[i], <size_t>self.rows * self.row_bytes[i], need):
                return False
        return True

    cdef bint arena_reserve(self, size_t extra) noexcept nogil:
        return slab_reserve(&self.arena, self.arena_size, self.arena_size + extra)

    cdef bint append(self, Rows source, Py_ssize_t start, Py_ssize_t rows) noexcept nogil:
        """Copy ``rows`` rows of ``source`` from row ``start`` to the end and commit them.

        Dimensions must agree. False when there is no memory; nothing is committed then.
        """
        cdef int i
        cdef size_t elements, e, size
        cdef Span* to
        cdef const Span* have
        if not self.reserve(self.rows + rows):
            return False
        for i in range(self.count):
            if self.row_bytes[i] == 0 or rows == 0:
                continue
            memcpy(rows_at(self, i, self.rows), rows_at(source, i, start), <size_t>rows * self.row_bytes[i])
            if self.signature.input_info[i].datatype != DT_BYTES:
                continue
            to = <Span*>rows_at(self, i, self.rows)
            have = <const Span*>rows_at(source, i, start)
            elements = <size_t>rows * self.row_bytes[i] // SPAN_SIZE
            size = 0
            for e in range(elements):
                if have[e].length != MISSING_BYTES:
                    size += have[e].length
            if not self.arena_reserve(size):
                return False
            for e in range(elements):
                if have[e].length == MISSING_BYTES or have[e].length == 0:
                    to[e].offset = 0
                    continue
                memcpy(self.arena.data + self.arena_size, source.arena.data + have[e].offset, have[e].length)
                to[e].offset = self.arena_size
                self.arena_size += have[e].length
        self.rows += rows
        return True

    cdef bint fill_up(self, Py_ssize_t rows) noexcept nogil:
        """Repeat the last row until there are so many; False when there is no memory. Texts are not copied."""
        cdef Py_ssize_t row
        cdef int i
        if not self.reserve(rows):
            return False
        for i in range(self.count):
            for row in range(self.rows if self.row_bytes[i] else rows, rows):
                memcpy(rows_at(self, i, row), rows_at(self, i, self.rows - 1), self.row_bytes[i])
        self.rows = rows
        return True

    cdef size_t nbytes(self) noexcept nogil:
        """Bytes that the committed rows hold."""
        cdef size_t size = self.arena_size
        cdef int i
        for i in range(self.count):
            size += <size_t>self.rows * self.row_bytes[i]
        return size

    cdef size_t held(self) noexcept nogil:
        """Bytes that the slabs occupy."""
        cdef size_t size = self.arena.capacity
        cdef int i
        for i in range(self.count):
            size += self.slabs[i].capacity
        return size

    cdef bint reset(self) noexcept nogil:
        """Forget the rows; False when somebody still holds an array of them, and they must not be written again."""
        if self.leases:
            return False
        self.rows = 0
        self.arena_size = 0
        return True

    def arrays(self):
        """The committed rows, input by input.

        Returns:
            dict of input name to C-contiguous array, rows first where the model is batched; BYTES as object
            arrays of str. The arrays look into the slabs: they are valid until the rows are reused.

        Raises:
            UnicodeDecodeError: a BYTES element that is not UTF-8.
        """
        cdef int i, axis, rank, type_number
        cdef int first = 1 if self.signature.batched else 0
        cdef cnp.npy_intp shape[MAX_RANK + 1]
        cdef cnp.npy_intp elements
        cdef cnp.ndarray array
        cdef dict arrays = {}
        cdef const Span* span
        if not self.reserve(max(self.rows, 1)):
            raise MemoryError
        for i in range(self.count):
            rank = self.ranks[i] + first
            if first:
                shape[0] = self.rows
            elements = self.rows
            for axis in range(self.ranks[i]):
                shape[axis + first] = self.dims[i * MAX_RANK + axis]
                elements *= shape[axis + first]
            if self.signature.input_info[i].datatype == DT_BYTES:
                values = []
                span = <const Span*>self.slabs[i].data
                for axis in range(elements):
                    if span[axis].length == MISSING_BYTES:
                        values.append(None)
                    else:
                        values.append(PyUnicode_DecodeUTF8(self.arena.data + span[axis].offset,
                                                           <Py_ssize_t>span[axis].length, NULL)
                                      if span[axis].length else "")
                flat = np.empty(elements, dtype=object)
                flat[:] = values
                array = flat.reshape(tuple([shape[axis] for axis in range(rank)]))
            else:
                if self.row_bytes[i] == 0 and self.slabs[i].data == NULL \
                        and not slab_reserve(&self.slabs[i], 0, ALIGNMENT):
                    raise MemoryError
                type_number = NUMPY_TYPES[<int>self.signature.input_info[i].datatype]
                array = cnp.PyArray_SimpleNewFromData(rank, shape, type_number, self.slabs[i].data)
                lease = Lease(self)
                Py_INCREF(lease)  # SetBaseObject steals it
                cnp.PyArray_SetBaseObject(array, lease)
            arrays[self.signature.inputs[i].name] = array
        return arrays


@cython.final
@cython.no_gc_clear
cdef class Lease:
    """The base of an array that looks into a slab: keeps the Rows alive, and from being written again."""

    cdef Rows rows

    def __cinit__(self, Rows rows not None):
        self.rows = rows
        rows.leases += 1

    def __dealloc__(self):
        if self.rows is not None:
            self.rows.leases -= 1


cdef bint writer_reserve(Writer* writer, size_t extra) noexcept nogil:
    """Room for ``extra`` more bytes; False when there is no memory."""
    cdef size_t need = writer.size + extra
    cdef size_t capacity
    cdef char* data
    if need <= writer.capacity:
        return True
    capacity = max(need, 2 * writer.capacity, <size_t>4096)
    data = <char*>realloc(writer.data, capacity)
    if data == NULL:
        return False
    writer.data = data
    writer.capacity = capacity
    return True


cdef bint writer_put(Writer* writer, const char* data, size_t size) noexcept nogil:
    if not writer_reserve(writer, size):
        return False
    if size:  # what is empty need not lie anywhere, and memcpy wants a place
        memcpy(writer.data + writer.size, data, size)
    writer.size += size
    return True


cdef inline void append_literal(Writer* writer, const char* text) noexcept nogil:
    """A text that the compiler knows, for which there is room: its copy is an instruction or two."""
    cdef size_t size = strlen(text)
    memcpy(writer.data + writer.size, text, size)
    writer.size += size


cdef void writer_free(Writer* writer) noexcept nogil:
    free(writer.data)
    writer.data = NULL
    writer.size = writer.capacity = 0
