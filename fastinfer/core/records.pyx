# Records: {"records": [{"<input>": value, ...}, ...]}, one row each.
#
# Where a model's one input has names for its columns, a record may have them as its fields instead: what it leaves out
# is missing. Such a field is counted behind the inputs, those that are ignored, and one for all others.
from libc.math cimport NAN
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memset

cdef enum:  # Failure.reason of BAD_RECORD
    RECORD_LIST = 1
    RECORD_OBJECT, RECORD_UNKNOWN, RECORD_ABSENT, RECORD_SINGLE, RECORD_VALUE, RECORD_SHAPE, RECORD_NONE, RECORD_BOTH


cdef inline Py_ssize_t field_count(Signature signature) noexcept nogil:
    """How many stamps a request has."""
    return <Py_ssize_t>signature.n_inputs + signature.n_ignored + 1 + signature.n_features


cdef inline int first_feature(Signature signature) noexcept nogil:
    return signature.n_inputs + signature.n_ignored + 1


cdef const char* find_records(Request self, const char* p, Failure* failure) noexcept nogil:
    """Where the records lie, and how many they are."""
    cdef Json* json = &self.json
    if p >= json.end or p[0] != c'[':
        fail(failure, BAD_RECORD, RECORD_LIST, p - json.begin, -1, -1)
        return NULL
    self.payload = p
    self.payload_end = find_end(json, p, &self.rows)
    return self.payload_end if self.payload_end != NULL else stop(json, failure, JSON_END, json.end)


cdef bint scan_records(Request self, Failure* failure) noexcept nogil:
    """The dimensions of a row: the signature's, and where they are variable, the first record's."""
    cdef TensorInfo* info
    cdef Part* part
    cdef bint batched = self.signature.batched
    cdef bint variable = not batched
    cdef int i, axis
    if not batched and self.rows != 1:
        return fail(failure, BAD_RECORD, RECORD_SINGLE, self.payload - self.json.begin, -1, -1)
    for i in range(self.signature.n_inputs):
        info = &self.signature.input_info[i]
        part = &self.parts[i]
        if info.datatype == DT_FP16 or info.datatype == DT_BF16:
            return fail(failure, BAD_INPUT, INPUT_HALF, -1, i, -1)
        part.rank = info.rank - 1 if batched else info.rank
        for axis in range(part.rank):
            part.shape[axis] = info.shape[axis + info.rank - part.rank]
            variable |= part.shape[axis] < 0
    if variable and not measure_record(self, failure):
        return False
    for i in range(self.signature.n_inputs):
        if not set_row(self, i):
            return fail(failure, BAD_RECORD, RECORD_ABSENT, -1, i, 0)
    if <size_t>self.rows > <size_t>(self.payload_end - self.payload) // smallest_record(self):
        return check_fields(self, failure)
    return True


cdef size_t smallest_record(Request self) noexcept nogil:
    """Bytes of the shortest record that has every required field: no room is made for more rows than there can be."""
    cdef size_t size = 2
    cdef int i
    if self.signature.n_features:
        return size + self.signature.least_field + 4
    for i in range(self.signature.n_inputs):
        if not may_lack(&self.signature.input_info[i]):
            size += self.signature.input_info[i].name_size + 4
    return size


cdef bint check_fields(Request self, Failure* failure) noexcept nogil:
    """Find the record that lacks a field."""
    cdef Json* json = &self.json
    cdef const char* p = skip_space(self.payload + 1, json.end)
    cdef Py_ssize_t row
    cdef bint more
    cdef int count, i
    memset(self.stamps, 0, <size_t>field_count(self.signature) * sizeof(Py_ssize_t))
    for row in range(self.rows):
        if p >= json.end or p[0] != c'{':
            return fail(failure, BAD_RECORD, RECORD_OBJECT, p - json.begin, -1, row)
        p = skip_space(p + 1, json.end)
        more = p >= json.end or p[0] != c'}'
        p = p if more else p + 1
        count = 0
        while more:
            p = find_column(self, p, count, row, &i, failure)
            if p == NULL:
                return False
            self.stamps[i] = row + 1
            if i >= first_feature(self.signature):
                self.stamps[0] = row + 1
            count += i < self.signature.n_inputs
            p = skip_value(json, p, 3, failure)
            if p != NULL:
                p = next_member(json, p, &more, failure)
            if p == NULL:
                return False
        if count < self.signature.n_inputs and find_required(self, row) >= 0:
            return fail(failure, BAD_RECORD, RECORD_ABSENT, p - 1 - json.begin, find_required(self, row), row)
        p = next_item(json, p, &more, failure)
        if p == NULL:
            return False
    return True


