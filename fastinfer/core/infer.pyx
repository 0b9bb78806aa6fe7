# The spine: decode, preprocess, batch, run, encode. The only place where this order is written.
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t

cdef extern from "<time.h>" nogil:
    enum: CLOCK_REALTIME

import numpy as np

from fastinfer.errors import (
    BodyTooLargeError, CancelledError, ExpiredError, FastinferError, InvalidRequestError, InvalidShapeError,
    OverloadedError,
)

cdef int MAX_SPARE_REQUESTS = 256
cdef size_t MAX_REQUEST_BYTES = 512 << 20
cdef int64_t FOREVER = 1_000_000_000_000_000_000  # nanoseconds; a longer time is as good as none
cdef size_t TIMING_SIZE = 128
cdef size_t LARGE_ANSWER = 256 << 10    # bytes of output tensors past which a ticket asks to be encoded on a thread


@cython.final
cdef class Arrival:
    """When and how a request arrived that the standard lane serves.

    Args:
        arrived_ns: monotonic time of the read that held its first byte.
        timeout_ns: what its head allows from then on; 0: nothing in particular.
        key: whose it is; 0: nobody's in particular.
    """

    def __init__(self, int64_t arrived_ns, int64_t timeout_ns=0, int64_t key=0):
        self.arrived_ns = arrived_ns
        self.timeout_ns = timeout_ns
        self.key = key


@cython.final
cdef class Decoded:
    """A request decoded and preprocessed into rows of its own, not yet queued."""


