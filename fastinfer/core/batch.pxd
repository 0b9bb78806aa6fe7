from libc.stdint cimport int64_t, uint64_t
from libcpp.vector cimport vector

cdef enum BatchState:
    FORMING, RUNNING, DONE

cdef extern from *:
    """
    #ifdef FASTINFER_DEBUG
    #define FASTINFER_TAGGED 1
    #else
    #define FASTINFER_TAGGED 0
    #endif
    """
    const bint TAGGED "FASTINFER_TAGGED"    # a checked build, in which every row of a batch tells whose it is

cdef class Slot:
    cdef Ticket ticket
    cdef Batch batch
    cdef Py_ssize_t start
    cdef Py_ssize_t rows
    cdef size_t nbytes                  # as the queue counts them
    cdef uint64_t order                 # in the queue; 0: it does not wait
    cdef int turn                       # there
    cdef Py_ssize_t place               # in its client's virtual time
    cdef Outputs own_outputs            # where the batch was bisected
    cdef list own_tags                  # of their rows, in a checked build
    cdef object error

cdef class Batch:
    cdef Rows rows
    cdef list slots
    cdef list tags                      # (request, row of it) of each row, in a checked build
    cdef BatchState state
    cdef Outputs outputs                # after the run
    cdef object error
    cdef object timer
    cdef bint bisected
    cdef bint timed_out                 # its run was given up and may still write
    cdef object task                    # that runs it elsewhere
    cdef bint interrupted               # its run held the loop, and was told to end
    cdef bint lost                      # and has not come back since, though it was told to end
    cdef bint threaded                  # it runs on a worker thread
    cdef unsigned long thread           # on this one; 0 before
    cdef Call call                      # of its run there, where that is onnxruntime's
    cdef double answer_bytes            # of the outputs, a row
    cdef Py_ssize_t live                # rows of those that wait in it
    cdef Py_ssize_t limit               # rows that it may have
    cdef Py_ssize_t unread              # slots whose answer was not rendered yet
    cdef int64_t created_ns, started_ns, began_ns, finished_ns  # started_ns: when it was told to, began_ns: when it did
    cdef int64_t earliest               # deadline in it
    cdef Guess guess                    # of its run, where that is on a thread
    cdef void compact(self)

