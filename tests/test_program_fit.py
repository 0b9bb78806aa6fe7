"""`Program.fit`: what it learns is what scikit-learn learns, bit by bit; and what it is asked for is read strictly."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import Pipeline
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
    StandardScaler,
    TargetEncoder,
)

from fastinfer.errors import ConfigurationError, InvalidRecordError, ModelLoadError, UnknownCategoryError
from fastinfer.preprocessing.program import Program

ROWS = 199


def people(seed: int = 0, rows: int = ROWS, dtype: str = "float64") -> pd.DataFrame:
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({
        "age": random.normal(40, 12, rows).astype(dtype),
        "income": (random.lognormal(7, 1.3, rows) / 7).astype(dtype),
        "holes": np.where(random.random(rows) < 0.2, np.nan, random.gamma(2, 3, rows)).astype(dtype),
        "same": np.full(rows, 0.1, dtype),
        "kids": random.integers(0, 5, rows),
        "member": random.random(rows) < 0.4,
        "job": random.choice(["clerk", "cook", "Ärztin", "", "spy"], rows, p=[0.5, 0.3, 0.15, 0.04, 0.01]),
        "town": random.choice(["x", "y", "z"], rows),
        "note": random.choice(["the quick brown fox", "jumps over; the", "LAZY dog dog dog", "été"], rows),
    })
    frame.loc[random.random(rows) < 0.1, "town"] = np.nan
    return frame


FRAMES = {dtype: people(dtype=dtype) for dtype in ("float64", "float32")}
ONE = people(seed=5, rows=40)
Y = np.random.default_rng(1)
TARGETS = {
    "continuous": Y.normal(3, 2, ROWS),
    "binary": Y.choice(["no", "yes"], ROWS),
    "flags": Y.random(ROWS) < 0.3,
    "multiclass": Y.choice([3, 7, 9], ROWS),
    "counts": Y.integers(0, 2, ROWS).astype(float),
}
NUMBERS = ["age", "income", "same"]


def chain(*steps: Any) -> Any:
    return Pipeline([(str(i), step) for i, step in enumerate(steps)])


# columns, steps of the plan, scikit-learn's transformer
CASES: dict[str, tuple[list[str], Any, Any]] = {
    "pass through": (["age", "kids", "member", "holes"], [], "passthrough"),
    "mean": (["age", "holes"], ["impute"], SimpleImputer()),
    "median": (["age", "holes"], [{"op": "impute", "strategy": "median"}], SimpleImputer(strategy="median")),
    "the most frequent": (["kids", "holes"], [{"op": "impute", "strategy": "most_frequent"}],
                          SimpleImputer(strategy="most_frequent")),
    "a constant": (["holes"], [{"op": "impute", "strategy": "constant", "fill_value": -1}],
                   SimpleImputer(strategy="constant", fill_value=-1)),
    "with an indicator": (["age", "holes"], [{"op": "impute", "add_indicator": True}],
                          SimpleImputer(add_indicator=True)),
    "text": (["town"], [{"op": "impute", "strategy": "most_frequent"}, "onehot"],
             chain(SimpleImputer(strategy="most_frequent"), OneHotEncoder())),
    "text by a constant": (["town", "job"], [{"op": "impute", "strategy": "constant", "fill_value": "?"}, "ordinal"],
                           chain(SimpleImputer(strategy="constant", fill_value="?"), OrdinalEncoder())),
    "an indicator": (["age", "holes"], ["indicate"], MissingIndicator(features="all")),
    "standard": ([*NUMBERS, "holes", "kids"], ["standard"], StandardScaler()),
    "standard of one": (["income"], ["standard"], StandardScaler()),
    "standard without a mean": (NUMBERS, [{"op": "standard", "with_mean": False}], StandardScaler(with_mean=False)),
    "standard without a scale": (NUMBERS, [{"op": "standard", "with_std": False}], StandardScaler(with_std=False)),
    "minmax": ([*NUMBERS, "holes"], ["minmax"], MinMaxScaler()),
    "minmax of a range": (NUMBERS, [{"op": "minmax", "feature_range": [-1, 2], "clip": True}],
                          MinMaxScaler(feature_range=(-1, 2), clip=True)),
    "maxabs": ([*NUMBERS, "holes"], ["maxabs"], MaxAbsScaler()),
    "robust": ([*NUMBERS, "holes"], ["robust"], RobustScaler()),
    "robust of a range": (NUMBERS, [{"op": "robust", "quantile_range": [5, 90], "unit_variance": True}],
                          RobustScaler(quantile_range=(5, 90), unit_variance=True)),
    "robust without centering": (NUMBERS, [{"op": "robust", "with_centering": False}],
                                 RobustScaler(with_centering=False)),
    "normalize": (NUMBERS, [{"op": "normalize", "norm": "max"}], Normalizer("max")),
    "binarize": (NUMBERS, [{"op": "binarize", "threshold": 40}], Binarizer(threshold=40)),
    "clip": (["age"], [{"op": "clip", "low": 20, "high": 60.5}],
             FunctionTransformer(np.clip, kw_args={"a_min": 20, "a_max": 60.5})),
    "log1p": (["income", "holes"], ["log1p"], FunctionTransformer(np.log1p, feature_names_out="one-to-one")),
    "log1p and standard": (["income", "holes"], ["log1p", "standard"],
                           chain(FunctionTransformer(np.log1p, feature_names_out="one-to-one"), StandardScaler())),
    "impute, standard, and polynomials": (
        ["holes", "income"],
        ["impute", "standard", {"op": "polynomial", "degree": 3, "include_bias": False}, "standard"],
        chain(SimpleImputer(), StandardScaler(), PolynomialFeatures(3, include_bias=False), StandardScaler())),
    "interactions": (NUMBERS, [{"op": "polynomial", "interaction_only": True}],
                     PolynomialFeatures(interaction_only=True)),
    "power": (["age", "income", "same"], ["power"], PowerTransformer()),
    "box-cox": (["income"], [{"op": "power", "method": "box-cox", "standardize": False}],
                PowerTransformer(method="box-cox", standardize=False)),
    "quantile": (["age", "holes"], [{"op": "quantile", "n_quantiles": 50}], QuantileTransformer(n_quantiles=50)),
    "quantile to normal, of a part": (
        ["age"], [{"op": "quantile", "n_quantiles": 20, "output_distribution": "normal", "subsample": 100,
                   "random_state": 3}],
        QuantileTransformer(n_quantiles=20, output_distribution="normal", subsample=100, random_state=3)),
    "bins": (["age", "income", "kids"], ["bucketize"], KBinsDiscretizer(encode="onehot-dense")),
    "even bins": (["age", "same"], [{"op": "bucketize", "n_bins": 7, "strategy": "uniform", "encode": "ordinal"}],
                  KBinsDiscretizer(7, strategy="uniform", encode="ordinal")),
    "onehot": (["job", "kids", "member", "holes", "town"], ["onehot"], OneHotEncoder()),
    "onehot without the first": (["job", "town"], [{"op": "onehot", "drop": "first", "handle_unknown": "ignore"}],
                                 OneHotEncoder(drop="first", handle_unknown="ignore")),
    "onehot of two": (["job", "member"], [{"op": "onehot", "drop": "if_binary"}], OneHotEncoder(drop="if_binary")),
    "onehot with a group": (
        ["job", "town", "kids"], [{"op": "onehot", "min_frequency": 30, "handle_unknown": "infrequent_if_exist"}],
        OneHotEncoder(min_frequency=30, handle_unknown="infrequent_if_exist")),
    "onehot of a share": (["job", "town"], [{"op": "onehot", "min_frequency": 0.2, "drop": "first"}],
                          OneHotEncoder(min_frequency=0.2, drop="first")),
    "onehot of so many": (["job", "town", "kids"], [{"op": "onehot", "max_categories": 3}],
                          OneHotEncoder(max_categories=3)),
    "onehot of a group alone": (["job"], [{"op": "onehot", "max_categories": 1}], OneHotEncoder(max_categories=1)),
    "ordinal": (["job", "kids", "town", "holes"], [{"op": "ordinal", "unknown_value": -1, "encoded_missing_value": -2}],
                OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)),
    "ordinal with a group": (["job", "town"], [{"op": "ordinal", "min_frequency": 40}],
                             OrdinalEncoder(min_frequency=40)),
    "hashed words": (["note"], [{"op": "hash_text", "n_features": 32}], HashingVectorizer(n_features=32)),
    "hashed n-grams": (
        ["note"], [{"op": "hash_text", "n_features": 64, "analyzer": "char_wb", "ngram_range": [2, 3], "norm": "none",
                    "strip_accents": "unicode", "alternate_sign": False}],
        HashingVectorizer(n_features=64, analyzer="char_wb", ngram_range=(2, 3), norm=None, strip_accents="unicode",
                          alternate_sign=False)),
}  # fmt: skip


def same_bits(got: Any, expected: Any) -> None:
    got, expected = (np.asarray(each.toarray() if hasattr(each, "toarray") else each) for each in (got, expected))
    expected = expected.astype(got.dtype)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


def imported(columns: list[str], transformer: Any, frame: pd.DataFrame, y: Any = None) -> tuple[Any, Program]:
    text = isinstance(transformer, HashingVectorizer)
    part = (columns[0], transformer, columns[0] if text else columns)
    whole = ColumnTransformer([part], verbose_feature_names_out=False, sparse_threshold=0).fit(frame, y)
    return whole, Program.from_sklearn(whole, sample=frame)


def numbers_of(program: Program) -> list[dict[str, Any]]:
    """What the steps have learned, without names and paths."""
    steps = json.loads(program.to_json())["steps"]
    return [{key: value for key, value in step.items() if key not in ("from", "to", "path")} for step in steps]


@pytest.mark.parametrize(("case", "dtype"), [
    (case, dtype) for case, (columns, *_) in CASES.items() for dtype in FRAMES
    if dtype == "float64" or {"age", "income", "holes"} & set(columns)
])
def test_it_learns_what_scikit_learn_learns(case: str, dtype: str) -> None:
    columns, steps, transformer = CASES[case]
    frame = FRAMES[dtype]
    whole, reference = imported(columns, transformer, frame)
    program = Program.fit(frame, {"features": [{"columns": columns, "steps": steps}]})
    assert numbers_of(program) == numbers_of(reference)
    if not isinstance(transformer, HashingVectorizer) and "clip" not in case:
        assert program.get_feature_names_out().tolist() == whole.get_feature_names_out().tolist()
    same_bits(program.transform(frame), reference.transform(frame))
    if transformer != "passthrough" and not {"power", "box-cox", "quantile to normal, of a part"} & {case}:
        with np.errstate(all="ignore"):
            same_bits(program.transform(frame), whole.transform(frame))


@pytest.mark.parametrize("smooth", ["auto", 0, 10.0])
@pytest.mark.parametrize("kind", TARGETS)
def test_targets_are_encoded_as_scikit_learn_does(kind: str, smooth: Any) -> None:
    columns, frame, y = ["job", "town", "kids", "member"], FRAMES["float64"], TARGETS[kind]
    whole, reference = imported(columns, TargetEncoder(smooth=smooth), frame, y)
    program = Program.fit(frame, {"features": [{"columns": columns, "steps": {"op": "target", "smooth": smooth}}]}, y)
    assert numbers_of(program) == numbers_of(reference)
    assert program.get_feature_names_out().tolist() == whole.get_feature_names_out().tolist()
    same_bits(program.transform(frame), whole.transform(frame))


def test_a_target_is_a_column_too() -> None:
    frame = FRAMES["float64"].assign(y=TARGETS["continuous"])
    plan = {"features": [{"columns": "job", "steps": ["target"]}]}
    assert Program.fit(frame, plan, "y").to_json() == Program.fit(frame, plan, TARGETS["continuous"]).to_json()


floats = st.floats(allow_nan=False, allow_infinity=False, width=32) | st.floats(-1e3, 1e3)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(floats | st.just(math.nan), st.text(max_size=2), st.integers(-3, 3)), min_size=2),
       st.sampled_from(["mean", "standard", "minmax", "robust", "onehot", "ordinal"]))
def test_any_frame_is_learned_alike(rows: list[tuple[float, str, int]], case: str) -> None:
    frame = pd.DataFrame(rows, columns=["a", "b", "c"])
    if frame["a"].isna().all():
        frame.loc[0, "a"] = 1.0
    _, steps, transformer = CASES[case] if case != "ordinal" else (None, ["ordinal"], OrdinalEncoder())
    columns = ["b", "c"] if case in ("onehot", "ordinal") else ["a", "c"]
    with np.errstate(all="ignore"):
        _, reference = imported(columns, transformer, frame)
    program = Program.fit(frame, {"features": [{"columns": columns, "steps": steps}]})
    assert numbers_of(program) == numbers_of(reference)


# Entries of which each showed another way in which scikit-learn lays a matrix out, or casts a column.
MIXED: dict[str, list[tuple[list[str], Any, Any]]] = {
    "an indicator lays out rows": [
        (["age", "holes", "income"], [{"op": "impute", "strategy": "median", "add_indicator": True}, "standard"],
         chain(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())),
        (["age", "income"], [{"op": "impute", "add_indicator": True}, "standard"],
         chain(SimpleImputer(add_indicator=True), StandardScaler())),
        (["holes"], [{"op": "impute", "add_indicator": True}, "standard"],
         chain(SimpleImputer(add_indicator=True), StandardScaler())),
        (["age"], [{"op": "impute", "add_indicator": True}, {"op": "normalize", "norm": "l1"}, "standard"],
         chain(SimpleImputer(add_indicator=True), Normalizer("l1"), StandardScaler()))],
    "codes are laid out in rows": [
        (["job", "town", "kids", "holes"], [{"op": "ordinal", "encoded_missing_value": -1}, "standard", "minmax"],
         chain(OrdinalEncoder(encoded_missing_value=-1), StandardScaler(), MinMaxScaler())),
        (["age", "income"], ["bucketize", "standard"],
         chain(KBinsDiscretizer(encode="onehot-dense"), StandardScaler())),
        (["job", "kids"], ["onehot", "standard"], chain(OneHotEncoder(sparse_output=False), StandardScaler()))],
    "integers are categories and numbers": [
        (["kids", "job"], ["onehot"], OneHotEncoder(sparse_output=False)),
        (["kids", "age"], ["impute", "maxabs", {"op": "bucketize", "encode": "ordinal"}],
         chain(SimpleImputer(), MaxAbsScaler(), KBinsDiscretizer(encode="ordinal")))],
    "float32 beside float64": [
        (["small", "age"], ["log1p"], FunctionTransformer(np.log1p, feature_names_out="one-to-one")),
        (["small", "kids", "member"], ["standard"], StandardScaler()),
        (["small", "town"], [{"op": "onehot", "min_frequency": 2}],
         OneHotEncoder(min_frequency=2, sparse_output=False)),
        (["small", "income"], ["robust", "polynomial"], chain(RobustScaler(), PolynomialFeatures()))],
}  # fmt: skip


@pytest.mark.parametrize("case", MIXED)
def test_entries_beside_one_another(case: str) -> None:
    frame = FRAMES["float64"].assign(small=FRAMES["float32"]["income"].round(0))
    parts = [(f"p{i}", transformer, columns) for i, (columns, _, transformer) in enumerate(MIXED[case])]
    with np.errstate(all="ignore"):
        whole = ColumnTransformer(parts, sparse_threshold=0).fit(frame)
        expected = whole.transform(frame)
    entries = [{"columns": columns, "steps": steps, "name": f"p{i}"}
               for i, (columns, steps, _) in enumerate(MIXED[case])]
    program = Program.fit(frame, {"features": entries})
    assert numbers_of(program) == numbers_of(Program.from_sklearn(whole, sample=frame))
    assert program.get_feature_names_out().tolist() == whole.get_feature_names_out().tolist()
    same_bits(program.transform(frame), expected)


@pytest.mark.parametrize("dtype", FRAMES)
@pytest.mark.parametrize("first", [Normalizer(), Normalizer("l1"), PowerTransformer()], ids=repr)
def test_what_is_learned_behind_results_that_the_core_may_round_otherwise(first: Any, dtype: str) -> None:
    step = {"op": "normalize", "norm": first.norm} if isinstance(first, Normalizer) else "power"
    columns = ["age", "income", "same"]
    _, reference = imported(columns, chain(first, StandardScaler(), RobustScaler()), FRAMES[dtype])
    program = Program.fit(FRAMES[dtype], {"features": [{"columns": columns, "steps": [step, "standard", "robust"]}]})
    learned, expected = numbers_of(program), numbers_of(reference)
    assert learned[:-2] == expected[:-2]
    for step, other in zip(learned[-2:], expected[-2:], strict=True):
        np.testing.assert_allclose(step["by"], other["by"], rtol=1e-6)


def test_frequencies_are_shares_of_the_rows() -> None:
    frame = FRAMES["float64"]
    program = Program.fit(frame, {"features": [
        {"columns": ["job", "town", "kids"], "steps": ["frequency"]},
        {"columns": ["job"], "name": "n", "steps": {"op": "frequency", "normalize": False, "unknown_value": -1}},
    ]})
    expected = [frame[name].map(frame[name].value_counts(dropna=False) / ROWS) for name in ("job", "town", "kids")]
    expected.append(frame["job"].map(frame["job"].value_counts()))
    np.testing.assert_array_equal(program.transform(frame), np.column_stack(expected))
    assert program.transform([{"job": "king", "town": "x", "kids": 99}])[0].tolist()[0::2] == [0.0, 0.0]
    assert program.transform([{"job": "king", "town": "x", "kids": 99}])[0][-1] == -1


def test_edges_of_ones_own() -> None:
    plan = {"features": [{"columns": "age", "steps": {"op": "bucketize", "edges": [20, 40], "encode": "ordinal"}}]}
    program = Program.fit(FRAMES["float64"], plan)
    assert program.transform({"age": [19.9, 20.0, 39.0, 40.0, 1e9]})[:, 0].tolist() == [0, 1, 1, 2, 2]
    with pytest.raises(InvalidRecordError, match="missing"):
        program.transform({"age": [None]})


def test_dates_become_parts_and_cycles() -> None:
    when = pd.date_range("2024-01-31 05:00", periods=50, freq="31h")
    program = Program.fit(pd.DataFrame({"when": when}), """
        [[features]]
        columns = "when"
        steps = [{op = "date_parts", parts = ["month", "days", "is_weekend"]}]

        [[features]]
        columns = "when"
        steps = [{op = "cycle", part = ["hour", "weekday"]}, {op = "impute", strategy = "constant"}]
    """)
    hour, weekday = when.hour.to_numpy() / 24 * (2 * np.pi), when.day_of_week.to_numpy() / 7 * (2 * np.pi)
    days = (when.normalize() - pd.Timestamp(0)).days
    expected = [when.month, days, when.day_of_week >= 5, np.sin(hour), np.cos(hour), np.sin(weekday), np.cos(weekday)]
    np.testing.assert_array_equal(program.transform({"when": when}), np.column_stack(expected).astype(float))
    assert program.get_feature_names_out().tolist() == [
        "when_month", "when_days", "when_is_weekend", "when_hour_sin", "when_hour_cos", "when_weekday_sin",
        "when_weekday_cos"]
    assert program.transform([{"when": "2024-12-25"}])[0][:3].tolist() == [12.0, 20082.0, 0.0]
    for values in (pl.Series(when), [str(each) for each in when], when.tz_localize("UTC"), when.to_pydatetime()):
        again = Program.fit({"when": values}, {"features": [
            {"columns": "when", "steps": {"op": "date_parts", "parts": ["hour"]}}]})
        assert again.transform({"when": values})[:, 0].tolist() == when.hour.tolist()


HOLDERS = {
    "pandas": ONE,
    "polars": pl.from_pandas(ONE),
    "Arrow": pl.from_pandas(ONE).to_arrow(),
    "a dict of lists": {name: [None if value != value else value for value in ONE[name].tolist()] for name in ONE},
    "records": [{key: value for key, value in row.items() if value == value} for row in ONE.to_dict("records")],
}
WHOLE = {"dtype": "float32", "features": [
    {"columns": ["age", "holes"], "steps": ["impute", "standard"]},
    {"columns": ["job", "town", "kids"], "steps": [{"op": "onehot", "handle_unknown": "ignore"}]},
    {"columns": ["member"], "steps": []},
    {"columns": ["kids"]},
]}  # fmt: skip


@pytest.mark.parametrize("holder", HOLDERS)
def test_every_holder_of_data_teaches_the_same(holder: str, tmp_path: Path) -> None:
    program = Program.fit(HOLDERS[holder], WHOLE)
    assert program.to_json() == Program.fit(ONE, WHOLE).to_json()
    assert program.transform(ONE).dtype == np.float32
    program.save(tmp_path / "features.json")
    same_bits(Program.load(tmp_path / "features.json").transform(HOLDERS[holder]), program.transform(ONE))


def test_an_array_has_columns_by_number() -> None:
    data = ONE[["age", "income", "holes"]].to_numpy()
    program = Program.fit(data, {"features": [{"columns": ["x2", "x0"], "steps": ["minmax"]}]})
    same_bits(program.transform(data), MinMaxScaler().fit_transform(data[:, [2, 0]]))


def test_what_a_row_may_hold_is_known() -> None:
    program = Program.fit(ONE, {"allow": "finite", "features": [
        {"columns": ["holes"], "steps": ["impute"]}, {"columns": ["age"]}, {"columns": ["job"], "steps": "onehot"},
        {"columns": ["town"], "steps": "onehot"},
    ]})
    assert {column.name: column.nullable for column in program.columns} == {
        "holes": True, "age": False, "job": False, "town": True}
    assert {column.name: column.categories for column in program.columns}["town"] == ("x", "y", "z")
    assert program.transform([{column.name: column.example for column in program.columns}]).shape == (1, program.width)
    with pytest.raises(UnknownCategoryError):
        program.transform([{"age": 1, "job": "king"}])


def test_scikit_learn_is_not_imported() -> None:
    script = """
