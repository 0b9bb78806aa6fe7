"""Raw columns in every holder and dtype: the core reads them as the readable twin does, value by value."""

import datetime
import decimal
import gc
import pickle
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from fastinfer._core import Columns
from fastinfer.errors import FastinferError, InvalidRecordError
from fastinfer.preprocessing.frames import Layout, columns_from, settle
from fastinfer.preprocessing.program import Program
from fastinfer.preprocessing.spec import Column, Output, Spec, Step
from fastinfer.preprocessing.vectors import Features

WORDS = ("a", "b", "", "é", "longer than twelve bytes", "日本語")
COLUMNS = {
    "number": Column("number", "FP64", "float64", nullable=True),
    "single": Column("single", "FP64", "float32", nullable=True),
    "whole": Column("whole", "INT64", "int64"),
    "flag": Column("flag", "BOOL", "bool"),
    "text": Column("text", "BYTES", "str", nullable=True),
    "boxed": Column("boxed", "BYTES", "object", nullable=True, missing="none"),
    "mixed": Column("mixed", "BYTES", "object", nullable=True, missing="nan"),
}


def program_of(*names: str) -> Program:
    """Numbers as they come, text as where it stands among WORDS, missing ones apart."""
    steps, features = [], []
    for name in names:
        column, value = COLUMNS[name], f"{name}@1"
        if column.datatype == "BYTES":
            steps.append(Step("ordinal", (name,), (value,), {
                "categories": WORDS, "codes": tuple(map(float, range(len(WORDS)))), "nan": -1.0, "none": -2.0,
                "unknown": -3.0}))
        elif column.datatype == "INT64":
            steps.append(Step("cast", (name,), (value,), {"dtype": "float64"}))
        else:
            value = name
        features.append((name, value))
    return Program(Spec(tuple([COLUMNS[name] for name in names]), tuple(steps),
                        Output("float64", "any", Features(features))))


def plainly(program: Program, name: str, values: Any) -> np.ndarray[Any, Any]:
    """Through the twin, which looks at each value by itself."""
    columns = Columns(program.compiled.columns, program.layout.objects)
    settle(columns, 0, COLUMNS[name], values)
    return program.compiled.transform(columns)


def outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except FastinferError as error:
        return str(error)


def same(name: str, values: Any, data: Any = None) -> None:
    program = program_of(name)
    expected = outcome(lambda: plainly(program, name, values))
    got = outcome(lambda: program.transform({name: values} if data is None else data))
    assert type(expected) is type(got), (expected, got)
    np.testing.assert_array_equal(expected, got)


present = {
    "number": st.floats(width=64), "single": st.floats(width=32), "whole": st.integers(-(2**63), 2**63 - 1),
    "flag": st.booleans(), "text": st.sampled_from(WORDS), "boxed": st.sampled_from(WORDS),
    "mixed": st.sampled_from(WORDS) | st.text(max_size=20),
}
missing = st.sampled_from([None, float("nan"), pd.NA])
odd = st.sampled_from([1, 0, 2**63, -(2**70), 10**400, 1.5, "1", True, np.float32(0.1), np.int8(3), np.bool_(True),
                       decimal.Decimal("1.5"), b"a", datetime.date(2020, 1, 1), 1j, "\ud800"])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_objects(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(COLUMNS)))
    values = data.draw(st.lists(present[name] | missing | odd, max_size=6))
    array = np.empty(len(values), dtype=object)
    array[:] = values
    same(name, values)
    same(name, tuple(values))
    same(name, array)
    same(name, np.stack([array, array], axis=1)[:, 1])
    same(name, values, [{name: value, "more": 1} for value in values])
    same(name, pd.Series(array, dtype=object), pd.DataFrame({name: pd.Series(array, dtype=object)}))


NUMBERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.float16, np.float32,
           np.float64, np.longdouble, np.bool_, np.complex64]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("name", ["number", "single", "whole", "flag", "text"])
