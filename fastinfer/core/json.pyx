# RFC 8259, strictly: syntax, UTF-8, escapes, depth and duplicate keys. Values are made by the parts that follow.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset
from libcpp.algorithm cimport sort

cdef extern from *:
    """
    namespace fastinfer {
    // A bit for each of the 64 bytes at p that is `wanted`, once the bits of `fold` are set in it.
    template <bool VECTOR> static inline uint64_t equal_bytes_as(const char* p, uint8_t wanted, uint8_t fold) {
        uint64_t mask = 0;
    #if FASTINFER_VECTOR
        if constexpr (VECTOR) {
            for (int part = 0; part < 64; part += 16) {
                __m128i text = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + part));
                __m128i equal = _mm_cmpeq_epi8(_mm_or_si128(text, _mm_set1_epi8(char(fold))),
                                               _mm_set1_epi8(char(wanted)));
                mask |= uint64_t(uint32_t(_mm_movemask_epi8(equal))) << part;
            }
            return mask;
        }
    #endif
        for (int part = 0; part < 64; part += 8) {
            uint64_t differs = (load_word(p + part) | fold * LOW_BITS) ^ wanted * LOW_BITS;
            uint64_t equal = ~(((differs & ~HIGH_BITS) + ~HIGH_BITS) | differs) & HIGH_BITS;
            mask |= (((equal >> 7) * GATHER) >> 56) << part;
        }
        return mask;
    }
    // Whether a quote or any byte from '[' up is among the 64 bytes at p: brackets and braces are, numbers mostly not.
    template <bool VECTOR> static inline bool may_have_structure_as(const char* p) {
    #if FASTINFER_VECTOR
        if constexpr (VECTOR) {
            __m128i largest = _mm_setzero_si128(), quotes = _mm_setzero_si128();
            for (int part = 0; part < 64; part += 16) {
                __m128i text = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + part));
                largest = _mm_max_epu8(largest, text);
                quotes = _mm_or_si128(quotes, _mm_cmpeq_epi8(text, _mm_set1_epi8('"')));
            }
            return _mm_movemask_epi8(_mm_or_si128(quotes, _mm_adds_epu8(largest, _mm_set1_epi8(0x80 - '[')))) != 0;
        }
    #endif
        uint64_t found = 0;
        for (int part = 0; part < 64; part += 8) {
            uint64_t word = load_word(p + part), quotes = word ^ '"' * LOW_BITS;
            found |= word | ((word & ~HIGH_BITS) + (0x80 - '[') * LOW_BITS) | ((quotes - LOW_BITS) & ~quotes);
        }
        return (found & HIGH_BITS) != 0;
    }
    static inline bool may_have_structure(const char* p) { return may_have_structure_as<FASTINFER_VECTOR>(p); }
    static inline uint64_t equal_bytes(const char* p, uint8_t wanted, uint8_t fold) {
        return equal_bytes_as<FASTINFER_VECTOR>(p, wanted, fold);
    }
    // The portable twins beside what is in use; for tests.
    static inline bool blocks_agree(const char* p, uint8_t wanted, uint8_t fold) {
        return may_have_structure(p) == may_have_structure_as<false>(p)
            && equal_bytes(p, wanted, fold) == equal_bytes_as<false>(p, wanted, fold);
    }
    }
    """
    bint may_have_structure "fastinfer::may_have_structure"(const char* p) noexcept nogil
    uint64_t equal_bytes "fastinfer::equal_bytes"(const char* p, uint8_t wanted, uint8_t fold) noexcept nogil
    bint blocks_agree "fastinfer::blocks_agree"(const char* p, uint8_t wanted, uint8_t fold) noexcept nogil

cdef enum:
    MAX_DEPTH = 100             # arrays and objects inside each other
    MAX_KEYS = 1 << 20          # members of the objects that are open at a time; bounds the memory a body can claim
    FEW_KEYS = 8                # up to here every pair is compared
    KEPT_KEYS = 4096
    KEPT_SCRATCH = 65536        # bytes
    BLOCK = 64                  # bytes that are searched at a time

cdef enum:  # Failure.reason of BAD_JSON
    JSON_END = 1
    JSON_EMPTY, JSON_TRAILING, JSON_VALUE, JSON_NUMBER, JSON_NAN, JSON_CONTROL, JSON_ESCAPE, JSON_SURROGATE, JSON_UTF8
    JSON_ITEM, JSON_MEMBER, JSON_KEY, JSON_COLON, JSON_DEEP, JSON_DUPLICATE, JSON_CROWDED, JSON_MARK


