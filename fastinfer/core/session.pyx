# onnxruntime through its C API, from the shared object in its wheel: a batch runs from its slabs with no Python
# object a tensor, and without the interpreter's lock.
cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free

import numpy as np

from fastinfer.errors import ModelLoadError, RunTimeoutError, RuntimeFailedError

cdef extern from "dlfcn.h" nogil:
    int RTLD_NOW
    int RTLD_LOCAL
    void* dlopen(const char*, int)
    void* dlsym(void*, const char*)
    const char* dlerror()

# The table of functions only grows, so that a place in it holds for every later version.
# Source: onnxruntime's onnxruntime_c_api.h, struct OrtApi.
cdef enum:
    ORT_ERROR_MESSAGE = 2
    ORT_CREATE_ENV = 3
    ORT_CREATE_SESSION = 7
    ORT_RUN = 9
    ORT_CREATE_OPTIONS = 10
    ORT_SET_LOG_SEVERITY = 22
    ORT_SET_OPTIMISATION = 23
    ORT_SET_INTRA_OP_THREADS = 24
    ORT_SET_INTER_OP_THREADS = 25
    ORT_INPUT_COUNT = 30
    ORT_OUTPUT_COUNT = 31
    ORT_INPUT_TYPE = 33
    ORT_OUTPUT_TYPE = 34
    ORT_INPUT_NAME = 36
    ORT_OUTPUT_NAME = 37
    ORT_CREATE_RUN_OPTIONS = 39
    ORT_SET_TERMINATE = 46
    ORT_CREATE_TENSOR = 49
    ORT_TENSOR_DATA = 51
    ORT_TEXT_SIZE = 53
    ORT_TEXTS = 54
    ORT_TENSOR_INFO_OF_TYPE = 55
    ORT_ELEMENT_TYPE = 60
    ORT_RANK = 61
    ORT_DIMENSIONS = 62
    ORT_TENSOR_INFO = 65
    ORT_CREATE_CPU_MEMORY = 69
    ORT_ALLOCATOR_FREE = 76
    ORT_DEFAULT_ALLOCATOR = 78
    ORT_RELEASE_STATUS = 93
    ORT_RELEASE_SESSION = 95
    ORT_RELEASE_VALUE = 96
    ORT_RELEASE_RUN_OPTIONS = 97
    ORT_RELEASE_TYPE = 98
    ORT_RELEASE_TENSOR_INFO = 99
    ORT_RELEASE_OPTIONS = 100
    ORT_ADD_CONFIG_ENTRY = 130

cdef enum:
    ORT_API = 16                    # the oldest version that has all of these
    ORT_FATAL = 4                   # what goes wrong is raised, and said once
    ORT_ARENA = 1                   # OrtArenaAllocator
    ORT_STRING = 8                  # ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING

# A status, a session and so on are opaque to us; a status that is NULL is success.
ctypedef void* Status
ctypedef const void* const* (*GetApi)(uint32_t version) noexcept nogil
ctypedef const char* (*ErrorMessage)(const void* status) noexcept nogil
ctypedef void (*Release)(void* object) noexcept nogil
ctypedef Status (*CreateEnv)(int severity, const char* name, void** env) noexcept nogil
ctypedef Status (*CreateSession)(const void* env, const char* path, const void* options, void** session) noexcept nogil
ctypedef Status (*CreateOptions)(void** options) noexcept nogil
ctypedef Status (*SetTerminate)(void* options) noexcept nogil
ctypedef Status (*SetOption)(void* options, int value) noexcept nogil
ctypedef Status (*AddConfigEntry)(void* options, const char* key, const char* value) noexcept nogil
ctypedef Status (*Count)(const void* session, size_t* count) noexcept nogil
ctypedef Status (*TypeOf)(const void* session, size_t index, void** info) noexcept nogil
ctypedef Status (*NameOf)(const void* session, size_t index, void* allocator, char** name) noexcept nogil
ctypedef Status (*TensorInfoOfType)(const void* type, const void** info) noexcept nogil
ctypedef Status (*ElementType)(const void* info, int* kind) noexcept nogil
ctypedef Status (*Rank)(const void* info, size_t* rank) noexcept nogil
ctypedef Status (*Dimensions)(const void* info, int64_t* shape, size_t rank) noexcept nogil
ctypedef Status (*CreateCpuMemory)(int allocator, int kind, void** memory) noexcept nogil
ctypedef Status (*DefaultAllocator)(void** allocator) noexcept nogil
ctypedef Status (*AllocatorFree)(void* allocator, void* pointer) noexcept nogil
ctypedef Status (*CreateTensor)(const void* memory, void* data, size_t size, const int64_t* shape, size_t rank,
                                int kind, void** value) noexcept nogil
