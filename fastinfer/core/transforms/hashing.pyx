# The hashing trick: names to columns by MurmurHash3, and the sums of what falls into one column.
from libc.math cimport isnan
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from fastinfer.errors import ConfigurationError

cdef extern from *:
    """
    #include <algorithm>
    #include <utility>
    static inline void sort_words(uint32_t* words, size_t size) { std::sort(words, words + size); }
    // scipy's own sort of a row, so that equal columns are added up in its order.
    static inline void sort_pairs(std::pair<int32_t, double>* pairs, size_t size) {
        std::sort(pairs, pairs + size, [](const std::pair<int32_t, double>& a, const std::pair<int32_t, double>& b) {
            return a.first < b.first;
        });
    }
    """
    cdef cppclass Pair "std::pair<int32_t, double>":
        int32_t first
        double second
    void sort_words(uint32_t* words, size_t size) noexcept nogil
    void sort_pairs(Pair* pairs, size_t size) noexcept nogil

cdef enum:
    TALLY_WORDS = 1 << 16       # features noted before they are added up

# Features of one row: column << 1 | whether it counts down. They are sorted and added up whenever there are as many
# new ones as different ones, so that memory follows what is different and time stays n log n.
cdef struct Tally:
    uint32_t* noted
    size_t n_noted
    size_t room
    int32_t* columns
    int64_t* sums
    size_t size
    size_t capacity

cdef struct HashedField:
    bint text
    int32_t register
    int32_t column                  # of the numbers' name
    bint negative
    const char* name                # with its "="
    size_t name_size

cdef struct Hasher:
    HashedField* fields
    uint32_t features
    bint alternate_sign


# ---- adding up ---------------------------------------------------------------------------------------------------
cdef inline bint tally_note(Tally* tally, uint32_t word) noexcept nogil:
    if tally.n_noted == tally.room and not tally_make_room(tally):
        return False
    tally.noted[tally.n_noted] = word
    tally.n_noted += 1
    return True


cdef bint tally_make_room(Tally* tally) noexcept nogil:
    cdef size_t room = max(2 * tally.room, <size_t>256)
    cdef void* grown
    if tally.n_noted >= max(<size_t>TALLY_WORDS, tally.size):
        if not tally_merge(tally):
            return False
        if tally.n_noted < tally.room:
            return True
    grown = realloc(tally.noted, room * sizeof(uint32_t))
    if grown == NULL:
        return False
    tally.noted = <uint32_t*>grown
    tally.room = room
    return True


cdef bint tally_merge(Tally* tally) noexcept nogil:
    """Add up what was noted: different columns, ascending, and their sums."""
    cdef size_t distinct = 0, i, read, write, end
    cdef void* grown
    cdef int32_t column
    cdef int64_t total
    if tally.n_noted == 0:
        return True
    sort_words(tally.noted, tally.n_noted)
    for i in range(tally.n_noted):
        distinct += i == 0 or tally.noted[i] >> 1 != tally.noted[i - 1] >> 1
    if tally.size + distinct > tally.capacity:
        i = max(tally.size + distinct, 2 * tally.capacity)
        grown = realloc(tally.columns, i * sizeof(int32_t))
        if grown == NULL:
            return False
        tally.columns = <int32_t*>grown
        grown = realloc(tally.sums, i * sizeof(int64_t))
        if grown == NULL:
            return False
        tally.sums = <int64_t*>grown
        tally.capacity = i
    # From the back, so that one pass in place merges the old (at the front) with the noted.
    end = tally.size + distinct
    read, write, i = tally.size, end, tally.n_noted
    while i:
        column = <int32_t>(tally.noted[i - 1] >> 1)
        total = 0
        while i and <int32_t>(tally.noted[i - 1] >> 1) == column:
            total += -1 if tally.noted[i - 1] & 1 else 1
            i -= 1
        while read and tally.columns[read - 1] > column:
            read -= 1
            write -= 1
            tally.columns[write], tally.sums[write] = tally.columns[read], tally.sums[read]
        write -= 1
        if read and tally.columns[read - 1] == column:
            read -= 1
            total += tally.sums[read]
        tally.columns[write], tally.sums[write] = column, total
    if read != write:  # columns that were in both leave a gap between the rest of the old and the merged
        memmove(tally.columns + read, tally.columns + write, (end - write) * sizeof(int32_t))
        memmove(tally.sums + read, tally.sums + write, (end - write) * sizeof(int64_t))
    tally.size = read + end - write
    tally.n_noted = 0
    return True