cdef inline const char* stop(const Json* json, Failure* failure, int reason, const char* p) noexcept nogil:
    """Fill ``failure`` with a fault of syntax at ``p`` and return NULL."""
    fail(failure, BAD_JSON, reason if p < json.end else JSON_END, p - json.begin, -1, -1)
    return NULL


cdef inline const char* skip_space(const char* p, const char* end) noexcept nogil:
    if p < end and <uint8_t>p[0] > 32:
        return p
    while p < end and (p[0] == c' ' or p[0] == c'\n' or p[0] == c'\r' or p[0] == c'\t'):
        p += 1
    return p


cdef inline bint is_ascii(char c) noexcept nogil:
    return <uint8_t>c < 0x80


cdef inline uint64_t find_odd_bytes(uint64_t word) noexcept nogil:
    """The high bits of those of eight bytes of a string that do not stand for themselves; right up to the first.

    These are control characters, quotes, backslashes and what is not ASCII.
    """
    cdef uint64_t quotes = word ^ (LOW_BITS * 34)
    cdef uint64_t slashes = word ^ (LOW_BITS * 92)
    return ((word | (word - LOW_BITS * 32) | ((quotes - LOW_BITS) & ~quotes) | ((slashes - LOW_BITS) & ~slashes))
            & HIGH_BITS)


cdef inline bint is_plain(char c) noexcept nogil:
    return <uint8_t>(c - 32) < 96 and c != c'"' and c != c'\\'


cdef bint is_plain_text(const char* text, Py_ssize_t size) noexcept nogil:
    """Whether JSON may write the text as it is."""
    cdef Py_ssize_t i
    for i in range(size):
        if is_ascii(text[i]) and not is_plain(text[i]):
            return False
    return True


cdef inline const char* skip_plain(const char* p, const char* end) noexcept nogil:
    """Past the bytes of a string that stand for themselves, eight at a time and near the end singly."""
    cdef uint64_t word, odd
    while end - p >= 8:
        memcpy(&word, p, 8)
        odd = find_odd_bytes(word)
        if odd:
            return p + (trailing_zeros(odd) >> 3)
        p += 8
    while p < end and is_plain(p[0]):
        p += 1
    return p


cdef const char* skip_utf8(const char* p, const char* end) noexcept nogil:
    """Past one well-formed multi-byte sequence (RFC 3629: no overlong form, no surrogate, no more than U+10FFFF)."""
    cdef const uint8_t* s = <const uint8_t*>p
    cdef uint8_t lead = s[0]
    cdef uint8_t low = 0x80
    cdef uint8_t high = 0xBF
    cdef int size = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    cdef int i
    if lead < 0xC2 or lead > 0xF4 or end - p < size:
        return NULL
    if lead == 0xE0:
        low = 0xA0
    elif lead == 0xED:
        high = 0x9F
    elif lead == 0xF0:
        low = 0x90
    elif lead == 0xF4:
        high = 0x8F
    if s[1] < low or s[1] > high:
        return NULL
    for i in range(2, size):
        if s[i] < 0x80 or s[i] > 0xBF:
            return NULL
    return p + size


cdef bint is_utf8(const char* p, const char* end) noexcept nogil:
    """Whether the bytes are well-formed UTF-8; any character, also the controls."""
    cdef uint64_t word
    while p < end:
        if end - p >= 8:
            memcpy(&word, p, 8)
            if word & HIGH_BITS == 0:
                p += 8
                continue
        p = p + 1 if is_ascii(p[0]) else skip_utf8(p, end)
        if p == NULL:
            return False
    return True


cdef int read_hex(const char* p, const char* end) noexcept nogil:
    """The four hexadecimal digits at ``p``, or -1."""
    cdef int value = 0
    cdef int i
    cdef char c
    if end - p < 4:
        return -1
    for i in range(4):
        c = p[i]
        if is_digit(c):
            value = value * 16 + (c - 48)
        elif c'a' <= (c | 32) <= c'f':
            value = value * 16 + ((c | 32) - 87)
        else:
            return -1
    return value