def test_arrays_of_numbers(name: str, dtype: Any) -> None:
    values = np.array([0, 1, 7, 100, 127, 1], dtype=dtype)
    with np.errstate(all="ignore"):
        wide = np.array([2**62 + 1, 1], dtype=np.float64).astype(dtype)
    unaligned = np.frombuffer(b"\0" + values.tobytes(), np.uint8)[1:].view(dtype)
    for array in (values, values[::2], values[::-1], values.astype(values.dtype.newbyteorder()), wide, unaligned,
                  values[:0]):
        if array.dtype.kind == "c" and not array.dtype.isnative:
            continue  # only called otherwise in the message
        same(name, array)
        same(name, array, np.stack([array], axis=1))
        same(name, array, np.asfortranarray(np.stack([array], axis=1)))


ARROW = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.float16(),
         pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.large_string(), pa.string_view(), pa.null(),
         pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string()),
         pa.dictionary(pa.uint16(), pa.int64()), pa.decimal128(9, 2), pa.binary(), pa.date32()]


def arrow_values(kind: pa.DataType) -> list[Any]:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if "string" in str(value):
        return ["a", "", "longer than twelve bytes", "日本語", "nobody knows it, and it is long", "b", "a"]
    if pa.types.is_boolean(value):
        return [True, False, True, True, False, False, True]
    if pa.types.is_null(value):
        return [None] * 7
    if pa.types.is_binary(value):
        return [b"a"] * 7
    if pa.types.is_decimal(value):
        return [decimal.Decimal(3)] * 7
    return [datetime.date(2020, 1, 1)] * 7 if pa.types.is_date(value) else [0, 1, 2, 100, 3, 5, 1]


@pytest.mark.parametrize("kind", ARROW, ids=str)
@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_arrow(name: str, kind: pa.DataType) -> None:
    """Whole, sliced, in pieces, with missing values and without, of pyarrow and of polars and pandas on it."""
    values = arrow_values(kind)
    whole = pa.array(values, type=kind)
    holes = pa.array([None if i % 3 == 1 else value for i, value in enumerate(values)], type=kind)
    pieces = pa.chunked_array([whole[:3], holes[2:2], holes[1:5], whole[6:]])
    for array in (whole, holes, whole[3:], holes[1:6], pieces, whole[:0], pa.chunked_array([], type=kind)):
        plain = array.to_pylist() if pa.types.is_null(kind) else array  # numpy would make numbers of them
        same(name, plain, {name: array})
        table = pa.table({"more": array, name: array})
        same(name, plain, table)
        same(name, plain[1:], table.slice(1))
        if len(table.to_batches()) == 1:
            same(name, plain, table.to_batches()[0])
        try:
            series = pl.from_arrow(array)
        except Exception:  # a type that polars does not have
            continue
        plain = series.to_list() if pa.types.is_null(kind) else series
        same(name, plain, {name: series})
        same(name, plain, pl.DataFrame({name: series, "more": series}))
        same(name, plain[1:5], pl.DataFrame({name: series}).slice(1, 4))


PANDAS = ["str", "string[python]", "string[pyarrow]", "category", "object", "Int64", "Int8", "UInt64", "Float32",
          "Float64", "boolean", "bool", "int16", "float32", "int64[pyarrow]", "double[pyarrow]", "string",
          "bool[pyarrow]", "datetime64[ns]"]


@pytest.mark.parametrize("dtype", PANDAS)
@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_pandas(name: str, dtype: str) -> None:
    numeric = dtype.lower().startswith(("int", "uint", "float", "double"))
    values: list[Any] = [1, 0, 100, 2] if numeric else ["a", "", "é", "zz"]
    if dtype.startswith("bool"):
        values = [True, False, True, True]
    if dtype.startswith("datetime"):
        values = ["2020-01-01"] * 4
    series = [pd.Series(values).astype(dtype)]
    if dtype not in ("bool", "int16"):
        series.append(pd.Series([*values[:2], None, *values[2:]], dtype=object).astype(dtype))
    if dtype == "category":
        series.append(pd.Series([3, 1, None, 3]).astype(dtype))
    for column in (*series, *[column[1:] for column in series], *[column[::-2] for column in series], series[0][:0]):
        same(name, column)
        same(name, column, pd.DataFrame({name: column, "more": column}))


