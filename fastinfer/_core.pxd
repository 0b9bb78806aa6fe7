# Declarations of the compiled core: every struct and every class that two parts share, once.
cimport cython
cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic
from libcpp.utility cimport pair
from libcpp.vector cimport vector

cdef enum:
    MAX_RANK = 8

# The Open Inference Protocol's datatypes, in the order of the table in signature.pyx.
cdef enum Datatype:
    DT_BOOL, DT_UINT8, DT_UINT16, DT_UINT32, DT_UINT64
    DT_INT8, DT_INT16, DT_INT32, DT_INT64
    DT_FP16, DT_FP32, DT_FP64, DT_BF16, DT_BYTES
    DT_COUNT

# What a nogil leaf fills when it fails; the Python-facing function turns it into an error of errors.py.
cdef enum Fault:
    OK = 0
    BAD_JSON, BAD_VALUE, BAD_SHAPE, BAD_INPUT, BAD_OUTPUT, BAD_BINARY, BAD_PARAMETER, BAD_RECORD
    UNKNOWN_CATEGORY, NO_MEMORY, BAD_MESSAGE

cdef struct Failure:
    Fault fault
    int reason              # which sentence; each part numbers its own
    Py_ssize_t offset       # byte offset in the body, or -1
    Py_ssize_t input        # index of the input (column), or -1
    Py_ssize_t index        # flat index of the element, or of the row, or -1

cdef inline void failure_clear(Failure* failure) noexcept nogil:
    failure.fault = OK
    failure.reason = 0
    failure.offset = failure.input = failure.index = -1

cdef inline bint fail(Failure* failure, Fault fault, int reason, Py_ssize_t offset,
                      Py_ssize_t input, Py_ssize_t index) noexcept nogil:
    """Fill ``failure`` and return False, so that a leaf says ``return fail(...)``."""
    failure.fault = fault
    failure.reason = reason
    failure.offset = offset
    failure.input = input
    failure.index = index
    return False

# ---- memory.pyx -----------------------------------------------------------------------------------------------
cdef struct Slab:
    char* data              # 64-byte aligned, or NULL
    size_t capacity         # bytes

cdef bint slab_reserve(Slab* slab, size_t used, size_t need) noexcept nogil
cdef void slab_free(Slab* slab) noexcept nogil

# An element of a BYTES tensor in a slab: a range of the Rows' arena. A missing value has length MISSING_BYTES.
cdef struct Span:
    uint64_t offset
    uint64_t length

cdef enum:
    SPAN_SIZE = 16

cdef class Rows:
    cdef readonly Signature signature
    cdef int count                  # inputs
    cdef Slab* slabs                # one an input
    cdef size_t* row_bytes          # bytes of one row of each input
    cdef int* ranks                 # dimensions of one row of each input
    cdef int64_t* dims              # count * MAX_RANK: the dimensions of one row
    cdef Py_ssize_t rows            # committed rows
    cdef Slab arena                 # payload of BYTES elements
    cdef size_t arena_size
    cdef int leases                 # arrays alive that look into the slabs

    cdef bint set_dims(self, int input, int rank, const int64_t* dims) noexcept nogil
    cdef bint same_dims(self, const int* ranks, const int64_t* dims) noexcept nogil
    cdef bint reserve(self, Py_ssize_t rows) noexcept nogil
    cdef bint arena_reserve(self, size_t extra) noexcept nogil
    cdef bint append(self, Rows source, Py_ssize_t start, Py_ssize_t rows) noexcept nogil
    cdef bint fill_up(self, Py_ssize_t rows) noexcept nogil
    cdef size_t nbytes(self) noexcept nogil
    cdef size_t held(self) noexcept nogil
    cdef bint reset(self) noexcept nogil

cdef inline char* rows_at(Rows rows, int input, Py_ssize_t row) noexcept nogil:
    return rows.slabs[input].data + <size_t>row * rows.row_bytes[input]

# A growing byte buffer for answers.
cdef struct Writer:
    char* data
    size_t size
    size_t capacity

cdef bint writer_reserve(Writer* writer, size_t extra) noexcept nogil
cdef bint writer_put(Writer* writer, const char* data, size_t size) noexcept nogil
cdef void writer_free(Writer* writer) noexcept nogil

# ---- signature.pyx --------------------------------------------------------------------------------------------
cdef struct TensorInfo:
    const char* name                # UTF-8, owned by the Signature
    Py_ssize_t name_size
    Datatype datatype
    size_t itemsize                 # bytes of an element in a slab (BYTES: a Span)
    int rank                        # of the whole tensor, as declared
    int64_t shape[MAX_RANK]         # -1 is variable
    bint nullable                   # a program's column that may be missing
    bint column                     # a program's column: [n] and [n, 1] are both accepted
    bint plain                      # JSON writes the name as it is: no character of it needs an escape

cdef struct NameSlot:
    uint32_t hash
    int32_t index                   # -1 empty

