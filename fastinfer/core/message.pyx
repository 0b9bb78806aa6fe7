# ModelInferRequest and ModelInferResponse, read and written in protobuf's wire format.
#
# A message is fields in any order: a tag (number and wire type), then a varint, 4 or 8 bytes, or a length and so many
# bytes. A field that is not known, or has another wire type than its own, is passed over; of a field that is there
# twice, the last counts, a repeated one goes on, and a message's fields are merged.
#
# Sources: protobuf "Encoding"; kserve/open-inference-protocol `specification/protocol/open_inference_grpc.proto`;
# triton-inference-server/common `protobuf/grpc_service.proto`.
from libc.math cimport isnan
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from fastinfer.errors import InvalidMessageError

cdef enum:                      # wire types
    WIRE_VARINT = 0
    WIRE_8 = 1
    WIRE_BYTES = 2
    WIRE_4 = 5

cdef enum:                      # Failure.reason of BAD_MESSAGE
    MESSAGE_WIRE = 1            # not fields
    MESSAGE_UTF8

cdef enum:                      # fields of ModelInferRequest
    REQUEST_MODEL = 1
    REQUEST_VERSION = 2
    REQUEST_ID = 3
    REQUEST_PARAMETERS = 4
    REQUEST_INPUTS = 5
    REQUEST_OUTPUTS = 6
    REQUEST_RAW = 7

cdef enum:                      # of InferInputTensor
    TENSOR_NAME = 1
    TENSOR_DATATYPE = 2
    TENSOR_SHAPE = 3
    TENSOR_PARAMETERS = 4
    TENSOR_CONTENTS = 5

cdef enum:                      # of InferParameter: its one of
    CHOICE_NONE = 0
    CHOICE_BOOL = 1
    CHOICE_INT64 = 2
    CHOICE_STRING = 3
    CHOICE_DOUBLE = 4
    CHOICE_UINT64 = 5

cdef struct Field:
    uint32_t number
    int wire
    uint64_t value              # of a varint
    const char* begin           # of the others
    const char* end

cdef struct Choice:             # the value of a parameter
    int kind
    uint64_t value              # of the integers and of a boolean

# Fields of InferTensorContents, by Datatype; 0: there is none.
cdef int[<int>DT_COUNT] CONTENTS
CONTENTS[:] = [1, 4, 4, 4, 5, 2, 2, 2, 3, 0, 6, 7, 0, 8]


# ---- fields ------------------------------------------------------------------------------------------------------
cdef const char* read_varint(const char* p, const char* end, uint64_t* value) noexcept nogil:
    """Past the varint at ``p``; NULL where it is cut off, or longer than 64 bits."""
    cdef uint64_t byte
    cdef int shift = 0
    value[0] = 0
    while p < end and shift < 64:
        byte = <uint8_t>p[0]
        if shift == 63 and byte > 1:
            return NULL
        value[0] |= (byte & 127) << shift
        p += 1
        if byte < 128:
            return p
        shift += 7
    return NULL


cdef const char* read_field(const char* p, const char* end, Field* field) noexcept nogil:
    """Past the field at ``p``; NULL where there is none. Groups, which proto3 does not have, are none."""
    cdef uint64_t tag = 0
    cdef uint64_t size = 0
    p = read_varint(p, end, &tag)
    if p == NULL or tag >> 32 or tag >> 3 == 0:
        return NULL
    field.number = <uint32_t>(tag >> 3)
    field.wire = <int>(tag & 7)
    if field.wire == WIRE_VARINT:
        return read_varint(p, end, &field.value)
    if field.wire == WIRE_BYTES:
        p = read_varint(p, end, &size)
        if p == NULL:
            return NULL
    elif field.wire == WIRE_8 or field.wire == WIRE_4:
        size = 8 if field.wire == WIRE_8 else 4
    else:
        return NULL
    if size > <uint64_t>(end - p):
        return NULL
    field.begin = p
    field.end = p + size
    return field.end


cdef inline bint is_bytes(const Field* field, int number) noexcept nogil:
    return field.wire == WIRE_BYTES and field.number == <uint32_t>number


