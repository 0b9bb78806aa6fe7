# The connection: frames every message, serves plain infer requests itself, and hands everything else, one whole
# message at a time and its bytes untouched, to the standard lane. It knows no event loop.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memmove

cdef enum:
    MAX_IN_FLIGHT = 32              # requests of one connection; past it reading waits
    MAX_STASH = 64 * 1024           # bytes that wait behind an answer before reading waits too
    MAX_REQUEST_ID = 128
    HEAD_ROOM = 1024                # bytes that an answer's head may take
    WRITE_SIZE = 256 * 1024         # bytes of answers that leave in one write; more are not gathered first
    KEPT_BODY = 64 * 1024           # a refused body up to this is counted off, and the connection kept
    MAX_KEPT = 4 * 1024 * 1024      # bytes of a buffer that is kept for the next answers
    MAX_EMPTY_LINES = 4             # before a request


@cython.final
cdef class Connection:
    """One client's connection.

    Args:
        protocol: who owns the transport and the standard lane. Called back: ``feed(bytes, is_head)`` with a message's
            head and then its body, ``refuse(error)`` with a fault that ends the connection, ``failure(error,
            request_id, close, ticket)`` for the bytes of an error's answer, ``encode_elsewhere(ticket)`` for a
            large one, ``hold(bool)`` to stop and go on reading, ``left(ticket, request_id)`` when a client did not
            wait, ``refused(error, request_id, ticket)`` for the log. Any of them may end in ``lost()``, after which the
            received bytes are not there any more.
        lane: what the server's connections share.
    """

    def __init__(self, protocol, Lane lane not None):
        self.protocol = protocol
        self.lane = lane

    def __dealloc__(self):
        slab_free(&self.stash)

    def attach(self, transport, bytes client not None=b"", bytes host not None=b""):
        """The connection is made.

        Args:
            client: its address, for the access log.
            host: the address alone; empty on a Unix socket.
        """
        self.client = client
        self.client_key = greet(self, host)
        self.transport = transport
        self.write = transport.write
        self.quiet_since = monotonic_ns()

    def lost(self):
        """The client is gone: its requests leave the queue, and the reference cycle with the protocol ends."""
        cdef Ticket ticket
        self.gone = True
        while self.first is not None:
            ticket = self.take_first()
            if not ticket.settled:
                self.protocol.left(ticket, ticket.request_id or self.lane.next_id())
            if ticket.finished and not ticket.elsewhere:
                ticket.release()
            ticket.cancel()
        if self.standard is not None:
            self.standard.cancel()
            self.standard = None
        self.protocol = self.transport = self.write = None
        slab_free(&self.stash)
        self.stash_start = self.stash_end = 0
        self.head_ns = self.body_ns = 0

    def data_received(self, bytes data not None):
        """Take what the socket gave."""
        cdef const char* begin = PyBytes_AS_STRING(data)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t used
        if self.gone or self.fault is not None:
            return
        self.read_ns = monotonic_ns()
        if self.stash_start < self.stash_end:
            self.keep(begin, size)
            self.consume_stash()
        else:
            used = self.consume(begin, size)
            if used < size and not self.gone:
                self.keep(begin + used, size - used)
            self.hold_or_go_on()
        if self.is_dirty:  # some are refused
            self.lane.flush()

    def answered(self):
        """The standard lane has answered the message it was given."""
        self.answer_due = False
        self.standard = None
        self.quiet_since = self.read_ns = monotonic_ns()
        if not self.in_body:
            self.consume_stash()
            if self.is_dirty:
                self.lane.flush()

    def arrived(self, int64_t timeout_ns):
        """The Arrival of the message that the standard lane has; ``timeout_ns`` is what its head allows, or 0."""
        cdef Arrival arrival = Arrival(self.message_ns, timeout_ns, self.message_key)
        arrival.connection = self
        return arrival

    @property
    def sender(self):
        """(host, port) of the client for whom a trusted proxy sent the message that the standard lane has, or None."""
        return (host_text(&self.sender).decode(), self.sender.port) if self.forwarded else None

    @property
    def scheme(self):
        """That the client used, as a trusted proxy tells: "http", "https" or None."""
        return {SCHEME_HTTP: "http", SCHEME_HTTPS: "https"}.get(self.told_scheme) if self.trusted else None

    def writable(self, bint yes):
        """Whether the client reads; while it does not, no request of it is begun."""
        self.stalled = not yes
        if yes and not self.gone:
            self.quiet_since = self.read_ns = monotonic_ns()
            if self.n_pending:
                self.ready()  # its answers waited for the client; they go first
                self.lane.flush()
            else:
                self.consume_stash()
                if self.is_dirty:
                    self.lane.flush()

    def eof(self):
        """The client sends no more. Returns whether it may still wait for an answer; else the connection may close."""
        self.ended = True
        return not (self.gone or self.in_body or self.skip_left) and (
            self.n_pending > 0 or self.answer_due or self.stalled and self.stash_start < self.stash_end)

    def drain(self):
        """The server leaves: the last answer that is due says so. Returns whether nothing is due."""
        self.leaving = True
        return self.gone or not (self.n_pending or self.answer_due or self.in_body or self.skip_left)

    # Clocks, in monotonic nanoseconds; 0 where one does not run. None runs against a client whose answer is due.
    @property
    def head_since(self):
        """Since when a message has been arriving that is not begun."""
        return 0 if self.n_pending or self.stalled else self.head_ns

    @property
    def body_since(self):
        """Since when a body has been arriving."""
        return 0 if self.n_pending or self.stalled and not self.in_body else self.body_ns

    @property
    def idle_since(self):
        """Since when nothing is due."""
        if (self.n_pending or self.answer_due or self.in_body or self.skip_left or self.head_ns
                or self.stalled):
            return 0
        return self.quiet_since

    # ---- framing ---------------------------------------------------------------------------------------------------
    cdef int keep(self, const char* data, Py_ssize_t size) except -1:
        """Set bytes aside that cannot be used yet."""
        cdef size_t have = self.stash_end - self.stash_start
        cdef int i
        if self.stash_start and <size_t>self.stash_end + size > self.stash.capacity:
            memmove(self.stash.data, self.stash.data + self.stash_start, have)
            self.stash_start = 0
            self.stash_end = have
        if not slab_reserve(&self.stash, self.stash_end, self.stash_end + size):
            raise MemoryError
        memcpy(self.stash.data + self.stash_end, data, size)
        self.stash_end += size
        if have == 0:
            self.n_marks = 0
        while self.n_marks > 1 and self.marks[1].begin <= self.kept - <int64_t>have:
            self.n_marks -= 1
            memmove(&self.marks[0], &self.marks[1], self.n_marks * sizeof(Mark))
        if self.n_marks == MAX_MARKS:  # tell every second read from the one before it no more
            self.n_marks //= 2
            for i in range(self.n_marks):
                self.marks[i] = self.marks[2 * i]
        self.marks[self.n_marks].begin = self.kept
        self.marks[self.n_marks].read_ns = self.read_ns
        self.n_marks += 1
        self.kept += size
        return 0

    cdef int64_t arrival(self, const char* p) noexcept:
        """When the byte at ``p`` was read, which lies in the stash or in what has just been read."""
        cdef int64_t at
        cdef int i
        if self.stash.data == NULL or not self.stash.data <= p < self.stash.data + self.stash_end:
            return self.read_ns
        at = self.kept - (self.stash.data + self.stash_end - p)
        for i in range(self.n_marks - 1, -1, -1):
            if self.marks[i].begin <= at:
                return self.marks[i].read_ns
        return self.read_ns

    cdef int consume_stash(self) except -1:
        cdef Py_ssize_t used
        if self.stash_start < self.stash_end:
            used = self.consume(self.stash.data + self.stash_start, self.stash_end - self.stash_start)
            if self.gone:
                return 0
            self.stash_start += used
            if self.stash_start == self.stash_end:
                self.stash_start = self.stash_end = 0
                if self.stash.capacity > MAX_STASH:
                    slab_free(&self.stash)
        return self.hold_or_go_on()

    cdef int hold_or_go_on(self) except -1:
        """Stop reading while much waits behind an answer, or the client does not read its own."""
        cdef bint hold
        if self.gone:
            return 0
        if self.ended and (self.in_body or self.skip_left or not (self.n_pending or self.answer_due or self.stalled)):
            self.transport.close()  # what is left of its bytes will never be a request
            return 0
        hold = not self.can_begin() and self.stash_end - self.stash_start >= MAX_STASH and not self.in_body
        if hold != self.holding:
            self.holding = hold
            self.protocol.hold(hold)
        return 0

    cdef bint can_begin(self) noexcept:
        """Whether the next message may be looked at."""
        return not (self.answer_due or self.in_body or self.stalled or self.n_pending >= MAX_IN_FLIGHT
                    or self.waiting and self.n_pending or self.last or self.gone) and self.fault is None

    cdef Py_ssize_t consume(self, const char* begin, Py_ssize_t size) except -1:
        """Go through received bytes; how many of them were used up."""
        cdef const char* p = begin
        cdef const char* end = begin + size
        cdef Py_ssize_t step
        while p < end and not self.gone:
            if self.in_body:
                p = self.pass_body(p, end)
                continue
            if self.skip_left:
                p = self.skip_body(p, end)
                continue
            if not self.can_begin():
                break
            step = self.begin_message(p, end)
            if step == 0:
                break
            p += step
        return p - begin

    cdef Py_ssize_t begin_message(self, const char* p, const char* end) except -1:
        """Serve, hand over or refuse the message at ``p``; 0 when it has to wait, else the bytes used."""
        cdef const char* body
        cdef HeadFault fault
        cdef bint refused = False
        cdef Py_ssize_t step
        cdef Head head
        if not self.waiting:
            body = self.known_message(p, end)
            if body != NULL:
                step = self.refuse_head(&self.lane.known[self.known].head, p, body, end)
                if step > 0:
                    return step
                if step == 0 and self.serve(&self.lane.known[self.known].head, p, body):
                    return self.served(p, body + self.lane.known[self.known].head.content_length)
                refused = True
        if not self.head_ns:
            self.head_ns = self.read_ns
        if p[0] == c'\r' or p[0] == c'\n':
            return self.skip_empty_lines(p, end)
        body = find_head_end(p, end)
        if body == NULL:
            return self.head_incomplete(p, end)
        fault = parse_head(&head, p, body)
        if body - p > MAX_HEAD and fault != HEAD_URL:
            fault = HEAD_TOO_LARGE
        if fault != HEAD_OK:
            return self.fail_head(fault, p, end - p)
        if not self.waiting and not refused and self.is_fast(&head):
            step = self.refuse_head(&head, p, body, end)
            if step > 0:
                return step
            if step < 0:
                refused = True
            elif end - body < head.content_length:
                self.body_wanted(body, end)
                return 0
            if not refused and self.serve(&head, p, body):
                self.lane.know(self, &head, p, body)
                return self.served(p, body + head.content_length)
        # Answers leave in order: the standard lane begins when the fast one has nothing due.
        self.waiting = self.n_pending > 0
        if self.waiting:
            return 0
        self.head_ns = 0
        self.empty_lines = 0
        self.hand_over(&head, p, body)
        return body - p

    cdef Py_ssize_t skip_empty_lines(self, const char* p, const char* end) except -1:
        """A few are allowed before a request (RFC 9112, 2.2)."""
        cdef const char* start = p
        while p < end and (p[0] == c'\r' or p[0] == c'\n'):
            if p[0] == c'\n' or p + 1 < end and p[1] != c'\n':
                return self.fail_head(HEAD_BARE, start, end - start)
            if self.empty_lines == MAX_EMPTY_LINES:
                return self.fail_head(HEAD_LINE, start, end - start)
            if p + 1 == end:
                return p - start
            p += 2
            self.empty_lines += 1
        if p == end:
            self.head_ns = 0
        return p - start

    cdef Py_ssize_t head_incomplete(self, const char* p, const char* end) except -1:
        """Wait for the rest of a head, unless it is too large or wrong already."""
        cdef const char* q = p
        cdef HeadFault fault = check_first_line(p, end)
        if fault == HEAD_OK and end - p > MAX_HEAD:
            fault = HEAD_TOO_LARGE
        if fault != HEAD_OK:
            return self.fail_head(fault, p, end - p)
        while q < end:
            q = <const char*>memchr(q, c'\n', end - q)
            if q == NULL:
                break
            if q == p or (q - 1)[0] != c'\r':
                return self.fail_head(HEAD_BARE, p, end - p)
            q += 1
        if <const char*>memchr(p, 0, end - p) != NULL:
            return self.fail_head(HEAD_VALUE, p, end - p)
        return 0

    cdef Py_ssize_t fail_head(self, HeadFault fault, const char* p, Py_ssize_t used) except -1:
        """Refuse the message and give the connection up, after the answers that are due."""
        kind, message = FAULTS[fault]
        self.fault = kind(message)
        self.for_head = used >= 5 and memcmp(p, b"HEAD ", 5) == 0
        self.head_ns = self.body_ns = 0
        if not self.n_pending:
            self.protocol.refuse(self.fault)
        return used

    cdef int body_wanted(self, const char* body, const char* end) except -1:
        """The head is complete, the body is not: from here the body's clock runs."""
        if not self.body_ns:
            self.body_ns = self.read_ns
        self.body_bytes = end - body
        self.route = None
        return 0

    # ---- the standard lane -----------------------------------------------------------------------------------------
    cdef int hand_over(self, Head* head, const char* p, const char* body) except -1:
        self.answer_due = True
        self.route = None
        self.message_ns = self.arrival(p)
        self.identity = self.lane.credentials.identify(head, self)
        self.find_sender(head)
        self.told_scheme = head.scheme
        self.message_key = self.fair_key()
        self.chunked = head.chunked
        self.for_head = head.method_size == 4 and memcmp(head.method, b"HEAD", 4) == 0
        self.body_left = max(head.content_length, <int64_t>0)
        self.body_bytes = 0
        self.in_body = head.chunked or self.body_left > 0
        self.body_ns = self.read_ns if self.in_body else 0
        if head.chunked:
            chunks_begin(&self.chunks)
        self.protocol.feed(PyBytes_FromStringAndSize(p, body - p), True)
        return 0

    cdef const char* pass_body(self, const char* p, const char* end) except NULL:
        """Give the standard lane what belongs to its message's body; past it."""
        cdef const char* q = p
        cdef HeadFault state
        if self.chunked:
            state = chunks_feed(&self.chunks, &q, end)
            if state > HEAD_MORE:
                kind, message = FAULTS[state]
                self.fault = kind(message)
                self.in_body = False
                self.body_ns = 0
                self.protocol.refuse(self.fault)
                return end
            self.in_body = state == HEAD_MORE
        else:
            q = p + min(self.body_left, <int64_t>(end - p))
            self.body_left -= q - p
            self.in_body = self.body_left > 0
        self.body_bytes += q - p
        if not self.in_body:
            self.body_ns = 0
            self.quiet_since = self.read_ns
        self.protocol.feed(PyBytes_FromStringAndSize(p, q - p), False)
        return q

    # ---- the fast lane ---------------------------------------------------------------------------------------------
    cdef const char* known_message(self, const char* p, const char* end) noexcept:
        """The body of a message that is all here, and whose head this client sent before; else NULL."""
        cdef KnownHead* known = &self.lane.known[self.known]
        cdef int64_t size = 0
        cdef const char* body = same_head(known, p, end, &size)
        if body == NULL or size == 0 or size > self.lane.max_body or end - body < size:
            return NULL
        if len(self.lane.credentials.identities):  # a head without any, which is what is kept, is not anonymous then
            return NULL
        self.identity = ANONYMOUS
        self.forwarded = False
        known.head.content_length = size
        self.route = <Route>self.lane.routes[known.route]
        return body

    cdef Py_ssize_t served(self, const char* p, const char* end) noexcept:
        self.head_ns = self.body_ns = 0
        self.empty_lines = 0
        self.route = None  # an idle connection must not keep a model that was replaced
        return end - p

    cdef bint is_fast(self, Head* head) except -1:
        """Whether the message is a plain request to a fast route."""
        cdef int index
        if not (head.plain and head.minor == 1 and not head.chunked and head.content_length > 0
                and head.content_length <= self.lane.max_body and head.method_size == 4
                and memcmp(head.method, b"POST", 4) == 0):
            return False
        index = self.lane.paths.find(head.target, head.target_size)
        if index < 0:
            return False
        self.route = <Route>self.lane.routes[index]
        self.identity = self.lane.credentials.identify(head, self)
        if self.identity < 0:
            return False
        self.find_sender(head)
        return head.request_id_size == 0 or is_request_id(head.request_id, head.request_id_size)

    cdef bint serve(self, Head* head, const char* p, const char* body) except -1:
        """Submit a whole request that begins at ``p``; False when it is at fault, which the standard lane tells."""
        cdef Endpoint endpoint = self.route.endpoint
        cdef Ticket ticket
        if self.route.kind == KIND_INFER and head.header_length > head.content_length:
            return False
        ticket = endpoint.submit_fast(self.route.kind, body, <size_t>head.content_length, head, self.read_ns,
                                      self.arrival(p), self.fair_key())
        if ticket is None:
            return False
        if endpoint.batcher.run_async is not None:
            note_context(ticket, head, p, body)
        self.expect(ticket, head)
        return True

    cdef Py_ssize_t refuse_head(self, Head* head, const char* p, const char* body, const char* end) except -1:
        """Answer a request that begins at ``p`` with a refusal, where its head tells enough; the bytes used, or 0.

        Its body is counted off as it comes. With a large one it is the standard lane's, and this is -2: there the
        connection closes in order.
        """
        cdef Endpoint endpoint = self.route.endpoint
        cdef int64_t retry_ns = 0
        cdef Py_ssize_t here = min(<Py_ssize_t>head.content_length, end - body)
        cdef Reason reason
        reason = endpoint.judge_head(self.route.kind, head.content_length, self.read_ns, self.arrival(p),
                                     head.timeout_ns, self.fair_key(), &retry_ns)
        if reason == ADMITTED:
            return 0
        if head.content_length > KEPT_BODY:
            return -2
        self.expect(endpoint.refused_ticket(reason, retry_ns, self.read_ns), head)
        self.served(p, body)
        self.skip_left = head.content_length - here
        self.body_bytes = here
        self.body_ns = self.read_ns if self.skip_left else 0
        return body + here - p

    cdef const char* skip_body(self, const char* p, const char* end) noexcept:
        """Pass by what belongs to a refused message's body."""
        cdef Py_ssize_t step = min(<Py_ssize_t>self.skip_left, end - p)
        self.skip_left -= step
        self.body_bytes += step
        if not self.skip_left:
            self.body_ns = 0
            self.quiet_since = self.read_ns
        return p + step

    cdef int expect(self, Ticket ticket, const Head* head) except -1:
        """An answer is due, after those that are due already."""
        ticket.connection = self
        ticket.closes = head.close
        ticket.identity = self.identity
        ticket.timed = head.timing or self.lane.server_timing
        if self.lane.access is not None:
            ticket.route = self.route
            if self.forwarded:
                ticket.client = address_text(&self.sender)
        if head.request_id_size:
            ticket.request_id = head.request_id[:head.request_id_size]
        if head.close:
            self.last = True
        if self.first is None:
            self.first = ticket
        else:
            self.latest.next = ticket
        self.latest = ticket
        self.n_pending += 1
        if ticket.finished:
            self.ready()
        return 0

    cdef int find_sender(self, const Head* head) except -1:
        """See for whom a trusted proxy sends the message that is looked at."""
        self.forwarded = (self.trusted and head.forwarded_lines > 0
                          and self.lane.proxies.find_client(head, &self.sender))
        if self.forwarded:
            self.sender_key = address_key(&self.sender)
        return 0

    cdef int64_t fair_key(self) noexcept:
        """Whose that message is: who shares what a queue holds."""
        if self.identity > 0:
            return self.identity
        return self.sender_key if self.forwarded else self.client_key

    cdef Ticket take_first(self):
        cdef Ticket ticket = self.first
        self.first = ticket.next
        ticket.next = None
        self.n_pending -= 1
        if self.first is None:
            self.latest = None
        return ticket

    cdef int ready(self) except -1:
        """One of the pending requests has its result."""
        if not self.is_dirty and not self.gone:
            self.is_dirty = True
            self.lane.append_dirty(self)
        return 0

    cdef int write_answers(self) except -1:
        """Render what is due in order, and send it: in one write, unless it is much."""
        cdef Lane lane = self.lane
        cdef Ticket ticket
        cdef bint close
        lane.answer.size = 0
        while self.first is not None and not self.gone:
            ticket = self.first
            if not ticket.finished:
                break
            if ticket.answer is None and ticket.is_large():
                if not self.stalled:  # else it stays a tensor, which is smaller
                    self.encode_on_thread(ticket)
                break
            self.take_first()
            close = ticket.closes or self.leaving and not self.n_pending
            self.render(ticket, close)
            self.last = self.last or close
            if lane.answer.size >= WRITE_SIZE:
                self.send()
        self.send()
        if self.gone:
            return 0
        self.read_ns = monotonic_ns()
        if not self.n_pending:
            self.quiet_since = self.read_ns
            if self.last:
                self.transport.close()
                return 0
            if self.fault is not None:
                self.protocol.refuse(self.fault)
                return 0
        return self.consume_stash()

    cdef int send(self) except -1:
        """Write what was rendered."""
        cdef Lane lane = self.lane
        if lane.answer.size and not self.gone:
            data = PyBytes_FromStringAndSize(lane.answer.data, lane.answer.size)
            lane.answer.size = 0
            self.write(data)
        if lane.answer.capacity > MAX_KEPT:
            writer_free(&lane.answer)
        if lane.body.capacity > MAX_KEPT:
            writer_free(&lane.body)
        return 0

    cdef int abandon(self) except -1:
        """Something is wrong that is not the client's fault: cut the connection."""
        if not self.gone:
            self.transport.abort()
        return 0

    cdef int encode_on_thread(self, Ticket ticket) except -1:
        """Render a large answer where it does not hold the loop; it comes back through ``rendered``."""
        if not ticket.elsewhere:
            ticket.elsewhere = True
            self.protocol.encode_elsewhere(ticket)
        return 0

    def rendered(self, Ticket ticket not None, answer, error):
        """A worker thread has rendered a ticket's answer, or failed to; on the loop's thread."""
        ticket.answer = answer or ()
        ticket.error = error
        ticket.release()
        self.ready()
        self.lane.flush()

    cdef int render(self, Ticket ticket, bint close) except -1:
        """Append one answer to the lane's buffer; the same bytes as the standard lane's but for the Date."""
        cdef Lane lane = self.lane
        cdef Py_ssize_t json_size
        cdef bytes whole
        lane.body.size = 0
        if ticket.refusal != ADMITTED:
            return self.put_refusal(ticket, close)
        try:
            if ticket.answer:
                whole = <bytes>ticket.answer[0]
                return self.put_answer(ticket, close, PyBytes_AS_STRING(whole), PyBytes_GET_SIZE(whole),
                                       ticket.answer[1])
            json_size = ticket.encode_into(&lane.body)
        except Exception as error:
            whole = self.protocol.failure(error, ticket.request_id or lane.next_id(), close, ticket)
            if not writer_put(&lane.answer, PyBytes_AS_STRING(whole), PyBytes_GET_SIZE(whole)):
                raise MemoryError
            return 0
        return self.put_answer(ticket, close, lane.body.data, lane.body.size, json_size)

    cdef int put_answer(self, Ticket ticket, bint close, const char* body, size_t size, Py_ssize_t json_size) except -1:
        cdef Lane lane = self.lane
        cdef Writer* out = &lane.answer
        cdef size_t id_start
        cdef size_t id_size
        if not writer_reserve(out, HEAD_ROOM + size):
            raise MemoryError
        append_text(out, lane.json_opening if json_size < 0 else lane.binary_opening)
        id_start = out.size
        id_size = append_id(out, lane, ticket)
        if json_size >= 0:
            append_literal(out, b"\r\ninference-header-content-length: ")
            append_decimal(out, json_size)
        if ticket.timed:
            append_literal(out, b"\r\nserver-timing: ")
            append_timing(out, ticket)
        append_literal(out, b"\r\ncontent-length: ")
        append_decimal(out, size)
        if close:
            append_literal(out, b"\r\nconnection: close")
        append_literal(out, b"\r\n\r\n")
        memcpy(out.data + out.size, body, size)
        out.size += size
        if lane.access is not None:
            lane.access.answered(self, ticket, 200, b"", size, out.data + id_start, id_size)
        return 0

    cdef int put_refusal(self, Ticket ticket, bint close) except -1:
        """Append the answer to a request that is refused, which is ready but for the time after which to try again."""
        cdef Lane lane = self.lane
        cdef Writer* out = &lane.answer
        cdef bytes body = REFUSAL_BODIES[<int>ticket.refusal - 1]
        cdef uint64_t milliseconds = lane.jittered(ticket.retry_ns)
        cdef size_t id_start, id_size, size
        if not writer_reserve(out, HEAD_ROOM + PyBytes_GET_SIZE(body)):
            raise MemoryError
        append_text(out, lane.refusal_opening)
        id_start = out.size
        id_size = append_id(out, lane, ticket)
        append_literal(out, b"\r\nretry-after: ")
        append_decimal(out, (milliseconds + 999) // 1000 + (lane.random() & 1))
        append_literal(out, b"\r\nx-envoy-overloaded: true\r\ncontent-length: ")
        size = PyBytes_GET_SIZE(body) + decimal_size(milliseconds) + 1
        append_decimal(out, size)
        if close:
            append_literal(out, b"\r\nconnection: close")
        append_literal(out, b"\r\n\r\n")
        append_text(out, body)
        append_decimal(out, milliseconds)
        out.data[out.size] = c'}'
        out.size += 1
        ticket.endpoint.counts.answered[LANE_FAST][UNAVAILABLE_CELL] += 1
        if lane.access is not None:
            lane.access.answered(self, ticket, 503, REFUSAL_CODES[<int>ticket.refusal - 1], size,
                                 out.data + id_start, id_size)
        lane.tell(self.protocol, ticket, out.data[id_start:id_start + id_size])
        return 0


cdef inline bint is_request_id(const char* p, Py_ssize_t size) noexcept nogil:
    """As protocols/exchange.py has it: short, and harmless in a header and in a log."""
    cdef Py_ssize_t i
    cdef unsigned char c
    if size > MAX_REQUEST_ID:
        return False
    for i in range(size):
        c = <unsigned char>p[i]
        if not ((c | 0x20) >= c'a' and (c | 0x20) <= c'z' or c >= c'0' and c <= c'9'
                or c in (c'.', c'_', c':', c'/', c'+', c'=', c'@', c',', c';', c'~', c'-')):
            return False
    return True
