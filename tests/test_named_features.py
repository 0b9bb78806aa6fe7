"""Records under the names that a booster's own file has for its features, with no features.json."""

import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from conftest import ServerProcess, starting

import fastinfer
from fastinfer._core import Signature, Tensor
from fastinfer.errors import ConfigurationError, InvalidInputError, InvalidRecordError

RNG = np.random.default_rng(3)
NAMES = ["age", "jöb \"x\"", "größe", "rooms"]
ROWS = RNG.normal(size=(300, 4))
ROWS[:, 1] = RNG.integers(0, 5, 300)
ROWS[RNG.random(ROWS.shape) < 0.1] = np.nan
TARGET = np.nan_to_num(ROWS[:, 0]) + (ROWS[:, 1] == 2) + np.nan_to_num(ROWS[:, 2]) > 0.4
FRAME = pd.DataFrame(ROWS, columns=["age", "job", "größe", "rooms"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("named")
    for name in ("light", "extreme", "numbered"):
        (root / name / "1").mkdir(parents=True)
    few = {"objective": "binary", "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5, "min_data_per_group": 5}
    data = lightgbm.Dataset(FRAME, TARGET, categorical_feature=["job"])
    lightgbm.train(few, data, 5).save_model(root / "light" / "1" / "model.txt")
    lightgbm.train(few, lightgbm.Dataset(ROWS, TARGET), 5).save_model(root / "numbered" / "1" / "model.txt")
    matrix = xgboost.DMatrix(ROWS.astype("f4"), TARGET, feature_names=NAMES, feature_types=["q", "c", "q", "q"],
                             enable_categorical=True)
    xgboost.train({"objective": "binary:logistic", "nthread": 1}, matrix, 5).save_model(
        root / "extreme" / "1" / "model.ubj")
    return root


@pytest.fixture(scope="module", params=["--fast-lane", "--no-fast-lane"])
def server(folder: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with starting(tmp_path_factory) as start:
        yield start(folder, request.param)


def expected(folder: Path, name: str, rows: np.ndarray) -> list[float]:
    if name == "light":
        return lightgbm.Booster(model_file=folder / name / "1" / "model.txt").predict(rows).tolist()
    booster = xgboost.Booster(model_file=folder / name / "1" / "model.ubj")
    data = xgboost.DMatrix(rows.astype("f4"), feature_names=NAMES, feature_types=booster.feature_types,
                           enable_categorical=True)
    return booster.predict(data).tolist()


def names_of(name: str) -> list[str]:
    return list(FRAME.columns) if name == "light" else NAMES


@pytest.mark.parametrize("name", ["light", "extreme"])
def test_records_may_name_features(server: ServerProcess, folder: Path, name: str) -> None:
    """In any order; null and what is left out are missing; beside records that have the whole row."""
    names = names_of(name)
    rows = ROWS[:40].copy()
    rows[0, 1:] = np.nan  # one field alone
    rows[0, 0] = 0.25
    records: list[dict[str, Any]] = []
    for place, row in enumerate(rows.tolist()):
        members = [(key, None if value != value else value) for key, value in zip(names, row, strict=True)]
        RNG.shuffle(members)  # type: ignore[arg-type]
        kept = dict(members) if place % 3 else {key: value for key, value in members if value is not None}
        records.append(kept or dict(members))
        if place % 5 == 4:
            records[-1] = {"features": [None if value != value else value for value in row]}
    with server.client() as client:
        answer = client.post(f"/v1/models/{name}:predict", json={"records": records})
        assert answer.status_code == 200, answer.text
        got = [each["probabilities"]["1"] for each in answer.json()["predictions"]]
        assert np.array_equal(np.float32(got), np.float32(expected(folder, name, rows)))
        if name == "light":
            assert got == expected(folder, name, rows)
        metadata = client.get(f"/v2/models/{name}").json()
        assert [each["name"] for each in metadata["inputs"]] == ["features"]
        assert json.loads(metadata["properties"]["features"]) == names


@pytest.mark.parametrize(("records", "at", "words"), [
    ('[{"age": 1}, {}]', "$.records[1].features", "record 1 lacks the field 'features'"),
    ('[{"age": 1, "aeg": 2}]', "$.records[0]", "did you mean 'age'?; the model takes 'features', or 'age', 'job',"),
    ('[{"age": 1, "age": 2}]', None, "the name 'age' stands twice in one object"),
    ('[{"age": 1, "\\u0061ge": 2}]', None, "stands twice"),
    ('[{"age": "old"}]', "$.records[0].age", "field 'age': FP64 takes a number, got \"old\""),
    ('[{"job": 1}, {"job": "clerk"}]', "$.records[1].job", "field 'job': FP64 takes a number"),
    ('[{"age": 1e999}]', "$.records[0].age", "field 'age': 1e999 is out of range for FP64"),
    ('[{"age": [1]}]', "$.records[0].age", "got an array"),
    ('[{"age": NaN}]', None, ""),
    ('[{"age": 1, "features": [1, 2, 3, 4]}]', "$.records[0].features", "both 'features' and features by their names"),
    ('[{"features": [1, 2, 3, 4], "age": 1}]', "$.records[0].features", "both 'features' and features by their names"),
    ('[{"features": [1, 2, 3], "age": 1}]', "$.records[0].features", "must be an array of shape [4]"),
    ("[" + "{}," * 50 + "{}]", "$.records[0].features", "record 0 lacks the field 'features'"),
    ('[{"größe": true}]', "$.records[0].größe", "FP64 takes a number, got true"),
])  # fmt: skip
def test_what_is_wrong_with_a_record_is_named(
    server: ServerProcess, records: str, at: str | None, words: str
) -> None:
    with server.client() as client:
        answer = client.post("/v1/models/light:predict", content=f'{{"records": {records}}}'.encode())
        assert answer.status_code == 400
        assert words in answer.json()["error"]
        if words:
            assert answer.json().get("at") == at
        good = client.post("/v1/models/light:predict", json={"records": [{"age": 1}]})
        assert good.status_code == 200


def test_names_that_nobody_gave_are_none(server: ServerProcess) -> None:
    with server.client() as client:
        answer = client.post("/v1/models/numbered:predict", json={"records": [{"Column_0": 1}]})
        assert answer.status_code == 400
        assert "the model takes 'features'" in answer.json()["error"]
        assert "features" not in client.get("/v2/models/numbered").json()["properties"]


def test_pages_show_the_names(server: ServerProcess) -> None:
    with server.client() as client:
        schema = client.get("/openapi.json").json()["components"]["schemas"]["light-record"]
        assert list(schema["properties"]) == ["features", *FRAME.columns]
        assert "required" not in schema
        post = client.get("/openapi.json").json()["paths"]["/v1/models/light:predict"]["post"]
        example = post["requestBody"]["content"]["application/json"]["example"]
        assert client.post("/v1/models/light:predict", json=example).status_code == 200
        assert list(example["records"][0]) == list(FRAME.columns)
        assert "<code>größe</code>" in client.get("/").text


def test_in_process_columns_go_by_their_names(folder: Path) -> None:
    model = fastinfer.load(folder / "light")
    answer = model.predict({"features": ROWS})["probabilities"]
    mixed = FRAME[["rooms", "age", "größe", "job"]]
    records = [{key: value for key, value in row.items() if value == value} or {"age": None}
               for row in mixed.to_dict("records")]
    for given in (mixed, FRAME, records, {name: mixed[name].to_numpy() for name in mixed}, ROWS,
                  FRAME.set_axis(list("wxyz"), axis=1)):
        assert np.array_equal(model.predict(given)["probabilities"], answer)
    with pytest.raises(InvalidInputError, match="the feature 'job' is missing"):
        model.predict(FRAME.rename(columns={"job": "occupation"}))
    for bad in ([{"aeg": 1}], [{"age": 1}, {}]):
        with pytest.raises(InvalidRecordError, match=r"unknown field 'aeg'|record 1 has no field"):
            model.predict(bad)


def test_a_signature_checks_its_names() -> None:
    Signature([Tensor("x", "FP32", (-1, 2), True, False, ("a", "b"))], [])
    bad_ones = ("FP32", True, "a"), ("FP32", False, "ab"), ("INT64", True, "ab"), ("FP32", True, "aa")
    for datatype, nullable, names in bad_ones:
        bad = Tensor("x", datatype, (-1, 2), nullable, False, tuple(names))
        with pytest.raises(ConfigurationError):
            Signature([bad], [])


def test_no_request_sees_what_the_one_before_it_had(server: ServerProcess, folder: Path) -> None:
    bodies = [[{"age": 1.5}], [{"features": [1.5, None, None, None]}], [{"rooms": 2, "age": 1.5}], [{"age": 1.5}] * 3]
    with server.client() as client:
        for body in bodies * 2:
            answers = client.post("/v1/models/light:predict", json={"records": body}).json()["predictions"]
            rows = np.array([[1.5, np.nan, np.nan, each.get("rooms", np.nan)] for each in body], np.float64)
            assert [each["probabilities"]["1"] for each in answers] == expected(folder, "light", rows)
