"""Random pipelines on random frames: the imported program gives scikit-learn's bits, or refuses what it refuses."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn_pipelines import KINDS, dense, frames, pipelines, quietly

from fastinfer.errors import FastinferError, ImportRefusedError
from fastinfer.preprocessing.program import Program

EXAMPLES = settings(max_examples=45, deadline=None, suppress_health_check=list(HealthCheck))
# Messages with which the import confesses that it misread scikit-learn: it must see that at the step, not in the proof.
MISREAD = ("where scikit-learn", "scikit-learn refuses", "could be thought of")


def fitted(pipeline: Any, data: Any) -> Any:
    """The pipeline fitted, where scikit-learn takes it and can transform what it was fitted on."""
    try:
        quietly(pipeline.fit, data)
        quietly(pipeline.transform, data)
    except Exception as error:
        event(f"scikit-learn: {type(error).__name__}")
        assume(False)
    return pipeline


def imported(pipeline: Any, **options: Any) -> Program:
    try:
        return quietly(lambda: Program.from_sklearn(pipeline, **options))
    except ImportRefusedError as refusal:
        message = str(refusal)
        assert not any(sign in message for sign in MISREAD), message
        event("refused")
        assume(False)
        raise


def same_bits(expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> bool:
    integer = np.int32 if expected.dtype == np.float32 else np.int64
    equal = expected.view(integer) == got.view(integer)
    return expected.shape == got.shape and bool((equal | (np.isnan(expected) & np.isnan(got))).all())


def outcome(transform: Any, rows: Any, dtype: str, errors: type[Exception]) -> np.ndarray[Any, Any] | Exception:
    try:
        return dense(quietly(transform, rows), dtype)
    except errors as error:
        return error


def compare(pipeline: Any, program: Program, rows: list[Any], dtype: str) -> None:
    for row in rows:
        expected = outcome(pipeline.transform, row, dtype, Exception)
        got = outcome(program.transform, row, dtype, FastinferError)
        if isinstance(expected, Exception) or isinstance(got, Exception):
            assert isinstance(expected, Exception), (row, expected, got)
            assert isinstance(got, Exception), (row, expected, got)
        else:
            assert same_bits(np.ascontiguousarray(expected), got), (row, expected, got)


@EXAMPLES
@given(st.data())
def test_frames(data: st.DataObject) -> None:
    fit, serve, kinds = data.draw(frames())
    pipeline = fitted(data.draw(pipelines(kinds)), fit)
    dtype = data.draw(st.sampled_from(["float64", "float32"]))
    program = imported(pipeline, sample=fit, dtype=dtype)
    rows = [serve.iloc[i : i + 1].reset_index(drop=True) for i in range(len(serve))]
    compare(pipeline, program, rows, dtype)
    again = Program.from_json(program.to_json())
    assert json.loads(again.to_json()) == json.loads(program.to_json())
    compare(pipeline, again, rows[:1], dtype)


@EXAMPLES
@given(st.data())
def test_frames_of_every_dtype(data: st.DataObject) -> None:
    """Unsigned and nullable numbers, Arrow's, strings with pandas.NA, categories, integers as objects."""
    fit, serve, kinds = data.draw(frames(tuple(KINDS)))
    pipeline = fitted(data.draw(pipelines(kinds)), fit)
    if data.draw(st.integers(0, 5)) == 0:
        pipeline = make_pipeline(FrozenEstimator(pipeline))
    program = imported(pipeline, sample=fit)
    rows = [serve.iloc[i : i + 1].reset_index(drop=True) for i in range(len(serve))]
    compare(pipeline, program, [fit, *rows], "float64")


@EXAMPLES
@given(st.data())
def test_frames_without_a_sample(data: st.DataObject) -> None:
    """What the fitted steps themselves know suffices for float64, whole numbers and text without None."""
    fit, serve, kinds = data.draw(frames(("float", "full", "int", "text", "words")))
    assume(all(fit[name].notna().any() for name, kind in kinds.items() if kind == "text"))  # nothing says what it is
    pipeline = fitted(data.draw(pipelines(kinds)), fit)
    program = imported(pipeline, dtype="float64")
    rows = [serve.iloc[i : i + 1].reset_index(drop=True) for i in range(len(serve))]
    compare(pipeline, program, rows, "float64")


@EXAMPLES
@given(st.data())
def test_arrays(data: st.DataObject) -> None:
    """Pipelines fitted on one numpy array, without column names: float64, float32, or objects."""
    fit, serve, kinds = data.draw(frames())
    numeric = all(KINDS[kind].numeric for kind in kinds.values())
    dtype = data.draw(st.sampled_from([np.float64, np.float32, object])) if numeric else object
    with np.errstate(all="ignore"):
        fit, serve = fit.to_numpy(dtype), quietly(serve.to_numpy, dtype)
    pipeline = fitted(data.draw(pipelines(kinds, False)), fit)
    out = data.draw(st.sampled_from(["float64", "float32"]))
    program = imported(pipeline, sample=fit, dtype=out)
    compare(pipeline, program, [serve[i : i + 1] for i in range(len(serve))], out)


@EXAMPLES
@given(st.data())
def test_many_rows_are_the_rows_one_by_one(data: st.DataObject) -> None:
    """Rows go in blocks; a block's end changes nothing, and a failure names the row within the request."""
    fit, serve, kinds = data.draw(frames(("float", "int", "text")))
    pipeline = fitted(data.draw(pipelines(kinds)), fit)
    program = imported(pipeline, sample=fit, dtype="float32")
    good = [row for row in (serve.iloc[i : i + 1] for i in range(len(serve)))
            if not isinstance(outcome(program.transform, row, "float32", FastinferError), Exception)]
    assume(good)
    singles = np.concatenate([program.transform_dense(row) for row in good])
    repeats = 700 // len(good)
    columns = {name: np.concatenate([row[name].to_numpy() for row in good] * repeats) for name in serve.columns}
    assert same_bits(np.tile(singles, (repeats, 1)), program.transform_dense(columns))
    whole = program.transform(columns)
    assert hasattr(whole, "tocsr") == hasattr(quietly(pipeline.transform, good[0]), "tocsr")
    assert same_bits(dense(whole, "float32"), program.transform_dense(columns))


@pytest.mark.parametrize("name", ["StandardScaler", "OneHotEncoder", "SimpleImputer", "KBinsDiscretizer"])
def test_the_comparison_can_fail(name: str) -> None:
    """A program with one changed constant is not taken for scikit-learn's."""
    import sklearn.impute
    import sklearn.preprocessing

    data = np.array([[1.0], [2.0], [4.0], [4.5]])
    transformer = getattr(sklearn.preprocessing, name, None) or getattr(sklearn.impute, name)
    fitted_one = quietly(transformer().fit, data)
    program = Program.from_sklearn(fitted_one)
    changed = program.to_json().split('"certificate"')[0].rstrip().rstrip(",") + "}"
    for before, after in (("2.875", "2.876"), ("[0, 1", "[1, 0"), ('"edges": [', '"edges": [0.5, ')):
        changed = changed.replace(before, after)
    other = Program.from_json(changed)
    with pytest.raises(AssertionError):
        compare(fitted_one, other, [np.array([[value]]) for value in (1.0, 4.0, np.nan)], "float64")
