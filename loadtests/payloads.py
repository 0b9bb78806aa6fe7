"""Request bodies for any Open Inference server, made from the model's own metadata.

A *row* is a record: input name to value, without the row dimension. ``--payload`` rows come in the same form, one JSON
object a line. Bodies are encoded once, before the load begins.
"""

from __future__ import annotations

import json
import math
import random
import string
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

PACKING = {"BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h",
           "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d"}
JSON_ONLY_BINARY = ("FP16", "BF16")  # the protocol has no JSON form for them
VARIABLE = 8  # elements where the model leaves an inner dimension open
ROWS = 512


class PayloadError(Exception):
    """The rows given, or the metadata read, do not make a request."""


class Tensor(NamedTuple):
    """An input as the metadata declares it; ``shape`` is one row's, ``batched`` says whether rows come first."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    batched: bool


class Hints(NamedTuple):
    """What a server told about a row: one that it answers, and the values that some inputs take."""

    example: dict[str, Any]
    known: dict[str, list[Any]]


class Body(NamedTuple):
    path: str
    data: bytes
    headers: dict[str, str]


def tensors(metadata: dict[str, Any]) -> list[Tensor]:
    """The inputs of ``GET /v2/models/<name>``."""
    found = []
    for entry in metadata.get("inputs", ()):
        shape = tuple(entry["shape"])
        batched = bool(shape) and shape[0] == -1
        found.append(Tensor(entry["name"], entry["datatype"], shape[1:] if batched else shape, batched))
    if not found:
        raise PayloadError(f"the metadata of {metadata.get('name')!r} declares no inputs")
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows from an NDJSON file."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise PayloadError(f"{path}:{number}: {error}") from None
        if not isinstance(row, dict):
            raise PayloadError(f"{path}:{number}: a row is a JSON object of input names to values")
        rows.append(row)
    if not rows:
        raise PayloadError(f"{path}: no rows")
    return rows


def generated_rows(inputs: list[Tensor], hints: Hints, *, count: int = ROWS, seed: int = 1) -> list[dict[str, Any]]:
    """Rows that differ: known values drawn at random, numbers around the example's, random ones without either."""
    source = random.Random(seed)
    return [{tensor.name: drawn(tensor, hints, source) for tensor in inputs} for _ in range(count)]


def drawn(tensor: Tensor, hints: Hints, source: random.Random) -> Any:
    known = hints.known.get(tensor.name)
    return source.choice(known) if known else vary(tensor, hints.example.get(tensor.name), source)


def vary(tensor: Tensor, like: Any, source: random.Random) -> Any:
    if isinstance(like, list):
        return [vary(tensor, element, source) for element in like]
    if like is not None:
        return scalar_like(tensor.datatype, like, source)
    size = math.prod(VARIABLE if dimension == -1 else dimension for dimension in tensor.shape)
    values = [random_scalar(tensor.datatype, source) for _ in range(size)]
    return values[0] if tensor.shape in ((), (1,)) else values


def scalar_like(datatype: str, like: Any, source: random.Random) -> Any:
    if datatype == "BOOL":
        return source.random() < 0.5
    if datatype.startswith(("INT", "UINT")):
        return round(like * source.uniform(0.5, 1.0))  # towards zero, so it stays in the datatype's range
    return like if datatype == "BYTES" else round(like * source.uniform(0.5, 1.5), 4)


def random_scalar(datatype: str, source: random.Random) -> Any:
    if datatype == "BOOL":
        return source.random() < 0.5
    if datatype.startswith(("INT", "UINT")):
        return source.randrange(100)
    if datatype == "BYTES":
        return "".join(source.choices(string.ascii_lowercase, k=8))
    return round(source.gauss(0, 1), 6)


def flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for element in value:
            yield from flatten(element)
    else:
        yield value


