# One output's elements as JSON text.
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport PyObject
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastinfer.errors import InvalidOutputError, RuntimeFailedError

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef enum:
    CHUNK = 128                 # elements for which room is made at a time
    FEW_VIEWS = 4               # outputs of an answer whose views take no memory of their own

cdef struct View:               # the elements of one output that belong to one answer
    Datatype datatype
    const char* data            # of the first element
    const char* arena           # (BYTES) the elements are Spans of it; NULL: they are Python objects
    Py_ssize_t count
    Py_ssize_t row              # elements of one row
    int rank
    Py_ssize_t* shape           # of the whole array; where batched, the first is not the answer's
    size_t itemsize
    Writer text                 # (BYTES) every element as JSON or as the binary extension has it
    size_t* ends                # (BYTES) where each element's text ends
    Py_ssize_t[2] own_shape     # of an output that was classified


cdef bint open_view(View* view, Result* result, bint batched, Py_ssize_t start, Py_ssize_t rows) except False:
    """Look at ``rows`` rows of an output from ``start``, or at all of it where the model is not batched.

    Raises:
        RuntimeFailedError: it has fewer rows.
    """
    cdef Py_ssize_t have
    memset(view, 0, sizeof(View))
    view.datatype = result.datatype
    view.rank = result.rank
    view.shape = result.shape
    view.itemsize = result.itemsize
    view.count = view.row = result.count
    view.data = result.data
    view.arena = result.arena
    if not batched:
        return True
    have = result.shape[0] if result.rank else 0
    if start < 0 or rows < 0 or have - start < rows:
        raise RuntimeFailedError(f"an output of the model has {have} rows, {start + rows} rows are needed")
    view.row = result.count // have if have else inner_size(result)
    view.count = view.row * rows
    view.data += <size_t>(start * view.row) * view.itemsize
    return True


cdef Py_ssize_t inner_size(const Result* result) noexcept nogil:
    """Elements of a row, where there is no row to count them in."""
    cdef Py_ssize_t size = 1
    cdef int axis
    for axis in range(1, result.rank):
        size *= result.shape[axis]
    return size


cdef View* open_views(View* few, Py_ssize_t count) except NULL:
    """Room for ``count`` views: ``few``, or memory of their own where that is too little."""
    cdef View* views = few
    if count > FEW_VIEWS:
        views = <View*>malloc(count * sizeof(View))
        if views == NULL:
            raise MemoryError
    memset(views, 0, count * sizeof(View))
    return views


cdef void close_views(View* views, Py_ssize_t count, const View* few) noexcept:
    cdef Py_ssize_t k
    for k in range(count):
        writer_free(&views[k].text)
        free(views[k].ends)
    if views != few:
        free(views)


# ---- strings -------------------------------------------------------------------------------------------------------
cdef bint put_string(Writer* writer, const char* p, const char* end) noexcept nogil:
    """A JSON string of UTF-8 text: quotes, backslashes and controls escaped, the rest as it is."""
    cdef const char* start
    if not writer_put(writer, b'"', 1):
        return False
    while p < end:
        start = p
        while p < end and (is_plain(p[0]) or not is_ascii(p[0])):
            p = skip_plain(p, end)
            while p < end and not is_ascii(p[0]):
                p += 1
        if not writer_put(writer, start, p - start):
            return False
        if p < end:
            if not put_escape(writer, p[0]):
                return False
            p += 1
    return writer_put(writer, b'"', 1)


cdef bint put_escape(Writer* writer, char c) noexcept nogil:
    cdef char[6] text
    cdef const char* digits = b"0123456789abcdef"
    text[0] = c'\\'
    text[1] = short_escape(c)
    if text[1]:
        return writer_put(writer, <const char*>text, 2)
    text[1] = c'u'
    text[2] = text[3] = c'0'
    text[4] = digits[<uint8_t>c >> 4]
    text[5] = digits[<uint8_t>c & 15]
    return writer_put(writer, <const char*>text, 6)


cdef inline char short_escape(char c) noexcept nogil:
    if c == c'"' or c == c'\\':
        return c
    if c == 10:
        return c'n'
    if c == 9:
        return c't'
    if c == 13:
        return c'r'
    if c == 8:
        return c'b'
    return c'f' if c == 12 else 0


