# Arrow's C data interface: arrays that another library hands over, read where they lie.
# Source: Apache Arrow, "The Arrow C data interface", "The Arrow C stream interface", "The Arrow PyCapsule interface".
cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset, strcmp, strlen

cdef extern from *:
    """
    struct ArrowSchema {
        const char* format;
        const char* name;
        const char* metadata;
        int64_t flags;
        int64_t n_children;
        struct ArrowSchema** children;
        struct ArrowSchema* dictionary;
        void (*release)(struct ArrowSchema*);
        void* private_data;
    };
    struct ArrowArray {
        int64_t length;
        int64_t null_count;
        int64_t offset;
        int64_t n_buffers;
        int64_t n_children;
        const void** buffers;
        struct ArrowArray** children;
        struct ArrowArray* dictionary;
        void (*release)(struct ArrowArray*);
        void* private_data;
    };
    struct ArrowArrayStream {
        int (*get_schema)(struct ArrowArrayStream*, struct ArrowSchema* out);
        int (*get_next)(struct ArrowArrayStream*, struct ArrowArray* out);
        const char* (*get_last_error)(struct ArrowArrayStream*);
        void (*release)(struct ArrowArrayStream*);
        void* private_data;
    };
    static inline void hand_over(struct ArrowArray* from, struct ArrowArray* to) {
        *to = *from;
        from->release = NULL;
    }
    """
    void hand_over(ArrowArray* source, ArrowArray* target)

    struct ArrowSchema:
        const char* format
        const char* name
        int64_t n_children
        ArrowSchema** children
        ArrowSchema* dictionary
        void (*release)(ArrowSchema*)

    struct ArrowArray:
        int64_t length
        int64_t null_count
        int64_t offset
        int64_t n_buffers
        int64_t n_children
        const void** buffers
        ArrowArray** children
        ArrowArray* dictionary
        void (*release)(ArrowArray*)

    struct ArrowArrayStream:
        int (*get_schema)(ArrowArrayStream*, ArrowSchema*)
        int (*get_next)(ArrowArrayStream*, ArrowArray*)
        const char* (*get_last_error)(ArrowArrayStream*)


@cython.final
cdef class ArrowRows:
    """An array that was handed over: its producer hears when it is let go."""

    cdef ArrowArray array

    def __dealloc__(self):
        if self.array.release != NULL:
            self.array.release(&self.array)


@cython.final
cdef class ArrowType:
    """What arrays of a stream are."""

    cdef ArrowSchema schema

    def __dealloc__(self):
        if self.schema.release != NULL:
            self.schema.release(&self.schema)


cdef Held held_of_format(const char* format) noexcept:
    """How arrays of that format hold their values, where they can be read as they lie."""
    cdef const char* letters = "csilCSILfgb"
    cdef Held* held = [HELD_INT8, HELD_INT16, HELD_INT32, HELD_INT64, HELD_UINT8, HELD_UINT16, HELD_UINT32,
                       HELD_UINT64, HELD_FLOAT32, HELD_FLOAT64, HELD_BITS]
    cdef size_t i
    if strcmp(format, "u") == 0:
        return HELD_STRINGS
    if strcmp(format, "U") == 0:
        return HELD_LARGE_STRINGS
    if strcmp(format, "vu") == 0:
        return HELD_VIEWS
    if strcmp(format, "n") == 0:
        return HELD_NULLS
    for i in range(strlen(letters)):
        if format[0] == letters[i] and format[1] == 0:
            return held[i]
    return HELD_OTHERWISE


cdef Py_ssize_t size_of(Held held) noexcept:
    """Bytes from one value to the next."""
    if held in (HELD_INT8, HELD_UINT8, HELD_BOOL):
        return 1
    if held in (HELD_INT16, HELD_UINT16):
        return 2
    if held in (HELD_INT32, HELD_UINT32, HELD_FLOAT32, HELD_STRINGS):
        return 4
    if held in (HELD_BITS, HELD_NULLS):
        return 0
    return 16 if held in (HELD_VIEWS, HELD_SPANS) else 8


cdef const uint8_t* valid_bits(const ArrowArray* array, int64_t begin, int64_t count) noexcept:
    """Arrow's bits where a value is missing among so many from ``begin`` on, else NULL."""
    cdef const uint8_t* bits = <const uint8_t*>array.buffers[0] if array.n_buffers else NULL
    cdef int64_t i
    if bits == NULL or array.null_count == 0:
        return NULL
    for i in range(begin, begin + count):
        if not bit_of(bits, i):
            return bits
    return NULL


