# Who waits, in the order of going: by priority, then by turn, by deadline, by arrival. Almost always that is the order
# of arrival, so that it is a sorted array: what comes goes to its end, what goes leaves its front, and neither costs
# more than a few instructions. Beside it stands what each client has in it.
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memmove, memset


cdef inline bint goes_before(const Waiting* entry, int rank, int turn, int64_t deadline,
                             uint64_t order) noexcept nogil:
    if entry.rank != rank:
        return entry.rank < rank
    if entry.turn != turn:
        return entry.turn < turn
    if entry.deadline != deadline:
        return entry.deadline < deadline
    return entry.order < order


cdef size_t queue_position(const Queue* queue, int rank, int turn, int64_t deadline, uint64_t order) noexcept nogil:
    """Where one stands or would stand who has this priority, turn, deadline and number."""
    cdef size_t low = queue.begin, high = queue.end, middle
    if low == high or goes_before(&queue.data[high - 1], rank, turn, deadline, order):
        return high
    while low < high:
        middle = (low + high) // 2
        if goes_before(&queue.data[middle], rank, turn, deadline, order):
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
    cdef Holder* holder = NULL
    if ticket.key:
        holder = holder_made(queue, ticket.key)
        if holder == NULL:
            raise MemoryError
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
    if queue.begin == queue.end:
        queue.level = 0
    queue.orders += 1
    slot.order = queue.orders
    slot.turn = turn_of(queue, holder, holder.rows if holder != NULL else 0, ticket.deadline)
    at = queue_position(queue, ticket.rank, slot.turn, ticket.deadline, slot.order)
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
    data.turn = slot.turn
    queue.excess += slot.turn & EXCESS
    if holder != NULL:
        queue.holder_count += holder.slots == 0
        holder.slots += 1
        holder.rows += slot.rows
        holder.nbytes += slot.nbytes
    Py_INCREF(slot)
    return True


cdef void queue_let_go(Queue* queue, const Waiting* entry) noexcept nogil:
    """What is counted of one that leaves."""
    cdef Holder* holder = queue_holder(queue, entry.key)
    queue.excess -= entry.turn & EXCESS
    if holder != NULL:
        holder.slots -= 1
        holder.rows -= entry.rows
        holder.nbytes -= entry.nbytes
        if holder.slots == 0:
            holder_gone(queue, holder)


cdef void queue_remove(Queue* queue, size_t at) noexcept:
    """Let the one at ``at`` go. The caller has a reference to its slot."""
    cdef Slot slot = <Slot>queue.data[at].slot
    slot.order = 0
    queue_let_go(queue, &queue.data[at])
    if at == queue.begin:
        queue.begin += 1
    else:
        memmove(queue.data + at, queue.data + at + 1, (queue.end - at - 1) * sizeof(Waiting))
        queue.end -= 1
    if queue.begin == queue.end:
        queue.begin = queue.end = 0
    Py_DECREF(slot)


# -- what each client has ----------------------------------------------------------------------------------------
cdef inline size_t holder_home(const Queue* queue, int64_t key) noexcept nogil:
    return ((<uint64_t>key * 0x9E3779B97F4A7C15u) >> 32) & (queue.holder_slots - 1)


cdef Holder* queue_holder(const Queue* queue, int64_t key) noexcept nogil:
    """What a client has waiting; NULL: nothing, or it is nobody in particular."""
    cdef size_t i
    if key == 0 or queue.holder_slots == 0:
        return NULL
    i = holder_home(queue, key)
    while queue.holders[i].slots:
        if queue.holders[i].key == key:
            return &queue.holders[i]
        i = (i + 1) & (queue.holder_slots - 1)
    return NULL


cdef Holder* holder_made(Queue* queue, int64_t key) noexcept nogil:
    """A client's place, an empty one where it has nothing; NULL where there is no memory."""
    cdef size_t i, old = queue.holder_slots
    cdef Holder* before = queue.holders
    cdef Holder* made
    if 2 * (queue.holder_count + 1) > old:
        made = <Holder*>calloc(2 * old if old else 16, sizeof(Holder))
        if made == NULL:
            return NULL
        queue.holders = made
        queue.holder_slots = 2 * old if old else 16
        for i in range(old):
            if before[i].slots:
                made[holder_place(queue, before[i].key)] = before[i]
        free(before)
    i = holder_place(queue, key)
    queue.holders[i].key = key
    return &queue.holders[i]


