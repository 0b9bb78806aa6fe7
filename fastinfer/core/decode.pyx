# A request's body: a first pass finds the members, shapes and rows, a second writes the rows into a slab.
cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

cdef enum:
    MAX_PARAMETERS = 64
    MAX_EMPTY_ROWS = 4096       # rows that hold no element cost the client nothing
    MAX_KNOWN_FRAME = 512       # bytes of a body around its array that are kept

cdef enum:  # Failure.reason of BAD_INPUT
    INPUT_DOCUMENT = 1          # the body is not an object
    INPUT_LIST, INPUT_OBJECT, INPUT_NAMELESS, INPUT_NAME, INPUT_UNKNOWN, INPUT_TWICE, INPUT_MISSING, INPUT_NONE
    INPUT_UNTYPED, INPUT_DATATYPE, INPUT_MISTYPED, INPUT_DATALESS, INPUT_DATA, INPUT_HALF, INPUT_ID
    INPUT_BARE, INPUT_RAW, INPUT_CONTENTS

cdef enum:  # Failure.reason of BAD_OUTPUT
    OUTPUT_LIST = 1
    OUTPUT_OBJECT, OUTPUT_NAMELESS, OUTPUT_NAME, OUTPUT_UNKNOWN, OUTPUT_TWICE, OUTPUT_HALF, OUTPUT_CLASSES

cdef enum:  # whose parameters
    OF_REQUEST, OF_INPUT, OF_OUTPUT

cdef extern from *:
    """
    namespace fastinfer {
    // A name of at most 7 bytes and its size as one number, so that names are compared in one instruction.
    constexpr uint64_t name_word(const char* name) {
        uint64_t word = 0, size = 0;
        for (; name[size]; size++) word |= uint64_t(name[size]) << 8 * size;
        return word | size << 56;
    }
    constexpr uint64_t DATATYPE_WORDS[] = {
        name_word("BOOL"), name_word("UINT8"), name_word("UINT16"), name_word("UINT32"), name_word("UINT64"),
        name_word("INT8"), name_word("INT16"), name_word("INT32"), name_word("INT64"), name_word("FP16"),
        name_word("FP32"), name_word("FP64"), name_word("BF16"), name_word("BYTES")};
    }
    """
    const uint64_t* DATATYPE_WORDS "fastinfer::DATATYPE_WORDS"  # in the order of Datatype


