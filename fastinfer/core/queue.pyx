# Who waits, in the order of going: by priority, then by turn, in the excess by virtual time, by deadline, by arrival.
# Almost always that is the order of arrival, so that it is a sorted array: what comes goes to its end, what goes leaves
# its front, and neither costs more than a few instructions. Beside it stands what each client has in it.
from cpython.pyport cimport PY_SSIZE_T_MAX
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memmove, memset
from libcpp.algorithm cimport sort

cdef extern from *:
    int __builtin_ctzll(unsigned long long) nogil
    int __builtin_clzll(unsigned long long) nogil

cdef Py_ssize_t MAX_HELD = 1 << 22          # of virtual time, in which clients are told apart
cdef Py_ssize_t LONG_ROUND = 4              # rows that run for each client, while virtual time stands still
cdef size_t MAX_KEPT_HOLDERS = 1 << 14      # places; in a full one of so many all are forgotten of whom nothing waits


cdef inline bint goes_before(const Waiting* entry, int rank, int turn, Py_ssize_t start, int64_t deadline,
                             uint64_t order) noexcept nogil:
    if entry.rank != rank:
        return entry.rank < rank
    if entry.turn != turn:
        return entry.turn < turn
    if turn & EXCESS and entry.start != start:
        return entry.start < start
    if entry.deadline != deadline:
        return entry.deadline < deadline
    return entry.order < order


cdef size_t queue_position(const Queue* queue, int rank, int turn, Py_ssize_t start, int64_t deadline,
                           uint64_t order) noexcept nogil:
    """Where one stands or would stand who has this priority, turn, virtual time, deadline and number."""
    cdef size_t low = queue.begin, high = queue.end, middle
    if low == high or goes_before(&queue.data[high - 1], rank, turn, start, deadline, order):
        return high
    while low < high:
        middle = (low + high) // 2
        if goes_before(&queue.data[middle], rank, turn, start, deadline, order):
            low = middle + 1
        else:
            high = middle
    return low


cdef size_t slot_position(const Queue* queue, Ticket ticket, Slot slot) noexcept:
    """Where a slot stands that waits."""
    return queue_position(queue, ticket.rank, slot.turn, slot.place, ticket.deadline, slot.order)


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
        if holder == NULL or not held_reserve(queue, holder.start + holder.rows + slot.rows):
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
    slot.place = holder.start + holder.rows if holder != NULL else 0
    slot.turn = (FAIR if ticket.deadline != NEVER else ENDLESS) + is_excess(queue, ticket.key, slot.place)
    at = slot_position(queue, ticket, slot)
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
    data.start = slot.place
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
    if holder == NULL:
        return
    held_out(queue, holder)
    if runs:
        holder.start += entry.rows
    elif entry.start + entry.rows < holder.start + holder.rows:
        queue.unsettled = True  # others of it stand behind fewer rows than they did
    queue.bytes_known = False
    holder.slots -= 1
    holder.rows -= entry.rows
    holder.nbytes -= entry.nbytes
    if holder.slots:
        held_in(queue, holder)
        return
    queue.holder_count -= 1
    if queue.holder_count == 0 and queue.holder_slots > MAX_KEPT_HOLDERS:
        free(queue.holders)
        queue.holders = NULL
        queue.holder_slots = queue.known_count = 0


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
    """What is known of a client; NULL: nothing, or it is nobody in particular."""
    cdef size_t i
    if key == 0 or queue.holder_slots == 0:
        return NULL
    i = holder_place(queue, key)
    return &queue.holders[i] if queue.holders[i].key else NULL


cdef Holder* queue_waiting(const Queue* queue, int64_t key) noexcept nogil:
    """What a client has waiting; NULL: nothing, or it is nobody in particular."""
    cdef Holder* holder = queue_holder(queue, key)
    return holder if holder != NULL and holder.slots else NULL


cdef Py_ssize_t queue_start(const Queue* queue, const Holder* holder) noexcept nogil:
    """The virtual time at which a client's first row stands, or would stand.

    What it has not asked for of late it may have later, but no more than its credit.
    """
    cdef Py_ssize_t least = max(queue.virtual - queue.credit, queue.origin)
    if holder == NULL:
        return least
    return holder.start if holder.slots else max(holder.start, least)


