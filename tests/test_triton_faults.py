"""What becomes of requests when the Triton that runs their model breaks in all ways that it can."""

from __future__ import annotations

import gc
import gzip
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx_models
import pytest
import triton_models
from conftest import ServerProcess, starting

import fastinfer
from fastinfer.errors import BackendError, BackendUnavailableError

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from faulty_proxy import BROKEN, FAULTS, BrokenWire, FaultyProxy
from real_triton import RealTriton

LIMIT = 0.4  # seconds that a request has
SLACK = 0.6  # seconds by which a loaded machine may be late


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTriton]:
    yield from triton_models.running(tmp_path_factory, "linear")


@pytest.fixture(scope="module")
def proxy(triton: RealTriton) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(triton.http)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def wire(triton: RealTriton) -> Iterator[BrokenWire]:
    wire = BrokenWire(triton.grpc)
    yield wire
    wire.close()


@pytest.fixture(scope="module")
def server(proxy: FaultyProxy, wire: BrokenWire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("repository")
    onnx_models.affine(root / "affine" / "1" / "model.onnx")
    for name, url in (("linear", f"http://127.0.0.1:{proxy.port}"), ("called", f"grpc://127.0.0.1:{wire.port}")):
        (root / name).mkdir()
        table = (f'[triton]\nurl = "{url}"\nmodel = "linear"\nprobe_interval = 0.1\nconnect_timeout = 0.3\n'
                 "shared_memory = false\n")  # what is done to answers is done to tensors in them
        (root / name / "model.toml").write_text(f'runtime = "triton"\n{table}')
    with starting(tmp_path_factory) as start:
        yield start(root, "--grpc-port", "0")


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def ask(client: httpx.Client, model: str = "linear", limit: float | None = LIMIT, value: float = 1) -> httpx.Response:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [value, 2, 3, 4]}
    parameters = {} if limit is None else {"timeout": int(limit * 1e6)}
    return client.post(f"/v2/models/{model}/infer", json={"parameters": parameters, "inputs": [tensor]})


def until_well(client: httpx.Client, model: str = "linear") -> None:
    """Until it answers again, and takes requests as before: what came late is held against those that follow."""
    deadline, well = time.monotonic() + 30, 0
    while well < 3:
        well = well + 1 if ask(client, model).status_code == 200 else 0
        assert time.monotonic() < deadline, "it did not recover"
        time.sleep(0 if well else 0.05)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_a_status_within_the_deadline_and_passes_with_its_cause(
    client: httpx.Client, proxy: FaultyProxy, fault: str
) -> None:
    until_well(client)
    proxy.set(fault)
    try:
        for i in range(5):
            started = time.monotonic()
            answer = ask(client)
            took = time.monotonic() - started
            assert answer.status_code in FAULTS[fault][1], answer.text
            assert i or answer.status_code in (FAULTS[fault][1] - {503} or {503}), answer.text
            assert took < LIMIT + SLACK
            if answer.status_code == 200:
                assert answer.json()["outputs"][0]["data"] == [3, 5, 7, 9]
            else:
                assert {"error", "code"} <= set(answer.json())
            assert ask(client, "affine").status_code == 200
    finally:
        proxy.set(None)
    until_well(client)


@pytest.mark.parametrize("fault", BROKEN)
def test_over_grpc(client: httpx.Client, wire: BrokenWire, fault: str) -> None:
    until_well(client, "called")
    wire.set(fault)
    try:
        for i in range(5):
            started = time.monotonic()
            answer = ask(client, "called")
            # The first may leave before its side has seen the kept connection end: then it broke off.
            assert answer.status_code in BROKEN[fault] | ({502} if i == 0 else set()), answer.text
            assert time.monotonic() - started < LIMIT + SLACK
            assert ask(client, "affine").status_code == 200
    finally:
        wire.set(None)
    until_well(client, "called")


def test_a_url_that_fails_again_and_again_is_left_alone(client: httpx.Client, proxy: FaultyProxy) -> None:
    until_well(client)
    proxy.set("connection closed")
    try:
        for _ in range(5):
            ask(client)
        proxy.calls = 0
        for _ in range(50):
            assert ask(client).status_code in (502, 503)
        assert proxy.calls < 25  # half open, readiness lets one through now and then
    finally:
        proxy.set(None)
    until_well(client)


