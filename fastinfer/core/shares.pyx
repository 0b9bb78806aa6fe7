# How clients share a queue that does not go into the next run: fair queueing by a virtual time.
#
# It counts the rows that a client could have had that always asks. Each stands in it where it has been served up to;
# the next run takes all up to the level that it has room for (max-min fairness), and what a client has beyond that, its
# excess, waits until the others' part has gone, so that who asks modestly never stands behind the queue of one that
# does not. Who asked for less of late than it could have had lags behind and goes first with as much more, up to what
# runs while a request may wait. Where there is no time for what is passed by then, and none for the one who comes, the
# youngest requests of the client that is furthest give way: they are refused after all. Between clients that are much
# as far nobody does.
#
# After Goyal, Vin and Cheng, Start-time Fair Queuing (1997), with whole runs for packets, and a lag that is let stand.
from libc.stdint cimport INT64_MIN, int64_t, uint64_t
from libcpp.algorithm cimport pop_heap, push_heap

cdef int64_t COMPANY_NS = 10 * SECOND_NS    # for which another client that was seen counts as about
cdef Py_ssize_t LONG_PAST = 1024            # virtual time that is kept, at least, before there is another beginning


cdef bint has_company(Batcher batcher, int64_t now) noexcept:
    return now - batcher.company_ns < COMPANY_NS


cdef Py_ssize_t fair_level(Queue* queue, Py_ssize_t room, int64_t key, Py_ssize_t rows) noexcept nogil:
    """The virtual time up to which each client may be served where ``room`` rows are for all, one of whom is to have
    so many more; a row at least of each that stands furthest behind."""
    cdef Holder* holder = queue_holder(queue, key)
    cdef bint waits = holder != NULL and holder.slots > 0
    cdef Py_ssize_t start = PY_SSIZE_T_MAX, end = PY_SSIZE_T_MAX, level, lowest
    if key:
        start = min(queue_start(queue, holder) - queue.origin, queue.held_limit)
        end = min(start + rows + (holder.rows if waits else 0), queue.held_limit)
        if waits:
            held_out(queue, holder)
    lowest = min(held_next(queue, 0), start)
    if lowest == PY_SSIZE_T_MAX:
        return queue.origin + room  # nobody in particular
    level = water_level(queue, room, start, end)
    if waits:
        held_in(queue, holder)
    return queue.origin + max(level, lowest + 1)


