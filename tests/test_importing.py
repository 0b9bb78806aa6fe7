"""Imports: what is written answers as scikit-learn does, at both sides of every threshold; the rest is refused."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import sklearn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, RegressorMixin, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    BaggingClassifier,
    BaggingRegressor,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.impute import SimpleImputer
from sklearn.isotonic import IsotonicRegression
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    BayesianRidge,
    ElasticNet,
    GammaRegressor,
    HuberRegressor,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    PoissonRegressor,
    RANSACRegressor,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    SGDRegressor,
    TweedieRegressor,
)
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import MultiOutputRegressor
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, RadiusNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, SVR, LinearSVC, NuSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier
from threadpoolctl import threadpool_limits

from fastinfer import runtimes
from fastinfer.errors import ConfigurationError, ImportRefusedError
from fastinfer.importing import import_pipeline
from fastinfer.importing.assembly import estimator_model
from fastinfer.importing.groves import Grove
from fastinfer.importing.proof import opened
from fastinfer.preprocessing.program import Program
from fastinfer.settings import ModelConfig, Settings

TOLERANCE = 1e-6
RNG = np.random.default_rng(3)
X = RNG.normal(size=(160, 5)) * [1.0, 10.0, 100.0, 0.01, 3.0]
X[:, 4] = np.round(X[:, 4])
THREE = (X[:, 0] + X[:, 1] / 10 + RNG.normal(size=160) / 2 > 0).astype(int) + (X[:, 4] > 1)
TWO = (THREE > 0).astype(int)
AMOUNT = X[:, 0] * 50 + X[:, 1] ** 2 + RNG.normal(size=160)
POSITIVE = np.exp(X[:, 0] / 2)
HOLES = np.where(RNG.random(X.shape) < 0.1, np.nan, X)
SCALED = StandardScaler().fit_transform(X)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), threadpool_limits(1):
        for kind in (ConvergenceWarning, UserWarning, FutureWarning, RuntimeWarning):
            warnings.simplefilter("ignore", kind)
        yield


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


def compare(fitted: Any, rows: Any, got: dict[str, Any]) -> None:
    if is_classifier(fitted):
        differ = fitted.predict(rows) != got["label"]
        if differ.any():  # a tie, which scikit-learn itself decides by the batch that a row is in
            assert np.ptp(np.sort(fitted.predict_proba(rows)[differ])[:, -2:], axis=1).max() < 1e-12
        assert hasattr(fitted, "predict_proba") == ("probabilities" in got)
        if "probabilities" in got:
            np.testing.assert_allclose(got["probabilities"], fitted.predict_proba(rows), rtol=0, atol=TOLERANCE)
    else:
        np.testing.assert_allclose(got["value"].ravel(), fitted.predict(rows).ravel(), rtol=TOLERANCE, atol=TOLERANCE)


def same(fitted: Any, rows: Any, served: Served) -> None:
    """Trees in the core: the same to the last bit of what is answered, the labels too."""
    got = served(rows)
    assert served.file.name == "model.npz"
    if is_classifier(fitted):
        assert (fitted.predict(rows) == got["label"]).all()
        assert got["probabilities"].tobytes() == fitted.predict_proba(rows).astype(np.float32).tobytes()
    else:
        assert got["value"].tobytes() == fitted.predict(rows).tobytes()


def sides(fitted: Any, base: np.ndarray) -> np.ndarray:
    """Rows with a feature at each threshold of each tree, and at the two float64 and the two float32 beside it."""
    rows = [base]
    turns = sorted({(feature, turn) for feature, turn in thresholds(fitted) if abs(turn) < 1e30})
    for feature, threshold in [turns[i] for i in RNG.permutation(len(turns))[:300]]:
        single = np.float32(threshold)
        values = [threshold, *np.nextafter(threshold, [np.inf, -np.inf])]
        values += [float(single), *np.nextafter(single, np.array([np.inf, -np.inf], np.float32)).astype(np.float64)]
        block = np.tile(base[RNG.integers(len(base))], (len(values), 1))
        block[:, feature] = values
        rows.append(block)
    return np.concatenate(rows)


def thresholds(fitted: Any) -> Iterator[tuple[int, float]]:
    if hasattr(fitted, "tree_"):
        inner = fitted.tree_.feature >= 0
        yield from zip(fitted.tree_.feature[inner].tolist(), fitted.tree_.threshold[inner].tolist(), strict=True)
    elif hasattr(fitted, "_predictors"):
        for predictor in [predictor for stage in fitted._predictors for predictor in stage]:
            for node in predictor.nodes:
                if not node["is_leaf"] and not node["is_categorical"]:
                    yield int(node["feature_idx"]), float(node["num_threshold"])
    elif hasattr(fitted, "booster_"):
        frame = fitted.booster_.trees_to_dataframe().dropna(subset="threshold")
        frame = frame[frame.decision_type == "<="]
        for name, threshold in zip(frame.split_feature, frame.threshold, strict=True):
            yield fitted.feature_name_.index(name), float(threshold)
    else:
        parts = getattr(fitted, "estimators_", [])
        for part in parts.ravel() if isinstance(parts, np.ndarray) else parts:
            yield from thresholds(part)


# ---- estimators -----------------------------------------------------------------------------------------------------
TREES = [
    DecisionTreeClassifier(random_state=0),
    DecisionTreeClassifier(max_depth=3),
    ExtraTreeClassifier(random_state=0, min_samples_leaf=3),
    RandomForestClassifier(12, random_state=0),
    RandomForestClassifier(12, max_depth=3, random_state=0),
    ExtraTreesClassifier(8, min_samples_leaf=4, random_state=0),
    GradientBoostingClassifier(n_estimators=8),
    HistGradientBoostingClassifier(max_iter=8, min_samples_leaf=5),
    lightgbm.LGBMClassifier(n_estimators=8, min_child_samples=5, verbose=-1, n_jobs=1),
]
TREE_REGRESSORS = [
    DecisionTreeRegressor(),
    RandomForestRegressor(10, random_state=0),
    ExtraTreesRegressor(6, max_depth=5, random_state=0),
    GradientBoostingRegressor(n_estimators=12, loss="huber"),
    HistGradientBoostingRegressor(max_iter=12, min_samples_leaf=5),
    lightgbm.LGBMRegressor(n_estimators=12, min_child_samples=5, verbose=-1, n_jobs=1),
]


@pytest.mark.parametrize("target", [TWO, THREE], ids=["two", "three"])
@pytest.mark.parametrize("estimator", TREES, ids=repr)
def test_tree_classifiers_turn_where_scikit_learn_turns(estimator: Any, target: np.ndarray, tmp_path: Path) -> None:
    fitted = estimator.fit(X, target)
    same(fitted, sides(fitted, X), imported(fitted, tmp_path))


@pytest.mark.parametrize("estimator", TREE_REGRESSORS, ids=repr)
def test_tree_regressors_turn_where_scikit_learn_turns(estimator: Any, tmp_path: Path) -> None:
    fitted = estimator.fit(X, AMOUNT)
    same(fitted, sides(fitted, X), imported(fitted, tmp_path))


@pytest.mark.parametrize(
    "estimator",
    [
        DecisionTreeClassifier(max_depth=5),
        RandomForestClassifier(8, max_depth=5, random_state=0),
        HistGradientBoostingClassifier(max_iter=8, min_samples_leaf=5),
        lightgbm.LGBMClassifier(n_estimators=8, min_child_samples=5, verbose=-1, n_jobs=1),
        lightgbm.LGBMClassifier(n_estimators=8, min_child_samples=5, verbose=-1, n_jobs=1, zero_as_missing=True),
        lightgbm.LGBMClassifier(n_estimators=8, min_child_samples=5, verbose=-1, n_jobs=1, use_missing=False),
    ],
    ids=repr,
)
def test_missing_values_go_where_they_went_in_training(estimator: Any, tmp_path: Path) -> None:
    fitted = estimator.fit(HOLES, TWO)
    rows = sides(fitted, HOLES)
    rows = np.concatenate([rows, np.where(RNG.random(rows.shape) < 0.3, np.nan, rows), np.full((1, 5), np.nan)])
    served = imported(fitted, tmp_path)
    assert all(column.nullable for column in served.program.columns)
    same(fitted, rows, served)


def test_trees_without_missing_values_refuse_them(tmp_path: Path) -> None:
    served = imported(GradientBoostingClassifier(n_estimators=3).fit(X, TWO), tmp_path)
    assert not any(column.nullable for column in served.program.columns)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("family", ["histogram", "lightgbm"])
def test_splits_on_categories(family: str, holes: bool, tmp_path: Path) -> None:
    table = X.copy()
    table[:, 1] = RNG.integers(0, 9, 160)
    table[:, 3] = RNG.integers(2, 30, 160)
    if holes:
        table[::7, 1] = np.nan
    target = ((np.nan_to_num(table[:, 1]) % 3 == 0) ^ (table[:, 3] % 2 == 0)).astype(int)
    if family == "histogram":
        fitted: Any = HistGradientBoostingClassifier(
            max_iter=10, min_samples_leaf=3, categorical_features=[1, 3]
        ).fit(table, target)
    else:
        fitted = lightgbm.LGBMClassifier(n_estimators=10, min_child_samples=3, cat_smooth=1, verbose=-1, n_jobs=1)
        fitted.fit(table, target, categorical_feature=[1, 3])
    rows = np.concatenate([table] * 3)
    rows[:100, 1] = RNG.integers(-3, 40, 100)
    rows[100:200, 3] += 0.5
    rows[200:206, 3] = [-0.5, -1, -1.5, 1e6, 2.99, -0.0]
    rows[300:, 1] = np.nan
    same(fitted, rows, imported(fitted, tmp_path))


@pytest.mark.parametrize("sampled", [False, True], ids=["made", "sample"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_text_categories_that_the_estimator_encodes_itself(calibrated: bool, sampled: bool, tmp_path: Path) -> None:
    frame, target = people()
    frame = frame.assign(
        job=frame.job.astype("category"), city=frame.city.astype("category"), old=frame.age > 50, children=THREE[0]
    )
    histogram = HistGradientBoostingClassifier(max_iter=8, min_samples_leaf=3)
    fitted = (CalibratedClassifierCV(histogram, cv=2) if calibrated else histogram).fit(frame, target)
    served = imported(fitted, tmp_path, sample=frame if sampled else None)
    rows = frame.assign(job=frame.job.astype(object), city=frame.city.astype(object))
    rows.loc[::5, "job"] = "a job never seen"
    rows.loc[::7, "city"] = np.nan
    compare(fitted, rows, served(rows))
    assert served.file.name == ("model.onnx" if calibrated else "model.npz")


CLASSIFIERS = [
    LogisticRegression(),
    LogisticRegressionCV(cv=2, Cs=2),
    SGDClassifier(),
    SGDClassifier(loss="log_loss"),
    SGDClassifier(loss="modified_huber"),
    RidgeClassifier(),
    LinearSVC(),
    Perceptron(),
    LinearDiscriminantAnalysis(),
    QuadraticDiscriminantAnalysis(),
    MLPClassifier((8, 4), max_iter=20),
    MLPClassifier((6,), activation="tanh", max_iter=20),
    MLPClassifier((6,), activation="logistic", max_iter=20),
    GaussianNB(),
    BernoulliNB(),
    SVC(),
    SVC(kernel="poly"),
    SVC(kernel="linear", decision_function_shape="ovo"),
    SVC(kernel="sigmoid", break_ties=True),
    NuSVC(nu=0.2),
    KNeighborsClassifier(),
    KNeighborsClassifier(3, weights="distance"),
    SVC(probability=True),
    SVC(kernel="linear", C=100, probability=True),
    SVC(kernel="poly", degree=2, coef0=1, probability=True),
    SVC(kernel="sigmoid", probability=True, decision_function_shape="ovo"),
    NuSVC(nu=0.2, probability=True),
    CalibratedClassifierCV(SVC(probability=True), cv=2),
    VotingClassifier([("a", SVC(kernel="linear", probability=True)), ("b", GaussianNB())], voting="soft"),
    KNeighborsClassifier(metric="manhattan"),
    DummyClassifier(),
    OneVsRestClassifier(LogisticRegression()),
    OneVsRestClassifier(DecisionTreeClassifier(max_depth=2)),
    OneVsOneClassifier(LogisticRegression()),
    OneVsOneClassifier(DecisionTreeClassifier(max_depth=2)),
    AdaBoostClassifier(n_estimators=5),
    BaggingClassifier(LogisticRegression(), 4, max_features=0.6),
    BaggingClassifier(LinearSVC(), 4),
    VotingClassifier([("a", LogisticRegression()), ("b", RandomForestClassifier(4))], voting="soft", weights=[1, 2]),
    VotingClassifier([("a", LogisticRegression()), ("b", GaussianNB()), ("c", LinearSVC())]),
    StackingClassifier([("a", LogisticRegression()), ("b", RandomForestClassifier(4))], cv=2),
    StackingClassifier([("a", LinearSVC())], RandomForestClassifier(4), passthrough=True, cv=2),
    CalibratedClassifierCV(GradientBoostingClassifier(n_estimators=4), cv=2),
    CalibratedClassifierCV(LinearSVC(), method="isotonic", cv=2),
    CalibratedClassifierCV(RandomForestClassifier(4, max_depth=3), method="isotonic", cv=2),
    CalibratedClassifierCV(LogisticRegression(), method="temperature", cv=2),
    CalibratedClassifierCV(RandomForestClassifier(4, max_depth=3), method="temperature", cv=2),
    GridSearchCV(RandomForestClassifier(4), {"max_depth": [2, 3]}, cv=2),
    make_pipeline(MinMaxScaler(), PolynomialFeatures(2), PCA(4), LogisticRegression()),
    CalibratedClassifierCV(make_pipeline(RobustScaler(), LinearSVC()), cv=2),
]


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=repr)
def test_classifiers(estimator: Any, tmp_path: Path) -> None:
    for i, target in enumerate((np.array(["no", "yes"])[TWO], THREE)):
        fitted = estimator.fit(SCALED, target)
        rows = sides(fitted, SCALED)
        compare(fitted, rows, imported(fitted, tmp_path / str(i))(rows))


REGRESSORS = [
    LinearRegression(),
    Ridge(),
    ElasticNet(),
    BayesianRidge(),
    HuberRegressor(max_iter=500),
    SGDRegressor(),
    RANSACRegressor(random_state=0),
    MLPRegressor(hidden_layer_sizes=(6,), max_iter=20),
    SVR(),
    KNeighborsRegressor(),
    KNeighborsRegressor(weights="distance"),
    KNeighborsRegressor(metric="manhattan"),
    GaussianProcessRegressor(alpha=0.1),
    PLSRegression(2),
    DummyRegressor(),
    AdaBoostRegressor(n_estimators=5),
    BaggingRegressor(n_estimators=4),
    VotingRegressor([("a", Ridge()), ("b", RandomForestRegressor(4))]),
    StackingRegressor([("a", Ridge()), ("b", RandomForestRegressor(4))], cv=2),
    TransformedTargetRegressor(Ridge(), transformer=StandardScaler()),
    TransformedTargetRegressor(RandomForestRegressor(4), transformer=MinMaxScaler()),
]


@pytest.mark.parametrize("estimator", REGRESSORS, ids=repr)
def test_regressors(estimator: Any, tmp_path: Path) -> None:
    fitted = estimator.fit(SCALED, AMOUNT)
    compare(fitted, SCALED, imported(fitted, tmp_path)(SCALED))


@pytest.mark.parametrize(
    "estimator",
    [
        PoissonRegressor(),
        GammaRegressor(),
        TweedieRegressor(power=1.5),
        HistGradientBoostingRegressor(loss="poisson", max_iter=8),
        HistGradientBoostingRegressor(loss="gamma", max_iter=8),
        lightgbm.LGBMRegressor(objective="poisson", n_estimators=8, verbose=-1, n_jobs=1),
        lightgbm.LGBMRegressor(
            boosting_type="rf", bagging_freq=1, bagging_fraction=0.5, n_estimators=6, verbose=-1, n_jobs=1
        ),
        lightgbm.LGBMRegressor(reg_sqrt=True, n_estimators=6, verbose=-1, n_jobs=1),
        TransformedTargetRegressor(Ridge(), func=np.log1p, inverse_func=np.expm1),
        TransformedTargetRegressor(Ridge(), func=np.sqrt, inverse_func=np.square),
    ],
    ids=repr,
)
def test_regressors_of_positive_values(estimator: Any, tmp_path: Path) -> None:
    fitted = estimator.fit(SCALED, POSITIVE)
    compare(fitted, SCALED, imported(fitted, tmp_path)(SCALED))


def test_counts_and_codes(tmp_path: Path) -> None:
    counts = np.floor(np.abs(SCALED) * 3)
    for i, estimator in enumerate((MultinomialNB(), ComplementNB(), CategoricalNB())):
        fitted = estimator.fit(counts, THREE)
        model = estimator_model(fitted, 5, "estimator")
        session = onnxruntime.InferenceSession(model.proto.SerializeToString())
        label, probabilities = session.run(["label", "probabilities"], {"features": counts})
        compare(fitted, counts, {"label": label, "probabilities": probabilities})
        if i < 2:
            compare(fitted, counts, imported(fitted, tmp_path / str(i))(counts))


def test_isotonic_regression(tmp_path: Path) -> None:
    one = X[:, :1]
    fitted = IsotonicRegression(out_of_bounds="clip").fit(one, AMOUNT)
    model = estimator_model(fitted, 1, "estimator")
    session = onnxruntime.InferenceSession(model.proto.SerializeToString())
    rows = np.concatenate([one, one * 3])
    compare(fitted, rows, {"value": session.run(["value"], {"features": rows})[0]})


def test_thresholds_of_a_decision(tmp_path: Path) -> None:
    for i, estimator in enumerate((
        FixedThresholdClassifier(GradientBoostingClassifier(n_estimators=5), threshold=0.3),
        FixedThresholdClassifier(LinearSVC(), threshold=0.2, pos_label=0),
        TunedThresholdClassifierCV(LogisticRegression(), cv=2, scoring="balanced_accuracy"),
    )):
        fitted = estimator.fit(SCALED, TWO)
        compare(fitted, SCALED, imported(fitted, tmp_path / str(i))(SCALED))


def test_a_tie_falls_as_in_scikit_learn(tmp_path: Path) -> None:
    """Shares of thirds and sevenths tie mathematically and differ in their last bit; the order of the sum decides."""
    table = RNG.integers(0, 3, size=(90, 3)).astype(float)
    target = RNG.integers(0, 2, size=90)
    fitted = RandomForestClassifier(10, max_depth=2, random_state=1).fit(table, target)
    rows = np.stack(np.meshgrid(*[np.arange(-1, 4, 0.5)] * 3), axis=-1).reshape(-1, 3)
    compare(fitted, rows, imported(fitted, tmp_path)(rows))


# ---- what comes out -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        ([3, 7], "INT64", ("3", "7")),
        ([0.0, 1.0], "INT64", ("0", "1")),
        ([False, True], "BOOL", ("false", "true")),
        (["gut", "schlecht é"], "BYTES", ("gut", "schlecht é")),
    ],
)
@pytest.mark.parametrize("estimator", [LogisticRegression(), DecisionTreeClassifier()], ids=repr)
def test_labels_keep_their_kind(
    estimator: Any, labels: list[Any], kind: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    fitted = estimator.fit(SCALED, np.array(labels)[TWO])
    served = imported(fitted, tmp_path)
    assert [tuple(tensor[:3]) for tensor in served.runtime.outputs] == [
        ("label", kind, (-1,)), ("probabilities", "FP32", (-1, 2))
    ]
    task = served.program.task
    assert task is not None
    assert (task.kind, task.label, task.probabilities, task.classes) == ("classifier", "label", "probabilities", names)
    compare(fitted, SCALED, served(SCALED))


@pytest.mark.parametrize("labels", [TWO > 0, THREE + 1.0], ids=["bool", "float"])
def test_labels_of_what_is_converted_elsewhere(labels: np.ndarray, tmp_path: Path) -> None:
    for i, estimator in enumerate((KNeighborsClassifier(3, p=3), KNeighborsClassifier(3, p=1))):
        fitted = estimator.fit(SCALED, labels)
        compare(fitted, SCALED, imported(fitted, tmp_path / str(i))(SCALED))


def test_the_coupled_probabilities_of_many_classes(tmp_path: Path) -> None:
    digits, labels = load_digits(return_X_y=True)
    fitted = SVC(gamma=0.001, probability=True).fit(digits[:400], labels[:400])
    served = imported(fitted, tmp_path)
    compare(fitted, digits[400:700], served(digits[400:700]))
    compare(fitted, 30 * digits[400:500], served(30 * digits[400:500]))


def test_a_stack_of_three_classes_on_a_member_of_two(tmp_path: Path) -> None:
    member = LogisticRegression().fit(SCALED, TWO)
    fitted = StackingClassifier([("a", member)], cv="prefit", passthrough=True).fit(SCALED, THREE)
    compare(fitted, SCALED, imported(fitted, tmp_path)(SCALED))


def test_every_tensor_has_rows_first(tmp_path: Path) -> None:
    served = imported(RandomForestRegressor(3).fit(X, AMOUNT), tmp_path)
    tensors = [*served.runtime.inputs, *served.runtime.outputs]
    assert [tuple(tensor[:3]) for tensor in tensors] == [("features", "FP32", (-1, 5)), ("value", "FP64", (-1, 1))]
    assert served.program.task == ("regressor", None, None, (), "value")
    together = served(X)["value"]
    assert [served(X[i : i + 1])["value"][0, 0] for i in range(20)] == together[:20, 0].tolist()


def test_a_bare_estimator_takes_its_features_by_name(tmp_path: Path) -> None:
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d", "e"])
    assert [c.name for c in imported(Ridge().fit(frame, AMOUNT), tmp_path / "f").program.columns] == list("abcde")
    unnamed = imported(Ridge().fit(X, AMOUNT), tmp_path / "a").program.columns
    assert [c.name for c in unnamed] == ["x0", "x1", "x2", "x3", "x4"]


# ---- pipelines ------------------------------------------------------------------------------------------------------
def people(rows: int = 200, seed: int = 5) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({
        "age": rng.integers(18, 80, rows).astype(float),
        "income": np.where(rng.random(rows) < 0.1, np.nan, rng.lognormal(7, 1, rows)),
        "job": rng.choice(["clerk", "smith", "nurse"], rows),
        "city": pd.Series(rng.choice(["Ulm", "Köln"], rows), dtype=object).where(rng.random(rows) > 0.1, np.nan),
    })
    target = (frame.age > 40) ^ (frame.job == "smith") ^ (rng.random(rows) < 0.1)
    return frame, np.array(["bad", "good"])[target.astype(int)]


def columns(encoder: Any = None) -> ColumnTransformer:
    encoder = encoder or OneHotEncoder(handle_unknown="ignore")
    return ColumnTransformer([
        ("numbers", make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), ["age", "income"]),
        ("text", make_pipeline(SimpleImputer(strategy="most_frequent"), encoder), ["job", "city"]),
    ])


PIPELINES: list[Callable[[], Any]] = [
    lambda: make_pipeline(columns(), GradientBoostingClassifier(n_estimators=10)),
    lambda: make_pipeline(columns(), HistGradientBoostingClassifier(max_iter=10)),
    lambda: make_pipeline(columns(), lightgbm.LGBMClassifier(n_estimators=10, verbose=-1, n_jobs=1)),
    lambda: make_pipeline(columns(), LogisticRegression()),
    lambda: make_pipeline(columns(), CalibratedClassifierCV(RandomForestClassifier(5), method="isotonic", cv=2)),
    lambda: make_pipeline(columns(), PCA(3), MLPClassifier((5,), max_iter=20)),
    lambda: Pipeline([("all", make_pipeline(columns(), MinMaxScaler())), ("model", SVC())]),
    lambda: CalibratedClassifierCV(make_pipeline(columns(), GradientBoostingClassifier(n_estimators=5)), cv=3),
    lambda: GridSearchCV(make_pipeline(columns(), LogisticRegression()), {"logisticregression__C": [1, 2]}, cv=2),
    lambda: VotingClassifier([("a", make_pipeline(columns(), LogisticRegression())),
                              ("b", make_pipeline(columns(OrdinalEncoder(handle_unknown="use_encoded_value",
                                                                         unknown_value=-1)),
                                                  RandomForestClassifier(5)))], voting="soft"),
    lambda: FixedThresholdClassifier(make_pipeline(columns(), LogisticRegression()), threshold=0.4, pos_label="bad"),
]


@pytest.mark.parametrize(
    ("build", "sampled"), [*((build, False) for build in PIPELINES), *((build, True) for build in PIPELINES[:4])]
)
def test_pipelines(build: Callable[[], Any], sampled: bool, tmp_path: Path) -> None:
    frame, target = people()
    fitted = build().fit(frame, target)
    served = imported(fitted, tmp_path, sample=frame if sampled else None)
    fresh, _ = people(300, seed=6)
    fresh.loc[::9, "job"] = "a job never seen"
    compare(fitted, fresh, served(fresh))


@pytest.mark.parametrize("first", [
    "passthrough", FeatureUnion([("as it is", "passthrough"), ("scaled", StandardScaler())])], ids=repr)
def test_a_first_step_that_passes_columns_through(first: Any, tmp_path: Path) -> None:
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d", "e"])
    for kind, rows in (("frame", frame), ("array", X)):
        pipeline = Pipeline([("first", first), ("model", LogisticRegression())])
        for name, fitted in (("pipeline", pipeline), ("search", GridSearchCV(pipeline, {"model__C": [1, 2]}, cv=2))):
            served = imported(fitted.fit(rows, TWO), tmp_path / kind / name)
            assert [c.name for c in served.program.columns] == (
                list(frame) if kind == "frame" else [f"x{i}" for i in range(5)])
            compare(fitted, rows, served(rows))


def test_a_target_transformed_behind_a_pipeline(tmp_path: Path) -> None:
    frame, _ = people()
    fitted = TransformedTargetRegressor(
        make_pipeline(columns(), RandomForestRegressor(5)), func=np.log, inverse_func=np.exp
    ).fit(frame, frame.age * 3)
    compare(fitted, frame, imported(fitted, tmp_path)(frame))


def test_a_frozen_model_calibrated_later(tmp_path: Path) -> None:
    frame, target = people()
    first = make_pipeline(columns(), HistGradientBoostingClassifier(max_iter=5)).fit(frame, target)
    fitted = CalibratedClassifierCV(FrozenEstimator(first), method="isotonic").fit(frame, target)
    compare(fitted, frame, imported(fitted, tmp_path)(frame))


def in_a_graph(fitted: Any) -> Any:
    """The same estimator as a part of a graph, which other estimators are made of."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fastinfer.importing.assembly._forest", lambda *_: None)
        return estimator_model(fitted, 2, "estimator").proto


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(st.tuples(st.floats(-1e30, 1e30), st.floats(-1, 1), st.integers(0, 3)), min_size=12, max_size=40),
    depth=st.integers(1, 6),
    kind=st.sampled_from([DecisionTreeClassifier, ExtraTreeClassifier]),
)
def test_any_tree_turns_exactly(data: list[tuple[float, float, int]], depth: int, kind: Any) -> None:
    table, target = np.array([row[:2] for row in data]), np.array([row[2] for row in data])
    fitted = kind(max_depth=depth, random_state=0).fit(table, target)
    model = estimator_model(fitted, 2, "estimator")
    rows = sides(fitted, table)
    graph = onnxruntime.InferenceSession(in_a_graph(fitted).SerializeToString())
    label, probabilities = graph.run(["label", "probabilities"], {"features": rows.astype(np.float32)})
    compare(fitted, rows, {"label": label, "probabilities": probabilities})
    compare(fitted, rows, opened(model)(rows))


