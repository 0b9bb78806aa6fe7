# The elements of one tensor: from a JSON array, flat or nested, or from the bytes of the binary extension.
from libc.math cimport NAN, fabs
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:  # Failure.reason of BAD_VALUE
    VALUE_TYPE = 1              # not a value that the datatype takes
    VALUE_RANGE                 # beyond the datatype
    VALUE_BOOL, VALUE_NAN, VALUE_UTF8

cdef enum:  # Failure.reason of BAD_SHAPE
    SHAPE_FEW = 1               # data has fewer values than the shape
    SHAPE_MANY, SHAPE_NESTING
    SHAPE_ABSENT, SHAPE_NEGATIVE, SHAPE_HUGE, SHAPE_MISMATCH, SHAPE_ROWS, SHAPE_INTEGER, SHAPE_EMPTY, SHAPE_RECORD
    SHAPE_UNKNOWN

ctypedef fused integer_t:
    uint8_t
    uint16_t
    uint32_t
    uint64_t
    int8_t
    int16_t
    int32_t
    int64_t

cdef struct Elements:           # a run of elements being read
    Json* json
    const TensorInfo* info
    char* out                   # where the next element goes
    char* text                  # (BYTES) where the next text goes in the arena
    char* arena
    Py_ssize_t index            # flat index of the next element
    int axis                    # (failure) which dimension has too few or too many, for nested data
    Fault fault
    int reason
    const char* at


cdef inline const char* refuse(Elements* elements, Fault fault, int reason, const char* at) noexcept nogil:
    elements.fault = fault
    elements.reason = reason
    elements.at = at
    return NULL


cdef inline uint64_t integer_limit(Datatype datatype) noexcept nogil:
    """The largest value."""
    if datatype <= DT_UINT64:
        return <uint64_t>0xFFFFFFFFFFFFFFFF >> (64 - (8 << (<int>datatype - <int>DT_UINT8)))
    return <uint64_t>0x7FFFFFFFFFFFFFFF >> (64 - (8 << (<int>datatype - <int>DT_INT8)))


# ---- one element --------------------------------------------------------------------------------------------
cdef inline bint is_whole_number(const char* after) noexcept nogil:
    """Whether what read_plain read is all of the number."""
    return after != NULL and (after[0] | 32) != c'e'


cdef inline const char* read_real(const Json* json, const char* p, bint nullable, real_t* out) noexcept nogil:
    cdef const char* after
    if p - json.begin >= PLAIN_BEFORE and json.end - p >= PLAIN_AFTER:
        after = read_plain(p, json.end, out)
        if is_whole_number(after):
            return after
    return read_any_real(p, json.end, nullable, out)


cdef const char* read_any_real(const char* p, const char* end, bint nullable, real_t* out) noexcept nogil:
    cdef double value = 0
    cdef const char* after = read_double(p, end, &value)
    if after == NULL:
        if nullable and starts_with(p, end, b"null", 4):
            out[0] = <real_t>NAN
            return p + 4
        return NULL
    if real_t is float:
        if fabs(value) >= FLOAT_LIMIT:
            return NULL
    out[0] = <real_t>value
    return after


cdef inline const char* read_whole(Elements* elements, const char* p, uint64_t limit, uint64_t floor,
                                   integer_t* out) noexcept nogil:
    """``limit`` and ``floor`` bound the magnitude of a positive and of a negative value."""
    cdef uint64_t magnitude = 0
    cdef uint64_t minus = 0
    cdef bint negative = False
    cdef const char* after = NULL
    if p - elements.json.begin >= PLAIN_BEFORE and elements.json.end - p >= PLAIN_AFTER:
        after = read_plain_integer(p, &magnitude, &minus)
        negative = minus != 0
    if after == NULL:
        after = read_integer(p, elements.json.end, &magnitude, &negative)
    if after == NULL or magnitude > (floor if negative else limit):
        return NULL
    out[0] = <integer_t>(0 - magnitude if negative else magnitude)
    return after


cdef inline const char* read_bool(Elements* elements, const char* p, uint8_t* out) noexcept nogil:
    out[0] = starts_with(p, elements.json.end, b"true", 4)
    if out[0]:
        return p + 4
    return p + 5 if starts_with(p, elements.json.end, b"false", 5) else NULL


cdef inline const char* read_text(Elements* elements, const char* p, Span* out) noexcept nogil:
    """A string into the arena; there is room for as many bytes as the JSON text has."""
    cdef Failure failure
    cdef bint escaped = False
    cdef char* text = elements.text
    if p < elements.json.end and p[0] == c'"':
        p = read_string(elements.json, p, &elements.text, &escaped, &failure)
        out.offset = <uint64_t>(text - elements.arena)
        out.length = <uint64_t>(elements.text - text)
        return p
    if not elements.info.nullable or not starts_with(p, elements.json.end, b"null", 4):
        return NULL
    out.offset = 0
    out.length = MISSING_BYTES
    return p + 4