@cython.final
cdef class Request:
    """One request as decoded: everything but its rows.

    ``scan`` reads the body but for its bulk: members, shapes, parameters, and where the values lie. ``fill`` writes
    the values into a range of rows. Both check what they read against RFC 8259 and the signature; when one returns
    False, ``error`` makes the exception. The body must stay alive from ``scan`` to ``fill``.
    """

    def __cinit__(self, Signature signature not None, str model=""):
        cdef size_t inputs = <size_t>signature.n_inputs + 1
        cdef size_t outputs = <size_t>signature.n_outputs + 1
        cdef size_t fields = inputs + <size_t>signature.n_ignored + <size_t>signature.n_features
        cdef size_t wide = inputs * (MAX_RANK * sizeof(int64_t) + sizeof(Part)) + fields * sizeof(Py_ssize_t)
        cdef int i
        self.signature = signature
        self.model = model
        self.block = calloc(1, wide + inputs * 3 * sizeof(int) + outputs * sizeof(Wanted))
        if self.block == NULL:
            raise MemoryError
        self.parts = <Part*>self.block
        self.dims = <int64_t*>(self.parts + inputs)
        self.wanted = <Wanted*>(self.dims + inputs * MAX_RANK)
        self.stamps = <Py_ssize_t*>(self.wanted + outputs)
        self.ranks = <int*>(self.stamps + fields)
        self.order = self.ranks + inputs
        self.columns = self.order + inputs
        for i in range(signature.n_inputs):
            self.columns[i] = i

    def __dealloc__(self):
        free(self.block)
        writer_free(&self.id_text)
        writer_free(&self.known)
        json_free(&self.json)

    @property
    def id(self):
        """The request's id, or None."""
        if self.kind == KIND_MESSAGE:
            return self.id_text.data[:self.id_text.size].decode() if self.id_text.size else None
        return parse_json(self.id_text.data[:self.id_text.size]) if self.id_text.size else None

    cdef bint scan(self, int kind, const char* body, size_t size, Py_ssize_t header_length,
                   Failure* failure) noexcept nogil:
        """Read everything but the values. ``header_length`` is Inference-Header-Content-Length, -1 without."""
        cdef bint ok
        failure_clear(failure)
        clear_request(self, kind)
        self.json.begin = body
        self.json.end = self.payload = self.payload_end = body + size
        self.raw = header_length == 0
        self.known_head = 0
        if header_length >= 0:
            if <size_t>header_length > size:
                self.blame.want = <int64_t>size
                self.blame.have = header_length
                return fail(failure, BAD_BINARY, BINARY_HEADER, -1, -1, -1)
            if kind == KIND_RECORDS:
                return fail(failure, BAD_BINARY, BINARY_RECORDS, -1, -1, -1)
            self.json.end = self.payload = body + header_length
        if kind == KIND_MESSAGE:
            ok = scan_message(self, failure)
        elif self.raw:
            ok = scan_raw(self, failure)
        else:
            ok = scan_document(self, header_length >= 0, failure)
        if ok and header_length < 0:
            know_frame(self)
        return ok or settle(self, failure)

    cdef bint recall(self, int kind, const char* body, size_t size, Py_ssize_t header_length) noexcept nogil:
        """Whether the body is the one that was scanned last but for the array of its one input.

        Then all that ``scan`` would find is there already, and ``fill`` checks the rest: that an array of that shape
        begins and ends where the other one did. When it does not, ``scan`` says what is wrong.
        """
        cdef Part* part = &self.parts[0]
        if self.known_head == 0 or kind != KIND_INFER or header_length >= 0 \
                or size < self.known_head + self.known_tail \
                or memcmp(body, self.known.data, self.known_head) \
                or memcmp(body + size - self.known_tail, self.known.data + self.known_head, self.known_tail):
            return False
        json_reset(&self.json)
        clear_blame(self)
        self.json.begin = body
        self.json.end = self.payload = self.payload_end = body + size
        part.begin = body + self.known_head - 1
        part.end = body + size - self.known_tail
        return True

    cdef bint fill(self, Rows target, Py_ssize_t start, Failure* failure) noexcept nogil:
        """Write the values into rows ``start`` to ``start + self.rows``, for which there is room.

        The target's dimensions are this request's. Its rows are for the caller to commit; nothing but free rows
        and the arena's free end is touched.
        """
        cdef size_t arena_size = target.arena_size
        cdef bint ok
        failure_clear(failure)
        if self.kind == KIND_RECORDS:
            ok = fill_records(self, target, start, failure)
        else:
            ok = fill_tensors(self, target, start, failure)
        if ok:
            return True
        target.arena_size = arena_size
        return settle(self, failure)

    cdef object error(self, Failure* failure):
        """The exception for a scan or fill that returned False; call it before the next scan."""
        return request_error(self, failure)


cdef void clear_request(Request self, int kind) noexcept nogil:
    cdef int i
    self.kind = kind
    self.rows = 0
    self.timeout_us = 0
    self.priority = 0
    self.n_wanted = self.n_sent = 0
    self.binary_output = False
    self.id_text.size = 0
    clear_blame(self)
    json_reset(&self.json)
    memset(self.parts, 0, self.signature.n_inputs * sizeof(Part))    # at once: short runs of zeros are slow to write
    for i in range(self.signature.n_inputs):
        mark_part(&self.parts[i])


cdef inline void clear_blame(Request self) noexcept nogil:
    memset(&self.blame, 0, sizeof(Blame))
    self.blame.element = -1


cdef void know_frame(Request self) noexcept nogil:
    """Keep what stands before and behind the array of a request of one input, for ``recall``."""
    cdef Part* part = &self.parts[0]
    cdef size_t head, tail
    if self.kind != KIND_INFER or self.signature.n_inputs != 1 or part.begin == NULL or self.id_text.size:
        return
    head = part.begin + 1 - self.json.begin  # with the bracket
    tail = self.json.end - part.end
    self.known.size = 0
    if head + tail <= MAX_KNOWN_FRAME and writer_put(&self.known, self.json.begin, head) \
            and writer_put(&self.known, part.end, tail):
        self.known_head = head
        self.known_tail = tail


