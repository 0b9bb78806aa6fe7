# The batcher: one a model version. Everything here is touched on the loop's thread only, but for run_batch(),
# which a worker thread calls with one batch and which writes nothing but that batch's outputs and faults.
cimport cython
from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memmove

cdef extern from "<time.h>" nogil:
    enum: CLOCK_MONOTONIC
    struct timespec:
        int64_t tv_sec
        int64_t tv_nsec
    int clock_gettime(int clock, timespec* out)

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()

import logging
from collections import deque

from fastinfer.errors import (FastinferError, InvalidValueError, NotReadyError, QueueFullError, RuntimeFailedError,
                              RunTimeoutError, ShuttingDownError)

logger = logging.getLogger("fastinfer.batch")

cdef size_t MAX_BATCH_BYTES = 64 << 20      # a batch closes at this size, whatever its rows
cdef int MAX_BUCKETS = 16                   # open batches with different inner dimensions
cdef int MAX_SPARE = 8                      # slabs kept for reuse
cdef size_t MAX_SPARE_BYTES = 8 << 20       # a larger slab goes back to the system after its batch
cdef int64_t TURN_BUDGET_NS = 2_000_000     # inline runs a turn of the loop may add up to before sockets are read again


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1_000_000_000 + now.tv_nsec


@cython.final
@cython.freelist(256)
cdef class Slot:
    """A request's rows in one batch: all of them, or a piece when the request is larger than a batch."""


cdef Slot new_slot(Ticket ticket, Batch batch, Py_ssize_t start, Py_ssize_t rows):
    cdef Slot slot = Slot.__new__(Slot)
    slot.ticket = ticket
    slot.batch = batch
    slot.start = start
    slot.rows = rows
    return slot


@cython.final
cdef class Batch:
    """Rows that run together: FORMING, then RUNNING, then DONE."""

    def __cinit__(self, Rows rows):
        self.rows = rows
        self.slots = []
        self.state = FORMING
        self.created_ns = monotonic_ns()

    cdef void drop_cancelled(self):
        """Close the gaps that cancelled requests leave, so that their rows do not run."""
        cdef Slot slot
        cdef Py_ssize_t kept = 0
        cdef int i
        cdef list alive
        for slot in self.slots:
            if slot.ticket.finished:
                break
        else:
            return
        alive = []
        for slot in self.slots:
            if slot.ticket.finished:
                slot.batch = slot.ticket = None  # nobody asks for it any more
                continue
            if slot.start != kept:
                for i in range(self.rows.count):
                    memmove(rows_at(self.rows, i, kept), rows_at(self.rows, i, slot.start),
                            <size_t>slot.rows * self.rows.row_bytes[i])
                slot.start = kept
            kept += slot.rows
            alive.append(slot)
        self.slots = alive
        self.rows.rows = kept


@cython.final
cdef class Cost:
    """What a run of n rows costs, learned on line: a mean and a mean deviation for each power of two of n."""

    def __cinit__(self, int64_t budget_ns):
        self.budget_ns = budget_ns

    cdef int level(self, Py_ssize_t rows) noexcept nogil:
        cdef int level = 0
        while level < COST_LEVELS - 1 and (<Py_ssize_t>1 << level) < rows:
            level += 1
        return level

    cdef void observe(self, Py_ssize_t rows, int64_t nanoseconds) noexcept nogil:
        cdef int level = self.level(rows)
        cdef double error = nanoseconds - self.mean[level]
        if self.seen[level] == 0:
            self.mean[level] = nanoseconds
            self.deviation[level] = 0.25 * nanoseconds
        else:
            self.mean[level] += 0.125 * error
            self.deviation[level] += 0.125 * ((error if error > 0 else -error) - self.deviation[level])
        self.seen[level] += 1

    cdef double predict(self, Py_ssize_t rows) noexcept nogil:
        """Nanoseconds that about 95 of 100 such runs stay under; infinite when nothing is known.

        A size that was never run takes the nearest larger one, else the nearest smaller one scaled by rows.
        """
        cdef int level = self.level(rows)
        cdef int i
        for i in range(level, COST_LEVELS):
            if self.seen[i]:
                return self.mean[i] + 2 * self.deviation[i]
        for i in range(level - 1, -1, -1):
            if self.seen[i]:
                return (self.mean[i] + 2 * self.deviation[i]) * (<Py_ssize_t>1 << (level - i))
        return INFINITY

    cdef bint runs_inline(self, Py_ssize_t rows) noexcept nogil:
        """Whether such a run may be made on the loop; it comes back to the loop only at half the budget."""
        cdef int level = self.level(rows)
        cdef double limit = self.budget_ns // 2 if self.threaded[level] else self.budget_ns
        self.threaded[level] = self.predict(rows) > limit
        return not self.threaded[level]