def stacked(tensor: Tensor, rows: list[dict[str, Any]]) -> tuple[list[int], list[Any]]:
    """Shape and flat data of the rows' values of one input."""
    if not tensor.batched and len(rows) != 1:
        raise PayloadError(f"input {tensor.name!r} has no row dimension, so a request takes one row")
    data: list[Any] = []
    for row in rows:
        if tensor.name not in row:
            raise PayloadError(f"a row lacks the input {tensor.name!r}")
        data.extend(flatten(row[tensor.name]))
    inner = row_shape(tensor, len(data) // len(rows), rows[0][tensor.name])
    return ([len(rows), *inner] if tensor.batched else inner), data


def row_shape(tensor: Tensor, size: int, value: Any) -> list[int]:
    """One row's shape with the open dimensions filled in: from the nesting of the value, else from its size."""
    nested = []
    while isinstance(value, list):
        nested.append(len(value))
        value = value[0] if value else None
    known = math.prod(dimension for dimension in tensor.shape if dimension != -1)
    unknown = tensor.shape.count(-1)
    each = round((size // known) ** (1 / unknown)) if unknown and known else 0
    shape = [each if dimension == -1 else dimension for dimension in tensor.shape]
    if unknown and len(nested) == len(tensor.shape):
        shape = nested
    if math.prod(shape) != size:
        raise PayloadError(f"input {tensor.name!r} takes {list(tensor.shape)} a row, a row given has {size} values")
    return shape


def packed(datatype: str, values: Iterable[Any]) -> bytes:
    """Little-endian bytes of a tensor, as the binary tensor data extension has them; a missing float is NaN."""
    values = list(values)
    if datatype == "BYTES":
        encoded = [("" if value is None else value).encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    if datatype == "BF16":
        return b"".join(struct.pack("<f", nan(value))[2:] for value in values)
    if datatype in ("FP16", "FP32", "FP64"):
        values = [nan(value) for value in values]
    return struct.pack(f"<{len(values)}{PACKING[datatype]}", *values)


def nan(value: float | None) -> float:
    return float("nan") if value is None else value


def infer_path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}/infer"


def oip_json(model: str, inputs: list[Tensor], rows: list[dict[str, Any]]) -> Body:
    """An infer request with its tensors as JSON."""
    entries = []
    for tensor in inputs:
        if tensor.datatype in JSON_ONLY_BINARY:
            raise PayloadError(f"input {tensor.name!r} is {tensor.datatype}, which has no JSON form")
        shape, data = stacked(tensor, rows)
        entries.append({"name": tensor.name, "shape": shape, "datatype": tensor.datatype, "data": data})
    body = json.dumps({"inputs": entries}, separators=(",", ":")).encode()
    return Body(infer_path(model), body, {"Content-Type": "application/json"})


def oip_binary(model: str, inputs: list[Tensor], rows: list[dict[str, Any]]) -> Body:
    """An infer request with its tensors as bytes, asking for bytes back."""
    entries, blobs = [], []
    for tensor in inputs:
        shape, data = stacked(tensor, rows)
        blob = packed(tensor.datatype, data)
        blobs.append(blob)
        entries.append({"name": tensor.name, "shape": shape, "datatype": tensor.datatype,
                        "parameters": {"binary_data_size": len(blob)}})
    head = json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()
    return Body(infer_path(model), head + b"".join(blobs),
                {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))})


def records(model: str, inputs: list[Tensor], rows: list[dict[str, Any]]) -> Body:
    """A ``:predict`` request of named raw values."""
    body = json.dumps({"records": rows}, separators=(",", ":")).encode()
    return Body(f"/v1/models/{quote(model, safe='')}:predict", body, {"Content-Type": "application/json"})


def bodies(encode: Any, model: str, inputs: list[Tensor], rows: list[dict[str, Any]], per_request: int) -> list[Body]:
    """As many bodies as there are rows; each starts at another row."""
    taken = [[rows[(start + offset) % len(rows)] for offset in range(per_request)] for start in range(len(rows))]
    return [encode(model, inputs, chosen) for chosen in taken]



def hints(metadata: dict[str, Any], openapi: Any) -> Hints:
    """What the server says of a row: its OpenAPI document, where it has one, else the example in the properties.

    The document is read as fastinfer writes it: an example of the ``:predict`` request, and ``x-known-values`` in the
    schema of a record. Whatever is missing or of another form is left out.
    """
    name = metadata.get("name")
    record = member(openapi, "paths", f"/v1/models/{name}:predict", "post", "requestBody", "content",
                    "application/json", "example", "records", 0)
    if not isinstance(record, dict):
        try:
            record = json.loads(member(metadata, "properties", "example"))
        except (ValueError, TypeError):
            record = {}
    fields = member(openapi, "components", "schemas", f"{name}-record", "properties")
    known = {field: values for field, schema in (fields.items() if isinstance(fields, dict) else ())
             if isinstance(values := member(schema, "x-known-values"), list) and values}
    return Hints(record if isinstance(record, dict) else {}, known)


def member(document: Any, *path: str | int) -> Any:
    """The value at a path of a JSON document, None where there is none."""
    for step in path:
        try:
            document = document[step]
        except (KeyError, IndexError, TypeError):
            return None
    return document
