# A batch, and the rows of requests in it.
cimport cython
from libc.stdint cimport int64_t
from libc.string cimport memmove

import logging

from fastinfer.errors import ExpiredError, FastinferError, InvalidValueError, RuntimeFailedError

logger = logging.getLogger("fastinfer.batch")

cdef extern from "<time.h>" nogil:
    enum: CLOCK_MONOTONIC
    struct timespec:
        int64_t tv_sec
        int64_t tv_nsec
    int clock_gettime(int clock, timespec* out)

cdef int64_t SECOND_NS = 1_000_000_000
cdef int64_t held_ns = 0                    # what every clock says, where a test holds them


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    if held_ns:
        return held_ns
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef uint64_t wall_ms(int64_t monotonic) noexcept:
    """Milliseconds since the epoch of a monotonic time; 0 of none."""
    cdef timespec wall
    if monotonic == 0:
        return 0
    clock_gettime(CLOCK_REALTIME, &wall)
    return <uint64_t>((wall.tv_sec * 1_000_000_000 + wall.tv_nsec - monotonic_ns() + monotonic) // 1_000_000)


def hold_clock(int64_t nanoseconds):
    """Let the core's clocks stand at this monotonic time, so that a test need not wait; 0 lets them go again."""
    global held_ns
    held_ns = nanoseconds


@cython.final
@cython.freelist(256)
cdef class Slot:
    """A request's rows in one batch: all of them, or a piece when the request is larger than a batch."""


cdef Slot new_slot(Ticket ticket, Batch batch, Py_ssize_t start, Py_ssize_t rows, size_t nbytes):
    cdef Slot slot = Slot.__new__(Slot)
    slot.ticket = ticket
    slot.batch = batch
    slot.start = start
    slot.rows = rows
    slot.nbytes = nbytes
    return slot


@cython.final
cdef class Batch:
    """Rows that run together: FORMING, then RUNNING, then DONE."""

    def __cinit__(self, Rows rows):
        self.rows = rows
        self.slots = []
        self.tags = []
        self.state = FORMING
        self.created_ns = monotonic_ns()

    cdef void compact(self):
        """Close the gaps of those that left, so that their rows do not run."""
        cdef Slot slot
        cdef Py_ssize_t kept = 0
        cdef int i
        cdef list alive = [], tags = []
        if self.live == self.rows.rows:
            return
        for slot in self.slots:
            if slot.ticket.finished:
                slot.batch = slot.ticket = None  # nobody asks for it any more
                continue
            if TAGGED:
                tags += self.tags[slot.start:slot.start + slot.rows]
            if slot.start != kept:
                for i in range(self.rows.count):
                    memmove(rows_at(self.rows, i, kept), rows_at(self.rows, i, slot.start),
                            <size_t>slot.rows * self.rows.row_bytes[i])
                slot.start = kept
            kept += slot.rows
            alive.append(slot)
        self.slots = alive
        self.tags = tags
        self.rows.rows = kept

CHECKED = bool(TAGGED)                      # a build in which rows have tags
cdef bint mixing = False                    # a test has asked to see that a wrong row is noticed


def mix_answers(bint yes):
    """Give requests of one batch one another's rows from now on, so that a test sees that tags tell it.

    Raises:
        ValueError: in a build without tags.
    """
    global mixing
    if not TAGGED:
        raise ValueError("only a checked build does that")
    mixing = yes


cdef int tag_rows(Batcher batcher, Batch batch, Slot slot) except -1:
    """Write down whose the rows are that were put at the batch's end."""
    cdef Ticket ticket = slot.ticket
    cdef Py_ssize_t row
    if ticket.tag == 0:
        batcher.last_tag += 1
        ticket.tag = batcher.last_tag
    assert len(batch.tags) == slot.start, "a row of a batch is nobody's"
    for row in range(slot.rows):
        batch.tags.append((ticket.tag, ticket.tagged + row))
    ticket.tagged += slot.rows
    return 0


cdef int check_tags(Ticket ticket) except -1:
    """See that what a request is answered with are its own rows, all of them, in their order."""
    cdef Slot slot
    cdef list found = []
    for slot in [ticket.slot, *(ticket.pieces or ())]:
        if slot is not None:
            tags = slot.batch.tags if slot.own_outputs is None else slot.own_tags
            found += tags[slot.start:slot.start + slot.rows]
    assert found == [(ticket.tag, row) for row in range(ticket.tagged)], "a request has rows that are not its own"
    return 0


cdef int mix_up(Batch batch) except -1:
    cdef Slot first, second
    if len(batch.slots) > 1:
        first, second = batch.slots[0], batch.slots[1]
        if first.rows == second.rows:
            first.start, second.start = second.start, first.start
    return 0


cdef int run_by_halves(Batcher batcher, Batch batch) except -1:
    """Run a failed batch's requests again by halves, until each failure has one culprit."""
    cdef Slot slot
    cdef list pending = [batch.slots[len(batch.slots) // 2:], batch.slots[:len(batch.slots) // 2]]
    cdef list part, tags
    while pending and not batch.timed_out:
        part = still_wanted(pending.pop())
        if not part:
            continue
        tags = []
        try:
            outputs = batcher.run_rows(rows_of(batcher, batch, part, tags), batch)
        except Exception as error:
            if len(part) == 1:
                slot = part[0]
                slot.error = as_runtime_error(error)
            else:
                pending.append(part[len(part) // 2:])
                pending.append(part[:len(part) // 2])
            continue
        give_outputs(part, outputs, tags)
    batch.finished_ns = monotonic_ns()
    return 0


cdef Rows rows_of(Batcher batcher, Batch batch, list slots, list tags):
    """A copy of the rows of some of a batch; what they are tagged with is added to ``tags``."""
    cdef Rows rows = Rows(batcher.signature)
    cdef Slot slot
    cdef int i
    for i in range(rows.count):
        if not rows.set_dims(i, batch.rows.ranks[i], &batch.rows.dims[i * MAX_RANK]):
            raise MemoryError
    for slot in slots:
        if not rows.append(batch.rows, slot.start, slot.rows):
            raise MemoryError
        if TAGGED:
            tags += batch.tags[slot.start:slot.start + slot.rows]
    return rows


cdef int give_outputs(list slots, Outputs outputs, list tags) except -1:
    """What a run of only these gave."""
    cdef Slot slot
    cdef Py_ssize_t start = 0
    for slot in slots:
        slot.own_outputs = outputs
        slot.own_tags = tags
        slot.start = start
        start += slot.rows
    return 0


cdef list still_wanted(list slots):
    """Those of a batch that failed for whom another run may begin: whose client and whose time are still there."""
    cdef int64_t now = monotonic_ns()
    cdef Slot slot
    cdef list wanted = []
    for slot in slots:
        if slot.ticket.finished:
            continue
        if slot.ticket.deadline <= now:
            slot.error = ExpiredError()
        else:
            wanted.append(slot)
    return wanted


cdef object as_runtime_error(error):
    """A failure of the runtime as the client may see it; the log has the rest."""
    if isinstance(error, FastinferError):
        if error.detail is not None:
            logger.error("the runtime failed: %s", error.detail)
        return error
    if isinstance(error, UnicodeDecodeError):
        return InvalidValueError("a BYTES value is not UTF-8, which this model's strings must be")
    logger.error("the runtime failed: %s", error)
    lines = str(error).strip().splitlines()
    return RuntimeFailedError(f"the model failed on this request: {lines[0][:300] if lines else type(error).__name__}")