import sys
import numpy as np
from fastinfer import Program
plan = {"features": [{"columns": ["x0", "x1"], "steps": ["impute", "robust", "standard", "polynomial"]},
                     {"columns": "x2", "steps": {"op": "bucketize"}}, {"columns": "x3", "steps": ["onehot"]}]}
data = np.random.default_rng(0).integers(0, 9, (50, 4)).astype(np.float32)
Program.from_json(Program.fit(data, plan).to_json()).transform(data)
assert not {"sklearn", "scipy", "pandas"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-P", "-c", script], check=True, env={"PYTHONPATH": ":".join(sys.path)})


# ---- categories together -----------------------------------------------------------------------------------------
def test_crosses_are_combinations_that_were_seen() -> None:
    frame = FRAMES["float64"]
    plan = {"features": [
        {"columns": ["job", "town", "kids"], "steps": ["cross", {"op": "onehot", "handle_unknown": "ignore"}]},
        {"columns": ["member", "town"], "steps": ["cross", "frequency"]},
        {"columns": ["when"], "steps": {"op": "date_parts", "parts": ["weekday", "hour"]}, "name": "t"},
    ]}
    frame = frame.assign(when=pd.date_range("2024-01-01", periods=len(frame), freq="5h"))
    program = Program.fit(frame, plan)
    combined = [f"{job}_x_{town}_x_{kids}" for job, town, kids in frame[["job", "town", "kids"]].values.tolist()]
    order = sorted(set(zip(frame["job"], frame["town"].fillna("~"), frame["kids"], combined, strict=True)))
    names = program.get_feature_names_out().tolist()
    assert names[:-3] == [f"job_x_town_x_kids_{each[-1]}" for each in order]
    got = program.transform(frame)
    assert [names[i] for i in got[:, :-3].argmax(axis=1)] == [f"job_x_town_x_kids_{each}" for each in combined]
    assert (got[:, :-3].sum(axis=1) == 1).all()
    pairs = frame["member"].astype(str) + frame["town"].fillna("~")
    np.testing.assert_array_equal(got[:, -3], pairs.map(pairs.value_counts() / len(frame)))
    for row in ({"job": "king", "town": "x", "kids": 1}, {"job": "clerk", "town": "x", "kids": 99}):
        assert not program.transform([{**row, "member": True, "when": "2024-01-01"}])[0, :-3].any()


values = st.none() | st.text(max_size=3), st.none() | st.floats(allow_nan=False), st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*values), min_size=1, max_size=6), st.sampled_from([1, 7, 1000, 2**31 - 1]))
def test_buckets_are_those_of_the_twin(rows: list[tuple[str | None, float | None, int]], buckets: int) -> None:
    columns = [{"name": "a", "datatype": "BYTES", "dtype": "str", "nullable": True},
               {"name": "b", "datatype": "FP64", "dtype": "float64", "nullable": True},
               {"name": "c", "datatype": "INT64", "dtype": "int64"}]
    steps = [{"op": "bucket", "from": names, "to": ["bucket of " + "".join(names)], "buckets": buckets}
             for names in (["a"], ["b"], ["c"], ["c", "a", "b"], ["a", "a"])]
    features = [{"name": step["to"][0], "value": step["to"][0]} for step in steps]
    program = Program.from_json(json.dumps({
        "fastinfer": 2, "columns": columns, "steps": steps,
        "output": {"dtype": "float64", "allow": "any", "features": features},
    }))
    got = program.transform([dict(zip("abc", row, strict=True)) for row in rows])
    expected = [[reference.bucket(part, buckets) for part in ((a,), (b,), (c,), (c, a, b), (a, a))] for a, b, c in rows]
    assert got.tolist() == expected