cdef inline bint malformed(Request self, Failure* failure, int reason, const char* at) noexcept nogil:
    return fail(failure, BAD_MESSAGE, reason, at - self.json.begin, -1, -1)


cdef bint read_text_field(Request self, const Field* field, Key* text, Failure* failure) noexcept nogil:
    """A string, which protobuf wants to be UTF-8."""
    text.data = field.begin
    text.size = <size_t>(field.end - field.begin)
    text.offset = <size_t>(field.begin - self.json.begin)
    return is_utf8(field.begin, field.end) or malformed(self, failure, MESSAGE_UTF8, field.begin)


cdef void blame_text(Request self, const Key* text) noexcept nogil:
    """Keep a name for the message."""
    self.blame.excerpt_size = <int>min(text.size, <size_t>EXCERPT)
    if text.size:
        memcpy(self.blame.excerpt, text.data, self.blame.excerpt_size)


def message_target(bytes body not None):
    """The model's name and version that a ModelInferRequest names; either may be empty.

    Raises:
        InvalidMessageError: it is no protobuf message.
    """
    cdef const char* begin = body
    cdef const char* p = begin
    cdef const char* end = begin + len(body)
    cdef Field field
    name = version = b""
    while p < end:
        p = read_field(p, end, &field)
        if p == NULL:
            raise InvalidMessageError("the message is not a ModelInferRequest: it is no protobuf message")
        if is_bytes(&field, REQUEST_MODEL):
            name = field.begin[:field.end - field.begin]
        elif is_bytes(&field, REQUEST_VERSION):
            version = field.begin[:field.end - field.begin]
    try:
        return name.decode(), version.decode()
    except UnicodeDecodeError:
        raise InvalidMessageError("the message is not a ModelInferRequest: a string is not UTF-8") from None


# ---- the request -------------------------------------------------------------------------------------------------
cdef bint scan_message(Request self, Failure* failure) noexcept nogil:
    """Read a ModelInferRequest but for its values."""
    cdef const char* p = self.json.begin
    cdef const char* end = self.json.end
    cdef const char* at
    cdef Field field
    cdef Key text
    cdef int64_t n_raw = 0
    cdef int count = 0
    self.binary_output = True
    while p < end:
        at = p
        p = read_field(p, end, &field)
        if p == NULL:
            return malformed(self, failure, MESSAGE_WIRE, at)
        if is_bytes(&field, REQUEST_INPUTS):
            if not scan_tensor(self, &field, failure):
                return False
        elif is_bytes(&field, REQUEST_RAW):
            n_raw += 1
        elif is_bytes(&field, REQUEST_OUTPUTS):
            if not scan_requested(self, &field, failure):
                return False
        elif is_bytes(&field, REQUEST_PARAMETERS):
            if not scan_parameter(self, &field, OF_REQUEST, NULL, &count, -1, failure):
                return False
        elif is_bytes(&field, REQUEST_MODEL) or is_bytes(&field, REQUEST_VERSION):
            if not read_text_field(self, &field, &text, failure):
                return False
        elif is_bytes(&field, REQUEST_ID):
            if not read_text_field(self, &field, &text, failure):
                return False
            self.id_text.size = 0
            if not writer_put(&self.id_text, text.data, text.size):
                return fail(failure, NO_MEMORY, 0, -1, -1, -1)
    return settle_outputs(self, failure) and (n_raw == 0 or place_raw(self, n_raw, failure)) \
        and resolve_inputs(self, True, failure)