cdef const char* read_element(Elements* elements, const char* p) noexcept nogil:
    """One element of any datatype that JSON carries; NULL when it is not one, or its syntax is wrong."""
    cdef Datatype datatype = elements.info.datatype
    cdef uint64_t limit
    if datatype == DT_FP32:
        return read_real[float](elements.json, p, elements.info.nullable, <float*>elements.out)
    if datatype == DT_FP64:
        return read_real[double](elements.json, p, elements.info.nullable, <double*>elements.out)
    if datatype == DT_BYTES:
        return read_text(elements, p, <Span*>elements.out)
    if datatype == DT_BOOL:
        return read_bool(elements, p, <uint8_t*>elements.out)
    if datatype == DT_FP16 or datatype == DT_BF16:
        return NULL
    limit = integer_limit(datatype)
    if datatype == DT_INT64:
        return read_whole[int64_t](elements, p, limit, limit + 1, <int64_t*>elements.out)
    if datatype == DT_INT32:
        return read_whole[int32_t](elements, p, limit, limit + 1, <int32_t*>elements.out)
    if datatype == DT_INT16:
        return read_whole[int16_t](elements, p, limit, limit + 1, <int16_t*>elements.out)
    if datatype == DT_INT8:
        return read_whole[int8_t](elements, p, limit, limit + 1, <int8_t*>elements.out)
    if datatype == DT_UINT64:
        return read_whole[uint64_t](elements, p, limit, 0, <uint64_t*>elements.out)
    if datatype == DT_UINT32:
        return read_whole[uint32_t](elements, p, limit, 0, <uint32_t*>elements.out)
    if datatype == DT_UINT16:
        return read_whole[uint16_t](elements, p, limit, 0, <uint16_t*>elements.out)
    return read_whole[uint8_t](elements, p, limit, 0, <uint8_t*>elements.out)


# ---- runs of elements ------------------------------------------------------------------------------------------
cdef inline const char* next_element(Elements* elements, const char* p, const char* value,
                                     Py_ssize_t left) noexcept nogil:
    """Past the comma behind an element, or the bracket behind the last; ``left`` elements are still to come."""
    p = skip_space(p, elements.json.end)
    if p < elements.json.end:
        if p[0] == c',':
            return skip_space(p + 1, elements.json.end) if left else refuse(elements, BAD_SHAPE, SHAPE_MANY, p)
        if p[0] == c']':
            return p + 1 if left == 0 else refuse(elements, BAD_SHAPE, SHAPE_FEW, p)
    return refuse(elements, BAD_VALUE, VALUE_TYPE, value)


cdef inline const char* read_plain_reals(const char* p, const char* end, Py_ssize_t count, real_t* out,
                                         Py_ssize_t* done) noexcept nogil:
    """Plain decimals with a comma behind each, at most ``count``, as far as they go; past the last comma.

    PLAIN_BEFORE bytes before ``p`` are there. Behind a comma stands at most one space.
    """
    cdef const char* after
    cdef Py_ssize_t k = 0
    while k < count and end - p >= PLAIN_AFTER:
        after = read_plain(p, end, out + k)
        if after == NULL or after[0] != c',':
            break
        p = after + 1
        if p[0] == c' ':
            p += 1
        k += 1
    done[0] = k
    return p


cdef const char* read_reals(Elements* elements, const char* p, Py_ssize_t count, real_t* out) noexcept nogil:
    cdef const char* value
    cdef const char* begin = elements.json.begin
    cdef const char* end = elements.json.end
    cdef Py_ssize_t done = 0
    cdef Py_ssize_t k = 0
    while k < count:
        if p - begin >= PLAIN_BEFORE:
            p = skip_space(read_plain_reals(p, end, count - k - 1, out + k, &done), end)
            k += done
        value = p
        p = read_real(elements.json, p, elements.info.nullable, out + k)
        if p == NULL:
            elements.index += k
            return refuse(elements, BAD_VALUE, VALUE_TYPE, value)
        p = next_element(elements, p, value, count - k - 1)
        if p == NULL:
            elements.index += k
            return NULL
        k += 1
    elements.index += count
    elements.out = <char*>(out + count)
    return p


cdef const char* read_others(Elements* elements, const char* p, Py_ssize_t count) noexcept nogil:
    cdef const char* value
    cdef Py_ssize_t k
    for k in range(count):
        value = p
        p = read_element(elements, p)
        if p == NULL:
            return refuse(elements, BAD_VALUE, VALUE_TYPE, value)
        p = next_element(elements, p, value, count - k - 1)
        if p == NULL:
            return NULL
        elements.out += elements.info.itemsize
        elements.index += 1
    return p