@pytest.mark.parametrize("name", ["text", "boxed", "mixed"])
def test_polars_categories(name: str) -> None:
    values = ["a", "longer than twelve bytes", None, "é", "a"]
    for kind in (pl.String, pl.Categorical, pl.Enum([value for value in values[:4] if value])):
        series = pl.Series(name, values, dtype=kind)
        same(name, series)
        same(name, series, pl.DataFrame([series]))
        same(name, series, pl.concat([pl.DataFrame([series])[:2], pl.DataFrame([series])[2:]], rechunk=False))


def test_whole_frames_in_many_pieces() -> None:
    """More rows than a block, in pieces that end inside of blocks, of all kinds of columns at once."""
    program = program_of("number", "whole", "flag", "text", "boxed")
    count = 1000
    frame = pa.table({
        "text": pa.array([WORDS[i % 6] if i % 7 else None for i in range(count)], pa.string_view()),
        "number": pa.array([float(i) if i % 5 else None for i in range(count)]),
        "boxed": pa.array([WORDS[i % 5] for i in range(count)]).dictionary_encode(),
        "flag": pa.array([i % 3 == 0 for i in range(count)]), "whole": pa.array(range(count), pa.int16()),
    })
    expected = program.transform({name: frame[name].to_pylist() for name in frame.column_names})
    sizes = np.random.default_rng(3).integers(0, 90, 40)
    ends = [0, *np.minimum(np.cumsum(sizes), count).tolist(), count]
    pieces = pa.concat_tables([frame.slice(low, high - low) for low, high in pairwise(ends)])
    assert pieces["number"].num_chunks > 10
    for data in (frame, pieces, pl.from_arrow(pieces), pieces.to_pandas(),
                 pieces.to_pandas(types_mapper=pd.ArrowDtype)):
        np.testing.assert_array_equal(program.transform(data), expected)
    np.testing.assert_array_equal(program.transform(frame.slice(300, 400)), expected[300:700])


def test_a_sparse_row_is_a_whole_matrix() -> None:
    texts = ["a b a", "", "b c"]
    vectorizer = CountVectorizer(token_pattern=r"\w").fit(texts)
    got, expected = Program.from_sklearn(vectorizer).transform(texts), vectorizer.transform(texts)
    again = pickle.loads(pickle.dumps(got))
    for matrix in (got, got.copy(), got[1:], again, got.tocsc().tocsr(), got.astype("float64"), got + got - got):
        assert matrix.has_canonical_format
        rows = expected[-matrix.shape[0]:]
        assert matrix.shape == rows.shape
        np.testing.assert_array_equal(matrix.toarray(), rows.toarray())
    assert (got.nnz, got.dtype, str(got)[:20], got.T.shape) == (expected.nnz, np.float64, str(got)[:20], (3, 3))
    assert type(got) is type(expected)
    got.sum_duplicates()
    assert got.max() == 2.0


def test_rows_in_lists() -> None:
    program = program_of("number", "text", "flag")
    rows = [[1.5, "a", True], [None, None, False]]
    expected = [[1.5, 0.0, 1.0], [np.nan, -1.0, 0.0]]
    np.testing.assert_array_equal(program.transform(rows), expected)
    np.testing.assert_array_equal(program.transform(tuple(map(tuple, rows))), expected)
    with pytest.raises(InvalidRecordError, match=r"row 1: list, and rows are records"):
        program.transform([[1.5, "a", True], [1.5]])
    with pytest.raises(InvalidRecordError, match=r"an array of shape \(1, 2\); the program takes \[rows, 3\]"):
        program.transform([[1.5, "a"]])
    with pytest.raises(InvalidRecordError, match=r"row 1: int, not a record"):
        program.transform([{"number": 1.0, "text": "a", "flag": True}, 3])


