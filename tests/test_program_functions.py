"""FunctionTransformers of functions known by name, with their arguments, on frames and arrays."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import special
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, PolynomialFeatures
from sklearn_pipelines import quietly
from test_program_sklearn import compare
from test_program_transforms import label

from fastinfer.errors import ImportRefusedError
from fastinfer.preprocessing.program import Program

VALUES = np.array([[0.0, -0.0], [0.5, 1 / 3], [1e300, -1e300], [5e-324, 0.7], [np.nan, 0.29999], [np.inf, -np.inf],
                   [2.5, 3.5], [-1.25, 0.005], [0.65, 0.3], [1.0, 16777217.0], [-7.0, 40.0], [0.999999, 1e-9]])
FUNCTIONS: list[tuple[Any, dict[str, Any]]] = [
    *[(func, {}) for func in (special.expit, special.logit, np.log10, np.log2, np.tan, np.arcsinh, np.cbrt, np.trunc,
                              np.reciprocal, np.negative, np.cos, np.exp2, np.nan_to_num, np.round)],
    (np.clip, {"a_min": 0.0, "a_max": 2.5}), (np.clip, {"a_min": -1, "a_max": None}), (np.clip, {"min": 0, "max": 1}),
    (np.clip, {"a_min": 0, "a_max": None}), (np.clip, {"a_min": None, "a_max": 0.0}),
    (np.clip, {"a_min": None, "a_max": 0.5}), (partial(np.clip, a_min=0, a_max=7), {}),
    (np.nan_to_num, {"nan": -1.5, "posinf": 7, "neginf": None, "copy": True}),
    (np.round, {"decimals": 2}), (np.around, {"decimals": 1}), (np.round, {"decimals": -1}),
]


@pytest.mark.parametrize(("func", "arguments"), FUNCTIONS, ids=label)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("framed", [True, False])
def test_function(func: Any, arguments: dict[str, Any], dtype: str, framed: bool) -> None:
    values: Any = quietly(VALUES.astype, dtype)
    if framed:
        values = pd.DataFrame(values, columns=["a", "b"])
    fitted = quietly(FunctionTransformer(func, kw_args=arguments or None).fit, values)
    program = quietly(lambda: Program.from_sklearn(fitted, sample=values, dtype=dtype))
    compare(fitted, program, [values, *[values[i : i + 1] for i in range(len(values))]], dtype)


@pytest.mark.parametrize("names", ["one-to-one", lambda transformer, given: [f"log_{name}" for name in given]],
                         ids=["one-to-one", "callable"])
@pytest.mark.parametrize("validate", [True, False])
def test_names(names: Any, validate: bool) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [0.5, 3.0]})
    function = FunctionTransformer(np.log1p, feature_names_out=names, validate=validate)
    fitted = make_pipeline(function, PolynomialFeatures(2)).fit(frame)
    program = Program.from_sklearn(fitted, sample=frame)
    assert list(program.get_feature_names_out()) == list(fitted.get_feature_names_out())
    compare(fitted, program, [frame], "float64")


def test_whole_numbers() -> None:
    frame = pd.DataFrame({"n": [3, -1, 250, 0, 2**40]})
    for func, arguments in [(np.clip, {"a_min": 0, "a_max": 9}), (np.nan_to_num, {}), (special.expit, {})]:
        fitted = FunctionTransformer(func, kw_args=arguments).fit(frame)
        program = Program.from_sklearn(fitted, sample=frame)
        compare(fitted, program, [frame], "float64")
    fitted = make_pipeline(FunctionTransformer(np.clip, kw_args={"a_min": 0, "a_max": 9}), OneHotEncoder()).fit(frame)
    compare(fitted, Program.from_sklearn(fitted, sample=frame), [frame], "float64")


@pytest.mark.parametrize(("func", "arguments", "message"), [
    (np.round, {"decimals": 1}, "round of 'n', which may hold integers"),
    (np.clip, {"a_min": 3, "a_max": 2}, "clip between 3 and 2"),
    (np.clip, {"a_min": np.array([1]), "a_max": 2}, "clip between"),
    (np.nan_to_num, {"nan": np.inf}, None),
    (np.log1p, {"dtype": "float32"}, "the function 'log1p' cannot be read"),
    (partial(np.full_like, fill_value=3), {}, "the function 'full_like' cannot be read"),
    (special.gamma, {}, "the function 'gamma' cannot be read"),
], ids=label)
def test_refused(func: Any, arguments: dict[str, Any], message: str | None) -> None:
    frame = pd.DataFrame({"n": [3, -1, 250]})
    if message is None:
        frame, message = frame.astype(float), "nan_to_num with inf"
    fitted = FunctionTransformer(func, kw_args=arguments).fit(frame)
    with pytest.raises(ImportRefusedError, match=f"^pipeline: {message}"):
        Program.from_sklearn(fitted, sample=frame)


def test_clip_of_codes() -> None:
    frame = pd.DataFrame({"n": [3, -1, 250]})
    codes = OneHotEncoder(dtype=np.int64, sparse_output=False)
    fitted = make_pipeline(codes, FunctionTransformer(np.clip, kw_args={"a_min": 0, "a_max": 1})).fit(frame)
    compare(fitted, Program.from_sklearn(fitted, sample=frame), [frame], "float64")
    fitted = make_pipeline(codes, FunctionTransformer(np.clip, kw_args={"a_min": 0.5, "a_max": 2})).fit(frame)
    with pytest.raises(ImportRefusedError, match=r"steps\[1\]: clip of the int64 in 'n_-1' at 0\.5, of another type"):
        Program.from_sklearn(fitted, sample=frame)


def test_float32_of_a_frame_at_a_bound_it_does_not_have() -> None:
    frame = pd.DataFrame({"x": np.array([0.5, 1.5], np.float32)})
    fitted = FunctionTransformer(np.clip, kw_args={"a_min": 0.1, "a_max": 1}).fit(frame)
    with pytest.raises(ImportRefusedError, match=r"clip of the float32 in 'x' at 0\.1"):
        Program.from_sklearn(fitted, sample=frame)
    values = frame.to_numpy()
    fitted = FunctionTransformer(np.clip, kw_args={"a_min": 0.1, "a_max": 1}).fit(values)
    compare(fitted, Program.from_sklearn(fitted, sample=values), [values, values[:1] / 8], "float64")


def test_integers_have_no_negative_zero() -> None:
    """A column of whole numbers travels as floats, whose zero has a sign."""
    whole, floats = np.array([[0], [2], [-1]]), np.array([[0.0], [2.5], [-1.0]])
    weighted = FeatureUnion([("same", "passthrough")], transformer_weights={"same": -1})
    for transformer in (FunctionTransformer(np.negative), weighted):
        for sample in (whole, None):
            with pytest.raises(ImportRefusedError, match="integers"):
                Program.from_sklearn(transformer.fit(whole), sample=sample)
        program = Program.from_sklearn(transformer.fit(floats), sample=floats)
        assert np.array_equal(program.transform(floats).view(np.int64), transformer.transform(floats).view(np.int64))
