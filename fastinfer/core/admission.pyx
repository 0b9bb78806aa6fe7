# Whether a request can still make it: asked at its head, from what is known then, and again when it is decoded.
#
# Predicted is the rest of what runs, the queue ahead of it by priority, turn and deadline, its own batch, how late the
# loop itself is, and what of higher priorities comes meanwhile. Of those who wait only those ahead are counted; but
# nobody is let in who would push one past its deadline that was let in before, unless it is of a higher priority, or
# the other's client has more than its share (shares.pyx).
from libc.math cimport ceil, exp, sqrt
from libc.stdint cimport int64_t

from fastinfer.errors import (DeadlineUnreachableError, ExpiredError, FairShareError, QueueBytesFullError,
                              QueueFullError)

cdef int64_t LONG_TURN_NS = 5_000_000       # of the loop; one that takes longer counts as queue
cdef int64_t URGENT_NS = 60 * SECOND_NS        # for which a head passes for as urgent as bodies said they were
cdef int64_t STALE_NS = SECOND_NS              # since the last run, after which an idle model is tried again
cdef int64_t HOPELESS_NS = 10 * SECOND_NS   # and one that has never been fast enough, as far as is known
cdef double CAUTION = 1.5                   # a quantile of few runs, and a mean of fewer, err too
cdef double MOST_PASSING = 3.0              # deviations, by which more may pass than are likely to
cdef double HELD_BACK = 0.2                  # at most, of the time there is, for what may take longer
cdef double KEPT_FREE = 0.1                    # of the time a request has, at least, where others wait or run
cdef double RESERVE_KEPT = 511.0 / 512         # from one batch to the next
cdef double ENTERED_NS = 1e9                # over which it is known how much the more urgent ask for
cdef double MOST_TAKEN = 0.98               # of the time, that they are thought to take
cdef double CUT_SHARE = 0.25                # of a run, in the rows of those that leave others waiting
cdef int SAMPLED = 64                       # one in so many refusals at the head is left to the body

REFUSALS = (DeadlineUnreachableError, QueueFullError, QueueBytesFullError, FairShareError, ExpiredError)
REASONS = tuple(error.reason for error in REFUSALS)     # in the order of Reason, from its second on
assert len(REFUSALS) == REASON_COUNT - 1


# What a prediction is made of, once for a request.
cdef struct Outlook:
    double wait                 # nanoseconds until a run can begin
    double doubt                # the square of what may be added to it
    double reserve              # and what is, since others came late
    double remaining            # until the deadline
    double slower               # so many times, for runs have fewer rows than there is room for
    double passing              # rows a nanosecond of higher priorities that come meanwhile
    double left                 # and what they leave of the time, as a share
    Guess run                   # of a full batch
    Py_ssize_t rows             # of that batch
    int instances


cdef double takes(const Outlook* outlook, double rows) noexcept nogil:
    """Nanoseconds until so many rows have run that stand first in the queue.

    Runs vary apart from one another, so that what their sum varies by grows with the root of their number. What is
    held back for that is at most a part of the time there is: a model whose slowest runs take most of it anyway would
    else serve nobody.
    """
    cdef double runs = runs_until(outlook, rows, MOST_PASSING)
    cdef double spread = outlook.run.high - outlook.run.mean
    cdef double doubt = CAUTION * sqrt(outlook.doubt + runs * spread * spread) + outlook.reserve
    return outlook.wait + runs * outlook.run.mean * outlook.slower + min(doubt, HELD_BACK * outlook.remaining)


cdef double takes_on_average(const Outlook* outlook, double rows) noexcept nogil:
    return outlook.wait + runs_until(outlook, rows, 0) * outlook.run.mean * outlook.slower


cdef double runs_until(const Outlook* outlook, double rows, double caution) noexcept nogil:
    """Runs that are made until so many rows have run, and those that pass before the last of these runs begins.

    Who passes comes at random, and others come while those do: all of it is a busy period of an M/D/1 queue, so that
    the mean goes by the inverse of what such load leaves of the time, the variance by its cube.
    """
    cdef double runs = ceil(ceil(rows / outlook.rows) / outlook.instances)
    cdef double passing
    if outlook.passing:
        passing = outlook.passing * (outlook.wait + (runs - 1) * outlook.run.mean * outlook.slower) / outlook.left
        rows += passing + caution * sqrt(passing) / outlook.left
        runs = ceil(ceil(rows / outlook.rows) / outlook.instances)
    return runs


