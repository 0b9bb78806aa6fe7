"""Pipelines fitted on frames of every dtype, of pandas and of polars: the program gives scikit-learn's bits on frames
of that dtype.
"""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.frozen import FrozenEstimator
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    RobustScaler,
    SplineTransformer,
    StandardScaler,
)
from sklearn_pipelines import dense, quietly

from fastinfer.errors import FastinferError, ImportRefusedError, InvalidRecordError
from fastinfer.preprocessing.program import Program

ROWS = 12
ONE_OF_TEN = np.arange(ROWS) % 10 == 3


def same(pipeline: Any, frame: Any, sample: Any = None) -> Program:
    """The imported program of a fitted pipeline, which gives its bits and names on a frame, whole and row by row."""
    program = Program.from_sklearn(pipeline, sample=frame if sample is None else sample)
    program = Program.from_json(program.to_json())
    expected = dense(quietly(pipeline.transform, frame), "float64")
    assert np.array_equal(expected.view(np.int64), dense(program.transform(frame), "float64").view(np.int64))
    for i in range(len(frame)):
        row = frame[i : i + 1]
        assert np.array_equal(dense(quietly(pipeline.transform, row), "float64"),
                              dense(program.transform(row), "float64"), equal_nan=True)
    assert list(program.get_feature_names_out()) == list(pipeline.get_feature_names_out())
    return program


def numbers_of(dtype: Any) -> pd.Series:
    values = pd.Series(np.random.default_rng(5).integers(0, 5, ROWS)).astype("float64")
    return values.where(~ONE_OF_TEN, np.nan).astype(dtype)


@pytest.mark.parametrize("dtype", ["Float64", "Float32", "Int64", "Int32", "UInt32", pd.ArrowDtype(pa.int64()),
                                   pd.ArrowDtype(pa.float32())], ids=str)
def test_a_nullable_column_is_float64_wherever_scikit_learn_checks_it(dtype: Any) -> None:
    fraction = 0.1 if "loat" in str(dtype) else 0
    frame = pd.DataFrame({"a": numbers_of(dtype) + numbers_of(dtype).iloc[0] * 0 + fraction,
                          "b": np.linspace(0.1, 3.0, ROWS, dtype=np.float32)})
    same(make_pipeline(SimpleImputer(), StandardScaler(), PolynomialFeatures(2)).fit(frame), frame)
    same(make_pipeline(MinMaxScaler()).fit(frame), frame)
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    same(ColumnTransformer([("one", encoder, ["a"]), ("two", StandardScaler(), ["b"])]).fit(frame), frame)


def test_a_nullable_column_that_is_passed_on_is_refused_where_it_is_missing() -> None:
    frame = pd.DataFrame({"a": pd.array(np.arange(ROWS) / 3, dtype="Float64"), "b": np.arange(ROWS) / 7.0})
    pipeline = ColumnTransformer([("scaled", StandardScaler(), ["b"])], remainder="passthrough").fit(frame)
    program = same(pipeline, frame)
    missing = frame.assign(a=pd.array([pd.NA] * ROWS, dtype="Float64"))
    with pytest.raises(ValueError, match=r"pandas\.NA"):
        pipeline.transform(missing)
    with pytest.raises(FastinferError, match="row 0, field 'a'"):
        program.transform(missing)
    with pytest.raises(ImportRefusedError, match="nullable dtype"):
        Program.from_sklearn(FunctionTransformer(np.sqrt).fit(frame), sample=frame)


