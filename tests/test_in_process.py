"""`fastinfer.load`: a model in process, for every form in which Python programs hold rows, and nothing of a server."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_models
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import fastinfer
from fastinfer.errors import (
    InvalidInputError,
    InvalidRecordError,
    InvalidShapeError,
    InvalidValueError,
    UnknownCategoryError,
)

PEOPLE = {"age": [25.0, 40.0], "job": ["fixed", "other"]}
X = [[1.0, 2.0, 3.0, 4.0], [-1.0, 0.5, 0.25, 8.0]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    onnx_models.with_program(root / "people" / "1")
    onnx_models.affine(root / "affine.onnx")
    onnx_models.two_inputs(root / "two.onnx")
    onnx_models.picky(root / "picky.onnx")
    onnx_models.identity(root / "words.onnx", "BYTES", ["n", 1])
    return root


def records(columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


FORMS = {
    "dict": lambda columns: columns,
    "arrays": lambda columns: {name: np.array(values) for name, values in columns.items()},
    "records": records,
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "arrow": pa.table,
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_a_program_in_every_form(models, form):
    model = fastinfer.load(models / "people")
    want = model.predict(PEOPLE)
    rows = FORMS[form](PEOPLE)
    assert model.predict(rows)["value"].tobytes() == want["value"].tobytes()
    assert model.transform(rows).tobytes() == model.transform(PEOPLE).tobytes()
    assert model.transform(rows).shape == (2, 4)


@pytest.mark.parametrize("form", FORMS)
def test_a_wide_tensor_from_its_features(models, form):
    model = fastinfer.load(models / "affine.onnx")
    want = model.predict(np.array(X, dtype=np.float32))["y"]
    columns = dict(zip("abcd", zip(*X, strict=True), strict=True))
    columns = {name: list(values) for name, values in columns.items()}
    assert model.predict(FORMS[form](columns))["y"].tobytes() == want.tobytes()
    assert model.predict(FORMS[form]({"x": X}))["y"].tobytes() == want.tobytes()
    assert model.predict(X)["y"].tobytes() == want.tobytes()
    assert model.predict([{"x": row} for row in X])["y"].tobytes() == want.tobytes()


def test_one_value_a_row(models):
    model = fastinfer.load(models / "picky.onnx")
    for rows in ([0, 3], np.array([[0], [3]]), {"i": [0, 3]}, pd.DataFrame({"i": [0, 3]}), [{"i": 0}, {"i": 3}]):
        assert model.predict(rows)["y"].tolist() == [10.0, 40.0]
    words = fastinfer.load(models / "words.onnx")
    for rows in (["a", "é"], {"x": ["a", "é"]}, pl.DataFrame({"x": ["a", "é"]}), np.array([["a"], ["é"]])):
        assert words.predict(rows)["y"].tolist() == [["a"], ["é"]]


@pytest.mark.parametrize(("name", "rows", "error", "says"), [
    ("people", {"age": [1.0]}, InvalidRecordError, "'job' is missing"),
    ("people", {"age": [1.0, 2.0], "job": ["fixed", "x"]}, UnknownCategoryError, "row 1, field 'job'"),
    ("affine.onnx", [[1.0, 2.0]], InvalidShapeError, "takes shape"),
    ("affine.onnx", {"y": X}, InvalidInputError, "'x' is missing"),
    ("affine.onnx", {"x": [["a"] * 4]}, InvalidValueError, "takes FP32"),
    ("affine.onnx", {"x": [[1e39, 0, 0, 0]]}, InvalidValueError, "out of range"),
    ("affine.onnx", {"x": [[1.0], [1.0, 2.0]]}, InvalidShapeError, "different shapes"),
    ("affine.onnx", pd.DataFrame({"x": [None, X[0]]}), InvalidValueError, "row 0: missing"),
    ("two.onnx", X, InvalidInputError, "give each by its name"),
    ("two.onnx", {"a": [[1.0, 2.0]], "b": [[1.0, 2.0]] * 2}, InvalidShapeError, "rows"),
    ("picky.onnx", [0.5], InvalidValueError, "takes INT64"),
    ("picky.onnx", np.array([2**63], dtype=np.uint64), InvalidValueError, "out of range"),
    ("words.onnx", [1], InvalidValueError, "takes text"),
    ("words.onnx", ["a", "\ud800"], InvalidValueError, "row 1: a text that is not valid Unicode"),
    ("affine.onnx", 5, InvalidShapeError, "takes rows, got a single int"),
    ("affine.onnx", None, InvalidShapeError, "takes rows, got a single NoneType"),
    ("affine.onnx", {"x": {"a": 1}}, InvalidShapeError, "takes rows, got a single dict"),
    ("affine.onnx", {"x": pl.Series([2**70], dtype=pl.Int128)}, InvalidValueError, "takes FP32, got an array of"),
    ("picky.onnx", ["x" * 10_000], InvalidValueError, "takes INT64, got an array of <U10000"),
    ("picky.onnx", {"i": [None, "x"]}, InvalidValueError, "row 0: missing"),
    ("people", [{"age": 10**5000, "job": "fixed"}], InvalidRecordError, "'age': int of too many digits"),
    ("people", [{"age": "x" * 10_000, "job": "fixed"}], InvalidRecordError, r"'age': str 'x{76}\.\.\., and"),
])
def test_rows_that_the_model_does_not_take(models, name, rows, error, says):
    with pytest.raises(error, match=says):
        fastinfer.load(models / name).predict(rows)


def test_a_bare_model_has_no_transform(models):
    with pytest.raises(InvalidInputError, match="no feature program"):
        fastinfer.load(models / "affine.onnx").transform(X)


def test_nothing_of_a_server_is_imported(models):
    script = (
        "import sys, fastinfer\n"
        f"fastinfer.load({str(models / 'people')!r}).predict({PEOPLE!r})\n"
        "print({m.split('.')[0] for m in sys.modules} & {'asyncio', 'starlette', 'uvicorn', 'uvloop', 'httptools', "
        "'sklearn', 'pandas', 'pyarrow', 'click'})"
    )
    package = Path(fastinfer.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=package, check=True)
    assert done.stdout == "set()\n"
