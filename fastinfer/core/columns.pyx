# Raw columns as Python programs hold them: numbers and Arrow's values are read where they lie, block by block and
# without the GIL; Python's own objects are copied once, because others may let go of them meanwhile.
cimport cython
cimport numpy as cnp
from cpython.object cimport PyObject
from libc.math cimport NAN, isnan
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset, strlen

import numpy as np

from fastinfer.errors import InvalidRecordError

cdef extern from *:
    """
    static inline const char* name_of_type(PyObject* value) { return Py_TYPE(value)->tp_name; }
    """
    const char* name_of_type(object value)

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    bint PyUnicode_Check(object value)
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    void* PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    bint PyFloat_Check(object value)
    bint PyLong_CheckExact(object value)
    double PyFloat_AS_DOUBLE(object value)
    double PyLong_AsDouble(object value) except? -1.0
    int64_t PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1
    PyObject* PyDict_GetItemWithError(object mapping, object key) except? NULL
    PyObject** PySequence_Fast_ITEMS(object sequence)

ctypedef fused number_t:
    int8_t
    int16_t
    int32_t
    int64_t
    uint8_t
    uint16_t
    uint32_t
    uint64_t
    float
    double

ctypedef fused offset_t:
    int32_t
    int64_t

cdef struct StringView:         # Arrow's: up to 12 bytes stand in the view, more are a buffer's from an offset on
    int32_t size
    char begins[4]
    int32_t buffer
    int32_t offset

cdef frozenset PLAIN_HOLDERS = frozenset({list, tuple, np.ndarray})
cdef size_t FIRST_POOL_BYTES = 2048
cdef size_t POOL_BYTES = 1 << 16
cdef Py_ssize_t HELD_CELLS = 1 << 14    # rows * (columns + features) that run without letting go of the GIL


# ---- a block's values ------------------------------------------------------------------------------------------
cdef inline bint bit_of(const uint8_t* bits, int64_t bit) noexcept nogil:
    return (bits[bit >> 3] >> (bit & 7)) & 1


cdef void spread_numbers(const number_t* first, Py_ssize_t stride, Py_ssize_t rows, char* out,
                         bint whole) noexcept nogil:
    """To int64 (`whole`) or float64."""
    cdef const char* at = <const char*>first
    cdef Py_ssize_t i
    if whole:
        for i in range(rows):
            (<int64_t*>out)[i] = <int64_t>(<const number_t*>(at + i * stride))[0]
    elif stride == sizeof(number_t):
        for i in range(rows):
            (<double*>out)[i] = <double>first[i]
    else:
        for i in range(rows):
            (<double*>out)[i] = <double>(<const number_t*>(at + i * stride))[0]


cdef void fetch_numbers(const Segment* segment, Py_ssize_t row, Py_ssize_t rows, char* out, bint whole) noexcept nogil:
    cdef const char* at = segment.data + row * segment.stride
    cdef Py_ssize_t i
    if segment.held == HELD_FLOAT64:
        spread_numbers(<const double*>at, segment.stride, rows, out, whole)
    elif segment.held == HELD_FLOAT32:
        spread_numbers(<const float*>at, segment.stride, rows, out, whole)
    elif segment.held == HELD_INT64:
        spread_numbers(<const int64_t*>at, segment.stride, rows, out, whole)
    elif segment.held == HELD_INT32:
        spread_numbers(<const int32_t*>at, segment.stride, rows, out, whole)
    elif segment.held == HELD_INT16:
        spread_numbers(<const int16_t*>at, segment.stride, rows, out, whole)
    elif segment.held == HELD_INT8:
        spread_numbers(<const int8_t*>at, segment.stride, rows, out, whole)
    elif segment.held == HELD_UINT64:
        spread_numbers(<const uint64_t*>at, segment.stride, rows, out, whole)
    elif segment.held == HELD_UINT32:
        spread_numbers(<const uint32_t*>at, segment.stride, rows, out, whole)
    elif segment.held == HELD_UINT16:
        spread_numbers(<const uint16_t*>at, segment.stride, rows, out, whole)
    elif segment.held == HELD_UINT8 or segment.held == HELD_BOOL:
        spread_numbers(<const uint8_t*>at, segment.stride, rows, out, whole)
    else:
        for i in range(rows):
            (<double*>out)[i] = (NAN if segment.held == HELD_NULLS
                                 else bit_of(<const uint8_t*>segment.data, segment.first_bit + row + i))
    if segment.valid != NULL:
        for i in range(rows):
            if not bit_of(segment.valid, segment.first_bit + row + i):
                (<double*>out)[i] = NAN