cdef void clear_part(Part* part) noexcept nogil:
    memset(part, 0, sizeof(Part))
    mark_part(part)


cdef inline void mark_part(Part* part) noexcept nogil:
    """A zeroed part as one that was not sent."""
    part.position = part.datatype = part.rank = -1
    part.binary_size = -1


cdef bint settle(Request self, Failure* failure) noexcept nogil:
    """A request failed: a fault of syntax goes before any other. Keeps the culprit's text for the message."""
    cdef Failure first
    cdef Py_ssize_t size
    if self.kind == KIND_MESSAGE:
        return False
    if not self.raw and failure.fault != NO_MEMORY:
        failure_clear(&first)
        if not check_document(&self.json, &first):
            failure[0] = first
    if failure.fault == BAD_SHAPE and failure.reason <= SHAPE_MANY:
        self.blame.have = count_scalars(self.parts[failure.input].begin, self.parts[failure.input].end)
    size = max(self.json.end, self.payload_end) - self.json.begin - failure.offset
    size = min(size, <Py_ssize_t>EXCERPT)
    if failure.offset >= 0 and size > 0:
        memcpy(self.blame.excerpt, self.json.begin + failure.offset, size)
        self.blame.excerpt_size = <int>size
    return False


# ---- the document ----------------------------------------------------------------------------------------------
cdef bint scan_document(Request self, bint announced, Failure* failure) noexcept nogil:
    cdef Json* json = &self.json
    cdef const char* p = skip_space(json.begin, json.end)
    cdef bint found = False
    if p >= json.end or p[0] != c'{':
        return fail(failure, BAD_INPUT, INPUT_DOCUMENT, p - json.begin, -1, -1)
    p = scan_members(self, p, &found, failure)
    if p == NULL:
        return False
    p = skip_space(p, json.end)
    if p != json.end:
        return fail(failure, BAD_JSON, JSON_TRAILING, p - json.begin, -1, -1)
    if not found:
        return fail(failure, BAD_INPUT, INPUT_NONE, -1, -1, -1)
    if not settle_outputs(self, failure):
        return False
    return scan_records(self, failure) if self.kind == KIND_RECORDS else resolve_inputs(self, announced, failure)


cdef const char* scan_members(Request self, const char* p, bint* found, Failure* failure) noexcept nogil:
    """The members of the body's object; ``found`` tells of inputs or records."""
    cdef Json* json = &self.json
    cdef size_t base = json.n_keys
    cdef bint more
    cdef Key key
    p = skip_space(p + 1, json.end)
    more = p >= json.end or p[0] != c'}'
    if not more:
        return p + 1
    while more:
        p = read_key(json, p, &key, failure)
        if p == NULL or not push_key(json, &key, failure):
            return NULL
        if key_is(&key, b"inputs", 6) and self.kind == KIND_INFER:
            found[0] = True
            p = scan_inputs(self, p, failure)
        elif key_is(&key, b"records", 7) and self.kind == KIND_RECORDS:
            found[0] = True
            p = find_records(self, p, failure)
        elif key_is(&key, b"outputs", 7) and self.kind == KIND_INFER:
            p = scan_outputs(self, p, failure)
        elif key_is(&key, b"parameters", 10):
            p = scan_parameters(self, p, OF_REQUEST, NULL, NULL, -1, failure)
        elif key_is(&key, b"id", 2):
            p = scan_id(self, p, failure)
        else:
            p = skip_value(json, p, 1, failure)
        if p != NULL:
            p = next_member(json, p, &more, failure)
        if p == NULL:
            return NULL
    return p if pop_keys(json, base, failure) else NULL


cdef const char* scan_id(Request self, const char* p, Failure* failure) noexcept nogil:
    """Keep the id as it is written: it goes back in the answer."""
    cdef const char* start = p
    cdef bint escaped = False
    if p >= self.json.end or p[0] != c'"':
        fail(failure, BAD_INPUT, INPUT_ID, p - self.json.begin, -1, -1)
        return NULL
    p = read_string(&self.json, p, NULL, &escaped, failure)
    if p != NULL and not writer_put(&self.id_text, start, p - start):
        fail(failure, NO_MEMORY, 0, -1, -1, -1)
        return NULL
    return p


