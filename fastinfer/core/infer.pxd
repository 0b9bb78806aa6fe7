from libc.stdint cimport int64_t, uint64_t

cdef class Arrival:
    cdef public bytes trace             # traceparent as the client gave it
    cdef public object fields           # of the head, pairs of name and value, or None
    cdef int64_t arrived_ns             # when the first byte was read
    cdef readonly int64_t timeout_ns             # that the head gives; 0: none
    cdef int64_t key                    # whose it is, for the fair share
    cdef Connection connection          # which it leaves with, or None

cdef class Decoded:
    cdef Request request
    cdef Rows rows                      # the runtime's inputs
    cdef int64_t started_ns, decoded_ns

cdef class Ticket:
    cdef readonly Endpoint endpoint
    cdef Request request                # None once the answer was rendered
    cdef Slot slot                      # its rows, or the first piece of them
    cdef list pieces                    # the other slots, where it was split; else None
    cdef Connection connection          # on the fast lane, in place of `done`
    cdef Route route                    # on the fast lane with an access log
    cdef readonly bytes client          # that a trusted proxy names, likewise; None: the peer
    cdef Ticket next                    # of the connection's requests whose answers are due
    cdef bytes request_id               # as the client gave it
    cdef bytes trace                    # traceparent as the client gave it, where another server is told
    cdef object fields                  # of the head that another server is told, or why it cannot be; None: none
    cdef tuple answer                   # rendered on a worker thread
    cdef bint closes                    # the connection, after this answer
    cdef bint timed                     # the answer tells its durations
    cdef bint elsewhere                 # being rendered on a worker thread
    cdef bint counted                   # as in flight
    cdef Py_ssize_t missing             # slots whose batch has not come back
    cdef uint64_t tag                   # a number of its own, in a checked build
    cdef Py_ssize_t tagged              # rows of it that have one
    cdef bint finished                  # answered, failed or cancelled
    cdef bint settled                   # its end is counted: a success, or cancelled
    cdef bint yields                    # it is to give way
    cdef object done
    cdef Outputs empty_outputs          # of a request without rows
    cdef readonly object error
    cdef readonly Py_ssize_t rows
    cdef readonly int64_t identity      # who asks; 0 is anonymous, and the standard lane's
    cdef readonly int64_t started_ns, queued_ns, finished_ns, preprocess_ns, queue_ns, run_ns
    cdef int64_t arrived_ns, timeout_ns  # as of the head
    cdef int64_t deadline               # or NEVER
    cdef int64_t key                    # whose it is; 0: nobody's in particular
    cdef int rank
    cdef Py_ssize_t limit               # rows of a batch that it is in
    cdef Reason refusal                 # ADMITTED, or what the answer says
    cdef int64_t retry_ns               # from when on there may be room
    cdef int piece_done(self, Slot slot, int64_t now) except -1
    cdef void mark_expired(self) noexcept
    cdef int finish(self, int64_t now) except -1
    cdef bint is_large(self)
    cdef Py_ssize_t encode_into(self, Writer* writer) except -2
    cdef Outputs joined(self)
    cdef void count_success(self)
    cdef void release(self)
    cdef void take(self, Arrival arrival)
    cdef void enter(self, Arrival arrival)
    cdef void leave(self)

cdef class Endpoint:
    cdef readonly str name, version
    cdef readonly Signature signature   # what clients see
    cdef readonly Signature inner       # what the runtime sees
    cdef readonly Batcher batcher
    cdef CompiledProgram program
    cdef Encoder encoder
    cdef Rows columns                   # a request's raw columns, where there is a program
    cdef list spare                     # Requests to use again
    cdef int inner_ranks[1]             # of the program's one tensor
    cdef int64_t inner_dims[MAX_RANK]
    cdef double[<int>KIND_COUNT] bytes_per_row  # of a body, on average, by its kind
    cdef Row* counts                    # the batcher's
    cdef Py_ssize_t row                 # of the scoreboard

    cdef int total(self, Row* total) except -1
    cdef Reason judge_head(self, int kind, int64_t size, int64_t now, int64_t arrived_ns, int64_t timeout_ns,
                           int64_t key, int64_t* retry_ns)
    cdef Reason judge(self, Ticket ticket, size_t nbytes)
    cdef Ticket refused_ticket(self, Reason reason, int64_t retry_ns, int64_t now)
    cdef void turn_away(self, Ticket ticket)
    cdef void note_size(self, int kind, double bytes_per_row) noexcept
    cdef void count_refused(self, Reason reason) noexcept
    cdef Ticket new_ticket(self, done, int64_t arrived_ns, int64_t timeout_ns, int64_t key)
    cdef void set_deadline(self, Ticket ticket) noexcept
    cdef Ticket submit_fast(self, int kind, const char* body, size_t size, const Head* head, int64_t now,
                            int64_t arrived_ns, int64_t key)
    cdef int submit_bytes(self, Ticket ticket, int kind, const char* body, size_t size,
                          Py_ssize_t header_length) except -1
    cdef int submit_scanned(self, Ticket ticket, size_t size) except -1
    cdef int submit_direct(self, Ticket ticket, size_t size) except -1
    cdef int fill_columns(self, Rows columns, Request request) except -1
    cdef int decode_into(self, Decoded decoded, int kind, const char* body, size_t size,
                         Py_ssize_t header_length) except -1
    cdef int fill_own(self, Decoded decoded) except -1
    cdef int enqueue(self, Decoded decoded, Ticket ticket) except -1
    cdef int finish_empty(self, Ticket ticket) except -1
