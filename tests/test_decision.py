"""Decision policies: bands, classes and scores, against a plain twin, on every way into a model."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx_models
import pytest
from conftest import ServerProcess
from hypothesis import given
from hypothesis import strategies as st

from fastinfer import scoring
from fastinfer._core import Policy, Signature, Tensor
from fastinfer.errors import ConfigurationError, FastinferError, ModelLoadError, RuntimeFailedError
from fastinfer.lifecycle import load
from fastinfer.openapi import document
from fastinfer.policy import fingerprint
from fastinfer.settings import DecisionConfig, ModelConfig, ScoreConfig


def written(folder: Path, policy: str, *, own: str | None = None, **model: Any) -> Path:
    """A model's folder whose probabilities are what is sent, with this in model.toml."""
    onnx_models.judged(folder / "1" / "model.onnx", **model)
    (folder / "model.toml").write_text(policy)
    if own is not None:
        (folder / "1" / "decision.toml").write_text(own)
    return folder


BANDS = """
[decision]
positive = 1
thresholds = [0.1, 0.5]
labels = ["approve", "review", "decline"]
missing = "ask"
"""
SCORE = """
[decision.score]
scale = "log_odds"
factor = -28.85390081777927
offset = 600
decimals = 0
low = 300
high = 850
"""


# ---- what is decided ------------------------------------------------------------------------------------------------
def test_a_number_at_a_threshold_is_in_the_band_above_it(tmp_path: Path) -> None:
    model = load(written(tmp_path / "m", BANDS, datatype="FP64"))
    below = np.nextafter([0.1, 0.5], 0)
    rows = [[0, p] for p in (0.0, below[0], 0.1, below[1], 0.5, 1.0, -1.0, math.inf, -math.inf, math.nan)]
    answer = model.predict({"x": rows})
    assert answer["decision"].tolist() == [
        "approve", "approve", "review", "review", "decline", "decline", "approve", "decline", "approve", "ask",
    ]  # fmt: skip
    assert list(answer) == ["label", "probabilities", "decision"]
    assert answer["probabilities"].tolist()[:3] == rows[:3]


def test_the_models_float32_is_compared_as_a_float64(tmp_path: Path) -> None:
    """float32(0.1) is above 0.1, float32(0.7) below 0.7."""
    model = load(written(tmp_path / "m", BANDS.replace("0.5", "0.7")))
    rows = np.array([[0, 0.1], [0, 0.7], [0, np.nextafter(np.float32(0.7), np.float32(1))]], np.float32)
    assert model.predict({"x": rows})["decision"].tolist() == ["review", "review", "decline"]


def test_one_threshold_decides_between_the_two_classes(tmp_path: Path) -> None:
    policy = "[decision]\npositive = 0\nthresholds = [0.3]\nmissing = '0'\n"
    model = load(written(tmp_path / "m", policy + "[decision.names]\n0 = 'fraud'\n1 = 'fine'\n"))
    assert model.predict({"x": [[0.3, 0.7], [0.29, 0.71]]})["decision"].tolist() == ["fraud", "fine"]
    model = load(written(tmp_path / "n", policy))
    assert model.predict({"x": [[0.31, 0.7], [0.29, 0.71]]})["decision"].tolist() == ["0", "1"]


def test_classes_with_thresholds_come_first(tmp_path: Path) -> None:
    policy = "[decision]\nmissing = 'ask'\n[decision.classes]\n1 = 0.2\n2 = 0.3\n[decision.names]\n2 = 'abuse'\n"
    model = load(written(tmp_path / "m", policy, columns=4, datatype="FP64"))
    rows = {
        (0.8, 0.2, 0.0, 0.0): "1",          # reaches its threshold, however likely another is
        (0.4, 0.25, 0.35, 0.0): "abuse",    # of those that do, the likelier
        (0.3, 0.3, 0.3, 0.1): "1",          # equally likely: the first
        (0.6, 0.19, 0.2, 0.01): "0",        # none does: the likeliest of the others
        (0.35, 0.0, 0.29, 0.36): "3",
        (0.5, 0.5, math.nan, 0.0): "ask",
        (math.nan, 0.5, 0.5, 0.0): "ask",
    }  # fmt: skip
    assert model.predict({"x": [list(row) for row in rows]})["decision"].tolist() == list(rows.values())


