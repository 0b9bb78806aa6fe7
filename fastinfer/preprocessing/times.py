"""Dates and times out of what Python programs hold them in, and dates at which their parts change."""

from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fastinfer.errors import InvalidRecordError
from fastinfer.preprocessing.spec import Column

NO_TIME: Final = np.iinfo(np.int64).min  # numpy's NaT
FINER: Final = ("ns", "ps", "fs", "as")  # numpy's units below a microsecond
FIRST, LAST = np.datetime64("0001-01-01", "us"), np.datetime64("9999-12-31T23:59:59.999999", "us")
# Each month, weekday and hour; the ends of months, quarters and years, of leap years too; weeks of the year before and
# after; every way to write one. No two fall on the same moment.
TELLING_DATES: Final = (
    "2024-02-29", "2023-02-28T23:59:59.999999Z", "2023-03-01 00:00:00", "1900-02-28T12:00", "2000-02-29T05:06:07.89",
    "1970-01-01", "1969-12-31T23:59:59.999999", "0001-01-01", "9999-12-31T23:59:59.999999Z", "2024-12-30T01:00:00",
    "2021-01-03T02:30:00+02:30", "2020-12-31T21:00:00-03:00", "2026-01-01T03:04:05+14:00", "2025-03-31T04:00:00Z",
    "2025-04-01t06:15:00z", "2025-04-30T07:00:00", "2025-05-31T08:00:00", "2025-06-30T09:00:00", "2025-07-01T10:00:00",
    "2025-08-03T11:30:30.5", "2025-09-30T13:00:00", "2025-10-01T14:00:00", "2025-11-30T15:00:00.123456789",
    "2025-12-31T16:00:00", "2024-12-31T17:00:00", "2024-01-01T18:45:00", "2022-10-15 19:00:00+05:45",
    "2022-11-16T20:00:00", "2022-12-17T22:00:59", "2262-04-12T00:00:00.000001", "1677-09-20T00:00:00.3",
    "4321-09-08T07:06:05.432101",
)


def shown(value: Any) -> str:
    """A value as Python writes it, cut short where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "of too many digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def times_of(column: Column, values: Any) -> npt.NDArray[np.int64] | list[str | None]:
    """Values of a column of dates, as the compiled core takes them.

    Args:
        values: an array of datetime64, a series of timestamps of pandas, polars or Arrow (with a time zone or without),
            or any sequence of datetime, date, numpy.datetime64, text and missing values.

    Returns:
        array [rows], int64: microseconds since 1970-01-01 in UTC; or texts, which the core reads itself.

    Raises:
        InvalidRecordError: a value is neither, or outside the years 1 to 9999.
    """
    if getattr(getattr(values, "dtype", None), "tz", None) is not None:  # pandas would make an array of objects
        values = getattr(values, "dt", values).tz_convert(None)
    array = values
    if hasattr(values, "to_numpy"):
        with suppress(Exception):  # a type that numpy has not: its values are refused one by one
            array = np.asarray(values.to_numpy())
    if not isinstance(array, np.ndarray):
        array = np.fromiter(array, dtype=object)
    if array.ndim != 1:
        raise InvalidRecordError(f"the column {column.name!r} has {array.ndim} dimensions", f"$.{column.name}")
    if array.dtype.kind == "M":
        return microseconds(column, array)
    return [text_of(column, value, i) for i, value in enumerate(array.tolist())]


def microseconds(column: Column, array: npt.NDArray[np.datetime64]) -> npt.NDArray[np.int64]:
    """The same moments, cut off to whole microseconds."""
    missing = np.isnat(array)
    unit = np.datetime_data(array.dtype)[0]
    if unit == "generic":  # nothing but missing values
        return np.full(len(array), NO_TIME)
    if unit in FINER:
        array = array.astype("datetime64[us]")
    low, high = (bound.astype(array.dtype) for bound in (FIRST, LAST))
    outside = np.flatnonzero(~missing & ((array < low) | (array > high)))
    if len(outside):
        raise refused(column, int(outside[0]), str(array[outside[0]]))
    found: npt.NDArray[np.int64] = array.astype("datetime64[us]").view(np.int64)
    return found


def refused(column: Column, row: int, shown: str) -> InvalidRecordError:
    return InvalidRecordError(f"row {row}, field {column.name!r}: {shown}, and the column takes dates, datetimes and "
                              "their texts, of the years 1 to 9999 in UTC", f"$.records[{row}].{column.name}")


def text_of(column: Column, value: Any, row: int) -> str | None:
    if isinstance(value, str):
        return value
    if value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, np.datetime64):
        if np.isnat(value):
            return None
        return str(microseconds(column, np.array([value])).view("datetime64[us]")[0])
    if isinstance(value, datetime):
        try:
            return (value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)).isoformat()
        except OverflowError:
            raise refused(column, row, repr(value)) from None
    if isinstance(value, date):
        return value.isoformat()
    raise refused(column, row, f"{type(value).__name__} {shown(value)}")