cdef Reason judge(Batcher batcher, const Asked* asked, int64_t* retry_ns):
    """ADMITTED, or why it is refused, and then in how many nanoseconds there may be room.

    What is to give way to it where it is let in stands in ``yielding``.
    """
    cdef Reason reason = let_in(batcher, asked, retry_ns)
    if reason != ADMITTED:
        keep_places(batcher)
        batcher.queue.short = True
    return reason


cdef Reason let_in(Batcher batcher, const Asked* asked, int64_t* retry_ns):
    cdef Holder* holder
    keep_places(batcher)
    retry_ns[0] = SECOND_NS
    if asked.key and asked.key != batcher.last_key:
        if batcher.last_key:
            batcher.company_ns = asked.now
        batcher.last_key = asked.key
    if batcher.waiting_rows:
        if batcher.waiting_bytes + asked.nbytes > <size_t>batcher.queue_bytes and not make_room(batcher, asked, True):
            return BYTES_FULL
        if batcher.waiting_rows + asked.rows > batcher.queue_rows and not make_room(batcher, asked, False):
            return ROWS_FULL
        if asked.key and passes_share(batcher, asked, batcher.waiting_rows, batcher.waiting_bytes):
            holder = queue_waiting(&batcher.queue, asked.key)
            if holder != NULL and passes_share(batcher, asked, holder.rows, holder.nbytes):
                return SHARE_FULL
    return judge_deadline(batcher, asked, retry_ns) if asked.deadline != NEVER else ADMITTED


cdef bint passes_share(Batcher batcher, const Asked* asked, Py_ssize_t rows, size_t nbytes) noexcept:
    """Whether a client that has so much waiting asks for more of the queue than it may have: half of it.

    Alone it may have nearly all: another that comes finds room for its first request, and from then on has its half.
    """
    cdef Py_ssize_t most_rows = batcher.queue_rows // 2, most_bytes = batcher.queue_bytes // 2
    if not has_company(batcher, asked.now):
        most_rows = batcher.queue_rows - batcher.queue_rows // 32
        most_bytes = batcher.queue_bytes - batcher.queue_bytes // 32
    return rows + asked.rows > most_rows or nbytes + asked.nbytes > <size_t>most_bytes


