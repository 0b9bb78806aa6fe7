# A batch that runs in another server: the loop goes on meanwhile, and nobody waits past a deadline.
from libc.stdint cimport int64_t

from fastinfer.errors import BackendTimeoutError


cdef int run_elsewhere(Batcher batcher, Batch batch) except -1:
    """Send a batch off; its requests wait for it until their deadlines."""
    batcher.running.add(batch)
    batch.guess = batcher.cost.guess(batch.rows.rows)
    batch.task = batcher.create_task(wait_for(batcher, batch))
    watch(batcher, batch, batch.started_ns)
    return 0


async def wait_for(Batcher batcher, Batch batch):
    """Run a batch as it is; any failure is left in it. All but the wait is done on the loop."""
    cdef Py_ssize_t asked = batch.rows.rows, rows = max(asked, batcher.fixed_rows)
    try:
        if asked < rows and not batch.rows.fill_up(rows):
            raise MemoryError
        try:
            run = batcher.run_async(batch.rows.arrays(), *passed_on(batcher, batch))
        finally:
            batch.rows.rows = asked
        batch.outputs = batcher.judged(batcher.outputs_in(await run), rows)
    except Exception as error:
        batch.error = as_runtime_error(error)
    batch.finished_ns = monotonic_ns()
    if batch.state != DONE:
        if batcher.pace is not None:
            batcher.instances = batcher.pace(asked, batcher.waiting_rows > 0, batch.finished_ns / 1e9)
        batcher.complete(batch)


cdef tuple passed_on(Batcher batcher, Batch batch):
    """What goes with a batch: its last deadline, and the ids, the highest priority and the trace of its requests."""
    cdef int64_t deadline = 0
    cdef int rank = LOWEST_RANK
    cdef Slot slot
    cdef list ids = []
    cdef str trace = ""
    for slot in batch.slots:
        deadline = max(deadline, slot.ticket.deadline)
        rank = min(rank, slot.ticket.rank)
        if slot.ticket.request is not None and slot.ticket.request.id:
            ids.append(slot.ticket.request.id)
        if not trace and is_trace(slot.ticket.trace):
            trace = slot.ticket.trace.decode()
    return min(deadline, last_moment(batcher, batch)) / 1e9, ids, 0 if rank == LOWEST_RANK else rank + 1, trace


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
