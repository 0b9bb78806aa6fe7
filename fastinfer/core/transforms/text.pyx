# Text to sparse rows, as scikit-learn's vectorizers do it: lower case, accents, tokens, n-grams, then a look-up in a
# vocabulary or MurmurHash3. Time is linear in the text's length times the longest n-gram (and n log n in the number of
# n-grams, which are sorted); memory is a few times the text, and 12 bytes for each different feature of a row.
from libc.math cimport fabs
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memset

from fastinfer.errors import ConfigurationError

cdef enum:
    WORDS, CHARACTERS, CHARACTERS_IN_WORDS
    TAKES_FIRST = 1, TAKES_REST = 2, TAKES_WORD = 4     # what an ASCII character is to a token pattern
    SAYS_MANY = 20                                      # Failure.reason: more of one feature than float32 counts
    FLOAT32_COUNTS = 1 << 24

cdef uint64_t HASH_START = <uint64_t>0xCBF29CE484222325

# Strings by their 64-bit FNV-1a hash. Its keys are the operator's; a client's text only asks.
cdef struct TermSlot:
    uint64_t hash
    int32_t index                   # -1 empty

cdef struct Terms:
    TermSlot* slots
    uint64_t mask
    const char* pool
    const uint64_t* starts          # of each term, and the end of the last

# A token: one character of the class `first`, then from `least` to `most` of `rest`, as many as there are; where
# `opens` or `closes` is set a word boundary stands before or behind it.
cdef struct TokenPattern:
    bint opens
    bint closes
    bint runs                       # whole runs of one class: nothing needs to be tried twice
    int32_t least
    int32_t most                    # -1: no bound
    uint8_t ascii[128]
    CharacterClass first
    CharacterClass rest

cdef struct Analyzer:
    int kind
    bint lower
    int strip                       # a character map, or 0
    int32_t shortest                # n-grams
    int32_t longest
    TokenPattern* pattern
    Terms* stop_words               # NULL: none
    Terms* vocabulary               # NULL: hashed
    uint32_t features               # that hashes are folded into
    bint alternate_sign
    bint binary
    bint single

# What one run of a kernel works in.
cdef struct Desk:
    Writer lower
    Writer stripped
    Writer joined                   # tokens, with a space between
    size_t* ends                    # of each token in `joined`
    size_t n_tokens
    size_t token_room
    Tally tally