def test_hashed_categories() -> None:
    frame = FRAMES["float64"]
    program = Program.fit(frame, {"features": [
        {"columns": ["job", "town"], "steps": {"op": "hash", "n_buckets": 6, "cross": True}},
        {"columns": ["job", "kids"], "name": "n", "steps": {"op": "hash", "n_buckets": 100, "encode": "ordinal"}},
    ]})
    assert program.get_feature_names_out().tolist() == [*[f"job_x_town_{i}" for i in range(6)], "n__job", "n__kids"]
    rows = [{"job": "never seen", "town": None, "kids": 7}, {"job": "", "town": "y", "kids": -1}]
    got = program.transform(rows)
    assert got[:, :6].argmax(axis=1).tolist() == [reference.bucket((row["job"], row["town"]), 6) for row in rows]
    assert got[:, 6:].tolist() == [[reference.bucket((row[name],), 100) for name in ("job", "kids")] for row in rows]


def test_embeddings_are_rows_of_a_table() -> None:
    frame = FRAMES["float64"]
    plan = {"features": [
        {"columns": "town", "steps": {"op": "embed", "unknown": [9, 9.5], "missing": [-1, -1.5], "vectors": {
            "x": [0.1, 1], "y": [0.2, math.inf], "z": [1 / 3, -0.0]}}},
        {"columns": "kids", "steps": {"op": "embed", "unknown": [0], "vectors": {str(i): [i / 7] for i in range(5)}}},
        {"columns": ["job", "town"], "name": "h", "steps": [
            {"op": "hash", "n_buckets": 3, "cross": True, "encode": "ordinal"},
            {"op": "embed", "vectors": {"0": [5.0], "1": [6.0], "2": [7.0]}}]},
    ]}
    program = Program.fit(frame, plan)
    assert program.get_feature_names_out().tolist() == ["town_0", "town_1", "kids_0", "h__job_x_town_0"]
    got = program.transform([{"job": "a", "town": town, "kids": kids}
                             for town, kids in [("x", 0), ("z", 4), ("new", 9), (None, 3)]])
    same_bits(got[:, :3], [[0.1, 1, 0], [1 / 3, -0.0, 4 / 7], [9, 9.5, 0], [-1, -1.5, 3 / 7]])
    assert got[:, 3].tolist() == [5.0 + reference.bucket(("a", town), 3) for town in ("x", "z", "new", None)]
    again = Program.from_json(program.to_json())
    same_bits(again.transform(frame), program.transform(frame))
    del plan["features"][0]["steps"]["unknown"]
    with pytest.raises(UnknownCategoryError):
        Program.fit(frame, plan).transform([{"town": "new", "kids": 1, "job": "a"}])


