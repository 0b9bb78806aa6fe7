# Columns that Python holds, into rows; and a sparse output's entries, into arrays.
cimport numpy as cnp
from libc.math cimport isnan
from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memcpy

import numpy as np

from fastinfer.errors import InvalidRecordError

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


cdef Rows rows_from_arrays(Signature signature, dict columns):
    """Copy whole columns into rows; text as UTF-8 spans, with None and NaN told apart."""
    cdef Rows rows = Rows(signature)
    cdef Py_ssize_t count = -1
    cdef int i
    for tensor in signature.inputs:
        if tensor.name not in columns:
            raise InvalidRecordError(f"the column {tensor.name!r} is missing", f"$.{tensor.name}")
        if count >= 0 and len(columns[tensor.name]) != count:
            raise InvalidRecordError(f"the column {tensor.name!r} has {len(columns[tensor.name])} rows, others {count}")
        count = len(columns[tensor.name])
    if not rows.reserve(max(count, 1)):
        raise MemoryError
    for i in range(rows.count):
        tensor = signature.inputs[i]
        if signature.input_info[i].datatype == DT_BYTES:
            fill_spans(rows, i, columns[tensor.name])
        else:
            fill_array(rows, i, columns[tensor.name], count)
    rows.rows = max(count, 0)
    return rows


cdef int fill_array(Rows rows, int input, values, Py_ssize_t count) except -1:
    cdef Datatype datatype = rows.signature.input_info[input].datatype
    cdef cnp.ndarray array = np.ascontiguousarray(values, dtype=DTYPES[<int>datatype])
    if cnp.PyArray_NDIM(array) != 1:
        raise InvalidRecordError(f"the column {rows.signature.inputs[input].name!r} is not one-dimensional")
    memcpy(rows.slabs[input].data, cnp.PyArray_DATA(array), <size_t>count * rows.row_bytes[input])
    return 0


cdef int fill_spans(Rows rows, int input, values) except -1:
    cdef Span* spans = <Span*>rows.slabs[input].data
    cdef Py_ssize_t i = 0, size
    cdef const char* data
    cdef cnp.ndarray times
    if isinstance(values, np.ndarray) and values.dtype == np.int64:  # microseconds, of a column of times
        times = np.ascontiguousarray(values)
        for i in range(len(times)):
            spans[i].offset, spans[i].length = (<const uint64_t*>cnp.PyArray_DATA(times))[i], TIME_BYTES
        return 0
    for value in values:
        if isinstance(value, str):
            data = PyUnicode_AsUTF8AndSize(value, &size)
            if not rows.arena_reserve(<size_t>size):
                raise MemoryError
            if size:
                memcpy(rows.arena.data + rows.arena_size, data, size)
            spans[i].offset, spans[i].length = rows.arena_size, <uint64_t>size
            rows.arena_size += <size_t>size
        elif value is None:
            spans[i].offset, spans[i].length = NONE_TEXT, MISSING_BYTES
        elif isinstance(value, float) and isnan(value):
            spans[i].offset, spans[i].length = NAN_TEXT, MISSING_BYTES
        else:
            name = rows.signature.inputs[input].name
            raise InvalidRecordError(f"row {i}, field {name!r}: {type(value).__name__}, and the column takes text",
                                     f"$.records[{i}].{name}")
        i += 1
    return 0


cdef tuple entry_arrays(Entries* entries):
    cdef Py_ssize_t count = <Py_ssize_t>entries.size, i
    cdef cnp.ndarray values = np.empty(count, dtype=np.float64)
    cdef cnp.ndarray indices = np.empty(count, dtype=np.int32)
    cdef double* value = <double*>cnp.PyArray_DATA(values)
    cdef int32_t* index = <int32_t*>cnp.PyArray_DATA(indices)
    for i in range(count):
        value[i], index[i] = entries.data[i].value, entries.data[i].column
    return values, indices