# ---- n-grams -----------------------------------------------------------------------------------------------------
cdef inline uint64_t hash_on(uint64_t value, const char* data, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(size):
        value = (value ^ <uint8_t>data[i]) * <uint64_t>0x100000001B3
    return value


cdef inline int32_t find_term(const Terms* terms, const char* data, size_t size, uint64_t hash) noexcept nogil:
    cdef uint64_t position = spread(hash) & terms.mask
    cdef int32_t index = terms.slots[position].index
    while index >= 0:
        if (terms.slots[position].hash == hash and terms.starts[index + 1] - terms.starts[index] == size
                and memcmp(terms.pool + terms.starts[index], data, size) == 0):
            return index
        position = (position + 1) & terms.mask
        index = terms.slots[position].index
    return -1


cdef inline bint note_feature(const Analyzer* analyzer, Tally* tally, const char* data, size_t size,
                              uint64_t hash) noexcept nogil:
    """One n-gram. ``hash`` counts only where there is a vocabulary."""
    cdef int32_t index
    if analyzer.vocabulary == NULL:
        return tally_note(tally, hashed_word(data, size, analyzer.features, analyzer.alternate_sign))
    index = find_term(analyzer.vocabulary, data, size, hash)
    return index < 0 or tally_note(tally, <uint32_t>index << 1)


cdef bint note_characters(const Analyzer* analyzer, Tally* tally, const char* text, const char* end) noexcept nogil:
    """The n-grams of characters of a text: from each start, longer and longer."""
    cdef const char* start = text
    cdef const char* p
    cdef const char* after = NULL
    cdef uint64_t hash
    cdef uint32_t code
    cdef int32_t n
    while start < end:
        p, n, hash = start, 0, HASH_START
        while p < end and n < analyzer.longest:
            after = read_character(p, end, &code)
            if analyzer.vocabulary != NULL:
                hash = hash_on(hash, p, after - p)
            p = after
            n += 1
            if n >= analyzer.shortest and not note_feature(analyzer, tally, start, p - start, hash):
                return False
        start = read_character(start, end, &code)
    return True


cdef bint note_tokens(const Analyzer* analyzer, Desk* desk) noexcept nogil:
    """The n-grams of the tokens that were joined."""
    cdef const char* data = desk.joined.data
    cdef size_t i, start, done, end
    cdef uint64_t hash
    cdef int32_t n
    for i in range(desk.n_tokens):
        start = done = desk.ends[i - 1] + 1 if i else 0
        hash = HASH_START
        for n in range(1, analyzer.longest + 1):
            if i + n > desk.n_tokens:
                break
            end = desk.ends[i + n - 1]
            if analyzer.vocabulary != NULL:
                hash = hash_on(hash, data + done, end - done)
            done = end
            if n >= analyzer.shortest and not note_feature(analyzer, &desk.tally, data + start, end - start, hash):
                return False
    return True


# ---- tokens ------------------------------------------------------------------------------------------------------
cdef bint take_token(const Analyzer* analyzer, Desk* desk, const char* data, size_t size) noexcept nogil:
    """A token that is no stop word: noted at once where there are only single words, else joined to the others."""
    cdef uint64_t hash = HASH_START
    cdef size_t room
    cdef void* grown
    if analyzer.stop_words != NULL or (analyzer.longest == 1 and analyzer.vocabulary != NULL):
        hash = hash_on(hash, data, size)
    if analyzer.stop_words != NULL and find_term(analyzer.stop_words, data, size, hash) >= 0:
        return True
    if analyzer.longest == 1:
        return note_feature(analyzer, &desk.tally, data, size, hash)
    if desk.n_tokens == desk.token_room:
        room = max(<size_t>64, 2 * desk.token_room)
        grown = realloc(desk.ends, room * sizeof(size_t))
        if grown == NULL:
            return False
        desk.ends, desk.token_room = <size_t*>grown, room
    if desk.n_tokens and not writer_put(&desk.joined, " ", 1):
        return False
    if not writer_put(&desk.joined, data, size):
        return False
    desk.ends[desk.n_tokens] = desk.joined.size
    desk.n_tokens += 1
    return True


cdef inline const char* read_kind(const TokenPattern* pattern, const char* p, const char* end,
                                  uint8_t* kind) noexcept nogil:
    """What the character at ``p < end`` is to the pattern, and past it."""
    cdef uint32_t code
    cdef uint8_t flags
    if <uint8_t>p[0] < 0x80:
        kind[0] = pattern.ascii[<uint8_t>p[0]]
        return p + 1
    p = read_character(p, end, &code)
    flags = flags_of(code)
    kind[0] = (TAKES_FIRST * class_holds(&pattern.first, code, flags) | TAKES_REST
               * class_holds(&pattern.rest, code, flags) | TAKES_WORD * ((flags & IS_WORD) != 0))
    return p


cdef bint take_runs(const Analyzer* analyzer, Desk* desk, const char* p, const char* end) noexcept nogil:
    """Tokens that are whole runs of one class, long enough."""
    cdef const TokenPattern* pattern = analyzer.pattern
    cdef const char* start
    cdef const char* after = NULL
    cdef uint8_t kind = 0
    cdef int32_t count
    while p < end:
        start, count = p, 0
        while p < end:
            after = read_kind(pattern, p, end, &kind)
            if not kind & TAKES_REST:
                break
            count += count <= pattern.least
            p = after
        if count > pattern.least and not take_token(analyzer, desk, start, p - start):
            return False
        if p < end:
            p = after
    return True


cdef bint take_matches(const Analyzer* analyzer, Desk* desk, const char* text, const char* end) noexcept nogil:
    """What `re.findall` finds. A run of `rest` and its last word boundary are sought once, whatever starts in it."""
    cdef const TokenPattern* pattern = analyzer.pattern
    cdef const char* p = text
    cdef const char* after = NULL
    cdef const char* run_start = NULL
    cdef const char* run_end = NULL
    cdef const char* boundary = NULL        # the last one within the run, its ends included
    cdef const char* stop
    cdef uint8_t kind = 0
    cdef bint before = False                # a word character stands before p
    while p < end:
        after = read_kind(pattern, p, end, &kind)
        if not kind & TAKES_FIRST or (pattern.opens and before == ((kind & TAKES_WORD) != 0)):
            before = (kind & TAKES_WORD) != 0
            p = after
            continue
        if run_start == NULL or not run_start <= after <= run_end:
            run_start = after
            run_end = run_of(pattern, after, end, (kind & TAKES_WORD) != 0, &boundary)
        stop = token_end(pattern, after, run_end, end, boundary, kind)
        if stop == NULL:
            before = (kind & TAKES_WORD) != 0
            p = after
            continue
        if not take_token(analyzer, desk, p, stop - p):
            return False
        before = word_before(pattern, p, stop, end)
        p = stop
    return True


cdef const char* run_of(const TokenPattern* pattern, const char* p, const char* end, bint before,
                        const char** boundary) noexcept nogil:
    """The end of the run of `rest` from ``p`` on, and the last word boundary in it."""
    cdef const char* after = NULL
    cdef uint8_t kind = 0
    boundary[0] = NULL
    while p < end:
        after = read_kind(pattern, p, end, &kind)
        if before != ((kind & TAKES_WORD) != 0):
            boundary[0] = p
        if not kind & TAKES_REST:
            return p
        before = (kind & TAKES_WORD) != 0
        p = after
    if before:
        boundary[0] = p
    return p


cdef const char* token_end(const TokenPattern* pattern, const char* p, const char* run_end, const char* end,
                           const char* boundary, uint8_t kind) noexcept nogil:
    """Where a token ends whose first character, a ``kind``, ends at ``p``; NULL where there is none."""
    cdef const char* found = NULL
    cdef const char* after = p
    cdef bint before
    cdef int32_t n = 0
    while n < pattern.least:
        if p >= run_end:
            return NULL
        p = read_kind(pattern, p, end, &kind)
        n += 1
    if pattern.most < 0:
        if not pattern.closes:
            return run_end
        return boundary if boundary != NULL and boundary >= p else NULL
    while True:
        before = (kind & TAKES_WORD) != 0
        if p < end:
            after = read_kind(pattern, p, end, &kind)
        else:
            kind = 0
        if not pattern.closes or before != ((kind & TAKES_WORD) != 0):
            found = p
        if p >= run_end or n == pattern.most:
            return found
        p = after
        n += 1


cdef bint word_before(const TokenPattern* pattern, const char* start, const char* p, const char* end) noexcept nogil:
    """Whether the character that ends at ``p > start`` is a word character."""
    cdef uint8_t kind = 0
    cdef const char* last = p - 1
    while last > start and <uint8_t>last[0] & 0xC0 == 0x80:
        last -= 1
    read_kind(pattern, last, end, &kind)
    return (kind & TAKES_WORD) != 0


cdef inline const char* read_flags(const char* p, const char* end, uint8_t* flags) noexcept nogil:
    cdef uint32_t code
    p = read_character(p, end, &code)
    flags[0] = flags_of(code)
    return p


cdef bint collapse_spaces(Desk* desk, const char* p, const char* end) noexcept nogil:
    """`re.sub(r"\\s\\s+", " ", text)` into `joined`."""
    cdef const char* start
    cdef const char* after = NULL
    cdef uint8_t flags = 0
    cdef size_t spaces
    while p < end:
        start, spaces = p, 0
        while p < end:
            after = read_flags(p, end, &flags)
            if not flags & IS_SPACE:
                break
            spaces += 1
            p = after
        if spaces and not (writer_put(&desk.joined, " ", 1) if spaces > 1
                           else writer_put(&desk.joined, start, p - start)):
            return False
        if p < end:
            if not writer_put(&desk.joined, p, after - p):
                return False
            p = after
    return True


cdef bint note_padded_words(const Analyzer* analyzer, Desk* desk, const char* p, const char* end) noexcept nogil:
    """Each word between spaces, padded with one on both sides; a word shorter than the n-grams counts whole, once."""
    cdef const char* start
    cdef const char* after = NULL
    cdef const char* word_end
    cdef uint8_t flags = 0
    cdef int32_t count
    while p < end:
        start, count = p, 2
        while p < end:
            after = read_flags(p, end, &flags)
            if flags & IS_SPACE:
                break
            count += count < analyzer.shortest
            p = after
        if p > start:
            desk.joined.size = 0
            if not (writer_put(&desk.joined, " ", 1) and writer_put(&desk.joined, start, p - start)
                    and writer_put(&desk.joined, " ", 1)):
                return False
            word_end = desk.joined.data + desk.joined.size
            if count >= analyzer.shortest:
                if not note_characters(analyzer, &desk.tally, desk.joined.data, word_end):
                    return False
            elif not note_feature(analyzer, &desk.tally, desk.joined.data, desk.joined.size,
                                  hash_on(HASH_START, desk.joined.data, desk.joined.size)):
                return False
        if p < end:
            p = after
    return True


cdef bint analyze(const Analyzer* analyzer, Desk* desk, const char* text, size_t size) noexcept nogil:
    """Note every feature of a text; False when there is no memory."""
    cdef bint plain = only_ascii(text, size)
    if not plain and not know_characters(text, size):
        return False
    if analyzer.lower:
        if not (lower_ascii(text, size, &desk.lower) if plain else map_characters(text, size, TO_LOWER, &desk.lower)):
            return False
        text, size = desk.lower.data, desk.lower.size
        if not plain and not know_characters(text, size):
            return False
    if analyzer.strip and not plain:
        if not map_characters(text, size, analyzer.strip, &desk.stripped):
            return False
        text, size = desk.stripped.data, desk.stripped.size
        if not know_characters(text, size):
            return False
    desk.joined.size = desk.n_tokens = 0
    if size == 0:
        return True
    if analyzer.kind == CHARACTERS:
        return (collapse_spaces(desk, text, text + size)
                and note_characters(analyzer, &desk.tally, desk.joined.data, desk.joined.data + desk.joined.size))
    if analyzer.kind == CHARACTERS_IN_WORDS:
        return note_padded_words(analyzer, desk, text, text + size)
    if not (take_runs(analyzer, desk, text, text + size) if analyzer.pattern.runs
            else take_matches(analyzer, desk, text, text + size)):
        return False
    return note_tokens(analyzer, desk)


cdef void desk_close(Desk* desk) noexcept nogil:
    writer_free(&desk.lower)
    writer_free(&desk.stripped)
    writer_free(&desk.joined)
    free(desk.ends)
    free(desk.tally.noted)
    free(desk.tally.columns)
    free(desk.tally.sums)


cdef bint vectorize(const Operation* operation, const Block* block) noexcept nogil:
    """CountVectorizer and HashingVectorizer, but for the norm."""
    cdef const Analyzer* analyzer = <const Analyzer*>operation.table
    cdef const Text* source = texts_of(block, operation.source)
    cdef Vector* target = vector_of(block, operation.target)
    cdef Desk desk
    cdef Py_ssize_t row
    cdef bint done = True
    memset(&desk, 0, sizeof(Desk))
    vector_begin(target, block.rows)
    for row in range(block.rows):
        if source[row].size >= NONE_TEXT:
            done = spoiled(operation, block, BAD_RECORD, SAYS_MISSING, row)
            break
        if not (analyze(analyzer, &desk, source[row].data, source[row].size)
                and tally_close(&desk.tally, analyzer.binary, target, row)):
            done = no_memory(block)
            break
        if analyzer.single and not round_counts(analyzer, target, row):
            done = spoiled(operation, block, BAD_RECORD, SAYS_MANY, row)
            break
    desk_close(&desk)
    return done


cdef bint round_counts(const Analyzer* analyzer, Vector* target, Py_ssize_t row) noexcept nogil:
    """To float32. Counts are rounded; hashed ones are summed in float32 by scikit-learn, which is exact up to 2**24."""
    cdef size_t i
    for i in range(target.starts[row], target.starts[row + 1]):
        if analyzer.vocabulary == NULL and fabs(target.values[i]) >= FLOAT32_COUNTS:
            return False
        target.values[i] = <double><float>target.values[i]
    return True


# ---- load --------------------------------------------------------------------------------------------------------
cdef int64_t compile_analyzer(CompiledProgram program, Operation* operation, dict table) except -1:
    """`table`: the members of a `count` or `hash` step, its token pattern parsed; see preprocessing/patterns.py."""
    cdef Analyzer* analyzer = <Analyzer*>own(program, sizeof(Analyzer))
    if load_acquire(&character_pages[0]) == NULL and not make_page(0):
        raise MemoryError
    analyzer.kind = ("word", "char", "char_wb").index(table["analyzer"])
    analyzer.lower = table["lowercase"]
    analyzer.strip = {None: 0, "unicode": STRIP_UNICODE, "ascii": STRIP_ASCII}[table["strip_accents"]]
    analyzer.shortest, analyzer.longest = table["ngrams"]
    analyzer.binary = table["binary"]
    analyzer.single = operation.single
    if not 1 <= analyzer.shortest <= analyzer.longest:
        raise ConfigurationError("n-grams have one part or more")
    if analyzer.kind == WORDS:
        analyzer.pattern = compile_pattern(program, table["pattern"])
        if table["stop_words"]:
            analyzer.stop_words = compile_terms(program, table["stop_words"])
    operation.table = analyzer
    if table["vocabulary"] is not None:
        analyzer.vocabulary = compile_terms(program, table["vocabulary"])
        return len(table["vocabulary"])
    analyzer.features, analyzer.alternate_sign = checked_features(table["features"]), table["alternate_sign"]
    return analyzer.features


cdef TokenPattern* compile_pattern(CompiledProgram program, parsed) except NULL:
    """``parsed``: a `TokenPattern` of preprocessing/patterns.py."""
    cdef TokenPattern* pattern = <TokenPattern*>own(program, sizeof(TokenPattern))
    cdef uint32_t code
    cdef uint8_t flags
    pattern.opens, pattern.closes, pattern.runs = parsed.opens, parsed.closes, parsed.runs
    pattern.least, pattern.most = parsed.least, -1 if parsed.most is None else parsed.most
    compile_class(program, &pattern.first, parsed.first)
    compile_class(program, &pattern.rest, parsed.rest)
    for code in range(128):
        flags = flags_of(code)
        pattern.ascii[code] = (TAKES_FIRST * class_holds(&pattern.first, code, flags) | TAKES_REST
                               * class_holds(&pattern.rest, code, flags) | TAKES_WORD * ((flags & IS_WORD) != 0))
    return pattern


cdef int compile_class(CompiledProgram program, CharacterClass* kind, parsed) except -1:
    cdef uint32_t* ranges = <uint32_t*>own(program, 2 * len(parsed.ranges) * sizeof(uint32_t))
    cdef dict flags = {"w": IS_WORD, "s": IS_SPACE, "d": IS_DECIMAL}
    cdef Py_ssize_t i
    for letter in parsed.letters:
        if letter.islower():
            kind.within |= <uint8_t>flags[letter]
        else:
            kind.without |= <uint8_t>flags[letter.lower()]
    kind.negated = parsed.negated
    for i in range(len(parsed.ranges)):
        ranges[2 * i], ranges[2 * i + 1] = parsed.ranges[i]
    kind.ranges, kind.n_ranges = ranges, <int32_t>len(parsed.ranges)
    return 0


cdef Terms* compile_terms(CompiledProgram program, terms) except NULL:
    """A table of strings, all different."""
    cdef int64_t count = len(terms), i
    cdef uint64_t size = 4, used = 0, position, hash
    cdef Terms* table = <Terms*>own(program, sizeof(Terms))
    cdef uint64_t* starts = <uint64_t*>own(program, (count + 1) * sizeof(uint64_t))
    cdef const char* data
    cdef Py_ssize_t length
    cdef char* pool
    if count >= 0x7FFFFFFF:
        raise ConfigurationError("a vocabulary has at most 2,147,483,646 terms")
    for i in range(count):
        PyUnicode_AsUTF8AndSize(terms[i], &length)
        starts[i] = used
        used += <uint64_t>length
    starts[count] = used
    pool = <char*>own(program, used)
    while size < 2 * <uint64_t>count:
        size *= 2
    table.mask, table.pool, table.starts = size - 1, pool, starts
    table.slots = <TermSlot*>own(program, size * sizeof(TermSlot))
    for position in range(size):
        table.slots[position].index = -1
    for i in range(count):
        data = PyUnicode_AsUTF8AndSize(terms[i], &length)
        if length:
            memcpy(pool + starts[i], data, <size_t>length)
        hash = hash_on(HASH_START, data, <size_t>length)
        if find_term(table, data, <size_t>length, hash) >= 0:
            raise ConfigurationError(f"the term {terms[i]!r} stands twice")
        position = spread(hash) & table.mask
        while table.slots[position].index >= 0:
            position = (position + 1) & table.mask
        table.slots[position].hash, table.slots[position].index = hash, <int32_t>i
    return table