cdef const char* read_run(Elements* elements, const char* p, Py_ssize_t count) noexcept nogil:
    """``count`` elements and the closing bracket, from behind the opening one."""
    p = skip_space(p, elements.json.end)
    if p < elements.json.end and p[0] == c']':
        return p + 1 if count == 0 else refuse(elements, BAD_SHAPE, SHAPE_FEW, p)
    if count == 0:
        return refuse(elements, BAD_SHAPE, SHAPE_MANY, p)
    if elements.info.datatype == DT_FP32:
        return read_reals[float](elements, p, count, <float*>elements.out)
    if elements.info.datatype == DT_FP64:
        return read_reals[double](elements, p, count, <double*>elements.out)
    return read_others(elements, p, count)


cdef const char* read_nested(Elements* elements, const char* p, int rank, const int64_t* shape,
                             int axis) noexcept nogil:
    """The array at ``p``, whose nesting is the shape's from ``axis`` on."""
    cdef int64_t k
    if p >= elements.json.end or p[0] != c'[':
        elements.axis = axis
        return refuse(elements, BAD_SHAPE, SHAPE_NESTING, p)
    if axis == rank - 1:
        p = read_run(elements, p + 1, shape[axis])
        if p == NULL:
            elements.axis = axis
        return p
    p = skip_space(p + 1, elements.json.end)
    if shape[axis] == 0:
        elements.axis = axis
        return p + 1 if p < elements.json.end and p[0] == c']' else refuse(elements, BAD_SHAPE, SHAPE_MANY, p)
    for k in range(shape[axis]):
        if p < elements.json.end and p[0] == c']':
            elements.axis = axis
            return refuse(elements, BAD_SHAPE, SHAPE_FEW, p)
        p = read_nested(elements, p, rank, shape, axis + 1)
        if p == NULL:
            return NULL
        p = next_element(elements, p, p, shape[axis] - k - 1)
        if p == NULL:
            elements.axis = axis
            return NULL
    return p


cdef const char* read_array(Elements* elements, const char* p, int rank, const int64_t* shape,
                            Py_ssize_t count) noexcept nogil:
    """The array at ``p``, flat or nested as ``shape``; past it."""
    cdef const char* inside = skip_space(p + 1, elements.json.end)
    if inside < elements.json.end and inside[0] == c'[' and rank > 1:
        return read_nested(elements, p, rank, shape, 0)
    elements.axis = -1
    return read_run(elements, inside, count)


# ---- binary ----------------------------------------------------------------------------------------------------
cdef enum:  # Failure.reason of BAD_BINARY
    BINARY_HEADER = 1           # the header's length is not within the body
    BINARY_UNANNOUNCED          # binary_data_size without the header
    BINARY_BOTH, BINARY_SHORT, BINARY_SURPLUS, BINARY_SIZE, BINARY_ELEMENT, BINARY_REST, BINARY_RAW, BINARY_RECORDS
    BINARY_MIXED, BINARY_COUNT


cdef bint copy_texts(Elements* elements, const char* p, const char* end, Py_ssize_t count) noexcept nogil:
    """BYTES elements: little-endian 32-bit length, then that many bytes of UTF-8; nothing may be left."""
    cdef Span* out = <Span*>elements.out
    cdef uint32_t length
    cdef Py_ssize_t k
    for k in range(count):
        elements.index = k
        if end - p < 4:
            return refuse(elements, BAD_BINARY, BINARY_ELEMENT, p) != NULL
        memcpy(&length, p, 4)
        p += 4
        if length > <size_t>(end - p):
            return refuse(elements, BAD_BINARY, BINARY_ELEMENT, p - 4) != NULL
        if not take_text(elements, out + k, p, length):
            return False
        p += length
    return p == end or refuse(elements, BAD_BINARY, BINARY_REST, p) != NULL


cdef bint take_text(Elements* elements, Span* out, const char* text, size_t length) noexcept nogil:
    """An element's text into the arena; an empty one is a missing value where the column may have one."""
    if not is_utf8(text, text + length):
        return refuse(elements, BAD_VALUE, VALUE_UTF8, text) != NULL
    out.offset = <uint64_t>(elements.text - elements.arena)
    out.length = MISSING_BYTES if length == 0 and elements.info.nullable else length
    if length:
        memcpy(elements.text, text, length)
        elements.text += length
    return True


cdef bint copy_elements(Elements* elements, const char* p, const char* end, Py_ssize_t count) noexcept nogil:
    """Elements of a fixed size, checked for what their datatype or column does not have."""
    cdef Py_ssize_t k
    cdef const double* reals = <const double*>elements.out
    if p == end:
        return True
    memcpy(elements.out, p, end - p)
    if elements.info.datatype == DT_BOOL:
        for k in range(count):
            if <uint8_t>p[k] > 1:
                elements.index = k
                return refuse(elements, BAD_VALUE, VALUE_BOOL, p + k) != NULL
    elif elements.info.column and not elements.info.nullable and elements.info.datatype == DT_FP64:
        for k in range(count):
            if reals[k] != reals[k]:
                elements.index = k
                return refuse(elements, BAD_VALUE, VALUE_NAN, p + 8 * k) != NULL
    return True