cdef bint goes_furthest(Queue* queue, const Holder* holder, Py_ssize_t more) noexcept nogil:
    """Whether no client is further in virtual time than one of whom something waits, and who asks for so much more."""
    return holder.start + holder.rows + more >= queue_most(queue)


cdef void queue_pass_time(Queue* queue, Py_ssize_t rows) noexcept nogil:
    """A run of so many rows has begun.

    Where it is always new clients that lag furthest virtual time would stand still, and keep out whoever has had its
    part of it: then it goes on when several times as much has run.
    """
    queue.stood += rows
    if queue.virtual_next == queue.virtual and queue.stood > LONG_ROUND * <Py_ssize_t>queue.holder_count:
        queue.virtual_next += 1
    if queue.virtual_next > queue.virtual:
        queue.stood = 0
    queue.virtual = queue.virtual_next
    queue.short = False


cdef void holder_takes(Queue* queue, Holder* holder, const Waiting* entry) noexcept nogil:
    """Count a client's entry."""
    cdef bint is_last
    if holder.slots == 0:
        queue.holder_count += 1
        is_last = True
    else:
        held_out(queue, holder)
        is_last = entry.rank > holder.rank or entry.rank == holder.rank and entry.deadline >= holder.deadline
    if is_last:
        holder.rank = entry.rank
        holder.deadline = entry.deadline
    queue.bytes_known = False
    holder.slots += 1
    holder.rows += entry.rows
    holder.nbytes += entry.nbytes
    held_in(queue, holder)
    if not is_last:
        queue.unsettled = True  # others of it stand behind more rows than they did


cdef inline Holder* looked_at(Queue* queue, Holder* holder) noexcept nogil:
    """With nothing counted yet, where this look has not come to it before."""
    if holder.look != queue.looks:
        holder.look = queue.looks
        holder.counted = 0
        holder.tail = 0
    return holder


cdef Holder* holder_made(Queue* queue, int64_t key) noexcept nogil:
    """A client's place, an empty one where it has nothing; NULL where there is no memory."""
    cdef size_t i
    cdef Holder* holder
    if 2 * (queue.known_count + 1) > queue.holder_slots and not holders_resized(queue):
        return NULL
    i = holder_place(queue, key)
    holder = &queue.holders[i]
    if holder.slots == 0:
        holder.start = queue_start(queue, holder if holder.key else NULL)
    if holder.key == 0:
        holder.key = key
        queue.known_count += 1
    return holder


cdef bint holders_resized(Queue* queue) noexcept nogil:
    """Make room for one client more; False where there is no memory."""
    cdef bint forgets = queue.holder_slots >= MAX_KEPT_HOLDERS
    cdef size_t i, old = queue.holder_slots, size = 16
    cdef size_t count = queue.holder_count if forgets else queue.known_count
    cdef Holder* before = queue.holders
    cdef Holder* made
    while size < 4 * (count + 1):
        size *= 2
    if forgets:
        size = max(size, MAX_KEPT_HOLDERS)
    made = <Holder*>calloc(size, sizeof(Holder))
    if made == NULL:
        return False
    queue.holders = made
    queue.holder_slots = size
    queue.known_count = count
    for i in range(old):
        if before[i].key and (before[i].slots or not forgets):
            made[holder_place(queue, before[i].key)] = before[i]
    free(before)
    return True


cdef size_t holder_place(const Queue* queue, int64_t key) noexcept nogil:
    cdef size_t i = holder_home(queue, key)
    while queue.holders[i].key and queue.holders[i].key != key:
        i = (i + 1) & (queue.holder_slots - 1)
    return i


