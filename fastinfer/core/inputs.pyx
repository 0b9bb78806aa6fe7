# The inputs of one request against the signature: shapes, where each one's data lies, and the data into rows.
from libc.stdint cimport int64_t


cdef bint resolve_inputs(Request self, bint announced, Failure* failure) noexcept nogil:
    """Check every input's head; binary data lie behind the JSON in the order of the inputs."""
    cdef const char* payload = self.payload
    cdef int k, i
    if self.n_sent < self.signature.n_inputs:
        for i in range(self.signature.n_inputs):
            if self.parts[i].position < 0:
                return fail(failure, BAD_INPUT, INPUT_MISSING, -1, i, -1)
    for k in range(self.n_sent):
        i = self.order[k]
        if not resolve_input(self, i, &payload, announced, failure):
            return False
    if payload != self.payload_end:
        return fail(failure, BAD_BINARY, BINARY_SURPLUS, payload - self.json.begin, -1, -1)
    return resolve_rows(self, failure)


cdef bint resolve_input(Request self, int i, const char** payload, bint announced, Failure* failure) noexcept nogil:
    cdef Part* part = &self.parts[i]
    cdef TensorInfo* info = &self.signature.input_info[i]
    cdef size_t count = 0
    if part.datatype < 0:
        return fail(failure, BAD_INPUT, INPUT_UNTYPED, part.offset, i, part.position)
    if part.datatype != <int>info.datatype:
        return fail(failure, BAD_INPUT, INPUT_MISTYPED, part.offset, i, part.position)
    if not check_shape(self, i, failure) or not count_elements(self, i, &count, failure):
        return False
    if self.kind == KIND_MESSAGE:
        return resolve_message(self, i, count, failure)
    if part.binary_size >= 0:
        return resolve_binary(self, i, payload, announced, count, failure)
    if part.begin == NULL:
        return fail(failure, BAD_INPUT, INPUT_DATALESS, part.offset, i, part.position)
    if info.datatype == DT_FP16 or info.datatype == DT_BF16:
        return fail(failure, BAD_INPUT, INPUT_HALF, part.offset, i, part.position)
    if count > <size_t>(part.end - part.begin) // 2:
        # Not even one digit and a comma an element: refused before any room is made for them.
        return fail(failure, BAD_SHAPE, SHAPE_FEW, part.begin - self.json.begin, i, -1)
    return True


cdef bint check_shape(Request self, int i, Failure* failure) noexcept nogil:
    """Whether the shape is one that the model takes."""
    cdef Part* part = &self.parts[i]
    cdef TensorInfo* info = &self.signature.input_info[i]
    cdef int axis
    if part.rank < 0:
        return fail(failure, BAD_SHAPE, SHAPE_ABSENT, part.offset, i, part.position)
    if info.column and part.rank == 1:
        return True
    if part.rank != info.rank:
        return fail(failure, BAD_SHAPE, SHAPE_MISMATCH, part.offset, i, part.position)
    for axis in range(part.rank):
        if info.shape[axis] >= 0 and info.shape[axis] != part.shape[axis]:
            return fail(failure, BAD_SHAPE, SHAPE_MISMATCH, part.offset, i, part.position)
    return True


cdef bint count_elements(Request self, int i, size_t* count, Failure* failure) noexcept nogil:
    """The product of the shape; False where it, or its size in bytes, overflows."""
    cdef Part* part = &self.parts[i]
    cdef size_t size = self.signature.input_info[i].itemsize
    cdef bint empty = False
    cdef int axis
    for axis in range(part.rank):
        empty |= part.shape[axis] == 0
    count[0] = 0 if empty else 1
    for axis in range(part.rank):
        if part.shape[axis] and (mul_overflow(size, <size_t>part.shape[axis], &size) or size > MAX_SLAB):
            return fail(failure, BAD_SHAPE, SHAPE_HUGE, part.offset, i, part.position)
        count[0] *= <size_t>part.shape[axis]
    return True


cdef bint resolve_binary(Request self, int i, const char** payload, bint announced, size_t count,
                         Failure* failure) noexcept nogil:
    """Take the input's bytes from the front of ``payload``."""
    cdef Part* part = &self.parts[i]
    cdef size_t size = <size_t>part.binary_size
    cdef size_t left = <size_t>(self.payload_end - payload[0])
    if not announced:
        return fail(failure, BAD_BINARY, BINARY_UNANNOUNCED, part.offset, i, part.position)
    if part.begin != NULL:
        return fail(failure, BAD_BINARY, BINARY_BOTH, part.offset, i, part.position)
    if not check_binary_size(self, i, count, failure):
        return False
    if size > left:
        self.blame.want = <int64_t>(size - left)
        return fail(failure, BAD_BINARY, BINARY_SHORT, part.offset, i, part.position)
    part.begin = payload[0]
    part.end = payload[0] + size
    payload[0] = part.end
    return True


cdef bint check_binary_size(Request self, int i, size_t count, Failure* failure) noexcept nogil:
    """Whether the input's bytes are as many as its shape takes."""
    cdef Part* part = &self.parts[i]
    cdef TensorInfo* info = &self.signature.input_info[i]
    cdef size_t size = <size_t>part.binary_size
    self.blame.have = part.binary_size
    if info.datatype != DT_BYTES and size != count * info.itemsize:
        self.blame.want = <int64_t>(count * info.itemsize)
        return fail(failure, BAD_BINARY, BINARY_SIZE, part.offset, i, part.position)
    if info.datatype == DT_BYTES and size // 4 < count:
        self.blame.want = <int64_t>(4 * count)
        return fail(failure, BAD_BINARY, BINARY_SIZE, part.offset, i, part.position)
    return True


