# Kernels over numbers. Each computes in float64 in scikit-learn's order of operations and rounds to float32 where
# scikit-learn's array is float32. The sum, difference, product and quotient of two float32 computed in float64 and
# rounded once more are the float32 results exactly (53 >= 2 * 24 + 2 bits).
cimport numpy as cnp
from libc.math cimport isinf, isnan
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy

cdef enum ProgramReason:
    SAYS_MISSING = 1, SAYS_INFINITE, SAYS_TOO_LARGE, SAYS_UNKNOWN, SAYS_RANGE, SAYS_TIME, SAYS_YEAR


cdef inline double* numbers_of(const Block* block, int32_t register) noexcept nogil:
    return block.numbers + register * block.stride


cdef inline double rounded(double value, bint single) noexcept nogil:
    return <double><float>value if single else value


cdef bint spoiled(const Operation* operation, const Block* block, Fault fault, int reason, Py_ssize_t i) noexcept nogil:
    """Name the column and the request's row, and return False."""
    return fail(block.failure, fault, reason, -1, operation.column, block.offset + i)


cdef bint load_float64(const Operation* operation, const Block* block) noexcept nogil:
    memcpy(numbers_of(block, operation.target), block.slabs[operation.source].data + block.row * sizeof(double),
           block.rows * sizeof(double))
    return True


cdef bint load_float32(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* values = <const double*>block.slabs[operation.source].data + block.row
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = <double><float>values[i]
    return True


cdef bint load_bool(const Operation* operation, const Block* block) noexcept nogil:
    cdef const uint8_t* values = <const uint8_t*>block.slabs[operation.source].data + block.row
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = 1.0 if values[i] else 0.0
    return True


cdef bint from_integer(const Operation* operation, const Block* block) noexcept nogil:
    """int64 to the nearest float64, or straight to the nearest float32."""
    cdef const int64_t* source = <const int64_t*>numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = <double><float>source[i] if operation.single else <double>source[i]
    return True


cdef bint round_float32(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = <double><float>source[i]
    return True


cdef bint check_finite(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef Py_ssize_t i
    for i in range(block.rows):
        if source[i] - source[i] != 0.0:
            return spoiled(operation, block, BAD_RECORD, SAYS_MISSING if isnan(source[i]) else SAYS_INFINITE, i)
    return True


cdef bint check_not_infinite(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef Py_ssize_t i
    for i in range(block.rows):
        if isinf(source[i]):
            return spoiled(operation, block, BAD_RECORD, SAYS_INFINITE, i)
    return True


cdef bint check_finite_float32(const Operation* operation, const Block* block) noexcept nogil:
    """The same after the cast to float32, which may overflow."""
    cdef const double* source = numbers_of(block, operation.source)
    cdef float value
    cdef Py_ssize_t i
    for i in range(block.rows):
        value = <float>source[i]
        if value - value != 0.0:
            return spoiled(operation, block, BAD_RECORD, SAYS_MISSING if isnan(source[i]) else SAYS_TOO_LARGE, i)
    return True


cdef bint check_not_infinite_float32(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef Py_ssize_t i
    for i in range(block.rows):
        if isinf(<float>source[i]):
            return spoiled(operation, block, BAD_RECORD, SAYS_TOO_LARGE, i)
    return True


cdef bint subtract(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = rounded(source[i] - operation.a, operation.single)
    return True


cdef bint add(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = rounded(source[i] + operation.a, operation.single)
    return True


cdef bint multiply(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = rounded(source[i] * operation.a, operation.single)
    return True


cdef bint divide(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = rounded(source[i] / operation.a, operation.single)
    return True


cdef bint clip(const Operation* operation, const Block* block) noexcept nogil:
    """numpy.clip: a missing value stays, and so does a value that equals a bound (-0.0 at 0.0)."""
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef double value
    cdef Py_ssize_t i
    for i in range(block.rows):
        value = operation.a if source[i] < operation.a else source[i]
        target[i] = operation.b if value > operation.b else value
    return True


cdef bint fill_missing(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = operation.b if isnan(source[i]) else source[i]
    return True


cdef bint fill_equal(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = operation.b if source[i] == operation.a else source[i]
    return True


cdef bint is_missing(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = 1.0 if isnan(source[i]) else 0.0
    return True


cdef bint is_equal(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = 1.0 if source[i] == operation.a else 0.0
    return True


cdef bint is_above(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = 1.0 if source[i] > operation.a else 0.0
    return True


cdef bint bucketize(const Operation* operation, const Block* block) noexcept nogil:
    """How many edges are at or below the value: numpy.searchsorted(edges, value, side="right")."""
    cdef const double* edges = <const double*>operation.table
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef int32_t low, high, middle
    cdef Py_ssize_t i
    for i in range(block.rows):
        low, high = 0, operation.count
        while low < high:
            middle = (low + high) // 2
            if edges[middle] <= source[i]:
                low = middle + 1
            else:
                high = middle
        target[i] = low
    return True


ctypedef void (*UfuncFunction)(char** arguments, cnp.npy_intp* size, cnp.npy_intp* steps, void* data) noexcept nogil

cdef struct UfuncLoop:
    UfuncFunction function
    void* data


cdef void run_loop(const UfuncLoop* loop, double* source, double* target, cnp.npy_intp size,
                   bint single) noexcept nogil:
    """numpy's own inner loop, so that the bits are numpy's, whatever vector code it chose for this machine."""
    cdef float singles[BLOCK_ROWS]
    cdef cnp.npy_intp steps[2]
    cdef char* arguments[2]
    cdef Py_ssize_t i
    if not single:
        steps[0] = steps[1] = sizeof(double)
        arguments[0], arguments[1] = <char*>source, <char*>target
        loop.function(arguments, &size, steps, loop.data)
        return
    for i in range(size):
        singles[i] = <float>source[i]
    steps[0] = steps[1] = sizeof(float)
    arguments[0] = arguments[1] = <char*>singles
    loop.function(arguments, &size, steps, loop.data)
    for i in range(size):
        target[i] = singles[i]


cdef bint apply_function(const Operation* operation, const Block* block) noexcept nogil:
    """A numpy function. `table`: its loop."""
    run_loop(<const UfuncLoop*>operation.table, numbers_of(block, operation.source),
             numbers_of(block, operation.target), block.rows, operation.single)
    return True


cdef bint store_float64(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* out = <double*>block.out + operation.target
    cdef Py_ssize_t i
    for i in range(block.rows):
        out[i * block.width] = source[i]
    return True


cdef bint store_float32(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef float* out = <float*>block.out + operation.target
    cdef Py_ssize_t i
    for i in range(block.rows):
        out[i * block.width] = <float>source[i]
    return True