ALL_NEW = {"features": [
    {"columns": "when", "steps": {"op": "date_parts", "parts": ["month", "is_leap_year", "second_of_day"]}},
    {"columns": "when", "steps": [{"op": "cycle", "part": "day"}]},
    {"columns": ["job", "town"], "steps": ["cross", {"op": "onehot", "handle_unknown": "ignore"}]},
    {"columns": ["job", "kids"], "steps": {"op": "hash", "n_buckets": 9, "encode": "ordinal"}},
    {"columns": "town", "steps": {"op": "embed", "vectors": {"x": [1], "y": [2], "z": [3]}, "unknown": [4],
                                  "missing": [5]}},
]}  # fmt: skip


@pytest.mark.parametrize(("op", "member", "value"), [
    ("date_part", "part", "day"), ("date_part", "part", "hour"), ("divide", "by", [30.0]),
    ("function", "function", "tan"), ("ordinal", "codes", [0.0, 1.0, 2.0, 4.0, 3.0]), ("bucket", "buckets", 8),
    ("embed", "unknown", 2), ("embed", "nan", 3), ("embed", "categories", ["x", "z", "y"]),
    ("project", "matrix", [[3.0, 1.0]]),
])  # fmt: skip
def test_golden_rows_show_any_change(op: str, member: str, value: Any) -> None:
    frame = FRAMES["float64"].assign(when=pd.date_range("2023-12-30", periods=ROWS, freq="31h"))
    document = json.loads(Program.fit(frame, ALL_NEW).to_json())
    step = next(step for step in document["steps"] if step["op"] == op)
    assert step[member] != value
    step[member] = value
    with pytest.raises(ModelLoadError, match="golden row"):
        Program.from_json(json.dumps(document))