def test_without_thresholds_the_likeliest_class_by_its_name(tmp_path: Path) -> None:
    policy = "[decision]\nmissing = 'ask'\n[decision.names]\n1 = 'b'\n"
    model = load(written(tmp_path / "m", policy, columns=3))
    answer = model.predict({"x": [[0.2, 0.5, 0.3], [0.5, 0.5, 0], [math.nan, 0, 0]]})
    assert answer["decision"].tolist() == ["b", "0", "ask"]


def test_otherwise_where_every_class_has_a_threshold(tmp_path: Path) -> None:
    policy = "[decision]\nmissing = 'ask'\notherwise = 'neither'\n[decision.classes]\n0 = 0.6\n1 = 0.6\n"
    model = load(written(tmp_path / "m", policy))
    assert model.predict({"x": [[0.6, 0.4], [0.5, 0.5], [0.0, 1.0]]})["decision"].tolist() == ["0", "neither", "1"]


def test_points_of_the_log_odds(tmp_path: Path) -> None:
    model = load(written(tmp_path / "m", BANDS + SCORE, datatype="FP64"))
    rows = [0.5, 0.02, 1 / 3, 0.0, 1.0, -0.5, 1.5, 1e-9, math.nan]
    score = model.predict({"x": [[0, p] for p in rows]})["score"]
    assert score.dtype == np.float64
    assert score.tolist()[:8] == [600, 712, 620, 850, 300, 850, 300, 850]
    assert math.isnan(score[8])


def test_points_on_a_line(tmp_path: Path) -> None:
    score = "[decision.score]\nname = 'points'\nfactor = -1000\noffset = 1000\ndecimals = 1\nlow = 10\n"
    model = load(written(tmp_path / "m", "[decision]\npositive = 1\n" + score, datatype="FP64"))
    answer = model.predict({"x": [[0, p] for p in (0.0, 0.12345, 0.00025, 0.00035, 1.0, 2.0, -math.inf, math.nan)]})
    assert list(answer) == ["label", "probabilities", "points"]
    np.testing.assert_array_equal(
        answer["points"], [1000.0, 876.6, 999.8, 999.6, 10.0, 10.0, math.inf, math.nan]
    )  # fmt: skip


def test_a_regressors_value_is_judged(tmp_path: Path) -> None:
    folder = tmp_path / "people"
    onnx_models.with_program(folder / "1")
    policy = "[decision]\nthresholds = [0.0, 10.0]\nlabels = ['low', 'mid', 'high']\nmissing = 'none'\n"
    for kind in ("", "[decision.score]\nfactor = 2\n"):
        (folder / "model.toml").write_text(policy + kind)
        answer = load(folder).predict([{"age": 30.0, "job": "clerk"}, {"age": 20.0, "job": "clerk"},
                                       {"age": 40.0, "job": "fixed"}])  # fmt: skip
        assert answer["decision"].tolist() == ["mid", "low", "high"]
        if kind:
            np.testing.assert_array_equal(answer["score"], 2 * answer["value"].ravel().astype(np.float64))


def test_an_output_by_name_and_a_column_by_number(tmp_path: Path) -> None:
    onnx_models.affine(tmp_path / "affine" / "1" / "model.onnx")
    policy = "[decision]\noutput = 'y'\npositive = 2\nthresholds = [0]\nlabels = ['down', 'up']\nmissing = 'none'\n"
    (tmp_path / "affine" / "model.toml").write_text(policy)
    model = load(tmp_path / "affine")
    answer = model.predict({"x": [[0, 0, 0, 0], [0, 0, 0, 1]]})
    assert answer["decision"].tolist() == ["up", "down"]


def test_a_model_that_is_not_batched(tmp_path: Path) -> None:
    model = load(written(tmp_path / "m", BANDS, rows=3))
    assert model.unbatched
    assert model.predict({"x": [[1, 0], [0, 1], [0.8, 0.2]]})["decision"].tolist() == ["approve", "decline", "review"]
    assert model.metadata(["1"])["outputs"][2] == {"name": "decision", "datatype": "BYTES", "shape": [3]}


