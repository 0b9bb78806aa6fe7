"""CatBoost's own files at the server's surface: the library's predict, bit by bit. pip install catboost"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fastinfer
from fastinfer.errors import ConfigurationError, ModelLoadError

HEAD = b"CBM1\x10\x00\x00\x00"


# -- without the library -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("data", [b"CBM1", b"CBM", b"garbage, all of it", HEAD + bytes(15), b"\0" * 100])
def test_a_file_that_is_cut_is_refused_before_the_library_sees_it(tmp_path, monkeypatch, data):
    monkeypatch.setitem(sys.modules, "catboost", None)
    (tmp_path / "m.cbm").write_bytes(data)
    with pytest.raises(ModelLoadError, match=r"m\.cbm is (no CatBoost model|damaged)"):
        fastinfer.load(tmp_path / "m.cbm")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "catboost", None)
    (tmp_path / "m.cbm").write_bytes(HEAD + bytes(16))
    with pytest.raises(ConfigurationError, match=r"needs catboost, which is not installed: .*fastinfer\[cat"):
        fastinfer.load(tmp_path / "m.cbm")


# -- with it ---------------------------------------------------------------------------------------------------------
RANDOM = np.random.default_rng(2)
FRAME = pd.DataFrame({
    "age": RANDOM.normal(40, 10, 300),
    "job": RANDOM.choice(["x", "y", "zü"], 300),
    "rooms": RANDOM.integers(1, 5, 300),
    "said": RANDOM.choice(["good day", "bad night", "so so"], 300),
})
NUMBERS = FRAME[["age", "rooms"]].to_numpy()
GOOD = np.where(FRAME["age"] > 40, "good", "bad")
ROWS = FRAME.iloc[:5].assign(age=[1.5, np.nan, 39.999999999, 40.1, -1e300], job=["x", "never seen", "", "zü", "y"])
NAMES = ["mixed", "binary", "several", "counts", "value", "two", "poisson", "marks"]


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    catboost = pytest.importorskip("catboost", reason="pip install 'fastinfer[catboost]'")
    options = {"iterations": 8, "verbose": 0, "allow_writing_files": False, "thread_count": 1, "random_seed": 1}
    classifier, regressor = catboost.CatBoostClassifier, catboost.CatBoostRegressor
    return {
        "mixed": classifier(cat_features=["job", "rooms"], text_features=["said"], **options).fit(FRAME, GOOD),
        "binary": classifier(**options).fit(NUMBERS, GOOD == "good"),
        "several": classifier(**options).fit(FRAME[["age", "rooms"]], FRAME["rooms"]),
        "counts": classifier(loss_function="MultiClassOneVsAll", **options).fit(NUMBERS, FRAME["job"]),
        "value": regressor(**options).fit(NUMBERS, FRAME["age"]),
        "two": regressor(loss_function="MultiRMSE", **options).fit(NUMBERS, NUMBERS),
        "poisson": regressor(loss_function="Poisson", **options).fit(NUMBERS, FRAME["rooms"]),
        "marks": classifier(loss_function="MultiLogloss", **options).fit(NUMBERS, np.stack([GOOD == "good",
                                                                         FRAME["rooms"] > 2], axis=1).astype(int)),
    }


@pytest.fixture(scope="module")
def models(fitted, tmp_path_factory):
    root = tmp_path_factory.mktemp("catboost")
    for name, model in fitted.items():
        (root / name / "1").mkdir(parents=True)
        model.save_model(str(root / name / "1" / "model.cbm"))
    from conftest import starting

    with starting(tmp_path_factory) as start:
        yield start(root)


def given(name: str) -> Any:
    if name == "mixed":
        return ROWS
    return ROWS[["age", "rooms"]] if name == "several" else ROWS[["age", "rooms"]].to_numpy(np.float64)


def records(name: str) -> list[dict[str, Any]]:
    if name == "mixed":
        rows = ROWS.assign(rooms=ROWS["rooms"].astype(str)).to_dict("records")
    elif name == "several":
        rows = given(name).to_dict("records")
    else:
        return [{"features": [None if x != x else x for x in row]} for row in given(name).tolist()]
    return [{key: None if value != value else value for key, value in row.items()} for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_records_are_answered_as_the_library_answers(models, fitted, name):
    model = fitted[name]
    with models.client() as client:
        answer = client.post(f"/v1/models/{name}:predict", json={"records": records(name)})
        assert answer.status_code == 200, answer.text
        metadata = client.get(f"/v2/models/{name}").json()
    assert metadata["platform"] == "catboost_cbm"
    assert metadata["properties"]["batched"] == "true"
    predictions = answer.json()["predictions"]
    expected = model.predict(given(name))
    if name in ("value", "two", "poisson"):
        assert [each["value"] for each in predictions] == expected.tolist()
        return
    probabilities = model.predict_proba(given(name)).tolist()
    if name == "marks":
        assert [each["labels"] for each in predictions] == expected.tolist()
        assert [each["probabilities"] for each in predictions] == probabilities
        return
    assert [each["label"] for each in predictions] == expected.ravel().tolist()
    classes = [str(each) for each in model.classes_.tolist()]
    assert [each["probabilities"] for each in predictions] == [
        dict(zip(classes, row, strict=True)) for row in probabilities]


def test_binary_tensors_are_answered_bit_by_bit(models, fitted):
    rows = np.ascontiguousarray(RANDOM.normal(40, 10, (100, 2)))
    head = json.dumps({
        "inputs": [{"name": "features", "datatype": "FP64", "shape": [100, 2],
                    "parameters": {"binary_data_size": rows.nbytes}}],
        "outputs": [{"name": "value", "parameters": {"binary_data": True}}]}).encode()
    with models.client() as client:
        answer = client.post("/v2/models/value/infer", content=head + rows.tobytes(),
                             headers={"Inference-Header-Content-Length": str(len(head))})
        size = int(answer.headers["Inference-Header-Content-Length"])
        inputs = client.get("/v2/models/mixed").json()["inputs"]
    assert answer.content[size:] == fitted["value"].predict(rows).tobytes()
    assert [(each["name"], each["datatype"], each["shape"]) for each in inputs] == [
        ("age", "FP64", [-1, 1]), ("job", "BYTES", [-1, 1]), ("rooms", "BYTES", [-1, 1]), ("said", "BYTES", [-1, 1])]


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_file_that_is_cut_is_refused(fitted, tmp_path, part):
    path = tmp_path / "m.cbm"
    fitted["mixed"].save_model(str(path))
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(ModelLoadError, match=r"m\.cbm"):
        fastinfer.load(path)


def test_a_file_that_crashes_the_library_is_refused(fitted, tmp_path, monkeypatch):
    path = tmp_path / "m.cbm"
    fitted["value"].save_model(str(path))
    package = tmp_path / "crash" / "catboost"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import ctypes\nctypes.string_at(8)\n")
    monkeypatch.syspath_prepend(str(tmp_path / "crash"))  # the other process finds this one
    with pytest.raises(ModelLoadError, match=r"m\.cbm is damaged: loading it crashes its library \(SIGSEGV\)"):
        fastinfer.load(path)


def test_embeddings_are_refused(tmp_path):
    catboost = pytest.importorskip("catboost", reason="pip install 'fastinfer[catboost]'")
    pool = catboost.Pool(pd.DataFrame({"v": list(RANDOM.normal(size=(50, 3)))}), RANDOM.normal(size=50) > 0,
                         embedding_features=["v"])
    model = catboost.CatBoostClassifier(iterations=2, verbose=0, allow_writing_files=False).fit(pool)
    model.save_model(str(tmp_path / "m.cbm"))
    with pytest.raises(ModelLoadError, match="has embedding features, which are not served"):
        fastinfer.load(Path(tmp_path / "m.cbm"))