cdef Reason judge_deadline(Batcher batcher, const Asked* asked, int64_t* retry_ns):
    cdef Outlook outlook
    cdef Guess own
    cdef Holder* holder
    cdef bint company = asked.key and has_company(batcher, asked.now)
    cdef Py_ssize_t ahead = batcher.waiting_rows
    cdef bint idle = ahead == 0 and len(batcher.running) < batcher.instances
    cdef double predicted
    cdef int64_t quiet
    outlook.remaining = asked.deadline - asked.now
    if outlook.remaining <= 0:
        return PAST_DEADLINE
    outlook.rows = batcher.rows_within(asked.deadline - asked.arrived)
    outlook.run = batcher.fit_run
    if not outlook.run.known:
        return ADMITTED
    outlook.instances = batcher.instances
    outlook.reserve = batcher.reserve_ns
    outlook.slower, outlook.passing, outlook.left = 1, 0, 1
    if not idle:
        outlook.slower = cut_to_pieces(batcher, asked.now, &outlook)
        outlook.passing = passes_meanwhile(batcher, asked)
        outlook.left = 1 - min(MOST_TAKEN, outlook.passing * outlook.run.mean * outlook.slower
                               / (outlook.rows * outlook.instances))
        # a flood begins with connections that are made, and with runs that take longer than any before
        outlook.reserve = max(outlook.reserve, KEPT_FREE * (asked.deadline - asked.arrived))
    look_at_runs(batcher, asked.now, &outlook)
    if idle and asked.rows <= outlook.rows:
        own = batcher.cost.guess(asked.rows)
        outlook.run.mean, outlook.run.high = own.mean, own.high
    elif not batcher.running and ahead + asked.rows < outlook.rows:
        own = batcher.cost.guess(ahead + asked.rows)
        outlook.run.mean, outlook.run.high = own.mean, own.high
    batcher.queue.credit = lag_allowed(batcher, &outlook, asked.deadline - asked.arrived)
    if company and not idle and ahead + asked.rows > outlook.rows:  # past the next run it matters who goes first
        if takes(&outlook, 2 * (ahead + asked.rows)) > outlook.remaining:
            holder = queue_waiting(&batcher.queue, asked.key)
            if holder != NULL and goes_furthest(&batcher.queue, holder, asked.rows) and \
                    takes(&outlook, 2 * (holder.rows + asked.rows)) > outlook.remaining:
                retry_ns[0] = <int64_t>outlook.run.mean
                return SHARE_FULL  # one client may take at most half of the time there is
        return fit_in(batcher, asked, &outlook, retry_ns)
    if batcher.queue.excess:
        return fit_in(batcher, asked, &outlook, retry_ns)
    if not idle and not displaces(batcher, asked, &outlook, &ahead):
        retry_ns[0] = <int64_t>outlook.run.mean
        return PAST_DEADLINE
    predicted = takes(&outlook, ahead + asked.rows)
    if predicted > outlook.remaining:
        quiet = asked.now - batcher.last_run_ns
        if idle and quiet > STALE_NS and (outlook.run.best <= 2 * outlook.remaining or quiet > HOPELESS_NS
                                          and asked.now - batcher.seeded_ns > HOPELESS_NS):
            batcher.trying = True
            return ADMITTED  # nothing has told for a while how fast it is, and nobody is kept waiting
        retry_ns[0] = <int64_t>min(max(predicted - outlook.remaining, 0.0), 60.0 * SECOND_NS)
        return PAST_DEADLINE
    if asked.key and not idle and not company:  # who comes next is to find room
        if takes(&outlook, ahead + asked.rows + max(outlook.rows // 16, <Py_ssize_t>1)) > outlook.remaining:
            retry_ns[0] = <int64_t>outlook.run.mean
            return PAST_DEADLINE
    return ADMITTED


cdef Py_ssize_t lag_allowed(Batcher batcher, const Outlook* outlook, int64_t budget) noexcept:
    """As many rows as run while a request may wait: with so many one that asks modestly may come at once."""
    cdef double runs = max(budget / max(outlook.run.mean * outlook.slower, 1.0), 1.0)
    return <Py_ssize_t>min(runs * outlook.rows * outlook.instances, <double>(batcher.queue_rows // 2))


cdef double cut_to_pieces(Batcher batcher, int64_t now, const Outlook* outlook) noexcept:
    """By how much a row takes longer in the runs that there are than in full ones.

    Others' deadlines may leave room for fewer rows, and rows of other dimensions run apart.
    """
    cdef Py_ssize_t rows = <Py_ssize_t>batcher.cut_rows
    if not 0 < rows < outlook.rows or now - batcher.cut_ns > SECOND_NS or outlook.run.mean <= 0:
        return 1
    return max(batcher.cost.guess(rows).mean / rows * outlook.rows / outlook.run.mean, 1.0)


cdef double passes_meanwhile(Batcher batcher, const Asked* asked) noexcept:
    """Rows a nanosecond of higher priorities, as many as were let in of late, that are to pass one who waits."""
    cdef double rate = 0
    cdef int rank
    if asked.rank <= batcher.urgent_rank or asked.now - batcher.urgent_ns >= URGENT_NS:
        return 0
    for rank in range(asked.rank):
        if batcher.entering[rank] > 0:
            rate += batcher.entering[rank] * exp((batcher.entered_ns[rank] - asked.now) / ENTERED_NS)
    return rate


cdef int look_at_runs(Batcher batcher, int64_t now, Outlook* outlook) except -1:
    """When the first of what runs is over, where none can begin before, and how late the loop is."""
    cdef double rest, least = -1, doubt = 0, spread, elapsed
    cdef Batch batch
    outlook.wait = loop_lag(batcher, now)
    outlook.doubt = 0
    if len(batcher.running) < batcher.instances:
        return 0
    for batch in batcher.running:
        elapsed = now - batch.started_ns
        spread = batch.guess.high - batch.guess.mean
        rest = batch.guess.mean - elapsed
        if rest <= 0:  # it takes longer than most: as long as any, and then who knows
            spread = 0
            rest = max(batch.guess.high - elapsed, elapsed / 4)
        if least < 0 or rest < least:
            least = rest
            doubt = spread * spread
    outlook.wait += least
    outlook.doubt = doubt
    return 0


cdef bint displaces(Batcher batcher, const Asked* asked, const Outlook* outlook, Py_ssize_t* ahead):
    """Count the rows that go before; False where those that would have to let it pass could not make it then."""
    cdef Queue* queue = &batcher.queue
    cdef size_t i = queue.end
    cdef Waiting* entry
    cdef Py_ssize_t at_once = max(outlook.rows * outlook.instances, <Py_ssize_t>1)
    cdef Py_ssize_t rows = batcher.waiting_rows, edge = rows + at_once
    cdef Outlook theirs = outlook[0]
    while i > queue.begin:
        entry = &queue.data[i - 1]
        if entry.rank < asked.rank or entry.rank == asked.rank and entry.deadline <= asked.deadline:
            break
        if edge >= rows + at_once:  # where the run of its last row ends
            edge = (rows + at_once - 1) // at_once * at_once
        if entry.rank == asked.rank and entry.deadline != NEVER and (rows + asked.rows > edge or outlook.passing):
            theirs.remaining = entry.deadline - asked.now
            if takes_on_average(&theirs, rows) <= theirs.remaining < takes(&theirs, rows + asked.rows):
                return False  # it may make it as it is
        rows -= entry.rows
        i -= 1
    ahead[0] = rows
    return True


cdef void note_lateness(Batcher batcher, Batch batch, int64_t now) noexcept:
    """A batch is done. By as much as it was late the next ones are to be early, whatever it was that took longer.

    The reserve wears off in some hundred batches, so that less than one in a hundred comes late where such things
    happen again and again; where the queue is seldom long none comes late, and nothing is held back.
    """
    cdef double late = <double>now - batch.earliest
    if batch.earliest == NEVER or batch.timed_out:
        return
    if late <= 0:
        batcher.reserve_ns *= RESERVE_KEPT
    else:  # no more than is taken into account at most
        batcher.reserve_ns = min(batcher.reserve_ns + late, max(0.0, HELD_BACK * (batch.earliest - batch.created_ns)))


cdef void note_begun(Batcher batcher, Batch batch, int64_t now) noexcept:
    """A batch has left the queue to run."""
    batch.state = RUNNING
    batch.started_ns = now
    queue_pass_time(&batcher.queue, batch.live)
    if batcher.queue.begin < batcher.queue.end:
        if now - batcher.cut_ns > SECOND_NS:
            batcher.cut_rows = batch.live
        batcher.cut_rows += CUT_SHARE * (batch.live - batcher.cut_rows)
        batcher.cut_ns = now


cdef void note_entered(Batcher batcher, int rank, Py_ssize_t rows, int64_t now) noexcept:
    if rank < LOWEST_RANK:
        batcher.entering[rank] *= exp((batcher.entered_ns[rank] - now) / ENTERED_NS)
        batcher.entering[rank] += rows / ENTERED_NS
        batcher.entered_ns[rank] = now


cdef void note_lag(Batcher batcher, int64_t took, int64_t now) noexcept:
    """A turn of the loop took so long before it came to this model."""
    batcher.lag_ns += 0.25 * ((took if took > LONG_TURN_NS else 0) - batcher.lag_ns)
    batcher.lag_at = now


cdef double loop_lag(Batcher batcher, int64_t now) noexcept:
    return batcher.lag_ns if now - batcher.lag_at < SECOND_NS else 0


cdef int head_rank(Batcher batcher, int64_t now) noexcept:
    """How urgent a request may turn out to be whose body is not read: as the most urgent of the last minute."""
    return batcher.urgent_rank if now - batcher.urgent_ns < URGENT_NS else LOWEST_RANK


cdef void note_rank(Batcher batcher, int rank, int64_t now) noexcept:
    if rank <= batcher.urgent_rank or now - batcher.urgent_ns >= URGENT_NS:
        if rank < LOWEST_RANK:
            batcher.urgent_rank = rank
            batcher.urgent_ns = now


cdef object refusal(Reason reason, int64_t retry_ns):
    """What a caller of Python is told."""
    return REFUSALS[<int>reason - 1](max(retry_ns, <int64_t>1_000_000) / 1e9)