cdef class NameTable:
    cdef NameSlot* slots
    cdef uint32_t mask
    cdef list names                 # bytes, in order
    cdef const char** data
    cdef Py_ssize_t* sizes
    cdef int find(self, const char* name, Py_ssize_t size) noexcept nogil

cdef class Signature:
    cdef readonly tuple inputs      # of Tensor
    cdef readonly tuple outputs
    cdef readonly bint batched      # the first dimension of every tensor is the rows
    cdef tuple keys                 # names of the inputs
    cdef int n_inputs
    cdef int n_outputs
    cdef TensorInfo* input_info
    cdef TensorInfo* output_info
    cdef NameTable input_names
    cdef NameTable output_names
    cdef readonly tuple features    # names of the one input's columns, where records may have them as fields
    cdef NameTable feature_names
    cdef int n_features
    cdef size_t least_field         # bytes of the shortest name
    cdef NameTable ignored_names    # fields that a record may have and nothing reads
    cdef int n_ignored
    cdef readonly bint lenient      # a record may have any other field too

cdef size_t datatype_size(Datatype datatype) noexcept nogil

# ---- columns.pyx ----------------------------------------------------------------------------------------------
cdef enum Held:                 # how a segment holds its values
    HELD_INT8, HELD_INT16, HELD_INT32, HELD_INT64, HELD_UINT8, HELD_UINT16, HELD_UINT32, HELD_UINT64
    HELD_FLOAT32, HELD_FLOAT64
    HELD_BOOL, HELD_BITS
    HELD_SPANS, HELD_STRINGS, HELD_LARGE_STRINGS, HELD_VIEWS
    HELD_NULLS                  # no value at all
    HELD_OTHERWISE

# Rows of a column that lie in memory as one array.
cdef struct Segment:
    Py_ssize_t begin, end
    Held held
    bint direct                 # as a slab has them
    const char* data            # of row `begin`; of bits, of the whole array
    Py_ssize_t stride
    const uint8_t* valid        # Arrow's bits, or NULL where no value is missing
    uint64_t missing            # the offset of a missing text's Span
    int64_t first_bit           # of row `begin`
    const char* pool            # the bytes of strings
    const void** buffers        # of string views
    const Span* spans           # of codes: what each stands for; else NULL
    int64_t n_spans

cdef struct Source:
    Segment first
    Segment* more               # those behind it
    Py_ssize_t count            # of segments
    Py_ssize_t capacity         # of `more`
    Py_ssize_t current          # that of the last block
    bint taken
    char* scratch               # a block's values, where they do not lie as in a slab


@cython.final
cdef class Columns:
    cdef Signature signature
    cdef bytes objects
    cdef list owned                 # what the sources point into
    cdef char* pool                 # free bytes
    cdef size_t pool_left
    cdef size_t text_bytes          # copied
    cdef bint foreign               # some are not ours
    cdef uint64_t missing           # of the segments that are added
    cdef int count                  # of columns: the collector may take the signature before us
    cdef Source* sources
    cdef Slab* slabs                # of a block
    cdef char* scratch
    cdef Py_ssize_t rows            # -1: nothing taken yet

    cdef bint take_objects(self, int i, const char* values, Py_ssize_t count, Py_ssize_t stride, bint boxed) except -1
    cdef bint take_numbers(self, int i, cnp.ndarray array, const char* data, Py_ssize_t stride, bint explicit) except -1
    cdef bint put_value(self, int i, value, char* out, bint boxed) except -1
    cdef char* copied(self, const char* data, Py_ssize_t size) except NULL
    cdef char* room(self, size_t size) except NULL
    cdef int add_slab(self, int i, Py_ssize_t rows, const char* data) except -1
    cdef Segment* add_segment(self, int i, Py_ssize_t rows) except NULL
    cdef int close_source(self, int i) except -1
    cdef bint is_quick(self, Py_ssize_t width)
    cdef Py_ssize_t open(self, Py_ssize_t rows) except -1
    cdef void seek(self, Py_ssize_t row, Py_ssize_t rows) noexcept nogil

# ---- program.pyx ----------------------------------------------------------------------------------------------
# A text value: bytes of the arena or of the program, or missing.
cdef struct Text:
    const char* data
    uint64_t size           # or NAN_TEXT, NONE_TEXT: missing, as pandas or as Python has it

cdef enum:
    BLOCK_ROWS = 256        # at most; wide programs take fewer, so that the registers stay in the cache

# Sparse rows: the columns and values of row i lie from starts[i] to starts[i + 1], the columns ascending.
cdef struct Vector:
    size_t* starts          # rows + 1
    int32_t* indices
    double* values
    size_t size
    size_t capacity

# One value of a sparse output.
cdef struct Entry:
    int32_t row             # of the block
    int32_t column
    double value

cdef struct Entries:
    Entry* data
    size_t size
    size_t capacity