def test_golden_rows_have_the_combinations_of_a_cross() -> None:
    frame = FRAMES["float64"]
    steps = ["cross", {"op": "onehot", "handle_unknown": "ignore"}]
    program = Program.fit(frame, {"features": [{"columns": ["job", "town"], "steps": steps}]})
    rows = json.loads(program.to_json())["certificate"]["rows"]
    seen = {(job, town) for job, town in zip(rows["job"], rows["town"], strict=True)}
    assert {(job, None if town != town else town) for job, town in frame[["job", "town"]].values.tolist()} <= seen


def test_data_of_other_kinds() -> None:
    frame = pd.DataFrame({0: [1.0, 2.0], "a": pd.Series(["x", "y"], dtype="category"), "b": [np.int8(3), None]})
    plan = {"features": [{"columns": ["a"], "steps": ["onehot"]}, {"columns": ["b"], "steps": ["impute"]}]}
    assert Program.fit(frame, plan).transform(frame).tolist() == [[1, 0, 3], [0, 1, 3]]
    with pytest.raises(ConfigurationError, match="the data have no column '0'"):
        Program.fit(frame, entry([], "0"))
    vectors = {"op": "embed", "vectors": {"x": np.array([1.5, 2]), "y": (np.float32(0.5), 1)}}
    assert Program.fit(frame, entry(vectors, "a")).transform(frame).tolist() == [[1.5, 2.0], [0.5, 1.0]]
    y = pd.Series([1.5, 2.5], dtype=object)
    assert Program.fit(frame, entry({"op": "target", "smooth": 0}, "a"), y).transform(frame).tolist() == [[1.5], [2.5]]


