# The head of an HTTP/1.1 request, read strictly; and where a chunked body ends. Nothing here allocates.
#
# Sources: RFC 9110 and RFC 9112. Stricter than they ask where leniency lets two readers of one message disagree:
# a bare CR or LF, NUL, white space before a colon, a folded line, Content-Length beside Transfer-Encoding, either of
# them twice.
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy

from fastinfer.errors import (HeadTooLargeError, InvalidParameterError, MalformedHeadError, UnsupportedError,
                              UriTooLongError)

cdef enum:
    MAX_HEADERS = 100
    MAX_HEAD = 32 * 1024
    MAX_URL = 8 * 1024
    MAX_CHUNKS = 1 << 20                # of one body
    MAX_CHUNK_EXTENSIONS = 16 * 1024    # bytes, of all chunks of a body
    MAX_TRAILERS = 8 * 1024             # bytes
    MAX_SECONDS = 1_000_000_000         # of X-Request-Timeout; more is as much

FAULTS = {
    HEAD_LINE: (MalformedHeadError, "the request line is not METHOD SP target SP HTTP/1.1"),
    HEAD_VERSION: (MalformedHeadError, "only HTTP/1.1 and HTTP/1.0 are spoken"),
    HEAD_NAME: (MalformedHeadError, "a header field's name is not a token followed by a colon"),
    HEAD_VALUE: (MalformedHeadError, "a header field's value holds a control character"),
    HEAD_BARE: (MalformedHeadError, "a line of the head does not end with CR LF"),
    HEAD_HOST: (MalformedHeadError, "an HTTP/1.1 request has exactly one Host field"),
    HEAD_BAD_HOST: (MalformedHeadError, "the Host field does not hold a host and a port"),
    HEAD_LENGTH: (MalformedHeadError, "Content-Length is given twice, or is not a decimal number"),
    HEAD_BOTH: (MalformedHeadError, "Content-Length and Transfer-Encoding exclude each other"),
    HEAD_OLD_CODING: (MalformedHeadError, "HTTP/1.0 has no Transfer-Encoding"),
    HEAD_CODING: (UnsupportedError, "no Transfer-Encoding other than chunked is supported"),
    HEAD_URL: (UriTooLongError, f"the request's path is over {MAX_URL} bytes"),
    HEAD_TOO_MANY: (HeadTooLargeError, f"the request has more than {MAX_HEADERS} header fields"),
    HEAD_TOO_LARGE: (HeadTooLargeError, f"the request's head is over {MAX_HEAD} bytes"),
    BODY_CHUNK: (MalformedHeadError, "the chunked body is malformed"),
    BODY_TOO_MANY_CHUNKS: (MalformedHeadError, f"the body has more than {MAX_CHUNKS} chunks"),
    BODY_EXTENSIONS: (MalformedHeadError, f"the body's chunk extensions are over {MAX_CHUNK_EXTENSIONS} bytes"),
    BODY_TRAILERS: (MalformedHeadError, "the body's trailer section is malformed or too large"),
}


cdef extern from *:
    """
    namespace fastinfer {
        // What a byte may stand in: 1 a token (RFC 9110, 5.6.2), 2 a field's value (5.5), 4 a request's target.
        struct HeadBytes {
            unsigned char kind[256];
            constexpr HeadBytes() : kind() {
                for (int c = 0; c < 256; c++) {
                    bool letter = (c | 0x20) >= 'a' && (c | 0x20) <= 'z', token = letter || (c >= '0' && c <= '9');
                    for (const char* p = "!#$%&'*+-.^_`|~"; *p; p++)
                        token = token || c == *p;
                    kind[c] = (token ? 1 : 0) | ((c >= 0x20 || c == '\\t') && c != 0x7F ? 2 : 0)
                        | (c > 0x20 && c != 0x7F && c != '#' ? 4 : 0);
                }
            }
        };
        static constexpr HeadBytes HEAD_BYTES;
    }
    """
    const unsigned char* HEAD_BYTES "fastinfer::HEAD_BYTES.kind"


cdef inline bint is_token_char(unsigned char c) noexcept nogil:
    return HEAD_BYTES[c] & 1


cdef inline bint same_name(const char* p, const char* lower, Py_ssize_t size) noexcept nogil:
    """Whether ``size`` bytes at ``p`` are ``lower``, whatever their case. ``lower`` holds letters and hyphens only."""
    cdef Py_ssize_t i
    for i in range(size):
        if (p[i] | 0x20) != (lower[i] | 0x20):
            return False
    return True