ctypedef Status (*TensorData)(void* value, void** data) noexcept nogil
ctypedef Status (*TextSize)(const void* value, size_t* size) noexcept nogil
ctypedef Status (*Texts)(const void* value, void* text, size_t size, size_t* starts, size_t count) noexcept nogil
ctypedef Status (*TensorInfoOf)(const void* value, void** info) noexcept nogil
ctypedef Status (*RunSession)(void* session, const void* options, const char* const* input_names,
                              const void* const* inputs, size_t n_inputs, const char* const* output_names,
                              size_t n_outputs, void** outputs) noexcept nogil

# ONNX's element types by their number; an empty one cannot be served.
ELEMENT_TYPES = ("", "FP32", "UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64", "BYTES", "BOOL", "FP16", "FP64",
                 "UINT32", "UINT64", "", "", "BF16")

# One library a process: set once, by the first load, with the interpreter's lock held.
cdef const void* const* ort = NULL
cdef void* ort_environment = NULL
cdef void* ort_memory = NULL
cdef str ort_library = None


cdef int ort_check(Status status) except -1:
    """Raise what a call came back with.

    Raises:
        RuntimeError: onnxruntime's message.
    """
    if status == NULL:
        return 0
    message = (<ErrorMessage>ort[ORT_ERROR_MESSAGE])(status).decode("utf-8", "replace")
    (<Release>ort[ORT_RELEASE_STATUS])(status)
    raise RuntimeError(message)


cdef int ort_open(str library) except -1:
    """Bind the shared object, once.

    Raises:
        ModelLoadError: it does not load, or is too old.
    """
    global ort, ort_environment, ort_memory, ort_library
    cdef const void* const* base
    cdef void* handle
    cdef void* symbol
    if ort != NULL:
        if library != ort_library:
            raise ModelLoadError(f"{library}: this process runs {ort_library} already")
        return 0
    path = library.encode()
    handle = dlopen(path, RTLD_NOW | RTLD_LOCAL)
    if handle == NULL:
        raise ModelLoadError(f"{library}: {dlerror().decode()}")
    symbol = dlsym(handle, b"OrtGetApiBase")
    if symbol == NULL:
        raise ModelLoadError(f"{library}: it is not onnxruntime")
    base = (<const void* const* (*)() noexcept nogil>symbol)()
    ort = (<GetApi>base[0])(ORT_API)
    if ort == NULL:
        raise ModelLoadError(f"{library}: its onnxruntime lacks version {ORT_API} of the API")
    ort_check((<CreateEnv>ort[ORT_CREATE_ENV])(ORT_FATAL, b"fastinfer", &ort_environment))
    ort_check((<CreateCpuMemory>ort[ORT_CREATE_CPU_MEMORY])(ORT_ARENA, 0, &ort_memory))
    ort_library = library
    return 0


