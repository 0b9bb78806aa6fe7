"""scikit-learn's own files at the server's surface: equal to the estimator's predict, and nothing untrusted loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier, IsolationForest, RandomForestRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler

import fastinfer
from fastinfer.errors import ConfigurationError, InvalidValueError, ModelLoadError

io = pytest.importorskip("skops.io", reason="pip install 'fastinfer[skops]'")
RANDOM = np.random.default_rng(5)
FRAME = pd.DataFrame({
    "age": RANDOM.integers(18, 80, 200).astype(float),
    "income": RANDOM.lognormal(7, 1, 200),
    "job": RANDOM.choice(["fixed", "freelance", "pärt"], 200),
    "rooms": RANDOM.integers(1, 5, 200),
    "owner": RANDOM.choice([True, False], 200),
})
HOLED = FRAME.astype({"job": object}).assign(
    age=FRAME["age"].where(RANDOM.random(200) > 0.2),
    job=FRAME["job"].astype(object).where(RANDOM.random(200) > 0.2, np.nan))
GOOD = np.where((FRAME["income"] > 1000) ^ (RANDOM.random(200) < 0.1), "good", "bad")
NUMBERS = FRAME[["age", "income"]].to_numpy()


def columns(unknown: str = "ignore") -> ColumnTransformer:
    return ColumnTransformer([
        ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "income"]),
        ("words", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown=unknown)),
         ["job"]),
        ("counts", OneHotEncoder(handle_unknown="ignore"), ["rooms"]),
        ("flags", OrdinalEncoder(), ["owner"]),
    ])


CASES = {
    "pipeline": lambda: make_pipeline(columns(), LogisticRegression()).fit(HOLED, GOOD),
    "strict": lambda: make_pipeline(columns("error"), LogisticRegression()).fit(FRAME, GOOD == "good"),
    "boosting": lambda: make_pipeline(columns(), GradientBoostingClassifier(n_estimators=5)).fit(
        HOLED, FRAME["rooms"]),
    "forest": lambda: RandomForestRegressor(5, random_state=0).fit(FRAME[["age", "income"]], FRAME["rooms"] * 0.5),
    "array": lambda: make_pipeline(StandardScaler(), LogisticRegression()).fit(NUMBERS, GOOD),
    "mixed": lambda: make_pipeline(OneHotEncoder(), RidgeClassifier()).fit(FRAME[["job", "rooms"]].to_numpy(object),
                                                                           GOOD),
    "two": lambda: Ridge().fit(NUMBERS, NUMBERS),
    "clusters": lambda: KMeans(3, n_init=1, random_state=0).fit(NUMBERS),
    "outliers": lambda: IsolationForest(n_estimators=5, random_state=0).fit(NUMBERS),
    "neighbours": lambda: KNeighborsClassifier().fit(NUMBERS, GOOD),
    "texts": lambda: make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(
        ["good day", "bad night", "good night", "bad"], [1, 0, 1, 0]),
    "calibrated": lambda: CalibratedClassifierCV(make_pipeline(columns(), LogisticRegression()), cv=2).fit(FRAME, GOOD),
}
NAMES = list(CASES)
ROWS = HOLED.iloc[:6]


def trusted(path: Path) -> str:
    return f"[sklearn]\ntrusted = {json.dumps(io.get_untrusted_types(file=path))}\n"


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    return {name: make() for name, make in CASES.items()}


@pytest.fixture(scope="module")
def models(fitted, tmp_path_factory):
    root = tmp_path_factory.mktemp("sklearn")
    for name, estimator in fitted.items():
        path = root / name / "1" / "model.skops"
        path.parent.mkdir(parents=True)
        io.dump(estimator, path)
        (root / name / "model.toml").write_text(trusted(path))
    (root / "pickled" / "1").mkdir(parents=True)
    joblib.dump(fitted["pipeline"], root / "pickled" / "1" / "model.joblib")
    from conftest import starting

    with starting(tmp_path_factory) as start:
        yield start(root, "--trust-pickle")


def given(name: str) -> Any:
    """Rows as the estimator takes them."""
    if name == "texts":
        return ["good", "a bad day", "", "night", "ü", "good bad"]
    if name == "mixed":
        return FRAME[["job", "rooms"]].to_numpy(object)[:6]
    if name == "forest":
        return FRAME[["age", "income"]].iloc[:6]
    if name in ("strict", "calibrated"):
        return FRAME.iloc[:6]
    return ROWS if name in ("pipeline", "boosting", "pickled") else NUMBERS[:6]


def records(name: str) -> list[dict[str, Any]]:
    rows = given(name)
    if name == "texts":
        return [{"text": text} for text in rows]
    if isinstance(rows, np.ndarray):
        mixed = [dict(zip(("x0", "x1"), row, strict=True)) for row in rows.tolist()]
        return mixed if name == "mixed" else [{"features": row} for row in rows.tolist()]
    return [{key: None if value != value else value for key, value in row.items()} for row in rows.to_dict("records")]


@pytest.mark.parametrize("name", [*NAMES, "pickled"])
def test_records_are_answered_as_the_estimator_answers(models, fitted, name):
    estimator = fitted["pipeline" if name == "pickled" else name]
    with models.client() as client:
        answer = client.post(f"/v1/models/{name}:predict", json={"records": records(name)})
        assert answer.status_code == 200, answer.text
        metadata = client.get(f"/v2/models/{name}").json()
    assert metadata["platform"] == ("sklearn_pickle" if name == "pickled" else "sklearn_skops")
    assert metadata["properties"]["batched"] == "true", metadata["properties"]
    predictions = answer.json()["predictions"]
    expected = estimator.predict(given(name)).tolist()
    if name in ("forest", "two"):
        assert [each["value"] for each in predictions] == expected
        return
    assert [each["label"] for each in predictions] == expected
    if hasattr(estimator, "predict_proba"):
        classes = [str(each) for each in estimator.classes_.tolist()]
        assert [each["probabilities"] for each in predictions] == [
            dict(zip(classes, row, strict=True)) for row in estimator.predict_proba(given(name)).tolist()]


@pytest.mark.parametrize("binary", [False, True])
def test_tensors_are_answered_as_the_estimator_answers(models, fitted, binary):
    """The whole of a matrix, and one column an input."""
    expected = fitted["array"].predict_proba(NUMBERS[:3])
    body: dict[str, Any] = {"inputs": [{"name": "features", "datatype": "FP64", "shape": [3, 2]}],
                            "outputs": [{"name": "probabilities", "parameters": {"binary_data": binary}}]}
    with models.client() as client:
        if not binary:
            body["inputs"][0]["data"] = NUMBERS[:3].tolist()
            answer = client.post("/v2/models/array/infer", json=body)
            assert answer.json()["outputs"][0]["data"] == expected.ravel().tolist()
            return
        body["inputs"][0]["parameters"] = {"binary_data_size": 48}
        head = json.dumps(body).encode()
        answer = client.post("/v2/models/array/infer", content=head + NUMBERS[:3].tobytes(),
                             headers={"Inference-Header-Content-Length": str(len(head))})
        size = int(answer.headers["Inference-Header-Content-Length"])
        assert answer.content[size:] == expected.tobytes()


def test_its_inputs_are_the_columns_of_the_fit(models):
    with models.client() as client:
        inputs = client.get("/v2/models/pipeline").json()["inputs"]
        assert [(each["name"], each["datatype"]) for each in inputs] == [
            ("age", "FP64"), ("income", "FP64"), ("job", "BYTES"), ("rooms", "INT64"), ("owner", "BOOL")]
        row = records("strict")[0]
        for missing, status in (("age", 200), ("job", 200), ("rooms", 400), ("owner", 400)):
            answer = client.post("/v1/models/pipeline:predict", json={"records": [row | {missing: None}]})
            assert answer.status_code == status, answer.text


def test_a_category_that_a_step_refuses_is_the_requests_error(models):
    row = records("strict")[0]
    with models.client() as client:
        answer = client.post("/v1/models/strict:predict", json={"records": [row, row | {"job": "nobody knows"}]})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_value")
        assert "Found unknown categories ['nobody knows']" in answer.json()["error"]
        assert client.post("/v1/models/strict:predict", json={"records": [row]}).status_code == 200


# -- load ----------------------------------------------------------------------------------------------------------
class Own(BaseEstimator):
    def fit(self, rows, labels=None):
        self.n_features_in_ = 2
        return self

    def predict(self, rows):
        return rows.sum(axis=1)


def saved(path: Path, estimator: Any) -> Path:
    io.dump(estimator, path)
    return path


def test_a_type_that_nobody_trusts_is_named(tmp_path):
    folder = tmp_path / "own"
    (folder / "1").mkdir(parents=True)
    saved(folder / "1" / "model.skops", Own().fit(NUMBERS))
    with pytest.raises(ModelLoadError, match=r"types that are not trusted: test_sklearn_model\.Own\. If you know them"):
        fastinfer.load(folder)
    (folder / "model.toml").write_text('[sklearn]\ntrusted = ["test_sklearn_model.Own"]\n')
    assert fastinfer.load(folder).predict(NUMBERS[:2])["value"].tolist() == [[x] for x in NUMBERS[:2].sum(axis=1)]


@pytest.mark.parametrize("cut", ["empty", "half", "tail", "flipped", "garbage", "zip"])
def test_a_damaged_file_is_refused(tmp_path, cut):
    path = saved(tmp_path / "m.skops", CASES["array"]())
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 3] ^= 0xFF
    path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "tail": data[:-7], "flipped": bytes(flipped),
                      "garbage": b"PK" + b"\xff" * 100, "zip": b"PK\5\6" + bytes(18)}[cut])
    with pytest.raises(ModelLoadError, match=r"m\.skops"):
        fastinfer.load(path)


def test_a_damaged_pickle_is_refused(tmp_path):
    path = tmp_path / "m.joblib"
    joblib.dump(CASES["array"](), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelLoadError, match="it cannot be loaded"):
        fastinfer.load(path, trust_pickle=True)


def test_a_pickle_whose_attributes_are_damaged_is_refused(tmp_path):
    fitted = CASES["array"]()
    fitted[0].n_features_in_ = "four"
    joblib.dump(fitted, tmp_path / "m.joblib")
    with pytest.raises(ModelLoadError, match=r"m\.joblib: what it holds is no fitted estimator, or damaged: Value"):
        fastinfer.load(tmp_path / "m.joblib", trust_pickle=True)


def test_a_pickle_is_loaded_only_when_trusted(tmp_path, monkeypatch):
    path = tmp_path / "m.pkl"
    joblib.dump(CASES["array"](), path)
    monkeypatch.setattr(joblib, "load", lambda path: pytest.fail("loaded"))
    with pytest.raises(ModelLoadError, match=r"m\.pkl is a pickle: loading it runs the code in it.*--trust-pickle"):
        fastinfer.load(path)


@pytest.mark.parametrize(("module", "extra"), [("skops", "skops"), ("sklearn", "sklearn")])
def test_a_missing_library_is_named(tmp_path, monkeypatch, module, extra):
    path = saved(tmp_path / "m.skops", CASES["array"]())
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=rf"needs {module}, which is not installed: .*fastinfer\[{extra}\]"):
        fastinfer.load(path)


def test_another_release_of_scikit_learn_is_refused(tmp_path, monkeypatch):
    import sklearn.base

    with monkeypatch.context() as patch:
        patch.setattr(sklearn.base, "__version__", "1.3.0")
        path = saved(tmp_path / "m.skops", CASES["array"]())
    with pytest.raises(ModelLoadError, match=r"saved by scikit-learn 1\.3\.0, and scikit-learn .*install scikit-learn"):
        fastinfer.load(path)


def test_a_column_whose_type_the_fit_does_not_tell_is_told(tmp_path):
    folder = tmp_path / "m"
    (folder / "1").mkdir(parents=True)
    flags = FunctionTransformer(np.char.count, kw_args={"sub": "e"}, validate=False)
    estimator = make_pipeline(ColumnTransformer([("e", make_pipeline(FunctionTransformer(np.asarray, kw_args={
        "dtype": "U"}), flags), ["job"])]), Ridge()).fit(FRAME, FRAME["age"])
    path = folder / "1" / "model.joblib"
    joblib.dump(estimator, path)
    (folder / "model.toml").write_text('[sklearn.columns]\njob = "BYTES"\n')
    model = fastinfer.load(folder, trust_pickle=True)
    rows = {"age": FRAME["age"], "income": FRAME["income"], "job": FRAME["job"], "rooms": FRAME["rooms"] * 1.0,
            "owner": FRAME["owner"] * 1.0}
    assert model.predict(pd.DataFrame(rows))["value"][:, 0].tolist() == estimator.predict(FRAME).tolist()
    (folder / "model.toml").write_text('[sklearn.columns]\njop = "BYTES"\n')
    with pytest.raises(ModelLoadError, match="names 'jop'; the columns are age, income, job"):
        fastinfer.load(folder, trust_pickle=True)


def test_an_estimator_without_predict_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match="StandardScaler has no predict"):
        fastinfer.load(saved(tmp_path / "m.skops", StandardScaler().fit(NUMBERS)))


def test_infinity_is_the_requests_error(tmp_path):
    model = fastinfer.load(saved(tmp_path / "m.skops", CASES["array"]()))
    with pytest.raises(InvalidValueError, match="Input X contains infinity"):
        model.predict(np.array([[np.inf, 1.0]]))