cdef inline const char* find_head_end(const char* p, const char* end) noexcept nogil:
    """Past the empty line that ends a head, or NULL."""
    while True:
        p = <const char*>memchr(p, c'\r', end - p)
        if p == NULL or end - p < 4:
            return NULL
        if p[1] == c'\n' and p[2] == c'\r' and p[3] == c'\n':
            return p + 4
        p += 1


cdef HeadFault parse_head(Head* head, const char* begin, const char* end) noexcept nogil:
    """Read a whole head, which lies in ``begin`` to ``end`` with the empty line that ends it."""
    cdef const char* p = begin
    cdef HeadFault fault
    head.content_length = -1
    head.header_length = -1
    head.hosts = head.fields = 0
    head.chunked = head.close = head.keep_alive = head.plain = False
    head.timing = False
    head.timeout_ns = 0
    head.forwarded_lines = 0
    head.scheme = SCHEME_UNTOLD
    head.credentials = 0
    head.request_id_size = head.trace_size = 0
    head.plain = True
    fault = parse_request_line(head, &p, end)
    while fault == HEAD_OK and not (p[0] == c'\r' and p[1] == c'\n'):
        fault = parse_field(head, &p, end)
    if fault != HEAD_OK:
        return fault
    if head.minor == 1 and head.hosts != 1 or head.hosts > 1:
        return HEAD_HOST
    if head.chunked and head.content_length >= 0:
        return HEAD_BOTH
    if head.chunked and head.minor == 0:
        return HEAD_OLD_CODING
    return HEAD_OK


cdef bint know_head(KnownHead* known, const Head* head, int route, const char* begin, const char* end) noexcept nogil:
    """Keep a head that has a Content-Length; False when there is no memory, and then nothing is known."""
    cdef Py_ssize_t before = head.length_text - begin
    cdef Py_ssize_t after = end - head.length_text - head.length_size
    free(known.data)
    known.data = <char*>malloc(before + after)
    if known.data == NULL:
        return False
    memcpy(known.data, begin, before)
    memcpy(known.data + before, end - after, after)
    known.before = before
    known.after = after
    known.head = head[0]
    known.route = route
    return True


cdef const char* same_head(const KnownHead* known, const char* p, const char* end,
                           int64_t* content_length) noexcept nogil:
    """Past a head at ``p`` that is the known one but for its Content-Length, or NULL."""
    cdef const char* digits
    if known.data == NULL or end - p < known.before + known.after + 1 or memcmp(p, known.data, known.before) != 0:
        return NULL
    p += known.before
    digits = p
    end -= known.after  # what follows the digits is there too
    while p < end and p[0] >= c'0' and p[0] <= c'9':
        p += 1
    content_length[0] = parse_digits(digits, p - digits)
    if content_length[0] < 0 or memcmp(p, known.data + known.before, known.after) != 0:
        return NULL
    return p + known.after


cdef HeadFault parse_request_line(Head* head, const char** cursor, const char* end) noexcept nogil:
    cdef const char* p = cursor[0]
    cdef const char* start = p
    while p < end and is_token_char(<unsigned char>p[0]):
        p += 1
    head.method = start
    head.method_size = p - start
    if p == start or p >= end or p[0] != c' ':
        return HEAD_LINE
    p += 1
    start = p
    while p < end and HEAD_BYTES[<unsigned char>p[0]] & 4:
        p += 1
    head.target = start
    head.target_size = p - start
    if head.target_size > MAX_URL:
        return HEAD_URL
    if p == start or end - p < 11 or p[0] != c' ':
        return HEAD_LINE
    p += 1
    if not (p[0] == c'H' and p[1] == c'T' and p[2] == c'T' and p[3] == c'P' and p[4] == c'/' and p[5] == c'1'
            and p[6] == c'.' and (p[7] == c'0' or p[7] == c'1')):
        return HEAD_VERSION
    head.minor = p[7] - c'0'
    p += 8
    if p[0] != c'\r' or p[1] != c'\n':
        return HEAD_LINE
    cursor[0] = p + 2
    return HEAD_OK


