from libc.stdint cimport int64_t, uint64_t

cdef enum:
    HISTOGRAM_BOUNDS = 18
    STATUS_CELLS = 20
    GAUGE_CELLS = 16
    MAX_ROWS = 4096                     # model versions that the directory names
    MAX_SIZES = 1 << 19                 # batch sizes of all of them together
    NAME_BYTES = 128
    VERSION_BYTES = 32

cdef enum:
    LANE_STANDARD, LANE_FAST, LANE_GRPC
    LANE_CELLS

cdef enum:                              # of a worker; from GAUGE_READY on they die with it
    GAUGE_PID, GAUGE_RESTARTS, GAUGE_SPARE, GAUGE_LOOP_WAIT
    GAUGE_READY, GAUGE_BODY_BYTES, GAUGE_CONNECTIONS, GAUGE_HEARTBEAT

cdef struct Durations:                  # a histogram over BOUNDS
    uint64_t counts[HISTOGRAM_BOUNDS + 1]
    uint64_t total                      # nanoseconds

cdef struct SizeStats:                  # runs of one batch size
    uint64_t count
    uint64_t run_ns

# What one worker counts of one model version; a whole number of cache lines, 64-bit cells only. Written on the loop's
# thread, or with the GIL held. The first lines are what every request touches.
cdef struct Row:
    uint64_t success, success_ns
    uint64_t input_ns, queue_ns, infer_ns, output_ns
    int64_t last_ns                     # monotonic, of the last answer
    int64_t in_flight                   # gauge
    int64_t waiting_rows                # gauge
    uint64_t executions, rows_run
    uint64_t failed, failed_ns, cancelled, refused
    uint64_t admitted
    uint64_t in_time, late, expired     # answered with 200 by the deadline, after it; not run because of it
    uint64_t refused_by[REASON_COUNT - 2]   # by Reason, from its second on; those that expired are not refused
    uint64_t overdue                    # runs that began with a request past its deadline
    Durations queue_time, preprocess_time, run_time, total_time
    uint64_t answered[LANE_CELLS][STATUS_CELLS]
    uint64_t cost_mean[COST_LEVELS]     # gauges: nanoseconds of a run, by powers of two of its rows
    uint64_t cost_high[COST_LEVELS]
    uint64_t cost_spare[2]

cdef struct WorkerSlot:
    int64_t gauges[GAUGE_CELLS]
    Durations loop_lag
    uint64_t spare[4]                   # up to a whole number of cache lines
    Row rows[MAX_ROWS + 2]              # and two more: of other models, and of no model
    SizeStats sizes[MAX_SIZES]

cdef struct DirectoryEntry:
    char name[NAME_BYTES]
    char version[VERSION_BYTES]
    uint64_t name_size, version_size
    uint64_t sizes, n_sizes             # where its batch sizes begin in a slot's, and how many

cdef struct Directory:
    uint64_t count                      # of entries, stored last
    uint64_t sizes                      # given away
    DirectoryEntry entries[MAX_ROWS]

cdef class Scoreboard:
    cdef Py_buffer view
    cdef readonly int workers
    cdef Directory* directory
    cdef WorkerSlot* slot(self, Py_ssize_t worker) except NULL
    cdef int check(self, Py_ssize_t row) except -1
    cdef int sum(self, Py_ssize_t row, Row* total) except -1
    cdef list sum_sizes(self, Py_ssize_t row)
