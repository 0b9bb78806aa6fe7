# Kernels over several columns of a row: norms, products, projections. Sums go in the order in which numpy (a dense row)
# or scikit-learn's loops over a sparse row go, so that the bits are theirs.
from libc.math cimport fabs, sqrt
from libc.stdint cimport int32_t
from libc.string cimport memset

cdef enum NormKind:
    DENSE_L1, DENSE_L2, LARGEST, SPARSE_L1, SPARSE_L2

cdef int32_t PAIRWISE_BLOCK = 128   # numpy's PW_BLOCKSIZE


cdef inline double value_of(const Operation* operation, const Block* block, Py_ssize_t j, Py_ssize_t i) noexcept nogil:
    """Row i of the operation's source number j."""
    return numbers_of(block, operation.sources[j])[i]


cdef double pairwise_sum(const Operation* operation, const Block* block, Py_ssize_t i, Py_ssize_t first,
                         Py_ssize_t count) noexcept nogil:
    """Sum of absolute values as `numpy.sum` adds a contiguous row: eight accumulators, halves past 128 values.

    numpy/_core/src/umath/loops_utils.h.src, pairwise_sum
    """
    cdef double sums[8]
    cdef double total
    cdef Py_ssize_t j, half
    cdef bint single = operation.single
    if count < 8:
        total = 0.0
        for j in range(first, first + count):
            total = rounded(total + fabs(value_of(operation, block, j, i)), single)
        return total
    if count > PAIRWISE_BLOCK:
        half = count // 2
        half -= half % 8
        return rounded(pairwise_sum(operation, block, i, first, half)
                       + pairwise_sum(operation, block, i, first + half, count - half), single)
    for j in range(8):
        sums[j] = fabs(value_of(operation, block, first + j, i))
    for j in range(8, count - count % 8):
        sums[j % 8] = rounded(sums[j % 8] + fabs(value_of(operation, block, first + j, i)), single)
    for j in range(0, 8, 2):
        sums[j] = rounded(sums[j] + sums[j + 1], single)
    total = rounded(rounded(sums[0] + sums[2], single) + rounded(sums[4] + sums[6], single), single)
    for j in range(count - count % 8, count):
        total = rounded(total + fabs(value_of(operation, block, first + j, i)), single)
    return total


cdef void add_squares(const double* source, double* sums, Py_ssize_t rows, bint single) noexcept nogil:
    cdef Py_ssize_t i
    if single:
        for i in range(rows):
            sums[i] = <double><float>(<double><float>(source[i] * source[i]) + sums[i])
    else:
        for i in range(rows):
            sums[i] += source[i] * source[i]


cdef void euclidean_norms(const Operation* operation, const Block* block, double* norms) noexcept nogil:
    """What `numpy.einsum("ij,ij->i", X, X)` adds with registers of 16 bytes, the fourth of four registers first.

    numpy/_core/src/multiarray/einsum_sumprod.c.src, sum_of_products_contig_contig_outstride0_two
    """
    cdef double sums[4 * BLOCK_ROWS]
    cdef bint single = operation.single
    cdef Py_ssize_t lanes = 4 if single else 2, j = 0, part, lane, i
    cdef double* first = &sums[0]
    memset(first, 0, sizeof(sums))
    while operation.n_sources - j >= 4 * lanes:
        for part in range(3, -1, -1):
            for lane in range(lanes):
                add_squares(numbers_of(block, operation.sources[j + part * lanes + lane]), first + lane * BLOCK_ROWS,
                            block.rows, single)
        j += 4 * lanes
    for part in range(j, operation.n_sources):
        lane = (part - j) % lanes
        add_squares(numbers_of(block, operation.sources[part]), first + lane * BLOCK_ROWS, block.rows, single)
    for i in range(block.rows):
        norms[i] = rounded(sqrt(rounded(rounded(first[i] + first[BLOCK_ROWS + i], single)
                                        + rounded(first[2 * BLOCK_ROWS + i] + first[3 * BLOCK_ROWS + i], single),
                                        single)), single)


cdef void other_norms(const Operation* operation, const Block* block, double* norms) noexcept nogil:
    """The largest value, or what scikit-learn's loops over the stored values of a sparse row add one by one."""
    cdef const double* source
    cdef double value
    cdef Py_ssize_t i, j
    for i in range(block.rows):
        norms[i] = 0.0
    for j in range(operation.n_sources):
        source = numbers_of(block, operation.sources[j])
        for i in range(block.rows):
            value = fabs(source[i])
            if operation.flags == LARGEST:
                norms[i] = max(norms[i], value)
            elif operation.flags == SPARSE_L1:
                norms[i] += value
            else:
                norms[i] += rounded(value * value, operation.single)
    if operation.flags == SPARSE_L2:
        for i in range(block.rows):
            norms[i] = sqrt(norms[i])


cdef bint row_norm(const Operation* operation, const Block* block) noexcept nogil:
    """The norm of each row; 1 where it is below `a`, so that such a row is left as it is."""
    cdef double* target = numbers_of(block, operation.target)
    cdef double norms[BLOCK_ROWS]
    cdef Py_ssize_t i
    if operation.flags == DENSE_L1:
        for i in range(block.rows):
            norms[i] = pairwise_sum(operation, block, i, 0, operation.n_sources)
    elif operation.flags == DENSE_L2:
        euclidean_norms(operation, block, &norms[0])
    else:
        other_norms(operation, block, &norms[0])
    for i in range(block.rows):  # last: the target may take a source's place
        target[i] = 1.0 if norms[i] < operation.a else norms[i]
    return True


cdef bint divide_values(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* first = numbers_of(block, operation.sources[0])
    cdef const double* second = numbers_of(block, operation.sources[1])
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = rounded(first[i] / second[i], operation.single)
    return True


cdef bint multiply_values(const Operation* operation, const Block* block) noexcept nogil:
    """With `flags`, values of a sparse matrix: a factor that is zero is not stored, and the product neither."""
    cdef const double* first = numbers_of(block, operation.sources[0])
    cdef const double* second = numbers_of(block, operation.sources[1])
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        if operation.flags and (first[i] == 0.0 or second[i] == 0.0):
            target[i] = 0.0
        else:
            target[i] = rounded(first[i] * second[i], operation.single)
    return True


cdef bint constant(const Operation* operation, const Block* block) noexcept nogil:
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = operation.a
    return True


cdef bint project(const Operation* operation, const Block* block) noexcept nogil:
    """A matrix product, each sum from the first column to the last. `table`: weights [targets, sources]."""
    cdef const double* weights = <const double*>operation.table
    cdef const double* source
    cdef double* target
    cdef double weight
    cdef Py_ssize_t i, j, k
    for j in range(operation.n_targets):
        target = numbers_of(block, operation.targets[j])
        for i in range(block.rows):
            target[i] = 0.0
        for k in range(operation.n_sources):
            source = numbers_of(block, operation.sources[k])
            weight = weights[j * operation.n_sources + k]
            if operation.single:
                for i in range(block.rows):
                    target[i] = <double><float>(target[i] + <double><float>(weight * source[i]))
            else:
                for i in range(block.rows):
                    target[i] += weight * source[i]
    return True