cdef bint prepare_texts(View* view, str name, bint binary) except False:
    """Write every element of a BYTES output into ``view.text``, so that what follows needs no GIL.

    Raises:
        InvalidOutputError: an element that is not UTF-8, for JSON.
        RuntimeFailedError: an element that is neither str nor bytes.
    """
    cdef object element
    cdef const char* data
    cdef Py_ssize_t size = 0
    cdef Py_ssize_t k
    cdef bint sound
    cdef const Span* span = <const Span*>view.data
    view.ends = <size_t*>malloc((view.count + 1) * sizeof(size_t))
    if view.ends == NULL:
        raise MemoryError
    for k in range(view.count):
        sound = True
        if view.arena != NULL:
            data = view.arena + span[k].offset
            size = <Py_ssize_t>span[k].length
            sound = binary or is_utf8(data, data + size)
        elif isinstance(<object>(<PyObject**>view.data)[k], str):
            element = <object>(<PyObject**>view.data)[k]
            try:
                data = PyUnicode_AsUTF8AndSize(element, &size)
            except UnicodeEncodeError:
                raise InvalidOutputError(f"output '{name}', element {k} has a lone surrogate") from None
        elif isinstance(<object>(<PyObject**>view.data)[k], bytes):
            element = <object>(<PyObject**>view.data)[k]
            data = PyBytes_AS_STRING(element)
            size = PyBytes_GET_SIZE(element)
            sound = binary or is_utf8(data, data + size)
        else:
            raise RuntimeFailedError(f"the model's output '{name}' has an element that is no text")
        if not sound:
            raise InvalidOutputError(f"output '{name}', element {k} is not UTF-8, which JSON does not carry; "
                                     f"ask for it with the parameter 'binary_data': true")
        if not (put_counted(&view.text, data, size) if binary else put_string(&view.text, data, data + size)):
            raise MemoryError
        view.ends[k] = view.text.size
    return True


cdef bint put_counted(Writer* writer, const char* data, Py_ssize_t size) noexcept nogil:
    """An element of the binary extension: little-endian 32-bit length, then the bytes."""
    cdef uint32_t length = <uint32_t>size
    return size == <Py_ssize_t>length and writer_put(writer, <const char*>&length, 4) and writer_put(writer, data, size)


# ---- elements ------------------------------------------------------------------------------------------------------
cdef inline char* write_bool(char* out, bint value) noexcept nogil:
    memcpy(out, b"true" if value else b"false", 5)
    return out + (4 if value else 5)


cdef inline char* write_element(char* out, Datatype datatype, const char* data) noexcept nogil:
    """A number or boolean, at most NUMBER_SIZE bytes; ``null`` for what JSON does not have."""
    cdef char* end = out + NUMBER_SIZE
    if datatype == DT_FP32:
        return write_real(out, (<const float*>data)[0])
    if datatype == DT_FP64:
        return write_real(out, (<const double*>data)[0])
    if datatype == DT_INT64:
        return to_text(out, end, (<const int64_t*>data)[0])
    if datatype == DT_INT32:
        return to_text(out, end, (<const int32_t*>data)[0])
    if datatype == DT_INT16:
        return to_text(out, end, <int32_t>(<const int16_t*>data)[0])
    if datatype == DT_INT8:
        return to_text(out, end, <int32_t>(<const int8_t*>data)[0])
    if datatype == DT_UINT64:
        return to_text(out, end, (<const uint64_t*>data)[0])
    if datatype == DT_UINT32:
        return to_text(out, end, (<const uint32_t*>data)[0])
    if datatype == DT_UINT16:
        return to_text(out, end, <uint32_t>(<const uint16_t*>data)[0])
    if datatype == DT_UINT8:
        return to_text(out, end, <uint32_t>(<const uint8_t*>data)[0])
    return write_bool(out, (<const uint8_t*>data)[0] != 0)


cdef bint put_element(Writer* writer, const View* view, Py_ssize_t index) noexcept nogil:
    cdef char* out
    cdef size_t begin
    if view.datatype == DT_BYTES:
        begin = view.ends[index - 1] if index else 0
        return writer_put(writer, view.text.data + begin, view.ends[index] - begin)
    if not writer_reserve(writer, NUMBER_SIZE):
        return False
    out = writer.data + writer.size
    writer.size = write_element(out, view.datatype, view.data + <size_t>index * view.itemsize) - writer.data
    return True


cdef bint put_elements(Writer* writer, const View* view, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """``count`` elements with commas between them."""
    cdef const char* data = view.data + <size_t>first * view.itemsize
    cdef Py_ssize_t k
    cdef char* out
    if view.datatype == DT_BYTES:
        for k in range(count):
            if (k and not writer_put(writer, b",", 1)) or not put_element(writer, view, first + k):
                return False
        return True
    for k in range(count):
        if k % CHUNK == 0 and not writer_reserve(writer, <size_t>(min(count - k, CHUNK) * (NUMBER_SIZE + 1))):
            return False
        out = writer.data + writer.size
        if k:
            out[0] = c','
            out += 1
        writer.size = write_element(out, view.datatype, data) - writer.data
        data += view.itemsize
    return True


cdef bint put_nested(Writer* writer, const View* view, int axis, Py_ssize_t* index) noexcept nogil:
    """The array whose dimensions are the output's from ``axis`` on, starting with element ``index``."""
    cdef Py_ssize_t k
    if axis == view.rank:
        index[0] += 1
        return put_element(writer, view, index[0] - 1)
    if not writer_put(writer, b"[", 1):
        return False
    if axis == view.rank - 1:
        if not put_elements(writer, view, index[0], view.shape[axis]):
            return False
        index[0] += view.shape[axis]
    else:
        for k in range(view.shape[axis]):
            if (k and not writer_put(writer, b",", 1)) or not put_nested(writer, view, axis + 1, index):
                return False
    return writer_put(writer, b"]", 1)