# ---- inputs ------------------------------------------------------------------------------------------------------
cdef const char* scan_inputs(Request self, const char* p, Failure* failure) noexcept nogil:
    cdef Json* json = &self.json
    cdef bint more
    if p >= json.end or p[0] != c'[':
        fail(failure, BAD_INPUT, INPUT_LIST, p - json.begin, -1, -1)
        return NULL
    p = skip_space(p + 1, json.end)
    more = p >= json.end or p[0] != c']'
    if not more:
        return p + 1
    while more:
        p = scan_input(self, p, failure)
        if p != NULL:
            p = next_item(json, p, &more, failure)
        if p == NULL:
            return NULL
    return p


cdef const char* scan_input(Request self, const char* p, Failure* failure) noexcept nogil:
    """One element of ``inputs``: find out whose it is and keep what it says."""
    cdef Json* json = &self.json
    cdef size_t base = json.n_keys
    cdef bint more
    cdef Key key
    cdef Key name
    cdef Part part
    clear_part(&part)
    part.position = self.n_sent
    part.offset = p - json.begin
    name.data = NULL
    if p >= json.end or p[0] != c'{':
        fail(failure, BAD_INPUT, INPUT_OBJECT, p - json.begin, -1, part.position)
        return NULL
    p = skip_space(p + 1, json.end)
    more = p >= json.end or p[0] != c'}'
    if not more:
        p += 1
    while more:
        p = read_key(json, p, &key, failure)
        if p == NULL or not push_key(json, &key, failure):
            return NULL
        p = scan_input_member(self, p, &key, &part, &name, failure)
        if p != NULL:
            p = next_member(json, p, &more, failure)
        if p == NULL:
            return NULL
    if not pop_keys(json, base, failure) or not place_input(self, &part, &name, failure):
        return NULL
    return p


cdef const char* scan_input_member(Request self, const char* p, const Key* key, Part* part, Key* name,
                                   Failure* failure) noexcept nogil:
    cdef Json* json = &self.json
    cdef Py_ssize_t objects
    if key_is(key, b"name", 4):
        return scan_string(json, p, name, BAD_INPUT, INPUT_NAME, part.position, failure)
    if key_is(key, b"shape", 5):
        return scan_shape(self, p, part, failure)
    if key_is(key, b"datatype", 8):
        return scan_datatype(json, p, part, failure)
    if key_is(key, b"parameters", 10):
        return scan_parameters(self, p, OF_INPUT, part, NULL, part.position, failure)
    if not key_is(key, b"data", 4):
        return skip_value(json, p, 3, failure)
    if p >= json.end or p[0] != c'[':
        fail(failure, BAD_INPUT, INPUT_DATA, p - json.begin, -1, part.position)
        return NULL
    part.begin = p
    part.end = find_end(json, p, &objects)
    return part.end if part.end != NULL else stop(json, failure, JSON_END, json.end)


cdef const char* scan_string(Json* json, const char* p, Key* text, Fault fault, int reason, Py_ssize_t position,
                             Failure* failure) noexcept nogil:
    if p >= json.end or p[0] != c'"':
        fail(failure, fault, reason, p - json.begin, -1, position)
        return NULL
    return read_name(json, p, text, failure)


cdef const char* scan_datatype(Json* json, const char* p, Part* part, Failure* failure) noexcept nogil:
    cdef Key text
    cdef const char* start = p
    p = scan_string(json, p, &text, BAD_INPUT, INPUT_DATATYPE, part.position, failure)
    if p == NULL:
        return NULL
    part.datatype = find_datatype(text.data, text.size)
    if part.datatype >= 0:
        return p
    fail(failure, BAD_INPUT, INPUT_DATATYPE, start - json.begin, -1, part.position)
    return NULL


cdef inline int find_datatype(const char* name, size_t size) noexcept nogil:
    """The Datatype of that name, or -1."""
    cdef uint64_t word = 0
    cdef int datatype
    if size < sizeof(word):
        memcpy(&word, name, size)
        word |= <uint64_t>size << 56
        for datatype in range(DT_COUNT):
            if word == DATATYPE_WORDS[datatype]:
                return datatype
    return -1


