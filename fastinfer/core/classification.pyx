# The classification extension: of an output its highest values, each as the text "value:place" or "value:place:label".
#
# Source: triton-inference-server/server `docs/protocol/extension_classification.md`; values as C's "%f" has them.
from libc.stdio cimport snprintf
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

cdef extern from *:
    """
    #include <algorithm>
    #include <numeric>

    namespace fastinfer {
    // The places of the highest of `count` values, highest first, of equal ones the first; NaN comes behind all others.
    template <typename T>
    void highest(const T* values, int64_t count, int64_t most, int64_t* places) {
        std::iota(places, places + count, int64_t(0));
        std::partial_sort(places, places + most, places + count, [values](int64_t a, int64_t b) {
            const T x = values[a], y = values[b];
            const bool no_x = x != x, no_y = y != y;
            if (no_x != no_y) return no_y;
            if (no_x || x == y) return a < b;
            return x > y;
        });
    }
    }
    """
    void highest "fastinfer::highest"[T](const T* values, int64_t count, int64_t most, int64_t* places) noexcept nogil

cdef enum:
    CLASS_SIZE = 400            # bytes of a value and a place: "%f" of the largest float64 has 317


cdef inline bint is_ordered(Datatype datatype) noexcept nogil:
    """Whether an output of this datatype can be classified."""
    return DT_UINT8 <= datatype <= DT_INT64 or datatype == DT_FP32 or datatype == DT_FP64


cdef bint classify(View* view, bint batched, Py_ssize_t rows, int64_t most, const Piece* labels,
                   Py_ssize_t n_labels, bint binary) except False:
    """Put the texts of the ``most`` highest values of each row in the place of the view's numbers.

    Args:
        labels: of the places, or NULL.
        binary: whether they are to travel as binary data, else as JSON.
    """
    cdef bint ok
    cdef int64_t* places
    rows = rows if batched else 1
    most = min(most, <int64_t>view.row)
    places = <int64_t*>malloc((view.row + 1) * sizeof(int64_t))
    view.ends = <size_t*>malloc((rows * most + 1) * sizeof(size_t))
    try:
        if places == NULL or view.ends == NULL:
            raise MemoryError
        with nogil:
            ok = put_classes(view, rows, most, labels if n_labels == view.row else NULL, binary, places)
        if not ok:
            raise MemoryError
    finally:
        free(places)
    view.datatype = DT_BYTES
    view.row = most
    view.count = rows * most
    view.rank = 2 if batched else 1
    view.own_shape[0] = rows
    view.own_shape[view.rank - 1] = most
    view.shape = view.own_shape
    return True


cdef bint put_classes(View* view, Py_ssize_t rows, int64_t most, const Piece* labels, bint binary,
                      int64_t* places) noexcept nogil:
    cdef Writer text = Writer(NULL, 0, 0)
    cdef const char* data = view.data
    cdef Py_ssize_t row
    cdef int64_t k
    cdef bint ok = True
    for row in range(rows):
        order(view.datatype, data, view.row, most, places)
        for k in range(most):
            text.size = 0
            ok = ok and append_class(&text, view.datatype, data + <size_t>places[k] * view.itemsize, places[k])
            if ok and labels != NULL:
                ok = writer_put(&text, b":", 1) and put_piece(&text, &labels[places[k]])
            if ok and binary:
                ok = put_counted(&view.text, text.data, <Py_ssize_t>text.size)
            elif ok:
                ok = put_string(&view.text, text.data, text.data + text.size)
            if not ok:
                break
            view.ends[row * most + k] = view.text.size
        data += <size_t>view.row * view.itemsize
    writer_free(&text)
    return ok


cdef void order(Datatype datatype, const char* data, Py_ssize_t count, int64_t most, int64_t* places) noexcept nogil:
    if datatype == DT_FP32:
        highest(<const float*>data, count, most, places)
    elif datatype == DT_FP64:
        highest(<const double*>data, count, most, places)
    elif datatype == DT_INT64:
        highest(<const int64_t*>data, count, most, places)
    elif datatype == DT_INT32:
        highest(<const int32_t*>data, count, most, places)
    elif datatype == DT_INT16:
        highest(<const int16_t*>data, count, most, places)
    elif datatype == DT_INT8:
        highest(<const int8_t*>data, count, most, places)
    elif datatype == DT_UINT64:
        highest(<const uint64_t*>data, count, most, places)
    elif datatype == DT_UINT32:
        highest(<const uint32_t*>data, count, most, places)
    elif datatype == DT_UINT16:
        highest(<const uint16_t*>data, count, most, places)
    else:
        highest(<const uint8_t*>data, count, most, places)


cdef bint append_class(Writer* text, Datatype datatype, const char* data, int64_t place) noexcept nogil:
    cdef char* out
    if not writer_reserve(text, CLASS_SIZE):
        return False
    out = text.data + text.size
    if datatype == DT_FP32:
        out += snprintf(out, CLASS_SIZE, b"%f", <double>(<const float*>data)[0])
    elif datatype == DT_FP64:
        out += snprintf(out, CLASS_SIZE, b"%f", (<const double*>data)[0])
    else:
        out = write_element(out, datatype, data)
    out[0] = c':'
    out = to_text(out + 1, out + 1 + NUMBER_SIZE, place)
    text.size = out - text.data
    return True
