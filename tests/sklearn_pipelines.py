"""Random frames and random nested scikit-learn pipelines, for tests of the feature program."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    SplineTransformer,
    StandardScaler,
)

TEXTS = ("a", "b", "", "é", "日本", "a b", "A", "0", "nan", "None", "x" * 40)
FUNCTIONS = (np.log1p, np.log, np.sqrt, np.exp, np.expm1, np.abs, np.sign, np.square, np.cbrt, np.tanh, np.rint)
nan = st.just(np.nan)
finite = st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, 1.0, 0.1, -1.0, 1e-300, 1e15, 16777217.0])
wide = finite | st.floats(allow_nan=True, allow_infinity=True)


@dataclass
class Kind:
    """A kind of raw column: how it is drawn for fitting and for serving, and as what it is stored."""

    fitted: st.SearchStrategy[Any]
    served: st.SearchStrategy[Any]
    store: Any
    numeric: bool


def object_series(values: list[Any]) -> pd.Series:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return pd.Series(array, dtype=object)


few = st.sampled_from([0.5, 1.5, -2.0, 3.0, 7.25])
def typed_series(dtype: str) -> Any:
    return lambda values: pd.Series(values, dtype=dtype)


seen, served = st.sampled_from(TEXTS[:4]), st.sampled_from(TEXTS)
KINDS = {
    "float": Kind(finite | few | nan, wide | few, typed_series("float64"), True),
    "full": Kind(finite | few, wide | few, typed_series("float64"), True),
    "single": Kind(finite | few | nan, finite | few | nan | st.just(np.inf), typed_series("float32"), True),
    "int": Kind(st.integers(-3, 3), st.integers(-5, 5) | st.integers(-10**6, 10**6), typed_series("int64"), True),
    "bool": Kind(st.booleans(), st.booleans(), typed_series("bool"), True),
    "text": Kind(seen | nan, served | nan | st.text(max_size=4), typed_series("str"), False),
    "words": Kind(seen, served | nan, typed_series("str"), False),
    "object": Kind(seen | nan, served | nan, object_series, False),
    "none": Kind(seen | st.none(), served | st.none(), object_series, False),
    "both": Kind(seen | st.none() | nan, served | st.none() | nan, object_series, False),
}


PLAIN = tuple(KINDS)
few_integers, missing = st.integers(0, 4), st.just(pd.NA)
KINDS |= {
    "uint64": Kind(few_integers, st.integers(0, 2**40), typed_series("uint64"), True),
    "uint8": Kind(few_integers, st.integers(0, 255), typed_series("uint8"), True),
    "Int64": Kind(few_integers | missing, few_integers | missing | st.integers(-10**6, 10**6), typed_series("Int64"),
                  True),
    "Float64": Kind(few | missing, few | missing | st.floats(-1e6, 1e6), typed_series("Float64"), True),
    "Float32": Kind(few | missing, few | missing | st.floats(-1e6, 1e6, width=32), typed_series("Float32"), True),
    "boolean": Kind(st.booleans(), st.booleans(), typed_series("boolean"), True),
    "arrow": Kind(few_integers | st.none(), few_integers | st.none(), typed_series(pd.ArrowDtype(pa.int64())), True),
    "string": Kind(seen | missing, served | missing, typed_series("string"), False),
    "category": Kind(seen | nan, seen | nan, lambda values: pd.Series(pd.Categorical(values, TEXTS[:4])), False),
    "numbers": Kind(few_integers, few_integers | st.integers(-9, 99), object_series, False),
}


@st.composite
def frames(draw: st.DrawFn, kinds: tuple[str, ...] = PLAIN) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """(frame to fit on, frame to serve, kind of each column)."""
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6))
    rows = draw(st.integers(2, 12))
    served = draw(st.integers(1, 6))
    names = {f"c{i}": kind for i, kind in enumerate(chosen)}
    fit, serve = {}, {}
    for name, kind in names.items():
        k = KINDS[kind]
        fit[name] = k.store(draw(st.lists(k.fitted, min_size=rows, max_size=rows)))
        with np.errstate(all="ignore"):
            serve[name] = k.store(draw(st.lists(k.served, min_size=served, max_size=served)))
    return pd.DataFrame(fit), pd.DataFrame(serve), names


imputers = st.builds(
    SimpleImputer,
    strategy=st.sampled_from(["mean", "median", "most_frequent", "constant"]),
    add_indicator=st.booleans(),
    keep_empty_features=st.booleans(),
    missing_values=nan | st.sampled_from([np.nan, np.nan, 0.5, 3, -2.0]),
)
scalers = st.one_of(
    st.builds(StandardScaler, with_mean=st.booleans(), with_std=st.booleans()),
    st.builds(MinMaxScaler, clip=st.booleans(), feature_range=st.sampled_from([(0, 1), (-1, 1), (0.1, 0.7)])),
    st.builds(MaxAbsScaler),
    st.builds(RobustScaler, with_centering=st.booleans(), with_scaling=st.booleans(), unit_variance=st.booleans()),
    st.builds(Binarizer, threshold=st.sampled_from([0.0, 0.1, 0.5, -1.0, 2])),
    st.builds(KBinsDiscretizer, n_bins=st.integers(2, 4), encode=st.sampled_from(["onehot", "onehot-dense", "ordinal"]),
              strategy=st.sampled_from(["uniform", "quantile", "kmeans"]), dtype=st.sampled_from([None, np.float32]),
              quantile_method=st.just("averaged_inverted_cdf")),
    st.builds(FunctionTransformer, st.sampled_from([None, *FUNCTIONS]), validate=st.booleans()),
    st.builds(MissingIndicator, features=st.sampled_from(["all", "missing-only"]), error_on_new=st.booleans()),
)
shapers = st.one_of(
    st.builds(Normalizer, norm=st.sampled_from(["l1", "l2", "max"])),
    st.builds(PowerTransformer, method=st.sampled_from(["yeo-johnson", "yeo-johnson", "box-cox"]),
              standardize=st.booleans()),
    st.builds(QuantileTransformer, n_quantiles=st.integers(1, 9),
              output_distribution=st.sampled_from(["uniform", "normal"])),
    st.builds(PolynomialFeatures, degree=st.sampled_from([0, 1, 2, 3, 4, (2, 3), (3, 3)]),
              interaction_only=st.booleans(), include_bias=st.booleans(), order=st.sampled_from("CF")),
    st.builds(SplineTransformer, n_knots=st.integers(2, 5), degree=st.integers(0, 4),
              knots=st.sampled_from(["uniform", "quantile"]),
              extrapolation=st.sampled_from(["error", "constant", "linear", "continue", "periodic"]),
              include_bias=st.booleans(), sparse_output=st.booleans(), order=st.sampled_from("CF"),
              handle_missing=st.sampled_from(["error", "zeros"])),
)
scalers |= shapers
text_imputers = st.one_of(
    st.builds(SimpleImputer, strategy=st.just("most_frequent"), missing_values=st.sampled_from([np.nan, None, "a"]),
              add_indicator=st.booleans(), keep_empty_features=st.booleans()),
    st.builds(SimpleImputer, strategy=st.just("constant"), fill_value=st.sampled_from([None, "é", "?"]),
              missing_values=st.sampled_from([np.nan, None, pd.NA]), add_indicator=st.booleans()),
)
encoders = st.one_of(
    st.builds(
        OneHotEncoder,
        drop=st.sampled_from([None, "first", "if_binary"]),
        handle_unknown=st.sampled_from(["ignore", "error", "infrequent_if_exist", "warn"]),
        min_frequency=st.sampled_from([None, None, 2, 0.3]),
        max_categories=st.sampled_from([None, None, 2, 3]),
        sparse_output=st.booleans(),
        dtype=st.sampled_from([np.float64, np.float32, np.int64]),
    ),
    st.builds(
        OrdinalEncoder,
        handle_unknown=st.just("use_encoded_value"),
        unknown_value=st.sampled_from([-1, -7, np.nan, 100]),
        encoded_missing_value=st.sampled_from([np.nan, -2, 50]),
        min_frequency=st.sampled_from([None, None, 2]),
        max_categories=st.sampled_from([None, 3]),
        dtype=st.sampled_from([np.float64, np.float32]),
    ),
    st.builds(OrdinalEncoder, dtype=st.sampled_from([np.float64, np.float32, np.int64])),
)


def steps(parts: list[Any]) -> Any:
    return Pipeline([(f"s{i}", part) for i, part in enumerate(parts)]) if parts else "passthrough"


filled = st.builds(lambda imputer: [imputer], imputers)
numeric_parts = st.builds(lambda first, after: steps(first + after), filled | filled | st.just([]),
                          st.lists(imputers | scalers, max_size=2))


@st.composite
def number_parts(draw: st.DrawFn, width: int, depth: int = 0) -> Any:
    """A transformer of ``width`` columns of numbers."""
    ways = ["steps", "steps", "encoder", "union", "columns"]
    way = draw(st.sampled_from(ways if depth < 2 else ways[1:3]))
    if way == "steps":
        return draw(numeric_parts)
    if way == "encoder":
        return draw(encoders)
    if way == "union":
        parts = [draw(number_parts(width, depth + 1)) for _ in range(draw(st.integers(1, 3)))]
        weights = {"u0": draw(st.sampled_from([0.3, 2]))} if draw(st.integers(0, 3)) == 0 else None
        return FeatureUnion([(f"u{i}", part) for i, part in enumerate(parts)], transformer_weights=weights)
    inner = []
    for i in range(draw(st.integers(1, 2))):
        chosen = draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=2, unique=True))
        inner.append((f"n{i}", draw(number_parts(len(chosen), depth + 1)), chosen))
    nested = ColumnTransformer(inner, remainder=draw(st.sampled_from(["drop", "passthrough", StandardScaler()])),
                               sparse_threshold=draw(st.sampled_from([0.0, 1.0])))
    return steps([*draw(st.lists(imputers, max_size=1)), nested])


text_parts = st.builds(lambda filled, encoder, after: steps([*filled, encoder, *after]),
                       st.lists(text_imputers, max_size=1), encoders, st.lists(imputers | scalers, max_size=1))


@st.composite
def column_transformers(draw: st.DrawFn, kinds: dict[str, str], framed: bool) -> ColumnTransformer:
    """Parts over random subsets of columns (they may overlap), chosen by name, position, slice or mask."""
    names = list(kinds)
    parts = []
    for i in range(draw(st.integers(1, 3))):
        numeric = draw(st.booleans())
        able = [name for name in names if KINDS[kinds[name]].numeric == numeric]
        if not able:
            continue
        chosen = draw(st.lists(st.sampled_from(able), min_size=1, max_size=3, unique=True))
        part = draw(number_parts(len(chosen)) if numeric else text_parts)
        parts.append((f"p{i}", part, draw(selections(names, chosen, framed))))
    weights = {name: draw(st.sampled_from([0.3, 2, 1.5])) for name, _, _ in parts if draw(st.integers(0, 5)) == 0}
    rest = [name for name in names if not KINDS[kinds[name]].numeric]
    remainder = draw(st.sampled_from(["drop"] if rest else ["drop", "passthrough", SimpleImputer()]))
    return ColumnTransformer(parts, remainder=remainder, sparse_threshold=draw(st.sampled_from([0.0, 0.3, 1.0])),
                             transformer_weights=weights or None)


@st.composite
def selections(draw: st.DrawFn, names: list[str], chosen: list[str], framed: bool) -> Any:
    positions = [names.index(name) for name in chosen]
    way = draw(st.sampled_from(["names", "positions", "negative", "mask", "callable", "slice"]))
    if way == "names" and framed:
        return chosen
    if way == "slice" and positions == list(range(positions[0], positions[-1] + 1)):
        return slice(positions[0], positions[-1] + 1)
    if way == "mask":
        return [name in chosen for name in names]
    if way == "callable":
        return lambda frame: list(chosen if framed else positions)
    return [position - len(names) for position in positions] if way == "negative" else positions


@st.composite
def pipelines(draw: st.DrawFn, kinds: dict[str, str], framed: bool = True) -> Pipeline:
    first = draw(column_transformers(kinds, framed))
    after = draw(st.lists(imputers | scalers, max_size=2))
    pipeline = Pipeline([("columns", first), *[(f"after{i}", step) for i, step in enumerate(after)]])
    return pipeline.set_output(transform="pandas") if draw(st.integers(0, 7)) == 0 else pipeline


def dense(result: Any, dtype: str) -> np.ndarray[Any, Any]:
    result = result.toarray() if hasattr(result, "toarray") else result
    with np.errstate(all="ignore"):
        return np.asarray(result).astype(dtype)


def quietly(function: Any, *arguments: Any) -> Any:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return function(*arguments)
