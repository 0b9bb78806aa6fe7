"""Hypothesis strategies that several test files share."""

import json
import math
import struct

import numpy as np
from hypothesis import strategies as st

from fastinfer._core import DATATYPES, DTYPES, Signature, Tensor

NUMPY = dict(zip(DATATYPES, DTYPES, strict=True))
JSON_DATATYPES = [name for name in DATATYPES if name not in ("FP16", "BF16")]
NAMES = st.sampled_from(["x", "age", "job", "dwelling type", 'a"b', "back\\nslash", "é", "name", "\U0001f600"])
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)


# ---- signatures ------------------------------------------------------------------------------------------------
@st.composite
def tensors(draw, name, batched):
    inner = draw(st.lists(st.sampled_from([-1, 0, 1, 2, 3]), max_size=2))
    first = -1 if batched else draw(st.sampled_from([-1, 1, 2]))
    shape = [first, *inner] if batched or draw(st.booleans()) else []
    return Tensor(name, draw(st.sampled_from(DATATYPES)), tuple(shape))


@st.composite
def columns(draw, name):
    datatype = draw(st.sampled_from(["FP64", "INT64", "BOOL", "BYTES"]))
    nullable = datatype in ("FP64", "BYTES") and draw(st.booleans())
    return Tensor(name, datatype, (-1, 1), nullable, True)


@st.composite
def signatures(draw):
    """Of a model with or without a feature program, batched or not."""
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    outputs = [Tensor("y", draw(st.sampled_from(DATATYPES)), (-1, 2)), Tensor("z", "FP32", (-1,))]
    if draw(st.booleans()):
        return Signature([draw(columns(name)) for name in names], outputs)
    batched = draw(st.booleans())
    return Signature([draw(tensors(name, batched)) for name in names], outputs, batched=batched)


# ---- values ----------------------------------------------------------------------------------------------------
def values(tensor):
    """Python values that the tensor's datatype has."""
    if tensor.datatype == "BYTES":
        plain = TEXTS
    elif tensor.datatype == "BOOL":
        plain = st.booleans()
    elif tensor.datatype.startswith(("FP", "BF")):
        plain = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-300, 300)
        if tensor.datatype == "FP64":
            plain |= st.floats(allow_nan=False, allow_infinity=False)
    else:
        bounds = np.iinfo(NUMPY[tensor.datatype])
        plain = st.integers(int(bounds.min), int(bounds.max))
    return plain | st.none() if tensor.nullable else plain


def nest(flat, shape):
    if len(shape) < 2:
        return flat
    step = math.prod(shape[1:])
    return [nest(flat[k * step:(k + 1) * step], shape[1:]) for k in range(shape[0])]


def pack(flat, tensor):
    """The binary extension's bytes."""
    if tensor.datatype == "BYTES":
        blobs = [(value or "").encode() for value in flat]
        return b"".join(struct.pack("<I", len(blob)) + blob for blob in blobs)
    if tensor.datatype in ("FP16", "BF16"):
        return bytes(2 * len(flat))
    return np.array([math.nan if value is None else value for value in flat], NUMPY[tensor.datatype]).tobytes()


@st.composite
def shapes(draw, tensor, rows):
    shape = [draw(st.integers(0, 3)) if dim < 0 else dim for dim in tensor.shape]
    if rows is not None:
        shape[0] = rows
    return shape[:1] if tensor.column and draw(st.booleans()) else shape


# ---- bodies ----------------------------------------------------------------------------------------------------
def dump(draw, document):
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")]))
    return json.dumps(document, ensure_ascii=draw(st.booleans()), separators=separators).encode()


@st.composite
def extras(draw):
    members = {}
    if draw(st.booleans()):
        members["id"] = draw(TEXTS)
    if draw(st.booleans()):
        members["parameters"] = draw(st.fixed_dictionaries({}, optional={
            "timeout": st.integers(-5, 2**40),
            "priority": st.integers(0, 2**64 - 1),
            "binary_data_output": st.booleans(),
            "sequence_id": st.integers(0, 9) | st.text(max_size=3),
            "comment": st.text(max_size=3) | st.floats(0, 9) | st.booleans(),
        }))
    if draw(st.booleans()):
        members["extra"] = draw(st.sampled_from([None, {"a": [1, {"b": "c"}]}, "text", [], 1.5]))
    return members


@st.composite
def infer_bodies(draw, signature):
    """(body, header length) of a request that the signature takes."""
    rows = draw(st.integers(0, 3)) if signature.batched else None
    binary_allowed = draw(st.booleans())
    inputs, payload = [], b""
    for tensor in draw(st.permutations(signature.inputs)):
        shape = draw(shapes(tensor, rows))
        flat = draw(st.lists(values(tensor), min_size=math.prod(shape), max_size=math.prod(shape)))
        sent = {"name": tensor.name, "shape": shape, "datatype": tensor.datatype}
        if tensor.datatype in ("FP16", "BF16") or (binary_allowed and draw(st.booleans())):
            blob = pack(flat, tensor)
            sent["parameters"] = {"binary_data_size": len(blob)}
            payload += blob
        else:
            sent["data"] = nest(flat, shape) if draw(st.booleans()) else flat
        inputs.append(dict(draw(st.permutations(list(sent.items())))))
    document = {"inputs": inputs, **draw(extras())}
    if draw(st.booleans()):
        document["outputs"] = [{"name": tensor.name, "parameters": {"binary_data": True}}
                               for tensor in draw(st.permutations(signature.outputs))]
    head = dump(draw, dict(draw(st.permutations(list(document.items())))))
    announced = binary_allowed or any("data" not in sent for sent in inputs)
    return head + payload, len(head) if announced else -1


@st.composite
def record_bodies(draw, signature):
    """A body of records that the signature takes."""
    row_shapes = [draw(shapes(tensor, 1 if signature.batched else None)) for tensor in signature.inputs]
    count = draw(st.integers(0, 4)) if signature.batched else 1
    records = []
    for _ in range(count):
        record = {}
        for tensor, sent in zip(signature.inputs, row_shapes, strict=True):
            shape = sent[1:] if signature.batched else sent
            flat = draw(st.lists(values(tensor), min_size=math.prod(shape), max_size=math.prod(shape)))
            if not (tensor.nullable and draw(st.booleans())):
                record[tensor.name] = flat[0] if tensor.column or not shape else nest(flat, shape)
        records.append(dict(draw(st.permutations(list(record.items())))))
    return dump(draw, {"records": records, **draw(extras())})


PIECES = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"null", b"true", b"NaN", b"-", b"0", b"1e999", b"1.5", b" ",
          b"\x00", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"18446744073709551616", b'"a":1,', b"[[", b"1,", b".", b"e"]


@st.composite
def mutated(draw, body):
    """A few bytes of ``body`` changed, lost, doubled or put in."""
    data = bytearray(body)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.integers(0, 4))
        if how == 0:
            data[at:at] = draw(st.sampled_from(PIECES) | st.binary(min_size=1, max_size=3))
        elif how == 1:
            del data[at:at + draw(st.integers(1, 4))]
        elif how == 2:
            data[at:at + 1] = draw(st.sampled_from(PIECES))
        elif how == 3:
            del data[at:]
        else:
            end = draw(st.integers(at, min(len(data), at + 40)))
            data[at:at] = data[at:end]
    return bytes(data)