cdef HeadFault check_first_line(const char* p, const char* end) noexcept nogil:
    """Whether a head whose end has not come is wrong in its request line already."""
    cdef Head head
    cdef const char* space
    if <const char*>memchr(p, c'\n', min(end - p, <Py_ssize_t>MAX_HEAD)) != NULL:
        return parse_request_line(&head, &p, end)
    space = <const char*>memchr(p, c' ', min(end - p, <Py_ssize_t>MAX_HEAD))
    return HEAD_URL if space != NULL and end - space > MAX_URL + 16 else HEAD_OK


cdef HeadFault parse_field(Head* head, const char** cursor, const char* end) noexcept nogil:
    cdef const char* name = cursor[0]
    cdef const char* p = name
    cdef const char* value
    cdef const char* last
    while p < end and is_token_char(<unsigned char>p[0]):
        p += 1
    if p == name or p >= end or p[0] != c':':
        return HEAD_NAME
    value = p + 1
    last = value
    while last < end and HEAD_BYTES[<unsigned char>last[0]] & 2:
        last += 1
    if end - last < 2:
        return HEAD_BARE
    if last[0] != c'\r' or last[1] != c'\n':
        return HEAD_BARE if last[0] == c'\r' or last[0] == c'\n' else HEAD_VALUE
    cursor[0] = last + 2
    head.fields += 1
    if head.fields > MAX_HEADERS:
        return HEAD_TOO_MANY
    while value < last and (value[0] == c' ' or value[0] == c'\t'):
        value += 1
    while last > value and ((last - 1)[0] == c' ' or (last - 1)[0] == c'\t'):
        last -= 1
    return take_field(head, name, p - name, value, last - value)


cdef inline HeadFault take_field(Head* head, const char* name, Py_ssize_t name_size, const char* value,
                                 Py_ssize_t size) noexcept nogil:
    """Note what a field means for framing, and whether it keeps the request from the fast lane."""
    cdef int64_t number
    if name_size == 4 and same_name(name, b"host", 4):
        head.hosts += 1
        if not is_host(value, size):
            return HEAD_BAD_HOST
    elif name_size == 14 and same_name(name, b"content-length", 14):
        number = parse_digits(value, size)
        if number < 0 or head.content_length >= 0:
            return HEAD_LENGTH
        head.content_length = number
        head.length_text = value
        head.length_size = size
    elif name_size == 17 and same_name(name, b"transfer-encoding", 17):
        if head.chunked or size != 7 or not same_name(value, b"chunked", 7):
            return HEAD_CODING
        head.chunked = True
    elif name_size == 17 and same_name(name, b"x-request-timeout", 17):
        number = parse_seconds(value, size)
        if number < 0:
            head.plain = False
        elif number and (number < head.timeout_ns or not head.timeout_ns):
            head.timeout_ns = number
    elif name_size == 15 and same_name(name, b"x-forwarded-for", 15):
        head.forwarded[head.forwarded_lines % MAX_FORWARDED] = value
        head.forwarded_sizes[head.forwarded_lines % MAX_FORWARDED] = size
        head.forwarded_lines += 1
    elif name_size == 17 and same_name(name, b"x-forwarded-proto", 17):
        head.scheme = take_scheme(value, size) if head.scheme == SCHEME_UNTOLD else SCHEME_ODD
    elif name_size == 10 and same_name(name, b"connection", 10):
        take_connection(head, value, size)
    elif name_size == 12 and same_name(name, b"x-request-id", 12):
        if head.request_id_size or size == 0:
            head.plain = False
        head.request_id = value
        head.request_id_size = size
    elif name_size == 11 and same_name(name, b"traceparent", 11):
        head.trace = value
        head.trace_size = size
    elif name_size == 6 and same_name(name, b"prefer", 6):
        head.timing = head.timing or prefers_timing(value, size)
    elif (name_size == 13 and same_name(name, b"authorization", 13)
            or name_size == 9 and same_name(name, b"x-api-key", 9)):
        head.credentials += 1
        head.credential = value
        head.credential_size = size
    elif name_size == 31 and same_name(name, b"inference-header-content-length", 31):
        number = parse_digits(value, size)
        if number < 0 or head.header_length >= 0:
            head.plain = False
        head.header_length = number
    elif (name_size == 6 and same_name(name, b"expect", 6)
            or name_size == 16 and same_name(name, b"content-encoding", 16)
            or name_size == 7 and same_name(name, b"upgrade", 7)
            or name_size == 28 and same_name(name, b"endpoint-load-metrics-format", 28)
            or name_size == 16 and same_name(name, b"proxy-connection", 16)):  # the parser takes it for Connection
        head.plain = False
    return HEAD_OK