cdef int find_required(Request self, Py_ssize_t row) noexcept nogil:
    """The first field that the record does not have and must have, or -1."""
    cdef int i
    for i in range(self.signature.n_inputs):
        if self.stamps[i] != row + 1 and not may_lack(&self.signature.input_info[i]):
            return i
    return -1


cdef inline bint may_lack(const TensorInfo* info) noexcept nogil:
    """Whether a record need not have the field: a column that may be missing, but not a whole row of a tensor."""
    return info.nullable and info.column


cdef bint set_row(Request self, int i) noexcept nogil:
    """One row's dimensions as the batch sees them: where the model is not batched, the whole tensor's.

    False where one is still unknown: the first record does not have the field.
    """
    cdef Part* part = &self.parts[i]
    cdef int rank = self.signature.input_info[i].rank - (1 if self.signature.batched else 0)
    cdef int axis
    self.ranks[i] = rank
    for axis in range(rank):
        self.dims[i * MAX_RANK + axis] = 1
    for axis in range(part.rank):
        if part.shape[axis] < 0:
            return False
        self.dims[i * MAX_RANK + rank - part.rank + axis] = part.shape[axis]
    return True


cdef bint measure_record(Request self, Failure* failure) noexcept nogil:
    """Take variable dimensions from the nesting of the first record's values."""
    cdef Json* json = &self.json
    cdef const char* p = skip_space(self.payload + 1, json.end)
    cdef const char* start
    cdef size_t base = json.n_keys
    cdef bint more = True
    cdef Key key
    cdef int i
    if self.rows == 0:
        return fail(failure, BAD_RECORD, RECORD_NONE, self.payload - json.begin, -1, -1)
    if p >= json.end or p[0] != c'{':
        return fail(failure, BAD_RECORD, RECORD_OBJECT, p - json.begin, -1, 0)
    p = skip_space(p + 1, json.end)
    if p < json.end and p[0] == c'}':
        return True
    while more:
        p = read_key(json, p, &key, failure)
        if p == NULL or not push_key(json, &key, failure):
            return False
        start = p
        p = skip_value(json, p, 3, failure)
        if p == NULL:
            return False
        i = self.signature.input_names.find(key.data, key.size)
        if i >= 0 and not measure_value(self, i, start, failure):
            return False
        p = next_member(json, p, &more, failure)
        if p == NULL:
            return False
    return pop_keys(json, base, failure)


cdef bint measure_value(Request self, int i, const char* p, Failure* failure) noexcept nogil:
    """Fit the value at ``p``, valid JSON, to the row of input ``i``.

    Where the model is not batched, a first dimension of 1 may be left out.
    """
    cdef Part* part = &self.parts[i]
    cdef int64_t[MAX_RANK] sent
    cdef int rank = measure_nesting(&self.json, p, sent)
    cdef int first = 0
    cdef int axis
    cdef bint fixed = True
    for axis in range(part.rank):
        fixed &= part.shape[axis] >= 0
    if rank == 1 and part.rank > 1 and fixed:
        return True  # flat
    if not self.signature.batched and 0 <= rank == part.rank - 1 and (part.shape[0] == 1 or part.shape[0] == -1):
        first = 1
    if rank != part.rank - first and not (fixed and rank == 0):
        return fail(failure, BAD_RECORD, RECORD_SHAPE, p - self.json.begin, i, 0)
    for axis in range(rank):
        if part.shape[axis + first] >= 0 and part.shape[axis + first] != sent[axis]:
            return fail(failure, BAD_RECORD, RECORD_SHAPE, p - self.json.begin, i, 0)
    for axis in range(rank):
        part.shape[axis] = sent[axis]
    part.rank -= first
    return True


cdef int measure_nesting(Json* json, const char* p, int64_t* dims) noexcept nogil:
    """The depth of nested arrays at ``p``, and the number of elements of the first at each level; -1 past MAX_RANK."""
    cdef Failure failure
    cdef const char* inside
    cdef bint more
    cdef int rank = 0
    while p < json.end and p[0] == c'[':
        if rank == MAX_RANK:
            return -1
        dims[rank] = 0
        inside = p = skip_space(p + 1, json.end)
        more = p < json.end and p[0] != c']'
        while more:
            dims[rank] += 1
            p = skip_value(json, p, 3, &failure)
            if p != NULL:
                p = next_item(json, p, &more, &failure)
            if p == NULL:
                return -1
        rank += 1
        p = inside
    return rank