@cython.final
@cython.freelist(256)
cdef class Ticket:
    """An admitted request: told when its rows have run, and rendered by ``encode``.

    Attributes:
        rows: of the request.
        error: the FastinferError it ended with, or None.
        preprocess_ns, queue_ns, run_ns: durations of its phases; the longest of its batches where it was split.
    """

    @property
    def path(self):
        """That it was sent to, where the fast lane keeps an access log, else empty."""
        return self.route.path if self.route is not None else b""

    @property
    def large(self):
        """Whether rendering the answer is better done on a worker thread."""
        return self.is_large()

    cdef bint is_large(self):
        cdef double size
        cdef Slot slot
        if self.error is not None or self.slot is None:
            return False
        size = self.slot.batch.answer_bytes * self.slot.rows
        if self.pieces is not None:
            for slot in self.pieces:
                size += slot.batch.answer_bytes * slot.rows
        return size > LARGE_ANSWER

    cdef int piece_done(self, Slot slot, int64_t now) except -1:
        """A batch with rows of this request came back."""
        cdef Batch batch = slot.batch
        self.missing -= 1
        if self.finished:  # cancelled
            self.endpoint.batcher.give_slot(slot)
            if not self.missing:
                self.slot = self.pieces = None  # reference cycles
            return 0
        if slot.error is not None and self.error is None:
            self.error = slot.error
            if type(self.error) is ExpiredError:  # between two runs of its batch
                self.mark_expired()
        if batch.started_ns:
            self.queue_ns = max(self.queue_ns, batch.started_ns - self.queued_ns)
            self.run_ns = max(self.run_ns, batch.finished_ns - batch.started_ns)
        return 0 if self.missing else self.finish(now)

    cdef void mark_expired(self) noexcept:
        self.endpoint.counts.expired += 1
        self.refusal = EXPIRED
        self.retry_ns = SECOND_NS

    cdef int finish(self, int64_t now) except -1:
        """Tell the one who asked; on the loop's thread."""
        cdef Endpoint endpoint = self.endpoint
        self.finished = True
        self.finished_ns = now
        self.leave()
        if self.error is not None:
            endpoint.counts.failed += 1
            endpoint.counts.failed_ns += now - self.started_ns
            if not self.missing:
                self.release()
        if self.connection is not None:
            return self.connection.ready()
        done, self.done = self.done, None
        if done is not None:
            done(self)
        return 0

    def finish_empty(self):
        """A request without rows needs no run."""
        if self.finished:
            return
        self.finish(monotonic_ns())
        if self.connection is not None:
            self.connection.lane.flush()

    def encode(self):
        """Render the answer.

        Returns:
            (body, length of its JSON header or -1 where all of it is JSON).

        Raises:
            FastinferError: what the request ended with, or an output that its encoding cannot carry.
        """
        cdef Writer writer = Writer(NULL, 0, 0)
        cdef Py_ssize_t json_size
        try:
            json_size = self.encode_into(&writer)
            return PyBytes_FromStringAndSize(writer.data, writer.size), json_size
        finally:
            writer_free(&writer)

    def server_timing(self):
        """The value of the Server-Timing field: milliseconds in the queue, in preprocessing and in the run.

        Source: W3C Server Timing, the Server-Timing header field.
        """
        cdef Writer writer = Writer(NULL, 0, 0)
        if not writer_reserve(&writer, TIMING_SIZE):
            raise MemoryError
        append_timing(&writer, self)
        try:
            return PyBytes_FromStringAndSize(writer.data, writer.size)
        finally:
            writer_free(&writer)

    cdef Py_ssize_t encode_into(self, Writer* writer) except -2:
        """Append the answer's body; the length of its JSON where binary tensors follow, else -1."""
        cdef Endpoint endpoint = self.endpoint
        cdef Slot slot = self.slot
        cdef Py_ssize_t json_size
        if self.error is not None:
            raise self.error
        if not self.finished or self.request is None:
            raise CancelledError("the request has not run, or was answered already")
        if TAGGED:
            check_tags(self)
        try:
            if slot is not None and self.pieces is None:
                json_size = endpoint.encoder.write(writer, self.request, slot_outputs(slot), slot.start, slot.rows)
            else:
                json_size = endpoint.encoder.write(writer, self.request, self.joined(), 0, self.rows)
        except FastinferError as error:
            self.error = error
            endpoint.counts.failed += 1
            endpoint.counts.failed_ns += monotonic_ns() - self.started_ns
            raise
        self.count_success()
        if PyThread_get_thread_ident() == endpoint.batcher.thread:
            self.release()
        return json_size

    cdef Outputs joined(self):
        """The whole outputs of a request that was split, or that has no rows."""
        cdef Slot slot
        if self.empty_outputs is not None:
            return self.empty_outputs
        parts = [(slot_outputs(slot), slot.start, slot.rows) for slot in [self.slot, *self.pieces]]
        try:
            return joined_outputs(self.endpoint.signature, parts)
        except ValueError:
            raise InvalidShapeError("an output has another shape in each part of this request, which was split at "
                                    f"{self.endpoint.batcher.max_batch_size} rows; send fewer rows") from None

    cdef void count_success(self):
        cdef int64_t now = monotonic_ns()
        cdef Row* counts = self.endpoint.counts
        if self.settled:  # encoded on another thread, while its client left
            return
        self.settled = True
        counts.success += 1
        counts.success_ns += now - self.started_ns
        counts.input_ns += self.preprocess_ns
        counts.queue_ns += self.queue_ns
        counts.infer_ns += self.run_ns
        counts.output_ns += now - self.finished_ns
        counts.last_ns = now
        if now > self.deadline:
            counts.late += 1
        else:
            counts.in_time += 1
        observe(&counts.queue_time, self.queue_ns)
        observe(&counts.preprocess_time, self.preprocess_ns)
        observe(&counts.run_time, self.run_ns)
        observe(&counts.total_time, now - self.started_ns)
        if self.connection is not None:
            counts.answered[LANE_FAST][0] += 1

    cdef void release(self):
        """Give back what the next request can use."""
        cdef Batcher batcher = self.endpoint.batcher
        cdef Slot slot
        if self.slot is not None:
            batcher.give_slot(self.slot)
            self.slot = None
        if self.pieces is not None:
            for slot in self.pieces:
                batcher.give_slot(slot)
            self.pieces = None
        if self.request is not None and len(self.endpoint.spare) < MAX_SPARE_REQUESTS:
            self.endpoint.spare.append(self.request)
        self.request = None

    cdef void take(self, Arrival arrival):
        if arrival is not None:
            self.arrived_ns = arrival.arrived_ns
            self.timeout_ns = arrival.timeout_ns
            self.key = arrival.key
            take_context(self, arrival)

    cdef void enter(self, Arrival arrival):
        """In flight from here."""
        if arrival is not None and arrival.connection is not None:
            arrival.connection.standard = self
        self.counted = True
        self.endpoint.counts.in_flight += 1
        self.endpoint.counts.admitted += 1

    cdef void leave(self):
        """No longer in flight."""
        if self.counted:
            self.counted = False
            self.endpoint.counts.in_flight -= 1

    def cancel(self):
        """The client left: rows that wait will not run, and nobody is told."""
        if self.finished:
            if self.error is None and not self.settled:  # it has run, and nobody is there to be answered
                self.endpoint.counts.cancelled += 1
            self.settled = True
            return
        self.finished = self.settled = True
        self.leave()
        self.done = None
        self.error = CancelledError("the client closed the connection")
        self.endpoint.counts.cancelled += 1
        self.endpoint.batcher.withdraw(self)
        if not self.missing:
            self.slot = self.pieces = None  # reference cycles


