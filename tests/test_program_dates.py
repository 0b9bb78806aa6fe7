"""Columns of dates: text and whatever frames hold, against Python's datetime."""

import json
import math
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfer._core import TIME_PART_NAMES
from fastinfer.errors import ConfigurationError, InvalidRecordError
from fastinfer.preprocessing.program import Program
from fastinfer.preprocessing.times import TELLING_DATES

QUICK = settings(max_examples=150, deadline=None)


def document(nullable: bool = True, parts: tuple[str, ...] = TIME_PART_NAMES) -> dict[str, Any]:
    return {
        "fastinfer": 2,
        "columns": [{"name": "when", "datatype": "BYTES", "dtype": "datetime", "nullable": nullable,
                     "example": "2024-02-29"}],
        "steps": [{"op": "date_part", "from": ["when"], "to": [part], "part": part} for part in parts],
        "output": {"dtype": "float64", "allow": "any",
                   "features": [{"name": part, "value": part} for part in parts]},
    }


PROGRAM = Program.from_json(json.dumps(document()))
SECONDS = Program.from_json(json.dumps(document(parts=("seconds",))))


def parts_of(moment: datetime) -> list[float]:
    return [reference.date_part(moment, part) for part in TIME_PART_NAMES]


@st.composite
def written(draw: st.DrawFn) -> str:
    """A date, or a date and a time in any of the ways that are taken."""
    moment = draw(st.datetimes())
    text = f"{moment.year:04}-{moment.month:02}-{moment.day:02}"
    if draw(st.booleans()):
        text += draw(st.sampled_from("Tt ")) + f"{moment:%H:%M}"
        if draw(st.booleans()):
            text += f":{moment:%S}"
            if draw(st.booleans()):
                text += "." + draw(st.text("0123456789", min_size=1, max_size=12))
        offsets = st.builds("{}{:02}:{:02}".format, st.sampled_from("+-"), st.integers(0, 23), st.integers(0, 59))
        text += draw(st.sampled_from(["", "Z", "z"]) | offsets)
    return text


@QUICK
@given(st.lists(written(), min_size=1, max_size=8))
def test_parts_are_those_of_python_datetime(texts: list[str]) -> None:
    taken = []
    for text in texts:
        try:
            taken.append((text, reference.instant(text)))
        except reference.Refused:
            with pytest.raises(InvalidRecordError, match="outside the years 1 to 9999 in UTC"):
                PROGRAM.transform({"when": [text]})
    if taken:
        got = PROGRAM.transform({"when": [text for text, _ in taken]})
        assert got.tolist() == [parts_of(moment) for _, moment in taken]


@QUICK
@given(st.data())
def test_what_is_nearly_a_date_is_taken_or_refused_alike(data: st.DataObject) -> None:
    text = data.draw(written())
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(text)))
        piece = data.draw(st.sampled_from(["", *"0123456789-:T .Z+٣\0"]))
        text = text[:i] + piece + text[i + data.draw(st.integers(0, 1)):]
    try:
        expected = parts_of(reference.instant(text)) if text else [math.nan] * len(TIME_PART_NAMES)
    except reference.Refused:
        with pytest.raises(InvalidRecordError) as refused:
            PROGRAM.transform([{"when": "2024-01-01"}, {"when": text}])
        assert refused.value.at == "$.records[1].when"
        return
    np.testing.assert_array_equal(PROGRAM.transform({"when": [text]})[0], expected)


@pytest.mark.parametrize("text", [
    "2024-02-30", "2023-02-29", "1900-02-29", "2024-13-01", "2024-00-10", "2024-01-00", "0000-01-01", "10000-01-01",
    "2024-1-1", "20240101", "2024-01", "2024", "2024-W01-1", "2024-001", "01/02/2024", "24-01-01", "+2024-01-01",
    " 2024-01-01", "2024-01-01 ", "2024-01-01T", "2024-01-01T10", "2024-01-01T24:00:00", "2024-01-01T23:60:00",
    "2024-01-01T23:59:60Z", "2024-01-01T10:00:00.", "2024-01-01T10:00:00,5", "2024-01-01T10:00:00.5.5",
    "2024-01-01  10:00:00", "2024-01-01_10:00:00", "2024-01-01T10:00:00 Z", "2024-01-01T10:00:00+0530",
    "2024-01-01T10:00:00+05", "2024-01-01T10:00:00+24:00", "2024-01-01T10:00:00+05:60", "2024-01-01T10:00:00ZZ",
    "2024-01-01T10:00:00[UTC]", "2024-01-01T1:00:00", "2024-01-01Z", "now", "nan", "NaT", "None", "1704067200",
    "2024-01-01T00:00:00\0", "２０２４-01-01",
])  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidRecordError, match=r"row 0, field 'when': not a date as YYYY-MM-DD"):
        PROGRAM.transform({"when": [text]})
    with pytest.raises(reference.Refused):
        reference.instant(text)


def test_a_missing_date_has_missing_parts() -> None:
    for value in (None, math.nan, pd.NaT, pd.NA, "", np.datetime64("NaT")):
        assert np.isnan(PROGRAM.transform([{"when": value}, {}])).all()
    strict = Program.from_json(json.dumps(document(nullable=False)))
    with pytest.raises(InvalidRecordError, match="not a date"):
        strict.transform([{"when": ""}])