def test_texts_that_are_of_numpy() -> None:
    values = [np.str_("é"), np.str_("plain"), "plain", None]
    plan = {"features": [{"columns": "a", "steps": [{"op": "impute", "strategy": "most_frequent"}, "onehot"]}]}
    program = Program.fit({"a": values}, plan)
    expected = [[0, 1], [1, 0], [1, 0], [1, 0]]
    assert program.transform({"a": values}).tolist() == expected
    assert program.transform([{"a": value} for value in values]).tolist() == expected
    assert Program.from_json(program.to_json()).transform({"a": np.array(values, object)}).tolist() == expected


def test_dtypes_that_numpy_has_not() -> None:
    floats = pd.DataFrame({"a": pd.array([0.1, 1.5, 0.3], "Float32")})
    for steps, transformer in ((["standard"], StandardScaler()),
                               ([{"op": "binarize", "threshold": 0.1}], Binarizer(threshold=0.1))):
        same_bits(Program.fit(floats, entry(steps, "a")).transform(floats), transformer.fit_transform(floats))
    wide = pl.DataFrame({"a": pl.Series([2**70, -1, 0], dtype=pl.Int128)})
    assert Program.fit(wide, entry("maxabs", "a")).transform(wide).tolist() == [[1.0], [-(2.0**-70)], [0.0]]


