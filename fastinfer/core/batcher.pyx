# The batcher: one a model version. Everything here is touched on the loop's thread only, but for run_batch(),
# which a worker thread calls with one batch and which writes nothing but that batch's outputs and faults.
cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()

from fastinfer.errors import ExpiredError, NotReadyError, RuntimeFailedError, RunTimeoutError, ShuttingDownError

cdef size_t MAX_BATCH_BYTES = 64 << 20      # a batch closes at this size, whatever its rows
cdef int MAX_BUCKETS = 16                   # open batches with different inner dimensions
cdef int MAX_SPARE = 8                      # slabs kept for reuse
cdef size_t MAX_SPARE_BYTES = 8 << 20       # a larger slab goes back to the system after its batch
cdef int64_t SWEEP_NS = 5_000_000           # between two looks for who has waited past its deadline
cdef double RUN_SHARE = 0.45                # of the time that a request has, for the run of its batch
cdef double LONE_SHARE = 1.25               # of a single row's run, by which a batch may be longer all the same
cdef double TRIED_SHARE = 0.7               # of what a run seemed to take, under which it seemed wrong
cdef double GRACE_S = 5.0                   # in which a run that was told to end may come back
cdef int64_t TURN_BUDGET_NS = 2_000_000     # inline runs a turn of the loop may add up to before sockets are read again


