"""Raw columns out of what Python programs hold them in: frames, tables, dicts of columns, records, arrays.

The compiled core reads most of it as it lies (`Columns`). What it does not take goes through `as_datatype`, value by
value, which says what is wrong with it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from fastinfer._core import Columns, Signature
from fastinfer.errors import InvalidRecordError
from fastinfer.preprocessing.spec import DATETIME, Column
from fastinfer.preprocessing.times import shown, times_of

LIBRARIES: Final = ("pandas", "polars", "pyarrow", "narwhals")  # whose frames give their columns by name
EXACT: Final = 2**53  # as far as every whole number is a float64
FEW: Final = 64  # rows of a series that are sooner made objects than handed over as Arrow's


class Layout:
    """The raw columns of a program, as `columns_from` needs them.

    Attributes:
        ignored: columns that the pipeline was fitted on and the program does not read.
        absent: columns whose missing values are fields that a record does not have.
        objects: for each column 1 where the pipeline was fitted on Python objects, else 0.
    """

    def __init__(self, signature: Signature, columns: Sequence[Column], ignored: Sequence[str],
                 absent: Sequence[str] = ()) -> None:
        self.signature, self.columns, self.ignored, self.absent = signature, columns, ignored, absent
        self.objects = bytes([column.dtype == "object" for column in columns])


def columns_from(data: Any, layout: Layout) -> Columns:
    """Each raw column as the compiled program takes it.

    Args:
        data: a pandas, polars or Arrow frame, or another that exports Arrow's C data interface; a mapping of column
            name to values; a list of records, or of rows in the order of the columns; or an array [rows, columns] in
            that order. Where the pipeline was fitted on an array, rows may have all of its columns.

    Raises:
        InvalidRecordError: a column is missing, or a value is of a type that its column does not take.
    """
    taken = Columns(layout.signature, layout.objects)
    if layout.absent and isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        if all(map(is_pairs, data)):
            data = [record_of(row, f"row {i}") for i, row in enumerate(data)]
        refuse_nan(data, layout.absent)
    if type(data) is list and data and type(data[0]) is dict:
        for i in taken.take_records(data):
            settle(taken, i, layout.columns[i], recorded(data, layout.columns[i]))
        return taken
    if len(layout.columns) == 1 and layout.columns[0].datatype == "BYTES" and is_series(data):
        offer(taken, 0, layout.columns[0], data)
        return taken
    if isinstance(data, np.ndarray):
        data = refuse_masked(data)
        positions = array_positions(data.shape, layout)
        for i in taken.take_matrix(data, positions):
            offer(taken, i, layout.columns[i], data[:, positions[i]])
        return taken
    columns = rows_of(data, layout) if isinstance(data, Sequence) and not isinstance(data, (str, bytes)) \
        else data if isinstance(data, Mapping) else frame_of(data)
    left: Any = range(len(layout.columns))
    names = set(columns if isinstance(columns, Mapping) else column_names(columns, layout))
    for column in layout.columns:
        if column.name not in names:
            raise InvalidRecordError(f"the column {column.name!r} is missing", f"$.{column.name}")
    if type(columns) is dict:
        left = taken.take_mapping(columns)
    elif not isinstance(columns, Mapping) and hasattr(columns, "__arrow_c_stream__") and not is_pandas(columns):
        left = taken.take_frame(columns)
    for i in left:
        offer(taken, i, layout.columns[i], columns[layout.columns[i].name])
    return taken


def frame_of(data: Any) -> Any:
    """A frame whose columns can be had by name.

    Raises:
        InvalidRecordError: it is none.
    """
    kind = type(data)
    if kind.__name__ == "LazyFrame":
        raise InvalidRecordError("a LazyFrame, which has no values yet; collect() it")
    if hasattr(data, "__getitem__") and kind.__module__.partition(".")[0] in LIBRARIES:
        return data
    if hasattr(data, "__arrow_c_stream__"):  # what else exports its columns as Arrow's
        try:
            from pyarrow import table
        except ImportError:
            raise InvalidRecordError(f"to read a {kind.__name__}, pyarrow is needed: pip install pyarrow") from None
        return table(data)
    if hasattr(data, "__getitem__") and (hasattr(data, "columns") or hasattr(data, "column_names")):
        return data
    raise InvalidRecordError(f"{kind.__name__} is no frame of pandas, polars or Arrow, nor does it export Arrow's C "
                             "stream; nor is it a dict of columns, a list of records or an array")


def column_names(frame: Any, layout: Layout) -> list[Any]:
    """The names of a frame's columns.

    Raises:
        InvalidRecordError: two columns that are read have one name.
    """
    names = list(frame.column_names if hasattr(frame, "column_names") else frame.columns)
    if len(set(names)) < len(names):
        for column in layout.columns:
            if names.count(column.name) > 1:
                raise InvalidRecordError(f"the column {column.name!r} stands twice", f"$.{column.name}")
    return names


def is_pandas(data: Any) -> bool:
    return type(data).__module__.partition(".")[0] == "pandas"


def is_series(data: Any) -> bool:
    """Whether the data are one column by itself: a series, a list of texts, an array of one dimension."""
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        return len(data) > 0 and not isinstance(data[0], (Mapping, list, tuple))
    if getattr(data, "ndim", 0) == 1 or type(data).__name__ in ("Series", "ChunkedArray"):
        return True
    return hasattr(data, "__arrow_c_array__") and not hasattr(data, "schema")


def refuse_masked(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if isinstance(array, np.ma.MaskedArray):
        raise InvalidRecordError("a masked array; fill its values, or take NaN where they are missing")
    return np.asarray(array)


def array_positions(shape: tuple[int, ...], layout: Layout) -> Sequence[int]:
    """Where each column is in rows; columns without names are called x0, x1, … after their positions."""
    whole = {f"x{i}": i for i in range(len(layout.columns) + len(layout.ignored))}
    names = [column.name for column in layout.columns]
    if len(shape) == 2 and shape[1] == len(whole) and whole.keys() == {*names, *layout.ignored}:
        return [whole[name] for name in names]
    if len(shape) != 2 or shape[1] != len(names):
        raise InvalidRecordError(f"an array of shape {shape}; the program takes [rows, {len(names)}]")
    return range(len(names))


def rows_of(rows: Sequence[Any], layout: Layout) -> dict[str, list[Any]]:
    """Columns of records, or of rows in the order of the columns."""
    if all(isinstance(row, Mapping) for row in rows):
        return {column.name: recorded(rows, column) for column in layout.columns}
    for i, row in enumerate(rows):
        if not isinstance(row, (list, tuple)) or len(row) != len(rows[0]):
            says = f"row {i}: {type(row).__name__}, and rows are records, or lists as long as the first"
            raise InvalidRecordError(says, f"$.records[{i}]")
    positions = array_positions((len(rows), len(rows[0])), layout)
    return {column.name: [row[i] for row in rows] for i, column in zip(positions, layout.columns, strict=True)}


def is_pairs(row: Any) -> bool:
    """Whether a row is a list of fields, each a name and a value."""
    return isinstance(row, (list, tuple)) and all(
        isinstance(field, (list, tuple)) and len(field) == 2 and isinstance(field[0], str) for field in row)


def record_of(row: Any, place: str) -> dict[str, Any]:
    """The fields of a row, as a FeatureHasher takes them in pairs.

    Raises:
        InvalidRecordError: they are none, or two have one name, which only the hasher can add up.
    """
    if not is_pairs(row):
        raise InvalidRecordError(f"{place}: {type(row).__name__}, and the hasher takes pairs of a name and a value")
    fields = dict(row)
    if len(fields) < len(row):
        raise InvalidRecordError(f"{place}: two fields have one name")
    return fields


def refuse_nan(records: Sequence[Any], names: Sequence[str]) -> None:
    """FeatureHasher hashes a field that is NaN, and makes NaN of it; no value of a column can say so."""
    for i, record in enumerate(records):
        for name in names:
            if isinstance(record, Mapping) and is_nan(record.get(name)):
                says = f"row {i}, field {name!r}: NaN, which is not hashed; leave the field out where it is missing"
                raise InvalidRecordError(says, f"$.records[{i}].{name}")


def recorded(records: Sequence[Mapping[str, Any]], column: Column) -> list[Any]:
    """One field of every record; an absent one is missing."""
    for i, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise InvalidRecordError(f"row {i}: {type(record).__name__}, not a record", f"$.records[{i}]")
    return [record.get(column.name) for record in records]


def offer(taken: Columns, i: int, column: Column, values: Any) -> None:
    """Give a column to the compiled core, as it is held where that can be."""
    dtype = getattr(values, "dtype", None)
    if is_pandas(values) and hasattr(values, "array"):
        if type(dtype).__name__ == "CategoricalDtype":
            codes, categories = values.array.codes, values.array.categories.tolist()
            if not taken.take_codes(i, codes, categories):
                settle(taken, i, column, values)
            return
        if not taken.take(i, pandas_values(values, dtype, column), nan=True):
            settle(taken, i, column, values)
    elif isinstance(values, np.ma.MaskedArray):
        refuse_masked(values)
    elif isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__"):
        says = f"the column {column.name!r} is {type(values).__name__}; it takes a list, an array or a series of values"
        raise InvalidRecordError(says, f"$.{column.name}")
    elif not taken.take(i, values):
        settle(taken, i, column, values)


def pandas_values(values: Any, dtype: Any, column: Column) -> Any:
    """A series as the compiled core can read it, or as an array of objects."""
    if isinstance(dtype, np.dtype):
        return values.to_numpy()
    if getattr(dtype, "storage", "") == "pyarrow" or type(dtype).__name__ == "ArrowDtype":
        return values if len(values) > FEW and hasattr(values, "__arrow_c_stream__") else values.to_numpy()
    if getattr(dtype, "kind", "O") in "iufb" and hasattr(dtype, "numpy_dtype"):  # with a mask
        if column.datatype == "FP64":
            return values.to_numpy(dtype=np.float64, na_value=math.nan)
        if not values.hasnans:
            return values.to_numpy(dtype=dtype.numpy_dtype)
    return values.to_numpy()


def settle(taken: Columns, i: int, column: Column, values: Any) -> None:
    """Give a column to the compiled core, value by value."""
    plain = as_datatype(column, values)
    if not taken.take(i, plain, True):
        row = next(row for row, value in enumerate(plain) if isinstance(value, str) and not is_unicode(value))
        raise InvalidRecordError(f"row {row}, field {column.name!r}: a text that is not valid Unicode",
                                 f"$.records[{row}].{column.name}")


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_datatype(column: Column, values: Any) -> Any:
    """Values of one column: an array, or for text a list of str, None and NaN."""
    if column.dtype == DATETIME:
        return times_of(column, values)
    array = values if isinstance(values, np.ndarray) else to_array(values)
    if array.dtype.kind == "c" or array.dtype.names:
        raise InvalidRecordError(f"the column {column.name!r} is of dtype {array.dtype}", f"$.{column.name}")
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
    kind = str(getattr(values, "type", ""))
    if kind.startswith("dictionary<"):  # pyarrow's to_numpy of a dictionary loses what is missing
        values = values.cast(values.type.value_type)
    elif kind.startswith("run_end_encoded<"):
        from pyarrow.compute import run_end_decode

        values = run_end_decode(values)
    if hasattr(values, "to_numpy"):
        copies = {"zero_copy_only": False} if hasattr(values, "__arrow_c_array__") else {}
        try:
            return np.asarray(values.to_numpy(**copies))
        except Exception:  # noqa: S110 - a type that numpy has not, such as integers of 128 bits in polars
            pass
    values = list(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def is_missing(value: Any) -> bool:
    return value is None or is_nan(value) or type(value).__name__ == "NAType"


def wrong(column: Column, row: int, value: Any, wanted: str) -> InvalidRecordError:
    told = "missing" if is_missing(value) else f"{type(value).__name__} {shown(value)}"
    return InvalidRecordError(f"row {row}, field {column.name!r}: {told}, and the column takes {wanted}",
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
        elif isinstance(value, (int, float, np.number, np.bool_)) and not isinstance(value, np.complexfloating):
            try:
                result[i] = value
            except OverflowError:
                raise wrong(column, i, value, "numbers within float64") from None
        else:
            raise wrong(column, i, value, "numbers")
    return result


def integers(column: Column, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype.kind in "iu" and array.dtype != np.uint64:
        return array.astype(np.int64)
    result = np.empty(len(array), dtype=np.int64)
    for i, value in enumerate(array.tolist()):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole and not (isinstance(value, (float, np.floating)) and float(value).is_integer()
                              and abs(float(value)) <= EXACT):
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