def test_of_several_urls_those_that_answer_are_used(
    triton: RealTriton, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    proxies = [FaultyProxy(triton.http), FaultyProxy(triton.http)]
    (tmp_path / "linear").mkdir()
    urls = [f"127.0.0.1:{each.port}" for each in proxies]
    text = f'runtime = "triton"\n[triton]\nurl = {urls}\nprobe_interval = 0.1\n'
    (tmp_path / "linear" / "model.toml").write_text(text)
    try:
        with starting(tmp_path_factory) as start, start(tmp_path).client() as client:
            for _ in range(40):
                assert ask(client).status_code == 200
            assert all(each.calls > 20 for each in proxies)
            proxies[0].set("no connection")
            for _ in range(40):
                assert ask(client).status_code == 200
            assert client.get("/v2/models/linear/ready").status_code == 200
            proxies[1].set("no connection")
            deadline = time.monotonic() + 20
            while client.get("/v2/models/linear/ready").status_code == 200:
                assert time.monotonic() < deadline
            assert ask(client).status_code == 503
            proxies[0].set(None)
            until_well(client)
    finally:
        for each in proxies:
            each.close()


def test_a_batch_is_not_sent_again_when_it_may_have_run(client: httpx.Client, proxy: FaultyProxy) -> None:
    until_well(client)
    proxy.set("status 500")
    try:
        proxy.calls = 0
        assert ask(client).status_code == 502
        assert proxy.calls == 1
    finally:
        proxy.set(None)


def test_a_wait_that_triton_asks_for_is_asked_for(client: httpx.Client, proxy: FaultyProxy) -> None:
    until_well(client)
    proxy.set("status 503")
    try:
        assert 7 <= int(ask(client).headers["retry-after"]) <= 15
    finally:
        proxy.set(None)
    until_well(client)


def test_what_fails_again_and_again_does_not_fill_the_log(client: httpx.Client, server: ServerProcess,
                                                          proxy: FaultyProxy) -> None:
    until_well(client)
    proxy.set("status 500")
    before, began = server.log().count('"backend_failed"'), time.monotonic()
    try:
        for _ in range(60):
            assert ask(client).status_code == 502
        seconds = int(time.monotonic() - began) + 2  # that were begun
        assert 0 < server.log().count('"backend_failed"') - before <= 10 * seconds
    finally:
        proxy.set(None)


@pytest.mark.parametrize("fault", ["status 500", "more rows than asked", "answer cut short"])
def test_a_batch_that_failed_is_not_left_to_the_garbage_collector(proxy: FaultyProxy, tmp_path: Path,
                                                                  fault: str) -> None:
    """What it leaves would be looked through in the middle of other models' requests."""
    (tmp_path / "linear").mkdir()
    (tmp_path / "linear" / "model.toml").write_text(
        f'runtime = "triton"\n[triton]\nurl = "127.0.0.1:{proxy.port}"\nshared_memory = false\n')
    model = fastinfer.load(tmp_path / "linear")
    inputs = {"x": np.ones((1, 4), np.float32)}

    def fails() -> None:
        try:
            model.predict(inputs)
        except (BackendError, BackendUnavailableError):
            return
        raise AssertionError

    gc.disable()
    try:
        proxy.set(fault)
        fails()
        gc.collect()
        for _ in range(20):
            fails()
        assert gc.collect() < 200  # one batch left over 30
    finally:
        gc.enable()
        proxy.set(None)
        model.close()


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("given", "sent"), [(TRACE, True), (TRACE[:-1], False), (TRACE.upper(), False), (None, False)])
def test_the_trace_goes_on(client: httpx.Client, proxy: FaultyProxy, fast: bool, given: str | None, sent: bool) -> None:
    until_well(client)
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    body = json.dumps({"inputs": [tensor]}).encode()
    fields = {"traceparent": given} if given else {}
    if not fast:  # a compressed body is the standard lane's
        body, fields = gzip.compress(body), {**fields, "content-encoding": "gzip"}
    for _ in range(3):
        assert client.post("/v2/models/linear/infer", content=body, headers=fields).status_code == 200
        assert (f"\r\ntraceparent: {TRACE}\r\n".encode() in proxy.asked) is sent
        assert proxy.asked.count(b"traceparent") == sent


def test_the_trace_goes_on_from_grpc(client: httpx.Client, server: ServerProcess, proxy: FaultyProxy) -> None:
    grpc = pytest.importorskip("grpc", reason="pip install 'fastinfer[grpc]'")
    from tritonclient.grpc import service_pb2

    until_well(client)
    asked = service_pb2.ModelInferRequest(model_name="linear", raw_input_contents=[bytes(16)])
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for sent in (True, False):
            assert infer(asked.SerializeToString(), timeout=30, metadata=[("traceparent", TRACE)] if sent else None)
            assert (f"\r\ntraceparent: {TRACE}\r\n".encode() in proxy.asked) is sent


def test_a_connection_that_was_kept_and_is_closed_costs_nobody_an_answer(client: httpx.Client,
                                                                         proxy: FaultyProxy) -> None:
    until_well(client)
    for _ in range(20):
        proxy.drop()
        assert ask(client).status_code == 200


def test_a_restart_is_survived(client: httpx.Client, server: ServerProcess, triton: RealTriton) -> None:
    until_well(client)
    triton.stop()
    try:
        for _ in range(5):
            assert ask(client).status_code in (502, 503)
            assert ask(client, "affine").status_code == 200
    finally:
        triton.start("linear")
    until_well(client)
    until_well(client, "called")
    assert "Traceback" not in server.log()