cdef bint scan_tensor(Request self, const Field* tensor, Failure* failure) noexcept nogil:
    """One of the inputs: find out whose it is and keep what it says."""
    cdef const char* p = tensor.begin
    cdef const char* at
    cdef Field field
    cdef Key name, datatype
    cdef Part part
    cdef int count = 0
    clear_part(&part)
    part.position = self.n_sent
    part.offset = <size_t>(tensor.begin - self.json.begin)
    part.begin = tensor.begin
    part.end = tensor.end
    part.rank = 0
    memset(&name, 0, sizeof(Key))
    memset(&datatype, 0, sizeof(Key))
    while p < tensor.end:
        at = p
        p = read_field(p, tensor.end, &field)
        if p == NULL:
            return malformed(self, failure, MESSAGE_WIRE, at)
        if is_bytes(&field, TENSOR_NAME):
            if not read_text_field(self, &field, &name, failure):
                return False
        elif is_bytes(&field, TENSOR_DATATYPE):
            if not read_text_field(self, &field, &datatype, failure):
                return False
        elif field.number == TENSOR_SHAPE:
            if not read_shape(self, &field, &part, failure):
                return False
        elif is_bytes(&field, TENSOR_PARAMETERS):
            if not scan_parameter(self, &field, OF_INPUT, NULL, &count, part.position, failure):
                return False
        elif is_bytes(&field, TENSOR_CONTENTS):
            part.contents = True
    if name.data == NULL:
        return fail(failure, BAD_INPUT, INPUT_NAMELESS, part.offset, -1, part.position)
    blame_text(self, &name)
    if not place_message_datatype(self, &datatype, &part, failure):
        return False
    return place_input(self, &part, &name, failure)


cdef bint place_message_datatype(Request self, const Key* text, Part* part, Failure* failure) noexcept nogil:
    if text.data == NULL:
        return True  # which is found out later, with the input's name
    part.datatype = find_datatype(text.data, text.size)
    if part.datatype >= 0:
        return True
    blame_text(self, text)
    return fail(failure, BAD_INPUT, INPUT_DATATYPE, text.offset, -1, part.position)


cdef bint read_shape(Request self, const Field* field, Part* part, Failure* failure) noexcept nogil:
    """Dimensions, one or packed."""
    cdef const char* p
    cdef uint64_t value = 0
    if field.wire == WIRE_VARINT:
        return put_dimension(part, field.value, failure)
    if field.wire != WIRE_BYTES:
        return True
    p = field.begin
    while p < field.end:
        p = read_varint(p, field.end, &value)
        if p == NULL:
            return malformed(self, failure, MESSAGE_WIRE, field.begin)
        if not put_dimension(part, value, failure):
            return False
    return True


cdef bint put_dimension(Part* part, uint64_t value, Failure* failure) noexcept nogil:
    if value >> 63 or part.rank >= MAX_RANK:
        return fail(failure, BAD_SHAPE, SHAPE_NEGATIVE if value >> 63 else SHAPE_HUGE, part.offset, -1, part.position)
    part.shape[part.rank] = <int64_t>value
    part.rank += 1
    return True


cdef bint scan_requested(Request self, const Field* output, Failure* failure) noexcept nogil:
    """One of the outputs."""
    cdef const char* p = output.begin
    cdef const char* at
    cdef Field field
    cdef Key name
    cdef Wanted wanted
    cdef int count = 0
    memset(&wanted, 0, sizeof(Wanted))
    memset(&name, 0, sizeof(Key))
    while p < output.end:
        at = p
        p = read_field(p, output.end, &field)
        if p == NULL:
            return malformed(self, failure, MESSAGE_WIRE, at)
        if is_bytes(&field, 1):
            if not read_text_field(self, &field, &name, failure):
                return False
        elif is_bytes(&field, 2):
            if not scan_parameter(self, &field, OF_OUTPUT, &wanted, &count, self.n_wanted, failure):
                return False
    if name.data == NULL:
        return fail(failure, BAD_OUTPUT, OUTPUT_NAMELESS, -1, -1, self.n_wanted)
    blame_text(self, &name)
    return place_output(self, &wanted, &name, failure)


