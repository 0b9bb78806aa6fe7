"""Every transformer before an estimator, imported whole: the program, the model behind it, and the proof of both."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.feature_selection import RFE, SelectFromModel, SelectKBest, VarianceThreshold
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline, make_union
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
    TargetEncoder,
)
from sklearn.svm import SVC

from fastinfer.importing import import_pipeline

RNG = np.random.default_rng(3)
NUMBERS = pd.DataFrame(RNG.normal(size=(120, 4)) * [1, 10, 100, 0.1] + [0, 5, -20, 1], columns=list("abcd"))
HOLES = NUMBERS.mask(RNG.random(NUMBERS.shape) < 0.15)
WORDS = pd.DataFrame({"c": RNG.choice(list("xyzuvw"), 120), "d": RNG.choice(["α", "β", "γ"], 120)})
TEXTS = pd.Series(RNG.choice(["red green blue", "Green apple", "blue sky day", "the Red car"], 120), name="t")
TARGET = (NUMBERS.a + NUMBERS.b / 10 > 0.5).astype(int).to_numpy()
FEW = LogisticRegression(max_iter=200)
CASES = [
    *[(step, NUMBERS) for step in (
        StandardScaler(), StandardScaler(with_mean=False), MinMaxScaler(clip=True), MaxAbsScaler(),
        RobustScaler(unit_variance=True), Normalizer(), Normalizer("l1"), Binarizer(threshold=0.2),
        KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf"),
        KBinsDiscretizer(4, encode="onehot-dense", strategy="uniform"),
        KBinsDiscretizer(4, encode="ordinal", strategy="kmeans"),
        QuantileTransformer(n_quantiles=40), QuantileTransformer(n_quantiles=40, output_distribution="normal"),
        PowerTransformer(), PolynomialFeatures(2, interaction_only=True),
        SplineTransformer(extrapolation="periodic"), SplineTransformer(sparse_output=True),
        VarianceThreshold(), SelectKBest(k=2), SelectFromModel(ExtraTreesClassifier(5)),
        RFE(FEW, n_features_to_select=2), PCA(3), PCA(3, whiten=True), IncrementalPCA(2),
        TruncatedSVD(2), FunctionTransformer(),
        make_column_transformer((StandardScaler(), ["a", "c"]), remainder="passthrough"),
        make_column_transformer((make_pipeline(SimpleImputer(), KBinsDiscretizer(3, strategy="uniform")), [0, 1]),
                                ("drop", [2]), remainder=MinMaxScaler()),
    )],
    (PowerTransformer("box-cox"), NUMBERS.abs() + 0.1),
    (FunctionTransformer(np.log1p), NUMBERS.abs()),
    (SimpleImputer(), HOLES),
    (SimpleImputer(strategy="most_frequent", add_indicator=True), HOLES),
    (make_union(SimpleImputer(), MissingIndicator()), HOLES),
    (OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=4), WORDS),
    (OneHotEncoder(drop="first", sparse_output=False), WORDS),
    (OrdinalEncoder(), WORDS),
    (TargetEncoder(), WORDS),
    (CountVectorizer(), TEXTS),
    (TfidfVectorizer(sublinear_tf=True), TEXTS),
    (HashingVectorizer(n_features=64), TEXTS),
    (make_pipeline(CountVectorizer(binary=True), TfidfTransformer()), TEXTS),
]  # fmt: skip


@pytest.mark.parametrize(("step", "rows"), CASES, ids=lambda value: type(value).__name__)
def test_before_a_linear_model(step: Any, rows: Any, tmp_path: Path) -> None:
    prove(make_pipeline(step, FEW), rows, tmp_path)


SPARSE = [OneHotEncoder(), TfidfVectorizer(), KBinsDiscretizer(3, strategy="uniform")]


@pytest.mark.parametrize("step", SPARSE, ids=lambda value: type(value).__name__)
def test_a_forest_takes_no_missing_values_in_a_sparse_matrix(step: Any, tmp_path: Path) -> None:
    """In a dense one it does, so that it has to be asked with what it will get."""
    rows = {"OneHotEncoder": WORDS, "TfidfVectorizer": TEXTS}.get(type(step).__name__, NUMBERS)
    prove(make_pipeline(step, RandomForestClassifier(5)), rows, tmp_path)


@pytest.mark.parametrize("estimator", [KNeighborsRegressor(3), KNeighborsClassifier(3, weights="distance"), SVC()],
                         ids=lambda value: type(value).__name__)  # fmt: skip
def test_what_was_fitted_on_a_sparse_matrix_keeps_it_so(estimator: Any, tmp_path: Path) -> None:
    prove(make_pipeline(SplineTransformer(3, sparse_output=True), estimator), NUMBERS, tmp_path)


def test_sparse_coefficients(tmp_path: Path) -> None:
    fitted = make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0)).fit(NUMBERS, TARGET)
    fitted[-1].sparsify()
    assert import_pipeline(fitted, tmp_path / "1", sample=NUMBERS).rows > len(NUMBERS)


def prove(pipeline: Any, rows: Any, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = pipeline.fit(rows, TARGET)
        sample = rows.to_frame() if isinstance(rows, pd.Series) else rows
        report = import_pipeline(fitted, folder / "1", sample=sample)
    assert report.rows > len(rows)