def test_booleans_of_pandas() -> None:
    frame = pd.DataFrame({"a": pd.array([True, False] * (ROWS // 2), dtype="boolean"), "b": np.arange(ROWS) * 0.5})
    same(ColumnTransformer([("one", OneHotEncoder(), ["a"]), ("two", SimpleImputer(), ["a", "b"])]).fit(frame), frame)
    missing = frame.assign(a=pd.array([True, pd.NA] * (ROWS // 2), dtype="boolean"))
    pipeline = quietly(OneHotEncoder().fit, missing[["a"]])
    with pytest.raises(ImportRefusedError, match="holds booleans and missing values"):
        Program.from_sklearn(pipeline, sample=missing)


def test_text_with_pandas_na() -> None:
    texts = pd.array(["a", "b", pd.NA, "a", "c", "b"] * 2, dtype="string")
    frame = pd.DataFrame({"a": texts, "b": pd.array(["x", "y"] * 6, dtype="string")})
    filled = make_pipeline(SimpleImputer(strategy="most_frequent", missing_values=pd.NA), OneHotEncoder())
    same(quietly(filled.fit, frame), frame)
    unfilled = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    program = same(unfilled.fit(frame[["b"]]), frame[["b"]])
    with pytest.raises(FastinferError, match="row 1, field 'b'"):
        program.transform(frame.rename(columns={"a": "b", "b": "a"})[1:])


@pytest.mark.parametrize("dtype", ["uint64", "int32", "int8", "uint16"])
def test_integers_of_every_width(dtype: str) -> None:
    frame = pd.DataFrame({"a": np.arange(ROWS).astype(dtype), "b": np.arange(ROWS)[::-1] + 0.5})
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-7)
    same(ColumnTransformer([("code", ordinal, ["a"]), ("as_it_is", "passthrough", ["a"]),
                            ("two", StandardScaler(), ["a", "b"])]).fit(frame), frame)
    same(ColumnTransformer([("one", OneHotEncoder(), ["a"])], remainder="passthrough",
                           transformer_weights={"one": -1}).fit(frame), frame)
    splines = SplineTransformer(3, extrapolation="linear", sparse_output=True)
    same(ColumnTransformer([("code", ordinal, ["a"]), ("two", splines, ["a"])]).fit(frame), frame)


def test_numbers_that_would_be_filled_with_text() -> None:
    frame = pd.DataFrame({"a": np.array([1, 2, 3] * 4, np.uint32), "b": ["x", "y", None] * 4})
    pipeline = make_pipeline(SimpleImputer(strategy="constant"), OneHotEncoder(handle_unknown="ignore")).fit(frame)
    with pytest.raises(ImportRefusedError, match=r"pipeline\.steps\[0\]: .* 'a' is filled with 'missing_value'"):
        Program.from_sklearn(pipeline, sample=frame)


def polars_frame() -> pl.DataFrame:
    return pl.DataFrame({
        "a": pl.Series([0.5, 1.5, None, 3.25] * 3, dtype=pl.Float64), "b": pl.Series(range(ROWS), dtype=pl.Int32),
        "c": pl.Series([0.1, 0.2] * 6, dtype=pl.Float32), "d": ["x", "y", None, "é"] * 3,
        "e": pl.Series([True, False, False] * 4),
    })


def test_frames_of_polars() -> None:
    frame = polars_frame()
    parts = [("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["a", "b", "c", "e"]),
             ("single", StandardScaler(), ["c"]), ("texts", OneHotEncoder(), ["d"]),
             ("codes", OrdinalEncoder(), ["b", "e"])]
    same(ColumnTransformer(parts, remainder="passthrough").fit(frame), frame)
    same(ColumnTransformer(parts[:2]).fit(frame).set_output(transform="polars"), frame)
    same(make_pipeline(SimpleImputer(strategy="most_frequent", missing_values=None), OneHotEncoder()).fit(frame[["d"]]),
         frame[["d"]])
    with pytest.raises(ImportRefusedError, match="a frame of polars"):
        Program.from_sklearn(FunctionTransformer(np.sqrt, feature_names_out="one-to-one").fit(frame[["a"]]),
                             sample=frame[["a"]])


def test_polars_from_the_middle_of_a_pipeline() -> None:
    """A selector does not check a frame of pandas, and checks one of polars."""
    frame = pd.DataFrame({"a": np.arange(ROWS) * 0.5, "b": np.arange(ROWS) % 3 + 0.25, "c": np.ones(ROWS)})
    for kind in ("polars", "pandas"):
        pipeline = make_pipeline(StandardScaler(), VarianceThreshold(), SelectKBest(k=1)).set_output(transform=kind)
        program = same(pipeline.fit(frame, np.arange(ROWS) % 2), frame)
        missing = pd.DataFrame({"a": [np.nan], "b": [np.nan], "c": [0.0]})
        if kind == "pandas":
            same(pipeline, missing, frame)
            continue
        with pytest.raises(ValueError, match="contains NaN"):
            pipeline.transform(missing)
        with pytest.raises(FastinferError, match="row 0"):
            program.transform(missing)


class Own(StandardScaler):
    pass


def test_frozen_pipelines() -> None:
    frame = pd.DataFrame({"a": np.arange(ROWS) * 0.5, "b": ["x", "y", "z"] * 4})
    parts = [("one", StandardScaler(), ["a"]), ("two", OneHotEncoder(), ["b"])]
    same(Pipeline([("frozen", FrozenEstimator(ColumnTransformer(parts).fit(frame)))]), frame)
    own = Pipeline([("frozen", FrozenEstimator(Own().fit(frame[["a"]])))])
    with pytest.raises(ImportRefusedError, match=r"pipeline\.steps\[0\]\.estimator: .*cannot be imported"):
        Program.from_sklearn(own)


def test_weights_of_booleans_and_small_integers() -> None:
    """-1 times False is 0, without a sign."""
    frame = pd.DataFrame({"a": [1.0, np.nan, 0.5] * 4})
    same(FeatureUnion([("missing", MissingIndicator(features="all")), ("filled", SimpleImputer())],
                      transformer_weights={"missing": -1}).fit(frame), frame)
    wide = pd.DataFrame({"a": np.arange(ROWS)})
    for dtype in (np.int64, np.uint8):
        narrow = wide.astype(dtype)  # travels as floats, and 2 * 128 is 0 in uint8
        for part in (FunctionTransformer(), SimpleImputer(strategy="most_frequent")):
            plain = ColumnTransformer([("a", part, ["a"])], transformer_weights={"a": 2}).fit(narrow)
            for sample in (None, narrow):
                with pytest.raises(ImportRefusedError, match="may overflow"):
                    Program.from_sklearn(plain, sample=sample)
    floats = wide.astype(float)
    for weight in (1, 2):
        plain = ColumnTransformer([("a", FunctionTransformer(), ["a"])], transformer_weights={"a": weight}).fit(floats)
        assert Program.from_sklearn(plain, sample=floats).width == 1
    both = ColumnTransformer([("code", OrdinalEncoder(), ["a"]), ("a", "passthrough", ["a"])],
                             transformer_weights={"a": 2})
    with pytest.raises(ImportRefusedError, match="may overflow"):
        Program.from_sklearn(both.fit(wide), sample=wide)
    codes = OrdinalEncoder(dtype=np.int8, encoded_missing_value=-2)
    with pytest.raises(ImportRefusedError, match="may overflow"):
        Program.from_sklearn(FeatureUnion([("codes", codes)], transformer_weights={"codes": 100}).fit(frame))


def test_without_a_sample_a_column_of_nothing_but_missing_values_takes_numbers() -> None:
    """Nothing says that it would hold texts; one is refused by its place, and a sample that holds one is believed."""
    frame = pd.DataFrame({"a": [np.nan, np.nan]}, dtype=object)
    pipeline = ColumnTransformer([("a", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["a"])]).fit(frame)
    text = pd.DataFrame({"a": ["x"]}, dtype=object)
    with pytest.raises(InvalidRecordError, match=r"row 0, field 'a': str 'x', and the column takes numbers"):
        Program.from_sklearn(pipeline).transform(text)
    told = Program.from_sklearn(pipeline, sample=pd.concat([frame, text], ignore_index=True))
    assert told.transform(text).tolist() == pipeline.transform(text).tolist() == [[0.0]]


def test_infinities_that_are_filled() -> None:
    frame = pd.DataFrame({"a": np.linspace(-1, 1, ROWS), "b": np.arange(ROWS) / 3})
    same(make_pipeline(StandardScaler(), FunctionTransformer(np.nan_to_num, kw_args={"posinf": 9.0, "neginf": -9.0},
                                                             feature_names_out="one-to-one")).fit(frame), frame)


def test_the_last_digit_of_a_matrix_product_decides_no_category() -> None:
    frame = pd.DataFrame(np.random.default_rng(3).normal(size=(30, 3)), columns=list("abc"))
    for after in (OneHotEncoder(handle_unknown="ignore"), KBinsDiscretizer(3, quantile_method="linear")):
        pipeline = make_pipeline(PCA(2), StandardScaler(), after).fit(frame)
        with pytest.raises(ImportRefusedError, match=r"pipeline\.steps\[2\]: .*last digits of a product"):
            Program.from_sklearn(pipeline)


@pytest.mark.parametrize("step", [SimpleImputer(strategy="most_frequent"), MissingIndicator(features="all"),
                                  SimpleImputer(strategy="constant", fill_value=-1.0)], ids=repr)
def test_none_among_numbers_is_no_nan_in_an_array_of_objects(step: Any) -> None:
    """There scikit-learn leaves None alone; where it makes floats of the array, None is NaN."""
    data = np.array([[1.5, None], [2.0, 3.0], [np.nan, 4.0], [2.0, 3.0]], dtype=object)
    with pytest.raises(ImportRefusedError, match=r"pipeline: the column 'x1' has None among its numbers"):
        Program.from_sklearn(quietly(step.fit, data), sample=data)
    fitted = SimpleImputer(add_indicator=True).fit(data)
    program = Program.from_sklearn(fitted, sample=data)
    assert np.array_equal(fitted.transform(data), program.transform(data))
    weighted = FeatureUnion([("same", "passthrough")], transformer_weights={"same": 2}).fit(data)
    with pytest.raises(ImportRefusedError, match=r"transformer_list\['same'\]: a weight"):
        Program.from_sklearn(weighted, sample=data)


def test_a_mean_is_filled_in_beside_objects() -> None:
    """A frame of objects and of nullable numbers becomes floats before anything is compared with pandas.NA."""
    frame = pd.DataFrame({"a": pd.array([1, 2, pd.NA, 4], "UInt16"),
                          "b": pd.Series([1, 2.5, np.nan, -1], dtype=object)})
    same(SimpleImputer(add_indicator=True).fit(frame), frame)


def test_a_union_of_nullable_columns() -> None:
    """Of several of them numpy makes objects, in which pandas.NA is no number; of one, floats."""
    frame = pd.DataFrame({"a": pd.array([1, 2, pd.NA, 4], "Int8"), "b": np.arange(4, dtype=np.int32)})
    one = FeatureUnion([("same", FunctionTransformer(feature_names_out="one-to-one"))])
    same(one.fit(frame[["a"]]), frame[["a"]])
    pipeline = make_pipeline(FeatureUnion([("same", FunctionTransformer()), ("again", "passthrough")]))
    program = Program.from_sklearn(pipeline.fit(frame), sample=frame)
    full = frame.drop(index=2)
    assert np.array_equal(pipeline.transform(full).astype("float64"), program.transform(full))
    with pytest.raises(FastinferError, match="row 2, field 'a': missing"):
        program.transform(frame)


def test_a_robust_scaler_tells_without_a_sample_that_it_was_fitted_on_float32() -> None:
    frame = pd.DataFrame({"a": np.float32([0.1, 1.7, 3e10, -5.3]), "b": np.float32([1, 2, 2.5, 1e-3])})
    scaler = RobustScaler().fit(frame)
    assert np.array_equal(Program.from_sklearn(scaler).transform(frame), scaler.transform(frame).astype(float))


@pytest.mark.parametrize("values", [
    pd.to_timedelta(["1h", "2h"]), pd.to_datetime(["2024-01-01", "2024-01-02"], utc=True),
    pd.Series([b"a", b"b"], dtype=object), pd.Series([10**5000, 1], dtype=object),
    pd.Series([pd.Timedelta("1h"), pd.Timedelta("2h")], dtype=object), pd.period_range("2024", periods=2, freq="M"),
])  # fmt: skip
@pytest.mark.parametrize("first", [SimpleImputer(strategy="most_frequent"), OrdinalEncoder(), FunctionTransformer()],
                         ids=repr)
def test_values_that_no_column_takes_are_refused_by_their_column(first: Any, values: Any) -> None:
    frame = pd.DataFrame({"a": values})
    pipeline = make_pipeline(first, MissingIndicator(features="all"))
    try:
        pipeline.fit(frame)
    except (TypeError, ValueError, AttributeError):
        pytest.skip("scikit-learn does not take them")
    for sample in (frame, None):
        with pytest.raises(FastinferError, match=r"^(pipeline|row 0, field).*'a'") as caught:
            Program.from_sklearn(pipeline, sample=sample).transform(frame)
        assert caught.value.at is not None
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize("beside", [
    ("passthrough", ["b"]), (OneHotEncoder(sparse_output=False, dtype=np.int64), ["s"]),
    (MissingIndicator(features="all"), ["f"]), (OrdinalEncoder(dtype=np.int32), ["s"])], ids=repr)
def test_integers_beside_what_is_no_float_stay_integers(beside: Any) -> None:
    """numpy's product of them overflows, and has no -0.0, as the floats have that they travel as."""
    frame = pd.DataFrame({"i": [2**62, 0, 5, -7], "b": [True, False, True, True], "s": list("xyxy"),
                          "f": [1.0, np.nan, 3.0, 4.0]})
    for last in (FeatureUnion([("w", SelectKBest(k="all"))], transformer_weights={"w": 2}),
                 FunctionTransformer(np.negative)):
        columns = ColumnTransformer([("i", "passthrough", ["i"]), ("beside", *beside)])
        pipeline = make_pipeline(columns, last).fit(frame, [0, 1, 0, 1])
        with pytest.raises(ImportRefusedError, match=r"integers|overflow|dtype object"):
            Program.from_sklearn(pipeline, sample=frame)
    both = ColumnTransformer([("p", SimpleImputer(strategy="most_frequent"), ["i", "b"])], transformer_weights={"p": 2})
    with pytest.raises(ImportRefusedError, match="may overflow"):
        Program.from_sklearn(both.fit(frame), sample=frame)


def test_a_weight_of_a_frame_is_of_each_column() -> None:
    frame = pd.DataFrame({"f": [1.5, 2.5], "i": [2**62, 1]})
    columns = ColumnTransformer([("p", "passthrough", ["f", "i"])], transformer_weights={"p": 2}).fit(frame)
    with pytest.raises(ImportRefusedError, match="may overflow"):
        Program.from_sklearn(columns, sample=frame)
    same(columns.set_params(transformer_weights={"p": 0.5}).fit(frame), frame)