# ---- parameters --------------------------------------------------------------------------------------------------
cdef bint scan_parameter(Request self, const Field* entry, int whose, Wanted* wanted, int* count,
                         Py_ssize_t position, Failure* failure) noexcept nogil:
    """An entry of a map of parameters. The reserved ones are kept, the others passed over."""
    cdef const char* p = entry.begin
    cdef Field field
    cdef Key key
    cdef Choice choice
    self.blame.axis = whose
    memset(&choice, 0, sizeof(Choice))
    key.data = entry.begin
    key.size = 0
    key.offset = <size_t>(entry.begin - self.json.begin)
    while p < entry.end:
        p = read_field(p, entry.end, &field)
        if p == NULL or (is_bytes(&field, 2) and not read_choice(&field, &choice)):
            return malformed(self, failure, MESSAGE_WIRE, entry.begin)
        if is_bytes(&field, 1) and not read_text_field(self, &field, &key, failure):
            return False
    count[0] += 1
    blame_text(self, &key)
    if count[0] > MAX_PARAMETERS:
        return fail(failure, BAD_PARAMETER, PARAMETER_CROWDED, key.offset, -1, position)
    if whose == OF_REQUEST:
        return take_message_parameter(self, &key, &choice, failure)
    if key.size > 14 and memcmp(key.data, b"shared_memory_", 14) == 0:
        return fail(failure, BAD_PARAMETER, PARAMETER_UNSUPPORTED, key.offset, -1, position)
    if whose == OF_OUTPUT and key_is(&key, b"classification", 14):
        if choice.kind not in (CHOICE_INT64, CHOICE_UINT64) or choice.value >> 63 or choice.value == 0:
            return fail(failure, BAD_PARAMETER, PARAMETER_CLASSES, key.offset, -1, position)
        wanted.classes = <int64_t>choice.value
    return True


cdef bint read_choice(const Field* message, Choice* choice) noexcept nogil:
    """An InferParameter: the last of its choices counts."""
    cdef const char* p = message.begin
    cdef Field field
    while p < message.end:
        p = read_field(p, message.end, &field)
        if p == NULL:
            return False
        if field.wire == WIRE_VARINT and field.number in (CHOICE_BOOL, CHOICE_INT64, CHOICE_UINT64):
            choice.value = field.value
        elif is_bytes(&field, CHOICE_STRING):
            if not is_utf8(field.begin, field.end):
                return False
        elif field.wire != WIRE_8 or field.number != CHOICE_DOUBLE:
            continue
        choice.kind = <int>field.number
    return True


cdef bint take_message_parameter(Request self, const Key* key, const Choice* choice, Failure* failure) noexcept nogil:
    """A parameter of the request."""
    cdef bint integer = choice.kind == CHOICE_INT64 or choice.kind == CHOICE_UINT64
    cdef bint negative = choice.kind == CHOICE_INT64 and choice.value >> 63
    if key_is(key, b"timeout", 7):
        if not integer or (choice.kind == CHOICE_UINT64 and choice.value >> 63):
            return fail(failure, BAD_PARAMETER, PARAMETER_INTEGER, key.offset, -1, -1)
        self.timeout_us = 0 if negative else <int64_t>choice.value  # a negative one: none given
        return True
    if key_is(key, b"priority", 8):
        if not integer or negative:
            return fail(failure, BAD_PARAMETER, PARAMETER_INTEGER, key.offset, -1, -1)
        self.priority = choice.value
        return True
    if is_reserved(key):
        return fail(failure, BAD_PARAMETER, PARAMETER_RESERVED, key.offset, -1, -1)
    return True


# ---- inputs ------------------------------------------------------------------------------------------------------
cdef bint place_raw(Request self, int64_t n_raw, Failure* failure) noexcept nogil:
    """Give each input its element of raw_input_contents: all have one, or none."""
    cdef const char* p = self.json.begin
    cdef Field field
    cdef Part* part
    cdef int k
    for k in range(self.n_sent):
        part = &self.parts[self.order[k]]
        if part.contents:
            return fail(failure, BAD_BINARY, BINARY_MIXED, part.offset, self.order[k], part.position)
    if n_raw != self.n_sent:
        self.blame.have = n_raw
        self.blame.want = self.n_sent
        return fail(failure, BAD_BINARY, BINARY_COUNT, -1, -1, -1)
    k = 0
    while p < self.json.end:
        p = read_field(p, self.json.end, &field)
        if p == NULL:
            return malformed(self, failure, MESSAGE_WIRE, self.json.begin)
        if is_bytes(&field, REQUEST_RAW) and k < self.n_sent:
            part = &self.parts[self.order[k]]
            part.begin = field.begin
            part.end = field.end
            part.binary_size = <int64_t>(field.end - field.begin)
            k += 1
    return True