cdef const char* scan_shape(Request self, const char* p, Part* part, Failure* failure) noexcept nogil:
    """``shape``: JSON integers, none negative."""
    cdef Json* json = &self.json
    cdef const char* start
    cdef uint64_t magnitude = 0
    cdef bint negative = False
    cdef bint more
    if p >= json.end or p[0] != c'[':
        fail(failure, BAD_SHAPE, SHAPE_INTEGER, p - json.begin, -1, part.position)
        return NULL
    p = skip_space(p + 1, json.end)
    more = p >= json.end or p[0] != c']'
    part.rank = 0
    if not more:
        return p + 1
    while more:
        start = p
        p = read_integer(p, json.end, &magnitude, &negative)
        if p != NULL and (negative or magnitude > <uint64_t>0x7FFFFFFFFFFFFFFF or part.rank >= MAX_RANK):
            fail(failure, BAD_SHAPE, SHAPE_NEGATIVE if negative else SHAPE_HUGE, start - json.begin, -1,
                 part.position)
            return NULL
        if p != NULL:
            p = next_item(json, p, &more, failure)
        if p == NULL:  # 2.0, "2", or beyond 64 bits: a fault of syntax would be found first
            p = skip_space(skip_digits(start, json.end), json.end)
            fail(failure, BAD_SHAPE, SHAPE_HUGE if p > start and p < json.end and (p[0] == c',' or p[0] == c']')
                 else SHAPE_INTEGER, start - json.begin, -1, part.position)
            return NULL
        part.shape[part.rank] = <int64_t>magnitude
        part.rank += 1
    return p


cdef bint place_input(Request self, Part* part, const Key* name, Failure* failure) noexcept nogil:
    cdef int input
    if name.data == NULL:
        return fail(failure, BAD_INPUT, INPUT_NAMELESS, part.offset, -1, part.position)
    input = self.signature.input_names.find(name.data, name.size)
    if input < 0:
        return fail(failure, BAD_INPUT, INPUT_UNKNOWN, name.offset, -1, part.position)
    if self.parts[input].position >= 0:
        return fail(failure, BAD_INPUT, INPUT_TWICE, name.offset, input, part.position)
    self.parts[input] = part[0]
    self.order[self.n_sent] = input
    self.n_sent += 1
    return True


# ---- parameters ----------------------------------------------------------------------------------------------------
cdef enum:  # Failure.reason of BAD_PARAMETER
    PARAMETER_OBJECT = 1
    PARAMETER_VALUE, PARAMETER_CROWDED, PARAMETER_INTEGER, PARAMETER_BOOL, PARAMETER_UNSUPPORTED
    PARAMETER_RESERVED, PARAMETER_CLASSES


cdef const char* scan_parameters(Request self, const char* p, int whose, Part* part, Wanted* wanted,
                                 Py_ssize_t position, Failure* failure) noexcept nogil:
    """A ``parameters`` object: strings, numbers and booleans. The reserved ones are kept, the others passed over."""
    cdef Json* json = &self.json
    cdef size_t base = json.n_keys
    cdef const char* start
    cdef bint more
    cdef Key key
    cdef int count = 0
    self.blame.axis = whose
    if p >= json.end or p[0] != c'{':
        fail(failure, BAD_PARAMETER, PARAMETER_OBJECT, p - json.begin, -1, position)
        return NULL
    p = skip_space(p + 1, json.end)
    more = p >= json.end or p[0] != c'}'
    if not more:
        return p + 1
    while more:
        count += 1
        p = read_key(json, p, &key, failure)
        if p == NULL or not push_key(json, &key, failure):
            return NULL
        start = p
        p = skip_value(json, p, 4, failure)
        if p == NULL:
            return NULL
        if count > MAX_PARAMETERS:
            fail(failure, BAD_PARAMETER, PARAMETER_CROWDED, key.offset, -1, position)
            return NULL
        if not take_parameter(self, &key, start, p, whose, part, wanted, failure):
            failure.index = position
            return NULL
        p = next_member(json, p, &more, failure)
        if p == NULL:
            return NULL
    return p if pop_keys(json, base, failure) else NULL


