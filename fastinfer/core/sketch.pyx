# What workers count, in 64-bit cells that any of them can read: counters, gauges and latency histograms.
#
# A scoreboard is one mapping that all workers share. It begins with a directory, which only the supervisor appends to,
# and holds a slot a worker, which only that worker writes: aligned 64-bit stores, no lock, nothing atomic but the
# directory's length. A row of a slot is one model version's; what is shown is the sum of a row over the slots. The
# mapping is sparse: a page that nobody writes takes no memory.
cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

cdef extern from *:
    """
    static inline uint64_t cell_acquire(const uint64_t* cell) { return __atomic_load_n(cell, __ATOMIC_ACQUIRE); }
    static inline void cell_release(uint64_t* cell, uint64_t value) { __atomic_store_n(cell, value, __ATOMIC_RELEASE); }
    """
    uint64_t cell_acquire(const uint64_t* cell) nogil
    void cell_release(uint64_t* cell, uint64_t) nogil

cdef enum:
    PAGE = 4096

# Upper bounds in seconds: 1, 2 and 5 of each decade; fine below a millisecond, where most requests are.
BOUNDS = (50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 100e-3, 200e-3, 500e-3,
          1.0, 2.0, 5.0, 10.0, 30.0)
LANES = ("standard", "fast", "grpc")    # in the order of LANE_*
# Of answers, 200 first; 499 is a client that left, 0 whatever is not in this list.
STATUSES = (200, 400, 401, 403, 404, 405, 408, 409, 413, 414, 415, 429, 431, 499, 500, 501, 502, 503, 504, 0)
GAUGES = ("pid", "restarts", "spare", "loop_wait", "ready", "body_bytes", "connections",
          "heartbeat")  # in the order of GAUGE_*

cdef int64_t[HISTOGRAM_BOUNDS] UPPER
for _i in range(HISTOGRAM_BOUNDS):
    UPPER[_i] = <int64_t>(BOUNDS[_i] * 1e9)
assert len(BOUNDS) == HISTOGRAM_BOUNDS and len(STATUSES) == STATUS_CELLS and len(GAUGES) <= GAUGE_CELLS

cdef dict STATUS_CELL = {status: cell for cell, status in enumerate(STATUSES)}


cdef void observe(Durations* durations, int64_t nanoseconds) noexcept nogil:
    cdef int i = 0
    while i < HISTOGRAM_BOUNDS and nanoseconds > UPPER[i]:
        i += 1
    durations.counts[i] += 1
    durations.total += <uint64_t>max(nanoseconds, <int64_t>0)


cdef tuple cumulative(Durations* durations):
    """Counts up to each bound and a last one for everything, and the sum in seconds."""
    cdef uint64_t running = 0
    cdef int i
    counts = []
    for i in range(HISTOGRAM_BOUNDS + 1):
        running += durations.counts[i]
        counts.append(running)
    return counts, durations.total / 1e9