cdef bint resolve_message(Request self, int i, size_t count, Failure* failure) noexcept nogil:
    """Check an input's size, before any room is made for it."""
    cdef Part* part = &self.parts[i]
    cdef TensorInfo* info = &self.signature.input_info[i]
    if part.binary_size >= 0:
        return check_binary_size(self, i, count, failure)
    if not part.contents:
        return count == 0 or fail(failure, BAD_INPUT, INPUT_BARE, part.offset, i, part.position)
    if CONTENTS[<int>info.datatype] == 0:
        return fail(failure, BAD_INPUT, INPUT_RAW, part.offset, i, part.position)
    if count > <size_t>(part.end - part.begin):  # not even a byte an element
        self.blame.have = -1
        return fail(failure, BAD_SHAPE, SHAPE_FEW, part.offset, i, -1)
    return True


cdef bint fill_contents(Request self, const Part* part, Elements* elements, size_t count) noexcept nogil:
    """The typed contents of an input."""
    cdef const char* p = part.begin
    cdef const char* at
    cdef const char* inner
    cdef int wanted = CONTENTS[<int>elements.info.datatype]
    cdef Field field, contents
    while p < part.end:
        p = read_field(p, part.end, &contents)
        if p == NULL:
            return refuse(elements, BAD_MESSAGE, MESSAGE_WIRE, part.begin) != NULL
        if not is_bytes(&contents, TENSOR_CONTENTS):
            continue
        inner = contents.begin
        while inner < contents.end:
            at = inner
            inner = read_field(inner, contents.end, &field)
            if inner == NULL:
                return refuse(elements, BAD_MESSAGE, MESSAGE_WIRE, at) != NULL
            if field.number == <uint32_t>wanted:
                if not fill_values(self, &field, elements, count):
                    return False
            elif 1 <= field.number <= 8 and (field.wire != WIRE_BYTES or field.begin < field.end):
                return refuse(elements, BAD_INPUT, INPUT_CONTENTS, at) != NULL
    if <size_t>elements.index < count:
        self.blame.have = elements.index
        return refuse(elements, BAD_SHAPE, SHAPE_FEW, part.begin) != NULL
    return True


cdef bint fill_values(Request self, const Field* field, Elements* elements, size_t count) noexcept nogil:
    """One value, or a packed run of them."""
    cdef const char* p = field.begin
    cdef uint64_t value = 0
    cdef size_t size = elements.info.itemsize
    cdef size_t values
    cdef Datatype datatype = elements.info.datatype
    if datatype == DT_BYTES:
        if field.wire != WIRE_BYTES:
            return True  # not this field
        if <size_t>elements.index >= count:
            return too_many(self, elements, 1)
        if not take_text(elements, <Span*>elements.out, field.begin, <size_t>(field.end - field.begin)):
            return False
        elements.index += 1
        elements.out += size
        return True
    if datatype == DT_FP32 or datatype == DT_FP64:
        if field.wire != WIRE_BYTES and field.wire != (WIRE_4 if datatype == DT_FP32 else WIRE_8):
            return True
        if <size_t>(field.end - field.begin) % size:
            return refuse(elements, BAD_MESSAGE, MESSAGE_WIRE, field.begin) != NULL
        values = <size_t>(field.end - field.begin) // size
        if values > count - <size_t>elements.index:
            return too_many(self, elements, values)
        return fill_reals(elements, field.begin, values)
    if field.wire == WIRE_VARINT:
        return fill_integer(self, elements, field.value, count)
    if field.wire != WIRE_BYTES:
        return True
    while p < field.end:
        p = read_varint(p, field.end, &value)
        if p == NULL:
            return refuse(elements, BAD_MESSAGE, MESSAGE_WIRE, field.begin) != NULL
        if not fill_integer(self, elements, value, count):
            return False
    return True


cdef bint too_many(Request self, Elements* elements, size_t more) noexcept nogil:
    self.blame.have = <int64_t>(<size_t>elements.index + more)
    return refuse(elements, BAD_SHAPE, SHAPE_MANY, elements.json.begin) != NULL