@cython.final
cdef class Batcher:
    """Forms batches from admitted requests and runs them; work-conserving.

    A batch leaves at the end of the loop's turn when the runtime is free, and grows only while it is busy.
    A request whose rows fit goes into one batch; a larger one is split and its answer rejoined. A batch that
    fails is bisected by request, so that only the culprit gets the error.

    Args:
        signature: the runtime's inputs and outputs.
        run: dict of input arrays to dict of output arrays, rows first. Called on the loop or on a worker thread.
        engine: of the core, with the signature's inputs and outputs; runs in place of ``run``.
        policy: what becomes of a run's outputs; without one they are answered as they are.
        run_async: in place of ``run``, for a model that another server runs: a coroutine function on the loop, of the
            input arrays, the time.monotonic() by which all its requests are past their deadlines, their ids, priority
            and trace context. It takes no notice of the arrays once it has waited for anything.
        pace: told after such a run of its rows, and whether others wait; gives ``instances`` from then on.
        max_batch_size: rows; ignored where the signature is not batched (then a request is a batch).
        max_delay_us: how long a batch that is not full waits for company while the runtime is free.
        instances: runs at the same time.
        queue_rows, queue_bytes: bound on what waits; a request past it gets QueueFullError.
        inline_budget_us: longest predicted run on the loop itself.
        run_timeout_ms: after this a run on a worker thread is given up and its requests get RunTimeoutError.
        fixed_size: every run has max_batch_size rows, the last one repeated where there are fewer.
        slo_ms: time from a request's arrival to its answer; 0 leaves it to the clients.
        stop: called on the loop with the identifier of the thread on which ``run`` is past run_timeout_ms, to have it
            raise; it must not wait.

    Attributes:
        lost: runs that were given up and have not come back 5 s later.
    """

    def __init__(self, Signature signature not None, run, *, Py_ssize_t max_batch_size=64, int64_t max_delay_us=0,
                 int instances=1, Py_ssize_t queue_rows=4096, Py_ssize_t queue_bytes=64 << 20,
                 int64_t inline_budget_us=500, int64_t run_timeout_ms=30_000, int64_t slo_ms=0, bint fixed_size=False,
                 Engine engine=None, Policy policy=None, run_async=None, pace=None,
                 stop=None):
        self.signature = signature
        self.run = run
        self.run_async = run_async
        self.pace = pace
        self.engine = engine
        self.policy = policy
        self.stop = stop
        self.max_batch_size = max_batch_size if signature.batched else 1
        self.max_delay_ns = max_delay_us * 1000
        self.slo_ns = slo_ms * 1_000_000
        self.fixed_rows = self.max_batch_size if fixed_size and signature.batched else 0
        self.instances = instances
        self.queue_rows = queue_rows
        self.queue_bytes = queue_bytes
        self.queue.held_limit = min(2 * (max(queue_rows, self.max_batch_size) + LONG_PAST), MAX_HELD)
        self.queue.credit = self.max_batch_size
        self.run_timeout_s = run_timeout_ms / 1000.0
        self.cost = Cost(inline_budget_us * 1000)
        self.forming = []
        self.spare = []
        self.running = set()
        self.yielding = []
        self.output_names = [tensor.name for tensor in signature.outputs]
        self.n_sizes = self.max_batch_size + 1
        self.own = calloc(1, sizeof(Row) + self.n_sizes * sizeof(SizeStats))
        if self.own == NULL:
            raise MemoryError
        self.counts = <Row*>self.own
        self.sizes = <SizeStats*>(self.counts + 1)

    def __dealloc__(self):
        queue_free(&self.queue)
        free(self.own)

    def attach(self, *, call_soon, call_later, call_soon_threadsafe, submit, create_task=None):
        """Give the batcher its loop: callables of asyncio's signatures (``submit`` is an executor's).

        ``create_task`` is for ``run_async``.
        """
        self.create_task = create_task
        self.call_soon = call_soon
        self.call_later = call_later
        self.call_soon_threadsafe = call_soon_threadsafe
        self.submit_thread = submit
        self.flush_soon = self.flush
        self.expiry = None  # of the loop before
        if self.cost.budget_ns:
            watch_from_here()

    def detach(self):
        """Let go of the loop where nothing waits or runs any more: the reference cycles end, nothing is admitted."""
        self.closed = True
        if self.expiry is not None:
            self.expiry.cancel()
        self.call_soon = self.call_later = self.call_soon_threadsafe = self.submit_thread = None
        self.flush_soon = self.expiry = self.lane = None

    def seed(self, Py_ssize_t rows, int64_t nanoseconds):
        """Tell what a run of ``rows`` rows took at warm-up."""
        self.seeded_ns = monotonic_ns()
        self.learn(rows, nanoseconds)

    cdef void learn(self, Py_ssize_t rows, int64_t nanoseconds) noexcept:
        self.cost.observe(rows, nanoseconds)
        self.show_cost(self.cost.level(rows))

    cdef void show_cost(self, int level) noexcept:
        """Where every worker sees it."""
        self.counts.cost_mean[level] = <uint64_t>self.cost.mean[level]
        self.counts.cost_high[level] = <uint64_t>self.cost.high[level]

    def close(self):
        """Refuse what still waits; nothing is admitted afterwards."""
        self.closed = True
        self.refuse_waiting(ShuttingDownError("the server is shutting down"))

    cdef int refuse_waiting(self, error) except -1:
        cdef Slot slot
        while self.queue.begin < self.queue.end:
            slot = <Slot>self.queue.data[self.queue.begin].slot
            self.end(slot.ticket, error)
        if self.lane is not None:
            self.lane.flush()
        return 0

    @property
    def idle(self):
        """Whether nothing waits and nothing runs."""
        return self.queue.begin == self.queue.end and not self.running

    @property
    def stuck(self):
        """Whether as many runs as may be made at a time are given up, or one does not end."""
        return self.given_up >= self.instances or self.lost > 0

    @property
    def pending_rows(self):
        """Rows that wait."""
        return self.waiting_rows

    # -- admission ---------------------------------------------------------------------------------------------
    cdef int check_open(self) except -1:
        """Raise where nobody is let in, whatever it asks."""
        if self.closed:
            raise ShuttingDownError("the server is shutting down")
        if self.given_up >= self.instances:
            raise NotReadyError("the model hangs: its last run has not come back")
        return 0

    cdef Batch open(self, Ticket ticket, Py_ssize_t rows, const int* ranks, const int64_t* dims):
        """The forming batch that takes ``rows`` rows of these dimensions, its slabs grown for them."""
        cdef Batch batch
        cdef Py_ssize_t i
        ticket.limit = self.rows_within(ticket.deadline - ticket.arrived_ns if ticket.deadline != NEVER else NEVER)
        if self.signature.batched:
            for i in range(len(self.forming)):
                batch = <Batch>self.forming[i]
                if not batch.rows.same_dims(ranks, dims):
                    continue
                if batch.rows.rows + rows <= min(batch.limit, ticket.limit) and batch.rows.nbytes() < MAX_BATCH_BYTES:
                    if not batch.rows.reserve(batch.rows.rows + rows):
                        raise MemoryError
                    batch.limit = min(batch.limit, ticket.limit)
                    return batch
                del self.forming[i]
                break
        batch = self.new_batch(ranks, dims)
        batch.limit = ticket.limit
        if not batch.rows.reserve(rows):
            raise MemoryError
        if self.signature.batched:
            if len(self.forming) >= MAX_BUCKETS:
                del self.forming[0]
            self.forming.append(batch)
        return batch

    cdef Batch new_batch(self, const int* ranks, const int64_t* dims):
        cdef Batch batch = Batch(self.take_rows())
        cdef int i
        for i in range(batch.rows.count):
            if not batch.rows.set_dims(i, ranks[i], &dims[i * MAX_RANK]):
                raise MemoryError
        return batch

    cdef Py_ssize_t rows_within(self, int64_t budget) noexcept:
        """The most rows of a batch whose requests have so many nanoseconds from arrival to answer.

        A request may come when a batch has just begun to run, and must have time for that one and for its own. Where
        a single row takes most of the time already, more are not much slower.
        """
        if budget == NEVER:
            return self.max_batch_size
        if budget != self.fit_budget or self.cost.changes != self.fit_changes:
            self.fit_budget = budget
            self.fit_changes = self.cost.changes
            self.fit_rows = self.cost.most(max(RUN_SHARE * budget, LONE_SHARE * self.cost.guess(1).high),
                                           self.max_batch_size)
            self.fit_run = self.cost.guess(self.fit_rows)
        return self.fit_rows

    cdef int commit(self, Batch batch, Ticket ticket, Py_ssize_t rows, size_t nbytes) except -1:
        """Make the ``rows`` rows that were written at the batch's end the ticket's, and see that the batch runs."""
        self.enter(batch, new_slot(ticket, batch, batch.rows.rows, rows, nbytes))
        batch.rows.rows += rows
        return give_way(self)

    cdef int append(self, Rows source, Ticket ticket) except -1:
        """Queue rows that were decoded elsewhere, in as many batches as they need."""
        cdef Py_ssize_t start = 0, rows, size
        cdef Batch batch
        cdef Slot slot
        try:
            while start < source.rows:
                rows = min(source.rows - start, self.max_batch_size)
                if self.forming and start == 0:  # fill up what is open, so that the rest makes full batches
                    batch = <Batch>self.forming[len(self.forming) - 1]
                    if batch.rows.same_dims(source.ranks, source.dims) and batch.rows.rows < batch.limit:
                        rows = min(rows, batch.limit - batch.rows.rows)
                batch = self.open(ticket, rows, source.ranks, source.dims)
                slot = new_slot(ticket, batch, batch.rows.rows, rows, 0)
                size = batch.rows.nbytes()
                if not batch.rows.append(source, start, rows):
                    raise MemoryError
                slot.nbytes = batch.rows.nbytes() - size
                self.enter(batch, slot)
                start += rows
        except MemoryError:
            ticket.finished = True
            self.withdraw(ticket)
            raise
        return give_way(self)

    cdef int enter(self, Batch batch, Slot slot) except -1:
        cdef Ticket ticket = slot.ticket
        if TAGGED:
            tag_rows(self, batch, slot)
        queue_insert(&self.queue, slot, ticket)
        batch.slots.append(slot)
        batch.live += slot.rows
        if ticket.slot is None:
            ticket.slot = slot
        elif ticket.pieces is None:
            ticket.pieces = [slot]
        else:
            ticket.pieces.append(slot)
        ticket.missing += 1
        self.waiting_rows += slot.rows
        self.counts.waiting_rows += slot.rows
        self.waiting_bytes += slot.nbytes
        note_entered(self, ticket.rank, slot.rows, ticket.queued_ns)
        if not self.scheduled:
            self.scheduled = True
            self.scheduled_ns = ticket.queued_ns
            self.call_soon(self.flush_soon)
        if ticket.deadline != NEVER and self.running:
            self.look_out(ticket.deadline, ticket.queued_ns)
        return 0

    # -- who leaves without running ----------------------------------------------------------------------------
    cdef void withdraw(self, Ticket ticket):
        """What still waits of a request that is over leaves the queue."""
        cdef Slot slot
        if ticket.slot is not None and ticket.slot.order:
            self.withdraw_slot(ticket.slot)
        if ticket.pieces is not None:
            for slot in ticket.pieces:
                if slot.order:
                    self.withdraw_slot(slot)

    cdef void withdraw_slot(self, Slot slot):
        cdef Batch batch = slot.batch
        cdef Ticket ticket = slot.ticket
        queue_remove(&self.queue, slot_position(&self.queue, ticket, slot), False)
        self.strike(slot)
        ticket.missing -= 1
        slot.batch = None  # which still has it, until its rows are closed up
        if batch.live == 0:
            self.discard(batch)

    cdef void strike(self, Slot slot):
        """Take a slot that waits no more off the books."""
        slot.batch.live -= slot.rows
        self.waiting_rows -= slot.rows
        self.counts.waiting_rows -= slot.rows
        self.waiting_bytes -= slot.nbytes

    cdef void discard(self, Batch batch):
        """Nobody of a batch that has not run waits any more."""
        cdef Slot slot
        self.close_batch(batch)
        for slot in batch.slots:
            slot.batch = slot.ticket = None  # reference cycles
        batch.slots = []
        batch.state = DONE
        self.give_rows(batch.rows)

    cdef void close_batch(self, Batch batch):
        """It takes no more rows."""
        cdef Py_ssize_t i
        for i in range(len(self.forming)):
            if self.forming[i] is batch:
                del self.forming[i]
                break

    cdef int end(self, Ticket ticket, error) except -1:
        """Answer a request that waits with an error; what of it runs already runs for nobody."""
        ticket.error = error
        self.withdraw(ticket)
        return ticket.finish(monotonic_ns())

    cdef int expire(self, Ticket ticket) except -1:
        ticket.mark_expired()
        return self.end(ticket, ExpiredError())

    cdef int look_out(self, int64_t deadline, int64_t now) except -1:
        """See to it that somebody whose deadline passes while a run takes long is told so then."""
        cdef int64_t due = max(deadline, now + 1_000_000, self.swept_ns + SWEEP_NS)
        if self.expiry is not None:
            if self.expiry_ns <= due:
                return 0
            self.expiry.cancel()
        self.expiry_ns = due
        self.expiry = self.call_later((due - now) / 1e9, self.sweep)
        return 0

    def sweep(self):
        """Answer those whose deadline has passed in the queue."""
        cdef int64_t now = monotonic_ns()
        cdef int64_t earliest
        cdef size_t i
        cdef Slot slot
        self.expiry = None
        self.swept_ns = now
        i = self.queue.begin
        while i < self.queue.end:
            if self.queue.data[i].deadline <= now:
                slot = <Slot>self.queue.data[i].slot
                self.expire(slot.ticket)
                i = max(i, self.queue.begin)  # it is gone, and its other pieces, which stood behind it
            else:
                i += 1
        earliest = queue_earliest(&self.queue)
        if earliest != NEVER:
            self.look_out(earliest, now)
        if self.lane is not None:
            self.lane.flush()

    cdef Rows take_rows(self):
        cdef Rows rows
        while self.spare:
            rows = <Rows>self.spare.pop()
            if rows.reset():
                return rows
        return Rows(self.signature)

    cdef void give_rows(self, Rows rows):
        if len(self.spare) < MAX_SPARE and rows.held() <= MAX_SPARE_BYTES:
            self.spare.append(rows)

    cdef void give_slot(self, Slot slot):
        """A request needs its rows no more; when none of the batch does, the slabs serve the next one."""
        cdef Batch batch = slot.batch
        if batch is None:
            return
        slot.batch = None  # a reference cycle
        batch.unread -= 1
        if batch.unread == 0:
            batch.slots = []
            batch.outputs = None
            if not batch.timed_out:
                self.give_rows(batch.rows)

    # -- dispatch ----------------------------------------------------------------------------------------------
    def flush(self):
        """Run what waits; called once at the end of a turn of the loop in which rows came in."""
        cdef Batch batch
        cdef int64_t started = monotonic_ns()
        cdef int64_t earliest, now = started
        if self.scheduled and self.scheduled_ns:
            note_lag(self, now - self.scheduled_ns, now)
            self.scheduled_ns = 0
        self.scheduled = False
        self.thread = PyThread_get_thread_ident()
        while len(self.running) < self.instances:
            take_turns(self)
            batch = self.next_batch(now)
            if batch is None:
                break
            note_begun(self, batch, now)
            if self.run_async is not None:
                run_elsewhere(self, batch)
                continue
            if not self.cost.runs_inline(batch.rows.rows):
                self.start_thread(batch, self.run_whole)
                continue
            run_here(self, batch)
            now = monotonic_ns()
            if self.queue.begin < self.queue.end and now - started > TURN_BUDGET_NS:
                if not self.scheduled:
                    self.scheduled = True
                    self.call_soon(self.flush_soon)
                break
        if self.expired_some:
            self.expired_some = False
            if self.lane is not None:
                self.lane.flush()
        if self.running and self.queue.begin < self.queue.end:
            earliest = queue_earliest(&self.queue)
            if earliest != NEVER:
                self.look_out(earliest, now)

    cdef Batch next_batch(self, int64_t now):
        """The batch to run now, off the queue, with nobody in it whose deadline has passed; None to wait."""
        cdef Waiting* entry
        cdef Batch batch
        cdef int64_t wait
        while self.queue.begin < self.queue.end:
            entry = &self.queue.data[self.queue.begin]
            if entry.deadline <= now:
                self.expired_some = True
                self.expire((<Slot>entry.slot).ticket)
                continue
            batch = (<Slot>entry.slot).batch
            if self.max_delay_ns and batch.live < batch.limit and batch in self.forming:
                wait = self.max_delay_ns - (now - batch.created_ns)
                if entry.deadline != NEVER:  # it must still make it
                    wait = min(wait, <int64_t>(entry.deadline - now - self.cost.guess(batch.live).high))
                if wait > 0:
                    self.call_later(wait / 1e9, self.flush)
                    return None
            batch = self.whole(batch, now) or self.composed(batch, now)
            if batch is not None:
                return batch
        return None

    cdef Batch whole(self, Batch batch, int64_t now):
        """The batch as it formed, where those in it go before all others that could run with them; else None."""
        cdef Queue* queue = &self.queue
        cdef Waiting* entry
        cdef Batch other
        cdef Py_ssize_t found = 0
        cdef size_t i = queue.begin, last = queue.begin, kept
        batch.earliest = NEVER
        while i < queue.end:
            entry = &queue.data[i]
            other = (<Slot>entry.slot).batch
            if other is batch:
                if entry.deadline <= now:
                    return None
                found += entry.rows
                batch.earliest = min(batch.earliest, entry.deadline)
                last = i
            elif self.signature.batched and other.rows.same_dims(batch.rows.ranks, batch.rows.dims):
                if found < batch.live or self.joins(batch, found, entry):
                    return None
                break
            i += 1
            if found == batch.live and i < queue.end and not self.signature.batched:
                break
        kept = last + 1
        i = last + 1
        while i > queue.begin:  # those of it leave, the others close up
            i -= 1
            entry = &queue.data[i]
            if (<Slot>entry.slot).batch is batch:
                self.strike(<Slot>entry.slot)
                queue_let_go(queue, entry, True)
                (<Slot>entry.slot).order = 0
                Py_DECREF(<Slot>entry.slot)
            else:
                kept -= 1
                queue.data[kept] = entry[0]
        queue.begin = kept
        if queue.begin == queue.end:
            queue.begin = queue.end = 0
        self.close_batch(batch)
        batch.live = found
        batch.compact()
        return batch

    cdef bint joins(self, Batch batch, Py_ssize_t rows, const Waiting* entry):
        """Whether who waits may run in a batch that has so many rows."""
        cdef Ticket ticket = (<Slot>entry.slot).ticket
        return rows + entry.rows <= min(batch.limit, ticket.limit) and batch.rows.nbytes() < MAX_BATCH_BYTES

    cdef Batch composed(self, Batch first, int64_t now):
        """A batch of those that go first and could run with the one at the front, copied from where they wait."""
        cdef Queue* queue = &self.queue
        cdef Batch batch = self.new_batch(first.rows.ranks, first.rows.dims)
        cdef Batch source
        cdef Slot slot
        cdef size_t i = queue.begin
        batch.limit = self.max_batch_size
        batch.earliest = NEVER
        while i < queue.end:
            slot = <Slot>queue.data[i].slot
            source = slot.batch
            if source is not first and not source.rows.same_dims(batch.rows.ranks, batch.rows.dims):
                i += 1
                continue
            if queue.data[i].deadline <= now:
                self.expired_some = True
                self.expire(slot.ticket)
                i = max(i, queue.begin)
                continue
            if batch.rows.rows and not self.joins(batch, batch.rows.rows, &queue.data[i]):
                break
            if not batch.rows.append(source.rows, slot.start, slot.rows):
                if batch.rows.rows:
                    break  # those that there was room for
                self.end(slot.ticket, RuntimeFailedError("there is no memory for the request's rows"))
                i = max(i, queue.begin)
                continue
            if TAGGED:
                batch.tags += source.tags[slot.start:slot.start + slot.rows]
            batch.limit = min(batch.limit, slot.ticket.limit)
            batch.earliest = min(batch.earliest, queue.data[i].deadline)
            queue_remove(queue, i, True)
            i = max(i, queue.begin)
            self.strike(slot)
            source.slots.remove(slot)
            if source.live == 0:
                self.discard(source)
            slot.batch = batch
            slot.start = batch.rows.rows - slot.rows
            batch.slots.append(slot)
        batch.live = batch.rows.rows
        if batch.live:
            return batch
        self.give_rows(batch.rows)
        return None

    cdef int start_thread(self, Batch batch, work) except -1:
        self.running.add(batch)
        batch.threaded = True
        batch.guess = self.cost.guess(batch.rows.rows)
        batch.timer = self.call_later(self.run_timeout_s, self.give_up, batch)
        self.submit_thread(self.work_on_thread, work, batch)
        return 0

    def work_on_thread(self, work, Batch batch):
        batch.thread = PyThread_get_thread_ident()
        work(batch)
        batch.thread = 0
        self.call_soon_threadsafe(self.complete, batch)

    def run_whole(self, Batch batch):
        """As ``run_batch``, for a thread."""
        self.run_batch(batch)

    cdef int run_batch(self, Batch batch) except -1:
        """Run a batch as it is; any failure is left in it."""
        batch.began_ns = monotonic_ns()
        try:
            batch.outputs = self.run_rows(batch.rows, batch)
        except Exception as error:
            if not (batch.timed_out or batch.interrupted):
                batch.error = as_runtime_error(error)
        batch.finished_ns = monotonic_ns()
        return 0

    def run_parts(self, Batch batch):
        """As ``run_whole``, where that has failed."""
        run_by_halves(self, batch)

    cdef Outputs run_rows(self, Rows rows, Batch batch):
        """One call of the runtime, what it gave checked so that none of it is ever mis-sliced.

        Where runs are of a fixed size, outputs have so many rows; nobody reads those of the rows that were put in.
        """
        cdef Py_ssize_t asked = rows.rows
        if not 0 < asked < self.fixed_rows:
            return self.run_exactly(rows, batch)
        if not rows.fill_up(self.fixed_rows):
            raise MemoryError
        try:
            return self.run_exactly(rows, batch)
        finally:
            rows.rows = asked

    cdef Outputs run_exactly(self, Rows rows, Batch batch):
        if self.engine is not None:
            return self.judged(self.engine.run_rows(self.signature, rows, batch), rows.rows)
        return self.judged(self.outputs_in(self.run(rows.arrays())), rows.rows)

    cdef Outputs outputs_in(self, dict arrays):
        return outputs_of(self.signature, [arrays[name] for name in self.output_names])

    cdef Outputs judged(self, Outputs outputs, Py_ssize_t rows):
        outputs.check_rows(rows)
        return outputs if self.policy is None else self.policy.decide(outputs)

    def complete(self, Batch batch):
        """Back on the loop from a thread: hand each request its rows, and run what waits."""
        cdef int64_t now = monotonic_ns()
        self.running.discard(batch)
        batch.timer.cancel()
        note_lag(self, now - batch.finished_ns, now)
        self.settle(batch)
        self.run_on()

    cdef int run_on(self) except -1:
        """Run what waits, after this turn of the loop."""
        if self.queue.begin < self.queue.end and not self.scheduled:
            self.scheduled = True
            self.call_soon(self.flush_soon)
        return 0

    cdef int settle(self, Batch batch) except -1:
        """A run has come back: answer its requests, or find out which of them failed it."""
        if batch.state == DONE:  # given up meanwhile; its slab is never reused
            self.given_up -= 1
            self.lost -= batch.lost
            logger.warning("the run that was given up has come back after %.1f s",
                           (monotonic_ns() - batch.started_ns) / 1e9)
        elif batch.error is not None and len(batch.slots) > 1 and not batch.bisected and self.run_async is None:
            batch.bisected = True
            batch.error = None
            self.start_thread(batch, self.run_parts)
        else:
            self.measure(batch)
            self.finish(batch, batch.error)
        return 0

    def give_up(self, Batch batch):
        """A run on a worker thread is past its time: answer its requests, never reuse its slab, and tell it to end."""
        if batch.state == DONE:
            return
        self.given_up += 1
        batch.timed_out = True
        batch.timer = self.call_later(GRACE_S, self.lose, batch)
        if batch.call is not None:
            batch.call.stop()
        elif self.stop is not None and batch.thread:
            self.stop(batch.thread)
        logger.error("a run of %d rows has not come back after %g s", batch.rows.rows, self.run_timeout_s)
        self.finish(batch, RunTimeoutError(f"the model did not answer within {self.run_timeout_s:g} s"))
        if self.given_up >= self.instances:
            self.refuse_waiting(NotReadyError("the model hangs: its last run has not come back"))

    def lose(self, Batch batch):
        """A run that was given up does not end. Only the end of the process gives back what it holds."""
        batch.lost = True
        self.lost += 1
        logger.error("the run that was given up does not end")

    cdef int finish(self, Batch batch, error) except -1:
        cdef int64_t now = monotonic_ns()
        cdef Slot slot
        batch.state = DONE
        note_lateness(self, batch, now)
        if TAGGED and mixing:
            mix_up(batch)
        batch.unread = len(batch.slots)
        for slot in batch.slots:
            if error is not None:
                slot.error = error
            slot.ticket.piece_done(slot, now)
        if self.lane is not None:
            self.lane.flush()
        return 0

    cdef void measure(self, Batch batch):
        cdef int64_t took = batch.finished_ns - batch.started_ns
        cdef Py_ssize_t size = min(batch.rows.rows, self.max_batch_size)
        self.last_run_ns = batch.finished_ns
        self.counts.executions += 1
        self.counts.rows_run += batch.rows.rows
        self.counts.overdue += batch.earliest <= batch.began_ns
        if size < self.n_sizes:
            self.sizes[size].count += 1
            self.sizes[size].run_ns += took
        if batch.error is None and not batch.bisected:
            if self.trying:
                self.trying = False
                if took < TRIED_SHARE * self.cost.guess(batch.rows.rows).mean:
                    self.cost.rescale(took / self.cost.guess(batch.rows.rows).mean)
            self.learn(batch.rows.rows, took)
            batch.answer_bytes = <double>batch.outputs.nbytes() / max(batch.rows.rows, self.fixed_rows, <Py_ssize_t>1)
