"""Models on a real Triton: what is read of them at load, what is answered, what is passed on."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx_models
import pytest
import triton_models
from conftest import Start

import fastinfer
from fastinfer._core import DATATYPES, DTYPES
from fastinfer.errors import BackendRefusedError, ConfigurationError, FastinferError, ModelLoadError

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from real_triton import RealTriton

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTriton]:
    yield from triton_models.running(tmp_path_factory)


def add(root: Path, name: str, triton: RealTriton, keys: str = "", table: str = "", protocol: str = "http") -> Path:
    """A model of ``root`` that Triton runs."""
    port = {"http": triton.http, "grpc": triton.grpc}[protocol]
    (root / name).mkdir(parents=True, exist_ok=True)
    text = f'runtime = "triton"\n{keys}\n[triton]\nurl = "{protocol}://127.0.0.1:{port}"\n{table}\n'
    (root / name / "model.toml").write_text(text)
    return root / name


def tensor(name: str, array: Any, datatype: str = "FP32") -> dict[str, Any]:
    array = np.asarray(array)
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist()}


@pytest.fixture(scope="module", params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def client(triton: RealTriton, protocol: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with several models of one Triton."""
    from conftest import starting

    root = tmp_path_factory.mktemp("repository")
    for name in ("linear", "told", "alone", "wide", "types"):
        add(root, name, triton, protocol=protocol)
    add(root, "first", triton, table='model = "linear"\nversion = 1', protocol=protocol)
    with starting(tmp_path_factory) as start, start(root).client() as client:
        yield client


def test_a_model_answers_and_is_described_as_triton_has_it(client: httpx.Client) -> None:
    answer = client.post("/v2/models/linear/infer", json={"id": "7", "inputs": [tensor("x", X)]})
    assert answer.json() == {"model_name": "linear", "model_version": "3", "id": "7",
                             "outputs": [tensor("y", 2 * X + 1)]}
    told = client.get("/v2/models/linear").json()
    assert told["versions"] == ["3"]
    assert told["platform"] == "python"
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert told["properties"]["batched"] == "true"
    assert client.get("/v2/models/linear/config").json()["max_batch_size"] == 16
    assert client.get("/v2/models/first").json()["versions"] == ["1"]
    assert client.post("/v2/models/first/versions/1/infer", json={"inputs": [tensor("x", X)]}).status_code == 200
    record = {"records": [{"x": [1, 2, 3, 4]}]}
    assert client.post("/v1/models/linear:predict", json=record).json()["predictions"] == [{"y": [3, 5, 7, 9]}]