cdef Py_ssize_t water_level(const Queue* queue, Py_ssize_t room, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """How far each may be served, as a place in what is counted; one more client's rows begin and end at two places.

    It rises from one place where some client's rows begin or end to the next.
    """
    cdef Py_ssize_t level = min(held_next(queue, 0), start), above = 0, upto, step
    while True:
        if level < queue.held_size:
            above += <Py_ssize_t>queue.started[level] - <Py_ssize_t>queue.ended[level]
        above += (level == start) - (level == end)
        upto = held_next(queue, level + 1)
        if start > level:
            upto = min(upto, start)
        if end > level:
            upto = min(upto, end)
        if upto == PY_SSIZE_T_MAX:
            return level + room
        if above:
            step = room // above
            if step < upto - level:
                return level + step
            room -= above * (upto - level)
        level = upto


cdef int take_turns(Batcher batcher) except -1:
    """Order those who wait for the run that is to begin, and see what time it is by then."""
    cdef Queue* queue = &batcher.queue
    cdef Py_ssize_t room, level
    queue.virtual_next = queue.virtual
    if queue.holder_count == 0:
        queue.level = 0
        return 0
    room = (<Slot>queue.data[queue.begin].slot).ticket.limit
    if queue.virtual - queue.credit - queue.origin > max(LONG_PAST, queue.held_size // 8):
        held_anew(queue)
    if batcher.waiting_rows <= room:
        level = queue_most(queue)
        if level != PY_SSIZE_T_MAX:
            queue.virtual_next = max(queue.virtual, level)
        if not queue.short:
            queue.virtual_next = max(queue.virtual_next, queue.virtual + room)
        return 0
    level = queue.origin + water_level(queue, room, PY_SSIZE_T_MAX, PY_SSIZE_T_MAX)
    queue.virtual_next = max(queue.virtual, level)
    queue_take_turns(queue, fair_level(queue, room, 0, 0) if queue.holder_count > 1 else 0)
    return 0


cdef Reason fit_in(Batcher batcher, const Asked* asked, const Outlook* outlook, int64_t* retry_ns):
    """Whether one can make it in its turn, and all others still can, but for those that are to give way."""
    cdef Queue* queue = &batcher.queue
    cdef Holder* holder = queue_waiting(queue, asked.key)
    cdef Py_ssize_t before = 0
    cdef Py_ssize_t level = fair_level(queue, outlook.rows, asked.key, asked.rows)
    cdef int turn = FAIR if asked.deadline != NEVER else ENDLESS
    cdef size_t place, i
    retry_ns[0] = <int64_t>outlook.run.mean
    if asked.key:
        if holder != NULL and (holder.rank < asked.rank or holder.rank == asked.rank
                               and holder.deadline <= asked.deadline):
            before = holder.rows
        elif holder != NULL:
            for i in range(queue.begin, queue.end):
                if queue.data[i].key == asked.key and (queue.data[i].rank < asked.rank
                                                       or queue.data[i].rank == asked.rank
                                                       and queue.data[i].deadline <= asked.deadline):
                    before += queue.data[i].rows
        before += queue_start(queue, queue_holder(queue, asked.key))
        before += (asked.rows - 1) // batcher.max_batch_size * batcher.max_batch_size  # its own first pieces
        turn += before >= level
    if batcher.yielding or not goes_last(queue, asked, turn, before):
        pass
    elif turn == FAIR:
        if level == queue.level and not queue.unsettled and \
                takes(outlook, batcher.waiting_rows - queue.excess_rows + asked.rows) > outlook.remaining:
            return PAST_DEADLINE  # nobody gives way to make it sooner
    elif takes(outlook, batcher.waiting_rows + asked.rows) > outlook.remaining and not some_may_yield(queue, asked):
        return PAST_DEADLINE
    queue_take_turns(queue, level)
    place = queue_position(queue, asked.rank, turn, before, asked.deadline, <uint64_t>-1)
    return ADMITTED if all_make_it(batcher, asked, outlook, place, level) else PAST_DEADLINE


cdef bint goes_last(Queue* queue, const Asked* asked, int turn, Py_ssize_t start) noexcept nogil:
    """Whether one that has a deadline goes behind all who wait, or behind the others' fair part if it is in that."""
    cdef const Waiting* last
    cdef size_t excess
    if queue.begin == queue.end:
        return True
    last = &queue.data[queue.end - 1]
    if last.rank != asked.rank:
        return last.rank < asked.rank
    if last.turn >= ENDLESS:
        return False
    if turn & EXCESS:
        return queue_most(queue) <= start
    excess = queue_position(queue, asked.rank, EXCESS, 0, INT64_MIN, 0)
    last = &queue.data[excess - 1]
    return excess == queue.begin or last.rank < asked.rank or last.deadline <= asked.deadline


cdef bint some_may_yield(Queue* queue, const Asked* asked) noexcept nogil:
    """False where no client is so much further than the one who comes that it might give way."""
    return asked.key != 0 and queue_most(queue) > most_after(queue, asked, False)


cdef Py_ssize_t most_after(const Queue* queue, const Asked* asked, bint in_bytes) noexcept nogil:
    """What one that gives way keeps at least: as much as the one who comes has then."""
    cdef Holder* holder = queue_waiting(queue, asked.key)
    if in_bytes:
        return <Py_ssize_t>(asked.nbytes + (holder.nbytes if holder != NULL else 0))
    return queue_start(queue, queue_holder(queue, asked.key)) + asked.rows + (holder.rows if holder != NULL else 0)


cdef inline Py_ssize_t most_of(const Holder* holder, bint in_bytes) noexcept nogil:
    """What a client has: its bytes, or the virtual time at which its rows end."""
    return <Py_ssize_t>holder.nbytes if in_bytes else holder.start + holder.rows


cdef bint all_make_it(Batcher batcher, const Asked* asked, const Outlook* outlook, size_t place, Py_ssize_t level):
    """Whether one that stands at ``place`` makes it, and those behind it that would without it; others yield for it.

    It changes nothing for those behind it whose run stays the same: one of so many rows is looked at.
    """
    cdef Queue* queue = &batcher.queue
    cdef Py_ssize_t at_once = max(outlook.rows * outlook.instances, <Py_ssize_t>1)
    cdef Py_ssize_t others = batcher.waiting_rows, rows, edge
    cdef Waiting* entry
    cdef Outlook theirs = outlook[0]
    cdef size_t i
    batcher.claimed = 0
    for i in range(place, queue.end):
        others -= queue.data[i].rows
    rows = others + asked.rows - yielded_before(batcher, place)
    while asked.deadline != NEVER and takes(outlook, rows) > outlook.remaining:
        if not have_yield(batcher, asked, EXCESS, level, place, False):
            return False
        rows -= last_yielded_before(batcher, place)
    edge = others
    for i in range(place, queue.end):
        entry = &queue.data[i]
        if entry.rank != asked.rank:
            break
        others += entry.rows
        if batcher.yielding and (<Slot>entry.slot).ticket.yields:
            continue
        rows += entry.rows
        if entry.deadline == NEVER:
            continue
        if edge < others:  # where the run of its last row ends
            edge = (others + at_once - 1) // at_once * at_once
        if rows <= edge and not outlook.passing:
            continue
        theirs.remaining = entry.deadline - asked.now
        while not (<Slot>entry.slot).ticket.yields and \
                takes(&theirs, rows) > max(takes(&theirs, others), theirs.remaining):
            if have_yield(batcher, asked, EXCESS, level, i + 1, False):
                rows -= last_yielded_before(batcher, i + 1)
            elif takes(&theirs, others) <= theirs.remaining:
                return False
            else:
                break  # it is late anyway
    return True


cdef Py_ssize_t yielded_before(Batcher batcher, size_t place):
    """Rows that go before a place and are to give way."""
    cdef Py_ssize_t rows = 0
    cdef Ticket ticket
    for ticket in batcher.yielding:
        rows += rows_before(&batcher.queue, ticket, place)
    return rows


cdef Py_ssize_t last_yielded_before(Batcher batcher, size_t place):
    return rows_before(&batcher.queue, <Ticket>batcher.yielding[len(batcher.yielding) - 1], place)


cdef Py_ssize_t rows_before(const Queue* queue, Ticket ticket, size_t place):
    """Rows of a request, none of which runs, that go before a place."""
    cdef Slot slot = ticket.slot
    cdef Py_ssize_t rows = 0, i = 0, pieces = 0 if ticket.pieces is None else len(ticket.pieces)
    while True:
        if slot_position(queue, ticket, slot) < place:
            rows += slot.rows
        if i == pieces:
            return rows
        slot = ticket.pieces[i]
        i += 1


cdef bint have_yield(Batcher batcher, const Asked* asked, int turn, Py_ssize_t level, size_t upto, bint in_bytes):
    """Choose one of those before ``upto`` to give way: the last of the client that has most, more than is fair, and as
    much as the one who comes even so. False where there is none.

    For one who comes ``upto`` only grows, after ``claimed`` was set to 0.

    Args:
        turn: EXCESS: of what goes after the others' fair part only, so that nobody else moves up in its place.
        in_bytes: what counts; rows otherwise.
    """
    cdef Queue* queue = &batcher.queue
    cdef Py_ssize_t least = most_after(queue, asked, in_bytes), left, size
    cdef Holder* holder
    cdef Ticket ticket
    cdef bint is_next
    cdef size_t i
    if not asked.key:
        return False  # nobody in particular has no share
    if <Py_ssize_t>queue_most_bytes(queue) <= least if in_bytes else queue_most(queue) <= least:
        return False
    note_claims(batcher, asked, turn, max(level, least), upto, in_bytes)
    while not batcher.claims.empty():
        left = batcher.claims.front().first
        i = batcher.claims.front().second
        holder = queue_holder(queue, queue.data[i].key)
        is_next = holder.tail == i + 1 and left == most_of(holder, in_bytes) - holder.counted
        if is_next and (left <= level or left <= least):
            return False
        pop_heap(batcher.claims.begin(), batcher.claims.end())
        batcher.claims.pop_back()
        if not is_next:
            continue  # one that stands behind it is there since, or was and gives way
        ticket = (<Slot>queue.data[i].slot).ticket
        size = size_waiting(ticket, in_bytes)
        holder.tail = batcher.older[i]
        if ticket.yields or size == 0 or left - size < least:
            claim(batcher, holder, left)
            continue
        holder.counted += size
        claim(batcher, holder, left - size)
        ticket.yields = True
        batcher.yielding.append(ticket)
        return True
    return False


cdef int note_claims(Batcher batcher, const Asked* asked, int turn, Py_ssize_t over, size_t upto,
                     bint in_bytes) except -1:
    """Take those before ``upto`` into account that may have to give way, of clients that have more than so much."""
    cdef Queue* queue = &batcher.queue
    cdef Waiting* entry
    cdef Holder* holder
    cdef Ticket ticket
    cdef size_t i, begin = max(batcher.claimed, queue.begin)
    if batcher.claimed == 0:
        queue.looks += 1
        batcher.claims.clear()
        batcher.older.resize(queue.end)
        for ticket in batcher.yielding:
            looked_at(queue, queue_holder(queue, ticket.key)).counted += size_waiting(ticket, in_bytes)
    for i in range(begin, upto):
        entry = &queue.data[i]
        if entry.rank < asked.rank or entry.key == asked.key or entry.turn & turn != turn:
            continue
        holder = queue_holder(queue, entry.key)
        if holder == NULL or most_of(holder, in_bytes) <= over:
            continue
        looked_at(queue, holder)
        batcher.older[i] = holder.tail
        holder.tail = i + 1
    for i in range(upto, begin, -1):  # the last of each client that is new
        entry = &queue.data[i - 1]
        if entry.rank < asked.rank or entry.key == asked.key or entry.turn & turn != turn:
            continue
        holder = queue_holder(queue, entry.key)
        if holder != NULL and holder.look == queue.looks and holder.tail == i:
            claim(batcher, holder, most_of(holder, in_bytes) - holder.counted)
    batcher.claimed = max(batcher.claimed, upto)
    return 0


cdef int claim(Batcher batcher, const Holder* holder, Py_ssize_t left) except -1:
    """Of a client that has so much, the last one may be next to give way."""
    if holder.tail:
        batcher.claims.push_back(Claim(left, holder.tail - 1))
        push_heap(batcher.claims.begin(), batcher.claims.end())
    return 0


cdef bint make_room(Batcher batcher, const Asked* asked, bint in_bytes):
    """Have others give way in a queue that is full. False where nobody has to."""
    cdef Queue* queue = &batcher.queue
    cdef Py_ssize_t room = batcher.queue_bytes if in_bytes else batcher.queue_rows
    cdef Py_ssize_t more = <Py_ssize_t>asked.nbytes if in_bytes else asked.rows
    cdef Py_ssize_t left = <Py_ssize_t>batcher.waiting_bytes if in_bytes else batcher.waiting_rows
    cdef Py_ssize_t level
    cdef Ticket ticket
    for ticket in batcher.yielding:
        left -= size_waiting(ticket, in_bytes)
    if left + more <= room:
        return True
    if more > room:
        return False
    if in_bytes:
        level = room // (<Py_ssize_t>queue.holder_count + 1)
    else:
        level = fair_level(queue, room, asked.key, asked.rows)
    batcher.claimed = 0
    while left + more > room:
        if not have_yield(batcher, asked, FAIR, level, queue.end, in_bytes):
            return False
        left -= size_waiting(<Ticket>batcher.yielding[len(batcher.yielding) - 1], in_bytes)
    return True


cdef Py_ssize_t size_waiting(Ticket ticket, bint in_bytes):
    """Rows, or bytes, of a request none of which runs; 0 of another."""
    cdef Py_ssize_t size
    cdef Slot slot = ticket.slot
    if slot is None or slot.order == 0:
        return 0
    size = <Py_ssize_t>slot.nbytes if in_bytes else slot.rows
    if ticket.pieces is not None:
        for slot in ticket.pieces:
            if slot.order == 0:
                return 0
            size += <Py_ssize_t>slot.nbytes if in_bytes else slot.rows
    return size


cdef int keep_places(Batcher batcher) except -1:
    """Nobody gives way after all."""
    cdef Ticket ticket
    if batcher.yielding:
        for ticket in batcher.yielding:
            ticket.yields = False
        batcher.yielding = []
    return 0


cdef int give_way(Batcher batcher) except -1:
    """The one who comes is there: refuse those that give way to it. Their answers leave with this turn's others."""
    cdef list tickets = batcher.yielding
    cdef Ticket ticket
    if not tickets:
        return 0
    keep_places(batcher)
    for ticket in tickets:
        if ticket.finished or not size_waiting(ticket, False):
            continue
        ticket.refusal = SHARE_FULL
        ticket.retry_ns = max(<int64_t>batcher.fit_run.mean, <int64_t>1_000_000)
        ticket.endpoint.count_refused(SHARE_FULL)
        batcher.expired_some = True
        batcher.end(ticket, refusal(SHARE_FULL, ticket.retry_ns))
    return 0
