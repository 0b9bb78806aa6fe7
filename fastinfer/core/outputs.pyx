# What a run gave: one tensor an output, looked at once a batch, so that no answer asks an array anything.
cimport cython
cimport numpy as cnp
from cpython.ref cimport Py_INCREF
from libc.stdlib cimport calloc, free

import numpy as np

from fastinfer.errors import RuntimeFailedError


@cython.final
cdef class Outputs:
    """The tensors that a runtime gave, in the order of the signature's outputs, C order.

    Args:
        signature: the runtime's.
    """

    def __cinit__(self, Signature signature not None):
        self.signature = signature
        self.results = <Result*>calloc(signature.n_outputs + 1, sizeof(Result))
        if self.results == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.results)

    cdef int check_rows(self, Py_ssize_t rows) except -1:
        """Raise unless the first dimension of every output is the batch: it must never be mis-sliced."""
        cdef Result* result
        cdef int k
        if not self.signature.batched:
            return 0
        for k in range(self.signature.n_outputs):
            result = &self.results[k]
            if result.rank == 0 or result.shape[0] != rows:
                raise RuntimeFailedError(f"output {self.signature.outputs[k].name!r} has shape {self.shape(k)} for "
                                         f"{rows} rows: its first dimension must be the batch")
        return 0

    cdef size_t nbytes(self) noexcept nogil:
        cdef size_t size = 0
        cdef int k
        for k in range(self.signature.n_outputs):
            size += <size_t>self.results[k].count * self.results[k].itemsize
        return size

    cdef list shape(self, int k):
        return [self.results[k].shape[axis] for axis in range(self.results[k].rank)]

    cdef cnp.ndarray array(self, int k):
        """Output ``k`` as an array that looks into this."""
        cdef Result* result = &self.results[k]
        cdef cnp.ndarray array
        if result.datatype == DT_BYTES:
            return self.texts(k) if result.arena != NULL else <cnp.ndarray>(<list>self.owner)[k]
        array = cnp.PyArray_SimpleNewFromData(result.rank, <cnp.npy_intp*>result.shape,
                                              NUMPY_TYPES[<int>result.datatype], <void*>result.data)
        Py_INCREF(self)  # SetBaseObject steals it
        cnp.PyArray_SetBaseObject(array, self)
        return array

    cdef cnp.ndarray texts(self, int k):
        """Output ``k`` as an array of str; of bytes where an element is not UTF-8."""
        cdef Result* result = &self.results[k]
        cdef const Span* span = <const Span*>result.data
        cdef Py_ssize_t i
        cdef bytes text
        elements = np.empty(result.count, dtype=object)
        for i in range(result.count):
            text = result.arena[span[i].offset:span[i].offset + span[i].length]
            try:
                elements[i] = text.decode()
            except UnicodeDecodeError:
                elements[i] = text
        return elements.reshape(self.shape(k))


cdef Outputs outputs_of(Signature signature, list arrays):
    """Look at a runtime's arrays, in the order of the signature's outputs.

    Raises:
        RuntimeFailedError: an array that is not as the signature declares.
    """
    cdef Outputs outputs = Outputs(signature)
    cdef cnp.ndarray array
    cdef TensorInfo* info
    cdef Result* result
    cdef int k, axis
    outputs.owner = arrays
    for k in range(signature.n_outputs):
        array = arrays[k]
        info = &signature.output_info[k]
        result = &outputs.results[k]
        if not (cnp.PyArray_EquivTypenums(cnp.PyArray_TYPE(array), NUMPY_TYPES[<int>info.datatype])
                and cnp.PyArray_IS_C_CONTIGUOUS(array)):
            raise RuntimeFailedError(f"the model's output '{signature.outputs[k].name}' is not the "
                                     f"{DATATYPES[<int>info.datatype]} array that it declares")
        result.rank = cnp.PyArray_NDIM(array)
        if result.rank > MAX_RANK:
            raise RuntimeFailedError(f"the model's output '{signature.outputs[k].name}' has {result.rank} dimensions, "
                                     f"over {MAX_RANK}")
        result.datatype = info.datatype
        result.itemsize = cnp.PyArray_ITEMSIZE(array)
        result.count = cnp.PyArray_SIZE(array)
        result.data = <const char*>cnp.PyArray_DATA(array)
        for axis in range(result.rank):
            result.shape[axis] = cnp.PyArray_DIM(array, axis)
    return outputs


cdef Outputs joined_outputs(Signature signature, list parts):
    """One Outputs of several: (Outputs, first row, rows) each, their rows in order.

    Raises:
        ValueError: an output whose other dimensions are not the same in all of them.
    """
    cdef Outputs part
    cdef Py_ssize_t start, rows
    cdef int k
    arrays = []
    for k in range(signature.n_outputs):
        pieces = []
        for part, start, rows in parts:
            pieces.append(part.array(k)[start:start + rows])
        arrays.append(np.ascontiguousarray(np.concatenate(pieces)))
    return outputs_of(signature, arrays)
