# A model's inputs and outputs, compiled once at load.
cimport cython
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp

from typing import NamedTuple

from fastinfer.errors import ConfigurationError

# In the order of Datatype. Source: Open Inference Protocol, "Tensor Data Types"; BF16 is Triton's.
DATATYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
             "FP16", "FP32", "FP64", "BF16", "BYTES")
DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
          "float16", "float32", "float64", "uint16", "object")


cdef size_t datatype_size(Datatype datatype) noexcept nogil:
    """Bytes of one element in a slab."""
    if datatype in (DT_BOOL, DT_UINT8, DT_INT8):
        return 1
    if datatype in (DT_UINT16, DT_INT16, DT_FP16, DT_BF16):
        return 2
    if datatype in (DT_UINT32, DT_INT32, DT_FP32):
        return 4
    if datatype in (DT_UINT64, DT_INT64, DT_FP64):
        return 8
    return SPAN_SIZE


class Tensor(NamedTuple):
    """One declared input or output.

    Attributes:
        name: as clients write it.
        datatype: an Open Inference Protocol datatype.
        shape: whole shape, -1 where variable; the first dimension is the rows where the model is batched.
        nullable: its values may be missing; a column's, in records the whole field.
        column: (a feature program's column) [n] is accepted for [n, 1].
        features: of a model's one wide input, names of its columns: a record may have a field for each in its place.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    nullable: bool = False
    column: bool = False
    features: tuple[str, ...] = ()


@cython.final
cdef class NameTable:
    """Open addressing from a UTF-8 name to its index; built once, read without the GIL."""

    def __cinit__(self, names):
        cdef Py_ssize_t count = len(names)
        cdef uint32_t size = 4
        cdef uint32_t position, value
        cdef Py_ssize_t i
        while size < 2 * count:
            size *= 2
        self.names = [name.encode() for name in names]
        self.mask = size - 1
        self.slots = <NameSlot*>malloc(size * sizeof(NameSlot))
        self.data = <const char**>malloc((count + 1) * sizeof(char*))
        self.sizes = <Py_ssize_t*>malloc((count + 1) * sizeof(Py_ssize_t))
        if self.slots == NULL or self.data == NULL or self.sizes == NULL:
            raise MemoryError
        for i in range(size):
            self.slots[i].index = -1
        for i in range(count):
            name = self.names[i]
            self.data[i] = <const char*>name
            self.sizes[i] = len(name)
            if self.find(self.data[i], self.sizes[i]) >= 0:
                raise ConfigurationError(f"the name {names[i]!r} is declared twice")
            value = hash_name(self.data[i], self.sizes[i])
            position = value & self.mask
            while self.slots[position].index >= 0:
                position = (position + 1) & self.mask
            self.slots[position].hash = value
            self.slots[position].index = <int32_t>i

    def __dealloc__(self):
        free(self.slots)
        free(self.data)
        free(self.sizes)

    cdef int find(self, const char* name, Py_ssize_t size) noexcept nogil:
        """Index of ``name``, or -1."""
        cdef uint32_t value = hash_name(name, size)
        cdef uint32_t position = value & self.mask
        cdef int index
        while True:
            index = self.slots[position].index
            if index < 0:
                return -1
            if (self.slots[position].hash == value and self.sizes[index] == size
                    and memcmp(self.data[index], name, size) == 0):
                return index
            position = (position + 1) & self.mask


cdef inline uint32_t hash_name(const char* name, Py_ssize_t size) noexcept nogil:
    """FNV-1a, 32 bits: the names are the operator's, not the client's, so it need not resist an attacker."""
    cdef uint32_t value = 2166136261
    cdef Py_ssize_t i
    for i in range(size):
        value = (value ^ <uint8_t>name[i]) * <uint32_t>16777619
    return value


@cython.final
cdef class Signature:
    """The declared inputs and outputs of a model, in order, and fields that a record may have for nothing: those named
    in ``ignored``, or, where it is lenient, any.

    Attributes:
        features: names of the columns of the one input, where records may name them.

    Raises:
        ConfigurationError: an unknown datatype, a rank over 8, a dimension below -1, a name declared twice.
    """

    def __cinit__(self, inputs, outputs, *, bint batched=True, ignored=(), bint lenient=False):
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.batched = batched
        self.ragged = any(-1 in tensor.shape[1:] for tensor in self.inputs)
        self.keys = tuple([tensor.name for tensor in self.inputs])
        self.n_inputs = len(self.inputs)
        self.n_outputs = len(self.outputs)
        self.input_names = NameTable(self.keys)
        self.ignored_names = NameTable(list(ignored))
        self.n_ignored = len(self.ignored_names.names)
        self.lenient = lenient
        self.features = self.inputs[0].features if batched and len(self.inputs) == 1 else ()
        self.feature_names = NameTable(self.features)
        self.n_features = len(self.features)
        self.least_field = min(map(len, (*self.keys, *self.feature_names.names)), default=0)
        self.output_names = NameTable([tensor.name for tensor in self.outputs])
        self.input_info = compile_tensors(self.inputs, self.input_names, batched)
        self.output_info = compile_tensors(self.outputs, self.output_names, batched)

    def __dealloc__(self):
        free(self.input_info)
        free(self.output_info)


cdef TensorInfo* compile_tensors(tuple tensors, NameTable names, bint batched) except NULL:
    cdef TensorInfo* infos = <TensorInfo*>calloc(len(tensors) + 1, sizeof(TensorInfo))
    cdef Py_ssize_t i, axis
    if infos == NULL:
        raise MemoryError
    try:
        for i, tensor in enumerate(tensors):
            if tensor.datatype not in DATATYPES:
                raise ConfigurationError(f"tensor {tensor.name!r}: unknown datatype {tensor.datatype!r}")
            if len(tensor.shape) > MAX_RANK:
                raise ConfigurationError(f"tensor {tensor.name!r}: {len(tensor.shape)} dimensions, "
                                         f"at most {MAX_RANK} are served")
            if batched and not tensor.shape:
                raise ConfigurationError(f"tensor {tensor.name!r}: a scalar has no rows to batch")
            infos[i].name = names.data[i]
            infos[i].name_size = names.sizes[i]
            infos[i].datatype = <Datatype><int>DATATYPES.index(tensor.datatype)
            infos[i].itemsize = datatype_size(infos[i].datatype)
            infos[i].rank = len(tensor.shape)
            infos[i].nullable = tensor.nullable
            infos[i].column = tensor.column
            infos[i].plain = is_plain_text(names.data[i], names.sizes[i])
            for axis, dim in enumerate(tensor.shape):
                if dim < -1:
                    raise ConfigurationError(f"tensor {tensor.name!r}: dimension {dim}")
                infos[i].shape[axis] = dim
            if tensor.features and (len(tensor.shape) != 2 or tensor.shape[1] != len(tensor.features)
                                    or not tensor.nullable or tensor.datatype not in ("FP32", "FP64")):
                raise ConfigurationError(f"tensor {tensor.name!r} has not as many columns of numbers that may be "
                                         "missing as it has names for")
    except BaseException:
        free(infos)
        raise
    return infos