def test_every_datatype_comes_back_as_it_went(client: httpx.Client) -> None:
    inputs, values = [], {"BOOL": [True, False], "BYTES": ["a", "\u00e9\u4e2d"]}
    kinds = ["BYTES" if each == "STRING" else each for each in triton_models.TYPES if each != "FP16"]
    for kind in kinds:
        given: Any = values.get(kind)
        if given is None:
            dtype = np.dtype(DTYPES[DATATYPES.index(kind)])
            given = [0.1, -1e30] if dtype.kind == "f" else [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
        name = "in_" + ("string" if kind == "BYTES" else kind.lower())
        inputs.append({"name": name, "datatype": kind, "shape": [1, 2], "data": given})
    half = np.array([1.5, -2], np.float16).tobytes()
    inputs.append({"name": "in_fp16", "datatype": "FP16", "shape": [1, 2], "parameters": {"binary_data_size": 4}})
    outputs = [{"name": each["name"].replace("in_", "out_")} for each in inputs]
    outputs[-1]["parameters"] = {"binary_data": True}
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    answer = client.post("/v2/models/types/infer", content=head + half,
                         headers={"Inference-Header-Content-Length": str(len(head))})
    assert answer.status_code == 200, answer.text
    size = int(answer.headers["Inference-Header-Content-Length"])
    got = {each["name"]: each for each in json.loads(answer.content[:size])["outputs"]}
    assert answer.content[size:] == half
    for each in inputs[:-1]:
        found = got[each["name"].replace("in_", "out_")]
        assert found["datatype"] == each["datatype"]
        dtype = np.float32 if each["datatype"] == "FP32" else None
        assert np.array(found["data"], dtype).tolist() == np.array(each["data"], dtype).tolist(), each["name"]


def test_a_model_that_triton_does_not_batch_runs_requests_as_they_are(client: httpx.Client) -> None:
    told = client.get("/v2/models/alone").json()
    assert told["inputs"][0]["shape"] == [-1, 2]
    assert told["properties"]["batched"] == "false"
    body = {"inputs": [tensor("in", [[1, 2], [3, 4], [5, 6]])]}
    assert client.post("/v2/models/alone/infer", json=body).json()["outputs"] == [
        tensor("out", np.array([[1, 2], [3, 4], [5, 6]], np.float32))]


@pytest.mark.parametrize("width", [1, 5])
def test_inner_dimensions_may_vary(client: httpx.Client, width: int) -> None:
    x = np.arange(2 * width, dtype=np.float32).reshape(2, width)
    answer = client.post("/v2/models/wide/infer", json={"inputs": [tensor("in", x)]})
    assert answer.json()["outputs"] == [tensor("out", x)]


def test_more_rows_than_triton_takes_are_several_batches(client: httpx.Client) -> None:
    x = np.arange(200, dtype=np.float32).reshape(50, 4)
    assert client.post("/v2/models/linear/infer", json={"inputs": [tensor("x", x)]}).json()["outputs"] == [
        tensor("y", 2 * x + 1)]
    stats = client.get("/v2/models/linear/stats").json()["model_stats"][0]["batch_stats"]
    sizes = {each["batch_size"] for each in stats}
    assert max(sizes) == 16


def test_id_priority_and_the_time_that_is_left_go_with_a_batch(client: httpx.Client) -> None:
    body = {"id": "order-7", "parameters": {"timeout": 5_000_000}, "inputs": [tensor("x", X[:1])]}
    told = {each["name"]: each["data"][0] for each in client.post("/v2/models/told/infer", json=body).json()["outputs"]}
    assert told["id"] == "order-7"
    assert 1_000_000 < told["timeout"] < 5_000_000


def test_a_request_is_answered_at_its_deadline(client: httpx.Client) -> None:
    body = {"parameters": {"timeout": 300_000}, "inputs": [tensor("x", [[999, 0, 0, 0]])]}
    started = time.monotonic()
    answer = client.post("/v2/models/linear/infer", json=body)
    assert (answer.status_code, answer.json()["code"]) == (504, "backend_timeout")
    assert 0.29 < time.monotonic() - started < 0.9  # where Triton takes 0.99
    assert client.post("/v2/models/linear/infer", json={"inputs": [tensor("x", X)]}).status_code == 200


@pytest.mark.parametrize(("value", "status", "code"), [(400, 400, "backend_refused"), (500, 502, "backend_failed")])
def test_what_triton_says_of_a_request_stays_what_it_says(client: httpx.Client, value: int, status: int,
                                                           code: str) -> None:
    answer = client.post("/v2/models/linear/infer", json={"inputs": [tensor("x", [[value, 0, 0, 0]])]})
    assert answer.status_code == status
    assert answer.json()["code"] == code
    assert f"the first value is {value}" in answer.json()["error"]
    assert client.post("/v2/models/linear/infer", json={"inputs": [tensor("x", X)]}).status_code == 200


def test_in_process(triton: RealTriton, protocol: str, tmp_path: Path) -> None:
    model = fastinfer.load(add(tmp_path, "linear", triton, protocol=protocol))
    try:
        assert model.version == "3"
        x = np.arange(200, dtype=np.float32).reshape(50, 4)
        assert model.predict({"x": x})["y"].tolist() == (2 * x + 1).tolist()
        assert model.predict({"x": x[:0]})["y"].shape == (0, 4)
        with pytest.raises(BackendRefusedError, match="the first value is 400"):
            model.predict({"x": [[400, 0, 0, 0]]})
    finally:
        model.close()


@pytest.mark.parametrize(("name", "reason"), [("sequence", "sequence_batching"), ("decoupled", "decoupled")])
def test_models_of_other_kinds_are_refused(triton: RealTriton, protocol: str, tmp_path: Path, name: str,
                                           reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason) as caught:
        fastinfer.load(add(tmp_path, name, triton, protocol=protocol))
    assert str(tmp_path / name / "model.toml") in str(caught.value)


def test_both_sides_waiting_is_a_warning(triton: RealTriton, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fastinfer.load(add(tmp_path, "delayed", triton)).close()
    assert "both sides wait" not in caplog.text
    fastinfer.load(add(tmp_path, "delayed", triton, "max_delay_us = 2000")).close()
    assert "both sides wait for company, 2000 µs here" in caplog.text


def wait_for(condition: Callable[[], object], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def test_a_model_comes_up_when_triton_does_and_again_after_a_restart(
    triton: RealTriton, protocol: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, start_server: Start
) -> None:
    late = RealTriton(tmp_path_factory.mktemp("late"), triton.models)
    onnx_models.affine(tmp_path / "affine" / "1" / "model.onnx")
    add(tmp_path, "linear", late, table="probe_interval = 0.1", protocol=protocol)
    server = start_server(tmp_path)
    body = {"inputs": [tensor("x", X)]}
    with server.client() as client:
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/models/linear/ready").status_code == 503
        assert client.post("/v2/models/linear/infer", json=body).status_code == 503
        assert client.post("/v2/models/affine/infer", json=body).status_code == 200
        state = next(each for each in client.post("/v2/repository/index").json() if each["name"] == "linear")
        assert state["state"] == "UNAVAILABLE"
        assert "cannot be reached" in state["reason"]
        try:
            late.start("linear")
            wait_for(lambda: client.get("/v2/health/ready").status_code == 200)
            assert client.post("/v2/models/linear/infer", json=body).json()["model_version"] == "3"
            late.stop()
            wait_for(lambda: client.get("/v2/models/linear/ready").status_code == 503)
            answer = client.post("/v2/models/linear/infer", json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            late.start("linear")
            wait_for(lambda: client.post("/v2/models/linear/infer", json=body).status_code == 200)
            assert client.get("/v2/models/linear/ready").status_code == 200
        finally:
            late.stop()


def test_another_model_of_the_name_is_found(tmp_path: Path, start_server: Start,
                                            tmp_path_factory: pytest.TempPathFactory) -> None:
    """After a restart of Triton and without one; the fast lane's clients are told 503 at worst meanwhile."""
    folder = tmp_path_factory.mktemp("other")
    x, y = (triton_models.tensor(name, "FP32", "4") for name in "xy")
    triton_models.write(folder / "models", "linear", triton_models.config("linear", x, y), triton_models.LINEAR)
    triton = RealTriton(folder, folder / "models")

    def become(width: int, versions: tuple[int, ...]) -> None:
        x, y = (triton_models.tensor(name, "FP32", str(width)) for name in "xy")
        shutil.rmtree(folder / "models" / "linear")
        triton_models.write(folder / "models", "linear", triton_models.config("linear", x, y), triton_models.LINEAR,
                            versions)

    def answer(width: int) -> httpx.Response:
        return client.post("/v2/models/linear/infer", json={"inputs": [tensor("x", np.ones((2, width), np.float32))]})

    def is_served(width: int, version: str) -> bool:
        told = answer(width)
        assert told.status_code in (200, 400, 404, 502, 503), told.text
        return told.status_code == 200 and told.json() == {
            "model_name": "linear", "model_version": version,
            "outputs": [tensor("y", np.full((2, width), 3, np.float32))]}

    try:
        triton.start("linear")
        server = start_server(add(tmp_path, "linear", triton, table="probe_interval = 0.1"))
        with server.client() as client:
            assert is_served(4, "1")
            triton.stop()
            become(5, (1,))
            triton.start("linear")
            wait_for(lambda: is_served(5, "1"))
            become(6, (1,))
            httpx.post(f"http://127.0.0.1:{triton.http}/v2/repository/models/linear/load", json={}).raise_for_status()
            wait_for(lambda: is_served(6, "1"))
            become(6, (1, 2))
            httpx.post(f"http://127.0.0.1:{triton.http}/v2/repository/models/linear/load", json={}).raise_for_status()
            wait_for(lambda: is_served(6, "2"))
            httpx.post(f"http://127.0.0.1:{triton.http}/v2/repository/models/linear/unload", json={}).raise_for_status()
            wait_for(lambda: answer(6).status_code == 503)
            httpx.post(f"http://127.0.0.1:{triton.http}/v2/repository/models/linear/load", json={}).raise_for_status()
            wait_for(lambda: is_served(6, "2"))
            assert "Traceback" not in server.log()
    finally:
        triton.stop()


def test_a_version_that_is_not_there(triton: RealTriton, protocol: str, tmp_path: Path) -> None:
    with pytest.raises(FastinferError, match="2") as caught:
        fastinfer.load(add(tmp_path, "linear", triton, table="version = 2", protocol=protocol))
    assert caught.value.status == 503


def test_folders_of_versions_are_triton_s_versions(triton: RealTriton, tmp_path: Path) -> None:
    add(tmp_path, "linear", triton)
    for version in ("1", "3"):
        (tmp_path / "linear" / version).mkdir()
    assert fastinfer.load(tmp_path / "linear", version="1").version == "1"
    assert fastinfer.load(tmp_path / "linear").version == "3"


def test_several_workers_are_refused(triton: RealTriton, tmp_path: Path, start_server: Start) -> None:
    server = start_server(add(tmp_path, "linear", triton), "--workers", "2", wait=False)
    assert server.wait(60) != 0
    assert "served by one worker" in server.log()


# ---- model.toml ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("text", "message"), [
    ('runtime = "triton"\n', "go together"),
    ('[triton]\nurl = "127.0.0.1:1"\n', "go together"),
    ('runtime = "triton"\n[triton]\n', "triton.url is not given"),
    ('runtime = "triton"\n[triton]\nurl = "127.0.0.1"\n', "it takes host:port"),
    ('runtime = "triton"\n[triton]\nurl = ["127.0.0.1:1", "127.0.0.1:99999"]\n', "it takes host:port"),
    ('runtime = "triton"\n[triton]\nurl = ["http://a:1", "grpc://b:2"]\n', "several kinds"),
    ('runtime = "triton"\n[triton]\nurl = "http://a:1"\nprotocol = "grpc"\n', "the url says otherwise"),
    ('runtime = "triton"\n[triton]\nurl = "a:1"\nprotocl = "grpc"\n', "Did you mean 'protocol'"),
    ('runtime = "triton"\n[triton]\nurl = "a:1"\nca_file = "ca.pem"\n', "the url is neither"),
    ('runtime = "triton"\n[triton]\nurl = "https://a:1"\ncert_file = "c.pem"\n', "go together"),
    ('runtime = "triton"\n[triton]\nurl = "a:1"\n[triton.headers]\nHost = "b"\n', "not a header that can be set"),
    ('runtime = "triton"\n[triton]\nurl = "a:1"\n[triton.headers]\nX = "b\\n"\n', "ASCII"),
])
def test_a_table_at_fault_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        fastinfer.load(tmp_path / "m")
    assert "model.toml:" in str(caught.value)