cdef void fetch_bools(const Segment* segment, Py_ssize_t row, Py_ssize_t rows, char* out) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(rows):
        if segment.held == HELD_BOOL:
            out[i] = segment.data[(row + i) * segment.stride]
        else:
            out[i] = bit_of(<const uint8_t*>segment.data, segment.first_bit + row + i)


cdef inline void place_span(Span* span, const char* data, int64_t size) noexcept nogil:
    """A text outside any arena: the offset is its address."""
    span.offset, span.length = <uint64_t><size_t>data, <uint64_t>size


cdef inline void miss_span(Span* span, const Segment* segment) noexcept nogil:
    span.offset, span.length = segment.missing, MISSING_BYTES


cdef void fetch_strings(const char* pool, const offset_t* offsets, Py_ssize_t rows, Span* out) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(rows):
        if offsets[i + 1] > offsets[i]:
            place_span(&out[i], pool + offsets[i], offsets[i + 1] - offsets[i])
        else:
            out[i].offset = out[i].length = 0


cdef void fetch_views(const Segment* segment, const StringView* views, Py_ssize_t rows, Span* out) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(rows):
        if views[i].size <= 12:
            place_span(&out[i], &views[i].begins[0], views[i].size)
        else:
            place_span(&out[i], <const char*>segment.buffers[2 + views[i].buffer] + views[i].offset, views[i].size)


cdef int64_t code_of(const Segment* segment, Py_ssize_t row) noexcept nogil:
    cdef const char* at = segment.data + row * segment.stride
    if segment.held == HELD_UINT32:
        return <int64_t>(<const uint32_t*>at)[0]
    if segment.held == HELD_INT8:
        return <int64_t>(<const int8_t*>at)[0]
    if segment.held == HELD_UINT8:
        return <int64_t>(<const uint8_t*>at)[0]
    if segment.held == HELD_INT16:
        return <int64_t>(<const int16_t*>at)[0]
    if segment.held == HELD_UINT16:
        return <int64_t>(<const uint16_t*>at)[0]
    if segment.held == HELD_INT32:
        return <int64_t>(<const int32_t*>at)[0]
    return (<const int64_t*>at)[0]


cdef void fetch_texts(const Segment* segment, Py_ssize_t row, Py_ssize_t rows, Span* out) noexcept nogil:
    cdef const char* at = segment.data + row * segment.stride
    cdef int64_t code
    cdef Py_ssize_t i
    if segment.spans != NULL:
        for i in range(rows):
            code = code_of(segment, row + i)
            if 0 <= code < segment.n_spans:     # pandas writes -1 where a value is missing
                out[i] = segment.spans[code]
            else:
                miss_span(&out[i], segment)
    elif segment.held == HELD_STRINGS:
        fetch_strings(segment.pool, <const int32_t*>at, rows, out)
    elif segment.held == HELD_LARGE_STRINGS:
        fetch_strings(segment.pool, <const int64_t*>at, rows, out)
    elif segment.held == HELD_VIEWS:
        fetch_views(segment, <const StringView*>at, rows, out)
    elif segment.held == HELD_INT64:
        for i in range(rows):
            out[i].offset, out[i].length = (<const uint64_t*>(at + i * segment.stride))[0], TIME_BYTES
    elif segment.held == HELD_SPANS:
        memcpy(out, at, rows * sizeof(Span))
    else:
        for i in range(rows):
            miss_span(&out[i], segment)
    if segment.valid != NULL:
        for i in range(rows):
            if not bit_of(segment.valid, segment.first_bit + row + i):
                miss_span(&out[i], segment)


cdef void fetch(const Segment* segment, Datatype datatype, Py_ssize_t row, Py_ssize_t rows, char* out) noexcept nogil:
    """Rows of a segment, counted from its own first, as a slab of that datatype has them."""
    if datatype == DT_BYTES:
        fetch_texts(segment, row, rows, <Span*>out)
    elif datatype == DT_BOOL:
        fetch_bools(segment, row, rows, out)
    else:
        fetch_numbers(segment, row, rows, out, datatype == DT_INT64)


cdef inline Segment* segment_of(Source* source, Py_ssize_t k) noexcept nogil:
    return &source.first if k == 0 else &source.more[k - 1]