cdef class Batcher:
    # settings, fixed at load
    cdef readonly Signature signature
    cdef object run
    cdef object pace                    # how many of those may be in flight, from what came back
    cdef object run_async               # in place of `run`, where another server runs the model
    cdef public object forwards         # what of a head's fields that server is told, or None
    cdef Engine engine                  # in place of `run`, where the core has one
    cdef Policy policy                  # what becomes of a run's outputs; None: they are answered as they are
    cdef readonly Py_ssize_t max_batch_size
    cdef Py_ssize_t fixed_rows          # that every run has; 0: as many as there are
    cdef int64_t max_delay_ns, slo_ns   # slo_ns 0: none
    cdef int instances
    cdef Py_ssize_t queue_rows, queue_bytes
    cdef double run_timeout_s
    cdef list output_names
    # the loop
    cdef object call_soon, call_later, call_soon_threadsafe, submit_thread, create_task
    cdef object flush_soon              # what call_soon is given
    # state
    cdef Lane lane                      # whose answers leave when a batch is done
    cdef Cost cost
    cdef Queue queue                    # who waits, in the order of going
    cdef list forming                   # batches that take more rows
    cdef list spare                     # Rows to use again
    cdef set running                    # on worker threads
    cdef int given_up                   # of which so many are past their time
    cdef readonly int lost              # and so many do not end
    cdef object stop                    # called with the thread of a run that is past its time, or None
    cdef Py_ssize_t waiting_rows
    cdef size_t waiting_bytes
    cdef object expiry                  # a timer that runs out when the next deadline passes
    cdef int64_t expiry_ns, swept_ns
    cdef bint expired_some              # and their answers have not left
    cdef list yielding                  # tickets that give way to the one that was judged last, once it is let in
    cdef vector[Claim] claims           # a heap: whom of each client that may be asked for next
    cdef vector[size_t] older           # behind the client's entry before this one that may; 0: there is none
    cdef size_t claimed                 # entries of the queue up to here are in both
    cdef int64_t fit_budget             # what rows_within last said
    cdef uint64_t fit_changes
    cdef Py_ssize_t fit_rows
    cdef Guess fit_run                  # of so many rows
    cdef double lag_ns                  # by which the loop is late, smoothed
    cdef double reserve_ns              # held back, for batches have come late
    cdef int64_t lag_at, scheduled_ns, last_run_ns, seeded_ns
    cdef int urgent_rank                # the most urgent that was asked for
    cdef int64_t urgent_ns              # and when
    cdef double[8] entering             # rows a nanosecond that are let in, smoothed, by priority
    cdef int64_t[8] entered_ns          # as of then
    cdef double cut_rows                # of a run that left others waiting, smoothed
    cdef int64_t cut_ns                 # the last one's
    cdef int64_t last_key, company_ns   # who asked last, and when it was somebody else before
    cdef bint trying                    # an idle model is, against what its runs seemed to take
    cdef int head_refused               # requests, at the head
    cdef bint scheduled, closed
    cdef uint64_t last_tag              # in a checked build
    cdef unsigned long thread           # the loop's: slabs are given back on no other
    # counters: in memory of its own, until the scoreboard has a row for them
    cdef void* own
    cdef Scoreboard board
    cdef Row* counts
    cdef SizeStats* sizes               # of runs, by rows
    cdef Py_ssize_t n_sizes

    cdef int check_open(self) except -1
    cdef void learn(self, Py_ssize_t rows, int64_t nanoseconds) noexcept
    cdef void show_cost(self, int level) noexcept
    cdef int refuse_waiting(self, error) except -1
    cdef Batch open(self, Ticket ticket, Py_ssize_t rows, const int* ranks, const int64_t* dims)
    cdef Batch new_batch(self, const int* ranks, const int64_t* dims)
    cdef Py_ssize_t rows_within(self, int64_t budget) noexcept
    cdef int commit(self, Batch batch, Ticket ticket, Py_ssize_t rows, size_t nbytes) except -1
    cdef int append(self, Rows source, Ticket ticket) except -1
    cdef int enter(self, Batch batch, Slot slot) except -1
    cdef void withdraw(self, Ticket ticket)
    cdef void withdraw_slot(self, Slot slot)
    cdef void strike(self, Slot slot)
    cdef void discard(self, Batch batch)
    cdef void close_batch(self, Batch batch)
    cdef int end(self, Ticket ticket, error) except -1
    cdef int expire(self, Ticket ticket) except -1
    cdef int look_out(self, int64_t deadline, int64_t now) except -1
    cdef Batch next_batch(self, int64_t now)
    cdef Batch whole(self, Batch batch, int64_t now)
    cdef bint joins(self, Batch batch, Py_ssize_t rows, const Waiting* entry)
    cdef Batch composed(self, Batch first, int64_t now)
    cdef Rows take_rows(self)
    cdef void give_rows(self, Rows rows)
    cdef void give_slot(self, Slot slot)
    cdef int start_thread(self, Batch batch, work) except -1
    cdef Outputs run_rows(self, Rows rows, Batch batch)
    cdef Outputs run_exactly(self, Rows rows, Batch batch)
    cdef int run_batch(self, Batch batch) except -1
    cdef Outputs outputs_in(self, dict arrays)
    cdef Outputs judged(self, Outputs outputs, Py_ssize_t rows)
    cdef int run_on(self) except -1
    cdef int settle(self, Batch batch) except -1
    cdef int finish(self, Batch batch, error) except -1
    cdef void measure(self, Batch batch)
