"""What estimators of Python libraries answer, as the outputs that a model declares: label, probabilities, value."""

from pathlib import Path
from typing import Any

import numpy as np

from fastinfer._core import Tensor
from fastinfer.errors import ModelLoadError

Array = np.ndarray[Any, Any]
LABELS = {"i": "INT64", "u": "INT64", "b": "BOOL", "f": "FP64", "U": "BYTES", "O": "BYTES"}
NUMBERS = {"float64": "FP64", "float32": "FP32"}
DTYPES: dict[str, Any] = {"INT64": np.int64, "BOOL": np.bool_, "FP64": np.float64, "FP32": np.float32}


def datatype(array: Array, path: Path) -> str:
    """The datatype of an answer.

    Raises:
        ModelLoadError: there is none for it.
    """
    kind = LABELS.get(array.dtype.kind)
    if kind is None or (kind == "BYTES" and not all(isinstance(each, str) for each in array.flat)):
        raise ModelLoadError(f"{path}: predict answers an array of {array.dtype}, which is not served.")
    return NUMBERS.get(array.dtype.name, kind)


def classifier(label: Array, probabilities: Array | None, path: Path) -> list[Tensor]:
    """A classifier's outputs, by what it answered; several labels a row are called so."""
    outputs = [Tensor("label" if label.ndim == 1 else "labels", datatype(label, path), (-1, *label.shape[1:]))]
    if probabilities is not None:
        outputs.append(Tensor("probabilities", datatype(probabilities, path), (-1, *probabilities.shape[1:])))
    return outputs


def other(value: Array, path: Path) -> list[Tensor]:
    """The output of a regressor, or of what numbers clusters and outliers."""
    if value.dtype.kind == "f":
        return [Tensor("value", datatype(value, path), (-1, *(value.shape[1:] or (1,))))]
    return [Tensor("label", datatype(value, path), (-1, *value.shape[1:]))]


def shaped(tensor: Tensor, array: Array) -> Array:
    """An answer as declared: of the declared type where integers are of another size."""
    if tensor.name == "value" and array.ndim == 1:
        array = array[:, None]
    if tensor.datatype == "BYTES":
        return np.array(array, dtype=object)
    return np.ascontiguousarray(array, dtype=DTYPES[tensor.datatype])