@cython.final
cdef class Batcher:
    """Forms batches from admitted requests and runs them; work-conserving.

    A batch leaves at the end of the loop's turn when the runtime is free, and grows only while it is busy.
    A request whose rows fit goes into one batch; a larger one is split and its answer rejoined. A batch that
    fails is bisected by request, so that only the culprit gets the error.

    Args:
        signature: the runtime's inputs and outputs.
        run: dict of input arrays to dict of output arrays, rows first. Called on the loop or on a worker thread.
        session: of onnxruntime, plain, with the signature's inputs and outputs; runs in place of ``run``.
        max_batch_size: rows; ignored where the signature is not batched (then a request is a batch).
        max_delay_us: how long a batch that is not full waits for company while the runtime is free.
        instances: runs at the same time.
        queue_rows, queue_bytes: bound on what waits; a request past it gets QueueFullError.
        inline_budget_us: longest predicted run on the loop itself.
        run_timeout_ms: after this a run on a worker thread is given up and its requests get RunTimeoutError.
    """

    def __init__(self, Signature signature not None, run, *, Py_ssize_t max_batch_size=64, int64_t max_delay_us=0,
                 int instances=1, Py_ssize_t queue_rows=4096, Py_ssize_t queue_bytes=64 << 20,
                 int64_t inline_budget_us=500, int64_t run_timeout_ms=30_000, Session session=None):
        self.signature = signature
        self.run = run
        self.session = session
        self.max_batch_size = max_batch_size if signature.batched else 1
        self.max_delay_ns = max_delay_us * 1000
        self.instances = instances
        self.queue_rows = queue_rows
        self.queue_bytes = queue_bytes
        self.run_timeout_s = run_timeout_ms / 1000
        self.cost = Cost(inline_budget_us * 1000)
        self.queue = deque()
        self.forming = []
        self.spare = []
        self.running = set()
        self.output_names = [tensor.name for tensor in signature.outputs]
        self.n_sizes = self.max_batch_size + 1
        self.own = calloc(1, sizeof(Row) + self.n_sizes * sizeof(SizeStats))
        if self.own == NULL:
            raise MemoryError
        self.counts = <Row*>self.own
        self.sizes = <SizeStats*>(self.counts + 1)

    def __dealloc__(self):
        free(self.own)

    def attach(self, *, call_soon, call_later, call_soon_threadsafe, submit):
        """Give the batcher its loop: four callables of asyncio's signatures (``submit`` is an executor's)."""
        self.call_soon = call_soon
        self.call_later = call_later
        self.call_soon_threadsafe = call_soon_threadsafe
        self.submit_thread = submit
        self.flush_soon = self.flush

    def seed(self, Py_ssize_t rows, int64_t nanoseconds):
        """Tell what a run of ``rows`` rows took at warm-up."""
        self.cost.observe(rows, nanoseconds)

    def close(self):
        """Refuse what still waits; nothing is admitted afterwards."""
        self.closed = True
        self.refuse_waiting(ShuttingDownError("the server is shutting down"))

    cdef int refuse_waiting(self, error) except -1:
        cdef Batch batch
        while self.queue:
            batch = self.queue.popleft()
            self.forget(batch)
            self.finish(batch, error)
        return 0

    @property
    def idle(self):
        """Whether nothing waits and nothing runs."""
        return not self.queue and not self.running

    @property
    def stuck(self):
        """Whether a run was given up and has not come back."""
        return self.given_up > 0

    @property
    def pending_rows(self):
        """Rows that wait."""
        return self.waiting_rows

    # -- admission ---------------------------------------------------------------------------------------------
    cdef int admit(self, Py_ssize_t rows, size_t nbytes) except -1:
        """Raise unless the queue has room. A request larger than the whole queue is taken when nothing waits."""
        if self.closed:
            raise ShuttingDownError("the server is shutting down")
        if self.given_up >= self.instances:
            raise NotReadyError("the model hangs: its last run has not come back")
        if self.waiting_rows and (self.waiting_rows + rows > self.queue_rows
                                  or self.waiting_bytes + nbytes > <size_t>self.queue_bytes):
            raise QueueFullError(f"the model's queue is full: {self.waiting_rows} rows wait, "
                                 f"at most {self.queue_rows} may")
        return 0

    cdef Batch open(self, Py_ssize_t rows, const int* ranks, const int64_t* dims):
        """The forming batch that takes ``rows`` rows of these dimensions, its slabs grown for them."""
        cdef Batch batch
        cdef Py_ssize_t i
        if self.signature.batched:
            for i in range(len(self.forming)):
                batch = <Batch>self.forming[i]
                if not batch.rows.same_dims(ranks, dims):
                    continue
                if batch.rows.rows + rows <= self.max_batch_size and batch.rows.nbytes() < MAX_BATCH_BYTES:
                    if not batch.rows.reserve(batch.rows.rows + rows):
                        raise MemoryError
                    return batch
                del self.forming[i]
                break
        batch = Batch(self.take_rows())
        for i in range(batch.rows.count):
            if not batch.rows.set_dims(<int>i, ranks[i], &dims[i * MAX_RANK]):
                raise MemoryError
        if not batch.rows.reserve(rows):
            raise MemoryError
        if self.signature.batched:
            if len(self.forming) >= MAX_BUCKETS:
                del self.forming[0]
            self.forming.append(batch)
        return batch

    cdef int commit(self, Batch batch, Ticket ticket, Py_ssize_t rows, size_t nbytes) except -1:
        """Make the ``rows`` rows that were written at the batch's end the ticket's, and see that the batch runs."""
        cdef Slot slot = new_slot(ticket, batch, batch.rows.rows, rows)
        batch.rows.rows += rows
        batch.nbytes += nbytes
        self.enter(batch, slot)
        return 0

    cdef int append(self, Rows source, Ticket ticket) except -1:
        """Queue rows that were decoded elsewhere, in as many batches as they need."""
        cdef Py_ssize_t start = 0, rows, size
        cdef Batch batch
        cdef Slot slot
        while start < source.rows:
            rows = min(source.rows - start, self.max_batch_size)
            if self.forming and start == 0:  # fill up what is open, so that the rest makes full batches
                batch = <Batch>self.forming[len(self.forming) - 1]
                if batch.rows.same_dims(source.ranks, source.dims) and batch.rows.rows < self.max_batch_size:
                    rows = min(rows, self.max_batch_size - batch.rows.rows)
            batch = self.open(rows, source.ranks, source.dims)
            slot = new_slot(ticket, batch, batch.rows.rows, rows)
            size = batch.rows.nbytes()
            if not batch.rows.append(source, start, rows):
                raise MemoryError
            batch.nbytes += batch.rows.nbytes() - size
            self.enter(batch, slot)
            start += rows
        return 0

    cdef int enter(self, Batch batch, Slot slot) except -1:
        if not batch.slots:
            self.queue.append(batch)
        batch.slots.append(slot)
        if slot.ticket.slot is None:
            slot.ticket.slot = slot
        elif slot.ticket.pieces is None:
            slot.ticket.pieces = [slot]
        else:
            slot.ticket.pieces.append(slot)
        slot.ticket.missing += 1
        self.waiting_rows += slot.rows
        self.counts.waiting_rows += slot.rows
        self.waiting_bytes = self.waiting_bytes + batch.nbytes - batch.counted
        batch.counted = batch.nbytes
        if not self.scheduled:
            self.scheduled = True
            self.call_soon(self.flush_soon)
        return 0

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
        cdef int64_t age
        self.scheduled = False
        self.thread = PyThread_get_thread_ident()
        while self.queue and len(self.running) < self.instances:
            batch = <Batch>self.queue[0]
            age = monotonic_ns() - batch.created_ns
            if age < self.max_delay_ns and batch in self.forming and batch.rows.rows < self.max_batch_size:
                self.call_later((self.max_delay_ns - age) / 1e9, self.flush)
                return
            self.queue.popleft()
            self.forget(batch)
            batch.drop_cancelled()
            if not batch.slots:
                self.give_rows(batch.rows)
                continue
            batch.state = RUNNING
            batch.started_ns = monotonic_ns()
            if not self.cost.runs_inline(batch.rows.rows):
                self.start_thread(batch, self.run_whole)
                continue
            self.run_batch(batch)
            self.settle(batch)
            if self.queue and monotonic_ns() - started > TURN_BUDGET_NS and not self.scheduled:
                self.scheduled = True
                self.call_soon(self.flush_soon)
                return

    cdef void forget(self, Batch batch):
        """Take a batch that leaves the queue off its books."""
        cdef Py_ssize_t i
        for i in range(len(self.forming)):
            if self.forming[i] is batch:
                del self.forming[i]
                break
        self.waiting_rows -= batch.rows.rows
        self.counts.waiting_rows -= batch.rows.rows
        self.waiting_bytes -= batch.counted

    cdef int start_thread(self, Batch batch, work) except -1:
        self.running.add(batch)
        batch.timer = self.call_later(self.run_timeout_s, self.give_up, batch)
        self.submit_thread(self.work_on_thread, work, batch)
        return 0

    def work_on_thread(self, work, Batch batch):
        work(batch)
        self.call_soon_threadsafe(self.complete, batch)

    def run_whole(self, Batch batch):
        """As ``run_batch``, for a thread."""
        self.run_batch(batch)

    cdef int run_batch(self, Batch batch) except -1:
        """Run a batch as it is; any failure is left in it."""
        try:
            batch.outputs = self.run_rows(batch.rows)
        except Exception as error:
            batch.error = as_runtime_error(error)
        batch.finished_ns = monotonic_ns()
        return 0

    def run_parts(self, Batch batch):
        """Run a failed batch's requests again by halves, until each failure has one culprit."""
        cdef Slot slot
        cdef list pending = [batch.slots[len(batch.slots) // 2:], batch.slots[:len(batch.slots) // 2]]
        cdef list part
        cdef Rows rows
        cdef Py_ssize_t start
        while pending:
            part = pending.pop()
            rows = Rows(self.signature)
            for i in range(rows.count):
                rows.set_dims(i, batch.rows.ranks[i], &batch.rows.dims[i * MAX_RANK])
            try:
                for slot in part:
                    if not rows.append(batch.rows, slot.start, slot.rows):
                        raise MemoryError
                outputs = self.run_rows(rows)
            except Exception as error:
                if len(part) == 1:
                    slot = part[0]
                    slot.error = as_runtime_error(error)
                else:
                    pending.append(part[len(part) // 2:])
                    pending.append(part[:len(part) // 2])
                continue
            start = 0
            for slot in part:
                slot.own_outputs = outputs
                slot.start = start
                start += slot.rows
        batch.finished_ns = monotonic_ns()

    cdef Outputs run_rows(self, Rows rows):
        """One call of the runtime, what it gave checked so that none of it is ever mis-sliced."""
        cdef Outputs outputs
        cdef dict arrays
        if self.session is not None:
            outputs = self.session.run_rows(self.signature, rows)
        else:
            arrays = self.run(rows.arrays())
            outputs = outputs_of(self.signature, [arrays[name] for name in self.output_names])
        outputs.check_rows(rows.rows)
        return outputs

    def complete(self, Batch batch):
        """Back on the loop from a thread: hand each request its rows, and run what waits."""
        self.running.discard(batch)
        batch.timer.cancel()
        self.settle(batch)
        if self.queue and not self.scheduled:
            self.scheduled = True
            self.call_soon(self.flush_soon)

    cdef int settle(self, Batch batch) except -1:
        """A run has come back: answer its requests, or find out which of them failed it."""
        if batch.state == DONE:  # given up meanwhile; its slab is never reused
            self.given_up -= 1
        elif batch.error is not None and len(batch.slots) > 1 and not batch.bisected:
            batch.bisected = True
            batch.error = None
            self.start_thread(batch, self.run_parts)
        else:
            self.measure(batch)
            self.finish(batch, batch.error)
        return 0

    def give_up(self, Batch batch):
        """A run on a worker thread is past its time: answer its requests, never reuse its slab."""
        if batch.state == DONE:
            return
        self.given_up += 1
        batch.timed_out = True
        logger.error("a run of %d rows has not come back after %g s", batch.rows.rows, self.run_timeout_s)
        self.finish(batch, RunTimeoutError(f"the model did not answer within {self.run_timeout_s:g} s"))
        if self.given_up >= self.instances:
            self.refuse_waiting(NotReadyError("the model hangs: its last run has not come back"))

    cdef int finish(self, Batch batch, error) except -1:
        cdef int64_t now = monotonic_ns()
        cdef Slot slot
        batch.state = DONE
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
        self.counts.executions += 1
        self.counts.rows_run += batch.rows.rows
        if size < self.n_sizes:
            self.sizes[size].count += 1
            self.sizes[size].run_ns += took
        if batch.error is None and not batch.bisected:
            self.cost.observe(batch.rows.rows, took)
            batch.answer_bytes = <double>batch.outputs.nbytes() / max(batch.rows.rows, <Py_ssize_t>1)


cdef object as_runtime_error(error):
    """A failure of the runtime as the client may see it; the log has the rest."""
    if isinstance(error, FastinferError):
        return error
    if isinstance(error, UnicodeDecodeError):
        return InvalidValueError("a BYTES value is not UTF-8, which this model's strings must be")
    logger.error("the runtime failed: %s", error)
    lines = str(error).strip().splitlines()
    return RuntimeFailedError(f"the model failed on this request: {lines[0][:300] if lines else type(error).__name__}")