NUMBERS = st.floats(width=32) | st.sampled_from([0.0, 0.1, 0.5, 1.0, math.nan, math.inf, -math.inf])


@st.composite
def policies(draw: st.DrawFn) -> tuple[int, dict[str, Any]]:
    columns = draw(st.integers(1, 4))
    column = draw(st.integers(0, columns - 1))
    options: dict[str, Any] = {"column": column}
    kind = draw(st.sampled_from(["bands", "classes", "score"]))
    turns = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75]) | st.floats(-2, 2)
    if kind == "bands":
        options["thresholds"] = sorted(set(draw(st.lists(turns, min_size=1, max_size=6))))
        count = len(options["thresholds"]) + 2
    elif kind == "classes":
        options["classes"] = draw(st.lists(turns | st.just(math.nan), min_size=columns, max_size=columns))
        count = columns + 2
    if kind != "score":
        options["decision"] = "decision"
        options["labels"] = [f"{draw(st.text(max_size=3))}{k}" for k in range(count)]
    if kind == "score" or draw(st.booleans()):
        low = draw(st.sampled_from([-math.inf, -10.0]))
        high = draw(st.sampled_from([math.inf, 300.0]))
        options["score"] = ("score", draw(st.booleans()), draw(st.floats(-100, 100).filter(bool)),
                            draw(st.floats(-1000, 1000)), draw(st.integers(-1, 4)), low, high)  # fmt: skip
    return columns, options


def label_of(numbers: list[float], options: dict[str, Any]) -> str:
    labels = options["labels"]
    if "thresholds" in options:
        number = numbers[options["column"]]
        reached = sum(number >= threshold for threshold in options["thresholds"])
        return labels[-1] if math.isnan(number) else labels[reached]
    if any(map(math.isnan, numbers)):
        return labels[-1]
    limited = [k for k, turn in enumerate(options["classes"]) if not math.isnan(turn)]
    reaching = [k for k in limited if numbers[k] >= options["classes"][k]]
    free = [k for k in range(len(numbers)) if k not in limited]
    chosen = reaching or free
    return labels[max(chosen, key=lambda k: (numbers[k], -k))] if chosen else labels[-2]


def points_of(number: float, score: tuple[Any, ...]) -> float:
    _, log_odds, factor, offset, decimals, low, high = score
    if math.isnan(number):
        return math.nan
    if log_odds:
        number = -math.inf if number <= 0 else math.inf if number >= 1 else math.log(number / (1 - number))
    points = offset + factor * number
    if decimals >= 0 and math.isfinite(points) and abs(points) * 10**decimals < 2**52:
        points = float(np.round(points, decimals))
    return min(max(points, low), high)


@given(policies(), st.lists(st.lists(NUMBERS, min_size=4, max_size=4), max_size=5), st.booleans())
def test_any_policy_decides_as_its_twin(
    policy: tuple[int, dict[str, Any]], rows: list[list[float]], single: bool
) -> None:
    columns, options = policy
    datatype, dtype = ("FP32", np.float32) if single else ("FP64", np.float64)
    inner = Signature([], [Tensor("p", datatype, (-1, columns))])
    made = Policy(inner, kept=["p"], source="p", **options)
    table = np.array(rows, dtype).reshape(len(rows), 4)[:, :columns].copy()
    answer = made.apply({"p": table})
    np.testing.assert_array_equal(answer["p"], table)
    numbers = table.astype(np.float64).tolist()
    if "labels" in options:
        assert answer["decision"].tolist() == [label_of(row, options) for row in numbers]
    if "score" in options:
        wanted = [points_of(row[options["column"]], options["score"]) for row in numbers]
        np.testing.assert_array_equal(answer["score"], np.array(wanted))
        assert not np.signbit(answer["score"][answer["score"] == 0]).any()