# ---- values ------------------------------------------------------------------------------------------------------
cdef bint fill_records(Request self, Rows target, Py_ssize_t start, Failure* failure) noexcept nogil:
    cdef Json* json = &self.json
    cdef const char* p = skip_space(self.payload + 1, json.end)
    cdef bint more = p >= json.end or p[0] != c']'
    cdef Elements elements
    cdef Py_ssize_t row = 0
    cdef bint texts = False
    cdef int i
    memset(self.stamps, 0, <size_t>field_count(self.signature) * sizeof(Py_ssize_t))
    for i in range(self.signature.n_inputs):
        texts |= self.signature.input_info[i].datatype == DT_BYTES
    if texts and not target.arena_reserve(<size_t>(self.payload_end - self.payload)):
        return fail(failure, NO_MEMORY, 0, -1, -1, -1)
    elements.json = json
    elements.arena = target.arena.data
    elements.text = target.arena.data + target.arena_size
    p = p if more else p + 1
    while more:
        if row >= self.rows or p >= json.end or p[0] != c'{':
            return fail(failure, BAD_RECORD, RECORD_OBJECT, p - json.begin, -1, row)
        p = fill_record(self, p, target, start, row, &elements, failure)
        if p != NULL:
            p = next_item(json, p, &more, failure)
        if p == NULL:
            return False
        row += 1
    if p != self.payload_end or row != self.rows:
        return fail(failure, BAD_JSON, JSON_ITEM, p - json.begin, -1, -1)
    target.arena_size = <size_t>(elements.text - elements.arena)
    return True


cdef const char* fill_record(Request self, const char* p, Rows target, Py_ssize_t start, Py_ssize_t row,
                             Elements* elements, Failure* failure) noexcept nogil:
    """The object at ``p`` into row ``start + row``; past it."""
    cdef Json* json = &self.json
    cdef int features = first_feature(self.signature)
    cdef const char* key
    cdef int count = 0, named = 0
    cdef int i
    cdef bint more
    p = skip_space(p + 1, json.end)
    more = p >= json.end or p[0] != c'}'
    p = p if more else p + 1
    while more:
        key = p
        p = find_column(self, p, count, row, &i, failure)
        if p == NULL:
            return NULL
        self.stamps[i] = row + 1
        if (named if i == 0 else count) and self.signature.n_features and (i == 0 or i >= features):
            fail(failure, BAD_RECORD, RECORD_BOTH, key - json.begin, 0, row)
            return NULL
        if i >= features:
            elements.info = &self.signature.input_info[0]
            elements.out = rows_at(target, 0, start + row)
            if not named:
                blank_row(elements, self.signature.n_features)
            named += 1
            p = fill_feature(self, i - features, p, row, elements, failure)
        elif i < self.signature.n_inputs:
            count += 1
            elements.info = &self.signature.input_info[i]
            elements.out = rows_at(target, i, start + row)
            p = fill_value(self, i, p, row, elements, failure)
        else:
            p = skip_value(json, p, 3, failure)
        if p != NULL:
            p = next_member(json, p, &more, failure)
        if p == NULL:
            return NULL
    if count < self.signature.n_inputs and not named:
        i = find_required(self, row)
        if i >= 0:
            fail(failure, BAD_RECORD, RECORD_ABSENT, p - 1 - json.begin, i, row)
            return NULL
        fill_absent(self, target, start, row)
    return p


cdef inline const char* find_column(Request self, const char* p, int count, Py_ssize_t row, int* column,
                                    Failure* failure) noexcept nogil:
    """Whose value follows the key at ``p``; past the key and its colon. Ignored fields count on behind the inputs.

    Records mostly have their members in one order: the one that stood in this place in the record before is tried
    first, on the bytes as they are.
    """
    cdef Json* json = &self.json
    cdef const TensorInfo* info
    cdef Key key
    cdef int i
    if count < self.signature.n_inputs:
        i = self.columns[count]
        info = &self.signature.input_info[i]
        if (info.plain and self.stamps[i] != row + 1 and json.end - p >= info.name_size + 2 and p[0] == c'"'
                and p[info.name_size + 1] == c'"' and memcmp(p + 1, info.name, info.name_size) == 0):
            column[0] = i
            return skip_colon(json, p + info.name_size + 2, failure)
    p = read_key(json, p, &key, failure)
    if p == NULL:
        return NULL
    i = self.signature.input_names.find(key.data, key.size)
    if i < 0 and self.signature.n_features:
        i = self.signature.feature_names.find(key.data, key.size)
        if i >= 0:
            i += first_feature(self.signature)
            if self.stamps[i] == row + 1:
                fail(failure, BAD_JSON, JSON_DUPLICATE, key.offset, -1, -1)
                return NULL
            column[0] = i
            return p
    if i < 0:
        i = self.signature.ignored_names.find(key.data, key.size)
        if i < 0 and self.signature.lenient:
            column[0] = self.signature.n_inputs + self.signature.n_ignored  # one stamp for all of them
            return p
        if i < 0:
            fail(failure, BAD_RECORD, RECORD_UNKNOWN, key.offset, -1, row)
            return NULL
        i += self.signature.n_inputs
    if self.stamps[i] == row + 1:
        fail(failure, BAD_JSON, JSON_DUPLICATE, key.offset, -1, -1)
        return NULL
    column[0] = i
    if i < self.signature.n_inputs:
        self.columns[count] = i
    return p


