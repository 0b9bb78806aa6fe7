# The sparse output: a block's entries as the stores make them, and the rows that they become.
cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

cdef extern from *:
    """
    #include <algorithm>
    template <typename E> static inline void sort_by_column(E* entries, size_t size) {
        std::sort(entries, entries + size, [](const E& a, const E& b) { return a.column < b.column; });
    }
    """
    void sort_by_column(Entry* entries, size_t size) noexcept nogil

cdef size_t FEW_ENTRIES = 24    # of a row, that are put in order one by one


cdef inline bint put_entry(const Block* block, Py_ssize_t row, int32_t column, double value) noexcept nogil:
    cdef Entries* entries = block.entries
    cdef Entry* entry
    if entries.size == entries.capacity and not entries_grow(entries):
        return no_memory(block)
    entry = &entries.data[entries.size]
    entry.row, entry.column, entry.value = <int32_t>row, column, value
    entries.size += 1
    return True


cdef bint entries_grow(Entries* entries) noexcept nogil:
    cdef size_t capacity = max(<size_t>256, 2 * entries.capacity)
    cdef void* grown = realloc(entries.data, capacity * sizeof(Entry))
    if grown == NULL:
        return False
    entries.data, entries.capacity = <Entry*>grown, capacity
    return True


cdef bint sparse_reserve(SparseRows* rows, size_t extra) noexcept nogil:
    cdef size_t need = rows.size + extra, capacity
    cdef void* grown
    if need <= rows.capacity:
        return True
    capacity = max(need, 2 * rows.capacity)
    grown = realloc(rows.values, capacity * sizeof(double))
    if grown == NULL:
        return False
    rows.values = <double*>grown
    grown = realloc(rows.columns, capacity * sizeof(int32_t))
    if grown == NULL:
        return False
    rows.columns, rows.capacity = <int32_t*>grown, capacity
    return True


cdef bint sparse_append(SparseRows* rows, Entries* entries, const Block* block) noexcept nogil:
    """A block's entries as its rows, each one's columns ascending; and forget them."""
    cdef size_t places[BLOCK_ROWS + 1]
    cdef size_t i, k, begin = rows.size
    cdef const Entry* entry
    if not sparse_reserve(rows, entries.size):
        return no_memory(block)
    memset(places, 0, sizeof(places))
    for i in range(entries.size):
        places[entries.data[i].row + 1] += 1
    for i in range(<size_t>block.rows):
        places[i + 1] += places[i]
        rows.ends[<size_t>block.offset + i] = <int64_t>(begin + places[i + 1])
    for i in range(entries.size):   # a counting sort: what stood in order stays so
        entry = &entries.data[i]
        k = begin + places[entry.row]
        places[entry.row] += 1
        rows.values[k], rows.columns[k] = entry.value, entry.column
    rows.size += entries.size
    for i in range(<size_t>block.rows):
        k = <size_t>rows.ends[<size_t>block.offset + i]
        order_row(rows, begin, k, entries)
        begin = k
    entries.size = 0
    return True


cdef void order_row(SparseRows* rows, size_t begin, size_t end, Entries* spare) noexcept nogil:
    """Mostly it is in order: the stores run by their columns."""
    cdef size_t i, k
    cdef int32_t column
    cdef double value
    cdef bint many = end - begin > FEW_ENTRIES
    for i in range(begin + 1, end):
        column, value = rows.columns[i], rows.values[i]
        if rows.columns[i - 1] < column:
            continue
        if many:
            break
        k = i
        while k > begin and rows.columns[k - 1] > column:
            rows.columns[k], rows.values[k] = rows.columns[k - 1], rows.values[k - 1]
            k -= 1
        rows.columns[k], rows.values[k] = column, value
    else:
        return
    for i in range(end - begin):    # the block has no fewer entries than its row
        spare.data[i].column, spare.data[i].value = rows.columns[begin + i], rows.values[begin + i]
    sort_by_column(spare.data, end - begin)
    for i in range(end - begin):
        rows.columns[begin + i], rows.values[begin + i] = spare.data[i].column, spare.data[i].value


cdef void sparse_free(SparseRows* rows) noexcept nogil:
    free(rows.values)
    free(rows.columns)


cdef tuple sparse_arrays(SparseRows* rows):
    """(values, columns) that own what the rows had."""
    cdef cnp.ndarray values = owned_array(rows.values, rows.size, sizeof(double), cnp.NPY_DOUBLE)
    rows.values = NULL
    cdef cnp.ndarray columns = owned_array(rows.columns, rows.size, sizeof(int32_t), cnp.NPY_INT32)
    rows.columns = NULL
    return values, columns


cdef cnp.ndarray owned_array(void* data, size_t size, size_t itemsize, int kind):
    cdef Memory memory
    cdef cnp.npy_intp length = <cnp.npy_intp>size
    cdef void* fitted = realloc(data, max(size, <size_t>1) * itemsize)
    memory = Memory.__new__(Memory, 0)
    free(memory.data)
    memory.data = fitted if fitted != NULL else data
    if memory.data == NULL:
        raise MemoryError
    array = cnp.PyArray_SimpleNewFromData(1, &length, kind, memory.data)
    cnp.set_array_base(array, memory)
    return array