cdef const char* read_escape(const Json* json, const char* p, uint32_t* point, Failure* failure) noexcept nogil:
    """Decode the escape at ``p`` (a backslash); a pair of surrogates is one code point, a lone one is refused."""
    cdef int unit, low
    if json.end - p < 2:
        return stop(json, failure, JSON_END, json.end)
    if p[1] != c'u':
        point[0] = simple_escape(p[1])
        return p + 2 if point[0] else stop(json, failure, JSON_ESCAPE, p)
    unit = read_hex(p + 2, json.end)
    if unit < 0:
        return stop(json, failure, JSON_ESCAPE, p)
    point[0] = <uint32_t>unit
    if not 0xD800 <= unit <= 0xDFFF:
        return p + 6
    low = read_hex(p + 8, json.end) if json.end - p >= 12 and p[6] == c'\\' and p[7] == c'u' else -1
    if unit > 0xDBFF or not 0xDC00 <= low <= 0xDFFF:
        return stop(json, failure, JSON_SURROGATE, p)
    point[0] = <uint32_t>(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00))
    return p + 12


cdef inline uint32_t simple_escape(char c) noexcept nogil:
    if c == c'"' or c == c'\\' or c == c'/':
        return <uint32_t>c
    if c == c'n':
        return 10
    if c == c't':
        return 9
    if c == c'r':
        return 13
    if c == c'b':
        return 8
    if c == c'f':
        return 12
    return 0


cdef char* put_utf8(char* out, uint32_t point) noexcept nogil:
    """Write a code point, at most as many bytes as its escape had."""
    if point < 0x80:
        out[0] = <char>point
        return out + 1
    if point < 0x800:
        out[0] = <char>(0xC0 | (point >> 6))
        out[1] = <char>(0x80 | (point & 0x3F))
        return out + 2
    if point < 0x10000:
        out[0] = <char>(0xE0 | (point >> 12))
        out[1] = <char>(0x80 | ((point >> 6) & 0x3F))
        out[2] = <char>(0x80 | (point & 0x3F))
        return out + 3
    out[0] = <char>(0xF0 | (point >> 18))
    out[1] = <char>(0x80 | ((point >> 12) & 0x3F))
    out[2] = <char>(0x80 | ((point >> 6) & 0x3F))
    out[3] = <char>(0x80 | (point & 0x3F))
    return out + 4


cdef const char* read_string(const Json* json, const char* p, char** out, bint* escaped,
                             Failure* failure) noexcept nogil:
    """Check the string at ``p`` (its opening quote); past its closing quote.

    Where ``out`` is not NULL, its text goes to ``out[0]``, which is moved on; it takes no more bytes than the string.
    """
    cdef const char* start
    cdef const char* after
    cdef uint32_t point = 0
    escaped[0] = False
    p += 1
    while True:
        start = p
        p = skip_plain(p, json.end)
        while p < json.end and not is_ascii(p[0]):
            after = skip_utf8(p, json.end)
            if after == NULL:
                return stop(json, failure, JSON_UTF8, p)
            p = skip_plain(after, json.end)
        if out != NULL:
            memcpy(out[0], start, p - start)
            out[0] += p - start
        if p >= json.end:
            return stop(json, failure, JSON_END, p)
        if p[0] == c'"':
            return p + 1
        if p[0] != c'\\':
            return stop(json, failure, JSON_CONTROL, p)
        escaped[0] = True
        p = read_escape(json, p, &point, failure)
        if p == NULL:
            return NULL
        if out != NULL:
            out[0] = put_utf8(out[0], point)


# ---- members of objects ---------------------------------------------------------------------------------------
cdef inline const char* read_name(Json* json, const char* p, Key* key, Failure* failure) noexcept nogil:
    """Read the string at ``p``; ``key`` has its text, escapes resolved, until the next document."""
    cdef const char* after = skip_plain(p + 1, json.end)
    if after < json.end and after[0] == c'"':
        key.data = p + 1
        key.size = after - key.data
        key.offset = p - json.begin
        return after + 1
    return read_any_name(json, p, key, failure)


cdef const char* read_any_name(Json* json, const char* p, Key* key, Failure* failure) noexcept nogil:
    cdef bint escaped = False
    cdef const char* start = p
    cdef char* text
    p = read_string(json, p, NULL, &escaped, failure)
    if p == NULL:
        return NULL
    key.data = start + 1
    key.size = p - start - 2
    key.offset = start - json.begin
    if escaped:
        if not scratch_reserve(json):
            fail(failure, NO_MEMORY, 0, -1, -1, -1)
            return NULL
        text = json.scratch + json.scratch_used
        key.data = text
        read_string(json, start, &text, &escaped, failure)
        key.size = text - key.data
        json.scratch_used += key.size
    return p


