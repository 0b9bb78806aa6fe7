# Kernels over sparse rows ("vectors"): what text becomes before it is features. A vector register holds, for each row
# of the block, ascending columns and their values; a value may be zero and stored, as in scikit-learn's CSR matrices.
cimport numpy as cnp
from libc.math cimport fabs, isinf, isnan, sqrt
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

import numpy as np

from fastinfer.errors import ConfigurationError

cdef enum:
    NORM_L1 = 1, NORM_L2, NORM_MAX
    SUBLINEAR = 1               # a flag of `weigh_vector`

# What `weigh_vector` multiplies by, and numpy's logarithm.
cdef struct Weights:
    UfuncLoop log
    const double* idf           # NULL: none

# A part of a joined vector.
cdef struct JoinPart:
    bint vector
    int32_t register
    int32_t offset


cdef void vector_begin(Vector* vector, Py_ssize_t rows) noexcept nogil:
    """Forget what it held; every row is empty."""
    vector.size = 0
    memset(vector.starts, 0, <size_t>(rows + 1) * sizeof(size_t))


cdef bint vector_reserve(Vector* vector, size_t extra) noexcept nogil:
    cdef size_t need = vector.size + extra
    cdef size_t capacity
    cdef void* grown
    if need <= vector.capacity:
        return True
    capacity = max(need, 2 * vector.capacity, <size_t>64)
    grown = realloc(vector.indices, capacity * sizeof(int32_t))
    if grown == NULL:
        return False
    vector.indices = <int32_t*>grown
    grown = realloc(vector.values, capacity * sizeof(double))
    if grown == NULL:
        return False
    vector.values = <double*>grown
    vector.capacity = capacity
    return True


cdef inline void vector_put(Vector* vector, int32_t index, double value) noexcept nogil:
    """Append to the last row; there is room."""
    vector.indices[vector.size] = index
    vector.values[vector.size] = value
    vector.size += 1


cdef bint vectors_open(Vector* vectors, Py_ssize_t count, Py_ssize_t stride) noexcept nogil:
    """Room for the rows' starts, in zeroed registers; False when there is no memory."""
    cdef Py_ssize_t i
    for i in range(count):
        vectors[i].starts = <size_t*>calloc(<size_t>stride + 1, sizeof(size_t))
        if vectors[i].starts == NULL:
            return False
    return True