# ---- the proof ------------------------------------------------------------------------------------------------------
def test_thresholds_rounded_to_float32_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fault that converters to float32 have: some value falls on the other side of its threshold."""
    add = Grove.add

    def rounded(self: Grove, left: Any, right: Any, feature: Any, threshold: Any, *rest: Any) -> None:
        add(self, left, right, feature, threshold.astype(np.float32).astype(np.float64), *rest)

    monkeypatch.setattr(Grove, "add", rounded)
    fitted = make_pipeline(StandardScaler(), HistGradientBoostingRegressor(max_iter=10)).fit(X, AMOUNT)
    with pytest.raises(ImportRefusedError, match=r"value is .*, expected .*, a difference of .* on row .*x0"):
        import_pipeline(fitted, tmp_path / "1")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_label_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "fastinfer.importing.graph.Graph.argmax", lambda self, x: self.op("ArgMin", x, axis=1, keepdims=0)
    )
    fitted = LogisticRegression().fit(SCALED, np.array(["no", "yes", "no idea"])[THREE])
    with pytest.raises(ImportRefusedError, match=r'label is "(no|yes|no idea)", expected "(no|yes|no idea)", on row'):
        import_pipeline(fitted, tmp_path / "1")


def test_a_row_that_depends_on_its_neighbours_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "fastinfer.importing.linear.softmax",
        lambda graph, x: graph.op("Div", graph.op("Exp", x), graph.op("ReduceSum", graph.op("Exp", x), keepdims=1)),
    )
    with pytest.raises(ImportRefusedError, match=r"does not answer as|depends on the rows beside it"):
        import_pipeline(LogisticRegression().fit(SCALED, THREE), tmp_path / "1")


def test_the_report_counts_rows_and_names_the_worst(tmp_path: Path) -> None:
    frame, target = people()
    fitted = make_pipeline(columns(), GradientBoostingClassifier(n_estimators=5)).fit(frame, target)
    report = import_pipeline(fitted, tmp_path / "1", sample=frame)
    assert report.rows > len(frame)
    assert report.worst.keys() == {"label", "probabilities"}
    assert report.worst["label"] == 0
    assert 0 < report.worst["probabilities"] <= TOLERANCE
    assert (report.estimator, report.columns, report.dtype, report.task) == (
        "GradientBoostingClassifier", 4, "float32", "classifier",
    )  # fmt: skip
    assert "labels equal" in str(report)


def test_what_only_the_program_refuses_is_said(tmp_path: Path) -> None:
    """No member of the bag reads the first column, so scikit-learn does not look at it."""
    bag = BaggingClassifier(LogisticRegression(), 1, max_features=2, random_state=1).fit(SCALED, TWO)
    unread = sorted(set(range(5)) - set(bag.estimators_features_[0]))
    report = import_pipeline(bag, tmp_path / "1")
    assert report.notes == tuple(
        f"refused, where scikit-learn answers: a missing value in 'x{i}'" for i in unread
    )


# ---- refusals -------------------------------------------------------------------------------------------------------
class Odd(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator that nobody knows."""

    def fit(self, x: Any, y: Any) -> "Odd":
        self.n_features_in_ = x.shape[1]
        return self

    def predict(self, x: Any) -> Any:
        return np.zeros(len(x))