# ---- what Python holds -----------------------------------------------------------------------------------------
cdef Held held_of(cnp.ndarray array) except *:
    """How a numpy array holds its values, where they can be read as they lie."""
    cdef int type_number = cnp.PyArray_TYPE(array)
    cdef int size
    if not cnp.PyArray_ISBEHAVED_RO(array):     # aligned, and the machine's byte order
        return HELD_OTHERWISE
    if type_number == cnp.NPY_DOUBLE:
        return HELD_FLOAT64
    if type_number == cnp.NPY_FLOAT:
        return HELD_FLOAT32
    if type_number == cnp.NPY_BOOL:
        return HELD_BOOL
    if not cnp.NPY_BYTE <= type_number <= cnp.NPY_ULONGLONG:
        return HELD_OTHERWISE
    size = {1: 0, 2: 1, 4: 2, 8: 3}[cnp.PyArray_ITEMSIZE(array)]
    return <Held>(size + <int>(HELD_INT8 if cnp.PyTypeNum_ISSIGNED(type_number) else HELD_UINT8))


cdef bint is_suited(Datatype datatype, Held held, bint missing) noexcept:
    """Whether every value that is held so is one that the column takes."""
    if datatype == DT_FP64:
        return held <= HELD_BITS or held == HELD_NULLS
    if datatype == DT_INT64:
        return held <= HELD_UINT32 and not missing
    if datatype == DT_BOOL:
        return (held == HELD_BOOL or held == HELD_BITS) and not missing
    return HELD_SPANS <= held <= HELD_NULLS