cdef bint fill_reals(Elements* elements, const char* p, size_t values) noexcept nogil:
    cdef const double* reals = <const double*>elements.out
    cdef size_t k
    if values:
        memcpy(elements.out, p, values * elements.info.itemsize)
    if elements.info.column and not elements.info.nullable and elements.info.datatype == DT_FP64:
        for k in range(values):
            if isnan(reals[k]):
                elements.index += <Py_ssize_t>k
                return refuse(elements, BAD_VALUE, VALUE_NAN, p) != NULL
    elements.out += values * elements.info.itemsize
    elements.index += <Py_ssize_t>values
    return True


cdef bint fill_integer(Request self, Elements* elements, uint64_t value, size_t count) noexcept nogil:
    """A varint as its field's type has it, then as the datatype: int_contents are also of INT8 and INT16."""
    cdef Datatype datatype = elements.info.datatype
    cdef size_t size = elements.info.itemsize
    cdef int64_t number
    if <size_t>elements.index >= count:
        return too_many(self, elements, 1)
    if datatype == DT_BOOL:
        value = value != 0
    elif DT_UINT8 <= datatype <= DT_UINT32:
        value = <uint32_t>value
        if value > integer_limit(datatype):
            self.blame.have = <int64_t>value
            return refuse(elements, BAD_VALUE, VALUE_RANGE, elements.json.begin) != NULL
    elif DT_INT8 <= datatype <= DT_INT32:
        number = <int32_t><uint32_t>value
        if number > <int64_t>integer_limit(datatype) or -number > <int64_t>integer_limit(datatype) + 1:
            self.blame.have = number
            return refuse(elements, BAD_VALUE, VALUE_RANGE, elements.json.begin) != NULL
        value = <uint64_t>number
    memcpy(elements.out, &value, size)  # little-endian
    elements.out += size
    elements.index += 1
    return True


# ---- the answer --------------------------------------------------------------------------------------------------
cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    cdef size_t size = 1
    while value >= 128:
        value >>= 7
        size += 1
    return size


cdef inline void append_varint(Writer* writer, uint64_t value) noexcept nogil:
    """At most 10 bytes, for which there is room."""
    while value >= 128:
        writer.data[writer.size] = <char>(value | 128)
        writer.size += 1
        value >>= 7
    writer.data[writer.size] = <char>value
    writer.size += 1


cdef bint put_counted_field(Writer* writer, int number, const char* data, size_t size) noexcept nogil:
    """A field of bytes, of a number below 16."""
    if not writer_reserve(writer, 11):
        return False
    append_varint(writer, number << 3 | WIRE_BYTES)
    append_varint(writer, size)
    return size == 0 or writer_put(writer, data, size)


cdef bytes counted_field(int number, bytes data):
    """As ``put_counted_field``; nothing where there is nothing to say."""
    cdef Writer writer = Writer(NULL, 0, 0)
    if not data:
        return b""
    try:
        take(put_counted_field(&writer, number, data, len(data)))
        return writer.data[:writer.size]
    finally:
        writer_free(&writer)


cdef bint put_tensor_field(Encoder self, Writer* writer, const View* view, const Piece* head,
                           Py_ssize_t rows) noexcept nogil:
    """An InferOutputTensor: name, datatype and shape."""
    cdef int64_t dim
    cdef size_t packed = 0
    cdef size_t size = head.size
    cdef int axis
    for axis in range(view.rank):
        dim = rows if self.signature.batched and axis == 0 else view.shape[axis]
        packed += varint_size(<uint64_t>dim)
    if packed:
        size += 1 + varint_size(packed) + packed
    if not writer_reserve(writer, size + 22):
        return False
    append_varint(writer, 5 << 3 | WIRE_BYTES)
    append_varint(writer, size)
    if not put_piece(writer, head) or not writer_reserve(writer, packed + 11):
        return False
    if packed:
        append_varint(writer, 3 << 3 | WIRE_BYTES)
        append_varint(writer, packed)
    for axis in range(view.rank):
        append_varint(writer, <uint64_t>(rows if self.signature.batched and axis == 0 else view.shape[axis]))
    return True
