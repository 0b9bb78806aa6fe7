# Kernels over categories and text: look-up tables built at load, read without the GIL.
from libc.math cimport isnan
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef uint64_t NAN_TEXT = <uint64_t>0xFFFFFFFFFFFFFFFF   # a Text's size where the value is NaN
cdef uint64_t NONE_TEXT = <uint64_t>0xFFFFFFFFFFFFFFFE  # and where it is None

cdef enum:
    HOLDS_NAN = 1, HOLDS_NONE = 2, TAKES_UNKNOWN = 4    # flags of a Lookup

cdef struct LookupSlot:
    uint64_t key                # the number's bits, or the text's hash
    int32_t index               # -1 empty

cdef struct Lookup:
    LookupSlot* slots
    uint64_t mask
    const char** data           # of text categories
    uint64_t* sizes
    double* codes               # what each category becomes
    double nan_code
    double none_code
    double unknown_code
    int flags


cdef inline Text* texts_of(const Block* block, int32_t register) noexcept nogil:
    return block.texts + register * block.stride


cdef inline uint64_t number_key(double value) noexcept nogil:
    """The bits of the value, with -0.0 as 0.0."""
    cdef uint64_t key
    value = value + 0.0
    memcpy(&key, &value, sizeof(double))
    return key


cdef inline uint64_t spread(uint64_t key) noexcept nogil:
    """Fibonacci hashing: neighbouring integers and floats land apart."""
    key = (key ^ (key >> 32)) * <uint64_t>0x9E3779B97F4A7C15
    return key ^ (key >> 29)


cdef inline uint64_t text_key(const Text* text) noexcept nogil:
    return hash_name(text.data, <Py_ssize_t>text.size)


cdef inline int32_t find_number(const Lookup* lookup, uint64_t key) noexcept nogil:
    cdef uint64_t position = spread(key) & lookup.mask
    while lookup.slots[position].index >= 0:
        if lookup.slots[position].key == key:
            return lookup.slots[position].index
        position = (position + 1) & lookup.mask
    return -1


cdef inline int32_t find_text(const Lookup* lookup, const Text* text) noexcept nogil:
    cdef uint64_t key = text_key(text)
    cdef uint64_t position = spread(key) & lookup.mask
    cdef int32_t index = lookup.slots[position].index
    while index >= 0:
        if (lookup.slots[position].key == key and lookup.sizes[index] == text.size
                and memcmp(lookup.data[index], text.data, text.size) == 0):
            return index
        position = (position + 1) & lookup.mask
        index = lookup.slots[position].index
    return -1


cdef inline bint code_unknown(const Operation* operation, const Block* block, Py_ssize_t i,
                              bint missing) noexcept nogil:
    cdef const Lookup* lookup = <const Lookup*>operation.table
    if not lookup.flags & TAKES_UNKNOWN:
        if missing:
            return spoiled(operation, block, BAD_RECORD, SAYS_MISSING, i)
        return spoiled(operation, block, UNKNOWN_CATEGORY, SAYS_UNKNOWN, i)
    numbers_of(block, operation.target)[i] = lookup.unknown_code
    return True


cdef bint lookup_number(const Operation* operation, const Block* block) noexcept nogil:
    cdef const Lookup* lookup = <const Lookup*>operation.table
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef int32_t index
    cdef Py_ssize_t i
    for i in range(block.rows):
        if isnan(source[i]):
            if lookup.flags & HOLDS_NAN:
                target[i] = lookup.nan_code
            elif not code_unknown(operation, block, i, True):
                return False
            continue
        index = find_number(lookup, number_key(source[i]))
        if index >= 0:
            target[i] = lookup.codes[index]
        elif not code_unknown(operation, block, i, False):
            return False
    return True


cdef bint lookup_integer(const Operation* operation, const Block* block) noexcept nogil:
    cdef const Lookup* lookup = <const Lookup*>operation.table
    cdef const uint64_t* source = <const uint64_t*>numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef int32_t index
    cdef Py_ssize_t i
    for i in range(block.rows):
        index = find_number(lookup, source[i])
        if index >= 0:
            target[i] = lookup.codes[index]
        elif not code_unknown(operation, block, i, False):
            return False
    return True