MOMENTS = [datetime(1969, 12, 31, 23, 59, 59, 999999), datetime(2024, 2, 29, 1, 2, 3, 4), datetime(1700, 1, 1)]
HOLDERS = {
    "numpy us": np.array(MOMENTS, "datetime64[us]"),
    "numpy ns": np.array(MOMENTS, "datetime64[ns]") + np.timedelta64(999, "ns"),
    "a strided array": np.repeat(np.array(MOMENTS, "datetime64[us]"), 2)[::2],
    "objects": np.array(MOMENTS, object),
    "datetimes": MOMENTS,
    "aware datetimes": [moment.replace(tzinfo=UTC).astimezone(timezone(timedelta(hours=-9))) for moment in MOMENTS],
    "timestamps": [pd.Timestamp(moment) for moment in MOMENTS],
    "texts": [moment.isoformat() for moment in MOMENTS],
    "datetime64": [np.datetime64(moment) for moment in MOMENTS],
    "pandas": pd.Series(MOMENTS),
    "pandas ns": pd.Series(MOMENTS).dt.as_unit("ns"),
    "pandas aware": pd.Series(MOMENTS).dt.tz_localize("UTC").dt.tz_convert("Asia/Kathmandu"),
    "pandas Arrow": pd.Series(MOMENTS).astype("timestamp[us][pyarrow]"),
    "pandas texts": pd.Series([moment.isoformat() for moment in MOMENTS]),
    "polars": pl.Series(MOMENTS),
    "polars aware": pl.Series(MOMENTS).dt.replace_time_zone("UTC").dt.convert_time_zone("America/Lima"),
    "polars texts": pl.Series([moment.isoformat() for moment in MOMENTS]),
    "Arrow": pa.chunked_array([MOMENTS]),
    "Arrow aware": pa.chunked_array([pa.array(MOMENTS, pa.timestamp("us", "Europe/Berlin"))]),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_frames_hold_dates_in_many_ways(holder: str) -> None:
    assert PROGRAM.transform({"when": HOLDERS[holder]}).tolist() == [parts_of(moment) for moment in MOMENTS]


def test_days_are_held_in_many_ways() -> None:
    days = [date(1, 1, 1), date(9999, 12, 31), date(1970, 1, 1)]
    expected = [[(day - date(1970, 1, 1)).days * 86400.0] for day in days]
    for values in (days, np.array(days, "datetime64[D]"), np.array(days, "datetime64[s]"), np.array(days, object),
                   pl.Series(days), pa.chunked_array([days]), [str(day) for day in days]):
        assert SECONDS.transform({"when": values}).tolist() == expected
    frame = pl.DataFrame({"when": [None, date(1970, 1, 2)]})
    for values in (frame, frame.to_arrow(), frame.to_pandas()):
        np.testing.assert_array_equal(SECONDS.transform(values), [[math.nan], [86400.0]])
    np.testing.assert_array_equal(SECONDS.transform({"when": np.array(["NaT", "NaT"], "datetime64")}), [[math.nan]] * 2)


@pytest.mark.parametrize("values", [
    [5], [5.5], [True], [b"2024-01-01"], [timedelta(1)], np.array([5]), np.array([1.5]), pl.Series([1]),
    np.array([10**15], "datetime64[s]"), np.array([-800000], "datetime64[D]"), np.array([9000], "datetime64[Y]"),
    [np.datetime64(10**15, "s")], [datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))],
])  # fmt: skip
def test_what_is_no_date_is_named(values: Any) -> None:
    with pytest.raises(InvalidRecordError) as refused:
        SECONDS.transform({"when": values})
    assert refused.value.at == "$.records[0].when"


def test_the_dates_of_golden_rows_take_each_branch() -> None:
    moments = [reference.instant(text) for text in TELLING_DATES]
    assert len(set(moments)) == len(moments)
    for part, count in {"month": 12, "weekday": 7, "quarter": 4, "hour": 20, "days_in_month": 4}.items():
        assert len({reference.date_part(moment, part) for moment in moments}) >= count
    assert {1.0, 52.0, 53.0} <= {reference.date_part(moment, "week") for moment in moments}
    for part in (part for part in TIME_PART_NAMES if part.startswith("is_")):
        assert {reference.date_part(moment, part) for moment in moments} == {0.0, 1.0}


def test_the_file_says_its_format() -> None:
    assert json.loads(PROGRAM.to_json())["fastinfer"] == 2
    for member, value, message in [
        (("columns", 0, "dtype"), "date", r"\$\.columns\[0\]\.dtype: expected 'str' or 'object' or 'datetime'"),
        (("steps", 0, "part"), "century", r"\$\.steps\[0\]\.part: expected 'year' or"),
        (("steps", 0, "op"), "binarize", r"unknown member"),
        (("output", "features", 0, "value"), "when", "'when' is time; cast or encode it"),
        (("fastinfer",), 3, "written by a newer fastinfer"),
        (("fastinfer",), 0, "a format from 1"),
    ]:
        changed = document()
        place: Any = changed
        for key in member[:-1]:
            place = place[key]
        place[member[-1]] = value
        with pytest.raises(ConfigurationError, match=message):
            Program.from_json(json.dumps(changed))