cdef bint expands(Rows rows, Py_ssize_t count) noexcept nogil:
    """Whether so many rows take more than one request may: records may be three bytes short each."""
    cdef size_t size = 0
    cdef int i
    for i in range(rows.count):
        size += rows.row_bytes[i]
    return size > MAX_REQUEST_BYTES or <size_t>count * size > MAX_REQUEST_BYTES


cdef Outputs slot_outputs(Slot slot):
    return slot.own_outputs if slot.own_outputs is not None else slot.batch.outputs


@cython.final
cdef class Endpoint:
    """One model version as requests meet it.

    Args:
        name, version: as answers state them.
        signature: inputs and outputs as clients see them.
        batcher: of the runtime's signature.
        program: the feature program that makes the runtime's one input from the signature's columns, or None.
        task: what the outputs mean to a person, for records, or None.
    """

    def __init__(self, str name, str version, Signature signature not None, Batcher batcher not None,
                 CompiledProgram program=None, task=None):
        self.name = name
        self.version = version
        self.signature = signature
        self.batcher = batcher
        self.inner = batcher.signature
        self.program = program
        self.encoder = Encoder(name, version, signature, task, () if batcher.policy is None else batcher.policy.added)
        self.columns = Rows(signature) if program is not None else None
        if program is not None:
            self.inner_ranks[0] = 1
            self.inner_dims[0] = program.width
        self.spare = []
        self.counts = batcher.counts

    def submit(self, int kind, body, Py_ssize_t header_length, done, Arrival arrival=None):
        """Decode, preprocess and queue one request; on the loop's thread.

        Args:
            kind: 0 an Open Inference Protocol request, 1 records.
            body: bytes-like; not needed after the call.
            header_length: of the JSON part where the binary tensor extension is used, else -1.
            done: called with the ticket, later, on the loop's thread, when the answer or an error is there.
            arrival: when it came, where that was not now.

        Raises:
            FastinferError: the request is at fault, or refused.
        """
        cdef int64_t now = monotonic_ns()
        cdef Ticket ticket = self.new_ticket(done, now, 0, 0)
        cdef Py_buffer view
        ticket.started_ns = now
        ticket.take(arrival)
        PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
        try:
            self.submit_bytes(ticket, kind, <const char*>view.buf, <size_t>view.len, header_length)
            if ticket.refusal != ADMITTED:
                self.count_refused(ticket.refusal)
                raise refusal(ticket.refusal, ticket.retry_ns)
        except OverloadedError:
            self.counts.failed += 1
            self.counts.failed_ns += monotonic_ns() - ticket.started_ns
            raise
        except FastinferError:
            self.counts.failed += 1
            self.counts.failed_ns += monotonic_ns() - ticket.started_ns
            raise
        finally:
            PyBuffer_Release(&view)
        ticket.enter(arrival)
        return ticket

    cdef Ticket submit_fast(self, int kind, const char* body, size_t size, const Head* head, int64_t now,
                            int64_t arrived_ns, int64_t key):
        """As ``submit``, for the fast lane: None where it raises, and nothing is counted then; one that is refused
        has its ticket, which says so."""
        cdef Ticket ticket = self.new_ticket(None, arrived_ns, head.timeout_ns, key)
        ticket.started_ns = now
        try:
            self.submit_bytes(ticket, kind, body, size, head.header_length if kind == KIND_INFER else -1)
        except FastinferError:
            return None
        if ticket.refusal != ADMITTED:
            self.turn_away(ticket)
            return ticket
        ticket.enter(None)
        return ticket

    def decode(self, int kind, body, Py_ssize_t header_length):
        """Decode and preprocess into rows of the request's own; on any thread, the GIL released for the work.

        Raises:
            FastinferError: the request is at fault.
        """
        cdef Decoded decoded = Decoded()
        cdef Py_buffer view
        PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
        try:
            self.decode_into(decoded, kind, <const char*>view.buf, <size_t>view.len, header_length)
        except FastinferError:
            self.counts.failed += 1
            raise
        finally:
            PyBuffer_Release(&view)
        return decoded

    def submit_decoded(self, Decoded decoded not None, done, Arrival arrival=None):
        """Queue what ``decode`` made; on the loop's thread. As ``submit`` otherwise."""
        cdef Ticket ticket = Ticket.__new__(Ticket)
        ticket.endpoint = self
        ticket.request = decoded.request
        ticket.done = done
        ticket.arrived_ns = decoded.started_ns
        ticket.take(arrival)
        self.set_deadline(ticket)
        ticket.started_ns = decoded.started_ns
        ticket.preprocess_ns = decoded.decoded_ns - decoded.started_ns
        ticket.rows = decoded.request.rows
        try:
            self.batcher.check_open()
            if self.judge(ticket, decoded.rows.nbytes()) != ADMITTED:
                self.count_refused(ticket.refusal)
                raise refusal(ticket.refusal, ticket.retry_ns)
            self.enqueue(decoded, ticket)
        except FastinferError:
            self.counts.failed += 1
            raise
        ticket.enter(arrival)
        return ticket

    # -- admission ---------------------------------------------------------------------------------------------
    def gate(self, int kind, int64_t size, Arrival arrival not None):
        """Refuse, by its head, a request whose body is of ``size`` bytes, or -1 where that is not known.

        Raises:
            OverloadedError: it could not make it, or there is no room.
        """
        cdef int64_t retry_ns = 0
        cdef Reason reason = self.judge_head(kind, size, monotonic_ns(), arrival.arrived_ns, arrival.timeout_ns,
                                             arrival.key, &retry_ns)
        if reason != ADMITTED:
            self.count_refused(reason)
            self.counts.failed += 1
            raise refusal(reason, retry_ns)

    cdef Reason judge_head(self, int kind, int64_t size, int64_t now, int64_t arrived_ns, int64_t timeout_ns,
                           int64_t key, int64_t* retry_ns):
        """What is to become of a request of which only the head is known."""
        cdef Batcher batcher = self.batcher
        cdef Reason reason
        cdef Asked asked
        cdef int64_t budget = batcher.slo_ns
        if batcher.closed or batcher.given_up >= batcher.instances:
            return ADMITTED  # which has an answer of its own
        if timeout_ns and (timeout_ns < budget or not budget):
            budget = timeout_ns
        if not budget and 2 * batcher.waiting_rows < batcher.queue_rows \
                and 2 * batcher.waiting_bytes < <size_t>batcher.queue_bytes:
            return ADMITTED
        asked.rows = 1
        if batcher.signature.batched and size > 0 and self.bytes_per_row[kind] > 0:
            asked.rows = max(<Py_ssize_t>(size / self.bytes_per_row[kind]), <Py_ssize_t>1)
        asked.nbytes = max(size, <int64_t>0)
        asked.rank = head_rank(batcher, now)
        asked.key = key
        asked.now, asked.arrived = now, arrived_ns
        asked.deadline = arrived_ns + budget if budget and budget < FOREVER else NEVER
        reason = judge(batcher, &asked, retry_ns)
        keep_places(batcher)  # until its rows are there
        if reason == PAST_DEADLINE and asked.now < asked.deadline:
            batcher.head_refused += 1
            if batcher.head_refused % SAMPLED == 0:
                return ADMITTED  # its body may say that it is urgent, and then others' heads pass for urgent too
        return reason

    cdef Reason judge(self, Ticket ticket, size_t nbytes):
        """What is to become of a request that is decoded; the ticket has the answer too."""
        cdef Asked asked
        asked.rows = ticket.rows if self.signature.batched else 1
        asked.nbytes = nbytes
        asked.rank = ticket.rank
        asked.key = ticket.key
        asked.now, asked.arrived, asked.deadline = monotonic_ns(), ticket.arrived_ns, ticket.deadline
        if ticket.rank < LOWEST_RANK:
            note_rank(self.batcher, ticket.rank, asked.now)
        ticket.refusal = judge(self.batcher, &asked, &ticket.retry_ns) if ticket.rows else ADMITTED
        return ticket.refusal

    cdef void note_size(self, int kind, double bytes_per_row) noexcept:
        """What a row takes in a body, for the heads of others."""
        cdef double known = self.bytes_per_row[kind]
        self.bytes_per_row[kind] = known + (bytes_per_row - known) / 16 if known else bytes_per_row

    cdef Ticket refused_ticket(self, Reason reason, int64_t retry_ns, int64_t now):
        """The ticket of a request that is refused at its head."""
        cdef Ticket ticket = Ticket.__new__(Ticket)
        ticket.endpoint = self
        ticket.started_ns = now
        ticket.refusal = reason
        ticket.retry_ns = retry_ns
        self.turn_away(ticket)
        return ticket

    cdef void turn_away(self, Ticket ticket):
        """A request of the fast lane is refused: its answer is due at once."""
        ticket.finished = True
        ticket.release()
        self.count_refused(ticket.refusal)
        self.counts.failed += 1

    cdef void count_refused(self, Reason reason) noexcept:
        self.counts.refused += 1
        self.counts.refused_by[<int>reason - 1] += 1

    cdef Ticket new_ticket(self, done, int64_t arrived_ns, int64_t timeout_ns, int64_t key):
        cdef Ticket ticket = Ticket.__new__(Ticket)
        ticket.endpoint = self
        ticket.done = done
        ticket.arrived_ns = arrived_ns
        ticket.timeout_ns = timeout_ns
        ticket.key = key
        ticket.request = <Request>self.spare.pop() if self.spare else Request(self.signature, self.name)
        return ticket

    cdef void set_deadline(self, Ticket ticket) noexcept:
        """The smallest of what the model, the head and the body allow, from the request's arrival on."""
        cdef int64_t budget = self.batcher.slo_ns
        cdef Request request = ticket.request
        if ticket.timeout_ns and (ticket.timeout_ns < budget or not budget):
            budget = ticket.timeout_ns
        if request.timeout_us and (request.timeout_us < budget // 1000 or not budget):
            budget = request.timeout_us * 1000 if request.timeout_us < FOREVER // 1000 else FOREVER
        ticket.deadline = ticket.arrived_ns + budget if budget and budget < FOREVER else NEVER
        ticket.rank = <int>(request.priority - 1) if 1 <= request.priority <= LOWEST_RANK else LOWEST_RANK

    cdef int submit_bytes(self, Ticket ticket, int kind, const char* body, size_t size,
                          Py_ssize_t header_length) except -1:
        cdef Failure failure
        if ticket.request.recall(kind, body, size, header_length):
            try:
                return self.submit_scanned(ticket, size)
            except InvalidRequestError:
                pass  # a scan finds what the reason is
        if not ticket.request.scan(kind, body, size, header_length, &failure):
            raise ticket.request.error(&failure)
        return self.submit_scanned(ticket, size)

    cdef int submit_scanned(self, Ticket ticket, size_t size) except -1:
        cdef Decoded decoded
        ticket.rows = ticket.request.rows
        self.set_deadline(ticket)
        self.batcher.check_open()
        if ticket.deadline != NEVER or self.batcher.waiting_rows:
            if ticket.rows and not self.signature.ragged:  # of wide rows few make a long body
                self.note_size(ticket.request.kind, <double>size / ticket.rows)
            if self.judge(ticket, size) != ADMITTED:
                return 0
        if 0 < ticket.request.rows <= self.batcher.max_batch_size:
            return self.submit_direct(ticket, size)
        # No rows are decoded all the same: what stands in the place of rows may be wrong.
        decoded = Decoded()
        decoded.request = ticket.request
        self.fill_own(decoded)
        ticket.preprocess_ns = monotonic_ns() - ticket.started_ns
        return self.enqueue(decoded, ticket)

    cdef int submit_direct(self, Ticket ticket, size_t size) except -1:
        """Rows that fit into one batch are written where they will run."""
        cdef Request request = ticket.request
        cdef Failure failure
        cdef Batch batch
        cdef size_t arena
        failure_clear(&failure)
        if self.program is not None:
            self.fill_columns(self.columns, request)
            batch = self.batcher.open(ticket, request.rows, self.inner_ranks, self.inner_dims)
            if not self.program.run(self.columns, 0, request.rows, rows_at(batch.rows, 0, batch.rows.rows), &failure):
                raise self.program.error(&failure, request)
        else:
            batch = self.batcher.open(ticket, request.rows, request.ranks, request.dims)
            arena = batch.rows.arena_size
            if not request.fill(batch.rows, batch.rows.rows, &failure):
                batch.rows.arena_size = arena
                raise request.error(&failure)
        ticket.queued_ns = monotonic_ns()
        ticket.preprocess_ns = ticket.queued_ns - ticket.started_ns
        return self.batcher.commit(batch, ticket, request.rows, size)

    cdef int fill_columns(self, Rows columns, Request request) except -1:
        cdef Failure failure
        failure_clear(&failure)
        if not columns.reset() or not columns.reserve(request.rows):
            raise MemoryError
        if not request.fill(columns, 0, &failure):
            raise request.error(&failure)
        columns.rows = request.rows
        return 0

    cdef int decode_into(self, Decoded decoded, int kind, const char* body, size_t size,
                         Py_ssize_t header_length) except -1:
        cdef Request request = Request(self.signature, self.name)
        cdef Failure failure
        cdef bint good
        failure_clear(&failure)
        decoded.started_ns = monotonic_ns()
        decoded.request = request
        with nogil:
            good = request.scan(kind, body, size, header_length, &failure)
        if not good:
            raise request.error(&failure)
        self.fill_own(decoded)
        decoded.decoded_ns = monotonic_ns()
        return 0

    cdef int fill_own(self, Decoded decoded) except -1:
        """Decode into rows that belong to this request alone; safe on any thread."""
        cdef Request request = decoded.request
        cdef Rows columns, rows = Rows(self.inner)
        cdef Failure failure
        cdef bint good
        cdef int i
        failure_clear(&failure)
        decoded.rows = rows
        for i in range(rows.count):
            if self.program is not None:
                good = rows.set_dims(i, self.inner_ranks[i], &self.inner_dims[i * MAX_RANK])
            else:
                good = rows.set_dims(i, request.ranks[i], &request.dims[i * MAX_RANK])
            if not good:
                raise MemoryError
        if expands(rows, request.rows) or self.program is not None and expands(self.columns, request.rows):
            raise BodyTooLargeError(f"the request's {request.rows} rows take over {MAX_REQUEST_BYTES >> 20} MiB as "
                                    "tensors; send fewer at once")
        if not rows.reserve(request.rows):
            raise MemoryError
        if self.program is None:
            with nogil:
                good = request.fill(rows, 0, &failure)
            if not good:
                raise request.error(&failure)
        else:
            columns = Rows(self.signature)
            if not columns.reserve(request.rows):
                raise MemoryError
            with nogil:
                good = request.fill(columns, 0, &failure)
            if not good:
                raise request.error(&failure)
            columns.rows = request.rows
            with nogil:
                good = request.rows == 0 or self.program.run(columns, 0, request.rows, rows_at(rows, 0, 0), &failure)
            if not good:
                raise self.program.error(&failure, request)
        rows.rows = request.rows
        return 0

    cdef int enqueue(self, Decoded decoded, Ticket ticket) except -1:
        if decoded.request.rows == 0:
            return self.finish_empty(ticket)
        ticket.queued_ns = monotonic_ns()
        return self.batcher.append(decoded.rows, ticket)

    cdef int finish_empty(self, Ticket ticket) except -1:
        """Zero rows need no run where the outputs' other dimensions are known."""
        empty = []
        for tensor in self.signature.outputs:
            if -1 in tensor.shape[1:]:
                raise InvalidShapeError(f"a request of zero rows: the shape {list(tensor.shape)} of output "
                                        f"{tensor.name!r} is only known after a run")
            empty.append(np.empty((0, *tensor.shape[1:]), dtype=DTYPES[DATATYPES.index(tensor.datatype)]))
        ticket.empty_outputs = outputs_of(self.signature, empty)
        ticket.queued_ns = monotonic_ns()
        ticket.preprocess_ns = ticket.queued_ns - ticket.started_ns
        self.batcher.call_soon(ticket.finish_empty)
        return 0

    def count_in(self, Scoreboard board not None, Py_ssize_t worker, Py_ssize_t row):
        """Count in a worker's row of a scoreboard from here; before the first request."""
        cdef WorkerSlot* slot = board.slot(worker)
        cdef Batcher batcher = self.batcher
        board.check(row)
        batcher.board = board  # whose memory it is
        batcher.counts = self.counts = &slot.rows[row]
        self.row = row
        for level in range(COST_LEVELS):
            batcher.show_cost(level)
        batcher.n_sizes = 0
        if row < MAX_ROWS:
            batcher.sizes = &slot.sizes[board.directory.entries[row].sizes]
            batcher.n_sizes = board.directory.entries[row].n_sizes

    cdef int total(self, Row* total) except -1:
        """The counters of all workers."""
        if self.batcher.board is not None:
            return self.batcher.board.sum(self.row, total)
        total[0] = self.counts[0]
        return 0

    def statistics(self):
        """Counters since the server's start, as the statistics extension names them; durations in nanoseconds."""
        cdef Batcher batcher = self.batcher
        cdef Row total
        self.total(&total)
        if batcher.board is not None:
            sizes = batcher.board.sum_sizes(self.row)
        else:
            sizes = [(size, batcher.sizes[size].count, batcher.sizes[size].run_ns)
                     for size in range(batcher.n_sizes) if batcher.sizes[size].count]
        return row_statistics(self.name, self.version, &total, sizes)

    @property
    def last_ns(self):
        """Monotonic time of the last good answer that this worker gave, by whichever load of the version; 0: never."""
        return self.counts.last_ns

    def counters(self):
        """What /metrics needs; ``phases`` are histograms of the requests that were answered."""
        cdef Row total
        self.total(&total)
        return row_counters(&total)
