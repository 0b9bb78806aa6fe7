# Who waits, in the order of going: by priority, then by turn, by deadline, by arrival. Almost always that is the order
# of arrival, so that it is a sorted array: what comes goes to its end, what goes leaves its front, and neither costs
# more than a few instructions. Beside it stands what each client has in it.
from cpython.pyport cimport PY_SSIZE_T_MAX
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memmove, memset

cdef extern from *:
    int __builtin_ctzll(unsigned long long) nogil
    int __builtin_clzll(unsigned long long) nogil

cdef Py_ssize_t MAX_HELD = 1 << 22          # rows that are told apart of one client
cdef size_t MAX_KEPT_HOLDERS = 1024         # places; a larger table goes when nobody waits any more


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
        if holder == NULL or not held_reserve(queue, holder.rows + slot.rows):
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
        queue.unsettled = False
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
    if slot.turn & EXCESS:
        queue.excess += 1
        queue.excess_rows += slot.rows
    if holder != NULL:
        holder_takes(queue, holder, data)
    Py_INCREF(slot)
    return True


cdef void queue_let_go(Queue* queue, const Waiting* entry, bint runs) noexcept nogil:
    """What is counted of one that leaves, to run or without."""
    cdef Holder* holder = queue_holder(queue, entry.key)
    if entry.turn & EXCESS:
        queue.excess -= 1
        queue.excess_rows -= entry.rows
    if runs:
        queue.run_rows += entry.rows
    if holder == NULL:
        return
    held_less(queue, holder.rows)
    queue.bytes_known = False
    holder.slots -= 1
    holder.rows -= entry.rows
    holder.nbytes -= entry.nbytes
    if entry.turn & EXCESS:
        holder.excess -= 1
    elif runs and queue.in_rounds:
        holder.served = served(queue, holder) + entry.rows
        holder.round = queue.round
    elif holder.excess:
        queue.unsettled = True  # the next of them is within its share now
    if holder.slots == 0:
        holder_gone(queue, holder)
    else:
        held_more(queue, holder.rows)


cdef void queue_remove(Queue* queue, size_t at, bint runs) noexcept:
    """Let the one at ``at`` go, to run or without. The caller has a reference to its slot."""
    cdef Slot slot = <Slot>queue.data[at].slot
    slot.order = 0
    queue_let_go(queue, &queue.data[at], runs)
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


cdef void holder_takes(Queue* queue, Holder* holder, const Waiting* entry) noexcept nogil:
    """Count a client's entry."""
    cdef bint is_last
    if holder.slots == 0:
        queue.holder_count += 1
        is_last = True
    else:
        held_less(queue, holder.rows)
        is_last = entry.rank > holder.rank or entry.rank == holder.rank and entry.deadline >= holder.deadline
    if is_last:
        holder.rank = entry.rank
        holder.deadline = entry.deadline
    queue.bytes_known = False
    holder.slots += 1
    holder.rows += entry.rows
    holder.nbytes += entry.nbytes
    holder.excess += entry.turn & EXCESS
    held_more(queue, holder.rows)
    if queue.level and not is_last and holder.rows + served(queue, holder) > queue.level:
        queue.unsettled = True  # others of it stand behind more rows than they did


cdef inline Py_ssize_t served(const Queue* queue, const Holder* holder) noexcept nogil:
    """Rows within a client's share that have run in this round."""
    return holder.served if holder.round == queue.round else 0


cdef inline Holder* looked_at(Queue* queue, Holder* holder) noexcept nogil:
    """With nothing counted yet, where this look has not come to it before."""
    if holder.look != queue.looks:
        holder.look = queue.looks
        holder.counted = 0
        holder.tail = 0
    return holder


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
    if queue.holder_count == 0 and queue.holder_slots > MAX_KEPT_HOLDERS:
        free(queue.holders)
        queue.holders = NULL
        queue.holder_slots = 0