cdef bint take_parameter(Request self, const Key* key, const char* value, const char* end, int whose, Part* part,
                         Wanted* wanted, Failure* failure) noexcept nogil:
    if value[0] == c'{' or value[0] == c'[' or value[0] == c'n':
        return fail(failure, BAD_PARAMETER, PARAMETER_VALUE, key.offset, -1, -1)
    if whose == OF_REQUEST:
        return take_request_parameter(self, key, value, end, failure)
    if key.size > 14 and memcmp(key.data, b"shared_memory_", 14) == 0:
        return fail(failure, BAD_PARAMETER, PARAMETER_UNSUPPORTED, key.offset, -1, -1)
    if whose == OF_INPUT:
        if not key_is(key, b"binary_data_size", 16):
            return True
        return take_integer(key, value, end, True, &part.binary_size, failure)
    if key_is(key, b"binary_data", 11):
        wanted.stated = True
        return take_bool(key, value, &wanted.binary, failure)
    if key_is(key, b"classification", 14):
        return take_integer(key, value, end, True, &wanted.classes, failure)
    return True


cdef bint take_request_parameter(Request self, const Key* key, const char* value, const char* end,
                                 Failure* failure) noexcept nogil:
    cdef bint negative = False
    if key_is(key, b"binary_data_output", 18):
        return take_bool(key, value, &self.binary_output, failure)
    if key_is(key, b"timeout", 7):
        if not take_integer(key, value, end, False, &self.timeout_us, failure):
            return False
        self.timeout_us = max(self.timeout_us, <int64_t>0)  # none given
        return True
    if key_is(key, b"priority", 8):
        if read_integer(value, end, &self.priority, &negative) != end or negative:
            return fail(failure, BAD_PARAMETER, PARAMETER_INTEGER, key.offset, -1, -1)
        return True
    if is_reserved(key):
        return fail(failure, BAD_PARAMETER, PARAMETER_RESERVED, key.offset, -1, -1)
    return True  # also a sequence's: no model here keeps anything of a request for the next one


cdef inline bint is_reserved(const Key* key) noexcept nogil:
    """A name that only Triton may give a meaning."""
    return key.size >= 7 and memcmp(key.data, b"triton_", 7) == 0 \
        and not key_is(key, b"triton_enable_empty_final_response", 34)


cdef bint take_bool(const Key* key, const char* value, bint* out, Failure* failure) noexcept nogil:
    if value[0] != c't' and value[0] != c'f':
        return fail(failure, BAD_PARAMETER, PARAMETER_BOOL, key.offset, -1, -1)
    out[0] = value[0] == c't'
    return True


cdef bint take_integer(const Key* key, const char* value, const char* end, bint natural, int64_t* out,
                       Failure* failure) noexcept nogil:
    """An int64; ``natural`` takes no negative one."""
    cdef uint64_t magnitude = 0
    cdef bint negative = False
    if read_integer(value, end, &magnitude, &negative) != end or magnitude > <uint64_t>0x7FFFFFFFFFFFFFFF \
            or (natural and negative):
        return fail(failure, BAD_PARAMETER, PARAMETER_INTEGER, key.offset, -1, -1)
    out[0] = -<int64_t>magnitude if negative else <int64_t>magnitude
    return True


# ---- outputs -------------------------------------------------------------------------------------------------------
cdef const char* scan_outputs(Request self, const char* p, Failure* failure) noexcept nogil:
    cdef Json* json = &self.json
    cdef bint more
    if p >= json.end or p[0] != c'[':
        fail(failure, BAD_OUTPUT, OUTPUT_LIST, p - json.begin, -1, -1)
        return NULL
    p = skip_space(p + 1, json.end)
    more = p >= json.end or p[0] != c']'
    if not more:
        return p + 1
    while more:
        p = scan_output(self, p, failure)
        if p != NULL:
            p = next_item(json, p, &more, failure)
        if p == NULL:
            return NULL
    return p