cdef void vectors_close(Vector* vectors, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    if vectors != NULL:
        for i in range(count):
            free(vectors[i].starts)
            free(vectors[i].indices)
            free(vectors[i].values)


cdef inline Vector* vector_of(const Block* block, int32_t register) noexcept nogil:
    return block.vectors + register


cdef bint no_memory(const Block* block) noexcept nogil:
    return fail(block.failure, NO_MEMORY, 0, -1, -1, -1)


cdef Vector* vector_copied(const Operation* operation, const Block* block) noexcept nogil:
    """The target with the source's entries, to be changed where they lie; NULL when there is no memory."""
    cdef const Vector* source = vector_of(block, operation.source)
    cdef Vector* target = vector_of(block, operation.target)
    if source == target:
        return target
    vector_begin(target, block.rows)
    if not vector_reserve(target, source.size):
        no_memory(block)
        return NULL
    memcpy(target.starts, source.starts, <size_t>(block.rows + 1) * sizeof(size_t))
    if source.size:
        memcpy(target.indices, source.indices, source.size * sizeof(int32_t))
        memcpy(target.values, source.values, source.size * sizeof(double))
    target.size = source.size
    return target


cdef bint weigh_vector(const Operation* operation, const Block* block) noexcept nogil:
    """TfidfTransformer: 1 + log of each count (`SUBLINEAR`), then the product with its column's idf."""
    cdef const Weights* weights = <const Weights*>operation.table
    cdef Vector* target = vector_copied(operation, block)
    cdef size_t i
    if target == NULL:
        return False
    if operation.flags & SUBLINEAR:
        run_ufunc(&weights.log, target.values, target.size, operation.single)
        for i in range(target.size):
            target.values[i] = rounded(target.values[i] + 1.0, operation.single)
    if weights.idf != NULL:
        for i in range(target.size):
            target.values[i] = rounded(target.values[i] * weights.idf[target.indices[i]], operation.single)
    return True


cdef void run_ufunc(const UfuncLoop* loop, double* values, size_t size, bint single) noexcept nogil:
    """numpy's inner loop over values in place."""
    cdef cnp.npy_intp steps[2]
    cdef char* arguments[2]
    cdef float singles[BLOCK_ROWS]
    cdef cnp.npy_intp part = <cnp.npy_intp>size
    cdef size_t done = 0, i
    if not single:
        steps[0] = steps[1] = sizeof(double)
        arguments[0] = arguments[1] = <char*>values
        if size:
            loop.function(arguments, &part, steps, loop.data)
        return
    steps[0] = steps[1] = sizeof(float)
    while done < size:
        part = <cnp.npy_intp>min(size - done, <size_t>BLOCK_ROWS)
        for i in range(<size_t>part):
            singles[i] = <float>values[done + i]
        arguments[0] = arguments[1] = <char*>singles
        loop.function(arguments, &part, steps, loop.data)
        for i in range(<size_t>part):
            values[done + i] = singles[i]
        done += <size_t>part


cdef bint normalize_vector(const Operation* operation, const Block* block) noexcept nogil:
    """scikit-learn's inplace_csr_row_normalize: sums in float64 from the left, of squares in the matrix's own type."""
    cdef Vector* target = vector_copied(operation, block)
    cdef double total, value
    cdef Py_ssize_t row
    cdef size_t i
    if target == NULL:
        return False
    for row in range(block.rows):
        total = 0.0
        for i in range(target.starts[row], target.starts[row + 1]):
            value = target.values[i]
            if operation.flags == NORM_L2:
                total += rounded(value * value, operation.single)
            elif operation.flags == NORM_L1:
                total += fabs(value)
            else:
                total = max(total, fabs(value))
        if total == 0.0:
            continue
        if operation.flags == NORM_L2:
            total = sqrt(total)
        for i in range(target.starts[row], target.starts[row + 1]):
            target.values[i] = rounded(target.values[i] / total, operation.single)
    return True


cdef bint scale_vector(const Operation* operation, const Block* block) noexcept nogil:
    """A product with one number, or (`table`) with a number for each column."""
    cdef const double* by = <const double*>operation.table
    cdef Vector* target = vector_copied(operation, block)
    cdef size_t i
    if target == NULL:
        return False
    for i in range(target.size):
        target.values[i] = rounded(target.values[i] * (by[target.indices[i]] if by != NULL else operation.a),
                                   operation.single)
    return True


cdef bint clip_vector(const Operation* operation, const Block* block) noexcept nogil:
    cdef Vector* target = vector_copied(operation, block)
    cdef size_t i
    if target == NULL:
        return False
    for i in range(target.size):
        if not isnan(target.values[i]):
            target.values[i] = min(max(target.values[i], operation.a), operation.b)
    return True


cdef bint pick_vector(const Operation* operation, const Block* block) noexcept nogil:
    """`table`: the new column of each column, ascending, or -1."""
    cdef const int32_t* columns = <const int32_t*>operation.table
    cdef const Vector* source = vector_of(block, operation.source)
    cdef Vector* target = vector_of(block, operation.target)
    cdef size_t i, begin = 0, end
    cdef Py_ssize_t row
    cdef int32_t column
    if source != target:
        vector_begin(target, block.rows)
        if not vector_reserve(target, source.size):
            return no_memory(block)
    target.size = 0
    for row in range(block.rows):  # what is written lies never past what is read, so both may be one register
        end = source.starts[row + 1]
        for i in range(begin, end):
            column = columns[source.indices[i]]
            if column >= 0:
                vector_put(target, column, source.values[i])
        target.starts[row + 1] = target.size
        begin = end
    return True


cdef bint join_vectors(const Operation* operation, const Block* block) noexcept nogil:
    """Vectors and numbers side by side; of numbers, those that are not zero are stored."""
    cdef const JoinPart* parts = <const JoinPart*>operation.table
    cdef Vector* target = vector_of(block, operation.target)
    cdef const Vector* source
    cdef double value
    cdef Py_ssize_t row
    cdef size_t k
    cdef int32_t i
    vector_begin(target, block.rows)
    for row in range(block.rows):
        for i in range(operation.count):
            if parts[i].vector:
                source = vector_of(block, parts[i].register)
                if not vector_reserve(target, source.starts[row + 1] - source.starts[row]):
                    return no_memory(block)
                for k in range(source.starts[row], source.starts[row + 1]):
                    vector_put(target, source.indices[k] + parts[i].offset, source.values[k])
                continue
            value = numbers_of(block, parts[i].register)[row]
            if value != 0.0:
                if not vector_reserve(target, 1):
                    return no_memory(block)
                vector_put(target, parts[i].offset, value)
        target.starts[row + 1] = target.size
    return True


cdef bint dot_vector(const Operation* operation, const Block* block) noexcept nogil:
    """The sum of the products with `table`, from the left as scipy does it, plus `a`."""
    cdef const double* weights = <const double*>operation.table
    cdef const Vector* source = vector_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef double total
    cdef Py_ssize_t row
    cdef size_t i
    for row in range(block.rows):
        total = 0.0
        for i in range(source.starts[row], source.starts[row + 1]):
            total += source.values[i] * weights[source.indices[i]]
        target[row] = total + operation.a
    return True


cdef bint vector_column(const Operation* operation, const Block* block) noexcept nogil:
    """One column as a number: column `count`."""
    cdef const Vector* source = vector_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef size_t low, high, middle
    cdef Py_ssize_t row
    for row in range(block.rows):
        low, high = source.starts[row], source.starts[row + 1]
        while low < high:
            middle = (low + high) // 2
            if source.indices[middle] < operation.count:
                low = middle + 1
            else:
                high = middle
        target[row] = 0.0
        if low < source.starts[row + 1] and source.indices[low] == operation.count:
            target[row] = source.values[low] + 0.0  # a stored -0.0 is 0.0 in a dense array
    return True


cdef bint check_vector(const Operation* operation, const Block* block) noexcept nogil:
    """Refuse what is not finite (`a` is 0), or infinite (1), or either after the cast to float32 (`single`)."""
    cdef const Vector* source = vector_of(block, operation.source)
    cdef double value
    cdef Py_ssize_t row
    cdef size_t i
    for row in range(block.rows):
        for i in range(source.starts[row], source.starts[row + 1]):
            value = rounded(source.values[i], operation.single)
            if isinf(value) or (operation.a == 0.0 and isnan(value)):
                return spoiled(operation, block, BAD_RECORD, SAYS_MISSING if isnan(value) else SAYS_INFINITE, row)
    return True


cdef bint store_vector_float64(const Operation* operation, const Block* block) noexcept nogil:
    """Into a row that was zeroed. `table`: the output column of each column, or -1; without it they lie in order."""
    cdef const int32_t* columns = <const int32_t*>operation.table
    cdef const Vector* source = vector_of(block, operation.source)
    cdef double* out
    cdef Py_ssize_t row
    cdef int32_t column
    cdef size_t i
    for row in range(block.rows):
        out = <double*>block.out + row * block.width
        for i in range(source.starts[row], source.starts[row + 1]):
            column = columns[source.indices[i]] if columns != NULL else source.indices[i] + operation.target
            if column >= 0:
                out[column] = source.values[i] + 0.0
    return True


cdef bint store_vector_float32(const Operation* operation, const Block* block) noexcept nogil:
    cdef const int32_t* columns = <const int32_t*>operation.table
    cdef const Vector* source = vector_of(block, operation.source)
    cdef float* out
    cdef Py_ssize_t row
    cdef int32_t column
    cdef size_t i
    for row in range(block.rows):
        out = <float*>block.out + row * block.width
        for i in range(source.starts[row], source.starts[row + 1]):
            column = columns[source.indices[i]] if columns != NULL else source.indices[i] + operation.target
            if column >= 0:
                out[column] = <float>(source.values[i] + 0.0)
    return True


# ---- the sparse output: each store has a twin that appends entries ---------------------------------------------------
cdef bint enter_number(const Operation* operation, const Block* block) noexcept nogil:
    """What is not zero; a number that becomes zero as a float32 stays, as `astype` leaves it."""
    cdef const double* source = numbers_of(block, operation.source)
    cdef Py_ssize_t row
    for row in range(block.rows):
        if source[row] != 0.0 and not put_entry(block, row, operation.target, source[row]):
            return False
    return True


cdef bint enter_hot(const Operation* operation, const Block* block) noexcept nogil:
    cdef const int32_t* columns = <const int32_t*>operation.table
    cdef const double* source = numbers_of(block, operation.source)
    cdef int32_t code
    cdef Py_ssize_t row
    for row in range(block.rows):
        code = <int32_t>source[row]
        if 0 <= code < operation.count and columns[code] >= 0 and not put_entry(block, row, columns[code], 1.0):
            return False
    return True


cdef bint enter_vector(const Operation* operation, const Block* block) noexcept nogil:
    cdef const int32_t* columns = <const int32_t*>operation.table
    cdef const Vector* source = vector_of(block, operation.source)
    cdef int32_t column
    cdef Py_ssize_t row
    cdef size_t i
    for row in range(block.rows):
        for i in range(source.starts[row], source.starts[row + 1]):
            column = columns[source.indices[i]] if columns != NULL else source.indices[i] + operation.target
            if column >= 0 and not put_entry(block, row, column, source.values[i]):
                return False
    return True


# ---- load --------------------------------------------------------------------------------------------------------
cdef int compile_vector(CompiledProgram program, Operation* operation, instruction) except -1:
    """Check widths, so that no column of a vector lies outside a table or the output, and make the tables.

    Each vector register's width is followed from operation to operation, in the order in which they run.
    """
    cdef int64_t width = 0
    kernel, table = instruction.kernel, instruction.table
    if kernel in ("count_text", "hash_text", "hash_words", "hash_fields", "join_vectors"):
        program.widths[operation.target] = compile_source(program, operation, instruction)
        return 0
    width = program.widths[operation.source]
    if kernel == "weigh_vector":
        compile_weights(program, operation, table, width)
    elif kernel == "scale_vector" and table is not None:
        operation.table = <void*>checked_floats(program, table, width)
    elif kernel == "pick_vector":
        program.widths[operation.target] = compile_picks(program, operation, table, width)
        return 0
    elif kernel == "dot_vector":
        operation.table = <void*>checked_floats(program, table, width)
        return 0
    elif kernel == "vector_column":
        if not 0 <= table < width:
            raise ConfigurationError(f"column {table} of a vector of {width}")
        operation.count = table
        return 0
    elif kernel in ("store_vector_float32", "store_vector_float64"):
        return compile_store(program, operation, table, width)
    if kernel != "check_vector":
        program.widths[operation.target] = width
    return 0


cdef int64_t compile_source(CompiledProgram program, Operation* operation, instruction) except -1:
    if instruction.kernel == "join_vectors":
        return compile_join(program, operation, instruction)
    if instruction.kernel in ("hash_words", "hash_fields"):
        return compile_hasher(program, operation, instruction)
    return compile_analyzer(program, operation, instruction.table)


cdef const double* checked_floats(CompiledProgram program, values, int64_t count) except NULL:
    """An array of float64 that lives as long as the program."""
    cdef cnp.ndarray array = np.ascontiguousarray(values, dtype=np.float64)
    if cnp.PyArray_NDIM(array) != 1 or cnp.PyArray_DIM(array, 0) != count:
        raise ConfigurationError(f"{count} numbers are needed for a vector of that width")
    program.owned.append(array)
    return <const double*>cnp.PyArray_DATA(array)


cdef int compile_weights(CompiledProgram program, Operation* operation, table, int64_t width) except -1:
    cdef Weights* weights = <Weights*>own(program, sizeof(Weights))
    compile_function(program, operation, np.log, &weights.log)
    if table is not None:
        weights.idf = checked_floats(program, table, width)
    operation.table = weights
    return 0


cdef int64_t compile_picks(CompiledProgram program, Operation* operation, table, int64_t width) except -1:
    cdef int32_t* columns = <int32_t*>own(program, width * sizeof(int32_t))
    cdef int64_t last = -1, position
    cdef int32_t count = 0
    memset(columns, 0xFF, width * sizeof(int32_t))
    for position in table:
        if not last < position < width:
            raise ConfigurationError("positions ascend, and lie within the vector")
        columns[position] = count
        count += 1
        last = position
    operation.table = columns
    return count


cdef int64_t compile_join(CompiledProgram program, Operation* operation, instruction) except -1:
    """`table`: whether each of the sources is a vector."""
    cdef JoinPart* parts = <JoinPart*>own(program, len(instruction.sources) * sizeof(JoinPart))
    cdef int64_t width = 0
    cdef Py_ssize_t i
    for i, (vector, register) in enumerate(zip(instruction.table, instruction.sources, strict=True)):
        if not 0 <= register < (program.n_vectors if vector else program.n_numbers):
            raise ConfigurationError(f"join_vectors: register {register} is out of range")
        if vector and register == operation.target:
            raise ConfigurationError("join_vectors: it cannot write what it reads")
        parts[i].vector, parts[i].register, parts[i].offset = vector, register, <int32_t>width
        width += program.widths[register] if vector else 1
        if width > 0x7FFFFFFF:
            raise ConfigurationError("a vector has at most 2,147,483,647 columns")
    operation.table = parts
    operation.count = <int32_t>len(instruction.sources)
    return width


cdef int compile_store(CompiledProgram program, Operation* operation, table, int64_t width) except -1:
    cdef int32_t* columns
    cdef int64_t i
    program.sparse = True
    if table is None:
        if operation.target + width > program.width:
            raise ConfigurationError("a vector reaches past the output")
        return 0
    if len(table) != width:
        raise ConfigurationError(f"{len(table)} output columns for a vector of {width}")
    columns = <int32_t*>own(program, width * sizeof(int32_t))
    for i in range(width):
        if not -1 <= table[i] < program.width:
            raise ConfigurationError(f"output column {table[i]} is out of range")
        columns[i] = table[i]
    operation.table = columns
    return 0