# -- how many clients have how much ------------------------------------------------------------------------------
cdef bint held_reserve(Queue* queue, Py_ssize_t rows) noexcept nogil:
    """See to it that a client can be counted that has so many rows; False where there is no memory."""
    cdef Py_ssize_t old = queue.held_size, size = max(old, <Py_ssize_t>64)
    cdef uint32_t* held
    cdef uint64_t* occupied
    rows = min(rows, queue.held_limit)
    if rows < old:
        return True
    while size <= rows:
        size *= 2
    held = <uint32_t*>calloc(size, sizeof(uint32_t))
    occupied = <uint64_t*>calloc(size // 64, sizeof(uint64_t))
    if held == NULL or occupied == NULL:
        free(held)
        free(occupied)
        return False
    if old:
        memcpy(held, queue.held, old * sizeof(uint32_t))
        memcpy(occupied, queue.occupied, old // 64 * sizeof(uint64_t))
    free(queue.held)
    free(queue.occupied)
    queue.held = held
    queue.occupied = occupied
    queue.held_size = size
    return True


cdef inline void held_more(Queue* queue, Py_ssize_t rows) noexcept nogil:
    """One client more has so many rows."""
    rows = min(rows, queue.held_limit)
    queue.held[rows] += 1
    queue.occupied[rows >> 6] |= <uint64_t>1 << (rows & 63)
    queue.held_top = max(queue.held_top, rows)


cdef inline void held_less(Queue* queue, Py_ssize_t rows) noexcept nogil:
    rows = min(rows, queue.held_limit)
    queue.held[rows] -= 1
    if queue.held[rows] == 0:
        queue.occupied[rows >> 6] &= ~(<uint64_t>1 << (rows & 63))


cdef Py_ssize_t held_next(const Queue* queue, Py_ssize_t rows) noexcept nogil:
    """The least number of rows above this one that some client has; ``PY_SSIZE_T_MAX``: none has more."""
    cdef Py_ssize_t word = (rows + 1) >> 6
    cdef uint64_t bits
    if rows + 1 < queue.held_size:
        bits = queue.occupied[word] >> ((rows + 1) & 63) << ((rows + 1) & 63)
        while bits == 0 and (word + 1) << 6 <= queue.held_top:
            word += 1
            bits = queue.occupied[word]
        if bits:
            return (word << 6) + __builtin_ctzll(bits)
    return PY_SSIZE_T_MAX


cdef Py_ssize_t queue_most(Queue* queue) noexcept nogil:
    """The most rows that one client has, or more than that."""
    cdef Py_ssize_t word = queue.held_top >> 6
    if queue.held_size == 0:
        return 0
    while word > 0 and queue.occupied[word] == 0:
        word -= 1
    queue.held_top = (word << 6) + (63 - __builtin_clzll(queue.occupied[word]) if queue.occupied[word] else 0)
    return queue.held_top if queue.held_top < queue.held_limit else PY_SSIZE_T_MAX


cdef size_t queue_most_bytes(Queue* queue) noexcept nogil:
    """The most bytes that one client has."""
    cdef size_t i
    if not queue.bytes_known:
        queue.bytes_known = True
        queue.most_bytes = 0
        for i in range(queue.holder_slots):
            if queue.holders[i].slots:
                queue.most_bytes = max(queue.most_bytes, queue.holders[i].nbytes)
    return queue.most_bytes


# -- turns -------------------------------------------------------------------------------------------------------

cdef inline int turn_of(const Queue* queue, const Holder* holder, Py_ssize_t before, int64_t deadline) noexcept nogil:
    """Of one before whom so many rows of its client wait; those that have run in this round count, too."""
    cdef int turn = FAIR if deadline != NEVER else ENDLESS
    if holder != NULL and queue.level and before + served(queue, holder) >= queue.level:
        turn += 1
    return turn


cdef bint queue_take_turns(Queue* queue, Py_ssize_t level) except False:
    """Let the rows that clients have beyond so many each, by priority and deadline, wait for those of others.

    Args:
        level: rows; 0: all go as if they were one client's.

    Raises:
        MemoryError
    """
    cdef size_t low, middle, high
    cdef Waiting* data = queue.data
    if level == queue.level and not queue.unsettled:
        return True
    queue.level = level
    queue.unsettled = False
    if queue.begin == queue.end or level == 0 and queue.excess == 0:
        return True
    if queue.spare_capacity < queue.capacity:
        data = <Waiting*>realloc(queue.spare, queue.capacity * sizeof(Waiting))
        if data == NULL:
            raise MemoryError
        queue.spare = data
        queue.spare_capacity = queue.capacity
        data = queue.data
    queue.looks += 1
    queue.excess = 0
    queue.excess_rows = 0
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
    cdef int old
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
        old = merged[k].turn
        if holder != NULL:
            looked_at(queue, holder)
        merged[k].turn = turn_of(queue, holder, holder.counted if holder != NULL else 0, merged[k].deadline)
        if merged[k].turn != old:
            (<Slot>merged[k].slot).turn = merged[k].turn
            holder.excess += (merged[k].turn & EXCESS) - (old & EXCESS)
        if holder != NULL:
            holder.counted += merged[k].rows
        if merged[k].turn & EXCESS:
            queue.excess += 1
            queue.excess_rows += merged[k].rows
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
    free(queue.held)
    free(queue.occupied)
    memset(queue, 0, sizeof(Queue))
