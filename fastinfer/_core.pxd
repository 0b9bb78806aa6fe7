# Declarations of the compiled core: every struct and every class that two parts share, once, in a file with the
# part's name. The order is that of _core.pyx, but that what a struct holds stands before it.
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

include "core/signature.pxd"
include "core/memory.pxd"
include "core/json.pxd"
include "core/decode.pxd"
include "core/columns.pxd"
include "core/program.pxd"
include "core/outputs.pxd"
include "core/trees.pxd"
include "core/forest.pxd"
include "core/session.pxd"
include "core/decision.pxd"
include "core/encode.pxd"
include "core/admission.pxd"
include "core/cost.pxd"
include "core/sketch.pxd"
include "core/queue.pxd"
include "core/batch.pxd"
include "core/watch.pxd"
include "core/shares.pxd"
include "core/infer.pxd"
include "core/head.pxd"
include "core/forwarded.pxd"
include "core/credentials.pxd"
include "core/lane.pxd"
include "core/http.pxd"
include "core/access.pxd"