@cython.final
cdef class Session(Engine):
    """One ONNX model on the CPU.

    Args:
        library: path of onnxruntime's shared object.
        path: of the model.
        intra_op_threads, inter_op_threads: at least 1.
        optimisation: level of the graph's optimisation, as onnxruntime numbers it.
        entries: session configuration, key to value.

    Attributes:
        inputs, outputs: (name, datatype, shape) as the file declares them, -1 where a dimension is variable. The
            datatype is empty for what is no tensor, or of a type that has no name in the protocol.
        plain: all of them are tensors, and no input holds strings: ``run`` may be called.

    Raises:
        ModelLoadError: the library does not load.
        RuntimeError: the model does not; onnxruntime's message.
    """

    def __init__(self, str library not None, str path not None, *, int intra_op_threads=1, int inter_op_threads=1,
                 int optimisation=99, dict entries=None):
        cdef void* options = NULL
        cdef Status status
        cdef bytes file = path.encode()
        cdef const char* name = file
        ort_open(library)
        ort_check((<CreateOptions>ort[ORT_CREATE_OPTIONS])(&options))
        try:
            ort_check((<SetOption>ort[ORT_SET_LOG_SEVERITY])(options, ORT_FATAL))
            ort_check((<SetOption>ort[ORT_SET_OPTIMISATION])(options, optimisation))
            ort_check((<SetOption>ort[ORT_SET_INTRA_OP_THREADS])(options, intra_op_threads))
            ort_check((<SetOption>ort[ORT_SET_INTER_OP_THREADS])(options, inter_op_threads))
            for key, value in (entries or {}).items():
                add_entry(options, key.encode(), value.encode())
            with nogil:
                status = (<CreateSession>ort[ORT_CREATE_SESSION])(ort_environment, name, options,
                                                                  &self.session)
            ort_check(status)
        finally:
            (<Release>ort[ORT_RELEASE_OPTIONS])(options)
        self.describe()

    def __dealloc__(self):
        if self.session != NULL:
            with nogil:  # it gives back what may be gigabytes, and waits for its threads
                (<Release>ort[ORT_RELEASE_SESSION])(self.session)
        if self.options != NULL:
            (<Release>ort[ORT_RELEASE_RUN_OPTIONS])(self.options)
        free(self.names)
        free(self.types)

    cdef int describe(self) except -1:
        """Read the inputs' and outputs' names and types, once."""
        cdef size_t n_inputs = 0, n_outputs = 0, k
        ort_check((<Count>ort[ORT_INPUT_COUNT])(self.session, &n_inputs))
        ort_check((<Count>ort[ORT_OUTPUT_COUNT])(self.session, &n_outputs))
        self.n_inputs = <int>n_inputs
        self.n_outputs = <int>n_outputs
        self.inputs = [declared_tensor(self.session, k, ORT_INPUT_NAME, ORT_INPUT_TYPE) for k in range(n_inputs)]
        self.outputs = [declared_tensor(self.session, k, ORT_OUTPUT_NAME, ORT_OUTPUT_TYPE) for k in range(n_outputs)]
        every = self.inputs + self.outputs
        self.plain = all(each[1] and len(each[2]) <= MAX_RANK for each in every) \
            and all(each[1] != "BYTES" for each in self.inputs)
        self.texts = [each[0].encode() for each in every]
        self.names = <const char**>calloc(len(every) + 1, sizeof(char*))
        self.types = <int*>calloc(len(every) + 1, sizeof(int))
        if self.names == NULL or self.types == NULL:
            raise MemoryError
        for k in range(n_inputs + n_outputs):
            self.names[k] = <const char*><bytes>self.texts[k]
            self.types[k] = ELEMENT_TYPES.index(every[k][1])
        return 0

    def run(self, dict arrays not None):
        """Run once.

        Args:
            arrays: C-contiguous arrays by input name, of the declared datatypes (BF16 as uint16).

        Returns:
            dict of output name to array.

        Raises:
            RuntimeError: onnxruntime's message.
            ValueError: an array that is not as declared.
        """
        cdef Signature signature
        cdef cnp.ndarray array
        cdef int64_t shape[MAX_RANK]
        cdef Outputs outputs
        cdef int k, axis
        cdef Call call
        if not self.plain:
            raise ValueError("not a model of plain tensors")
        signature = Signature([], [Tensor(*each) for each in self.outputs], batched=False)
        call = Call(self)
        for k in range(self.n_inputs):
            name, datatype, _ = self.inputs[k]
            array = arrays[name]
            if not (cnp.PyArray_IS_C_CONTIGUOUS(array) and cnp.PyArray_NDIM(array) <= MAX_RANK and
                    cnp.PyArray_EquivTypenums(cnp.PyArray_TYPE(array), NUMPY_TYPES[DATATYPES.index(datatype)])):
                raise ValueError(f"input {name!r} is not a C-contiguous array of {datatype}")
            for axis in range(cnp.PyArray_NDIM(array)):
                shape[axis] = cnp.PyArray_DIM(array, axis)
            call.put(k, cnp.PyArray_DATA(array), cnp.PyArray_NBYTES(array), shape, cnp.PyArray_NDIM(array))
        outputs = call.run(signature, NULL)
        return {self.outputs[k][0]: np.array(outputs.array(k)) for k in range(self.n_outputs)}

    cdef Outputs run_rows(self, Signature signature, Rows rows, Batch batch):
        """Run a batch from its slabs; ``batch.call`` can end it meanwhile.

        Raises:
            RuntimeError: onnxruntime's message.
            RuntimeFailedError: an output that is not as the signature declares.
            RunTimeoutError: the batch was given up before.
        """
        cdef Call call = self.call(rows, 1 if signature.batched else 0)
        cdef Outputs outputs
        call.options, self.options = self.options, NULL
        if call.options == NULL:
            ort_check((<CreateOptions>ort[ORT_CREATE_RUN_OPTIONS])(&call.options))
        batch.call = call  # from here on another thread may stop it
        if batch.timed_out:
            raise RunTimeoutError("the run was given up before it began")
        outputs = call.run(signature, call.options)
        batch.call = None
        if self.options == NULL and not (batch.timed_out or batch.interrupted):  # the next run's
            self.options, call.options = call.options, NULL
        return outputs

    cdef Call call(self, Rows rows, int first):
        """The values of a run of these rows, of which each tensor has ``first`` dimensions."""
        cdef int64_t shape[MAX_RANK + 1]
        cdef Call call = Call(self)
        cdef int k, axis
        if not rows.reserve(max(rows.rows, <Py_ssize_t>1)):
            raise MemoryError
        shape[0] = rows.rows
        for k in range(self.n_inputs):
            for axis in range(rows.ranks[k]):
                shape[first + axis] = rows.dims[k * MAX_RANK + axis]
            if rows.slabs[k].data == NULL and not slab_reserve(&rows.slabs[k], 0, ALIGNMENT):
                raise MemoryError
            call.put(k, rows.slabs[k].data, rows.row_bytes[k] * <size_t>rows.rows, shape, first + rows.ranks[k])
        return call


