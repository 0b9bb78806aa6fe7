# The access log: who asked for what, what was answered, and how long it took. The loop's thread notes fixed-size
# entries in a ring and never waits; another thread makes lines of them, the GIL released throughout.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint16_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcpy, memmove
from libc.time cimport gmtime_r, localtime_r, strftime, time_t, tm
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release

cdef extern from "<unistd.h>" nogil:
    Py_ssize_t write_file "write"(int, const void*, size_t)
    int usleep(unsigned int)

cdef extern from "<poll.h>" nogil:
    enum: POLLOUT
    struct pollfd:
        int fd
        short events
    int poll(pollfd*, unsigned long, int)

cdef enum:
    ATOMIC_WRITE = 4096     # POSIX's PIPE_BUF on Linux: no other writer's bytes come between these
    PERIOD_US = 50_000      # between looks at the ring
    BLOCKED_MS = 1000       # how long a reader of the log may make the end wait
    LINE_ROOM = 8192        # bytes that no line is longer than, every character of it an escape

# The fields of an entry that are text, in their order in a line: ACCESS_TEXT is the sum of what is kept of each.
ctypedef const char* FieldName
cdef FieldName[ACCESS_FIELDS] TEXT_NAMES = [
    b"request_id", b"client", b"method", b"path", b"model", b"version", b"code",
]
cdef int[ACCESS_FIELDS] TEXT_SIZES = [128, 64, 16, 256, 128, 32, 32]