# Rows of a sparse output, as a CSR matrix has them.
cdef struct SparseRows:
    double* values
    int32_t* columns
    int64_t* ends
    size_t size
    size_t capacity

# One run of a program over one block of rows. Registers hold a block's values of one column.
cdef struct Block:
    Slab* slabs             # the raw columns
    const char* arena
    double* numbers         # register r, row i: numbers[r * stride + i]; integers share the storage
    Text* texts
    Vector* vectors
    Py_ssize_t stride
    Py_ssize_t rows
    Py_ssize_t row          # the block's first row in the slabs
    Py_ssize_t offset       # the same, counted from the request's first
    char* out               # the block's first output row
    Entries* entries        # what a sparse output has instead
    Py_ssize_t width
    Failure* failure

cdef struct Operation

ctypedef bint (*Kernel)(const Operation* operation, const Block* block) noexcept nogil

cdef struct Operation:
    Kernel kernel
    Kernel enter            # of a store: its twin for a sparse output
    int32_t source          # register, or raw column of a load
    int32_t target          # register, or output column of a store
    int32_t* sources        # registers of a kernel that reads several, or writes several; owned by the program
    int32_t* targets
    int32_t n_sources
    int32_t n_targets
    int32_t column          # raw column that is named when it fails
    int32_t count           # entries of `table`, where it has several
    bint single             # the result is rounded to float32
    uint32_t flags
    double a
    double b
    void* table             # owned by the program


@cython.final
cdef class CompiledProgram:
    cdef readonly Signature columns     # inputs = raw columns, outputs = ()
    cdef readonly Py_ssize_t width      # features out
    cdef readonly str dtype             # "float32" | "float64"
    cdef size_t row_bytes               # of one output row
    cdef Operation* operations
    cdef Py_ssize_t n_operations
    cdef Py_ssize_t n_numbers           # registers
    cdef Py_ssize_t n_texts
    cdef Py_ssize_t n_vectors
    cdef Py_ssize_t block_rows
    cdef bint sparse                    # some outputs are written only where they are not zero
    cdef list widths                    # of each vector register, while operations are compiled
    cdef list owned                     # what the operations' tables point into

    cdef bint run(self, Rows columns, Py_ssize_t start, Py_ssize_t rows, char* out, Failure* failure) noexcept nogil
    cdef bint run_columns(self, Columns columns, Py_ssize_t stride, char* out, SparseRows* sparse,
                          Failure* failure) noexcept nogil
    cdef bint fill_block(self, Block* block, char* out) noexcept nogil
    cdef bint enter_block(self, Block* block, SparseRows* sparse) noexcept nogil
    cdef Columns taken(self, columns)
    cdef object error(self, Failure* failure, Request request)
# ---- json.pyx -------------------------------------------------------------------------------------------------
cdef struct Key:
    const char* data                # text, escapes resolved: in the body, or in Json.scratch
    size_t size
    size_t offset                   # of its opening quote

cdef struct Json:
    const char* begin
    const char* end
    Key* keys                       # members of the objects that are open, innermost last
    size_t n_keys
    size_t key_capacity
    char* scratch                   # text of keys that were written with escapes
    size_t scratch_used
    size_t scratch_capacity

# ---- decode.pyx -----------------------------------------------------------------------------------------------
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

# ---- outputs.pyx ----------------------------------------------------------------------------------------------
# One output of a run: where its elements lie, C order.
cdef struct Result:
    Datatype datatype
    size_t itemsize
    Py_ssize_t count                # elements
    const char* data
    const char* arena               # of BYTES: the elements are Spans of it; NULL: they are Python objects
    int rank
    Py_ssize_t shape[MAX_RANK]

cdef class Outputs:
    cdef Signature signature                # the runtime's
    cdef Result* results                    # one an output
    cdef object owner                       # of the elements: a list of arrays, or a Call
    cdef int check_rows(self, Py_ssize_t rows) except -1
    cdef size_t nbytes(self) noexcept nogil
    cdef list shape(self, int k)
    cdef cnp.ndarray array(self, int k)
    cdef cnp.ndarray texts(self, int k)

# ---- trees.pyx ------------------------------------------------------------------------------------------------
cdef extern from *:
    """
    namespace fastinfer { struct Reader; struct Natural; struct Ensemble; }
    """
    cppclass Reader "fastinfer::Reader":                # makes one column of keys
        int32_t feature
        uint32_t how                                    # bits of SPLITS
        int64_t table, table_size

    cppclass Natural "fastinfer::Natural":              # a forest as it is given
        int64_t trees, columns, outputs, leaf_width, leaves, sets
        const int64_t* starts
        const int32_t* left
        const int32_t* right
        const int32_t* column
        const int32_t* target
        const uint8_t* categorical
        const void* thresholds
        const void* values
        const Reader* readers
        const int64_t* set_starts
        const uint32_t* set_words
        bint strict

    cppclass Ensemble "fastinfer::Ensemble":            # and as it is walked
        int64_t columns, outputs
        size_t key_size, sum_size
        void add(const void*, size_t, int64_t, const Reader*, const double*, double, void*, void*) nogil

