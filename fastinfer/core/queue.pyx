# Who waits, in the order of going: by priority, then by deadline, then by arrival. Almost always that is the order of
# arrival, so that it is a sorted array: what comes goes to its end, what goes leaves its front, and neither costs more
# than a few instructions.
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove


cdef inline bint goes_before(const Waiting* entry, int rank, int64_t deadline, uint64_t order) noexcept nogil:
    if entry.rank != rank:
        return entry.rank < rank
    if entry.deadline != deadline:
        return entry.deadline < deadline
    return entry.order < order


cdef size_t queue_position(const Queue* queue, int rank, int64_t deadline, uint64_t order) noexcept nogil:
    """Where one stands or would stand who has this priority, deadline and number."""
    cdef size_t low = queue.begin, high = queue.end, middle
    if low == high or goes_before(&queue.data[high - 1], rank, deadline, order):
        return high
    while low < high:
        middle = (low + high) // 2
        if goes_before(&queue.data[middle], rank, deadline, order):
            low = middle + 1
        else:
            high = middle
    return low


cdef bint queue_insert(Queue* queue, Slot slot, Ticket ticket) except False:
    """Let a slot wait; it is kept alive.

    Raises:
        MemoryError
    """
    cdef size_t at, capacity
    cdef Waiting* data
    if queue.end == queue.capacity:
        if queue.begin > queue.capacity // 2:
            memmove(queue.data, queue.data + queue.begin, (queue.end - queue.begin) * sizeof(Waiting))
            queue.end -= queue.begin
            queue.begin = 0
        else:
            capacity = max(2 * queue.capacity, <size_t>64)
            data = <Waiting*>realloc(queue.data, capacity * sizeof(Waiting))
            if data == NULL:
                raise MemoryError
            queue.data = data
            queue.capacity = capacity
    queue.orders += 1
    slot.order = queue.orders
    at = queue_position(queue, ticket.rank, ticket.deadline, slot.order)
    if at < queue.end:
        memmove(queue.data + at + 1, queue.data + at, (queue.end - at) * sizeof(Waiting))
    queue.end += 1
    data = queue.data + at
    data.rank = ticket.rank
    data.deadline = ticket.deadline
    data.order = slot.order
    data.key = ticket.key
    data.rows = slot.rows
    data.nbytes = slot.nbytes
    data.slot = <void*>slot
    Py_INCREF(slot)
    return True


cdef void queue_remove(Queue* queue, size_t at) noexcept:
    """Let the one at ``at`` go. The caller has a reference to its slot."""
    cdef Slot slot = <Slot>queue.data[at].slot
    slot.order = 0
    if at == queue.begin:
        queue.begin += 1
    else:
        memmove(queue.data + at, queue.data + at + 1, (queue.end - at - 1) * sizeof(Waiting))
        queue.end -= 1
    if queue.begin == queue.end:
        queue.begin = queue.end = 0
    Py_DECREF(slot)


cdef Holding queue_held(const Queue* queue, int64_t key) noexcept nogil:
    """What one client has waiting."""
    cdef Holding held
    cdef size_t i
    held.rows = 0
    held.nbytes = 0
    for i in range(queue.begin, queue.end):
        if queue.data[i].key == key:
            held.rows += queue.data[i].rows
            held.nbytes += queue.data[i].nbytes
    return held


cdef int64_t queue_earliest(const Queue* queue) noexcept nogil:
    """The first deadline of all who wait."""
    cdef int64_t earliest = NEVER
    cdef size_t i
    for i in range(queue.begin, queue.end):
        earliest = min(earliest, queue.data[i].deadline)
    return earliest


cdef void queue_free(Queue* queue) noexcept:
    while queue.begin < queue.end:
        queue.end -= 1
        Py_DECREF(<Slot>queue.data[queue.end].slot)
    free(queue.data)
    queue.data = NULL
    queue.begin = queue.end = queue.capacity = 0