cdef inline const char* fill_value(Request self, int i, const char* p, Py_ssize_t row, Elements* elements,
                                   Failure* failure) noexcept nogil:
    """The value at ``p`` into ``elements.out``: a scalar where a row holds one value, else an array."""
    cdef Part* part = &self.parts[i]
    cdef const char* after
    cdef int64_t count = 1
    cdef int axis
    if p < self.json.end and p[0] != c'[' and (part.rank == 0 or (part.rank == 1 and part.shape[0] == 1)):
        after = read_element(elements, p)
        if elements.info.column and elements.info.datatype == DT_INT64 and (
                after == NULL or is_fraction(after, self.json.end)):
            after = read_integral(&self.json, p, <int64_t*>elements.out)
        if after == NULL or is_fraction(after, self.json.end):
            fail(failure, BAD_RECORD, RECORD_VALUE, p - self.json.begin, i, row)
            return NULL
        return after
    if p >= self.json.end or part.rank == 0 or elements.info.column:
        fail(failure, BAD_RECORD, RECORD_VALUE, p - self.json.begin, i, row)
        return NULL
    if p[0] != c'[':
        fail(failure, BAD_RECORD, RECORD_SHAPE, p - self.json.begin, i, row)
        return NULL
    for axis in range(part.rank):
        count *= part.shape[axis]
    elements.index = 0
    after = read_array(elements, p, part.rank, part.shape, count)
    if after == NULL and elements.fault == BAD_VALUE:
        self.blame.element = elements.index
        self.blame.nested = elements.axis >= 0
        fail(failure, BAD_RECORD, RECORD_VALUE, elements.at - self.json.begin, i, row)
    elif after == NULL:
        fail(failure, BAD_RECORD, RECORD_SHAPE, elements.at - self.json.begin, i, row)
    return after


cdef void blank_row(const Elements* elements, int count) noexcept nogil:
    """A row whose features are all missing."""
    cdef int j
    for j in range(count):
        if elements.info.datatype == DT_FP64:
            (<double*>elements.out)[j] = NAN
        else:
            (<float*>elements.out)[j] = NAN


cdef inline const char* fill_feature(Request self, int j, const char* p, Py_ssize_t row, Elements* elements,
                                     Failure* failure) noexcept nogil:
    """The value at ``p`` into place ``j`` of the row at ``elements.out``."""
    cdef const char* after
    elements.out += <size_t>j * elements.info.itemsize
    after = read_element(elements, p)
    if after == NULL:
        fail(failure, BAD_RECORD, RECORD_VALUE, p - self.json.begin, self.signature.n_inputs + j, row)
    return after


cdef inline bint is_fraction(const char* p, const char* end) noexcept nogil:
    """Whether a number goes on behind the integer that ends at ``p``."""
    return p < end and (p[0] == c'.' or p[0] == c'e' or p[0] == c'E')


cdef const char* read_integral(const Json* json, const char* p, int64_t* out) noexcept nogil:
    """A category column takes integral floats too, as far as doubles are exact."""
    cdef double value = 0
    cdef double limit = 9007199254740992.0  # 2**53
    p = read_double(p, json.end, &value)
    if p == NULL or not -limit <= value <= limit or <double><int64_t>value != value:
        return NULL
    out[0] = <int64_t>value
    return p


cdef void fill_absent(Request self, Rows target, Py_ssize_t start, Py_ssize_t row) noexcept nogil:
    """Nullable columns that the record does not have."""
    cdef Span* span
    cdef int i
    for i in range(self.signature.n_inputs):
        if self.stamps[i] == row + 1:
            continue
        if self.signature.input_info[i].datatype == DT_BYTES:
            span = <Span*>rows_at(target, i, start + row)
            span.offset = 0
            span.length = MISSING_BYTES
        elif self.signature.input_info[i].datatype == DT_FP64:
            (<double*>rows_at(target, i, start + row))[0] = NAN
        else:
            (<float*>rows_at(target, i, start + row))[0] = NAN