# ---- forest.pyx -----------------------------------------------------------------------------------------------

cdef class Engine:
    cdef Outputs run_rows(self, Signature signature, Rows rows, Batch batch)

cdef class Forest(Engine):
    cdef Ensemble* ensemble
    cdef readonly list inputs, outputs
    cdef int64_t width
    cdef bint single_values, single_sums    # float32
    cdef bint single_answers
    cdef bytes readers, tables              # of Reader, and of the values that are categories
    cdef bytes start                        # what the sums of a row begin with
    cdef const Reader* reader_data
    cdef const double* table_data
    cdef const char* start_data
    cdef const char* label_data
    cdef Py_ssize_t block                   # rows that go through the trees together
    cdef double sentinel, divisor, slope
    cdef int link, rule
    cdef int64_t classes                    # 0: it is no classifier
    cdef str label_type
    cdef size_t label_size
    cdef bytes labels, label_texts          # elements of the output, and what their Spans point into
    cdef int plant(self, dict arrays, bint strict) except -1
    cdef int read_ways(self, ways, features, starts, tables) except -1
    cdef int name_classes(self, labels) except -1
    cdef Outputs answer(self, Signature signature, const void* rows, int64_t count)
    cdef bint fill(self, const char* rows, int64_t count, char* answers, char* labels) noexcept nogil

# ---- session.pyx ----------------------------------------------------------------------------------------------
cdef class Session(Engine):
    cdef void* session
    cdef readonly list inputs, outputs
    cdef readonly bint plain
    cdef int n_inputs, n_outputs
    cdef list texts                         # what `names` points into
    cdef const char** names                 # of the inputs, then of the outputs
    cdef int* types                         # ONNX's element types, likewise
    cdef void* options                      # for the next run, or NULL
    cdef int describe(self) except -1
    cdef Call call(self, Rows rows, int first)

cdef class Call:
    cdef Session session
    cdef void* options                      # of a run that may be stopped, else NULL
    cdef int count
    cdef void** values                      # of the inputs, then of the outputs
    cdef list blocks                        # texts of the outputs, and where each lies
    cdef int put(self, int k, void* data, size_t size, const int64_t* shape, int rank) except -1
    cdef int stop(self) except -1
    cdef Outputs run(self, Signature signature, const void* options)
    cdef int look(self, Outputs outputs, int k) except -1
    cdef int read_texts(self, Result* result, void* value) except -1

# ---- decision.pyx ---------------------------------------------------------------------------------------------
cdef class Policy:
    cdef Signature inner                    # the runtime's
    cdef readonly Signature signature       # outputs = what is answered
    cdef readonly tuple added               # names of the policy's own outputs
    cdef list kept                          # places of the runtime's outputs that are answered
    cdef int source                         # the judged one
    cdef int column                         # of it
    cdef bint decides, scores
    cdef int32_t n_thresholds, n_classes
    cdef double* turns                      # thresholds, or one a class with NaN for none
    cdef Span* labels                       # of `text`
    cdef bytes text
    cdef bint log_odds
    cdef double factor, offset, low, high
    cdef double scale                       # a power of ten; 0: not rounded
    cdef Outputs decide(self, Outputs given)

# ---- encode.pyx -----------------------------------------------------------------------------------------------
# A piece of JSON, owned by an Encoder.
cdef struct Piece:
    const char* data
    Py_ssize_t size

# One member of a prediction: an output's value, array, or probabilities by class.
cdef struct Member:
    Piece key                   # with its colon, and the comma before it
    int output
    bint scalar                 # a row holds one value
    Piece* classes              # keys of the probabilities; NULL where there are none
    Py_ssize_t n_classes

# Writes the answers of one model version; used by any thread. Both return (body, JSON length or -1).
cdef class Encoder:
    cdef Signature signature                # wire
    cdef Piece opening                      # {"model_name": ..., "model_version": ...
    cdef Piece* heads                       # an output's object up to its shape
    cdef Piece* openings                    # both, of an answer without an id whose first output it is
    cdef Piece message_opening              # of a ModelInferResponse: the model's name and version
    cdef Piece* tensors                     # of its outputs: name and datatype
    cdef Piece* class_heads                 # of outputs that are classified, which are BYTES
    cdef Piece* class_tensors
    cdef Piece* labels                      # of the classes, where they are known
    cdef Py_ssize_t n_labels
    cdef int label_output                   # whose they are, or -1
    cdef Member* members                    # of a prediction
    cdef Py_ssize_t n_members
    cdef list texts                         # what the pieces point into

    cdef Py_ssize_t write(self, Writer* writer, Request request, Outputs outputs, Py_ssize_t start,
                          Py_ssize_t rows) except -2
    cdef Py_ssize_t write_infer(self, Writer* writer, Request request, Outputs outputs, Py_ssize_t start,
                                Py_ssize_t rows) except -2
    cdef Py_ssize_t write_records(self, Writer* writer, Request request, Outputs outputs, Py_ssize_t start,
                                  Py_ssize_t rows) except -2
    cdef Py_ssize_t write_message(self, Writer* writer, Request request, Outputs outputs, Py_ssize_t start,
                                  Py_ssize_t rows) except -2
