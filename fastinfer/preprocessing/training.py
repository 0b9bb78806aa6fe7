"""Training data: the columns of a frame, and what each of them holds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from fastinfer.errors import ConfigurationError
from fastinfer.options import nearest
from fastinfer.preprocessing.frames import is_missing, to_array
from fastinfer.preprocessing.times import shown

Holds = Literal["number", "integer", "bool", "text", "date"]
NUMBERS: Final = (int, float, np.integer, np.floating)


@dataclass(frozen=True, slots=True)
class Training:
    """One column of the training data.

    Attributes:
        held: as the frame has it.
        values: array [rows]: numbers or booleans in their own dtype, text as objects with NaN where it is missing;
            nothing of dates, which are left as they are.
        holds: what the values are.
    """

    held: Any
    values: npt.NDArray[Any]
    holds: Holds


class Table:
    """The columns of a pandas, polars or Arrow frame, a dict of columns, a list of records, or an array."""

    def __init__(self, data: Any) -> None:
        self.array = isinstance(data, np.ndarray)
        if isinstance(data, np.ndarray):
            if data.ndim != 2:
                raise ConfigurationError(f"an array of shape {data.shape}; training data are [rows, columns]")
            data = {f"x{i}": data[:, i] for i in range(data.shape[1])}
        elif isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
            if not all(isinstance(record, Mapping) for record in data):
                raise ConfigurationError("a list of training data holds records, each a dict of its fields")
            names = dict.fromkeys(name for record in data for name in record)
            data = {name: [record.get(name) for record in data] for name in names}
        self.data = data
        found = data if isinstance(data, Mapping) else getattr(data, "column_names", getattr(data, "columns", None))
        if found is None:
            raise ConfigurationError(f"training data are a frame, a dict of columns, records or an array, not "
                                     f"{type(data).__name__}")
        self.names = [name for name in found if isinstance(name, str)]

    def held(self, name: str, path: str) -> Any:
        """A column as it is held.

        Raises:
            ConfigurationError: there is none of that name; the message names the nearest.
        """
        if name not in self.names:
            shown = ", ".join(self.names[:20]) + (", …" if len(self.names) > 20 else "")
            raise ConfigurationError(f"{path}: the data have no column {name!r}.{nearest(name, self.names)} They have "
                                     f"{shown or 'none'}", path)
        return self.data[name]


def training_column(held: Any, name: str, path: str, *, dates: bool) -> Training:
    """A column and what it holds; with ``dates`` its text is dates.

    Raises:
        ConfigurationError: it holds what no column of a program takes.
    """
    if getattr(getattr(held, "dtype", None), "tz", None) is not None:
        return Training(held, np.empty(0), "date")
    array = held if isinstance(held, np.ndarray) else to_array(held)
    if not len(array):
        raise refused(path, name, "it has no rows")
    if array.ndim != 1:
        raise refused(path, name, f"it has {array.ndim} dimensions")
    if array.dtype.kind == "M":
        return Training(held, np.empty(0), "date")
    if array.dtype == np.float16:
        raise refused(path, name, "it is of dtype float16; make it float32 or float64")
    if array.dtype.kind in "bf":
        # scikit-learn makes float64 of a dtype of pandas' own, such as Float32.
        foreign = hasattr(held, "array") and not isinstance(held.dtype, np.dtype)
        narrow = array.dtype.kind == "f" and array.dtype.itemsize == 4 and not foreign
        wide = array if narrow or array.dtype.kind == "b" else array.astype(np.float64)
        return Training(held, wide, "bool" if array.dtype.kind == "b" else "number")
    if array.dtype.kind in "iu":
        return Training(held, array, "integer" if array.dtype != np.uint64 else "number")
    if array.dtype.kind not in "OU":
        raise refused(path, name, f"it is of dtype {array.dtype}; make it text, numbers, booleans or dates")
    values = [math.nan if is_missing(value) or type(value).__name__ == "NaTType" else value for value in array.tolist()]
    present = [value for value in values if not isinstance(value, float) or not math.isnan(value)]
    if not present:
        raise refused(path, name, "every value is missing")
    if all(isinstance(value, (date, np.datetime64)) for value in present):
        return Training(held, np.empty(0), "date")
    if all(isinstance(value, str) for value in present):
        return Training(held, objects(values), "date" if dates else "text")
    if all(isinstance(value, (bool, np.bool_)) for value in present):
        if len(present) < len(values):
            raise refused(path, name, "it holds booleans and missing values; make it text or numbers")
        return Training(held, np.array(values, dtype=bool), "bool")
    if all(isinstance(value, NUMBERS) and not isinstance(value, bool) for value in present):
        whole = len(present) == len(values) and all(isinstance(value, (int, np.integer)) for value in values)
        if whole and all(-(2**63) <= value < 2**63 for value in values):
            return Training(held, np.array(values, dtype=np.int64), "integer")
        try:
            return Training(held, np.array(values, dtype=np.float64), "number")
        except OverflowError:
            raise refused(path, name, "it holds a whole number beyond float64") from None
    other = next((value for value in present if type(value) is not type(present[0])), present[0])
    raise refused(path, name, f"it holds {type(other).__name__}, among others {shown(other)}; make it all text, "
                              "numbers, booleans or dates")


def refused(path: str, name: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"{path}: the column {name!r} cannot be used: {why}", path)


def objects(values: Sequence[Any]) -> npt.NDArray[Any]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