cdef inline const char* read_key(Json* json, const char* p, Key* key, Failure* failure) noexcept nogil:
    """Read the key at ``p`` and its colon; past the white space behind."""
    if p >= json.end or p[0] != c'"':
        return stop(json, failure, JSON_KEY, p)
    p = read_name(json, p, key, failure)
    return skip_colon(json, p, failure) if p != NULL else NULL


cdef inline const char* skip_colon(const Json* json, const char* p, Failure* failure) noexcept nogil:
    p = skip_space(p, json.end)
    if p >= json.end or p[0] != c':':
        return stop(json, failure, JSON_COLON, p)
    return skip_space(p + 1, json.end)


cdef inline const char* next_member(const Json* json, const char* p, bint* more, Failure* failure) noexcept nogil:
    """Past the comma behind a member, or the closing brace; ``more`` says which."""
    p = skip_space(p, json.end)
    if p >= json.end or (p[0] != c',' and p[0] != c'}'):
        return stop(json, failure, JSON_MEMBER, p)
    more[0] = p[0] == c','
    return skip_space(p + 1, json.end) if more[0] else p + 1


cdef inline const char* next_item(const Json* json, const char* p, bint* more, Failure* failure) noexcept nogil:
    """Past the comma behind an array's element, or the closing bracket; ``more`` says which."""
    p = skip_space(p, json.end)
    if p >= json.end or (p[0] != c',' and p[0] != c']'):
        return stop(json, failure, JSON_ITEM, p)
    more[0] = p[0] == c','
    return skip_space(p + 1, json.end) if more[0] else p + 1


cdef bint scratch_reserve(Json* json) noexcept nogil:
    """Room for the text of every escaped key of the body; taken only when there is one, and never moved."""
    cdef size_t size = json.end - json.begin
    if json.scratch_capacity < size:
        free(json.scratch)
        json.scratch = <char*>malloc(size)
        json.scratch_capacity = size if json.scratch != NULL else 0
    return json.scratch != NULL


cdef inline bint key_is(const Key* key, const char* name, size_t size) noexcept nogil:
    return key.size == size and memcmp(key.data, name, size) == 0


cdef inline bint push_key(Json* json, const Key* key, Failure* failure) noexcept nogil:
    """Remember a member of the innermost object."""
    if json.n_keys == json.key_capacity and not more_keys(json, key, failure):
        return False
    json.keys[json.n_keys] = key[0]
    json.n_keys += 1
    return True


cdef bint more_keys(Json* json, const Key* key, Failure* failure) noexcept nogil:
    """Room for ``key`` and more."""
    cdef size_t capacity = max(2 * json.key_capacity, <size_t>64)
    cdef Key* keys
    if json.n_keys >= MAX_KEYS:
        return fail(failure, BAD_JSON, JSON_CROWDED, key.offset, -1, -1)
    keys = <Key*>realloc(json.keys, capacity * sizeof(Key))
    if keys == NULL:
        return fail(failure, NO_MEMORY, 0, -1, -1, -1)
    json.keys = keys
    json.key_capacity = capacity
    return True


cdef bint key_before(const Key& a, const Key& b) noexcept nogil:
    cdef int order
    if a.size != b.size:
        return a.size < b.size
    order = memcmp(a.data, b.data, a.size)
    return order < 0 or (order == 0 and a.offset < b.offset)


cdef bint pop_keys(Json* json, size_t base, Failure* failure) noexcept nogil:
    """Close the innermost object, whose members stand from ``base``; no two may have the same key."""
    cdef Key* keys = json.keys + base
    cdef size_t count = json.n_keys - base
    cdef size_t i, j
    json.n_keys = base
    if count <= FEW_KEYS:
        for i in range(1, count):
            for j in range(i):
                if key_is(&keys[i], keys[j].data, keys[j].size):
                    return fail(failure, BAD_JSON, JSON_DUPLICATE, keys[i].offset, -1, -1)
        return True
    sort(keys, keys + count, &key_before)
    for i in range(1, count):
        if key_is(&keys[i], keys[i - 1].data, keys[i - 1].size):
            return fail(failure, BAD_JSON, JSON_DUPLICATE, keys[i].offset, -1, -1)
    return True


