from libc.stdint cimport int64_t, uint64_t

cdef enum:
    KIND_INFER = 0                  # Open Inference Protocol, JSON and binary tensors
    KIND_RECORDS = 1                # {"records": [{"<input>": value, ...}, ...]}
    KIND_MESSAGE = 2                # a ModelInferRequest
    KIND_COUNT
    EXCERPT = 48

# One requested output.
cdef struct Wanted:
    int output
    bint binary
    bint stated                     # the output says itself whether it wants binary
    int64_t classes                 # so many of its highest values are wanted, as texts; 0: it as it is

# One input as the request has it.
cdef struct Part:
    int position                    # in the request's inputs, -1 absent
    int datatype                    # -1 absent
    int rank                        # of the whole tensor, -1 absent
    int64_t shape[MAX_RANK]
    int64_t binary_size             # -1 absent
    const char* begin               # its data: the JSON array, the bytes, or (message) the tensor; NULL absent
    const char* end
    bint contents                   # (message) it has typed contents
    size_t offset                   # where its object starts

# What a message says beside a Failure's place.
cdef struct Blame:
    int64_t have
    int64_t want
    int axis                        # of nested data whose length is wrong; whose parameters
    bint nested                     # data are nested
    Py_ssize_t element              # flat index in a record's array, or -1
    int excerpt_size
    char excerpt[EXCERPT]           # the body at Failure.offset

# One request as decoded: everything but its rows. Used by one thread at a time, and again for the next request.
cdef class Request:
    cdef readonly Signature signature       # wire
    cdef str model                          # its name, for messages
    cdef readonly Py_ssize_t rows           # after scan; 1 where the model is not batched
    cdef int* ranks                         # dimensions of one row of each input, laid out as in Rows
    cdef int64_t* dims
    cdef readonly int64_t timeout_us        # 0: none given
    cdef readonly uint64_t priority
    cdef int n_wanted
    cdef Wanted* wanted                     # outputs to answer with, in order
    cdef readonly bint raw                  # Inference-Header-Content-Length: 0
    cdef readonly int kind
    cdef void* block                        # what the pointers here look into
    cdef Writer id_text                     # the id as the client wrote it, in JSON with its quotes; empty when absent
    cdef Json json
    cdef const char* payload                # behind the JSON: binary tensors
    cdef const char* payload_end
    cdef Part* parts                        # one an input of the signature
    cdef int* order                         # inputs in the request's order
    cdef int n_sent
    cdef bint binary_output                 # parameter binary_data_output
    cdef int* columns                       # inputs in the order of the previous record's members
    cdef Py_ssize_t* stamps                 # for each input the record that had it last, plus 1
    cdef Blame blame
    cdef Writer known                       # what stood before and behind the array of the body scanned last
    cdef size_t known_head, known_tail      # its sizes; 0: nothing is known

    cdef bint recall(self, int kind, const char* body, size_t size, Py_ssize_t header_length) noexcept nogil
    cdef bint scan(self, int kind, const char* body, size_t size, Py_ssize_t header_length,
                   Failure* failure) noexcept nogil
    cdef bint fill(self, Rows target, Py_ssize_t start, Failure* failure) noexcept nogil
    cdef object error(self, Failure* failure)