class Shifted(Ridge):  # type: ignore[misc]
    """A known estimator that answers otherwise."""

    def predict(self, x: Any) -> Any:
        return super().predict(x) + 1


BOTH = np.stack([AMOUNT, AMOUNT * 2], axis=1)


@pytest.mark.parametrize(
    ("fitted", "message"),
    [
        (lambda: Odd().fit(X, AMOUNT), r"Odd is not supported"),
        (lambda: Shifted().fit(X, AMOUNT), r"Shifted is not supported"),
        (lambda: make_pipeline(StandardScaler(), Odd()).fit(X, AMOUNT), r"pipeline\['odd'\]: .*Odd is not supported"),
        (lambda: RandomForestRegressor(2).fit(X, BOTH), "several targets"),
        (lambda: LinearRegression().fit(X, BOTH), "several targets"),
        (lambda: MultiOutputRegressor(Ridge()).fit(X, BOTH), "MultiOutputRegressor predicts several targets"),
        (lambda: RandomForestClassifier(2).fit(X, np.stack([TWO, THREE], axis=1)), "several targets"),
        (lambda: IsolationForest(n_estimators=5).fit(X), "IsolationForest is not supported"),
        (lambda: StandardScaler().fit(X), "StandardScaler does not predict"),
        (lambda: DummyClassifier(strategy="uniform").fit(X, TWO), "at random"),
        (lambda: Ridge(), "not fitted"),
        (lambda: GradientBoostingRegressor(init=Ridge(), n_estimators=2).fit(X, AMOUNT), r"init: a Ridge"),
        (lambda: lightgbm.LGBMRegressor(n_estimators=2, linear_tree=True, verbose=-1).fit(X, AMOUNT), "linear leaves"),
        (lambda: KernelRidge().fit(X, AMOUNT), "KernelRidge is not supported"),
        (
            lambda: TransformedTargetRegressor(Ridge(), func=lambda y: y, inverse_func=lambda y: y).fit(X, AMOUNT),
            "not a numpy function",
        ),
        (lambda: GridSearchCV(Ridge(), {"alpha": [1, 2]}, cv=2, refit=False).fit(X, AMOUNT), "refit"),
        # converted elsewhere: right near the training data, and without an answer far from them
        (lambda: RadiusNeighborsRegressor(50.0).fit(SCALED, AMOUNT), "fails on rows that are answered"),
    ],
)
def test_refusals_name_the_part(fitted: Callable[[], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ImportRefusedError, ConfigurationError), match=message):
        import_pipeline(fitted(), tmp_path / "1")
    assert list(tmp_path.iterdir()) == []


