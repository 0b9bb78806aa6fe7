"""A spec as the JSON values of features.json; `spec.parse` of them is the spec again."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from fastinfer.preprocessing import vectors
from fastinfer.preprocessing.spec import DATETIME, OPERATIONS, Spec
from fastinfer.preprocessing.vectors import Run

SECOND_FORMAT: Final = ("date_part", "bucket", "embed")  # operations that format 1 does not have


def plain_number(value: float) -> float | int | str:
    """A number as `Place.number` reads it; integral floats stay floats, so that -0.0 survives."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return vectors.packed(value)
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return plain_number(value) if isinstance(value, float) else value


def format_of(spec: Spec) -> int:
    """The lowest format that has all that the spec uses, so that an older reader takes what it understands."""
    dated = any(column.dtype == DATETIME for column in spec.columns)
    return 2 if dated or any(step.op in SECOND_FORMAT for step in spec.steps) else 1


def document(spec: Spec) -> dict[str, Any]:
    """The spec as JSON values; `parse` of it is the spec again."""
    columns = []
    for column in spec.columns:
        entry: dict[str, Any] = {"name": column.name, "datatype": column.datatype, "dtype": column.dtype,
                                 "nullable": column.nullable}
        if column.datatype == "BYTES" and column.dtype != DATETIME:
            entry["missing"] = column.missing
        if column.categories:
            entry["categories"] = plain(column.categories)
        if column.example is not None:
            entry["example"] = plain(column.example)
        if column.range is not None:
            entry["range"] = plain(column.range)
        columns.append(entry)
    steps = []
    for step in spec.steps:
        entry = {"op": step.op, "from": list(step.sources)}
        if OPERATIONS[step.op].result:
            entry["to"] = list(step.targets)
        known = (*OPERATIONS[step.op].required, *OPERATIONS[step.op].optional)
        entry |= {key: plain(step.parameters[key]) for key in known if key in step.parameters}
        steps.append({**entry, **({"path": step.path} if step.path else {})})
    output = {"dtype": spec.output.dtype, "allow": spec.output.allow,
              **({"sparse": True} if spec.output.sparse else {}), "features": [
                  part.document() if isinstance(part, Run) else {"name": part[0], "value": part[1]}
                  for part in spec.output.features.parts]}
    result: dict[str, Any] = {"fastinfer": format_of(spec), "columns": columns, "steps": steps, "output": output}
    if spec.ignored:
        result["ignored"] = list(spec.ignored)
    if spec.task is not None:
        result["task"] = plain(spec.task)
    if spec.certificate is not None:
        result["certificate"] = plain(spec.certificate)
    return result