cdef inline bint is_host(const char* p, Py_ssize_t size) noexcept nogil:
    """A name, an IPv4 address or an IPv6 one in brackets, and perhaps a port (RFC 9110, 7.2); nothing is a host too."""
    cdef Py_ssize_t i = 0
    if size > 0 and p[0] == c'[':
        i = 1
        while i < size and (hex_digit(<unsigned char>p[i]) >= 0 or p[i] == c':' or p[i] == c'.'):
            i += 1
        if i < 3 or i == size or p[i] != c']':
            return False
        i += 1
    else:
        while i < size and p[i] != c':':
            if not (is_token_char(<unsigned char>p[i]) and p[i] not in (c'#', c'^', c'`', c'|')
                    or p[i] in (c'(', c')', c',', c';', c'=')):
                return False
            if p[i] == c'%' and not (size - i > 2 and hex_digit(<unsigned char>p[i + 1]) >= 0
                                     and hex_digit(<unsigned char>p[i + 2]) >= 0):
                return False
            i += 1
    if i < size and p[i] != c':':
        return False
    i += 1
    while i < size:
        if not c'0' <= p[i] <= c'9':
            return False
        i += 1
    return True


cdef inline void take_connection(Head* head, const char* value, Py_ssize_t size) noexcept nogil:
    """The two values that everybody sends; any other is for the standard lane to read."""
    if size == 10 and same_name(value, b"keep-alive", 10):
        head.keep_alive = True
    elif size == 5 and same_name(value, b"close", 5):
        head.close = True
    else:
        head.plain = False


cdef inline Scheme take_scheme(const char* value, Py_ssize_t size) noexcept nogil:
    if size == 5 and same_name(value, b"https", 5):
        return SCHEME_HTTPS
    return SCHEME_HTTP if size == 4 and same_name(value, b"http", 4) else SCHEME_ODD


cdef bint prefers_timing(const char* p, Py_ssize_t size) noexcept nogil:
    """Whether "server-timing" stands in a Prefer field's list, with parameters or without (RFC 7240, 2)."""
    cdef const char* end = p + size
    cdef const char* start
    while p < end:
        while p < end and p[0] in (c' ', c'\t'):
            p += 1
        start = p
        while p < end and p[0] not in (c',', c';', c' ', c'\t'):
            p += 1
        if p - start == 13 and same_name(start, b"server-timing", 13):
            return True
        p = <const char*>memchr(p, c',', end - p)
        if p == NULL:
            return False
        p += 1
    return False


cdef int64_t parse_seconds(const char* p, Py_ssize_t size) noexcept nogil:
    """Nanoseconds of a decimal number of seconds, rounded up; 0 of one that is not above 0, -1 of what is no number."""
    cdef const char* end = p + size
    cdef const char* start
    cdef bint negative = p < end and p[0] == c'-'
    cdef bint some = False
    cdef int64_t whole = 0, part = 0, unit = 100_000_000
    p += negative
    start = p
    while p < end and c'0' <= p[0] <= c'9':
        whole = min(whole * 10 + (p[0] - c'0'), MAX_SECONDS)
        p += 1
    if p == start:
        return -1
    if p < end and p[0] == c'.':
        p += 1
        start = p
        while p < end and c'0' <= p[0] <= c'9':
            if unit:
                part += (p[0] - c'0') * unit
                unit //= 10
            else:
                some = some or p[0] != c'0'
            p += 1
        if p == start:
            return -1
    if p != end:
        return -1
    return 0 if negative else whole * 1_000_000_000 + part + some


def request_timeout(list values not None):
    """Nanoseconds that X-Request-Timeout fields allow: the least above 0 of their values, or 0.

    Raises:
        InvalidParameterError: one is no number of seconds.
    """
    cdef int64_t least = 0, number
    cdef bytes value
    for value in values:
        number = parse_seconds(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        if number < 0:
            raise InvalidParameterError("X-Request-Timeout takes a number of seconds, such as 2 or 0.25")
        if number and (number < least or not least):
            least = number
    return least


def prefers_server_timing(bytes value not None):
    """Whether a Prefer field's value asks for Server-Timing."""
    return prefers_timing(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))


