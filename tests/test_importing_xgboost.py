"""Imports of XGBoost: what is written answers bit by bit as the booster does; the rest is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier, XGBRanker, XGBRegressor, XGBRFClassifier, XGBRFRegressor

from fastinfer import runtimes
from fastinfer.errors import ConfigurationError, ImportRefusedError
from fastinfer.importing import import_pipeline
from fastinfer.preprocessing.program import Program
from fastinfer.runtimes import onnx as runtime
from fastinfer.settings import ModelConfig, Settings

RNG = np.random.default_rng(7)
ROWS = 240
X = RNG.normal(size=(ROWS, 5)) * [1.0, 10.0, 100.0, 0.01, 3.0]
X[:, 4] = np.round(X[:, 4])
THREE = (X[:, 0] + X[:, 1] / 10 + RNG.normal(size=ROWS) / 2 > 0).astype(int) + (X[:, 4] > 1)
TWO = (THREE > 0).astype(int)
AMOUNT = X[:, 0] * 50 + X[:, 1] ** 2 + RNG.normal(size=ROWS)
POSITIVE = np.exp(X[:, 0] / 2)
HOLES = np.where(RNG.random(X.shape) < 0.1, np.nan, X)
CODES = X.copy()
CODES[:, 1], CODES[:, 3] = RNG.integers(0, 12, ROWS), RNG.integers(0, 40, ROWS)
ODD = ((CODES[:, 1] % 3 == 0) ^ (CODES[:, 3] % 2 == 0)).astype(int)
SMALL: dict[str, Any] = {"n_estimators": 30, "max_depth": 3, "n_jobs": 1}


class Served:
    """An imported folder, answered by the program and the runtime as the server does."""

    def __init__(self, folder: Path) -> None:
        self.program = Program.load(folder / "features.json")
        (self.file,) = folder.glob("model.*")
        kind = {"model.onnx": "onnx", "model.npz": "forest"}[self.file.name]
        self.runtime = runtimes.load(kind, self.file, ModelConfig(), Settings())

    def __call__(self, rows: Any) -> dict[str, Any]:
        return self.runtime.run({"features": self.program.transform_dense(rows)})


def imported(fitted: Any, folder: Path, **options: Any) -> Served:
    import_pipeline(fitted, folder / "1", **options)
    return Served(folder / "1")


def turns(fitted: Any) -> Iterator[tuple[int, np.float32]]:
    model = json.loads(bytes(fitted.get_booster().save_raw("json")))["learner"]["gradient_booster"]
    for tree in model.get("gbtree", model)["model"].get("trees", ()):
        for left, feature, turn in zip(tree["left_children"], tree["split_indices"], tree["split_conditions"],
                                       strict=True):
            if left >= 0:
                yield feature, np.float32(turn)


def sides(fitted: Any, base: np.ndarray) -> np.ndarray:
    """Rows with a feature at each threshold, at the two float32 and the two float64 beside it, and missing."""
    rows = [base]
    for feature, turn in sorted(set(turns(fitted)))[:150]:
        near = np.nextafter(turn, np.array([np.inf, -np.inf], np.float32)).astype(np.float64)
        values = [float(turn), *near, *np.nextafter(float(turn), [np.inf, -np.inf]), np.nan]
        block = np.tile(base[RNG.integers(len(base))], (len(values), 1))
        block[:, feature] = values
        rows.append(block)
    return np.concatenate(rows)


def compare(fitted: Any, rows: Any, got: dict[str, Any], atol: float = 0) -> None:
    """Bit by bit, unless told otherwise."""
    if hasattr(fitted, "classes_"):
        assert got["label"].tolist() == fitted.predict(rows).tolist()
        np.testing.assert_allclose(got["probabilities"], fitted.predict_proba(rows), rtol=0, atol=atol)
    else:
        np.testing.assert_allclose(got["value"].ravel(), fitted.predict(rows).ravel(), rtol=0, atol=atol)


ULP = 1.2e-7  # of a probability: the exponential is no library's to the last bit


@pytest.mark.parametrize(("fitted", "target", "atol"), [
    (XGBClassifier(**SMALL), TWO, ULP),
    (XGBClassifier(**SMALL), THREE, ULP),
    (XGBClassifier(objective="multi:softmax", **SMALL), THREE, 2 * ULP),
    (XGBClassifier(objective="binary:hinge", **SMALL), TWO, 0),
    (XGBClassifier(base_score=0.37, **SMALL), TWO, ULP),
    (XGBClassifier(multi_strategy="multi_output_tree", **SMALL), THREE, ULP),
    (XGBClassifier(booster="dart", rate_drop=0.3, **SMALL), THREE, ULP),
    (XGBClassifier(booster="gblinear", n_estimators=20, n_jobs=1), THREE, ULP),
    (XGBRFClassifier(n_estimators=20, max_depth=4, n_jobs=1), THREE, ULP),
    (XGBRegressor(**SMALL), AMOUNT, 0),
    (XGBRegressor(n_estimators=300, max_depth=2, n_jobs=1), AMOUNT, 0),
    (XGBRegressor(num_parallel_tree=3, **SMALL), AMOUNT, 0),
    (XGBRegressor(booster="dart", rate_drop=0.3, **SMALL), AMOUNT, 0),
    (XGBRegressor(booster="gblinear", n_estimators=20, n_jobs=1), AMOUNT, 0),
    (XGBRFRegressor(n_estimators=20, max_depth=4, n_jobs=1), AMOUNT, 0),
    (XGBRegressor(objective="reg:absoluteerror", **SMALL), AMOUNT, 0),
    (XGBRegressor(objective="reg:pseudohubererror", **SMALL), POSITIVE, 0),
    (XGBRegressor(objective="reg:squaredlogerror", **SMALL), POSITIVE, 0),
    (XGBRegressor(objective="reg:quantileerror", quantile_alpha=0.3, **SMALL), AMOUNT, 0),
    (XGBRegressor(objective="binary:logitraw", **SMALL), TWO, 0),
    (XGBRegressor(objective="reg:logistic", **SMALL), TWO * 0.8 + 0.1, ULP),
    (XGBRegressor(objective="count:poisson", base_score=1.37, **SMALL), POSITIVE, 1e-6),
    (XGBRegressor(objective="reg:gamma", **SMALL), POSITIVE, 1e-6),
    (XGBRegressor(objective="reg:tweedie", **SMALL), POSITIVE, 1e-6),
], ids=lambda value: repr(value)[:60] if hasattr(value, "fit") else "")
def test_it_answers_as_the_booster_does(fitted: Any, target: np.ndarray, atol: float, tmp_path: Path) -> None:
    fitted.fit(HOLES, target)
    rows = sides(fitted, HOLES)
    served = imported(fitted, tmp_path)
    assert (served.file.name == "model.npz") == (fitted.booster != "gblinear")
    exact = served.file.name == "model.npz" and fitted.objective != "multi:softmax"  # whose softmax is scipy's
    compare(fitted, rows, served(rows), 0 if exact else atol)


def test_ranking(tmp_path: Path) -> None:
    fitted = XGBRanker(**SMALL).fit(X, THREE, qid=np.repeat(np.arange(ROWS // 10), 10))
    rows = sides(fitted, X)
    compare(fitted, rows, imported(fitted, tmp_path)(rows))


@pytest.mark.parametrize("missing", [0.0, -1.0, 0.1])
def test_the_number_that_means_missing(missing: float, tmp_path: Path) -> None:
    given = np.where(RNG.random(X.shape) < 0.2, missing, X)
    fitted = XGBClassifier(missing=missing, **SMALL).fit(given, TWO)
    rows = np.concatenate([sides(fitted, given), np.full((1, 5), missing), np.full((1, 5), np.nan)])
    compare(fitted, rows, imported(fitted, tmp_path)(rows), ULP)


def test_early_stopping_answers_by_the_best_iteration(tmp_path: Path) -> None:
    fitted = XGBClassifier(n_estimators=300, early_stopping_rounds=4, num_parallel_tree=2, max_depth=3, n_jobs=1)
    fitted.fit(X[:160], THREE[:160], eval_set=[(X[160:], THREE[160:])], verbose=0)
    assert fitted.best_iteration + 1 < fitted.get_booster().num_boosted_rounds()
    compare(fitted, X, imported(fitted, tmp_path)(X), ULP)


@pytest.mark.parametrize("one_hot", [2, 100])
def test_splits_on_categories(one_hot: int, tmp_path: Path) -> None:
    table = CODES.copy()
    table[::7, 1] = np.nan
    fitted = XGBClassifier(enable_categorical=True, feature_types=["q", "c", "q", "c", "q"], max_cat_to_onehot=one_hot,
                           **SMALL).fit(table, ODD)
    rows = np.concatenate([table] * 2)
    rows[:60, 1] = RNG.integers(-3, 60, 60)
    rows[60:120, 3] += 0.5
    rows[120:126, 3] = [-0.5, -1.0, 1e6, 2.99, -0.0, np.nan]
    compare(fitted, rows, imported(fitted, tmp_path)(rows), ULP)


def frame() -> pd.DataFrame:
    made = pd.DataFrame(CODES, columns=list("abcde"))
    made.loc[::9, "a"] = 0.0
    return made.assign(b=made.b.astype(int).astype(str), d=made.d.astype(int).astype(str))


def test_what_a_sparse_matrix_does_not_store_is_missing(tmp_path: Path) -> None:
    columns = [("n", StandardScaler(), ["a", "c", "e"]), ("c", OneHotEncoder(handle_unknown="ignore"), ["b", "d"])]
    for i, threshold in enumerate((0.0, 1.0)):
        prepared = ColumnTransformer(columns, sparse_threshold=threshold)
        fitted = make_pipeline(prepared, XGBClassifier(**SMALL)).fit(frame(), ODD)
        folder = tmp_path / str(i)
        compare(fitted, frame(), imported(fitted, folder)(frame()), ULP)


def test_behind_other_steps_and_in_other_estimators(tmp_path: Path) -> None:
    coded = ColumnTransformer([
        ("n", "passthrough", ["a", "c", "e"]),
        ("c", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["b", "d"]),
    ])
    booster = XGBClassifier(enable_categorical=True, feature_types=["q", "q", "q", "c", "c"], **SMALL)
    fitted = make_pipeline(coded, booster).fit(frame(), ODD)
    compare(fitted, frame(), imported(fitted, tmp_path / "coded", sample=frame())(frame()), ULP)
    for i, estimator in enumerate((
        CalibratedClassifierCV(XGBClassifier(**SMALL), cv=2),
        StackingClassifier([("a", XGBClassifier(**SMALL))], DecisionTreeClassifier(max_depth=3), cv=2),
    )):
        fitted = estimator.fit(X, THREE)
        compare(fitted, X, imported(fitted, tmp_path / str(i))(X), 1e-6)


@pytest.mark.parametrize("suffix", ["json", "ubj"])
def test_a_file_of_xgboost_runs_no_code_and_needs_no_trust(suffix: str, tmp_path: Path) -> None:
    fitted = XGBClassifier(**SMALL).fit(pd.DataFrame(X, columns=list("abcde")), THREE)
    path = tmp_path / f"m.{suffix}"
    for i, saved in enumerate((fitted, fitted.get_booster())):
        saved.save_model(path)
        import_pipeline(path, tmp_path / str(i))
        served = Served(tmp_path / str(i))
        assert [column.name for column in served.program.columns] == list("abcde")
        compare(fitted, X, served(X), ULP)
    XGBRegressor(**SMALL).fit(X, AMOUNT).get_booster().save_model(path)
    assert import_pipeline(path, tmp_path / "value").task == "regressor"


def test_a_file_that_is_none_of_xgboost(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text("{}")
    with pytest.raises(ConfigurationError, match=r"m\.json: XGBoost cannot load it: [^\[]"):
        import_pipeline(path, tmp_path / "1")


def test_sums_in_order_run_on_one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import_pipeline(CalibratedClassifierCV(XGBClassifier(**SMALL), cv=2).fit(X, TWO), tmp_path / "1")
    import_pipeline(LogisticRegression().fit(X, TWO), tmp_path / "2")
    monkeypatch.setattr(runtime, "SMALL_FILE", 0)
    monkeypatch.setattr(runtime, "usable_cpus", lambda: 4)
    assert runtime.default_threads(tmp_path / "1" / "model.onnx") == 1
    assert runtime.default_threads(tmp_path / "2" / "model.onnx") == 4


class Odd(XGBRegressor):  # type: ignore[misc]
    """Answers otherwise than its booster."""

    def predict(self, *args: Any, **options: Any) -> Any:
        return super().predict(*args, **options) + 1


@pytest.mark.parametrize(("fitted", "message"), [
    (lambda: XGBClassifier(objective="binary:logitraw", **SMALL).fit(X, TWO), "'binary:logitraw' is not supported in"),
    (lambda: XGBRegressor(**SMALL).fit(X, np.c_[AMOUNT, POSITIVE]), "predicts several targets"),
    (lambda: XGBClassifier(**SMALL).fit(X, np.c_[TWO, 1 - TWO]), "one model a target"),
    (lambda: XGBClassifier(enable_categorical=True, **SMALL).fit(frame().astype({"b": "category", "d": "category"}),
                                                                 ODD), "encode them in a step of the pipeline"),
    (lambda: make_pipeline(StandardScaler(), Odd(**SMALL)).fit(X, AMOUNT), r"\['odd'\]: .*Odd is not supported"),
])
def test_refusals(fitted: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ImportRefusedError, match=message):
        import_pipeline(fitted(), tmp_path / "1")