cdef void add_row(Row* total, const Row* row) noexcept nogil:
    """Add a slot's row to ``total``; the time of the last answer is the latest, what a run costs the most."""
    cdef uint64_t* cells = <uint64_t*>total
    cdef const uint64_t* added = <const uint64_t*>row
    cdef int64_t last = max(total.last_ns, row.last_ns)
    cdef size_t i
    cdef int level
    for i in range(offsetof_cost() // sizeof(uint64_t)):
        cells[i] += added[i]
    for level in range(COST_LEVELS):
        total.cost_mean[level] = max(total.cost_mean[level], row.cost_mean[level])
        total.cost_high[level] = max(total.cost_high[level], row.cost_high[level])
    total.last_ns = last


cdef inline size_t offsetof_cost() noexcept nogil:
    """Where a row's sums end and its gauges of cost begin."""
    cdef Row row
    return <size_t>(<char*>&row.cost_mean[0] - <char*>&row)


cdef list row_costs(const Row* row):
    """(rows at most, mean nanoseconds of a run, its high quantile) of the batch sizes that were run."""
    return [(1 << level, row.cost_mean[level], row.cost_high[level])
            for level in range(COST_LEVELS) if row.cost_mean[level]]


cdef dict row_counters(const Row* row):
    """What /metrics shows of a row; ``phases`` are histograms of the requests that were answered with 200."""
    answered = {(LANES[lane], status): row.answered[lane][cell]
                for lane in range(LANE_CELLS) for cell, status in enumerate(STATUSES) if row.answered[lane][cell]}
    return {"cancelled": row.cancelled, "refused": row.refused, "pending_rows": row.waiting_rows,
            "admitted": row.admitted, "goodput": row.in_time, "late": row.late, "expired": row.expired,
            "refused_by": {REASONS[i]: row.refused_by[i] for i in range(REASON_COUNT - 2)}, "cost": row_costs(row),
            "fast": row.answered[LANE_FAST][0], "in_flight": row.in_flight,
            "rows": row.rows_run, "batches": row.executions, "overdue_batches": row.overdue, "answered": answered,
            "phases": {"queue": cumulative(<Durations*>&row.queue_time),
                       "preprocess": cumulative(<Durations*>&row.preprocess_time),
                       "run": cumulative(<Durations*>&row.run_time),
                       "total": cumulative(<Durations*>&row.total_time)}}


cdef dict row_statistics(str name, str version, const Row* row, list sizes):
    """A row as the statistics extension shows it; ``sizes`` are (batch size, runs, nanoseconds).

    Source: Triton's statistics extension, "model_stats".
    """
    cdef uint64_t done = row.success
    batches = []
    for size, count, nanoseconds in sizes:
        nothing = {"count": count, "ns": 0}
        batches.append({"batch_size": size, "compute_input": nothing,
                        "compute_infer": {"count": count, "ns": nanoseconds}, "compute_output": nothing})
    return {
        "name": name, "version": version, "last_inference": wall_ms(row.last_ns),
        "inference_count": row.rows_run, "execution_count": row.executions,
        "inference_stats": {
            "success": {"count": done, "ns": row.success_ns},
            "fail": {"count": row.failed, "ns": row.failed_ns},
            "queue": {"count": done, "ns": row.queue_ns},
            "compute_input": {"count": done, "ns": row.input_ns},
            "compute_infer": {"count": done, "ns": row.infer_ns},
            "compute_output": {"count": done, "ns": row.output_ns},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "response_stats": {}, "batch_stats": batches, "memory_usage": [],
        "run_cost": [{"batch_size": rows, "mean_ns": mean, "high_ns": high} for rows, mean, high in row_costs(row)],
    }


@cython.final
cdef class Scoreboard:
    """The counters of all workers of a server.

    Args:
        memory: zeroed, writable, page-aligned bytes, ``size(workers)`` of them: a shared mapping where there is more
            than one worker.
        workers: slots.
    """

    other = MAX_ROWS        # the row of all models past the directory's end
    nobody = MAX_ROWS + 1   # the row of requests that named no served model

    def __init__(self, memory, int workers):
        PyBuffer_Release(&self.view)
        PyObject_GetBuffer(memory, &self.view, PyBUF_WRITABLE)
        self.workers = workers
        if self.view.len < Scoreboard.size(workers) or <size_t>self.view.buf % PAGE:
            raise ValueError("the memory of a scoreboard is too small, or not aligned to a page")
        self.directory = <Directory*>self.view.buf

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    @staticmethod
    def size(Py_ssize_t workers):
        """Bytes of a scoreboard of so many workers."""
        return pages(sizeof(Directory)) + workers * pages(sizeof(WorkerSlot))

    cdef WorkerSlot* slot(self, Py_ssize_t worker) except NULL:
        if not 0 <= worker < self.workers:
            raise IndexError(f"there is no worker {worker}")
        return <WorkerSlot*>(<char*>self.view.buf + pages(sizeof(Directory)) + worker * pages(sizeof(WorkerSlot)))

    cdef int check(self, Py_ssize_t row) except -1:
        if not 0 <= row < MAX_ROWS + 2:
            raise IndexError(f"there is no row {row}")
        return 0

    # ---- the directory ---------------------------------------------------------------------------------------
    def find(self, str name, str version):
        """The row of a model version, or -1."""
        cdef bytes key = name.encode(), tail = version.encode()
        cdef DirectoryEntry* entry
        cdef uint64_t i
        for i in range(cell_acquire(&self.directory.count)):
            entry = &self.directory.entries[i]
            if (entry.name_size == <uint64_t>len(key) and entry.version_size == <uint64_t>len(tail)
                    and memcmp(entry.name, <const char*>key, len(key)) == 0
                    and memcmp(entry.version, <const char*>tail, len(tail)) == 0):
                return i
        return -1

    def add(self, str name, str version, Py_ssize_t max_batch_size):
        """The row of a model version, made where there is none. Only the supervisor calls this.

        Runs of each batch size up to ``max_batch_size`` are counted, as long as there is room for so many.
        """
        cdef bytes key = name.encode(), tail = version.encode()
        cdef Py_ssize_t row = self.find(name, version)
        cdef uint64_t count = self.directory.count
        cdef DirectoryEntry* entry
        if row >= 0:
            return row
        if count >= MAX_ROWS or len(key) > NAME_BYTES or len(tail) > VERSION_BYTES:
            return MAX_ROWS
        entry = &self.directory.entries[count]
        memcpy(entry.name, <const char*>key, len(key))
        memcpy(entry.version, <const char*>tail, len(tail))
        entry.name_size, entry.version_size = len(key), len(tail)
        entry.sizes = self.directory.sizes
        entry.n_sizes = max_batch_size + 1 if self.directory.sizes + max_batch_size < MAX_SIZES else 0
        self.directory.sizes += entry.n_sizes
        cell_release(&self.directory.count, count + 1)
        return count

    def rows(self):
        """(row, name, version) of every row that may hold anything; ``other`` and ``nobody`` have no version."""
        cdef uint64_t i
        cdef DirectoryEntry* entry
        result = []
        for i in range(cell_acquire(&self.directory.count)):
            entry = &self.directory.entries[i]
            result.append((i, entry.name[:entry.name_size].decode(), entry.version[:entry.version_size].decode()))
        return [*result, (MAX_ROWS, "other", ""), (MAX_ROWS + 1, "", "")]

    # ---- cells -----------------------------------------------------------------------------------------------
    def count(self, Py_ssize_t worker, Py_ssize_t row, str lane, int status):
        """One answered infer request; only that worker calls this."""
        self.check(row)
        self.slot(worker).rows[row].answered[LANES.index(lane)][STATUS_CELL.get(status, STATUS_CELLS - 1)] += 1

    def set_gauge(self, Py_ssize_t worker, str name, int64_t value):
        """Only that worker calls this; the supervisor for "pid" and "restarts"."""
        self.slot(worker).gauges[GAUGES.index(name)] = value

    def gauge(self, Py_ssize_t worker, str name):
        return self.slot(worker).gauges[GAUGES.index(name)]

    def note_lag(self, Py_ssize_t worker, int64_t nanoseconds):
        """That worker's loop came so late to something; only it calls this."""
        observe(&self.slot(worker).loop_lag, nanoseconds)

    def loop_lag(self):
        """Of all workers' loops: counts up to each of BOUNDS and a last one for everything, and the sum in seconds."""
        cdef Durations total
        cdef Durations* lag
        cdef int worker, i
        memset(&total, 0, sizeof(Durations))
        for worker in range(self.workers):
            lag = &self.slot(worker).loop_lag
            total.total += lag.total
            for i in range(HISTOGRAM_BOUNDS + 1):
                total.counts[i] += lag.counts[i]
        return cumulative(&total)

    def reset_gauges(self, Py_ssize_t worker):
        """Forget what a dead worker had under way, and keep what it has counted."""
        cdef WorkerSlot* slot = self.slot(worker)
        cdef int gauge
        cdef uint64_t i
        for gauge in range(GAUGE_READY, GAUGE_CELLS):
            slot.gauges[gauge] = 0
        for i in range(cell_acquire(&self.directory.count)):
            slot.rows[i].in_flight = slot.rows[i].waiting_rows = 0
        slot.rows[MAX_ROWS].in_flight = slot.rows[MAX_ROWS].waiting_rows = 0

    # ---- sums over the workers -------------------------------------------------------------------------------
    cdef int sum(self, Py_ssize_t row, Row* total) except -1:
        cdef int worker
        self.check(row)
        memset(total, 0, sizeof(Row))
        for worker in range(self.workers):
            add_row(total, &self.slot(worker).rows[row])
        return 0

    cdef list sum_sizes(self, Py_ssize_t row):
        """(batch size, runs, nanoseconds) of the sizes that were run."""
        cdef DirectoryEntry* entry
        cdef SizeStats* size
        cdef SizeStats total
        cdef uint64_t i
        cdef int worker
        result = []
        if row >= MAX_ROWS:
            return result
        entry = &self.directory.entries[row]
        for i in range(entry.n_sizes):
            total.count = total.run_ns = 0
            for worker in range(self.workers):
                size = &self.slot(worker).sizes[entry.sizes + i]
                total.count += size.count
                total.run_ns += size.run_ns
            if total.count:
                result.append((i, total.count, total.run_ns))
        return result

    def counters(self, Py_ssize_t row):
        """What /metrics shows of a row, as ``Endpoint.counters``."""
        cdef Row total
        self.sum(row, &total)
        return row_counters(&total)


cdef inline size_t pages(size_t size) noexcept nogil:
    return (size + PAGE - 1) // PAGE * PAGE
