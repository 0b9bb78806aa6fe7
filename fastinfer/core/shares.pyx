# How clients share a queue that does not go into the next run.
#
# Each may have so many rows in the next run as all could have (max-min fairness); what a client has beyond that waits
# until the others' part has gone, so that who asks modestly never stands behind the queue of one that does not. Where
# there is no time for what is passed by then, and none for the one who comes, the youngest requests of the client that
# has most give way: they are refused after all. Between clients that have much the same nobody does.
from libc.stdint cimport int64_t, uint64_t

cdef int64_t COMPANY_NS = 10 * SECOND_NS    # for which another client that was seen counts as about


cdef bint has_company(Batcher batcher, int64_t now) noexcept:
    return now - batcher.company_ns < COMPANY_NS


cdef Py_ssize_t fair_level(const Queue* queue, Py_ssize_t room, int64_t key, Py_ssize_t rows) noexcept nogil:
    """The most rows that each client may have where ``room`` is for all, one of whom is to have so many more."""
    cdef Py_ssize_t level = 0, left, more, held
    cdef int above
    cdef bint known = key == 0
    cdef size_t i
    while True:
        left = room
        above = 0
        for i in range(queue.holder_slots):
            if queue.holders[i].slots:
                held = queue.holders[i].rows
                if queue.holders[i].key == key:
                    held += rows
                    known = True
                if held > level:
                    above += 1
                else:
                    left -= held
        if not known:
            if rows > level:
                above += 1
            else:
                left -= rows
        if above == 0:
            return max(room, <Py_ssize_t>1)
        more = max(left // above, <Py_ssize_t>1)
        if more <= level:
            return level
        level = more


cdef int take_turns(Batcher batcher, int64_t now) except -1:
    """Order those who wait for the run that is to begin."""
    cdef Queue* queue = &batcher.queue
    cdef Py_ssize_t room, level = 0
    if queue.holder_count < 2 and queue.excess == 0:
        return 0
    room = (<Slot>queue.data[queue.begin].slot).ticket.limit
    if batcher.waiting_rows <= room:
        return 0
    if queue.holder_count > 1 and has_company(batcher, now):
        level = fair_level(queue, room, 0, 0)
    queue_take_turns(queue, level)
    return 0


cdef Reason fit_in(Batcher batcher, const Asked* asked, const Outlook* outlook, int64_t* retry_ns):
    """Whether one can make it in its turn, and all others still can, but for those that are to give way."""
    cdef Queue* queue = &batcher.queue
    cdef Py_ssize_t level = fair_level(queue, outlook.rows, asked.key, asked.rows), before = 0
    cdef int turn = FAIR if asked.deadline != NEVER else ENDLESS
    cdef size_t place, i
    retry_ns[0] = <int64_t>outlook.run.mean
    queue_take_turns(queue, level)
    if asked.key:
        for i in range(queue.begin, queue.end):
            if queue.data[i].key == asked.key and (queue.data[i].rank < asked.rank or queue.data[i].rank == asked.rank
                                                   and queue.data[i].deadline <= asked.deadline):
                before += queue.data[i].rows
        before += (asked.rows - 1) // batcher.max_batch_size * batcher.max_batch_size  # its own first pieces
        turn += before >= level
    place = queue_position(queue, asked.rank, turn, asked.deadline, <uint64_t>-1)
    return ADMITTED if all_make_it(batcher, asked, outlook, place, level) else PAST_DEADLINE


cdef bint all_make_it(Batcher batcher, const Asked* asked, const Outlook* outlook, size_t place, Py_ssize_t level):
    """Whether one that stands at ``place`` makes it, and those behind it that would without it; others yield for it."""
    cdef Queue* queue = &batcher.queue
    cdef Py_ssize_t rows, others
    cdef Waiting* entry
    cdef Outlook theirs = outlook[0]
    cdef size_t i
    rows = rows_before(queue, place, &others) + asked.rows
    while asked.deadline != NEVER and takes(outlook, rows) > outlook.remaining:
        if not have_yield(batcher, asked, EXCESS, level, place):
            return False
        rows = rows_before(queue, place, &others) + asked.rows
    for i in range(place, queue.end):
        entry = &queue.data[i]
        if entry.rank != asked.rank:
            break
        others += entry.rows
        if (<Slot>entry.slot).ticket.yields:
            continue
        rows += entry.rows
        if entry.deadline == NEVER:
            continue
        theirs.remaining = entry.deadline - asked.now
        while not (<Slot>entry.slot).ticket.yields and \
                takes(&theirs, rows) > max(takes(&theirs, others), theirs.remaining):
            if have_yield(batcher, asked, EXCESS, level, i + 1):
                rows = rows_before(queue, i + 1, &others) + asked.rows
            elif takes(&theirs, others) <= theirs.remaining:
                return False
            else:
                break  # it is late anyway
    return True


cdef Py_ssize_t rows_before(const Queue* queue, size_t place, Py_ssize_t* others):
    """Rows that go before a place; ``others`` with those that are to give way."""
    cdef Py_ssize_t rows = 0
    cdef size_t i
    others[0] = 0
    for i in range(queue.begin, place):
        others[0] += queue.data[i].rows
        if not (<Slot>queue.data[i].slot).ticket.yields:
            rows += queue.data[i].rows
    return rows


cdef bint have_yield(Batcher batcher, const Asked* asked, int turn, Py_ssize_t level, size_t upto):
    """Choose one of those before ``upto`` to give way: the last of the client that has most, more than is fair, and as
    much as the one who comes even so. False where there is none.

    Args:
        turn: EXCESS: of what goes after the others' fair part only, so that nobody else moves up in its place.
    """
    cdef Queue* queue = &batcher.queue
    cdef Holder* holder = queue_holder(queue, asked.key)
    cdef Py_ssize_t least = asked.rows + max(asked.rows, holder.rows if holder != NULL else 0), most = level, left, size
    cdef Waiting* entry
    cdef Ticket ticket, last = None
    cdef size_t i
    if not asked.key:
        return False  # nobody in particular has no share
    for i in range(queue.holder_slots):
        queue.holders[i].counted = 0
    for ticket in batcher.yielding:
        queue_holder(queue, ticket.key).counted += rows_waiting(ticket)
    for i in range(queue.begin, upto):
        entry = &queue.data[i]
        if entry.rank < asked.rank or entry.key == asked.key or entry.turn & turn != turn:
            continue
        holder = queue_holder(queue, entry.key)
        ticket = (<Slot>entry.slot).ticket
        if holder == NULL or ticket.yields:
            continue
        left = holder.rows - holder.counted
        if left <= level or left < most:
            continue
        size = rows_waiting(ticket)
        if size and left - size >= least:
            most = left
            last = ticket
    if last is None:
        return False
    last.yields = True
    batcher.yielding.append(last)
    return True


cdef bint make_room(Batcher batcher, const Asked* asked):
    """Have others give way in a queue that is full. False where nobody has to."""
    cdef Queue* queue = &batcher.queue
    cdef Py_ssize_t level, rows = batcher.waiting_rows
    level = fair_level(queue, batcher.queue_rows, asked.key, asked.rows)
    while rows + asked.rows > batcher.queue_rows:
        if not have_yield(batcher, asked, FAIR, level, queue.end):
            keep_places(batcher)
            return False
        rows -= rows_waiting(batcher.yielding[len(batcher.yielding) - 1])
    return True


cdef Py_ssize_t rows_waiting(Ticket ticket):
    """Rows of a request none of which runs; 0 of another."""
    cdef Py_ssize_t rows
    cdef Slot slot
    if ticket.slot is None or ticket.slot.order == 0:
        return 0
    rows = ticket.slot.rows
    if ticket.pieces is not None:
        for slot in ticket.pieces:
            if slot.order == 0:
                return 0
            rows += slot.rows
    return rows


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
        if ticket.finished or not rows_waiting(ticket):
            continue
        ticket.refusal = SHARE_FULL
        ticket.retry_ns = max(<int64_t>batcher.fit_run.mean, <int64_t>1_000_000)
        ticket.endpoint.count_refused(SHARE_FULL)
        batcher.expired_some = True
        batcher.end(ticket, refusal(SHARE_FULL, ticket.retry_ns))
    return 0