# ---- watch.pyx ------------------------------------------------------------------------------------------------
cdef int watch_from_here() except -1
cdef int run_here(Batcher batcher, Batch batch) except -1

# ---- admission.pyx --------------------------------------------------------------------------------------------
# What becomes of a request: it is let in, or why it is not.
cdef enum Reason:
    ADMITTED, PAST_DEADLINE, ROWS_FULL, BYTES_FULL, SHARE_FULL, EXPIRED
    REASON_COUNT

# What a request asks of a queue.
cdef struct Asked:
    Py_ssize_t rows
    size_t nbytes
    int rank
    int64_t key
    int64_t now, arrived, deadline

cdef Reason judge(Batcher batcher, const Asked* asked, int64_t* retry_ns)

# ---- cost.pyx -------------------------------------------------------------------------------------------------
cdef enum:
    COST_LEVELS = 17                    # powers of two of the rows
    COST_WINDOW = 64                    # runs that a level's quantile is of

# Nanoseconds that a run is thought to take.
cdef struct Guess:
    bint known
    double mean
    double high                         # which few such runs are over
    double best                         # which none was under

# ---- sketch.pyx -----------------------------------------------------------------------------------------------
cdef enum:
    HISTOGRAM_BOUNDS = 18
    STATUS_CELLS = 20
    GAUGE_CELLS = 16
    MAX_ROWS = 4096                     # model versions that the directory names
    MAX_SIZES = 1 << 19                 # batch sizes of all of them together
    NAME_BYTES = 128
    VERSION_BYTES = 32

cdef enum:
    LANE_STANDARD, LANE_FAST, LANE_GRPC
    LANE_CELLS

cdef enum:                              # of a worker; from GAUGE_READY on they die with it
    GAUGE_PID, GAUGE_RESTARTS, GAUGE_SPARE, GAUGE_LOOP_WAIT
    GAUGE_READY, GAUGE_BODY_BYTES, GAUGE_CONNECTIONS, GAUGE_HEARTBEAT

cdef struct Durations:                  # a histogram over BOUNDS
    uint64_t counts[HISTOGRAM_BOUNDS + 1]
    uint64_t total                      # nanoseconds

cdef struct SizeStats:                  # runs of one batch size
    uint64_t count
    uint64_t run_ns

# What one worker counts of one model version; a whole number of cache lines, 64-bit cells only. Written on the loop's
# thread, or with the GIL held. The first lines are what every request touches.
cdef struct Row:
    uint64_t success, success_ns
    uint64_t input_ns, queue_ns, infer_ns, output_ns
    int64_t last_ns                     # monotonic, of the last answer
    int64_t in_flight                   # gauge
    int64_t waiting_rows                # gauge
    uint64_t executions, rows_run
    uint64_t failed, failed_ns, cancelled, refused
    uint64_t admitted
    uint64_t in_time, late, expired     # answered with 200 by the deadline, after it; not run because of it
    uint64_t refused_by[REASON_COUNT - 2]   # by Reason, from its second on; those that expired are not refused
    uint64_t overdue                    # runs that began with a request past its deadline
    Durations queue_time, preprocess_time, run_time, total_time
    uint64_t answered[LANE_CELLS][STATUS_CELLS]
    uint64_t cost_mean[COST_LEVELS]     # gauges: nanoseconds of a run, by powers of two of its rows
    uint64_t cost_high[COST_LEVELS]
    uint64_t cost_spare[2]

cdef struct WorkerSlot:
    int64_t gauges[GAUGE_CELLS]
    Durations loop_lag
    uint64_t spare[4]                   # up to a whole number of cache lines
    Row rows[MAX_ROWS + 2]              # and two more: of other models, and of no model
    SizeStats sizes[MAX_SIZES]

cdef struct DirectoryEntry:
    char name[NAME_BYTES]
    char version[VERSION_BYTES]
    uint64_t name_size, version_size
    uint64_t sizes, n_sizes             # where its batch sizes begin in a slot's, and how many

cdef struct Directory:
    uint64_t count                      # of entries, stored last
    uint64_t sizes                      # given away
    DirectoryEntry entries[MAX_ROWS]

cdef class Scoreboard:
    cdef Py_buffer view
    cdef readonly int workers
    cdef Directory* directory
    cdef WorkerSlot* slot(self, Py_ssize_t worker) except NULL
    cdef int check(self, Py_ssize_t row) except -1
    cdef int sum(self, Py_ssize_t row, Row* total) except -1
    cdef list sum_sizes(self, Py_ssize_t row)

