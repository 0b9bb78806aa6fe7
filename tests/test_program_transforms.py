"""Each scikit-learn transformer with each of its options, on frames that take its branches, bit by bit."""

import itertools
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.decomposition import KernelPCA
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.feature_selection import (
    RFE,
    SelectFromModel,
    SelectKBest,
    SelectPercentile,
    SequentialFeatureSelector,
    VarianceThreshold,
)
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)
from sklearn_pipelines import quietly
from test_program_sklearn import compare

from fastinfer.errors import FastinferError, ImportRefusedError, InvalidRecordError, UnknownCategoryError
from fastinfer.preprocessing.program import Program


def label(value):
    """A test's id without addresses: the processes that share a run must agree on it."""
    return re.sub(r" at 0x[0-9a-f]+", "", value if isinstance(value, str) else repr(value))


NAN = np.nan
NUMBERS = pd.DataFrame({
    "age": [39.0, 25.5, NAN, 61.0, -0.0, 39.0],
    "income": [1e6, 0.1, 3.3, -7.25, 1e-9, 0.1],
    "constant": [2.5] * 6,
    "whole": [3, -1, 7, 3, 0, 12],
})
EDGES = pd.DataFrame({
    "age": [NAN, 0.0, -0.0, 1e300, 5e-324, 39.0, 50.25, -np.inf, np.inf, 1 / 3],
    "income": [0.1, -0.0, 0.3, 1e300, -1e300, 1e-9, 7.0, 0.1, 0.2, np.inf],
    "constant": [2.5, 2.5, 3.0, 1e300, -0.0, 0.0, 2.5, 2.5, 2.5, 2.5],
    "whole": [3, 0, -5, 2**40, 7, 100, -(2**53), 12, 0, 1],
})
WORDS = pd.DataFrame({
    "job": pd.Series(["clerk", "cook", "clerk", "smith", "cook", "clerk", "baker", NAN, "Ärztin", ""], dtype="str"),
    "home": pd.Series(["rent", "own", "rent", "own", "rent", "own", "rent", "own", "rent", "rent"], dtype="str"),
    "code": [1, 2, 2, 3, 1, 1, 2, 3, 5, 5],
    "flag": [True, False, True, True, False, True, True, False, True, False],
    "grade": [0.5, 1.5, NAN, 0.5, 2.5, 0.5, 0.5, 1.5, 1.5, 0.5],
})
UNSEEN = pd.DataFrame({
    "job": pd.Series(["clerk", "pilot", NAN, "", "Clerk", "日本", "Ärztin", "clerk ", "baker", "smith"], dtype="str"),
    "home": pd.Series(["rent", "own", "rent", NAN, "boat", "", "own", "rent", "own", "rent"], dtype="str"),
    "code": [1, 4, 2, 3, 5, -1, 2**60, 2, 1, 3],
    "flag": [True, False, True, False, True, False, True, False, True, False],
    "grade": [0.5, 2.5, NAN, -0.0, 1.0, 1e300, 1.5, np.inf, 0.5, 0.5],
})


def rows_of(frame: pd.DataFrame) -> list[pd.DataFrame]:
    return [frame.iloc[i : i + 1].reset_index(drop=True) for i in range(len(frame))]


def check(transformer: Any, fit: pd.DataFrame, serve: pd.DataFrame, **options: Any) -> Program:
    """Fit, import, and compare: the fitted frame whole, the other row by row, since some rows are refused."""
    fitted = quietly(clone(transformer).fit, fit)
    program = quietly(lambda: Program.from_sklearn(fitted, sample=fit, **options))
    dtype = options.get("dtype", "float64")
    compare(fitted, program, [fit, *rows_of(serve)], dtype)
    try:
        wanted = list(fitted.get_feature_names_out())
    except (AttributeError, ValueError):  # a FunctionTransformer without names
        return program
    assert list(program.get_feature_names_out()) == wanted
    return program