def test_preprocessing_that_no_program_does_is_refused_by_its_path(tmp_path: Path) -> None:
    from sklearn.kernel_approximation import RBFSampler

    fitted = make_pipeline(FeatureUnion([("curve", RBFSampler())]), Ridge()).fit(X, AMOUNT)
    with pytest.raises(ImportRefusedError, match=r"transformer_list\['curve'\].*RBFSampler"):
        import_pipeline(fitted, tmp_path / "1")


# ---- files ----------------------------------------------------------------------------------------------------------
def test_a_pickle_is_loaded_only_when_trusted(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.joblib"
    joblib.dump(Ridge().fit(X, AMOUNT), path)
    with pytest.raises(ConfigurationError, match="--trust-pickle"):
        import_pipeline(path, tmp_path / "1")
    import_pipeline(path, tmp_path / "1", trust_pickle=True)
    assert sorted(p.name for p in (tmp_path / "1").iterdir()) == ["features.json", "model.onnx"]


def test_a_pickle_of_another_release_names_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.pkl"
    with monkeypatch.context() as patched:
        patched.setattr("sklearn.base.__version__", "1.3.2")
        joblib.dump(Ridge().fit(X, AMOUNT), path)
    with pytest.raises(ImportRefusedError, match=r"scikit-learn 1\.3\.2") as refusal:
        import_pipeline(path, tmp_path / "1", trust_pickle=True)
    assert sklearn.__version__ in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04cno_such_module\nThing\n."])
def test_a_file_that_is_no_pickle(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.joblib"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"pipeline\.joblib: (cannot be loaded|needs the module no_such)"):
        import_pipeline(path, tmp_path / "1", trust_pickle=True)


@pytest.mark.parametrize("module", ["sklearn", "onnx", "pandas"])
def test_a_missing_package_names_the_extra(module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=rf"{module}.*pip install 'fastinfer\[sklearn\]'"):
        import_pipeline(tmp_path / "pipeline.joblib", tmp_path / "1", trust_pickle=True)


def test_a_version_is_never_overwritten(tmp_path: Path) -> None:
    fitted = Ridge().fit(X, AMOUNT)
    (tmp_path / "empty").mkdir()
    import_pipeline(fitted, tmp_path / "empty")
    before = (tmp_path / "empty" / "model.onnx").read_bytes()
    with pytest.raises(ConfigurationError, match="not empty"):
        import_pipeline(Ridge(alpha=9).fit(X, AMOUNT), tmp_path / "empty")
    assert (tmp_path / "empty" / "model.onnx").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="is a file"):
        import_pipeline(fitted, tmp_path / "file")


def test_samples(tmp_path: Path) -> None:
    frame, target = people()
    fitted = make_pipeline(columns(), LogisticRegression()).fit(frame, target)
    frame.assign(status=target).to_csv(tmp_path / "rows.csv", index=False)
    frame.assign(status=target)[::-1].to_parquet(tmp_path / "rows.parquet")
    for i, name in enumerate(("rows.csv", "rows.parquet")):
        assert import_pipeline(fitted, tmp_path / str(i), sample=tmp_path / name).rows > len(frame)
    for sample, message in [
        (tmp_path / "none.csv", "no such file"),
        (tmp_path / "0" / "model.onnx", r"\.parquet or a \.csv"),
        (frame.drop(columns="job"), "lacks the column 'job'"),
        (frame[:0], "no rows"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            import_pipeline(fitted, tmp_path / "9", sample=sample)


def test_the_import_loads_nothing_before_it_runs() -> None:
    heavy = ("sklearn", "onnx", "pandas", "numpy")
    script = f"import sys, fastinfer.importing; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