@cython.final
cdef class Columns:
    """The raw columns of one call of `CompiledProgram.transform`.

    Each is offered with `take`, or all together with one of its sisters; what is not taken is held in a way that only
    Python code can read, or holds a value that its column does not take. What is taken must not change meanwhile.

    Args:
        signature: the raw columns as inputs.
        objects: for each column 1 where the pipeline was fitted on Python objects, so that None is not NaN, else 0.

    Raises:
        InvalidRecordError: (all that take) a column has another length than the others, or a text is not valid Unicode.
    """

    def __cinit__(self, Signature signature not None, bytes objects not None):
        if len(objects) != signature.n_inputs:
            raise ValueError(f"{len(objects)} flags for {signature.n_inputs} columns")
        self.signature, self.objects = signature, objects
        self.owned = []
        self.rows = -1
        self.count = signature.n_inputs
        self.sources = <Source*>calloc(self.count + 1, sizeof(Source))
        self.slabs = <Slab*>calloc(self.count + 1, sizeof(Slab))
        if self.sources == NULL or self.slabs == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int i
        if self.sources != NULL:
            for i in range(self.count):
                free(self.sources[i].more)
        free(self.sources)
        free(self.slabs)
        free(self.scratch)

    def take(self, int i, values, bint explicit=False, bint nan=False):
        """Offer all of column ``i``: a numpy array, a list, a tuple, or what exports Arrow's C data interface.

        Args:
            i: which column.
            values: its values.
            nan: what is missing in Arrow's arrays is NaN, as pandas has it, and not what the column declares.
            explicit: None is None, whatever the column declares, and int64 are the microseconds of a column of dates.

        Returns:
            whether it was taken.
        """
        cdef cnp.ndarray array
        self.missing = NAN_TEXT if nan else 0
        if isinstance(values, np.ndarray):
            array = values
            if cnp.PyArray_NDIM(array) != 1:
                return False
            if cnp.PyArray_TYPE(array) != cnp.NPY_OBJECT:
                return self.take_numbers(i, array, cnp.PyArray_BYTES(array), cnp.PyArray_STRIDE(array, 0), explicit)
            return self.take_objects(i, cnp.PyArray_BYTES(array), cnp.PyArray_DIM(array, 0),
                                     cnp.PyArray_STRIDE(array, 0), explicit or self.objects[i] != 0)
        if isinstance(values, (list, tuple)):
            return self.take_objects(i, <const char*>PySequence_Fast_ITEMS(values), len(values), sizeof(PyObject*),
                                     explicit)
        return take_arrow(self, i, values)

    def take_mapping(self, dict columns not None):
        """Offer all columns by name, where they are lists, tuples or numpy arrays.

        Returns:
            the columns that were not taken, or are not there, as a list.
        """
        cdef PyObject* found
        cdef int i
        refused = []
        for i in range(self.signature.n_inputs):
            found = PyDict_GetItemWithError(columns, self.signature.keys[i])
            if found == NULL or type(<object>found) not in PLAIN_HOLDERS or not self.take(i, <object>found):
                refused.append(i)
        return refused

    def take_codes(self, int i, cnp.ndarray codes not None, list categories not None):
        """Offer column ``i`` as where its values stand among ``categories``; below 0 they are NaN."""
        cdef Py_ssize_t count = len(categories), k
        cdef Span* spans = <Span*>self.room(count * sizeof(Span))
        cdef Held held = held_of(codes)
        cdef Segment* segment
        if self.signature.input_info[i].datatype != DT_BYTES or held > HELD_UINT32 or cnp.PyArray_NDIM(codes) != 1:
            return False
        for k in range(count):
            if not isinstance(categories[k], str):
                return False
            self.put_value(i, categories[k], <char*>&spans[k], False)
        self.owned.append(codes)
        self.missing = NAN_TEXT
        segment = self.add_segment(i, cnp.PyArray_DIM(codes, 0))
        segment.held, segment.data, segment.stride = held, cnp.PyArray_BYTES(codes), cnp.PyArray_STRIDE(codes, 0)
        segment.spans, segment.n_spans = spans, count
        self.close_source(i)
        return True

    def take_matrix(self, cnp.ndarray array not None, positions):
        """Offer an array [rows, columns]: column ``i`` lies at ``positions[i]``.

        Returns:
            the columns that were not taken, as a list.
        """
        cdef Py_ssize_t stride = cnp.PyArray_STRIDE(array, 1), position
        cdef int i
        refused = []
        for i in range(self.signature.n_inputs):
            position = positions[i]
            if (cnp.PyArray_TYPE(array) == cnp.NPY_OBJECT
                    or not self.take_numbers(i, array, cnp.PyArray_BYTES(array) + position * stride,
                                             cnp.PyArray_STRIDE(array, 0), False)):
                refused.append(i)
        return refused

    def take_records(self, list records not None):
        """Offer all columns as dicts, one a row; an absent field is missing.

        Returns:
            the columns that were not taken, as a list.
        """
        cdef int count = self.signature.n_inputs, i
        cdef Py_ssize_t rows = len(records), row
        cdef char** begins = <char**>self.room((count + 1) * sizeof(char*))
        cdef PyObject* found
        cdef char* at
        cdef list refused = []
        for i in range(count):
            begins[i] = self.room(rows * self.signature.input_info[i].itemsize)
        for row in range(rows):
            record = records[row]
            if not isinstance(record, dict):
                return list(range(count))
            for i in range(count):
                if begins[i] == NULL:
                    continue
                found = PyDict_GetItemWithError(record, self.signature.keys[i])
                at = begins[i] + row * self.signature.input_info[i].itemsize
                if not self.put_value(i, <object>found if found != NULL else None, at, False):
                    begins[i] = NULL
                    refused.append(i)
        for i in range(count):
            if begins[i] != NULL:
                self.add_slab(i, rows, begins[i])
        return refused

    def take_frame(self, frame):
        """Offer all columns as a frame that exports Arrow's C data interface.

        Returns:
            the columns that were not taken, or are not there, as a list.
        """
        self.missing = 0
        return take_stream(self, list(range(self.signature.n_inputs)), frame.__arrow_c_stream__(), True)

    cdef bint take_objects(self, int i, const char* values, Py_ssize_t count, Py_ssize_t stride,
                           bint boxed) except -1:
        cdef size_t size = self.signature.input_info[i].itemsize
        cdef char* begin = self.room(count * size)
        cdef PyObject* value
        cdef Py_ssize_t row
        for row in range(count):
            value = (<PyObject**>(values + row * stride))[0]
            if not self.put_value(i, <object>value if value != NULL else None, begin + row * size, boxed):
                return False
        self.add_slab(i, count, begin)
        return True

    cdef bint take_numbers(self, int i, cnp.ndarray array, const char* data, Py_ssize_t stride,
                           bint explicit) except -1:
        """A column of a numpy array of numbers, or (`explicit`) of microseconds."""
        cdef Datatype datatype = self.signature.input_info[i].datatype
        cdef Held held = held_of(array)
        cdef Segment* segment
        if not is_suited(datatype, held, False) and not (explicit and datatype == DT_BYTES and held == HELD_INT64):
            return False
        segment = self.add_segment(i, cnp.PyArray_DIM(array, 0))
        segment.held, segment.data, segment.stride = held, data, stride
        self.owned.append(array)
        self.close_source(i)
        return True

    cdef bint put_value(self, int i, value, char* out, bint boxed) except -1:
        """One value as a slab has it; False where the column does not take it, or only Python code can tell.

        Runs no Python code, so that nobody changes meanwhile what the values come out of.
        """
        cdef Datatype datatype = self.signature.input_info[i].datatype
        cdef int overflow = 0
        cdef Py_ssize_t size
        cdef const char* text
        cdef Span* span
        if datatype == DT_BYTES:
            span = <Span*>out
            if PyUnicode_Check(value):
                if PyUnicode_IS_COMPACT_ASCII(value):
                    text, size = <const char*>PyUnicode_DATA(value), PyUnicode_GET_LENGTH(value)
                elif not encoded(value, &text, &size):
                    return False
                place_span(span, self.copied(text, size), size)
            elif value is None:
                span.offset, span.length = NONE_TEXT if boxed else 0, MISSING_BYTES
            elif (PyFloat_Check(value) and isnan(PyFloat_AS_DOUBLE(value))) or is_pandas_na(value):
                span.offset, span.length = NAN_TEXT, MISSING_BYTES
            else:
                return False
        elif datatype == DT_FP64:
            if PyFloat_Check(value):
                (<double*>out)[0] = PyFloat_AS_DOUBLE(value)
            elif PyLong_CheckExact(value):
                if PyLong_AsLongLongAndOverflow(value, &overflow) == -1 and overflow:
                    return False
                (<double*>out)[0] = PyLong_AsDouble(value)
            elif value is None or is_pandas_na(value):
                (<double*>out)[0] = NAN
            elif value is True or value is False:
                (<double*>out)[0] = 1.0 if value is True else 0.0
            else:
                return False
        elif datatype == DT_INT64:
            if not PyLong_CheckExact(value):
                return False
            (<int64_t*>out)[0] = PyLong_AsLongLongAndOverflow(value, &overflow)
            return not overflow
        else:
            if value is not True and value is not False:
                return False
            out[0] = value is True
        return True

    cdef char* copied(self, const char* data, Py_ssize_t size) except NULL:
        cdef char* copy
        self.text_bytes += <size_t>size
        if <size_t>size > self.pool_left:
            copy = self.room(<size_t>size)
        else:
            copy = self.pool
            self.pool += size
            self.pool_left -= <size_t>size
        memcpy(copy, data, <size_t>size)
        return copy

    cdef char* room(self, size_t size) except NULL:
        """Bytes for values of any type that live as long as this object."""
        cdef Memory memory
        cdef size_t skipped = -<size_t>self.pool & 7
        size = (max(size, <size_t>1) + 7) & ~<size_t>7
        if size + skipped <= self.pool_left:
            self.pool += size + skipped
            self.pool_left -= size + skipped
            return self.pool - size
        if size > POOL_BYTES // 4:
            memory = Memory(size)
            self.owned.append(memory)
            return <char*>memory.data
        self.pool_left = POOL_BYTES if self.pool != NULL or size > FIRST_POOL_BYTES else FIRST_POOL_BYTES
        memory = Memory(self.pool_left)
        self.owned.append(memory)
        self.pool = <char*>memory.data + size
        self.pool_left -= size
        return <char*>memory.data

    cdef int add_slab(self, int i, Py_ssize_t rows, const char* data) except -1:
        """All of a column, as a slab has it."""
        cdef Segment* segment = self.add_segment(i, rows)
        segment.data, segment.stride = data, <Py_ssize_t>self.signature.input_info[i].itemsize
        segment.held = {DT_FP64: HELD_FLOAT64, DT_INT64: HELD_INT64, DT_BOOL: HELD_BOOL}.get(
            self.signature.input_info[i].datatype, HELD_SPANS)
        return self.close_source(i)

    cdef Segment* add_segment(self, int i, Py_ssize_t rows) except NULL:
        """The column's next rows, to be filled in."""
        cdef Source* source = &self.sources[i]
        cdef Segment* segment
        cdef void* grown
        cdef Py_ssize_t begin = segment_of(source, source.count - 1).end if source.count else 0
        if source.count > source.capacity:
            grown = realloc(source.more, 2 * source.count * sizeof(Segment))
            if grown == NULL:
                raise MemoryError
            source.more, source.capacity = <Segment*>grown, 2 * source.count
        segment = segment_of(source, source.count)
        memset(segment, 0, sizeof(Segment))
        segment.begin, segment.end, segment.missing = begin, begin + rows, self.missing
        source.count += 1
        return segment

    cdef int close_source(self, int i) except -1:
        """The column is whole."""
        cdef Source* source = &self.sources[i]
        cdef Datatype datatype = self.signature.input_info[i].datatype
        cdef Segment* segment
        cdef Py_ssize_t k, rows = 0
        for k in range(source.count):
            segment = segment_of(source, k)
            rows = segment.end
            segment.direct = (
                segment.stride == <Py_ssize_t>self.signature.input_info[i].itemsize and segment.valid == NULL
                and (segment.held == HELD_FLOAT64 if datatype == DT_FP64 else segment.held == HELD_INT64
                     if datatype == DT_INT64 else segment.held == HELD_BOOL if datatype == DT_BOOL
                     else segment.held == HELD_SPANS))
        if self.rows >= 0 and rows != self.rows:
            raise InvalidRecordError(f"the column {self.signature.keys[i]!r} has {rows} rows, others {self.rows}")
        self.rows = rows
        source.taken = True
        return 0

    cdef bint is_quick(self, Py_ssize_t width):
        """Whether the rows are so few that letting go of the GIL would cost more than it gives."""
        return (not self.foreign and self.text_bytes < POOL_BYTES
                and self.rows * (self.signature.n_inputs + width) <= HELD_CELLS)

    # -- blocks ------------------------------------------------------------------------------------------------
    cdef Py_ssize_t open(self, Py_ssize_t rows) except -1:
        """Room for blocks of at most so many rows; returns how many it is for."""
        cdef size_t row_bytes = 0
        cdef Source* source
        cdef char* at
        cdef int i
        for i in range(self.signature.n_inputs):
            source = &self.sources[i]
            if not source.taken:
                name = self.signature.keys[i]
                raise InvalidRecordError(f"the column {name!r} is missing", f"$.{name}")
            if source.count > 1 or (source.count and not source.first.direct):
                row_bytes += 16
        rows = min(rows, max(8, SCRATCH_BYTES // max(<Py_ssize_t>row_bytes, 1)))
        if row_bytes:
            self.scratch = at = <char*>malloc(row_bytes * <size_t>rows)
            if at == NULL:
                raise MemoryError
            for i in range(self.signature.n_inputs):
                source = &self.sources[i]
                if source.count > 1 or (source.count and not source.first.direct):
                    source.scratch = at
                    at += 16 * rows
        return rows

    cdef void seek(self, Py_ssize_t row, Py_ssize_t rows) noexcept nogil:
        """Set the slabs to these rows."""
        cdef const TensorInfo* info
        cdef Source* source
        cdef Segment* segment
        cdef Py_ssize_t done, part
        cdef int i
        for i in range(self.signature.n_inputs):
            info = &self.signature.input_info[i]
            source = &self.sources[i]
            segment = segment_of(source, source.current)
            if row < segment.begin:
                source.current = 0
                segment = &source.first
            while row >= segment.end:
                source.current += 1
                segment = segment_of(source, source.current)
            if segment.direct and row + rows <= segment.end:
                self.slabs[i].data = <char*>segment.data + <size_t>(row - segment.begin) * info.itemsize
                continue
            self.slabs[i].data = source.scratch
            done = 0
            while True:
                part = min(rows - done, segment.end - (row + done))
                fetch(segment, info.datatype, row + done - segment.begin, part,
                      source.scratch + <size_t>done * info.itemsize)
                done += part
                if done == rows:
                    break
                source.current += 1
                segment = segment_of(source, source.current)


cdef bint encoded(value, const char** text, Py_ssize_t* size) except -1:
    """The UTF-8 of a str, or of a class made of it such as numpy's, which lives as long as it; False where it has none:
    half of a surrogate pair.
    """
    try:
        text[0] = PyUnicode_AsUTF8AndSize(value, size)
    except UnicodeEncodeError:
        return False
    return True


cdef inline bint is_pandas_na(value) noexcept:
    """By name: pandas need not be there."""
    cdef const char* name = name_of_type(value)
    cdef size_t size = strlen(name)
    return size >= 6 and memcmp(name + size - 6, b"NAType", 6) == 0 and (size == 6 or name[size - 7] == c'.')


cdef Columns explicit_columns(Signature signature, dict columns):
    """Columns that our own Python code made: arrays, and for text lists of str, None and NaN."""
    cdef Columns taken = Columns(signature, bytes(signature.n_inputs))
    cdef int i
    for i in range(signature.n_inputs):
        name = signature.keys[i]
        if name in columns and not taken.take(i, columns[name], True):
            raise InvalidRecordError(f"the column {name!r} holds what it does not take", f"$.{name}")
    return taken