def options_of(cls: Any, **choices: Any) -> list[Any]:
    """The class with every combination of the options."""
    return [cls(**dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]


SCALERS = [
    *options_of(StandardScaler, with_mean=[True, False], with_std=[True, False]),
    *options_of(MinMaxScaler, clip=[True, False], feature_range=[(0, 1), (-0.1, 0.7)]),
    MaxAbsScaler(),
    *options_of(RobustScaler, with_centering=[True, False], with_scaling=[True, False], unit_variance=[True, False],
                quantile_range=[(10.0, 90.0)]),
    *options_of(FunctionTransformer, func=[None, np.log1p, np.abs, np.sign, np.square, np.exp, np.sqrt, np.floor],
                validate=[True, False]),
]


@pytest.mark.parametrize("scaler", SCALERS, ids=label)
@pytest.mark.parametrize("single", [False, True])
def test_scaler(scaler: Any, single: bool) -> None:
    fit, serve = NUMBERS.dropna(), EDGES
    if getattr(scaler, "func", None) is np.square:  # of integers it wraps around, and is refused
        fit, serve = fit.astype({"whole": float}), serve.astype({"whole": float})
    if single:
        fit, serve = (quietly(frame.astype, "float32").replace([np.inf], 1.0) for frame in (fit, serve))
    check(scaler, fit, serve, dtype="float32" if single else "float64")


FINITE_ONLY = [
    *options_of(Binarizer, threshold=[0.0, 0.1, -1, 3.3, np.float64(0.1)]),
    *options_of(KBinsDiscretizer, n_bins=[2, 3], encode=["onehot", "onehot-dense", "ordinal"],
                strategy=["uniform", "quantile"], dtype=[None, np.float32], quantile_method=["averaged_inverted_cdf"]),
]


@pytest.mark.parametrize("transformer", FINITE_ONLY, ids=label)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_refuses_missing_values(transformer: Any, dtype: str) -> None:
    fit = NUMBERS.dropna().drop(columns="constant").astype(dtype)
    serve = quietly(EDGES.drop(columns="constant").astype, dtype)
    program = check(transformer, fit, serve)
    assert not any(column.nullable for column in program.columns)
    with pytest.raises(InvalidRecordError, match=r"row 0, field 'age': missing"):
        program.transform(serve[:1])


IMPUTERS = [
    *options_of(SimpleImputer, strategy=["mean", "median", "most_frequent", "constant"], add_indicator=[True, False],
                keep_empty_features=[True, False], missing_values=[NAN, 2.5, 39]),
    SimpleImputer(strategy="constant", fill_value=-1.5, add_indicator=True),
    SimpleImputer(strategy=lambda values: values.sum() / 3),
    *options_of(MissingIndicator, features=["all", "missing-only"], error_on_new=[True, False]),
]


@pytest.mark.parametrize("imputer", IMPUTERS, ids=label)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_imputer(imputer: Any, dtype: str) -> None:
    missing = getattr(imputer, "missing_values", NAN)
    fit = NUMBERS.assign(empty=missing, few=[missing, 1.0, 2.0, 2.0, 5.0, missing]).astype(dtype)
    serve = quietly(EDGES.assign(empty=[1.0, missing] * 5, few=[missing, 39.0] * 5).astype, dtype)
    if not np.isnan(missing):
        fit, serve = fit.fillna(1.0), serve.fillna(7.0)
    check(imputer, fit, serve)


TEXT_IMPUTERS = [
    *options_of(SimpleImputer, strategy=["most_frequent"], missing_values=[NAN, None, "cook"]),
    *options_of(SimpleImputer, strategy=["constant"], fill_value=[None, "?", ""], missing_values=[NAN, None, pd.NA]),
]


@pytest.mark.parametrize("imputer", TEXT_IMPUTERS, ids=label)
@pytest.mark.parametrize("holder", ["str", "nan", "none", "both"])
def test_imputer_of_text(imputer: Any, holder: str) -> None:
    """None and NaN differ in columns of objects: an imputer fills the one that it is told of."""
    values = ["clerk", "cook", NAN, "cook", None, "clerk", "smith"]
    wanted = {"str": values, "nan": [NAN if v is None else v for v in values], "both": values,
              "none": [None if v != v else v for v in values]}[holder]
    column = pd.Series(wanted, dtype="str" if holder == "str" else object)
    fit = pd.DataFrame({"job": column})
    pipeline = make_pipeline(imputer, OneHotEncoder(handle_unknown="ignore"))
    try:
        quietly(clone(pipeline).fit, fit)
    except ValueError:
        assert holder != "none" or imputer.missing_values == "cook"  # NaN, where the imputer looks for something else
        return
    check(pipeline, fit, pd.DataFrame({"job": pd.concat([column, pd.Series(["", "x"], dtype=column.dtype)])}))


ENCODERS = [
    *options_of(OneHotEncoder, drop=[None, "first", "if_binary"],
                handle_unknown=["error", "ignore", "infrequent_if_exist", "warn"], min_frequency=[None, 2, 0.25],
                max_categories=[None, 2]),
    *options_of(OneHotEncoder, sparse_output=[True, False], dtype=[np.float32, np.int8, bool]),
    *options_of(OrdinalEncoder, handle_unknown=["error"], encoded_missing_value=[NAN, -5], max_categories=[None, 3],
                min_frequency=[None, 2]),
    *options_of(OrdinalEncoder, handle_unknown=["use_encoded_value"], unknown_value=[-1, NAN, 99],
                encoded_missing_value=[NAN, -5], max_categories=[None, 3], dtype=[np.float32, np.float64]),
    OrdinalEncoder(dtype=np.int64, encoded_missing_value=-1, handle_unknown="use_encoded_value", unknown_value=-2),
]


@pytest.mark.parametrize("encoder", ENCODERS, ids=label)
def test_encoder(encoder: Any) -> None:
    program = check(encoder, WORDS, UNSEEN)
    kinds = {column.name: column.datatype for column in program.columns}
    assert kinds == {"job": "BYTES", "home": "BYTES", "code": "INT64", "flag": "BOOL", "grade": "FP64"}
    refuses = encoder.handle_unknown == "error"
    nullable = {column.name: column.nullable for column in program.columns}
    assert nullable == {"job": True, "home": not refuses, "code": False, "flag": False, "grade": True}
    if refuses:
        with pytest.raises(UnknownCategoryError, match=r"row 1, field 'job'"):
            program.transform(UNSEEN[["job", "home", "code", "flag", "grade"]].iloc[[0, 1]])


def test_encoder_of_given_categories() -> None:
    """Categories in another order than sorted, more than were seen, NaN last; and a category dropped by name."""
    fit = WORDS[["job", "home"]].fillna("none")
    encoder = OneHotEncoder(categories=[["none", "smith", "clerk", "cook", "baker", "Ärztin", "", "pilot"],
                                        ["rent", "own", NAN]], drop=["clerk", NAN], handle_unknown="ignore")
    check(encoder, fit, UNSEEN[["job", "home"]])
    check(OneHotEncoder(categories=[[0.5, 1.5, 2.5, NAN]]), WORDS[["grade"]], UNSEEN[["grade"]])
    check(OneHotEncoder(drop=["cook", "rent"]), fit, UNSEEN[["job", "home"]])
    check(OneHotEncoder(drop=["cook"], max_categories=3, handle_unknown="infrequent_if_exist"), fit[["job"]],
          UNSEEN[["job"]])


def test_encoder_of_none_and_nan() -> None:
    """Two categories of their own; a client's null is None then, since JSON's null is Python's None."""
    column = pd.Series(["a", None, NAN, "b"], dtype=object)
    fit = pd.DataFrame({"x": column})
    for encoder in (OneHotEncoder(), OrdinalEncoder(), OneHotEncoder(drop=[None])):
        program = check(encoder, fit, fit)
        assert program.columns[0].missing == "none"


def test_text_that_looks_like_something_else() -> None:
    values = ["nan", "None", "", " ", "1", "1.0", "true", "\u00e9", "e\u0301", "\U0001f600", "a\tb", 'q"\\', "inf"]
    fit = pd.DataFrame({"x": pd.Series(values, dtype="str")})
    serve = pd.DataFrame({"x": pd.Series([*values, NAN, "E\u0301", "2"], dtype="str")})
    check(OneHotEncoder(handle_unknown="ignore"), fit, serve)


def test_integers_past_two_to_the_53_are_told_apart() -> None:
    fit = pd.DataFrame({"id": [2**53, 2**53 + 1, -(2**63), 2**63 - 1]})
    program = check(OneHotEncoder(handle_unknown="ignore"), fit, pd.DataFrame({"id": [2**53 + 2, 2**53 + 1, 0]}))
    assert program.columns[0].datatype == "INT64"


@pytest.mark.parametrize("classes", [2, 3, None])
def test_target_encoder(classes: int | None) -> None:
    target = np.arange(len(WORDS)) * 0.7 if classes is None else np.arange(len(WORDS)) % classes
    fitted = TargetEncoder(target_type="auto").fit(WORDS, target)
    program = Program.from_sklearn(fitted, sample=WORDS)
    compare(fitted, program, rows_of(WORDS) + rows_of(UNSEEN), "float64")
    assert list(program.get_feature_names_out()) == list(fitted.get_feature_names_out())


SELECTIONS = [
    VarianceThreshold(), SelectKBest(k=2), SelectPercentile(percentile=50),
    RFE(LinearRegression(), n_features_to_select=2),
    SelectFromModel(HistGradientBoostingRegressor(max_iter=2), threshold=-np.inf, max_features=2,
                    importance_getter=lambda model: np.array([3.0, 1.0, 0.0, 2.0])),
    SequentialFeatureSelector(LinearRegression(), n_features_to_select=2, cv=2),
]


@pytest.mark.parametrize("selector", SELECTIONS, ids=label)
@pytest.mark.parametrize("output", ["default", "pandas"])
def test_selector(selector: Any, output: str) -> None:
    """All of them check every column; some take missing values, and a frame that stays a frame is not checked."""
    data = NUMBERS.fillna(1.0)
    fitted = quietly(clone(selector).set_output(transform=output).fit, data, [0, 1, 0, 1, 1, 0])
    program = Program.from_sklearn(fitted, sample=data)
    compare(fitted, program, rows_of(data) + rows_of(EDGES), "float64")
    assert list(program.get_feature_names_out()) == list(fitted.get_feature_names_out())


COLUMN_CHOICES: list[Any] = [
    ["age", "income"], [0, 1], [-5, -4], slice(0, 2), slice("age", "income"), [True, True, False, False, False],
    np.array([0, 1]), make_column_selector(pattern="age|income"), lambda frame: ["age", "income"],
]


@pytest.mark.parametrize("columns", COLUMN_CHOICES, ids=label)
@pytest.mark.parametrize("remainder", ["drop", "passthrough", SimpleImputer(strategy="median")], ids=label)
def test_column_transformer(columns: Any, remainder: Any) -> None:
    data = NUMBERS.assign(job=pd.Series(["a", "b", "a", "c", "b", "a"], dtype="str"))
    serve = EDGES.assign(job=pd.Series(["a", "z"] * 5, dtype="str"))
    transformer = ColumnTransformer(
        [("numbers", make_pipeline(SimpleImputer(), StandardScaler()), columns),
         ("words", OneHotEncoder(handle_unknown="ignore"), ["job"] if isinstance(columns, list) and columns == [
             "age", "income"] else [4]),
         ("nothing", StandardScaler(), []), ("gone", "drop", [3])],
        remainder=remainder, sparse_threshold=0.0, transformer_weights={"words": 0.1},
    )
    program = check(transformer, data, serve)
    assert program.ignored == (("constant", "whole") if remainder == "drop" else ("whole",))
    assert [column.name for column in program.columns] == [
        name for name in data.columns if name not in program.ignored]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_sparse_and_dense_differ_in_their_arithmetic(threshold: float) -> None:
    """A sparse matrix is scaled by the reciprocal, and loses its -0.0."""
    columns = ColumnTransformer([("words", OneHotEncoder(), ["code"]), ("numbers", "passthrough", ["grade", "code"])],
                                sparse_threshold=threshold)
    data = WORDS[["code", "grade"]].fillna(-0.0)
    for after in ([], [StandardScaler(with_mean=False)], [MaxAbsScaler()], [RobustScaler(with_centering=False)],
                  [SimpleImputer(missing_values=0.5)], [Binarizer(threshold=0.7)],
                  [FeatureUnion([("a", MaxAbsScaler()), ("b", "passthrough"), ("c", "drop")])]):
        check(make_pipeline(columns, *after), data, data.assign(grade=[-0.0, 0.0, NAN, 1 / 3, 7.0] * 2))


def test_feature_union_with_weights() -> None:
    union = FeatureUnion([("scaled", StandardScaler()), ("same", "passthrough"), ("none", "drop"),
                          ("bins", KBinsDiscretizer(2, quantile_method="averaged_inverted_cdf"))],
                         transformer_weights={"scaled": 0.1, "same": 3})
    check(make_pipeline(SimpleImputer(), union), NUMBERS.drop(columns="constant"), EDGES.drop(columns="constant"))


def test_deep_nesting_and_frames_between_steps() -> None:
    inner = ColumnTransformer([("a", StandardScaler(), [0]), ("b", make_pipeline(FunctionTransformer(np.log1p)), [1])],
                              remainder="passthrough")
    outer = ColumnTransformer([
        ("numbers", Pipeline([("fill", SimpleImputer(add_indicator=True)), ("inner", inner), ("skip", "passthrough")]),
         ["income", "age"]),
        ("whole", FeatureUnion([("x", MinMaxScaler()), ("y", OrdinalEncoder(
            handle_unknown="use_encoded_value", unknown_value=-1))]), ["whole"]),
    ])
    check(outer, NUMBERS.abs(), EDGES.abs())
    check(outer.set_output(transform="pandas"), NUMBERS.abs(), EDGES.abs())


def test_duplicate_columns_of_an_array() -> None:
    data = NUMBERS.fillna(1.0).to_numpy()
    transformer = ColumnTransformer([("a", StandardScaler(), [0, 0, 1]), ("b", MinMaxScaler(), [0])]).fit(data)
    program = Program.from_sklearn(transformer)
    compare(transformer, program, [data[i : i + 1] for i in range(len(data))], "float64")
    assert program.ignored == ("x2", "x3")


REFUSED: list[tuple[Any, str]] = [
    (FunctionTransformer(lambda x: x + 1), r"pipeline: the function '<lambda>' cannot be read"),
    (FunctionTransformer(np.log1p, kw_args={"where": True}), r"pipeline: the function 'log1p' cannot be read"),
    (FunctionTransformer(np.cumsum), r"pipeline: the function 'cumsum' cannot be read"),
    (make_pipeline(SimpleImputer(), KernelPCA(1)), r"pipeline\.steps\[1\]: KernelPCA cannot be imported"),
    (ColumnTransformer([("n", StandardScaler(), ["age"]), ("own", make_pipeline(KernelPCA(1)), ["income"])]),
     r"pipeline\.transformers\['own'\]\.steps\[0\]: KernelPCA cannot be imported"),
    (FeatureUnion([("a", StandardScaler()), ("b", KernelPCA(1))]), r"pipeline\.transformer_list\['b'\]: KernelPCA"),
    (ColumnTransformer([("none", "drop", ["age"])]), r"pipeline: it gives 0 features"),
]


@pytest.mark.parametrize(("transformer", "message"), REFUSED, ids=label)
def test_refused(transformer: Any, message: str) -> None:
    fitted = quietly(clone(transformer).fit, NUMBERS.fillna(0.0))
    with pytest.raises(ImportRefusedError, match=f"^{message}"):
        Program.from_sklearn(fitted)


def test_refused_of_text() -> None:
    data = WORDS.fillna({"job": "none"})
    for transformer, message in [
        (ColumnTransformer([("text", CountVectorizer(tokenizer=str.split), "job")]),
         r"p\.transformers\['text'\]: tokenizer is a function of your own"),
        (ColumnTransformer([("text", FunctionTransformer(pd.get_dummies), "job")]),
         r"p\.transformers\['text'\]: it gets the column 'job' as a vector"),
        (ColumnTransformer([("same", "passthrough", ["job"]), ("home", OneHotEncoder(), ["home"])]),
         r"p: the column 'same__job' is text still"),
        (OneHotEncoder(), r"p: the column 'odd' holds booleans and missing values"),
    ]:
        odd = data.assign(odd=pd.Series([True, None] * 5, dtype=object))
        fitted = quietly(clone(transformer).fit, odd)
        with pytest.raises(ImportRefusedError, match=message):
            Program.from_sklearn(fitted, path="p", sample=data.assign(odd=odd["odd"]))


@pytest.mark.parametrize("function", [np.square, np.reciprocal])
def test_functions_that_see_integers(function: Any) -> None:
    """numpy's 1 / 5 of integers is 0, and squares wrap around."""
    fitted = FunctionTransformer(function).fit(NUMBERS[["whole"]])
    with pytest.raises(ImportRefusedError, match="integers"):
        Program.from_sklearn(fitted, sample=NUMBERS[["whole"]])
    check(make_pipeline(StandardScaler(), FunctionTransformer(function)), NUMBERS[["whole"]], EDGES[["whole"]])


def test_narrow_integers_beside_float32() -> None:
    frame = NUMBERS[["whole"]].astype("int16").assign(x=np.float32(0.1))
    fitted = StandardScaler().fit(frame)
    with pytest.raises(ImportRefusedError, match="'whole' is int16, beside columns of float32"):
        Program.from_sklearn(fitted, sample=frame)


def test_a_subclass_may_do_anything() -> None:
    class Mine(StandardScaler):
        def transform(self, X: Any, copy: Any = None) -> Any:
            return super().transform(X) + 1

    with pytest.raises(ImportRefusedError, match="pipeline: Mine cannot be imported"):
        Program.from_sklearn(Mine().fit(NUMBERS.fillna(0.0)))


def test_not_fitted() -> None:
    with pytest.raises(ImportRefusedError, match="pipeline"):
        Program.from_sklearn(StandardScaler())


@pytest.mark.parametrize(("allow", "refused"), [
    ("any", []), ("nan", [1e300, -1e300]), ("finite", [1e300, NAN, -1e300])])
def test_what_the_estimator_refuses(allow: str, refused: list[float]) -> None:
    """A float64 may be infinite as the float32 that a tree compares."""
    fitted = FunctionTransformer().fit(np.zeros((2, 1)))
    program = Program.from_sklearn(fitted, dtype="float32", allow=allow)
    assert program.columns[0].nullable == (allow != "finite")
    for value in (0.0, 1e300, NAN, -1e300, 3.0e38):
        row = np.array([[value]])
        if any(value == bad or (value != value and bad != bad) for bad in refused):
            with pytest.raises(FastinferError, match=r"row 0, field 'x0': (missing|too large)"):
                program.transform(row)
        else:
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(program.transform(row), row.astype("float32"))