def test_an_output_of_another_width_fails_the_run() -> None:
    inner = Signature([], [Tensor("p", "FP32", (-1, -1))])
    by_class = Policy(inner, kept=[], source="p", decision="d", classes=[0.5, 0.5], labels=list("abcd"))
    by_column = Policy(inner, kept=[], source="p", column=2, decision="d", thresholds=[0.5], labels=list("abc"))
    for policy in (by_class, by_column):
        for width in (0, 1):
            with pytest.raises(RuntimeFailedError, match=f"'p' has {width} values a row"):
                policy.apply({"p": np.zeros((2, width), np.float32)})


# ---- where it is answered -------------------------------------------------------------------------------------------
def test_it_is_answered_alike_on_every_way(
    server: ServerProcess, standard_server: ServerProcess, repository: Path
) -> None:
    rows = [[0.5, 0.25, 0.25], [0.8, 0.2, 0.0], [0.3, 0.6, 0.1]]
    wanted = ["2", "approve", 'review "soon"']
    local = load(repository / "decided", version="1").predict({"x": rows})
    assert local["decision"].tolist() == wanted
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [3, 3], "data": rows}]}
    for each in (server, standard_server):
        with each.client() as client:
            answer = client.post("/v2/models/decided/versions/1/infer", json=body).json()
            assert answer["outputs"][2] == {"name": "decision", "datatype": "BYTES", "shape": [3], "data": wanted}
            records = [{"x": row} for row in rows]
            answer = client.post("/v1/models/decided/versions/1:predict", json={"records": records}).json()
            assert [list(each) for each in answer["predictions"]] == 3 * [["label", "probabilities", "decision"]]
            assert [each["decision"] for each in answer["predictions"]] == wanted


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_file_is_scored_as_a_request_is_answered(
    server: ServerProcess, repository: Path, tmp_path: Path, version: str
) -> None:
    rows = [{"x": [0.9, 0.1, 0.2][: 4 - int(version)]}, {"x": [0.0, 1.0, 0.26][: 4 - int(version)]}]
    (tmp_path / "in.ndjson").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scoring.score(repository / "decided" / version, tmp_path / "in.ndjson", tmp_path / "out.ndjson")
    scored = [json.loads(line) for line in (tmp_path / "out.ndjson").read_text().splitlines()]
    with server.client() as client:
        answer = client.post(f"/v1/models/decided/versions/{version}:predict", json={"records": rows}).json()
    assert scored == [{"row": row, **prediction} for row, prediction in enumerate(answer["predictions"])]
    scoring.score(repository / "decided" / version, tmp_path / "in.ndjson", tmp_path / "out.csv")
    head = (tmp_path / "out.csv").read_text().splitlines()[0]
    assert head.endswith(',"decision"' if version == "1" else ',"decision","score"')


def test_only_the_decision(server: ServerProcess, repository: Path) -> None:
    with server.client() as client:
        answer = client.post("/v1/models/decided:predict", json={"records": [{"x": [0.9, 0.1]}, {"x": [0, 1]}]}).json()
        assert answer["predictions"] == [
            {"decision": "review", "score": 663.0}, {"decision": "décline", "score": 300.0}
        ]  # fmt: skip
        metadata = client.get("/v2/models/decided").json()
        assert metadata["outputs"] == [
            {"name": "decision", "datatype": "BYTES", "shape": [-1]},
            {"name": "score", "datatype": "FP64", "shape": [-1]}
        ]  # fmt: skip
        inputs = [{"name": "x", "datatype": "FP64", "shape": [1, 2], "data": [0, 1]}]
        refused = client.post("/v2/models/decided/infer", json={"inputs": inputs, "outputs": [{"name": "label"}]})
        assert refused.status_code == 400
    model = load(repository / "decided")
    assert list(model.predict({"x": [[0.9, 0.1]]})) == ["decision", "score"]


