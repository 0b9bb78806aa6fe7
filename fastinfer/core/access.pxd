from libc.stdint cimport int64_t, uint16_t, uint64_t
from libcpp.atomic cimport atomic

cdef enum:
    ACCESS_FIELDS = 7
    ACCESS_TEXT = 656

# One answer. The texts lie behind each other, without an end mark.
cdef struct AccessEntry:
    int64_t time_ns                     # since the epoch
    int64_t size, rows, queue_ns, preprocess_ns, run_ns, total_ns   # -1: not known
    int status
    int fields
    uint16_t[ACCESS_FIELDS] sizes
    char[ACCESS_TEXT] text

cdef class AccessLog:
    cdef bint text
    cdef bytes origin
    cdef const char* origin_text        # its bytes
    cdef uint64_t capacity              # a power of two
    cdef AccessEntry* entries
    cdef atomic[uint64_t] head          # entries begun since the start; written by the loop's thread
    cdef atomic[uint64_t] tail          # entries used up; written by the writer's
    cdef atomic[uint64_t] dropped
    cdef atomic[int] closed
    # the writer's
    cdef int64_t second                 # that `stamp` tells
    cdef char[48] stamp
    cdef bint given_up

    cdef AccessEntry* begin(self) noexcept
    cdef void commit(self) noexcept
    cdef void answered(self, Connection connection, Ticket ticket, int status, bytes code, size_t size,
                       const char* request_id, size_t id_size) noexcept
    cdef bint empty(self) noexcept nogil
    cdef void write_lines(self, Writer* out, int file) noexcept nogil
    cdef void write_all(self, int file, const char* data, size_t size) noexcept nogil
    cdef void append_line(self, Writer* out, AccessEntry* entry) noexcept nogil
    cdef void append_dropped(self, Writer* out, uint64_t dropped) noexcept nogil
    cdef void append_opening(self, Writer* out, int64_t time_ns, const char* level, const char* message) noexcept nogil
    cdef void append_key(self, Writer* out, const char* name) noexcept nogil
    cdef void append_number(self, Writer* out, const char* name, int64_t number) noexcept nogil
    cdef void append_duration(self, Writer* out, const char* name, int64_t nanoseconds) noexcept nogil