# -- where clients stand in virtual time -------------------------------------------------------------------------
cdef bint held_reserve(Queue* queue, Py_ssize_t end) noexcept nogil:
    """See to it that a client can be counted whose rows end there; False where there is no memory."""
    cdef Py_ssize_t old = queue.held_size, size = max(old, <Py_ssize_t>64)
    cdef uint32_t* started
    cdef uint32_t* ended
    cdef uint64_t* occupied
    end = min(end - queue.origin, queue.held_limit)
    if end < old:
        return True
    while size <= end:
        size *= 2
    started = <uint32_t*>calloc(size, sizeof(uint32_t))
    ended = <uint32_t*>calloc(size, sizeof(uint32_t))
    occupied = <uint64_t*>calloc(size // 64, sizeof(uint64_t))
    if started == NULL or ended == NULL or occupied == NULL:
        free(started)
        free(ended)
        free(occupied)
        return False
    if old:
        memcpy(started, queue.started, old * sizeof(uint32_t))
        memcpy(ended, queue.ended, old * sizeof(uint32_t))
        memcpy(occupied, queue.occupied, old // 64 * sizeof(uint64_t))
    free(queue.started)
    free(queue.ended)
    free(queue.occupied)
    queue.started = started
    queue.ended = ended
    queue.occupied = occupied
    queue.held_size = size
    return True


cdef inline void held_in(Queue* queue, const Holder* holder) noexcept nogil:
    """Count a client of whom something waits."""
    cdef Py_ssize_t start = min(holder.start - queue.origin, queue.held_limit)
    cdef Py_ssize_t end = min(holder.start + holder.rows - queue.origin, queue.held_limit)
    queue.started[start] += 1
    queue.ended[end] += 1
    queue.occupied[start >> 6] |= <uint64_t>1 << (start & 63)
    queue.occupied[end >> 6] |= <uint64_t>1 << (end & 63)
    queue.held_top = max(queue.held_top, end)


cdef inline void held_out(Queue* queue, const Holder* holder) noexcept nogil:
    """No longer count it."""
    cdef Py_ssize_t start = min(holder.start - queue.origin, queue.held_limit)
    cdef Py_ssize_t end = min(holder.start + holder.rows - queue.origin, queue.held_limit)
    queue.started[start] -= 1
    queue.ended[end] -= 1
    if queue.started[start] == 0 and queue.ended[start] == 0:
        queue.occupied[start >> 6] &= ~(<uint64_t>1 << (start & 63))
    if queue.started[end] == 0 and queue.ended[end] == 0:
        queue.occupied[end >> 6] &= ~(<uint64_t>1 << (end & 63))


cdef Py_ssize_t held_next(const Queue* queue, Py_ssize_t place) noexcept nogil:
    """The first place from this one on where some client's rows begin or end; ``PY_SSIZE_T_MAX``: there is none."""
    cdef Py_ssize_t word = place >> 6
    cdef uint64_t bits
    if place < queue.held_size:
        bits = queue.occupied[word] >> (place & 63) << (place & 63)
        while bits == 0 and (word + 1) << 6 <= queue.held_top:
            word += 1
            bits = queue.occupied[word]
        if bits:
            return (word << 6) + __builtin_ctzll(bits)
    return PY_SSIZE_T_MAX


cdef void held_anew(Queue* queue) noexcept nogil:
    """Begin with the virtual time before which no client lags any more."""
    cdef Holder* holder
    cdef size_t i
    if queue.holder_count:
        memset(queue.started, 0, queue.held_size * sizeof(uint32_t))
        memset(queue.ended, 0, queue.held_size * sizeof(uint32_t))
        memset(queue.occupied, 0, queue.held_size // 64 * sizeof(uint64_t))
    queue.origin = max(queue.origin, queue.virtual - queue.credit)
    queue.held_top = 0
    if queue.holder_count:
        for i in range(queue.holder_slots):
            holder = &queue.holders[i]
            if holder.slots:
                holder.start = max(holder.start, queue.origin)
                held_in(queue, holder)
        queue.unsettled = True


cdef Py_ssize_t queue_most(Queue* queue) noexcept nogil:
    """The virtual time at which the last row of any client stands, or a later one."""
    cdef Py_ssize_t word = queue.held_top >> 6
    if queue.held_size == 0:
        return queue.origin
    while word > 0 and queue.occupied[word] == 0:
        word -= 1
    queue.held_top = (word << 6) + (63 - __builtin_clzll(queue.occupied[word]) if queue.occupied[word] else 0)
    return queue.origin + queue.held_top if queue.held_top < queue.held_limit else PY_SSIZE_T_MAX


cdef size_t queue_most_bytes(Queue* queue) noexcept nogil:
    """The most bytes that one client has."""
    cdef size_t i
    if not queue.bytes_known:
        queue.bytes_known = True
        queue.most_bytes = 0
        for i in range(queue.holder_slots):
            queue.most_bytes = max(queue.most_bytes, queue.holders[i].nbytes)
    return queue.most_bytes


# -- turns -------------------------------------------------------------------------------------------------------

cdef inline bint is_excess(const Queue* queue, int64_t key, Py_ssize_t start) noexcept nogil:
    return key != 0 and queue.level != 0 and start >= queue.level


cdef bint is_due_before(const Waiting& one, const Waiting& other) noexcept nogil:
    return one.deadline < other.deadline if one.deadline != other.deadline else one.order < other.order


cdef bint is_served_before(const Waiting& one, const Waiting& other) noexcept nogil:
    return one.start < other.start if one.start != other.start else is_due_before(one, other)


cdef bint queue_take_turns(Queue* queue, Py_ssize_t level) except False:
    """Let the rows that clients have beyond a virtual time, by priority and deadline, wait for those of others.

    Args:
        level: 0: all go as if they were one client's.

    Raises:
        MemoryError
    """
    cdef size_t low, middle, high
    cdef Waiting* data = queue.data
    if level == queue.level and not queue.unsettled:
        return True
    if queue.spare_capacity < queue.capacity:
        data = <Waiting*>realloc(queue.spare, queue.capacity * sizeof(Waiting))
        if data == NULL:
            raise MemoryError
        queue.spare = data
        queue.spare_capacity = queue.capacity
        data = queue.data
    queue.level = level
    queue.looks += 1
    low = queue.begin
    while low < queue.end:  # of one priority, with a deadline or without: the fair part and the excess behind it
        middle = low
        while middle < queue.end and data[middle].rank == data[low].rank and data[middle].turn == (data[low].turn & ~1):
            middle += 1
        high = middle
        while high < queue.end and data[high].rank == data[low].rank and data[high].turn == (data[low].turn | 1):
            high += 1
        if queue.unsettled:
            queue_settle(queue, low, high)
            middle = high
        queue_divide(queue, low, middle, high)
        low = high
    queue.unsettled = False
    return True


cdef void queue_settle(Queue* queue, size_t low, size_t high) noexcept:
    """Tell anew where those of one priority stand in their clients' virtual times; none of them is excess now."""
    cdef Holder* holder
    cdef Waiting* entry
    cdef size_t i
    for i in range(low, high):
        if queue.data[i].turn & EXCESS:
            change_turn(queue, &queue.data[i])
    sort(queue.data + low, queue.data + high, is_due_before)
    for i in range(low, high):
        entry = &queue.data[i]
        holder = queue_holder(queue, entry.key)
        if holder == NULL:
            continue
        entry.start = holder.start + looked_at(queue, holder).counted
        (<Slot>entry.slot).place = entry.start
        holder.counted += entry.rows


cdef void queue_divide(Queue* queue, size_t low, size_t middle, size_t high) noexcept:
    """Bring those of one priority in order for a level that may be another now; up to ``middle`` none is excess."""
    cdef Waiting* data = queue.data
    cdef size_t i, kept = low, n = 0
    for i in range(low, middle):
        if is_excess(queue, data[i].key, data[i].start):
            change_turn(queue, &data[i])
            queue.spare[n] = data[i]
            n += 1
        else:
            data[kept] = data[i]
            kept += 1
    if n:  # the level is lower, or all are in the fair part: they go before what was excess
        sort(queue.spare, queue.spare + n, is_served_before)
        memcpy(data + kept, queue.spare, n * sizeof(Waiting))
        return
    i = middle
    while i < high and not is_excess(queue, data[i].key, data[i].start):
        change_turn(queue, &data[i])
        i += 1
    if i > middle:
        sort(data + low, data + i, is_due_before)


cdef inline void change_turn(Queue* queue, Waiting* entry) noexcept:
    """Into the excess, or out of it."""
    cdef Py_ssize_t sign = -1 if entry.turn & EXCESS else 1
    entry.turn ^= EXCESS
    (<Slot>entry.slot).turn = entry.turn
    queue.excess += sign
    queue.excess_rows += sign * entry.rows


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
    free(queue.started)
    free(queue.ended)
    free(queue.occupied)
    memset(queue, 0, sizeof(Queue))
