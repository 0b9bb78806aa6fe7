# Categories without a vocabulary, and rows of a table: several values hashed into one of so many buckets, and what an
# embedding has for a code.
from libc.math cimport isnan
from libc.stdint cimport int32_t, uint32_t, uint64_t

from fastinfer.errors import ConfigurationError

cdef enum BucketKind:
    BUCKET_NUMBER, BUCKET_INTEGER, BUCKET_TEXT

cdef struct BucketField:
    BucketKind kind
    int32_t register

cdef struct Table:
    const double* values            # row by row, operation.n_targets wide
    int64_t rows


cdef inline uint32_t hashed_field(const BucketField* field, const Block* block, Py_ssize_t i,
                                  uint32_t seed) noexcept nogil:
    """A value's hash after those before it: text as UTF-8, numbers as their 8 bytes, a missing value as no text is."""
    cdef const Text* text
    cdef double number
    cdef uint64_t bits
    if field.kind == BUCKET_TEXT:
        text = texts_of(block, field.register) + i
        return murmur3("\xff", 1, seed) if text.size >= NONE_TEXT else murmur3(text.data, text.size, seed)
    number = numbers_of(block, field.register)[i]
    if field.kind == BUCKET_INTEGER:
        memcpy(&bits, &number, sizeof(double))
    elif isnan(number):
        return murmur3("\xff", 1, seed)
    else:
        bits = number_key(number)
    return murmur3(<const char*>&bits, sizeof(bits), seed)


cdef bint hash_bucket(const Operation* operation, const Block* block) noexcept nogil:
    """The bucket of each row's values taken together. `flags`: how many there are."""
    cdef const BucketField* fields = <const BucketField*>operation.table
    cdef double* target = numbers_of(block, operation.target)
    cdef uint32_t hash
    cdef Py_ssize_t i
    cdef int32_t j
    for i in range(block.rows):
        hash = 0
        for j in range(operation.count):
            hash = hashed_field(&fields[j], block, i, hash)
        target[i] = hash % operation.flags
    return True


cdef bint take_row(const Operation* operation, const Block* block) noexcept nogil:
    """The table's row of each code; the codes are a look-up's, and lie within the table."""
    cdef const Table* table = <const Table*>operation.table
    cdef const double* row
    cdef double code
    cdef Py_ssize_t i
    cdef int32_t j
    for i in range(block.rows):
        code = numbers_of(block, operation.source)[i]
        if not 0.0 <= code < <double>table.rows:
            return spoiled(operation, block, BAD_RECORD, SAYS_RANGE, i)
        row = table.values + <int64_t>code * operation.n_targets
        for j in range(operation.n_targets):
            numbers_of(block, operation.targets[j])[i] = row[j]
    return True


cdef int compile_bucket(CompiledProgram program, Operation* operation, instruction) except -1:
    """`table`: the kind of each source, "number", "integer" or "text"."""
    cdef BucketField* fields = <BucketField*>own(program, len(instruction.sources) * sizeof(BucketField))
    cdef Py_ssize_t i
    kinds = {"number": BUCKET_NUMBER, "integer": BUCKET_INTEGER, "text": BUCKET_TEXT}
    if not operation.flags or not instruction.sources:
        raise ConfigurationError("values are hashed into one bucket or more")
    for i, (kind, register) in enumerate(zip(instruction.table, instruction.sources, strict=True)):
        if not 0 <= register < (program.n_texts if kind == "text" else program.n_numbers):
            raise ConfigurationError(f"{instruction.kernel}: register {register} is out of range")
        fields[i].kind, fields[i].register = kinds[kind], register
    operation.table = fields
    operation.count = <int32_t>len(instruction.sources)
    return 0


cdef int compile_embedding(CompiledProgram program, Operation* operation, values) except -1:
    """`values`: array [rows, width]."""
    cdef cnp.ndarray array = np.ascontiguousarray(values, dtype=np.float64)
    cdef Table* table = <Table*>own(program, sizeof(Table))
    if cnp.PyArray_NDIM(array) != 2 or cnp.PyArray_DIM(array, 1) != operation.n_targets:
        raise ConfigurationError(f"a table of {operation.n_targets} columns is needed")
    program.owned.append(array)
    table.values, table.rows = <const double*>cnp.PyArray_DATA(array), cnp.PyArray_DIM(array, 0)
    operation.table = table
    return 0