cdef int add_entry(void* options, bytes key, bytes value) except -1:
    return ort_check((<AddConfigEntry>ort[ORT_ADD_CONFIG_ENTRY])(options, key, value))


cdef tuple declared_tensor(void* session, size_t index, int name_of, int type_of):
    """(name, datatype, shape) of one input or output; no datatype where it is no tensor."""
    cdef void* allocator = NULL
    cdef void* kind = NULL
    cdef const void* info = NULL
    cdef char* text = NULL
    cdef int element = 0
    cdef size_t rank = 0
    cdef int64_t* dims
    ort_check((<DefaultAllocator>ort[ORT_DEFAULT_ALLOCATOR])(&allocator))
    ort_check((<NameOf>ort[name_of])(session, index, allocator, &text))
    name = text.decode()
    ort_check((<AllocatorFree>ort[ORT_ALLOCATOR_FREE])(allocator, text))
    ort_check((<TypeOf>ort[type_of])(session, index, &kind))
    try:
        ort_check((<TensorInfoOfType>ort[ORT_TENSOR_INFO_OF_TYPE])(kind, &info))
        if info == NULL:
            return name, "", ()
        ort_check((<ElementType>ort[ORT_ELEMENT_TYPE])(info, &element))
        ort_check((<Rank>ort[ORT_RANK])(info, &rank))
        dims = <int64_t*>calloc(rank + 1, sizeof(int64_t))
        if dims == NULL:
            raise MemoryError
        try:
            ort_check((<Dimensions>ort[ORT_DIMENSIONS])(info, dims, rank))
            shape = tuple([dims[k] if dims[k] >= 0 else -1 for k in range(rank)])
        finally:
            free(dims)
        return name, ELEMENT_TYPES[element] if element < len(ELEMENT_TYPES) else "", shape
    finally:
        (<Release>ort[ORT_RELEASE_TYPE])(kind)