cdef bint take_arrow(Columns columns, int i, values) except -1:
    """A column that exports itself, as one array or as several."""
    if hasattr(values, "__arrow_c_stream__"):
        return not take_stream(columns, [i], values.__arrow_c_stream__(), False)
    if not hasattr(values, "__arrow_c_array__"):
        return False
    schema, array = values.__arrow_c_array__()
    cdef ArrowRows rows = ArrowRows()
    hand_over(<ArrowArray*>PyCapsule_GetPointer(array, "arrow_array"), &rows.array)
    if not take_array(columns, i, <const ArrowSchema*>PyCapsule_GetPointer(schema, "arrow_schema"), &rows.array, NULL):
        return False
    columns.owned.append(rows)
    columns.foreign = True
    columns.close_source(i)
    return True


cdef list take_stream(Columns columns, list wanted, capsule, bint framed):
    """Columns of a stream of arrays; ``framed``: of structs with a member a column, else the one wanted.

    Returns:
        the columns that were not taken.
    """
    cdef ArrowArrayStream* stream = <ArrowArrayStream*>PyCapsule_GetPointer(capsule, "arrow_array_stream")
    cdef ArrowType kind = ArrowType()
    cdef ArrowRows rows
    cdef list taken = list(wanted)
    if stream.get_schema(stream, &kind.schema) != 0:
        raise ValueError(stream_error(stream))
    places = {}
    for k in range(kind.schema.n_children if framed else 0):
        places.setdefault(kind.schema.children[k].name.decode(), k)
    taken = [i for i in wanted if not framed or columns.signature.keys[i] in places]
    while taken:
        rows = ArrowRows()
        if stream.get_next(stream, &rows.array) != 0:
            raise ValueError(stream_error(stream))
        if rows.array.release == NULL:
            break
        columns.owned.append(rows)
        for i in list(taken):
            if framed:
                k = places[columns.signature.keys[i]]
                good = take_array(columns, i, kind.schema.children[<int64_t>k], rows.array.children[<int64_t>k],
                                  &rows.array)
            else:
                good = take_array(columns, i, &kind.schema, &rows.array, NULL)
            if not good:
                taken.remove(i)
                columns.sources[<int>i].count = 0
    columns.foreign = True
    for i in taken:
        columns.close_source(i)
    return [i for i in wanted if i not in taken]


cdef str stream_error(ArrowArrayStream* stream):
    cdef const char* says = stream.get_last_error(stream)
    return "the frame cannot be read" if says == NULL else says.decode("utf-8", "replace")


cdef bint take_array(Columns columns, int i, const ArrowSchema* schema, const ArrowArray* array,
                     const ArrowArray* parent) except -1:
    """A column's next rows; False where its values cannot be read as they lie."""
    cdef Datatype datatype = columns.signature.input_info[i].datatype
    cdef Held held = held_of_format(schema.format)
    cdef int64_t begin = array.offset, count = array.length
    cdef const uint8_t* valid
    cdef Segment* segment
    cdef Span* spans = NULL
    if parent != NULL:
        if valid_bits(parent, parent.offset, parent.length) != NULL:
            return False
        begin, count = begin + parent.offset, parent.length
    valid = valid_bits(array, begin, count)
    if schema.dictionary != NULL:
        if datatype != DT_BYTES or held > HELD_UINT32:
            return False
        spans = dictionary_spans(columns, schema.dictionary, array.dictionary)
        if spans == NULL:
            return False
    elif not is_suited(datatype, held, valid != NULL):
        return False
    if not count:
        return True
    segment = columns.add_segment(i, count)
    segment.held, segment.valid, segment.first_bit, segment.stride = held, valid, begin, size_of(held)
    if held == HELD_BITS:
        segment.data = <const char*>array.buffers[1]
    elif held != HELD_NULLS:
        segment.data = <const char*>array.buffers[1] + begin * segment.stride
    if held == HELD_STRINGS or held == HELD_LARGE_STRINGS:
        segment.pool = <const char*>array.buffers[2]
    segment.buffers = array.buffers
    if spans != NULL:
        segment.spans, segment.n_spans = spans, array.dictionary.length
    return True


cdef Span* dictionary_spans(Columns columns, const ArrowSchema* schema, const ArrowArray* array) except? NULL:
    """What each code stands for; NULL where that is not text."""
    cdef Held held = held_of_format(schema.format)
    cdef Segment segment
    cdef Span* spans
    if not HELD_STRINGS <= held <= HELD_VIEWS or schema.dictionary != NULL:
        return NULL
    spans = <Span*>columns.room(<size_t>(array.length + 1) * sizeof(Span))
    memset(&segment, 0, sizeof(Segment))
    segment.held, segment.stride, segment.first_bit = held, size_of(held), array.offset
    segment.missing = columns.missing
    segment.data = <const char*>array.buffers[1] + array.offset * segment.stride
    segment.valid = valid_bits(array, array.offset, array.length)
    segment.pool, segment.buffers = <const char*>array.buffers[2], array.buffers
    fetch_texts(&segment, 0, array.length, spans)
    return spans
