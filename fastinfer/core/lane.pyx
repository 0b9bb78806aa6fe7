# What the connections of one server share: routes of the fast lane, heads that came before, buffers for answers.
cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free

import logging

connection_logger = logging.getLogger("fastinfer.connection")

cdef enum:
    MAX_FAST_BODY = 256 * 1024      # a larger one is decoded on a thread, which is the standard lane's business
    MAX_TOLD = 10                   # refusals of a kind that the log has, of a second
    MAX_KNOWN_HEAD = 1024           # bytes of a head that is kept
    MAX_UNLIKE = 4                  # heads of one client that are kept: who sends another each time gains nothing


@cython.final
cdef class Route:
    """What a path of the fast lane leads to."""

    def __cinit__(self, Endpoint endpoint, int kind, str path, int index):
        self.index = index
        self.endpoint = endpoint
        self.kind = kind
        self.path = path.encode()
        self.model = endpoint.name.encode()
        self.version = endpoint.version.encode()


@cython.final
cdef class Routes:
    """The paths of the fast lane and what they lead to; made on any thread, and never changed.

    Args:
        endpoints: pairs of an Endpoint and what it is addressed by in a path: credit, credit/versions/2, credit@live.
    """

    def __cinit__(self, endpoints):
        cdef Endpoint endpoint
        paths = []
        routes = []
        for endpoint, addresses in endpoints:
            for address in addresses:
                infer, predict = f"/v2/models/{address}/infer", f"/v1/models/{address}:predict"
                paths += [infer, predict]
                routes.append(Route(endpoint, KIND_INFER, infer, len(routes)))
                routes.append(Route(endpoint, KIND_RECORDS, predict, len(routes)))
        self.paths = NameTable(paths)
        self.routes = routes


@cython.final
cdef class Lane:
    """What the connections of one server share: the fast routes, and the buffers that answers are rendered into.

    Args:
        prefix: of the request ids made here.
        max_body: bytes; a larger body is the standard lane's business, as is one over 256 KiB.
        server_timing: whether every answer has a Server-Timing field, asked for or not.
        access: where every answer is noted, or None.
        proxies: peers that may say whom they speak for; nobody by default.
    """

    def __init__(self, bytes prefix not None, int64_t max_body, *, bint server_timing=False,
                 AccessLog access=None, Proxies proxies=None):
        self.prefix = prefix
        self.max_body = min(max_body, <int64_t>MAX_FAST_BODY)
        self.server_timing = server_timing
        self.access = access
        self.credentials = Credentials()
        self.proxies = Proxies() if proxies is None else proxies
        self.paths = NameTable([])
        self.routes = []
        self.tick(b"")
        self.state = <uint64_t>monotonic_ns()

    def __dealloc__(self):
        writer_free(&self.answer)
        writer_free(&self.body)
        self.forget_heads()

    def open(self, Routes routes not None):
        """Serve these here in place of those before, from the next message on; on the loop's thread.

        What is under way goes on where it began.
        """
        cdef Route route
        for route in routes.routes:
            route.endpoint.batcher.lane = self
        self.paths = routes.paths
        self.routes = routes.routes
        self.forget_heads()
        self.changes += 1

    def close(self):
        """From now on the standard lane answers everything."""
        self.open(Routes([]))

    cdef void forget_heads(self) noexcept:
        cdef int i
        for i in range(MAX_KNOWN):
            free(self.known[i].data)
            self.known[i].data = NULL

    cdef void know(self, Connection connection, const Head* head, const char* begin, const char* end) noexcept:
        """Keep a plain head, never one with credentials, for the client's next request that begins alike."""
        cdef int i = self.next_known
        if connection.changes != self.changes:
            connection.changes = self.changes
            connection.unlike = 0
        if connection.unlike >= MAX_UNLIKE:
            return
        connection.unlike += 1
        connection.known = i
        if end - begin <= MAX_KNOWN_HEAD and head.request_id_size == head.trace_size == 0 and head.header_length < 0 \
                and head.credentials == 0 and not (head.forwarded_lines and self.proxies.trusts_some()):
            self.next_known = (i + 1) % MAX_KNOWN
            know_head(&self.known[i], head, connection.route.index, begin, end)

    cdef bytes next_id(self):
        self.sequence += 1
        return b"%s%x" % (self.prefix, self.sequence)

    def tick(self, bytes date not None):
        """Set the Date field's line, once a second: what good answers and refusals begin with."""
        opening = b"HTTP/1.1 200 OK\r\n" + date + b"content-type: application/"
        self.json_opening = opening + b"json\r\nx-request-id: "
        self.binary_opening = opening + b"octet-stream\r\nx-request-id: "
        self.refusal_opening = (b"HTTP/1.1 503 Service Unavailable\r\n" + date
                                + b"content-type: application/json\r\nx-request-id: ")

    cdef int tell(self, protocol, Ticket ticket, bytes request_id) except -1:
        """Have a refusal logged, if it is one of the few of its second; the others are numbers of ``untold``."""
        self.told[<int>ticket.refusal] += 1
        if self.told[<int>ticket.refusal] <= MAX_TOLD:
            protocol.refused(refusal(ticket.refusal, ticket.retry_ns), request_id, ticket)
        return 0

    def untold(self):
        """(code, how many) of the refusals since the last call that the log has not; called once a second."""
        cdef int reason
        found = []
        for reason in range(1, REASON_COUNT):
            if self.told[reason] > MAX_TOLD:
                found.append((REFUSALS[reason - 1].code, self.told[reason] - MAX_TOLD))
            self.told[reason] = 0
        return found

    cdef void append_dirty(self, Connection connection):
        if self.dirty is None:
            self.dirty = connection
        else:
            self.last_dirty.next_dirty = connection
        self.last_dirty = connection

    cdef uint64_t random(self) noexcept:
        """Numbers that clients do not share; no secret. Source: Steele et al., SplitMix64."""
        cdef uint64_t z
        self.state += 0x9E3779B97F4A7C15u
        z = self.state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu
        return z ^ (z >> 31)

    cdef uint64_t jittered(self, int64_t retry_ns) noexcept:
        """Milliseconds: once to twice as many. Who was refused together must not come back together."""
        cdef uint64_t milliseconds = <uint64_t>max(retry_ns // 1_000_000, <int64_t>1)
        return milliseconds + self.random() % (milliseconds + 1)

    cdef int flush(self) except -1:
        """Write the answers that a batch left behind: one write a connection."""
        cdef Connection connection
        cdef Connection rest
        while self.dirty is not None:  # again, where what a connection sent meanwhile is answered already
            rest = self.dirty
            self.dirty = self.last_dirty = None
            while rest is not None:
                connection = rest
                rest = connection.next_dirty
                connection.next_dirty = None
                connection.is_dirty = False
                try:
                    connection.write_answers()
                except Exception:
                    # The other connections of this batch must have their answers all the same.
                    connection_logger.exception("a connection failed")
                    connection.abandon()
        return 0