def test_a_client_selects_it_and_reads_it_in_binary(server: ServerProcess) -> None:
    inputs = [{"name": "x", "datatype": "FP64", "shape": [2, 2], "data": [0.9, 0.1, 0, 1]}]
    outputs = [{"name": "score", "parameters": {"binary_data": True}},
               {"name": "decision", "parameters": {"binary_data": True}}]
    body = {"inputs": inputs, "outputs": outputs}
    answer = httpx.post(f"{server.url}/v2/models/decided/infer", json=body, trust_env=False)
    header = int(answer.headers["inference-header-content-length"])
    words = [struct.pack("<I", len(word)) + word for word in (b"review", "décline".encode())]
    assert answer.content[header:] == struct.pack("<2d", 663, 300) + b"".join(words)


def test_the_metadata_tells_which_policy(server: ServerProcess) -> None:
    with server.client() as client:
        first = client.get("/v2/models/decided/versions/1").json()["properties"]
        second = client.get("/v2/models/decided/versions/2").json()["properties"]
        config = client.get("/v2/models/decided/versions/1/config").json()
    assert (first["decision_version"], first["decision_outputs"]) == ("7", "decision")
    assert "decision_version" not in second
    assert second["decision_outputs"] == "decision,score"
    assert len(first["decision_sha256"]) == 64
    assert first["decision_sha256"] != second["decision_sha256"]
    assert config["output"][2] == {"name": "decision", "data_type": "TYPE_STRING", "dims": []}


def test_the_document_describes_it(repository: Path) -> None:
    models = [load(repository / "decided", version=version) for version in ("2", "1")]
    schemas = document(models, "", "3.1.0")["components"]["schemas"]
    assert schemas["decided-prediction"]["properties"] == {"decision": {"type": "string"}, "score": {"type": "number"}}
    assert schemas["decided-1-prediction"]["properties"]["decision"] == {"type": "string"}


def test_the_fingerprint_is_of_what_decides() -> None:
    policy = DecisionConfig(thresholds=(0.5,), missing="ask", positive="1")
    same = DecisionConfig(thresholds=[0.5], missing="ask", positive=1, source="elsewhere")  # type: ignore[arg-type]
    assert fingerprint(policy) == fingerprint(same)
    others = [DecisionConfig(thresholds=(0.5,), missing="a", positive="1"),
              DecisionConfig(thresholds=(0.5,), missing="ask", positive="1", score=ScoreConfig())]  # fmt: skip
    assert len({fingerprint(each) for each in (policy, *others)}) == 3


# ---- what is refused ------------------------------------------------------------------------------------------------
def test_a_versions_own_policy_takes_the_place_of_the_models(tmp_path: Path) -> None:
    own = "[decision]\npositive = 1\nthresholds = [0.9]\nlabels = ['no', 'yes']\nmissing = 'no'\n"
    folder = written(tmp_path / "m", BANDS, own=own, datatype="FP64")
    for path in (folder, folder / "1", folder / "1" / "model.onnx"):
        assert load(path).predict({"x": [[0, 0.9]]})["decision"].tolist() == ["yes"]
    (folder / "1" / "decision.toml").write_text("thresholds = [0.9]\n")
    with pytest.raises(ConfigurationError, match=r"decision\.toml:1: thresholds is not a known key.*decision"):
        load(folder)
    (folder / "1" / "decision.toml").write_text("")
    with pytest.raises(ConfigurationError, match=r"decision\.toml has no table \[decision\]"):
        load(folder)


ENOUGH = "[decision]\npositive = 1\nthresholds = [0.5]\nmissing = 'ask'\n"