@pytest.mark.parametrize(("member", "value", "message"), [
    ("rows", 1, "a category, or what is missing or unknown, has no row among 1"),
    ("unknown", 2, "has no row among 2"),
    ("nan", None, "expected a row, got null"),
    ("table", "AAAA", "is not base64 of deflated bytes"),
    ("rows", 3, "bytes, and 3 rows of 1 numbers have 24"),
    ("categories", ["a", "a"], "a category stands twice"),
])  # fmt: skip
def test_a_fault_of_an_embedding(member: str, value: Any, message: str) -> None:
    plan = {"columns": "job", "steps": {"op": "embed", "vectors": {"a": [1], "b": [2]}}}
    document = json.loads(Program.fit({"job": ["a", "b"]}, {"features": [plan]}).to_json())
    del document["certificate"]
    document["steps"][0][member] = value
    with pytest.raises(ConfigurationError) as caught:
        Program.from_json(json.dumps(document))
    assert message in str(caught.value)

# ---- what is wrong -----------------------------------------------------------------------------------------------
def entry(steps: Any, columns: Any = "age") -> dict[str, Any]:
    return {"features": [{"columns": columns, "steps": steps}]}


FAULTS: list[tuple[Any, str]] = [
    ("features = [", "spec: not TOML"),
    ("nothing.toml", "nothing.toml: No such file"),
    (["standard"], "spec: expected TOML, the path of a file, or a dict, got a list"),
    ({"features": {("a", "b"): 1}}, "spec.features: expected a list, got a dict"),
    ({}, "spec: 'features' is missing"),
    ({"features": []}, "spec.features: no entry"),
    ({"features": {}}, "spec.features: expected a list"),
    ({**entry([]), "dtyp": "float32"}, "spec.dtyp: unknown. Did you mean 'dtype'?"),
    ({**entry([]), "dtype": "float16"}, "spec.dtype: expected 'float64' or 'float32'"),
    ({"features": [{"column": "age"}]}, "spec.features[0].column: unknown. Did you mean 'columns'?"),
    ({"features": [{"steps": []}]}, "spec.features[0]: 'columns' is missing"),
    (entry([], []), "spec.features[0].columns: no column"),
    (entry([], ["age", "age"]), "spec.features[0].columns[1]: the column 'age' stands twice"),
    (entry([], "agee"), "spec.features[0].columns: the data have no column 'agee'. Did you mean 'age'?"),
    (entry("standart"), "spec.features[0].steps: no transform is called 'standart'. Did you mean 'standard'?"),
    (entry(["impute", "log1"]), "spec.features[0].steps[1]: no transform is called 'log1'. Did you mean 'log1p'?"),
    (entry([{"op": "impute", "stratgy": "mean"}]),
     "spec.features[0].steps[0].stratgy: unknown. Did you mean 'strategy'?"),
    (entry([{"op": "impute", "strategy": "mediann"}]),
     "spec.features[0].steps[0].strategy: expected 'mean' or 'median' or 'most_frequent' or 'constant', got "
     "\"mediann\". Did you mean 'median'?"),
    (entry([{"strategy": "mean"}]), "spec.features[0].steps[0]: expected the name of a transform"),
    (entry([{"op": "bucketize", "n_bins": 1}]), "spec.features[0].steps[0].n_bins: expected a number from 2"),
    (entry([{"op": "bucketize", "edges": [2, 1]}]), "spec.features[0].steps[0].edges: expected numbers that ascend"),
    (entry([{"op": "clip"}]), "spec.features[0].steps[0] (clip): needs low, high or both"),
    (entry([{"op": "clip", "low": 2, "high": 1}]), "spec.features[0].steps[0] (clip): needs low, high or both"),
    (entry([{"op": "date_parts"}], "when"), "spec.features[0].steps[0]: 'parts' is missing"),
    (entry([{"op": "date_parts", "parts": "mont"}], "when"), "spec.features[0].steps[0].parts: expected 'year' or"),
    (entry([{"op": "date_parts", "parts": "month"}]), "(date_parts): takes dates, and 'age' is numbers"),
    (entry([], "when"), "spec.features[0]: 'when' is a date still"),
    (entry([], "job"), "spec.features[0]: 'job' is text still"),
    (entry("standard", "job"), "spec.features[0].steps (standard): takes numbers, and 'job' is text; encode it"),
    (entry("standard", "when"), "(standard): takes numbers, and 'when' is a date"),
    (entry("impute", ["job", "age"]), "(impute): 'job' is text beside numbers"),
    (entry("impute", "empty"), "the column 'empty' cannot be used: every value is missing"),
    (entry([{"op": "impute", "strategy": "mean"}], "job"), "(impute): text has no mean"),
    (entry([{"op": "impute", "strategy": "constant", "fill_value": "x"}]),
     "(impute): the fill_value 'x' in columns of numbers"),
    (entry("bucketize", "holes"), "(bucketize): row 0 of 'holes' is missing; impute it first"),
    (entry("bucketize", "near"), "(bucketize): column 0 of the entry has values so close that no bin is left"),
    (entry({"op": "onehot", "drop": "first"}, "same"), "spec: 0 features"),
    (entry([{"op": "onehot", "drop": "first"}, "maxabs"], "same"), "steps[1] (maxabs): no feature is left"),
    (entry("standard", "huge"), "the column 'huge' cannot be used: it holds a whole number beyond float64"),
    (entry("standard", "half"), "the column 'half' cannot be used: it is of dtype float16; make it float32"),
    (entry("polynomial", "holes"), "row 0, field 'holes': missing"),
    (entry("standard", "infinite"), "(standard): row 1 of 'infinite' is infinite"),
    (entry("onehot", "mixed"), "the column 'mixed' cannot be used: it holds int, among others 1"),
    (entry("onehot", "bytes"), "the column 'bytes' cannot be used: it holds bytes"),
    (entry("target"), "(target): learns from the target; give y"),
    (entry({"op": "target", "smooth": pd.NA}), "spec.features[0].steps.smooth: expected a number"),
    (entry({"op": "quantile", "n_quantiles": 100, "subsample": 10}),
     "(quantile): 100 quantiles of a subsample of 10 rows"),
    (entry({"op": "power", "method": "box-cox"}, "negative"), "(power): box-cox takes numbers above 0"),
    (entry({"op": "polynomial", "degree": 32}, ["age", "negative", "kids", "long"]), "(polynomial): 58,905 features"),
    (entry("cross", "job"), "(cross): takes two columns or more"),
    (entry(["cross", "log1p"], ["job", "when"]), "(cross): takes categories or numbers, and 'when' is a date"),
    (entry("hash", "job"), "spec.features[0].steps: 'n_buckets' is missing"),
    (entry({"op": "hash", "n_buckets": 20000}, "job"), "(hash): 20,000 features; 16,384 are served"),
    (entry({"op": "embed", "vectors": {}}, "job"), "steps.vectors: expected a table with a list of numbers"),
    (entry({"op": "embed", "vectors": {"a": [1], "b": [1, 2]}}, "job"), "steps.vectors.b: expected 1 numbers"),
    (entry({"op": "embed", "vectors": {"a": [1]}, "unknown": [1, 2]}, "job"), "(embed): unknown has 2 numbers, and"),
    (entry({"op": "embed", "vectors": {"a": [1]}}, "kids"), "(embed): 'kids' holds numbers, and one"),
    (entry({"op": "embed", "vectors": {"1": [1], "01": [2]}}, "kids"), "(embed): two of the vectors are of one"),
    (entry({"op": "embed", "vectors": {"a": [1]}}, "job"), "a category that the feature program does not know"),
    (entry("hash_text", "gaps"), "(hash_text): row 1 of 'gaps' is missing; impute it first"),
    (entry(["hash_text", "standard"], "job"), "(standard): takes numbers, and 'job_' is hashed text"),
    ({**entry("hash_text", "job"), "sparse": False}, "spec: 1,048,576 features; a dense program gives 1 to 16,384"),
    ({"features": [{"columns": "age"}, {"columns": "age", "steps": "standard"}]},
     "spec.features[1]: spec.features[0] has a feature 'age' too; give one of them a name"),
    ({"features": [{"columns": "text", "steps": "onehot"},
                   {"columns": "text", "steps": {"op": "cycle", "part": "hour"}, "name": "c"}]},
     "spec.features[1]: the column 'text' is a date in one entry and text in another"),
    (entry({"op": "date_parts", "parts": "year"}, "job"), "row 0, field 'job': not a date"),
]  # fmt: skip
FAULTY = {
    "age": [30.0, 40.0, 50.0], "job": ["a", "b", "c"], "when": pd.date_range("2024-01-01", periods=3),
    "empty": [None, None, None], "holes": [None, 1.0, 2.0], "infinite": [1.0, math.inf, 2.0], "mixed": ["a", 1, "b"],
    "bytes": [b"a", b"b", b"c"], "negative": [-1.0, 1.0, 2.0], "kids": [1, 2, 3], "long": [1.0, 2.0, 4.0],
    "gaps": ["a", None, "b"], "text": ["2024-01-01", "2024-01-02", "2024-01-03"], "near": [0.1, 0.1 + 1e-10, 0.1],
    "same": ["a"] * 3, "huge": [1, 10**400, 2], "half": np.ones(3, np.float16),
}  # fmt: skip