cdef const char* scan_output(Request self, const char* p, Failure* failure) noexcept nogil:
    cdef Json* json = &self.json
    cdef size_t base = json.n_keys
    cdef const char* start = p
    cdef bint more
    cdef Key key
    cdef Key name
    cdef Wanted wanted
    memset(&wanted, 0, sizeof(Wanted))
    name.data = NULL
    if p >= json.end or p[0] != c'{':
        fail(failure, BAD_OUTPUT, OUTPUT_OBJECT, p - json.begin, -1, self.n_wanted)
        return NULL
    p = skip_space(p + 1, json.end)
    more = p >= json.end or p[0] != c'}'
    if not more:
        p += 1
    while more:
        p = read_key(json, p, &key, failure)
        if p == NULL or not push_key(json, &key, failure):
            return NULL
        if key_is(&key, b"name", 4):
            p = scan_string(json, p, &name, BAD_OUTPUT, OUTPUT_NAME, self.n_wanted, failure)
        elif key_is(&key, b"parameters", 10):
            p = scan_parameters(self, p, OF_OUTPUT, NULL, &wanted, self.n_wanted, failure)
        else:
            p = skip_value(json, p, 3, failure)
        if p != NULL:
            p = next_member(json, p, &more, failure)
        if p == NULL:
            return NULL
    if name.data == NULL:
        fail(failure, BAD_OUTPUT, OUTPUT_NAMELESS, start - json.begin, -1, self.n_wanted)
        return NULL
    return p if pop_keys(json, base, failure) and place_output(self, &wanted, &name, failure) else NULL


cdef bint place_output(Request self, Wanted* wanted, const Key* name, Failure* failure) noexcept nogil:
    cdef int i
    wanted.output = self.signature.output_names.find(name.data, name.size)
    if wanted.output < 0:
        return fail(failure, BAD_OUTPUT, OUTPUT_UNKNOWN, name.offset, -1, self.n_wanted)
    for i in range(self.n_wanted):
        if self.wanted[i].output == wanted.output:
            return fail(failure, BAD_OUTPUT, OUTPUT_TWICE, name.offset, wanted.output, self.n_wanted)
    self.wanted[self.n_wanted] = wanted[0]
    self.n_wanted += 1
    return True


cdef bint settle_outputs(Request self, Failure* failure) noexcept nogil:
    """All outputs where none is named, each in its form; JSON carries no half floats."""
    cdef int i
    cdef Datatype datatype
    if self.n_wanted == 0:
        self.n_wanted = self.signature.n_outputs
        for i in range(self.n_wanted):
            self.wanted[i].output = i
            self.wanted[i].classes = 0
            self.wanted[i].stated = self.wanted[i].binary = False
    for i in range(self.n_wanted):
        if not self.wanted[i].stated:
            self.wanted[i].binary = self.raw or self.binary_output
        datatype = self.signature.output_info[self.wanted[i].output].datatype
        if self.wanted[i].classes and not is_ordered(datatype):
            return fail(failure, BAD_OUTPUT, OUTPUT_CLASSES, -1, self.wanted[i].output, i)
        if self.kind == KIND_INFER and not self.wanted[i].binary and (datatype == DT_FP16 or datatype == DT_BF16):
            return fail(failure, BAD_OUTPUT, OUTPUT_HALF, -1, self.wanted[i].output, i)
    return True


# ---- doors for tests and `fastinfer check` ----------------------------------------------------------------------
def decode(Signature signature not None, int kind, bytes body not None, Py_ssize_t header_length=-1, str model=""):
    """Decode one request by itself.

    Args:
        kind: 0 for an inference request, 1 for records, 2 for a ModelInferRequest.
        header_length: Inference-Header-Content-Length, -1 without.

    Returns:
        dict of ``id``, ``rows``, ``timeout_us``, ``priority``, ``raw``, ``outputs`` (pairs of name and binary) and
        ``arrays`` (input name to array, rows first where the model is batched).

    Raises:
        InvalidRequestError: one of its subclasses, with the place.
    """
    cdef Request request = Request(signature, model)
    cdef Failure failure
    cdef Rows rows = Rows(signature)
    cdef const char* data = body
    cdef int i
    if not request.scan(kind, data, len(body), header_length, &failure):
        raise request.error(&failure)
    for i in range(signature.n_inputs):
        if not rows.set_dims(i, request.ranks[i], &request.dims[i * MAX_RANK]):
            raise MemoryError
    if not rows.reserve(request.rows):
        raise MemoryError
    if not request.fill(rows, 0, &failure):
        raise request.error(&failure)
    rows.rows = request.rows
    return {
        "id": request.id,
        "rows": request.rows,
        "timeout_us": request.timeout_us,
        "priority": request.priority,
        "raw": request.raw,
        "outputs": [(signature.outputs[request.wanted[i].output].name, request.wanted[i].binary != 0)
                    for i in range(request.n_wanted)],
        "arrays": rows.arrays(),
    }