cdef size_t holder_place(const Queue* queue, int64_t key) noexcept nogil:
    cdef size_t i = holder_home(queue, key)
    while queue.holders[i].slots and queue.holders[i].key != key:
        i = (i + 1) & (queue.holder_slots - 1)
    return i


cdef void holder_gone(Queue* queue, Holder* holder) noexcept nogil:
    """Close the gap that a client leaves which has nothing any more: those behind it are found no other way."""
    cdef size_t mask = queue.holder_slots - 1
    cdef size_t gap = <size_t>(holder - queue.holders), i = gap
    queue.holder_count -= 1
    while True:
        i = (i + 1) & mask
        if queue.holders[i].slots == 0:
            break
        if ((i - holder_home(queue, queue.holders[i].key)) & mask) >= ((i - gap) & mask):
            queue.holders[gap] = queue.holders[i]
            gap = i
    memset(&queue.holders[gap], 0, sizeof(Holder))


cdef inline int turn_of(const Queue* queue, const Holder* holder, Py_ssize_t before, int64_t deadline) noexcept nogil:
    """Of one before whom so many rows of its client wait."""
    cdef int turn = FAIR if deadline != NEVER else ENDLESS
    if holder != NULL and queue.level and before >= queue.level:
        turn += 1
    return turn


cdef bint queue_take_turns(Queue* queue, Py_ssize_t level) except False:
    """Let the rows that clients have beyond so many each, by priority and deadline, wait for those of others.

    Args:
        level: rows; 0: all go as if they were one client's.

    Raises:
        MemoryError
    """
    cdef size_t i, low, middle, high
    cdef Waiting* data = queue.data
    queue.level = level
    if queue.begin == queue.end or level == 0 and queue.excess == 0:
        return True
    if queue.spare_capacity < queue.capacity:
        data = <Waiting*>realloc(queue.spare, queue.capacity * sizeof(Waiting))
        if data == NULL:
            raise MemoryError
        queue.spare = data
        queue.spare_capacity = queue.capacity
        data = queue.data
    for i in range(queue.holder_slots):
        queue.holders[i].counted = 0
    queue.excess = 0
    low = queue.begin
    while low < queue.end:  # of one priority, with a deadline or without: the fair part and the excess behind it
        middle = low
        while middle < queue.end and data[middle].rank == data[low].rank and data[middle].turn == (data[low].turn & ~1):
            middle += 1
        high = middle
        while high < queue.end and data[high].rank == data[low].rank and data[high].turn == (data[low].turn | 1):
            high += 1
        queue_divide(queue, low, middle, high)
        low = high
    return True


cdef void queue_divide(Queue* queue, size_t low, size_t middle, size_t high) noexcept:
    """Divide those of one priority anew, who are in order up to ``middle`` and from there on, in the order of both."""
    cdef Waiting* data = queue.data
    cdef Waiting* merged = queue.spare
    cdef Holder* holder
    cdef size_t i = low, j = middle, k, n = high - low
    for k in range(n):
        if j == high or i < middle and (data[i].deadline < data[j].deadline or data[i].deadline == data[j].deadline
                                        and data[i].order < data[j].order):
            merged[k] = data[i]
            i += 1
        else:
            merged[k] = data[j]
            j += 1
    i = low
    for k in range(n):
        holder = queue_holder(queue, merged[k].key)
        merged[k].turn = turn_of(queue, holder, holder.counted if holder != NULL else 0, merged[k].deadline)
        (<Slot>merged[k].slot).turn = merged[k].turn
        if holder != NULL:
            holder.counted += merged[k].rows
        if merged[k].turn & EXCESS:
            queue.excess += 1
        else:
            data[i] = merged[k]
            i += 1
    for k in range(n):
        if merged[k].turn & EXCESS:
            data[i] = merged[k]
            i += 1


# -- the whole of it -----------------------------------------------------------------------------------------------
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
    free(queue.spare)
    free(queue.holders)
    memset(queue, 0, sizeof(Queue))