cdef bint tally_close(Tally* tally, bint binary, Vector* target, Py_ssize_t row) noexcept nogil:
    """The row's sums to the end of the target, and an empty tally."""
    cdef size_t i
    if not tally_merge(tally) or not vector_reserve(target, tally.size):
        return False
    for i in range(tally.size):
        vector_put(target, tally.columns[i], 1.0 if binary else <double>tally.sums[i])
    target.starts[row + 1] = target.size
    tally.size = 0
    return True


# ---- names ------------------------------------------------------------------------------------------------------
cdef inline uint32_t rotate(uint32_t value, int bits) noexcept nogil:
    return value << bits | value >> (32 - bits)


cdef uint32_t murmur3(const char* data, size_t size, uint32_t seed) noexcept nogil:
    """MurmurHash3_x86_32, by Austin Appleby, who put it in the public domain."""
    cdef uint32_t hash = seed, block
    cdef size_t i
    for i in range(size // 4):
        memcpy(&block, data + 4 * i, 4)
        block = rotate(block * <uint32_t>0xCC9E2D51, 15) * <uint32_t>0x1B873593
        hash = rotate(hash ^ block, 13) * 5 + <uint32_t>0xE6546B64
    block = 0
    data += size & ~<size_t>3
    if size & 3 == 3:
        block ^= <uint32_t><uint8_t>data[2] << 16
    if size & 3 >= 2:
        block ^= <uint32_t><uint8_t>data[1] << 8
    if size & 3:
        block ^= <uint32_t><uint8_t>data[0]
        hash ^= rotate(block * <uint32_t>0xCC9E2D51, 15) * <uint32_t>0x1B873593
    hash ^= <uint32_t>size
    hash = (hash ^ hash >> 16) * <uint32_t>0x85EBCA6B
    hash = (hash ^ hash >> 13) * <uint32_t>0xC2B2AE35
    return hash ^ hash >> 16


cdef inline uint32_t hashed_word(const char* data, size_t size, uint32_t features, bint alternate_sign) noexcept nogil:
    """The column of a feature's name as FeatureHasher folds it, << 1 | whether its sign is negative."""
    cdef int32_t hash = <int32_t>murmur3(data, size, 0)
    cdef uint32_t column
    if hash == -2147483647 - 1:
        column = (2147483647 - (features - 1)) % features
    else:
        column = <uint32_t>(hash if hash >= 0 else -hash) % features
    return column << 1 | <uint32_t>(alternate_sign and hash < 0)


cdef bint hash_words(const Operation* operation, const Block* block) noexcept nogil:
    """`input_type="string"`: each of a row's texts is the name of a feature that is 1."""
    cdef const Hasher* hasher = <const Hasher*>operation.table
    cdef Vector* target = vector_of(block, operation.target)
    cdef const Text* text
    cdef Desk desk
    cdef Py_ssize_t row
    cdef int32_t i
    cdef bint done = True
    memset(&desk, 0, sizeof(Desk))
    vector_begin(target, block.rows)
    for row in range(block.rows):
        for i in range(operation.count):
            text = texts_of(block, hasher.fields[i].register) + row
            if text.size >= NONE_TEXT:
                done = fail(block.failure, BAD_RECORD, SAYS_MISSING, -1, hasher.fields[i].column, block.offset + row)
                break
            if not tally_note(&desk.tally, hashed_word(text.data, text.size, hasher.features, hasher.alternate_sign)):
                done = no_memory(block)
                break
        if done and not tally_close(&desk.tally, False, target, row):
            done = no_memory(block)
        if not done:
            break
    desk_close(&desk)
    return done


cdef bint hash_fields(const Operation* operation, const Block* block) noexcept nogil:
    """`input_type="dict"`: a number under its field's name, a text as the feature `name=text`; missing is absent."""
    cdef const Hasher* hasher = <const Hasher*>operation.table
    cdef Vector* target = vector_of(block, operation.target)
    cdef Pair* pairs = <Pair*>malloc(<size_t>(operation.count + 1) * sizeof(Pair))
    cdef Writer name = Writer(NULL, 0, 0)
    cdef Py_ssize_t row
    cdef int32_t count
    cdef bint done = pairs != NULL
    vector_begin(target, block.rows)
    for row in range(block.rows):
        if done:
            count = hash_row(hasher, operation, block, row, pairs, &name)
            done = count >= 0 and vector_reserve(target, count)
        if not done:
            break
        add_pairs(pairs, count, target, operation.single)
        target.starts[row + 1] = target.size
    free(pairs)
    writer_free(&name)
    return done or no_memory(block)


cdef int32_t hash_row(const Hasher* hasher, const Operation* operation, const Block* block, Py_ssize_t row,
                      Pair* pairs, Writer* name) noexcept nogil:
    """The columns and values of one row, in the order of its fields; -1 when there is no memory."""
    cdef const HashedField* field
    cdef const Text* text
    cdef double value
    cdef uint32_t word
    cdef int32_t count = 0, i
    for i in range(operation.count):
        field = &hasher.fields[i]
        if not field.text:
            value = numbers_of(block, field.register)[row]
            if value == 0.0 or isnan(value):
                continue
            pairs[count].first = field.column
            pairs[count].second = rounded(-value if field.negative else value, operation.single)
            count += 1
            continue
        text = texts_of(block, field.register) + row
        if text.size >= NONE_TEXT:
            continue
        name.size = 0
        if not writer_put(name, field.name, field.name_size) or not writer_put(name, text.data, text.size):
            return -1
        word = hashed_word(name.data, name.size, hasher.features, hasher.alternate_sign)
        pairs[count].first = <int32_t>(word >> 1)
        pairs[count].second = -1.0 if word & 1 else 1.0
        count += 1
    return count


cdef void add_pairs(Pair* pairs, int32_t count, Vector* target, bint single) noexcept nogil:
    """Sort by column and add up what shares one, as scipy's sum_duplicates."""
    cdef int32_t i = 0, column
    cdef double total
    cdef bint ascending = True
    for i in range(1, count):
        ascending = ascending and pairs[i - 1].first <= pairs[i].first
    if not ascending:
        sort_pairs(pairs, count)
    i = 0
    while i < count:
        column, total = pairs[i].first, pairs[i].second
        i += 1
        while i < count and pairs[i].first == column:
            total = rounded(total + pairs[i].second, single)
            i += 1
        vector_put(target, column, total)


# ---- load --------------------------------------------------------------------------------------------------------
cdef uint32_t checked_features(features) except? 0:
    if not 0 < features <= 0x7FFFFFFF:
        raise ConfigurationError(f"{features} features; a hash is folded into 1 to 2,147,483,647")
    return features


cdef int64_t compile_hasher(CompiledProgram program, Operation* operation, instruction) except -1:
    """`table`: features, alternate_sign, and fields: (whether it is text, raw column, name) of each source."""
    cdef dict table = instruction.table
    cdef Hasher* hasher = <Hasher*>own(program, sizeof(Hasher))
    cdef HashedField* field
    cdef uint32_t word
    cdef Text text
    cdef Py_ssize_t i
    hasher.fields = <HashedField*>own(program, len(instruction.sources) * sizeof(HashedField))
    hasher.features, hasher.alternate_sign = checked_features(table["features"]), table["alternate_sign"]
    for i, ((is_text, column, name), register) in enumerate(zip(table["fields"], instruction.sources, strict=True)):
        if not 0 <= register < (program.n_texts if is_text else program.n_numbers):
            raise ConfigurationError(f"{instruction.kernel}: register {register} is out of range")
        field = &hasher.fields[i]
        field.text, field.register, field.column = is_text, register, column
        if name is None:
            continue
        put_text(program, &text, name + "=" if is_text else name)
        field.name, field.name_size = text.data, text.size
        if not is_text:
            word = hashed_word(text.data, text.size, hasher.features, hasher.alternate_sign)
            field.column, field.negative = <int32_t>(word >> 1), word & 1
    operation.table = hasher
    operation.count = <int32_t>len(instruction.sources)
    return hasher.features