@cython.final
@cython.freelist(8)
cdef class Call:
    """The values of one run: inputs that look into somebody's memory, then outputs that onnxruntime made."""

    def __cinit__(self, Session session not None):
        self.session = session
        self.count = session.n_inputs + session.n_outputs
        self.values = <void**>calloc(self.count + 1, sizeof(void*))
        if self.values == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int k
        if self.values != NULL:
            for k in range(self.count):
                if self.values[k] != NULL:
                    (<Release>ort[ORT_RELEASE_VALUE])(self.values[k])
        free(self.values)
        if self.options != NULL:
            (<Release>ort[ORT_RELEASE_RUN_OPTIONS])(self.options)

    cdef int stop(self) except -1:
        """Have the run end with an error, before the graph's next node; from any thread."""
        return ort_check((<SetTerminate>ort[ORT_SET_TERMINATE])(self.options))

    cdef int put(self, int k, void* data, size_t size, const int64_t* shape, int rank) except -1:
        cdef int kind = self.session.types[k]
        return ort_check((<CreateTensor>ort[ORT_CREATE_TENSOR])(ort_memory, data, size, shape, <size_t>rank, kind,
                                                                &self.values[k]))

    cdef Outputs run(self, Signature signature, const void* options):
        """Run, with the interpreter's lock released, and look at what came out."""
        cdef Session session = self.session
        cdef int n = session.n_inputs
        cdef Outputs outputs = Outputs(signature)
        cdef Status status
        cdef int k
        with nogil:
            status = (<RunSession>ort[ORT_RUN])(session.session, options, session.names, self.values, <size_t>n,
                                                session.names + n, <size_t>session.n_outputs, self.values + n)
        ort_check(status)
        outputs.owner = self
        for k in range(session.n_outputs):
            self.look(outputs, k)
        return outputs

    cdef int look(self, Outputs outputs, int k) except -1:
        """Write down where output ``k`` lies and how large it is."""
        cdef Result* result = &outputs.results[k]
        cdef void* value = self.values[self.session.n_inputs + k]
        cdef void* info = NULL
        cdef void* data = NULL
        cdef size_t rank = 0
        cdef int element = 0, axis
        ort_check((<TensorInfoOf>ort[ORT_TENSOR_INFO])(value, &info))
        try:
            ort_check((<ElementType>ort[ORT_ELEMENT_TYPE])(info, &element))
            ort_check((<Rank>ort[ORT_RANK])(info, &rank))
            if rank > MAX_RANK or element != self.session.types[self.session.n_inputs + k]:
                raise RuntimeFailedError(f"output {outputs.signature.outputs[k].name!r} is not the tensor that the "
                                         "model declares")
            ort_check((<Dimensions>ort[ORT_DIMENSIONS])(info, <int64_t*>result.shape, rank))
        finally:
            (<Release>ort[ORT_RELEASE_TENSOR_INFO])(info)
        result.datatype = outputs.signature.output_info[k].datatype
        result.itemsize = outputs.signature.output_info[k].itemsize
        result.rank = <int>rank
        result.count = 1
        for axis in range(result.rank):
            result.count *= result.shape[axis]
        if element == ORT_STRING:
            return self.read_texts(result, value)
        ort_check((<TensorData>ort[ORT_TENSOR_DATA])(value, &data))
        result.data = <const char*>data
        return 0

    cdef int read_texts(self, Result* result, void* value) except -1:
        """Copy a tensor's strings into one block: a Span an element, where each starts, and the texts."""
        cdef size_t count = <size_t>result.count
        cdef size_t size = 0, i
        cdef bytes block
        cdef Span* span
        cdef size_t* starts
        cdef char* text
        ort_check((<TextSize>ort[ORT_TEXT_SIZE])(value, &size))
        block = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(count * (sizeof(Span) + sizeof(size_t)) + size + 1))
        span = <Span*>PyBytes_AS_STRING(block)
        starts = <size_t*>(span + count)
        text = <char*>(starts + count)
        if count:
            ort_check((<Texts>ort[ORT_TEXTS])(value, text, size, starts, count))
        for i in range(count):
            span[i].offset = starts[i]
            span[i].length = (starts[i + 1] if i + 1 < count else size) - starts[i]
        if self.blocks is None:
            self.blocks = []
        self.blocks.append(block)
        result.data = <const char*>span
        result.arena = text
        return 0
