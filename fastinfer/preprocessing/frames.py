"""Raw columns out of what Python programs hold them in: frames, tables, dicts of columns, records, arrays."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastinfer.errors import InvalidRecordError
from fastinfer.preprocessing.spec import DATETIME, Column
from fastinfer.preprocessing.times import times_of


def columns_from(data: Any, columns: Sequence[Column], ignored: Sequence[str] = ()) -> dict[str, Any]:
    """Each raw column as the compiled program takes it.

    Args:
        data: a pandas, polars or Arrow frame, a mapping of column name to values, a list of records, or an array
            [rows, columns] in the order of ``columns``, or of what the pipeline was fitted on where that was an array.
        ignored: columns of that which the program does not read.

    Raises:
        InvalidRecordError: a column is missing, or a value is of a type that its column does not take.
    """
    if len(columns) == 1 and columns[0].datatype == "BYTES" and is_series(data):
        return {columns[0].name: as_datatype(columns[0], data)}
    if isinstance(data, np.ndarray):
        positions = array_positions(data, columns, ignored)
        return {column.name: as_datatype(column, data[:, i]) for i, column in zip(positions, columns, strict=True)}
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        return {column.name: as_datatype(column, recorded(data, column)) for column in columns}
    names = set(data if isinstance(data, Mapping) else getattr(data, "column_names", getattr(data, "columns", ())))
    for column in columns:
        if column.name not in names:
            raise InvalidRecordError(f"the column {column.name!r} is missing", f"$.{column.name}")
    return {column.name: as_datatype(column, data[column.name]) for column in columns}


def is_series(data: Any) -> bool:
    """Whether the data are one column by itself: a series, a list of texts, an array of one dimension."""
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        return len(data) > 0 and not isinstance(data[0], Mapping)
    return getattr(data, "ndim", 0) == 1 or type(data).__name__ in ("Series", "ChunkedArray")


def array_positions(data: np.ndarray[Any, Any], columns: Sequence[Column], ignored: Sequence[str]) -> Sequence[int]:
    """Where each column is in an array; columns without names are called x0, x1, … after their positions."""
    whole = {f"x{i}": i for i in range(len(columns) + len(ignored))}
    names = [column.name for column in columns]
    if data.ndim == 2 and data.shape[1] == len(whole) and whole.keys() == {*names, *ignored}:
        return [whole[name] for name in names]
    if data.ndim != 2 or data.shape[1] != len(columns):
        raise InvalidRecordError(f"an array of shape {data.shape}; the program takes [rows, {len(columns)}]")
    return range(len(columns))


def recorded(records: Sequence[Mapping[str, Any]], column: Column) -> list[Any]:
    """One field of every record; an absent one is missing."""
    return [record.get(column.name) for record in records]


def as_datatype(column: Column, values: Any) -> Any:
    """Values of one column: an array, or for text a list of str, None and NaN."""
    if column.dtype == DATETIME:
        return times_of(column, values)
    array = values if isinstance(values, np.ndarray) else to_array(values)
    if array.ndim != 1:
        raise InvalidRecordError(f"the column {column.name!r} has {array.ndim} dimensions", f"$.{column.name}")
    if column.datatype == "BYTES":
        # Only a column of objects tells None from NaN; elsewhere both are what the pipeline was fitted with.
        boxed = column.dtype == "object" and str(getattr(values, "dtype", "")) == "object"
        none = None if boxed or column.missing == "none" else math.nan
        return [value if isinstance(value, str) or is_nan(value) else none if value is None
                else text_of(column, value, i) for i, value in enumerate(array.tolist())]
    if column.datatype == "BOOL":
        return booleans(column, array)
    return numbers(column, array) if column.datatype == "FP64" else integers(column, array)


def to_array(values: Any) -> np.ndarray[Any, Any]:
    if hasattr(values, "to_numpy"):
        return np.asarray(values.to_numpy())
    values = list(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def is_missing(value: Any) -> bool:
    return value is None or is_nan(value) or type(value).__name__ == "NAType"


def wrong(column: Column, row: int, value: Any, wanted: str) -> InvalidRecordError:
    shown = "missing" if is_missing(value) else f"{type(value).__name__} {value!r}"
    return InvalidRecordError(f"row {row}, field {column.name!r}: {shown}, and the column takes {wanted}",
                              f"$.records[{row}].{column.name}")


def text_of(column: Column, value: Any, row: int) -> float:
    if is_missing(value):  # pandas.NA, which scikit-learn sees as NaN
        return math.nan
    raise wrong(column, row, value, "text")


def numbers(column: Column, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype.kind in "fiub":
        return array.astype(np.float64)
    result = np.empty(len(array))
    for i, value in enumerate(array.tolist()):
        if is_missing(value):
            result[i] = math.nan
        elif isinstance(value, (int, float, np.number, np.bool_)):
            result[i] = value
        else:
            raise wrong(column, i, value, "numbers")
    return result


def integers(column: Column, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype.kind in "iu" and array.dtype != np.uint64:
        return array.astype(np.int64)
    result = np.empty(len(array), dtype=np.int64)
    for i, value in enumerate(array.tolist()):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole and not (isinstance(value, (float, np.floating)) and float(value).is_integer()):
            raise wrong(column, i, value, "integers")
        if not -(2**63) <= value < 2**63:
            raise wrong(column, i, value, "integers of 64 bits")
        result[i] = int(value)
    return result


def booleans(column: Column, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype.kind == "b":
        return array
    for i, value in enumerate(array.tolist()):
        if not isinstance(value, (bool, np.bool_)):
            raise wrong(column, i, value, "true and false")
    return array.astype(bool)
