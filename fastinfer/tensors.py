"""A model's tensors out of what Python programs hold rows in, where no feature program makes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastinfer._core import DATATYPES, DTYPES, Tensor
from fastinfer.errors import InvalidInputError, InvalidRecordError, InvalidShapeError, InvalidValueError

Array = np.ndarray[Any, Any]


def tensors_from(data: Any, inputs: Sequence[Tensor], batched: bool = True) -> dict[str, Array]:
    """Each input as the runtime takes it: C-contiguous, of its own datatype.

    Args:
        data: a mapping of input name to values, a list of records, or a pandas, polars or Arrow frame with a column an
            input; for a model with one input also an array, or a frame or mapping whose columns are its features: by
            name where the model's file names them, else in order.

    Raises:
        InvalidInputError: an input is missing, or there is a name that is none.
        InvalidShapeError, InvalidValueError, InvalidRecordError: not what the input takes.
    """
    names = [tensor.name for tensor in inputs]
    features = inputs[0].features if len(inputs) == 1 else ()
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)) and data and isinstance(data[0], Mapping):
        if features and names[0] not in data[0]:
            return {names[0]: tensor_of(inputs[0], named_rows(data, features))}
        wide = len(inputs) == 1 and names[0] not in data[0] and is_wide(inputs[0], len(data[0]))
        data = {name: [field(record, row, name) for row, record in enumerate(data)]
                for name in (data[0] if wide else names)}
    given = column_names(data)
    if given is None:
        if len(inputs) != 1:
            raise InvalidInputError(f"the model has the inputs {', '.join(map(repr, names))}: give each by its name")
        return {names[0]: tensor_of(inputs[0], data, batched)}
    if len(inputs) == 1 and names[0] not in given and is_wide(inputs[0], len(given)):
        order = given if set(features).isdisjoint(given) else features
        absent = [name for name in order if name not in given]
        if absent:
            raise InvalidInputError(f"the feature {absent[0]!r} is missing; there is "
                                    f"{', '.join(map(repr, given[:8]))}", f"$.{absent[0]}")
        columns = [numbers(inputs[0], data[name], name) for name in order]
        return {names[0]: tensor_of(inputs[0], np.stack(columns, axis=1) if columns else columns, batched)}
    absent = [name for name in names if name not in given]
    if absent:
        raise InvalidInputError(f"the input {absent[0]!r} is missing; there is {', '.join(map(repr, given[:8]))}",
                                f"$.{absent[0]}")
    arrays = {tensor.name: tensor_of(tensor, data[tensor.name], batched) for tensor in inputs}
    rows = {len(array) for array in arrays.values()}
    if batched and len(rows) > 1:
        raise InvalidShapeError(f"the inputs have {', '.join(map(str, sorted(rows)))} rows")
    return arrays


def column_names(data: Any) -> list[str] | None:
    """What its columns are called; None for an array or a list."""
    if isinstance(data, Mapping):
        return list(data)
    names = getattr(data, "column_names", getattr(data, "columns", None))
    return None if names is None else list(names)


def named_rows(records: Sequence[Mapping[str, Any]], features: Sequence[str]) -> Array:
    """Rows of records that have features by their names; what they leave out is missing."""
    known = set(features)
    for row, record in enumerate(records):
        strange = next((name for name in record if name not in known), None)
        if strange is not None or not record:
            raise InvalidRecordError(f"record {row} has the unknown field {strange!r}" if record else
                                     f"record {row} has no field", f"$.records[{row}]")
    nothing = float("nan")
    rows = [[nothing if record.get(name) is None else record[name] for name in features] for record in records]
    return as_array(rows)


def field(record: Mapping[str, Any], row: int, name: str) -> Any:
    if name not in record:
        raise InvalidRecordError(f"record {row} lacks the field {name!r}", f"$.records[{row}]")
    return record[name]


def is_wide(tensor: Tensor, columns: int) -> bool:
    """Whether so many columns of single values are rows of the tensor."""
    return len(tensor.shape) == 2 and tensor.shape[1] in (columns, -1)


def tensor_of(tensor: Tensor, values: Any, batched: bool = True) -> Array:
    """Values, nested as the tensor's shape; where it holds one value a row, flat ones too."""
    array = numbers(tensor, values, tensor.name)
    row = tensor.shape[1:] if batched else tensor.shape
    if batched and array.ndim == 1 and row == (1,):
        array = array[:, None]
    if batched and array.ndim == 2 and row == () and array.shape[1] == 1:
        array = array[:, 0]
    inner = array.shape[1:] if batched else array.shape
    if len(inner) != len(row) or (batched and not array.ndim) or any(
            want not in (-1, have) for want, have in zip(row, inner, strict=True)):
        raise InvalidShapeError(f"input {tensor.name!r} takes shape {list(tensor.shape)}, got {list(array.shape)}")
    return np.ascontiguousarray(array)


def numbers(tensor: Tensor, values: Any, name: str) -> Array:
    """Values as an array of the tensor's dtype, where they are of its kind and in its range; text as str."""
    array = values if isinstance(values, np.ndarray) else as_array(values)
    if not array.ndim and tensor.shape:
        raise InvalidShapeError(f"input {name!r} takes rows, got a single {type(values).__name__}")
    if array.dtype == object and tensor.datatype != "BYTES":
        array = unboxed(tensor, array, name)
    dtype = np.dtype(DTYPES[DATATYPES.index(tensor.datatype)])
    if tensor.datatype == "BYTES":
        return texts(array, name)
    if array.dtype == dtype:
        return array
    takes = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}[dtype.kind] if tensor.datatype != "BF16" else ""
    if array.size and array.dtype.kind not in takes:
        raise InvalidValueError(f"input {name!r} takes {tensor.datatype}, got an array of {array.dtype}")
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    outside = np.isinf(cast) & ~np.isinf(array) if dtype.kind == "f" else cast != array
    if dtype.kind in "iu" and array.dtype.kind in "iu":
        outside |= (cast < 0) != (array < 0)
    if outside.any():
        place = np.argwhere(outside)[0]
        raise InvalidValueError(f"input {name!r}, row {place[0]}: {array[tuple(place)]} is out of range for "
                                f"{tensor.datatype}")
    return cast


def as_array(values: Any) -> Array:
    if hasattr(values, "__array__"):
        try:
            return np.asarray(values)
        except Exception:  # a type that numpy has not, such as integers of 128 bits in polars
            values = list(values)
    try:
        return np.array(values)
    except ValueError:  # rows of several lengths
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array


def unboxed(tensor: Tensor, array: Array, name: str) -> Array:
    """A column of objects: numbers in a mixed frame, or an array a row."""
    listed = array.tolist()
    for row, value in enumerate(listed):
        if value is None or isinstance(value, (str, bytes)):
            shown = "missing" if value is None else f"the text {value[:80]!r}"
            raise InvalidValueError(f"input {name!r}, row {row}: {shown}, and it takes {tensor.datatype}")
    try:
        return np.array(listed)
    except ValueError:
        raise InvalidShapeError(f"input {name!r}: rows of different shapes") from None


def texts(array: Array, name: str) -> Array:
    if array.dtype.kind == "U" or (array.size == 0 and array.dtype.kind == "f"):
        array = array.astype(object)
    flat = np.array(array, dtype=object).ravel()
    for row, value in enumerate(flat):
        if not isinstance(value, str):
            raise InvalidValueError(f"input {name!r}, row {row}: {type(value).__name__}, and it takes text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidValueError(f"input {name!r}, row {row}: a text that is not valid Unicode") from None
    return np.asarray(array, dtype=object)
