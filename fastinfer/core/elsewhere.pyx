# A batch that runs in another server: the loop goes on meanwhile, and nobody waits past a deadline.
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t

from fastinfer.errors import BackendTimeoutError, FastinferError


cdef int run_elsewhere(Batcher batcher, Batch batch) except -1:
    """Send a batch off; its requests wait for it until their deadlines."""
    batcher.running.add(batch)
    batch.guess = batcher.cost.guess(batch.rows.rows)
    batch.task = batcher.create_task(wait_for(batcher, batch))
    watch(batcher, batch, batch.started_ns)
    return 0


async def wait_for(Batcher batcher, Batch batch):
    """Run a batch as it is; any failure is left in it. All but the wait is done on the loop."""
    cdef Py_ssize_t asked = batch.rows.rows
    cdef list groups = [batch.slots] if batcher.forwards is None else alike(batch)
    try:
        if len(groups) == 1:
            batch.outputs = await ask(batcher, batch, batch.rows, batch.slots)
        else:
            batch.bisected = True
            await ask_each(batcher, batch, groups)
    except Exception as error:
        batch.error = as_runtime_error(error)
    batch.finished_ns = monotonic_ns()
    if batch.state != DONE:
        if batch.bisected:
            batcher.learn(asked, batch.finished_ns - batch.started_ns)
        if batcher.pace is not None:
            batcher.instances = batcher.pace(asked, batcher.waiting_rows > 0, batch.finished_ns / 1e9)
        batcher.complete(batch)


async def ask(Batcher batcher, Batch batch, Rows rows, list slots):
    """The outputs of a batch's rows, or of those of them that these slots are."""
    cdef Py_ssize_t asked = rows.rows, most = max(asked, batcher.fixed_rows)
    if asked < most and not rows.fill_up(most):
        raise MemoryError
    try:
        run = batcher.run_async(rows.arrays(), *passed_on(batcher, batch, slots))
    finally:
        rows.rows = asked
    return batcher.judged(batcher.outputs_in(await run), most)


cdef list alike(Batch batch):
    """The batch's slots in groups, of whose heads the other server is told the same: only such go in one request."""
    cdef dict groups = {}
    cdef Slot slot
    for slot in batch.slots:
        groups.setdefault(slot.ticket.fields, []).append(slot)
    return list(groups.values())


async def ask_each(Batcher batcher, Batch batch, list groups):
    """A request for each group at the same time; what fails one of them is not the others' fault."""
    cdef list tasks = [batcher.create_task(ask_one(batcher, batch, slots)) for slots in groups]
    try:
        for task in tasks:
            await task
    finally:
        for task in tasks:
            task.cancel()


async def ask_one(Batcher batcher, Batch batch, list slots):
    cdef Slot slot
    cdef Outputs outputs
    cdef Rows rows
    cdef list tags = []
    try:
        rows = rows_of(batcher, batch, slots, tags)
        outputs = await ask(batcher, batch, rows, slots)
    except Exception as error:
        for slot in slots:
            slot.error = as_runtime_error(error)
        return
    batch.answer_bytes = <double>outputs.nbytes() / max(rows.rows, batcher.fixed_rows, <Py_ssize_t>1)
    give_outputs(slots, outputs, tags)


cdef tuple passed_on(Batcher batcher, Batch batch, list slots):
    """What goes with a batch's slots: the last deadline of their requests, the ids, the highest priority, the trace
    and, where there are some, fields of their heads, which are the same for all. Raises why those cannot go on."""
    cdef int64_t deadline = 0
    cdef int rank = LOWEST_RANK
    cdef Slot slot
    cdef list ids = []
    cdef str trace = ""
    cdef object fields = None
    for slot in slots:
        deadline = max(deadline, slot.ticket.deadline)
        rank = min(rank, slot.ticket.rank)
        if slot.ticket.request is not None and slot.ticket.request.id:
            ids.append(slot.ticket.request.id)
        if not trace and is_trace(slot.ticket.trace):
            trace = slot.ticket.trace.decode()
        fields = slot.ticket.fields
    if isinstance(fields, FastinferError):
        raise fields
    told = min(deadline, last_moment(batcher, batch)) / 1e9, ids, 0 if rank == LOWEST_RANK else rank + 1, trace
    return told if fields is None else (*told, fields)


cdef int note_context(Ticket ticket, const Head* head, const char* p, const char* body) except -1:
    """Keep what another server is told of a head on the fast lane, which lies between two pointers."""
    if head.trace_size:
        ticket.trace = head.trace[:head.trace_size]
    if ticket.endpoint.batcher.forwards is not None:
        ticket.fields = ticket.endpoint.batcher.forwards(fields_between(p, body))
    return 0


cdef int take_context(Ticket ticket, Arrival arrival) except -1:
    """As ``note_context``, on the standard lane and over gRPC."""
    ticket.trace = arrival.trace
    if arrival.fields is not None and ticket.endpoint.batcher.forwards is not None:
        ticket.fields = ticket.endpoint.batcher.forwards(arrival.fields)
    return 0


cdef list fields_between(const char* p, const char* body):
    """The fields of a head that was found to be well-formed: names in lower case, and values."""
    cdef list fields = []
    for line in PyBytes_FromStringAndSize(p, body - p).split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            fields.append((name.lower(), value.strip(b" \t")))
    return fields


cdef bint is_trace(bytes given):
    """Whether it is a traceparent. Source: W3C Trace Context, version 00."""
    cdef Py_ssize_t i
    cdef char c
    if given is None or len(given) != 55:
        return False
    for i in range(55):
        c = given[i]
        if (c != c'-') if i in (2, 35, 52) else not (c'0' <= c <= c'9' or c'a' <= c <= c'f'):
            return False
    return True


cdef int64_t last_moment(Batcher batcher, Batch batch):
    return batch.started_ns + <int64_t>(batcher.run_timeout_s * SECOND_NS)


cdef int watch(Batcher batcher, Batch batch, int64_t now) except -1:
    """See to it that whoever waits for a batch is told when its time is over."""
    cdef int64_t due = last_moment(batcher, batch)
    cdef Slot slot
    for slot in batch.slots:
        if not slot.ticket.finished:
            due = min(due, slot.ticket.deadline)
    batch.timer = batcher.call_later(max(due - now, <int64_t>1_000_000) / 1e9, check_time, batcher, batch)
    return 0


def check_time(Batcher batcher, Batch batch):
    """Answer those of a batch that runs elsewhere whose time is over; when nobody waits for it, give it up."""
    cdef int64_t now = monotonic_ns()
    cdef bint over = now >= last_moment(batcher, batch)
    cdef bint awaited = False
    cdef Slot slot
    if batch.state == DONE:
        return
    for slot in batch.slots:
        if slot.ticket.finished:
            continue
        if over or slot.ticket.deadline <= now:
            batcher.end(slot.ticket, BackendTimeoutError("the model's server did not answer in time"))
        else:
            awaited = True
    if awaited:
        watch(batcher, batch, now)
    else:
        batch.task.cancel()
        batch.timed_out = True  # its slab may still be looked at
        batcher.learn(batch.rows.rows, now - batch.started_ns)  # at least
        batcher.last_run_ns = now
        batcher.running.discard(batch)
        batcher.finish(batch, None)
        batcher.run_on()
    if batcher.lane is not None:
        batcher.lane.flush()
