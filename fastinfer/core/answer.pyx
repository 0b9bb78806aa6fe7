# What answers are put together from: the pieces of a head, and the answers to those that are refused.
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

# All of a refusal's body but its last number, and the names that the access log has, in the order of Reason.
cdef list REFUSAL_BODIES = [
    f'{{"error":"{error.message}","code":"{error.code}","reason":"{error.reason}","retry_after_ms":'.encode()
    for error in REFUSALS]
cdef list REFUSAL_CODES = [error.code.encode() for error in REFUSALS]
cdef int UNAVAILABLE_CELL = STATUS_CELL[503]
cdef inline void append_text(Writer* out, bytes text) noexcept:
    """Append what the caller has made room for."""
    memcpy(out.data + out.size, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
    out.size += PyBytes_GET_SIZE(text)


cdef inline void append_decimal(Writer* out, uint64_t number) noexcept nogil:
    cdef char[20] digits
    cdef int i = 20
    while True:
        i -= 1
        digits[i] = c'0' + <char>(number % 10)
        number //= 10
        if number == 0:
            break
    memcpy(out.data + out.size, &digits[i], 20 - i)
    out.size += 20 - i


cdef void append_timing(Writer* out, Ticket ticket) noexcept:
    """The durations of a request's phases, as Server-Timing has them: milliseconds, here to the microsecond."""
    append_literal(out, b"queue;dur=")
    append_milliseconds(out, ticket.queue_ns)
    append_literal(out, b", preprocess;dur=")
    append_milliseconds(out, ticket.preprocess_ns)
    append_literal(out, b", run;dur=")
    append_milliseconds(out, ticket.run_ns)


cdef void append_milliseconds(Writer* out, int64_t nanoseconds) noexcept nogil:
    cdef uint64_t microseconds = <uint64_t>(max(nanoseconds, <int64_t>0) + 500) // 1000
    cdef uint64_t rest = microseconds % 1000
    cdef uint64_t digit = 100
    append_decimal(out, microseconds // 1000)
    if rest:
        out.data[out.size] = c'.'
        out.size += 1
    while rest:
        out.data[out.size] = <char>(c'0' + rest // digit)
        out.size += 1
        rest %= digit
        digit //= 10


cdef inline void append_hex(Writer* out, uint64_t number) noexcept nogil:
    cdef char[16] digits
    cdef int i = 16
    while True:
        i -= 1
        digits[i] = b"0123456789abcdef"[number & 15]
        number >>= 4
        if number == 0:
            break
    memcpy(out.data + out.size, &digits[i], 16 - i)
    out.size += 16 - i


cdef inline size_t append_id(Writer* out, Lane lane, Ticket ticket) noexcept:
    """Append the request's id, the client's or one made here; its size."""
    cdef size_t start = out.size
    if ticket.request_id is not None:
        append_text(out, ticket.request_id)
    else:
        lane.sequence += 1
        append_text(out, lane.prefix)
        append_hex(out, lane.sequence)
    return out.size - start


cdef inline int decimal_size(uint64_t number) noexcept nogil:
    cdef int size = 1
    while number >= 10:
        number //= 10
        size += 1
    return size