cdef class Cost:
    cdef int64_t budget_ns
    cdef double mean[COST_LEVELS]
    cdef double deviation[COST_LEVELS]
    cdef double high[COST_LEVELS]
    cdef double best[COST_LEVELS]
    cdef double size[COST_LEVELS]       # rows, on average
    cdef float* window[COST_LEVELS]     # the last runs, where there were any
    cdef uint64_t seen[COST_LEVELS]
    cdef uint64_t changes               # runs
    cdef bint threaded[COST_LEVELS]
    cdef int over[COST_LEVELS]          # runs, the last ones, that were over the quantile
    cdef int level(self, Py_ssize_t rows) noexcept nogil
    cdef void observe(self, Py_ssize_t rows, int64_t nanoseconds) noexcept nogil
    cdef void keep(self, int level, float took) noexcept nogil
    cdef double predict(self, Py_ssize_t rows) noexcept nogil
    cdef Guess guess(self, Py_ssize_t rows) noexcept nogil
    cdef void rescale(self, double ratio) noexcept nogil
    cdef Py_ssize_t most(self, double nanoseconds, Py_ssize_t limit) noexcept nogil
    cdef bint runs_inline(self, Py_ssize_t rows) noexcept nogil

# ---- queue.pyx ------------------------------------------------------------------------------------------------
cdef enum:
    LOWEST_RANK = 7                     # of 8 levels; the first goes first
cdef extern from *:
    """
    #define FASTINFER_NEVER INT64_MAX
    """
    const int64_t NEVER "FASTINFER_NEVER"

# Who goes when, of one priority: those within their client's share, then the excess; then, likewise, those without a
# deadline.
cdef enum Turn:
    FAIR, EXCESS, ENDLESS, ENDLESS_EXCESS

# A slot that waits.
cdef struct Waiting:
    int64_t deadline                    # monotonic, or NEVER
    uint64_t order                      # of arrival
    int64_t key                         # whose it is; 0: nobody's in particular
    Py_ssize_t rows
    size_t nbytes
    void* slot                          # which is kept alive
    int rank
    int turn

# A client of whom something waits.
cdef struct Holder:
    int64_t key
    Py_ssize_t slots                    # that wait; 0: nobody stands here
    Py_ssize_t rows
    size_t nbytes
    int64_t deadline                    # and rank: of the one that goes last, or went
    int rank
    Py_ssize_t excess                   # slots that are that
    uint64_t round                      # in which the next one counts
    Py_ssize_t served                   # rows within its share that have run
    uint64_t look                       # at the queue, for the while of which the next two count
    Py_ssize_t counted                  # rows, or bytes
    size_t tail                         # behind its last one that may give way; 0: there is none

cdef struct Queue:
    Waiting* data
    size_t begin, end                   # of those who wait, first to go first
    size_t capacity
    uint64_t orders                     # given away
    Waiting* spare                      # as large as data, where it was needed
    size_t spare_capacity
    Py_ssize_t level                    # rows of one client that go before others' excess
    size_t excess                       # slots that are that
    Py_ssize_t excess_rows
    uint64_t round                      # of turns, in which each client has its share
    Py_ssize_t run_rows                 # in this round
    bint in_rounds                      # a round takes more than one run
    bint unsettled                      # who is that may have changed since turns were taken
    Holder* holders                     # by a hash of their keys
    size_t holder_slots                 # a power of two, or 0
    size_t holder_count
    uint64_t looks
    uint32_t* held                      # how many clients have so many rows
    uint64_t* occupied                  # a bit for each such number that is not 0
    Py_ssize_t held_size                # of both, in bits
    Py_ssize_t held_limit               # as many or more are counted as so many
    Py_ssize_t held_top                 # none has more
    size_t most_bytes                   # that one client has, where ...
    bint bytes_known

# Of a client that has so much: the entry that would give way next.
ctypedef pair[Py_ssize_t, size_t] Claim

# ---- shares.pyx -----------------------------------------------------------------------------------------------
cdef bint has_company(Batcher batcher, int64_t now) noexcept
cdef int take_turns(Batcher batcher, int64_t now) except -1
cdef int keep_places(Batcher batcher) except -1
cdef int give_way(Batcher batcher) except -1

# ---- batch.pyx ------------------------------------------------------------------------------------------------
cdef enum BatchState:
    FORMING, RUNNING, DONE

cdef extern from *:
    """
    #ifdef FASTINFER_DEBUG
    #define FASTINFER_TAGGED 1
    #else
    #define FASTINFER_TAGGED 0
    #endif
    """
    const bint TAGGED "FASTINFER_TAGGED"    # a checked build, in which every row of a batch tells whose it is

