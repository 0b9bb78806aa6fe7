"""The models of a server that is checked: made-up inputs, requests of them, and the arrays of answers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastinfer.conformance.kit import need

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from typing import TypeAlias

    Arrays: TypeAlias = dict[str, np.ndarray[Any, Any]]

HEADER = "Inference-Header-Content-Length"
DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    "BF16": "uint16", "BYTES": "object",
}  # fmt: skip
BINARY_ONLY = ("FP16", "BF16")
LENGTHS = (1, 2, 3, 4, 8, 16)  # of a variable dimension, tried in this order
VALUES = ((0, 1), (1, 1), (0, 0))  # that elements take by turns
TEXTS = ("a", "1", "2024-02-29")


class Tensor(NamedTuple):
    """One declared input or output; `shape` has -1 where it is variable."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass
class Model:
    """A model as its server describes it.

    Attributes:
        most_rows: its largest batch; 0 where it takes none, None where the server does not say.
        example: inputs that it answers.
        why: what it said to the last that it did not.
    """

    name: str
    versions: list[str]
    inputs: list[Tensor]
    outputs: list[Tensor]
    most_rows: int | None
    example: Arrays | None = None
    why: str = ""

    @property
    def batched(self) -> bool:
        """Whether the first dimension is a batch of rows."""
        return bool(self.most_rows) and all(tensor.shape[:1] == (-1,) for tensor in self.inputs)

    def candidates(self) -> Iterator[Arrays]:
        """Inputs of one row, likely ones first."""
        variable = any(-1 in tensor.shape[self.batched :] for tensor in self.inputs)
        texts = TEXTS if any(tensor.datatype == "BYTES" for tensor in self.inputs) else TEXTS[:1]
        for length in LENGTHS if variable else LENGTHS[:1]:
            for values in VALUES:
                for text in texts:
                    yield {tensor.name: made_up(tensor, self.batched, length, values, text) for tensor in self.inputs}

    def rows(self, count: int) -> Arrays:
        """The example, so many times."""
        return {name: np.concatenate([array] * count) for name, array in self.asked.items()}

    @property
    def asked(self) -> Arrays:
        """The example, of a model that has one."""
        assert self.example is not None
        return self.example

    def takes(self, name: str) -> Tensor:
        return next(tensor for tensor in self.inputs if tensor.name == name)


def made_up(
    tensor: Tensor, batched: bool, length: int, values: tuple[int, int], text: str
) -> np.ndarray[Any, Any]:
    shape = [1 if batched and axis == 0 else length if dim < 0 else dim for axis, dim in enumerate(tensor.shape)]
    count = math.prod(shape)
    if tensor.datatype == "BYTES":
        return np.array([text] * count, dtype=object).reshape(shape)
    if tensor.datatype == "BF16":
        return np.array([(0, 0x3F80)[values[k % 2]] for k in range(count)], dtype=np.uint16).reshape(shape)
    return np.array([values[k % 2] for k in range(count)]).astype(DTYPES[tensor.datatype]).reshape(shape)


# ---- requests ------------------------------------------------------------------------------------------------------
def request(
    model: Model,
    arrays: Arrays,
    *,
    binary: Collection[str] | None = None,
    outputs: Sequence[dict[str, Any]] | None = None,
    nested: bool = False,
    **members: Any,
) -> tuple[bytes, dict[str, str]]:
    """An inference request's body and headers.

    Args:
        binary: names of the inputs that travel as binary data; by default those that JSON cannot carry.
        outputs: the request's `outputs`; by default those that JSON cannot carry are asked for as binary data.
        nested: whether JSON data are nested as the shape.
        members: of the request's object beside its inputs and outputs.
    """
    if binary is None:
        binary = [tensor.name for tensor in model.inputs if tensor.datatype in BINARY_ONLY]
    if outputs is None and any(tensor.datatype in BINARY_ONLY for tensor in model.outputs):
        outputs = [
            {"name": tensor.name, "parameters": {"binary_data": tensor.datatype in BINARY_ONLY}}
            for tensor in model.outputs
        ]
    inputs, blobs = [], []
    for name, array in arrays.items():
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": model.takes(name).datatype}
        if name in binary:
            blobs.append(packed(array))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = array.tolist() if nested else array.ravel().tolist()
        inputs.append(entry)
    document = {**members, "inputs": inputs}
    if outputs is not None:
        document["outputs"] = list(outputs)
    head = json.dumps(document).encode()
    if not blobs:
        return head, {}
    headers = {HEADER: str(len(head)), "Content-Type": "application/octet-stream"}
    return head + b"".join(blobs), headers


def packed(array: np.ndarray[Any, Any]) -> bytes:
    """An array as the binary extension has it."""
    if array.dtype != object:
        return array.tobytes()
    texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def unpacked(data: bytes, datatype: str, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """Undo `packed`; texts are bytes."""
    if datatype != "BYTES":
        array = np.frombuffer(data, DTYPES[datatype])
        need(array.size == math.prod(shape), f"{len(data)} bytes for shape {list(shape)} of {datatype}")
        return array.reshape(shape)
    texts: list[bytes] = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        texts.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    need(at == len(data) and len(texts) == math.prod(shape), f"{len(texts)} texts for shape {list(shape)}")
    return np.array(texts, dtype=object).reshape(shape)


# ---- answers -------------------------------------------------------------------------------------------------------
def arrays_of(model: Model, body: bytes, header_size: int | None) -> Arrays:
    """The outputs of an answer, its form checked."""
    document = json.loads(body[:header_size])
    rest = b"" if header_size is None else body[header_size:]
    need(document.get("model_name") == model.name, f"model_name is {document.get('model_name')!r}")
    need(isinstance(document.get("model_version", ""), str), "model_version is not a string")
    declared = {tensor.name: tensor for tensor in model.outputs}
    result: Arrays = {}
    for output in document["outputs"]:
        name, datatype, shape = output["name"], output["datatype"], output["shape"]
        need(name in declared and name not in result, f"an output {name!r} that was not expected")
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            need("data" not in output, f"output {name!r} has both data and binary data")
            result[name] = unpacked(rest[:size], datatype, shape)
            rest = rest[size:]
        else:
            flat = np.array(output["data"], dtype=object).ravel()
            need(flat.size == math.prod(shape), f"output {name!r} has {flat.size} values for shape {shape}")
            result[name] = (flat if datatype == "BYTES" else flat.astype(DTYPES[datatype])).reshape(shape)
    need(not rest, f"{len(rest)} bytes behind the last output")
    return result


def need_equal(one: Arrays, other: Arrays, says: str) -> None:
    """Fail unless both have the same values, text for text and number for number, to 1e-5 of each."""
    need(one.keys() == other.keys(), f"{says}: outputs {sorted(one)} and {sorted(other)}")
    for name, array in one.items():
        beside = other[name]
        need(array.shape == beside.shape, f"{says}: output {name!r} has shapes {array.shape} and {beside.shape}")
        if array.dtype == object:
            pairs = [[text.decode() if isinstance(text, bytes) else text for text in each.ravel()]
                     for each in (array, beside)]  # fmt: skip
            same = pairs[0] == pairs[1]
        elif array.dtype.kind == "f":
            same = bool(np.allclose(array, beside, rtol=1e-5, atol=1e-6, equal_nan=True))
        else:
            same = bool(np.array_equal(array, beside))
        need(same, f"{says}: output {name!r} differs")