@pytest.mark.parametrize(("policy", "message"), [
    ("[decision]\nthreshold = [0.5]\n", r":2: decision\.threshold is not a known key\. Did you mean 'thresholds'\?"),
    ("decision = 1", "takes a table"),
    ("[decision]\n", r":1: decision decides nothing"),
    ("[decision]\nthresholds = [0.5]\n", r"decision\.missing is not given: .*NaN"),
    ("[decision]\nthresholds = [0.5, 0.4]\nmissing = 'a'\n", r":2: decision\.thresholds is .* each larger than"),
    ("[decision]\nthresholds = [nan]\nmissing = 'a'\n", r":2: decision\.thresholds is "),
    ("[decision]\nthresholds = [true]\nmissing = 'a'\n", r":2: decision\.thresholds is "),
    ("[decision]\nthresholds = []\nmissing = 'a'\n", r":2: decision\.thresholds is "),
    ("[decision]\nthresholds = 0.5\nmissing = 'a'\n", r":2: decision\.thresholds is "),
    (ENOUGH + "labels = ['a', 'b', 'c']\n", r":5: decision\.labels are 3, and 1 threshold make 2 bands"),
    (ENOUGH + "[decision.classes]\n0 = 0.5\n", r":3: decision\.thresholds are for one number"),
    (ENOUGH + "otherwise = 'a'\n", r":5: decision\.otherwise is for \[decision\.classes\]"),
    (ENOUGH + "labels = ['a', 'b']\n[decision.names]\n0 = 'a'\n", r"decision\.names are names of classes"),
    (ENOUGH + "[decision.score]\nname = 'decision'\n", r":2|decision\.name and decision\.score\.name are both"),
    (ENOUGH + "[decision.score]\nscale = 'log_odd'\n", r":6: decision\.score\.scale is .*Did you mean 'log_odds'"),
    (ENOUGH + "[decision.score]\nscale = 'log_odds'\n", r":6: decision\.score\.scale is log_odds, which needs low"),
    (ENOUGH + "[decision.score]\nfactor = 0\n", r":6: decision\.score\.factor is 0"),
    (ENOUGH + "[decision.score]\nlow = 5\nhigh = 5\n", r":6: decision\.score\.low is 5 and high is 5"),
    (ENOUGH + "[decision.score]\ndecimals = 16\n", r":6: decision\.score\.decimals is 16; it takes a whole number"),
    ("[decision]\nmissing = 'a'\n[decision.score]\n", r"decision\.missing is given, and nothing is decided"),
    # what only the model can tell
    ("[decision]\nthresholds = [0.5]\nmissing = 'a'\n", r"decision\.positive is not given: .*They are '0', '1'"),
    (ENOUGH.replace("1", "2"), r"model\.toml:1: decision\.positive is '2', and the classes are '0', '1'"),
    (ENOUGH.replace("0.5", "50"), r"decision\.thresholds hold 50, and a probability lies between 0 and 1"),
    ("[decision]\nmissing = 'a'\n[decision.classes]\n1 = 1.5\n", r"decision\.classes\.1 is 1\.5, and a probability"),
    ("[decision]\nmissing = 'a'\n[decision.classes]\nfraud = 0.5\n", r"decision\.classes\.fraud names no class"),
    ("[decision]\nmissing = 'a'\n[decision.classes]\n1 = 'x'\n", r":4: decision\.classes\.1 is 'x'; it takes a number"),
    ("[decision]\nmissing = 'a'\n[decision.classes]\n0 = 0.5\n1 = 0.5\n", r"decision\.otherwise is not given"),
    ("[decision]\nmissing = 'a'\notherwise = 'b'\n[decision.classes]\n0 = 0.5\n", r"otherwise is never decided: class"),
    ("[decision]\nmissing = 'a'\npositive = 1\n[decision.names]\n0 = 'b'\n", r"decision\.positive is for thresholds"),
    (ENOUGH + "output = 'probabilitys'\n", r"decision\.output is 'probabilitys'.*Did you mean 'probabilities'\?"),
    (ENOUGH + "output = 'label'\n", r"decision\.output is 'label', INT64 of shape \[-1\]"),
    (ENOUGH.replace("[0.5]", "[0.2, 0.5]"), r"decision\.labels are not given: 3 bands need names"),
    (ENOUGH + "name = 'label'\n", r"decision\.name is 'label', and the model has an output of that name"),
    (ENOUGH + "[decision.score]\nname = 'label'\n", r"decision\.score\.name is 'label'"),
])
def test_a_policy_at_fault_is_refused_by_its_key(policy: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigurationError, ModelLoadError), match=message) as refusal:
        load(written(tmp_path / "m", policy))
    assert str(tmp_path) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_policy_of_python_is_checked_too() -> None:
    with pytest.raises(FastinferError, match=r"decision\.labels are 1"):
        ModelConfig(decision=DecisionConfig(thresholds=(0.5,), labels=("a",), missing="b"))