cdef class Slot:
    cdef Ticket ticket
    cdef Batch batch
    cdef Py_ssize_t start
    cdef Py_ssize_t rows
    cdef size_t nbytes                  # as the queue counts them
    cdef uint64_t order                 # in the queue; 0: it does not wait
    cdef int turn                       # there
    cdef Outputs own_outputs            # where the batch was bisected
    cdef list own_tags                  # of their rows, in a checked build
    cdef object error

cdef class Batch:
    cdef Rows rows
    cdef list slots
    cdef list tags                      # (request, row of it) of each row, in a checked build
    cdef BatchState state
    cdef Outputs outputs                # after the run
    cdef object error
    cdef object timer
    cdef bint bisected
    cdef bint timed_out                 # its run was given up and may still write
    cdef object task                    # that runs it elsewhere
    cdef bint interrupted               # its run held the loop, and was told to end
    cdef bint lost                      # and has not come back since, though it was told to end
    cdef bint threaded                  # it runs on a worker thread
    cdef unsigned long thread           # on this one; 0 before
    cdef Call call                      # of its run there, where that is onnxruntime's
    cdef double answer_bytes            # of the outputs, a row
    cdef Py_ssize_t live                # rows of those that wait in it
    cdef Py_ssize_t limit               # rows that it may have
    cdef Py_ssize_t unread              # slots whose answer was not rendered yet
    cdef int64_t created_ns, started_ns, began_ns, finished_ns  # started_ns: when it was told to, began_ns: when it did
    cdef int64_t earliest               # deadline in it
    cdef Guess guess                    # of its run, where that is on a thread
    cdef void compact(self)

cdef class Batcher:
    # settings, fixed at load
    cdef readonly Signature signature
    cdef object run
    cdef object pace                    # how many of those may be in flight, from what came back
    cdef object run_async               # in place of `run`, where another server runs the model
    cdef public object forwards         # what of a head's fields that server is told, or None
    cdef Engine engine                  # in place of `run`, where the core has one
    cdef Policy policy                  # what becomes of a run's outputs; None: they are answered as they are
    cdef readonly Py_ssize_t max_batch_size
    cdef Py_ssize_t fixed_rows          # that every run has; 0: as many as there are
    cdef int64_t max_delay_ns, slo_ns   # slo_ns 0: none
    cdef int instances
    cdef Py_ssize_t queue_rows, queue_bytes
    cdef double run_timeout_s
    cdef list output_names
    # the loop
    cdef object call_soon, call_later, call_soon_threadsafe, submit_thread, create_task
    cdef object flush_soon              # what call_soon is given
    # state
    cdef Lane lane                      # whose answers leave when a batch is done
    cdef Cost cost
    cdef Queue queue                    # who waits, in the order of going
    cdef list forming                   # batches that take more rows
    cdef list spare                     # Rows to use again
    cdef set running                    # on worker threads
    cdef int given_up                   # of which so many are past their time
    cdef readonly int lost              # and so many do not end
    cdef object stop                    # called with the thread of a run that is past its time, or None
    cdef Py_ssize_t waiting_rows
    cdef size_t waiting_bytes
    cdef object expiry                  # a timer that runs out when the next deadline passes
    cdef int64_t expiry_ns, swept_ns
    cdef bint expired_some              # and their answers have not left
    cdef list yielding                  # tickets that give way to the one that was judged last, once it is let in
    cdef vector[Claim] claims           # a heap: whom of each client that may be asked for next
    cdef vector[size_t] older           # behind the client's entry before this one that may; 0: there is none
    cdef size_t claimed                 # entries of the queue up to here are in both
    cdef int64_t fit_budget             # what rows_within last said
    cdef uint64_t fit_changes
    cdef Py_ssize_t fit_rows
    cdef Guess fit_run                  # of so many rows
    cdef double lag_ns                  # by which the loop is late, smoothed
    cdef double reserve_ns              # held back, for batches have come late
    cdef int64_t lag_at, scheduled_ns, last_run_ns, seeded_ns
    cdef int urgent_rank                # the most urgent that was asked for
    cdef int64_t urgent_ns              # and when
    cdef int64_t last_key, company_ns   # who asked last, and when it was somebody else before
    cdef bint trying                    # an idle model is, against what its runs seemed to take
    cdef int head_refused               # requests, at the head
    cdef bint scheduled, closed
    cdef uint64_t last_tag              # in a checked build
    cdef unsigned long thread           # the loop's: slabs are given back on no other
    # counters: in memory of its own, until the scoreboard has a row for them
    cdef void* own
    cdef Scoreboard board
    cdef Row* counts
    cdef SizeStats* sizes               # of runs, by rows
    cdef Py_ssize_t n_sizes

    cdef int check_open(self) except -1
    cdef void learn(self, Py_ssize_t rows, int64_t nanoseconds) noexcept
    cdef void show_cost(self, int level) noexcept
    cdef int refuse_waiting(self, error) except -1
    cdef Batch open(self, Ticket ticket, Py_ssize_t rows, const int* ranks, const int64_t* dims)
    cdef Batch new_batch(self, const int* ranks, const int64_t* dims)
    cdef Py_ssize_t rows_within(self, int64_t budget) noexcept
    cdef int commit(self, Batch batch, Ticket ticket, Py_ssize_t rows, size_t nbytes) except -1
    cdef int append(self, Rows source, Ticket ticket) except -1
    cdef int enter(self, Batch batch, Slot slot) except -1
    cdef void withdraw(self, Ticket ticket)
    cdef void withdraw_slot(self, Slot slot)
    cdef void strike(self, Slot slot)
    cdef void discard(self, Batch batch)
    cdef void close_batch(self, Batch batch)
    cdef int end(self, Ticket ticket, error) except -1
    cdef int expire(self, Ticket ticket) except -1
    cdef int look_out(self, int64_t deadline, int64_t now) except -1
    cdef Batch next_batch(self, int64_t now)
    cdef Batch whole(self, Batch batch, int64_t now)
    cdef bint joins(self, Batch batch, Py_ssize_t rows, const Waiting* entry)
    cdef Batch composed(self, Batch first, int64_t now)
    cdef Rows take_rows(self)
    cdef void give_rows(self, Rows rows)
    cdef void give_slot(self, Slot slot)
    cdef int start_thread(self, Batch batch, work) except -1
    cdef Outputs run_rows(self, Rows rows, Batch batch)
    cdef Outputs run_exactly(self, Rows rows, Batch batch)
    cdef int run_batch(self, Batch batch) except -1
    cdef Outputs outputs_in(self, dict arrays)
    cdef Outputs judged(self, Outputs outputs, Py_ssize_t rows)
    cdef int run_on(self) except -1
    cdef int settle(self, Batch batch) except -1
    cdef int finish(self, Batch batch, error) except -1
    cdef void measure(self, Batch batch)