# ---- whole values ---------------------------------------------------------------------------------------------
cdef const char* skip_value(Json* json, const char* p, int depth, Failure* failure) noexcept nogil:
    """Check any one value at ``p``, inside ``depth`` arrays and objects; past it."""
    cdef bint escaped = False
    if p >= json.end:
        return stop(json, failure, JSON_END, p)
    if p[0] == c'"':
        return read_string(json, p, NULL, &escaped, failure)
    if p[0] == c'{':
        return skip_object(json, p, depth + 1, failure)
    if p[0] == c'[':
        return skip_array(json, p, depth + 1, failure)
    if p[0] == c'-' or is_digit(p[0]):
        return skip_number(json, p, failure)
    if starts_with(p, json.end, b"true", 4) or starts_with(p, json.end, b"null", 4):
        return p + 4
    if starts_with(p, json.end, b"false", 5):
        return p + 5
    if starts_with(p, json.end, b"NaN", 3) or starts_with(p, json.end, b"Infinity", 8):
        return stop(json, failure, JSON_NAN, p)
    return stop(json, failure, JSON_VALUE, p)


cdef inline bint starts_with(const char* p, const char* end, const char* word, Py_ssize_t size) noexcept nogil:
    return end - p >= size and memcmp(p, word, size) == 0


cdef const char* skip_number(const Json* json, const char* p, Failure* failure) noexcept nogil:
    """Check RFC 8259's grammar of a number; its range is the matter of who wants the value."""
    cdef const char* first
    cdef int64_t exponent = 0
    if p[0] == c'-':
        p += 1
        if starts_with(p, json.end, b"Infinity", 8):
            return stop(json, failure, JSON_NAN, p - 1)
    first = p
    p = skip_digits(p, json.end)
    if p == first or (p - first > 1 and first[0] == c'0'):
        return stop(json, failure, JSON_NUMBER, first)
    if p < json.end and p[0] == c'.':
        first = p + 1
        p = skip_digits(first, json.end)
        if p == first:
            return stop(json, failure, JSON_NUMBER, p)
    if p < json.end and (p[0] | 32) == c'e':
        first = p + 1
        p = read_exponent(first, json.end, &exponent)
        if p == NULL:
            return stop(json, failure, JSON_NUMBER, first)
    return p


cdef inline const char* skip_digits(const char* p, const char* end) noexcept nogil:
    while p < end and is_digit(p[0]):
        p += 1
    return p


cdef const char* skip_array(Json* json, const char* p, int depth, Failure* failure) noexcept nogil:
    cdef bint more = True
    if depth > MAX_DEPTH:
        return stop(json, failure, JSON_DEEP, p)
    p = skip_space(p + 1, json.end)
    if p < json.end and p[0] == c']':
        return p + 1
    while more:
        p = skip_value(json, p, depth, failure)
        if p != NULL:
            p = next_item(json, p, &more, failure)
        if p == NULL:
            return NULL
    return p


cdef const char* skip_object(Json* json, const char* p, int depth, Failure* failure) noexcept nogil:
    cdef size_t base = json.n_keys
    cdef bint more = True
    cdef Key key
    if depth > MAX_DEPTH:
        return stop(json, failure, JSON_DEEP, p)
    p = skip_space(p + 1, json.end)
    if p < json.end and p[0] == c'}':
        return p + 1
    while more:
        p = read_key(json, p, &key, failure)
        if p == NULL or not push_key(json, &key, failure):
            return NULL
        p = skip_value(json, p, depth, failure)
        if p != NULL:
            p = next_member(json, p, &more, failure)
        if p == NULL:
            return NULL
    return p if pop_keys(json, base, failure) else NULL


cdef bint check_document(Json* json, Failure* failure) noexcept nogil:
    """Whether the whole text is one JSON value; ``failure`` has the first fault."""
    cdef const char* p = skip_space(json.begin, json.end)
    json_reset(json)
    if p >= json.end:
        return fail(failure, BAD_JSON, JSON_EMPTY, p - json.begin, -1, -1)
    if starts_with(p, json.end, b"\xef\xbb\xbf", 3):
        return fail(failure, BAD_JSON, JSON_MARK, p - json.begin, -1, -1)
    p = skip_value(json, p, 0, failure)
    if p == NULL:
        return False
    p = skip_space(p, json.end)
    return p == json.end or fail(failure, BAD_JSON, JSON_TRAILING, p - json.begin, -1, -1)


cdef void json_reset(Json* json) noexcept nogil:
    """Ready for the next pass or document; what an unusual one needed is given back."""
    json.n_keys = 0
    json.scratch_used = 0
    if json.key_capacity > KEPT_KEYS or json.scratch_capacity > KEPT_SCRATCH:
        free(json.keys)
        free(json.scratch)
        json.keys = NULL
        json.scratch = NULL
        json.key_capacity = json.scratch_capacity = 0