@cython.final
cdef class AccessLog:
    """Access records on their way from the loop's thread to a file.

    A record that finds the ring full is dropped and counted; a line of the log says how many were.

    Args:
        text: whether lines are text, as logs.TextFormatter has it; else a JSON object each, as logs.JsonFormatter.
        capacity: records that may wait; rounded up to a power of two.
        origin: what stands in every line before its message as text, after it as JSON; at most 64 bytes.
    """

    def __init__(self, bint text, int capacity=8192, bytes origin not None=b""):
        self.text = text
        self.origin = origin[:64]
        self.origin_text = self.origin
        self.capacity = 1
        while self.capacity < <uint64_t>capacity:
            self.capacity *= 2
        free(self.entries)
        self.entries = <AccessEntry*>calloc(self.capacity, sizeof(AccessEntry))
        if self.entries == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.entries)

    # ---- on the loop's thread --------------------------------------------------------------------------------------
    cdef AccessEntry* begin(self) noexcept:
        """The entry to fill, or NULL where there is no room; the record is in the log from ``commit`` on."""
        cdef uint64_t head = self.head.load(memory_order_relaxed)
        cdef AccessEntry* entry
        if head - self.tail.load(memory_order_acquire) >= self.capacity:
            self.dropped.fetch_add(1, memory_order_relaxed)
            return NULL
        entry = &self.entries[head & (self.capacity - 1)]
        entry.time_ns = realtime_ns()
        entry.rows = entry.queue_ns = entry.preprocess_ns = entry.run_ns = -1
        entry.fields = 0
        return entry

    cdef void commit(self) noexcept:
        self.head.store(self.head.load(memory_order_relaxed) + 1, memory_order_release)

    cdef void answered(self, Connection connection, Ticket ticket, int status, bytes code, size_t size,
                       const char* request_id, size_t id_size) noexcept:
        """The fast lane has answered with a body of ``size`` bytes."""
        cdef AccessEntry* entry = self.begin()
        if entry == NULL:
            return
        entry.status = status
        entry.size = size
        entry.total_ns = monotonic_ns() - ticket.started_ns
        entry_text(entry, request_id, id_size)
        entry_bytes(entry, connection.client if ticket.client is None else ticket.client)
        entry_text(entry, b"POST", 4)
        entry_bytes(entry, ticket.route.path)
        entry_bytes(entry, ticket.route.model)
        entry_bytes(entry, ticket.route.version)
        entry_bytes(entry, code)
        if ticket.refusal == ADMITTED or ticket.refusal == EXPIRED:
            entry_ticket(entry, ticket)
        self.commit()

    def record(self, int status, int64_t size, *, bytes request_id not None=b"", bytes client not None=b"",
               bytes method not None=b"", bytes path not None=b"", bytes model not None=b"",
               bytes version not None=b"", bytes code not None=b"", Ticket ticket=None, int64_t total_ns=-1):
        """Note an answer. What is empty, or is not known, has no place in the line.

        Args:
            status: of the answer; 499 where the client left first.
            size: bytes of its body.
            code: of the error that it told.
            ticket: its way through the core.
            total_ns: from its arrival to now, or -1.
        """
        cdef AccessEntry* entry = self.begin()
        if entry == NULL:
            return
        entry.status = status
        entry.size = size
        entry.total_ns = total_ns
        for field in (request_id, client, method, path, model, version, code):
            entry_bytes(entry, <bytes>field)
        if ticket is not None:
            entry_ticket(entry, ticket)
        self.commit()

    def close(self):
        """``run`` ends when it has written what is left."""
        self.closed.store(1)

    # ---- on the writer's thread ------------------------------------------------------------------------------------
    def run(self, int file):
        """Write lines to a file descriptor as records come, until ``close``; without the GIL."""
        cdef Writer out = Writer(NULL, 0, 0)
        cdef bint last = False
        with nogil:
            while not last:
                last = self.closed.load()
                if self.empty() and not last:
                    usleep(PERIOD_US)
                    continue
                self.write_lines(&out, file)
            writer_free(&out)

    cdef bint empty(self) noexcept nogil:
        return (self.tail.load(memory_order_relaxed) == self.head.load(memory_order_acquire)
                and not self.dropped.load(memory_order_relaxed))

    cdef void write_lines(self, Writer* out, int file) noexcept nogil:
        """Write what the ring holds now, in pieces that a pipe takes whole."""
        cdef uint64_t tail = self.tail.load(memory_order_relaxed)
        cdef uint64_t head = self.head.load(memory_order_acquire)
        cdef uint64_t dropped
        cdef size_t before
        while tail != head:
            if not writer_reserve(out, ATOMIC_WRITE + LINE_ROOM):
                return  # later, perhaps
            before = out.size
            self.append_line(out, &self.entries[tail & (self.capacity - 1)])
            if before and out.size > ATOMIC_WRITE:
                self.write_all(file, out.data, before)
                memmove(out.data, out.data + before, out.size - before)
                out.size -= before
            tail += 1
            self.tail.store(tail, memory_order_release)
        dropped = self.dropped.exchange(0)
        if dropped and writer_reserve(out, LINE_ROOM):
            self.append_dropped(out, dropped)
        self.write_all(file, out.data, out.size)
        out.size = 0

    cdef void write_all(self, int file, const char* data, size_t size) noexcept nogil:
        """Write to a file that may be slow; what cannot be written is lost."""
        cdef size_t done = 0
        cdef Py_ssize_t wrote
        cdef pollfd ready
        while done < size and not self.given_up:
            wrote = write_file(file, data + done, size - done)
            if wrote > 0:
                done += wrote
            elif wrote < 0 and errno == EAGAIN:
                ready.fd = file
                ready.events = POLLOUT
                self.given_up = poll(&ready, 1, BLOCKED_MS) == 0 and self.closed.load()
            elif wrote == 0 or errno != EINTR:
                return

    cdef void append_line(self, Writer* out, AccessEntry* entry) noexcept nogil:
        cdef const char* text = entry.text
        cdef int field
        self.append_opening(out, entry.time_ns, b"info", b"answered")
        for field in range(entry.fields):
            if entry.sizes[field]:
                self.append_key(out, TEXT_NAMES[field])
                append_value(out, text, entry.sizes[field], self.text)
            text += entry.sizes[field]
        if entry.rows >= 0:
            self.append_number(out, b"rows", entry.rows)
        self.append_number(out, b"status", entry.status)
        self.append_number(out, b"bytes", entry.size)
        if entry.queue_ns >= 0:
            self.append_duration(out, b"queue_ms", entry.queue_ns)
            self.append_duration(out, b"preprocess_ms", entry.preprocess_ns)
            self.append_duration(out, b"run_ms", entry.run_ns)
        if entry.total_ns >= 0:
            self.append_duration(out, b"total_ms", entry.total_ns)
        append_literal(out, b"\n" if self.text else b"}\n")

    cdef void append_dropped(self, Writer* out, uint64_t dropped) noexcept nogil:
        self.append_opening(out, realtime_ns(), b"warning", b"requests were not logged: the log is read too slowly")
        self.append_number(out, b"dropped", dropped)
        append_literal(out, b"\n" if self.text else b"}\n")

    cdef void append_opening(self, Writer* out, int64_t time_ns, const char* level, const char* message) noexcept nogil:
        """Up to the message: the time, local in text, UTC in JSON, and the level."""
        cdef time_t seconds = time_ns // 1_000_000_000
        cdef int millisecond = <int>(time_ns // 1_000_000 % 1000)
        cdef tm parts
        cdef bint warns = level[0] == c'w'
        if self.second != seconds:  # once a second: the C library takes a lock, and looks up the zone
            self.second = seconds
            if self.text:
                localtime_r(&seconds, &parts)
                strftime(self.stamp, sizeof(self.stamp), b"%H:%M:%S", &parts)
            else:
                gmtime_r(&seconds, &parts)
                strftime(self.stamp, sizeof(self.stamp), b'{"time": "%Y-%m-%dT%H:%M:%S', &parts)
        append_literal(out, self.stamp)
        out.data[out.size] = c'.'
        out.data[out.size + 1] = <char>(c'0' + millisecond // 100)
        out.data[out.size + 2] = <char>(c'0' + millisecond // 10 % 10)
        out.data[out.size + 3] = <char>(c'0' + millisecond % 10)
        out.size += 4
        if self.text:
            append_literal(out, b" WARNING " if warns else b" INFO    ")
            append_literal(out, self.origin_text)
            append_literal(out, message)
            return
        append_literal(out, b'Z", "level": "')
        append_literal(out, level)
        append_literal(out, b'", "logger": "fastinfer.access", "message": "')
        append_literal(out, message)
        append_literal(out, b'"')
        append_literal(out, self.origin_text)

    cdef void append_key(self, Writer* out, const char* name) noexcept nogil:
        append_literal(out, b" " if self.text else b', "')
        append_literal(out, name)
        append_literal(out, b"=" if self.text else b'": ')

    cdef void append_number(self, Writer* out, const char* name, int64_t number) noexcept nogil:
        self.append_key(out, name)
        append_decimal(out, <uint64_t>max(number, <int64_t>0))

    cdef void append_duration(self, Writer* out, const char* name, int64_t nanoseconds) noexcept nogil:
        cdef size_t start
        self.append_key(out, name)
        start = out.size
        append_milliseconds(out, nanoseconds)
        if memchr(out.data + start, c'.', out.size - start) == NULL:
            append_literal(out, b".0")


cdef int64_t realtime_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef void entry_text(AccessEntry* entry, const char* text, size_t size) noexcept nogil:
    """The next of an entry's texts, cut to what is kept of it."""
    cdef int field = entry.fields
    cdef size_t start = 0
    cdef int i
    for i in range(field):
        start += entry.sizes[i]
    size = min(size, <size_t>TEXT_SIZES[field])
    memcpy(entry.text + start, text, size)
    entry.sizes[field] = <uint16_t>size
    entry.fields = field + 1


cdef inline void entry_bytes(AccessEntry* entry, bytes text) noexcept:
    entry_text(entry, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


cdef inline void entry_ticket(AccessEntry* entry, Ticket ticket) noexcept:
    entry.rows = ticket.rows
    entry.queue_ns = ticket.queue_ns
    entry.preprocess_ns = ticket.preprocess_ns
    entry.run_ns = ticket.run_ns


cdef void append_value(Writer* out, const char* text, size_t size, bint bare) noexcept nogil:
    """Text in quotes, as JSON; bare where that may be and no client could forge a field or a line with it."""
    cdef bint quoted = not bare
    cdef unsigned char c
    cdef size_t i
    for i in range(size):
        c = <unsigned char>text[i]
        if c <= 0x20 or c >= 0x7F or c == c'"' or c == c'=':
            quoted = True
    if not quoted:
        memcpy(out.data + out.size, text, size)
        out.size += size
        return
    append_literal(out, b'"')
    for i in range(size):
        c = <unsigned char>text[i]
        if c < 0x20 or c >= 0x7F:
            append_literal(out, b"\\u00")
            out.data[out.size] = b"0123456789abcdef"[c >> 4]
            out.data[out.size + 1] = b"0123456789abcdef"[c & 15]
            out.size += 2
            continue
        if c == c'"' or c == c'\\':
            out.data[out.size] = c'\\'
            out.size += 1
        out.data[out.size] = <char>c
        out.size += 1
    append_literal(out, b'"')