@pytest.mark.parametrize(("plan", "message"), FAULTS)
def test_a_fault_names_its_place(plan: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Program.fit(FAULTY, plan)
    assert message in str(caught.value)


@pytest.mark.parametrize(("data", "message"), [
    ({"age": []}, "the column 'age' cannot be used: it has no rows"),
    ({"age": [1.0], "job": ["a", "b"]}, "the columns have 1, 2 rows"),
    (5, "training data are a frame"),
    ([1, 2], "a list of training data holds records"),
    (np.zeros(3), "training data are [rows, columns]"),
])  # fmt: skip
def test_what_is_no_data_is_named(data: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Program.fit(data, {"features": [{"columns": "age"}, {"columns": "job", "steps": "onehot"}]})
    assert message in str(caught.value)


@pytest.mark.parametrize(("y", "message"), [
    ([1, 2], "y has shape (2,), and there are 3 rows"),
    ([1, None, 2], "y is missing in row 1"),
    ([1.5, math.inf, 2], "y is infinite"),
    ("goal", "y: the data have no column 'goal'"),
    (np.array([1, 2, 3], dtype="datetime64[D]"), "y is of dtype datetime64[D]"),
])  # fmt: skip
def test_what_is_no_target_is_named(y: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Program.fit(FAULTY, entry("target", "job"), y)
    assert message in str(caught.value)


def test_a_plan_is_a_file_too(tmp_path: Path) -> None:
    text = '[[features]]\ncolumns = ["age"]\nsteps = ["standard"]\n'
    (tmp_path / "plan.toml").write_text(text)
    for plan in (tmp_path / "plan.toml", str(tmp_path / "plan.toml"), text):
        assert Program.fit(FAULTY, plan).get_feature_names_out().tolist() == ["age"]