def test_objects_may_go_while_rows_run() -> None:
    """Texts are copied: another thread takes them out of the array meanwhile."""
    program = program_of("text", "boxed")
    texts = np.array([WORDS[i % 6] + "" for i in range(20_000)], dtype=object)
    expected = program.transform({"text": texts.copy(), "boxed": texts.copy()})
    stop = threading.Event()

    def change() -> None:
        i = 0
        while not stop.is_set():
            other[i % len(other)] = str(i)
            other[i % len(other)] = texts[i % len(other)]
            i += 1

    other = texts.copy()
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(5):
            got = program.transform({"text": other, "boxed": texts})
            assert (got[:, 1] == expected[:, 1]).all()
            assert np.isin(got[:, 0], [*range(6), -3]).all()
    finally:
        stop.set()
        thread.join()


def test_nothing_is_kept() -> None:
    """What was read where it lies is let go of, also after a failure."""
    program = program_of("number", "text")
    text = "".join(["lon", "g"])
    columns: dict[str, Any] = {"number": np.arange(100.0), "text": [text] * 100}
    table = pa.table(columns)
    before = sys.getrefcount(columns["number"]), sys.getrefcount(text), pa.total_allocated_bytes()
    for data in (columns, table, {**columns, "text": [text] * 99}, {**columns, "text": [3] * 100}):
        outcome(lambda data=data: program.transform(data))
    del data
    gc.collect()
    assert (sys.getrefcount(columns["number"]), sys.getrefcount(text), pa.total_allocated_bytes()) == before


def test_a_layout_is_of_one_program() -> None:
    first, second = program_of("number"), program_of("single")
    assert isinstance(first.layout, Layout)
    with pytest.raises(ValueError, match="of another program"):
        second.compiled.transform(columns_from({"number": [1.0]}, first.layout))


# ---- what is held otherwise, and what is no frame ----------------------------------------------------------------
class Capsule:
    """Exports Arrow's C stream, and nothing else, as a relation of duckdb does to those who do not know it."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)


class Exchange:
    """Has the interchange protocol alone."""

    def __dataframe__(self, *_: Any) -> Any:
        raise NotImplementedError


HELD: dict[str, Callable[[pa.Table], Any]] = {
    "a stream": Capsule,
    "a reader of batches": lambda table: pa.RecordBatchReader.from_batches(table.schema, table.to_batches()),
    "run ends": lambda table: table.set_column(0, "number", pa.compute.run_end_encode(table["number"])),
    "a dictionary": lambda table: table.set_column(1, "text", table["text"].dictionary_encode()),
    "Categorical": lambda table: pl.from_arrow(table).with_columns(pl.col("text").cast(pl.Categorical)),
    "Enum": lambda table: pl.from_arrow(table).with_columns(pl.col("text").cast(pl.Enum(["é", "b", "a"]))),
    "nullable dtypes": lambda table: table.to_pandas().convert_dtypes(),
    "Arrow's dtypes": lambda table: table.to_pandas().convert_dtypes(dtype_backend="pyarrow"),
    "categories": lambda table: table.to_pandas().astype({"text": "category"}),
}


@pytest.mark.parametrize("holder", HELD)
def test_every_holder_of_the_same_values(holder: str) -> None:
    table = pa.table({"number": [1.5, None, None, -0.0, 2.0], "text": ["b", None, "a", "é", "b"]})
    program = program_of("number", "text")
    expected = program.transform(table.to_pandas())
    assert np.array_equal(expected, program.transform(HELD[holder](table)), equal_nan=True)


@pytest.mark.parametrize(("data", "message"), [
    (pl.DataFrame({"number": [1.0]}).lazy(), r"a LazyFrame, which has no values yet; collect\(\) it"),
    (Exchange(), "Exchange is no frame of pandas, polars or Arrow"),
    (None, "NoneType is no frame"),
    ((record for record in ({"number": 1.0},)), "generator is no frame"),
    (pd.DataFrame([[1.0, 2.0]], columns=["number", "number"]), "the column 'number' stands twice"),
    (pa.table({"number": [[1.0]]}), "row 0, field 'number': ndarray"),
    (pa.table({"number": pa.array([decimal.Decimal("1.5")])}), "row 0, field 'number': Decimal"),
], ids=lambda value: type(value).__name__)
def test_what_is_no_frame_says_so(data: Any, message: str) -> None:
    with pytest.raises(InvalidRecordError, match=message):
        program_of("number").transform(data)