cdef bint resolve_rows(Request self, Failure* failure) noexcept nogil:
    """All inputs have as many rows; set one row's dimensions."""
    cdef int first = 1 if self.signature.batched else 0
    cdef bint empty = True
    cdef bint hollow
    cdef Part* part
    cdef int i, axis
    self.rows = 1
    for i in range(self.signature.n_inputs):
        part = &self.parts[i]
        if first and i == 0:
            self.rows = part.shape[0]
        if first and part.shape[0] != self.rows:
            return fail(failure, BAD_SHAPE, SHAPE_ROWS, part.offset, i, part.position)
        self.ranks[i] = part.rank - first
        hollow = False
        if self.signature.input_info[i].column:  # [n] or [n, 1]
            self.ranks[i] = 1
            self.dims[i * MAX_RANK] = 1
            empty = False
            continue
        for axis in range(self.ranks[i]):
            self.dims[i * MAX_RANK + axis] = part.shape[axis + first]
            hollow |= part.shape[axis + first] == 0
        empty &= hollow
    if empty and self.rows > MAX_EMPTY_ROWS:
        return fail(failure, BAD_SHAPE, SHAPE_EMPTY, -1, 0, self.parts[0].position)
    return True


cdef bint scan_raw(Request self, Failure* failure) noexcept nogil:
    """The whole body is the one input of one row; a variable dimension follows from its size."""
    cdef TensorInfo* info = &self.signature.input_info[0]
    cdef Part* part = &self.parts[0]
    cdef size_t size = <size_t>(self.payload_end - self.payload)
    cdef size_t known = info.itemsize
    cdef int unknown = -1
    cdef int axis
    if self.signature.n_inputs != 1:
        return fail(failure, BAD_BINARY, BINARY_RAW, -1, -1, -1)
    part.position = 0
    part.rank = info.rank
    part.begin = self.payload
    part.end = self.payload_end
    for axis in range(info.rank):
        part.shape[axis] = info.shape[axis]
        if axis == 0 and self.signature.batched:
            part.shape[axis] = 1
        if part.shape[axis] >= 0:
            if mul_overflow(known, <size_t>part.shape[axis], &known):
                return fail(failure, BAD_SHAPE, SHAPE_HUGE, -1, 0, 0)
        elif unknown >= 0 or info.datatype == DT_BYTES:
            return fail(failure, BAD_BINARY, BINARY_RAW, -1, 0, -1)
        else:
            unknown = axis
    if info.datatype == DT_BYTES:
        if known != SPAN_SIZE:
            return fail(failure, BAD_BINARY, BINARY_RAW, -1, 0, -1)
    elif unknown >= 0:
        part.shape[unknown] = <int64_t>(size // known) if known else 0
        known *= <size_t>part.shape[unknown]
    if info.datatype != DT_BYTES and known != size:
        self.blame.want = <int64_t>known
        self.blame.have = <int64_t>size
        return fail(failure, BAD_BINARY, BINARY_SIZE, -1, 0, 0)
    part.binary_size = <int64_t>size
    return settle_outputs(self, failure) and resolve_rows(self, failure)


# ---- values ------------------------------------------------------------------------------------------------------
cdef bint fill_tensors(Request self, Rows target, Py_ssize_t start, Failure* failure) noexcept nogil:
    cdef Elements elements
    cdef int i
    for i in range(self.signature.n_inputs):
        if not open_elements(self, target, i, start, &elements, failure):
            return False
        if not fill_tensor(self, i, &elements):
            self.blame.nested = elements.axis >= 0
            self.blame.axis = elements.axis
            return fail(failure, elements.fault, elements.reason, elements.at - self.json.begin, i, elements.index)
        target.arena_size = <size_t>(elements.text - elements.arena)
    return True


cdef bint open_elements(Request self, Rows target, int i, Py_ssize_t start, Elements* elements,
                        Failure* failure) noexcept nogil:
    """Set ``elements`` to read input ``i`` into the row ``start``, with room for its texts in the arena."""
    elements.json = &self.json
    elements.info = &self.signature.input_info[i]
    elements.out = rows_at(target, i, start)
    elements.index = 0
    elements.axis = -1
    if elements.info.datatype == DT_BYTES:
        # A text takes no more bytes decoded than encoded.
        if not target.arena_reserve(<size_t>(self.parts[i].end - self.parts[i].begin)):
            return fail(failure, NO_MEMORY, 0, -1, -1, -1)
    elements.arena = target.arena.data
    elements.text = target.arena.data + target.arena_size
    return True


cdef bint fill_tensor(Request self, int i, Elements* elements) noexcept nogil:
    cdef Part* part = &self.parts[i]
    cdef size_t count = 1
    cdef const char* p
    cdef int axis
    for axis in range(part.rank):
        count *= <size_t>part.shape[axis]
    if self.kind == KIND_MESSAGE and part.binary_size < 0:
        return fill_contents(self, part, elements, count)
    if part.binary_size < 0:
        p = read_array(elements, part.begin, part.rank, part.shape, <Py_ssize_t>count)
        return p != NULL and (p == part.end or refuse(elements, BAD_JSON, JSON_ITEM, p) != NULL)
    if elements.info.datatype != DT_BYTES:
        return copy_elements(elements, part.begin, part.end, <Py_ssize_t>count)
    if self.raw:
        return take_text(elements, <Span*>elements.out, part.begin, <size_t>(part.end - part.begin))
    return copy_texts(elements, part.begin, part.end, <Py_ssize_t>count)