cdef void json_free(Json* json) noexcept nogil:
    free(json.keys)
    free(json.scratch)
    memset(json, 0, sizeof(Json))


# ---- where a bulky array ends -----------------------------------------------------------------------------------
cdef inline uint64_t find_escaped(uint64_t backslashes, uint64_t* carry) noexcept nogil:
    """The bytes of a block that a backslash before them escapes; ``carry`` is 1 where the next block begins so."""
    cdef uint64_t escaped = carry[0]
    cdef uint64_t first
    backslashes &= ~escaped
    carry[0] = 0
    while backslashes:
        first = backslashes & (0 - backslashes)
        carry[0] = first >> 63
        escaped |= first << 1
        backslashes &= ~(first | first << 1)
    return escaped


cdef inline uint64_t fill_between(uint64_t marks) noexcept nogil:
    """Ones from every other mark, itself included, up to the next one."""
    marks ^= marks << 1
    marks ^= marks << 2
    marks ^= marks << 4
    marks ^= marks << 8
    marks ^= marks << 16
    return marks ^ (marks << 32)


cdef const char* find_end(const Json* json, const char* p, Py_ssize_t* objects) noexcept nogil:
    """Past the array at ``p`` by counting brackets outside of strings; NULL where they do not balance.

    Sound only for valid JSON: whoever reads the array checks the syntax, and that it ends here. ``objects`` is the
    number of objects among its elements.
    """
    cdef char[BLOCK] rest
    cdef const char* block
    cdef uint64_t quotes, strings, opening, brackets
    cdef uint64_t inside = 0    # ones where the block begins in a string
    cdef uint64_t carry = 0
    cdef int depth = 0
    cdef int at
    objects[0] = 0
    while p < json.end:
        block = p
        if json.end - p < BLOCK:
            memset(<char*>rest, c' ', BLOCK)
            memcpy(<char*>rest, p, json.end - p)
            block = <const char*>rest
        elif not inside and not may_have_structure(p):
            p += BLOCK
            continue
        quotes = equal_bytes(block, c'"', 0) & ~find_escaped(equal_bytes(block, c'\\', 0), &carry)
        strings = fill_between(quotes) ^ inside
        inside = 0 - (strings >> 63)
        opening = equal_bytes(block, c'{', 32) & ~strings  # [ and {
        brackets = opening | (equal_bytes(block, c'}', 32) & ~strings)
        while brackets:
            at = trailing_zeros(brackets)
            if opening >> at & 1:
                objects[0] += depth == 1 and block[at] == c'{'
                depth += 1
                if depth > MAX_DEPTH:
                    return NULL
            else:
                depth -= 1
                if depth <= 0:
                    return p + at + 1
            brackets &= brackets - 1
        p += BLOCK
    return NULL


cdef int64_t count_scalars(const char* p, const char* end) noexcept nogil:
    """The strings, numbers and literals of valid JSON without objects."""
    cdef int64_t count = 0
    while p < end:
        if p[0] == c'"':
            count += 1
            p = find_quote(p + 1, end)
            if p == NULL:
                break
        elif is_separator(p[0]):
            p += 1
        else:
            count += 1
            while p < end and not is_separator(p[0]):
                p += 1
    return count


cdef inline bint is_separator(char c) noexcept nogil:
    return c == c',' or c == c'[' or c == c']' or c == c' ' or c == c'\n' or c == c'\r' or c == c'\t'


cdef inline const char* find_quote(const char* p, const char* end) noexcept nogil:
    """Past the closing quote of the string whose text is at ``p``."""
    while p < end:
        if p[0] == c'"':
            return p + 1
        p += 2 if p[0] == c'\\' and end - p > 1 else 1
    return NULL


def compare_blocks(bytes block not None, int wanted, int fold):
    """Whether the vector way and its portable twin see the same in a block. For tests.

    Returns:
        (they agree, mask of the bytes that are ``wanted`` once ``fold`` is set, whether the block is looked at).
    """
    cdef const char* p = block
    if len(block) != BLOCK:
        raise ValueError(f"a block has {BLOCK} bytes")
    return (blocks_agree(p, <uint8_t>wanted, <uint8_t>fold) != 0, equal_bytes(p, <uint8_t>wanted, <uint8_t>fold),
            may_have_structure(p) != 0)
