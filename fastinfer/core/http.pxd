from libc.stdint cimport int64_t, uint64_t

cdef enum:
    MAX_MARKS = 16

# The bytes of a connection's stash from a place on were read then.
cdef struct Mark:
    int64_t begin                       # counted from the first that was ever kept
    int64_t read_ns

cdef class Connection:
    cdef object protocol, transport, write
    cdef Lane lane
    cdef bytes client                   # its address, as the access log has it
    cdef int64_t client_key             # a number for its address without the port; 0: none
    cdef bint trusted                   # it is a proxy that says whom it speaks for
    cdef bint forwarded                 # it says so of the message that is looked at:
    cdef Address sender
    cdef int64_t sender_key
    cdef Scheme told_scheme             # and how that one spoke to it
    cdef Ticket first, latest           # fast requests whose answers are due, in order
    cdef int n_pending
    cdef int known                      # which head of the lane's this client sent before
    cdef int unlike                     # heads of it that were kept, since the routes changed last
    cdef uint64_t changes               # of the lane's routes, as this client's requests met them
    cdef Route route
    cdef Slab stash                     # received and not used yet
    cdef Py_ssize_t stash_start, stash_end
    cdef bint gone, is_dirty, holding
    cdef Connection next_dirty
    cdef bint stalled                   # the client does not read
    cdef bint leaving                   # the server leaves
    cdef bint last                      # the answer that is due last says that the connection closes
    cdef bint waiting                   # the next message is the standard lane's, which begins when nothing is due
    cdef object fault                   # why the connection is given up
    cdef readonly bint for_head         # the message that the standard lane has, or that is at fault, is a HEAD
    cdef bint ended                     # the client sends no more
    cdef int64_t identity               # of the message that is looked at
    cdef bytes credential               # by which it is known, as of which state of the table, and as whom
    cdef uint64_t credential_changes
    cdef int64_t credential_identity
    cdef int empty_lines                # before the next message
    # the message that the standard lane has
    cdef bint answer_due, in_body, chunked
    cdef int64_t message_ns             # when its first byte was read
    cdef int64_t message_key            # whose it is
    cdef Ticket standard                # its way through the core, once it is submitted
    cdef int64_t body_left
    cdef int64_t skip_left              # bytes of the body of a message that was refused by its head
    cdef Chunks chunks
    # clocks, monotonic nanoseconds; 0 where nothing runs
    cdef int64_t read_ns                # now, as of the last time that anything was looked at
    cdef int64_t quiet_since, head_ns, body_ns
    cdef Mark[MAX_MARKS] marks          # when the bytes of the stash were read
    cdef int n_marks
    cdef int64_t kept                   # bytes that were ever kept
    cdef readonly int64_t body_bytes

    cdef int keep(self, const char* data, Py_ssize_t size) except -1
    cdef int consume_stash(self) except -1
    cdef int hold_or_go_on(self) except -1
    cdef bint can_begin(self) noexcept
    cdef Py_ssize_t consume(self, const char* begin, Py_ssize_t size) except -1
    cdef Py_ssize_t begin_message(self, const char* p, const char* end) except -1
    cdef Py_ssize_t skip_empty_lines(self, const char* p, const char* end) except -1
    cdef Py_ssize_t head_incomplete(self, const char* p, const char* end) except -1
    cdef Py_ssize_t fail_head(self, HeadFault fault, const char* p, Py_ssize_t used) except -1
    cdef int body_wanted(self, const char* body, const char* end) except -1
    cdef int hand_over(self, Head* head, const char* p, const char* body) except -1
    cdef const char* pass_body(self, const char* p, const char* end) except NULL
    cdef const char* known_message(self, const char* p, const char* end) noexcept
    cdef Py_ssize_t served(self, const char* p, const char* end) noexcept
    cdef Ticket take_first(self)
    cdef bint is_fast(self, Head* head) except -1
    cdef bint serve(self, Head* head, const char* p, const char* body) except -1
    cdef int64_t arrival(self, const char* p) noexcept
    cdef int find_sender(self, const Head* head) except -1
    cdef int64_t fair_key(self) noexcept
    cdef Py_ssize_t refuse_head(self, Head* head, const char* p, const char* body, const char* end) except -1
    cdef const char* skip_body(self, const char* p, const char* end) noexcept
    cdef int expect(self, Ticket ticket, const Head* head) except -1
    cdef int put_refusal(self, Ticket ticket, bint close) except -1
    cdef int ready(self) except -1
    cdef int write_answers(self) except -1
    cdef int send(self) except -1
    cdef int abandon(self) except -1
    cdef int encode_on_thread(self, Ticket ticket) except -1
    cdef int render(self, Ticket ticket, bint close) except -1
    cdef int put_answer(self, Ticket ticket, bint close, const char* body, size_t size, Py_ssize_t json_size) except -1
