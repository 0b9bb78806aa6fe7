from libc.stdint cimport int64_t

# Why a head or a body is refused; the connection closes after the answer.
cdef enum HeadFault:
    HEAD_OK, HEAD_MORE
    HEAD_LINE, HEAD_VERSION, HEAD_NAME, HEAD_VALUE, HEAD_BARE, HEAD_HOST, HEAD_BAD_HOST, HEAD_LENGTH
    HEAD_BOTH, HEAD_OLD_CODING, HEAD_CODING, HEAD_URL, HEAD_TOO_MANY, HEAD_TOO_LARGE
    BODY_CHUNK, BODY_TOO_MANY_CHUNKS, BODY_EXTENSIONS, BODY_TRAILERS

cdef enum:
    MAX_FORWARDED = 8                   # lines of X-Forwarded-For that count: the last ones

cdef enum Scheme:                       # that X-Forwarded-Proto tells; more than one, or another, tells none
    SCHEME_UNTOLD, SCHEME_HTTP, SCHEME_HTTPS, SCHEME_ODD

ctypedef const char* FieldText

# A request's head, as far as framing and routing need it. Pointers look into the received bytes.
cdef struct Head:
    const char* method
    Py_ssize_t method_size
    const char* target
    Py_ssize_t target_size
    int minor                           # of HTTP/1
    int hosts
    int fields
    int64_t content_length              # -1 absent
    int64_t header_length               # Inference-Header-Content-Length, -1 absent
    const char* request_id
    Py_ssize_t request_id_size
    const char* trace                   # traceparent
    Py_ssize_t trace_size
    const char* credential              # of Authorization or X-API-Key, the last of them
    Py_ssize_t credential_size
    int credentials                     # how many of them there are
    bint chunked
    bint close
    bint keep_alive
    bint timing                         # Prefer: server-timing
    int64_t timeout_ns                  # the least X-Request-Timeout above 0; 0 absent
    bint plain                          # nothing in it needs the standard lane
    int forwarded_lines                 # of X-Forwarded-For; line n stands at n % MAX_FORWARDED
    FieldText[MAX_FORWARDED] forwarded
    Py_ssize_t[MAX_FORWARDED] forwarded_sizes
    Scheme scheme
    const char* length_text             # where Content-Length's value stands
    Py_ssize_t length_size

# A head that was read before: a client sends the same one again and again, but for the body's length.
cdef struct KnownHead:
    char* data                          # without the length's digits; NULL where nothing is known
    Py_ssize_t before                   # bytes that stand before the digits
    Py_ssize_t after                    # and behind them
    Head head
    int route

cdef enum ChunkState:
    CHUNK_SIZE, CHUNK_EXTENSION, CHUNK_SIZE_LF, CHUNK_DATA, CHUNK_DATA_CR, CHUNK_DATA_LF
    CHUNK_TRAILER, CHUNK_TRAILER_LINE, CHUNK_TRAILER_LF, CHUNK_LAST_LF, CHUNK_DONE

cdef struct Chunks:
    ChunkState state
    int64_t left                        # of the chunk
    int digits
    int64_t count, extensions, trailers
