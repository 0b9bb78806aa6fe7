"""Encoders of categories and selectors of features with random options, bit by bit, on columns of every kind."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.feature_selection import (
    RFECV,
    GenericUnivariateSelect,
    SelectFdr,
    SelectFpr,
    SelectFwe,
    SelectKBest,
    VarianceThreshold,
    f_regression,
)
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder
from sklearn_pipelines import frames, quietly
from test_program_sklearn import compare, fitted, imported
from test_program_transforms import label

from fastinfer.preprocessing.program import Program

EXAMPLES = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


def combined(feature: str, category: Any) -> str:
    return f"{category}?{feature}"


@st.composite
def drops(draw: st.DrawFn, fit: pd.DataFrame, categories: Any) -> Any:
    """What is dropped: a rule, or one category of each column."""
    way = draw(st.sampled_from([None, "first", "if_binary", "array"]))
    if way != "array":
        return way
    known = OneHotEncoder(categories=categories).fit(fit).categories_
    return [draw(st.sampled_from(list(values))) for values in known]


@st.composite
def given_categories(draw: st.DrawFn, fit: pd.DataFrame) -> Any:
    """Categories in another order than sorted, where they are all text, with some that were never seen."""
    texts = all(isinstance(value, str) for name in fit for value in fit[name])
    if not texts or draw(st.booleans()):
        return "auto"
    return [draw(st.permutations([*dict.fromkeys(fit[name]), "never", "ever"])) for name in fit]


@EXAMPLES
@given(st.data())
def test_one_hot_encoder(data: st.DataObject) -> None:
    fit, serve, _ = data.draw(frames())
    categories = data.draw(given_categories(fit))
    try:
        drop = data.draw(drops(fit, categories))
    except (TypeError, ValueError):  # columns that scikit-learn does not encode
        return
    encoder = OneHotEncoder(
        categories=categories, drop=drop,
        handle_unknown=data.draw(st.sampled_from(["error", "ignore", "infrequent_if_exist", "warn"])),
        min_frequency=data.draw(st.sampled_from([None, None, 1, 2, 3, 0.2, 0.6])),
        max_categories=data.draw(st.sampled_from([None, None, 1, 2, 3])),
        sparse_output=data.draw(st.booleans()),
        dtype=data.draw(st.sampled_from([np.float64, np.float32, np.int8, np.uint8, np.int64, bool])),
        feature_name_combiner=data.draw(st.sampled_from(["concat", combined])),
    )
    encode(data, encoder, fit, serve)


@EXAMPLES
@given(st.data())
def test_ordinal_encoder(data: st.DataObject) -> None:
    fit, serve, _ = data.draw(frames())
    dtype = data.draw(st.sampled_from([np.float64, np.float32, np.int16, np.int64]))
    codes = [-1, 77] if np.dtype(dtype).kind == "i" else [-1, 77, np.nan, -0.0, 1e9]
    encoder = OrdinalEncoder(
        categories=data.draw(given_categories(fit)), dtype=dtype,
        handle_unknown=data.draw(st.sampled_from(["error", "use_encoded_value"])),
        encoded_missing_value=data.draw(st.sampled_from(codes)),
        min_frequency=data.draw(st.sampled_from([None, None, 2, 0.3])),
        max_categories=data.draw(st.sampled_from([None, None, 1, 2, 3])),
    )
    if encoder.handle_unknown == "use_encoded_value":
        encoder.set_params(unknown_value=data.draw(st.sampled_from(codes)))
    encode(data, encoder, fit, serve)


@EXAMPLES
@given(st.data())
def test_target_encoder(data: st.DataObject) -> None:
    """What serves is `transform`: the encodings of the whole training set."""
    fit, serve, _ = data.draw(frames())
    kind = data.draw(st.sampled_from(["binary", "multiclass", "continuous", "text"]))
    values = {"binary": [0, 1], "multiclass": [2, 5, 9], "continuous": [0.25, -1.5, 7.125], "text": ["no", "yes"]}[kind]
    target = [values[i % len(values)] for i in range(len(fit))]
    encoder = TargetEncoder(smooth=data.draw(st.sampled_from(["auto", 0.5, 10.0])))
    encode(data, encoder, fit, serve, target)


def encode(data: st.DataObject, encoder: Any, fit: pd.DataFrame, serve: pd.DataFrame, target: Any = None) -> None:
    if data.draw(st.integers(0, 4)) == 0:
        encoder = encoder.set_output(transform="pandas") if not getattr(encoder, "sparse_output", False) else encoder
    pipeline = fitted(Targeted(encoder, target), fit).encoder
    dtype = data.draw(st.sampled_from(["float64", "float32"]))
    program = imported(pipeline, sample=fit, dtype=dtype)
    assert list(program.get_feature_names_out()) == list(pipeline.get_feature_names_out())
    rows = [serve.iloc[i : i + 1].reset_index(drop=True) for i in range(len(serve))]
    compare(pipeline, program, rows, dtype)


class Targeted:
    """An encoder with the target it is fitted on."""

    def __init__(self, encoder: Any, target: Any) -> None:
        self.encoder, self.target = encoder, target

    def fit(self, data: pd.DataFrame) -> None:
        self.encoder.fit(data, self.target)

    def transform(self, data: pd.DataFrame) -> Any:
        return self.encoder.transform(data)


# ---- selectors -------------------------------------------------------------------------------------------------
RANDOM = np.random.default_rng(1)
FRAME = pd.DataFrame({
    "code": RANDOM.integers(0, 4, 40), "a": RANDOM.normal(size=40), "b": RANDOM.normal(size=40), "c": 2.5,
})
TARGET = FRAME["a"].to_numpy() * 2 + FRAME["code"].to_numpy() + RANDOM.normal(size=40) / 10
SELECTORS = [
    VarianceThreshold(0.01), SelectKBest(f_regression, k=2), SelectFpr(f_regression), SelectFdr(f_regression),
    SelectFwe(f_regression), GenericUnivariateSelect(f_regression, mode="k_best", param=3),
    RFECV(LinearRegression(), cv=2),
]


@pytest.mark.parametrize("selector", SELECTORS, ids=label)
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_selector_behind_encoders(selector: Any, threshold: float) -> None:
    """Of dense and of sparse matrices, and in front of another step."""
    columns = ColumnTransformer([("code", OneHotEncoder(handle_unknown="ignore"), ["code"]),
                                 ("rest", "passthrough", ["a", "b", "c"])], sparse_threshold=threshold)
    pipeline = quietly(make_pipeline(columns, selector, StandardScaler(with_mean=False)).fit, FRAME, TARGET)
    program = Program.from_sklearn(pipeline, sample=FRAME)
    assert list(program.get_feature_names_out()) == list(pipeline.get_feature_names_out())
    serve = pd.DataFrame({"code": [9, 1, 2, 3], "a": [-0.0, 1e300, np.nan, 1.0], "b": [0.1, -1e-300, 2.0, np.inf],
                          "c": [2.5, -0.0, 1.0, 7.0]})
    compare(pipeline, program, [FRAME, *[serve.iloc[i : i + 1].reset_index(drop=True) for i in range(4)]], "float64")