# ---- infer.pyx ------------------------------------------------------------------------------------------------
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

# ---- head.pyx -------------------------------------------------------------------------------------------------
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

# ---- forwarded.pyx --------------------------------------------------------------------------------------------
cdef struct Address:
    uint8_t[16] octets                  # IPv4 as ::ffff:a.b.c.d
    int port                            # 0: not told
    bint is_unix                        # none at all: a Unix socket

cdef struct Network:
    uint8_t[16] octets
    int bits
    bint mapped                         # of IPv4 addresses

cdef class Proxies:
    cdef Network* networks
    cdef int n_networks
    cdef bint every, unix
    cdef bint trusts_some(self) noexcept nogil
    cdef bint trusts(self, const Address* address) noexcept nogil
    cdef bint find_client(self, const Head* head, Address* client) noexcept nogil

# ---- credentials.pyx ------------------------------------------------------------------------------------------
cdef class Credentials:
    cdef dict identities                # by digest; empty: off
    cdef object sha256
    cdef uint64_t changes               # of the table
    cdef int64_t identify(self, const Head* head, Connection connection) except -2

# ---- lane.pyx, http.pyx ---------------------------------------------------------------------------------------
cdef class Route:
    cdef Endpoint endpoint
    cdef int kind
    cdef int index                      # among the lane's routes
    cdef bytes path, model, version     # as the access log has them

cdef class Routes:
    cdef NameTable paths
    cdef list routes                    # in the order of paths

cdef enum:
    MAX_KNOWN = 16                      # heads that a lane keeps

cdef class Lane:
    cdef bytes prefix
    cdef int64_t max_body
    cdef NameTable paths
    cdef list routes                    # in the order of paths
    cdef bint server_timing             # every answer tells its durations
    cdef AccessLog access               # None where there is none
    cdef readonly Credentials credentials
    cdef Proxies proxies                # who may say whom they speak for
    cdef Connection dirty               # the first of a chain of connections with answers to write
    cdef Connection last_dirty
    cdef Writer answer, body            # reused
    cdef bytes json_opening             # of an answer, up to its X-Request-ID
    cdef bytes binary_opening
    cdef bytes refusal_opening
    cdef uint64_t sequence
    cdef uint64_t state                 # of the random numbers
    cdef int[REASON_COUNT] told         # refusals since the last tick
    cdef KnownHead[MAX_KNOWN] known
    cdef int next_known                 # which of them makes room
    cdef uint64_t changes               # of the routes
    cdef void forget_heads(self) noexcept
    cdef void know(self, Connection connection, const Head* head, const char* begin, const char* end) noexcept
    cdef bytes next_id(self)
    cdef void append_dirty(self, Connection connection)
    cdef int tell(self, protocol, Ticket ticket, bytes request_id) except -1
    cdef uint64_t random(self) noexcept
    cdef uint64_t jittered(self, int64_t retry_ns) noexcept
    cdef int flush(self) except -1

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

# ---- access.pyx -----------------------------------------------------------------------------------------------
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