cdef inline int64_t parse_digits(const char* p, Py_ssize_t size) noexcept nogil:
    """A decimal number of 1 to 18 digits, or -1."""
    cdef int64_t number = 0
    cdef Py_ssize_t i
    if size < 1 or size > 18:
        return -1
    for i in range(size):
        if p[i] < c'0' or p[i] > c'9':
            return -1
        number = number * 10 + (p[i] - c'0')
    return number


# ---- chunked bodies ------------------------------------------------------------------------------------------------
cdef void chunks_begin(Chunks* chunks) noexcept nogil:
    chunks.state = CHUNK_SIZE
    chunks.left = 0
    chunks.digits = 0
    chunks.count = chunks.extensions = chunks.trailers = 0


cdef HeadFault chunks_feed(Chunks* chunks, const char** cursor, const char* end) noexcept nogil:
    """Go on through a chunked body; HEAD_OK at its end, past which ``cursor`` then stands, HEAD_MORE before it."""
    cdef const char* p = cursor[0]
    cdef unsigned char c
    cdef int digit
    cdef int64_t step
    while p < end:
        if chunks.state == CHUNK_DATA:
            step = min(chunks.left, <int64_t>(end - p))
            p += step
            chunks.left -= step
            if chunks.left == 0:
                chunks.state = CHUNK_DATA_CR
            continue
        c = <unsigned char>p[0]
        p += 1
        if chunks.state == CHUNK_SIZE:
            digit = hex_digit(c)
            if digit >= 0:
                chunks.digits += 1
                if chunks.digits > 15:
                    return BODY_CHUNK
                chunks.left = chunks.left * 16 + digit
            elif chunks.digits == 0:
                return BODY_CHUNK
            elif c == c'\r':
                chunks.state = CHUNK_SIZE_LF
            elif c == c';':
                chunks.state = CHUNK_EXTENSION
            else:
                return BODY_CHUNK
        elif chunks.state == CHUNK_EXTENSION:
            chunks.extensions += 1
            if chunks.extensions > MAX_CHUNK_EXTENSIONS:
                return BODY_EXTENSIONS
            if c == c'\r':
                chunks.state = CHUNK_SIZE_LF
            elif c < 0x20 and c != c'\t' or c == 0x7F:
                return BODY_CHUNK
        elif chunks.state == CHUNK_SIZE_LF:
            if c != c'\n':
                return BODY_CHUNK
            chunks.count += 1
            if chunks.count > MAX_CHUNKS:
                return BODY_TOO_MANY_CHUNKS
            chunks.digits = 0
            chunks.state = CHUNK_DATA if chunks.left else CHUNK_TRAILER
        elif chunks.state == CHUNK_DATA_CR:
            if c != c'\r':
                return BODY_CHUNK
            chunks.state = CHUNK_DATA_LF
        elif chunks.state == CHUNK_DATA_LF:
            if c != c'\n':
                return BODY_CHUNK
            chunks.state = CHUNK_SIZE
        elif chunks.state == CHUNK_TRAILER:
            if c == c'\r':
                chunks.state = CHUNK_LAST_LF
            elif is_token_char(c):
                chunks.state = CHUNK_TRAILER_LINE
            else:
                return BODY_TRAILERS
        elif chunks.state == CHUNK_TRAILER_LINE:
            chunks.trailers += 1
            if chunks.trailers > MAX_TRAILERS or (c < 0x20 and c != c'\t' and c != c'\r') or c == 0x7F:
                return BODY_TRAILERS
            if c == c'\r':
                chunks.state = CHUNK_TRAILER_LF
        elif chunks.state == CHUNK_TRAILER_LF:
            if c != c'\n':
                return BODY_TRAILERS
            chunks.state = CHUNK_TRAILER
        else:  # CHUNK_LAST_LF
            if c != c'\n':
                return BODY_TRAILERS
            chunks.state = CHUNK_DONE
            cursor[0] = p
            return HEAD_OK
    cursor[0] = p
    return HEAD_MORE


cdef inline int hex_digit(unsigned char c) noexcept nogil:
    if c >= c'0' and c <= c'9':
        return c - c'0'
    c |= 0x20
    if c >= c'a' and c <= c'f':
        return c - c'a' + 10
    return -1