cdef bint lookup_text(const Operation* operation, const Block* block) noexcept nogil:
    cdef const Lookup* lookup = <const Lookup*>operation.table
    cdef const Text* source = texts_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef int32_t index
    cdef Py_ssize_t i
    for i in range(block.rows):
        if source[i].size == NAN_TEXT and lookup.flags & HOLDS_NAN:
            target[i] = lookup.nan_code
            continue
        if source[i].size == NONE_TEXT and lookup.flags & HOLDS_NONE:
            target[i] = lookup.none_code
            continue
        index = -1 if source[i].size >= NONE_TEXT else find_text(lookup, &source[i])
        if index >= 0:
            target[i] = lookup.codes[index]
        elif not code_unknown(operation, block, i, source[i].size >= NONE_TEXT):
            return False
    return True


cdef bint is_code(const Operation* operation, const Block* block) noexcept nogil:
    """One column of a one-hot encoding that another step reads."""
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = 1.0 if source[i] == operation.a else 0.0
    return True


cdef bint scatter_float64(const Operation* operation, const Block* block) noexcept nogil:
    """Set the one hot output of each row; the rest of the row was zeroed. `table`: code to output column, or -1."""
    cdef const int32_t* columns = <const int32_t*>operation.table
    cdef const double* source = numbers_of(block, operation.source)
    cdef int32_t code
    cdef Py_ssize_t i
    for i in range(block.rows):
        code = <int32_t>source[i]
        if 0 <= code < operation.count and columns[code] >= 0:
            (<double*>block.out)[i * block.width + columns[code]] = 1.0
    return True


cdef bint scatter_float32(const Operation* operation, const Block* block) noexcept nogil:
    cdef const int32_t* columns = <const int32_t*>operation.table
    cdef const double* source = numbers_of(block, operation.source)
    cdef int32_t code
    cdef Py_ssize_t i
    for i in range(block.rows):
        code = <int32_t>source[i]
        if 0 <= code < operation.count and columns[code] >= 0:
            (<float*>block.out)[i * block.width + columns[code]] = 1.0
    return True


cdef bint load_int64(const Operation* operation, const Block* block) noexcept nogil:
    memcpy(numbers_of(block, operation.target), block.slabs[operation.source].data + block.row * sizeof(int64_t),
           block.rows * sizeof(int64_t))
    return True


cdef inline const char* text_at(const Block* block, const Span* span) noexcept nogil:
    """A text of the arena, or where there is none at its own address."""
    return <const char*>(<size_t>block.arena + <size_t>span.offset) if span.length else <const char*>""


cdef bint load_text(const Operation* operation, const Block* block) noexcept nogil:
    """Spans to pointers. A missing value is what the column declares, unless a frame said which in the offset."""
    cdef const Span* spans = <const Span*>block.slabs[operation.source].data + block.row
    cdef Text* target = texts_of(block, operation.target)
    cdef uint64_t missing = NONE_TEXT if operation.flags & HOLDS_NONE else NAN_TEXT
    cdef Py_ssize_t i
    for i in range(block.rows):
        if spans[i].length < TIME_BYTES:
            target[i].data = text_at(block, &spans[i])
            target[i].size = spans[i].length
            continue
        target[i].data = ""
        target[i].size = spans[i].offset if spans[i].offset >= NONE_TEXT else missing
    return True


cdef inline bint text_matches(const Operation* operation, const Text* text) noexcept nogil:
    """Whether the value is what `flags` calls missing: NaN, None, or (neither) the program's own text."""
    cdef const Text* wanted
    if operation.flags:
        return ((text.size == NAN_TEXT and (operation.flags & HOLDS_NAN) != 0)
                or (text.size == NONE_TEXT and (operation.flags & HOLDS_NONE) != 0))
    wanted = <const Text*>operation.table
    return text.size == wanted.size and memcmp(text.data, wanted.data, text.size) == 0


cdef bint fill_text(const Operation* operation, const Block* block) noexcept nogil:
    """`table`: what counts as missing (where `flags` does not say), and the filling."""
    cdef const Text* texts = <const Text*>operation.table
    cdef const Text* source = texts_of(block, operation.source)
    cdef Text* target = texts_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = texts[1] if text_matches(operation, &source[i]) else source[i]
    return True


cdef bint is_text(const Operation* operation, const Block* block) noexcept nogil:
    cdef const Text* source = texts_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = 1.0 if text_matches(operation, &source[i]) else 0.0
    return True


cdef bint check_text(const Operation* operation, const Block* block) noexcept nogil:
    """Refuse NaN; None passes, as it does in scikit-learn's check of an object array."""
    cdef const Text* source = texts_of(block, operation.source)
    cdef Py_ssize_t i
    for i in range(block.rows):
        if source[i].size == NAN_TEXT:
            return spoiled(operation, block, BAD_RECORD, SAYS_MISSING, i)
    return True
