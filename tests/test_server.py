"""The process: addresses, start-up, readiness, drain, logs, time-outs."""

from __future__ import annotations

import json
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import onnx_models
import pytest
from conftest import ServerProcess, Start, post, read_answer

GOOD = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()
INFER = "/v2/models/affine/infer"


@pytest.fixture(scope="module")
def affine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.affine(tmp_path_factory.mktemp("affine") / "affine.onnx")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.slow(tmp_path_factory.mktemp("slow") / "slow.onnx")


def slow_request(steps: int) -> bytes:
    tensor = {"name": "steps", "shape": [1], "datatype": "INT64", "data": [steps]}
    return post("/v2/models/slow/infer", json.dumps({"inputs": [tensor]}).encode())


def gauge(server: ServerProcess, name: str) -> int:
    with server.client() as client:
        text = client.get("/metrics").text
    return int(float(text.split(f"\n{name} ")[1].split("\n")[0]))


def in_flight(server: ServerProcess) -> int:
    return gauge(server, "fastinfer_requests_in_flight")


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


# ---- addresses ----------------------------------------------------------------------------------------------------
def test_a_port_in_use_is_one_line_and_exit_2(affine: Path, server: ServerProcess, start_server: Start) -> None:
    late = start_server(affine, "--port", str(server.port), wait=False)
    assert late.wait() == 2
    (line,) = late.log().splitlines()
    assert f"port {server.port} on 127.0.0.1 is in use" in line
    assert "--port" in line


@pytest.mark.parametrize("options", [("--host", "203.0.113.7"), ("--host", "no-such-host.invalid")])
def test_an_address_that_is_not_ours(affine: Path, start_server: Start, options: tuple[str, str]) -> None:
    server = start_server(affine, *options, wait=False)
    assert server.wait() == 2
    (line,) = server.log().splitlines()
    assert options[1] in line


def over_socket(path: Path) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost", trust_env=False)


def test_a_unix_socket(affine: Path, start_server: Start, tmp_path: Path) -> None:
    path = tmp_path / "fastinfer.sock"
    server = start_server(affine, "--uds", str(path))
    assert path.stat().st_mode & 0o777 == 0o666
    with over_socket(path) as client:
        assert client.post(INFER, content=GOOD).status_code == 200
    command = next(line.strip() for line in server.out if line.startswith("  curl "))
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
    assert json.loads(done.stdout)["model_name"] == "affine"

    second = start_server(affine, "--uds", str(path), wait=False)
    assert second.wait() == 2
    assert "in use" in second.log()

    assert server.stop() == 0
    assert not path.exists()


def test_the_socket_file_of_a_killed_server_is_taken_over(affine: Path, start_server: Start, tmp_path: Path) -> None:
    path = tmp_path / "fastinfer.sock"
    killed = start_server(affine, "--uds", str(path))
    killed.signal(signal.SIGKILL)
    killed.wait()
    assert path.exists()
    start_server(affine, "--uds", str(path))
    with over_socket(path) as client:
        assert client.get("/v2/health/ready").status_code == 200


def test_a_file_that_is_no_socket_is_left_alone(affine: Path, start_server: Start, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    server = start_server(affine, "--uds", str(path), wait=False)
    assert server.wait() == 2
    assert path.read_text() == "data"


# ---- load and readiness -------------------------------------------------------------------------------------------
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_while_it_loads_it_listens_and_says_so(repository: Path, start_server: Start) -> None:
    server = start_server(repository, "--port", str(free_port()), wait=False)
    server.port = int(server.process.args[-1])  # type: ignore[index]
    wait_for(lambda: reachable(server), 60)
    with server.client() as client:
        ready = client.get("/v2/health/ready")
        asked = client.post(INFER, content=GOOD)
        assert (ready.status_code, ready.json()) == (503, {"ready": False, "live": True})
        assert (asked.status_code, asked.json()["code"]) == (503, "not_ready")
        assert client.get("/v2/health/live").status_code == 200
        wait_for(lambda: client.get("/v2/health/ready").status_code == 200, 60)
        assert client.post(INFER, content=GOOD).status_code == 200


def reachable(server: ServerProcess) -> bool:
    try:
        server.connect().close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_signal_while_it_loads_ends_it_clean(repository: Path, start_server: Start) -> None:
    server = start_server(repository, "--port", str(free_port()), wait=False)
    server.port = int(server.process.args[-1])  # type: ignore[index]
    wait_for(lambda: reachable(server), 60)
    with server.client() as client:
        assert client.get("/v2/health/live").status_code == 200
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0


@pytest.fixture(scope="module")
def half_broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("half")
    onnx_models.affine(root / "affine" / "1" / "model.onnx")
    broken = root / "broken" / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a model")
    return root


def test_one_broken_model_does_not_keep_the_rest_from_being_served(half_broken: Path, start_server: Start) -> None:
    server = start_server(half_broken)
    with server.client() as client:
        assert client.post(INFER, content=GOOD).status_code == 200
        ready = client.get("/v2/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"ready": False, "live": True})
        assert int(ready.headers["retry-after"]) >= 1
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/models/affine/ready").status_code == 200
        broken = client.get("/v2/models/broken/ready")
        assert (broken.status_code, broken.json()) == (503, {"name": "broken", "ready": False})
        asked = client.post("/v2/models/broken/infer", content=GOOD)
        assert (asked.status_code, asked.json()["code"]) == (503, "not_ready")
        assert int(asked.headers["retry-after"]) >= 1
        entries = {entry["name"]: entry for entry in client.post("/v2/repository/index").json()}
        assert entries["broken"]["state"] == "UNAVAILABLE"
        assert "model.onnx" in entries["broken"]["reason"]
        assert "broken" in client.get("/").text
    assert any("broken" in record["message"] and "model.onnx" in record["message"] for record in server.records())
    assert any("broken version 1 is not served" in line for line in server.out)


def test_without_strict_readiness_one_good_model_is_enough(half_broken: Path, start_server: Start) -> None:
    with start_server(half_broken, "--no-strict-readiness").client() as client:
        assert client.get("/v2/health/ready").status_code == 200


def test_nothing_left_to_serve_ends_the_process(start_server: Start, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    server = start_server(path, wait=False)
    assert server.wait() == 2
    assert "broken.onnx" in server.log()
    assert "Traceback" not in server.log()


# ---- signals ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once_and_clean(affine: Path, start_server: Start, number: int) -> None:
    server = start_server(affine)
    with server.connect() as idle:
        idle.sendall(post(INFER, GOOD))
        assert read_answer(idle).status == 200
        server.signal(number)
        assert server.wait(5) == 0
        assert idle.recv(1) == b""
    assert "Traceback" not in server.log()


def test_admitted_requests_are_finished_and_the_connection_is_said_to_close(slow: Path, start_server: Start) -> None:
    server = start_server(slow, "--inline-budget-us", "0")
    with server.connect() as connection:
        connection.sendall(slow_request(1000))
        wait_for(lambda: in_flight(server) == 1)
        server.signal(signal.SIGTERM)
        answer = read_answer(connection)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert answer.json()["outputs"][0]["data"] == [1000]
        assert connection.recv(1) == b""
    assert server.wait(10) == 0


def test_the_drain_delay_goes_on_accepting_but_is_not_ready(affine: Path, start_server: Start) -> None:
    server = start_server(affine, "--drain-delay", "2")
    server.signal(signal.SIGTERM)
    with server.client() as client:
        wait_for(lambda: client.get("/v2/health/ready").status_code == 503)
        assert client.post(INFER, content=GOOD).status_code == 200
        assert client.get("/v2/health/live").status_code == 200
    assert server.wait(10) == 0
    with pytest.raises(ConnectionRefusedError):
        server.connect()


def test_a_second_signal_ends_the_process_now(slow: Path, start_server: Start) -> None:
    server = start_server(slow, "--inline-budget-us", "0")
    with server.connect() as connection:
        connection.sendall(slow_request(20_000))
        wait_for(lambda: in_flight(server) == 1)
        server.signal(signal.SIGTERM)
        wait_for(lambda: "draining" in server.log())
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        server.wait(5)
        assert time.monotonic() - started < 1


def test_what_does_not_end_within_the_timeout_is_cut_off(slow: Path, start_server: Start) -> None:
    server = start_server(slow, "--inline-budget-us", "0", "--shutdown-timeout", "0.5")
    with server.connect() as connection:
        connection.sendall(slow_request(20_000))
        wait_for(lambda: in_flight(server) == 1)
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait(10) == 1
        assert time.monotonic() - started < 3
    assert "cut off by shutdown_timeout" in server.log()


# ---- clients that leave, clients that dawdle ----------------------------------------------------------------------
def test_requests_whose_client_left_do_not_run(slow: Path, start_server: Start) -> None:
    server = start_server(slow, "--inline-budget-us", "0")
    running = server.connect()
    running.sendall(slow_request(3000))
    wait_for(lambda: in_flight(server) == 1)
    waiting = [server.connect() for _ in range(5)]
    for connection in waiting:
        connection.sendall(slow_request(10_000))
    wait_for(lambda: in_flight(server) == 6)
    for connection in waiting:
        connection.close()
    wait_for(lambda: in_flight(server) == 1)
    with running:
        assert read_answer(running).status == 200
    with server.connect() as after:
        after.sendall(slow_request(1))
        assert read_answer(after).json()["outputs"][0]["data"] == [1]
    with server.client() as client:
        (stats,) = client.get("/v2/models/slow/stats").json()["model_stats"]
        (left,) = [line for line in client.get("/metrics").text.splitlines() if 'status="499"' in line]
    assert left.endswith(" 5.0")
    assert stats["inference_stats"]["success"]["count"] == 2


def closed_after(connection: socket.socket) -> float:
    connection.settimeout(20)
    started = time.monotonic()
    assert connection.recv(1) == b""
    return time.monotonic() - started


def test_time_outs(affine: Path, start_server: Start) -> None:
    server = start_server(affine, "--head-timeout", "1", "--idle-timeout", "3")
    with server.connect() as silent, server.connect() as half, server.connect() as kept:
        half.sendall(b"GET / HTTP/1.1\r\nHost: ")
        kept.sendall(post(INFER, GOOD))
        assert read_answer(kept).status == 200
        assert 0.5 < closed_after(half) < 4
        assert closed_after(silent) < 6
        assert closed_after(kept) < 6


def test_over_max_connections_is_told_so(affine: Path, start_server: Start) -> None:
    server = start_server(affine, "--max-connections", "3")
    held = [server.connect() for _ in range(3)]
    for connection in held:
        connection.sendall(post(INFER, GOOD))
        assert read_answer(connection).status == 200
    with server.connect() as extra:
        answer = read_answer(extra)
        assert (answer.status, answer.json()["code"]) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    held.pop().close()

    def admitted() -> bool:
        with server.connect() as connection:
            connection.sendall(post(INFER, GOOD))
            return read_answer(connection).status == 200

    wait_for(admitted)
    for connection in held:
        connection.close()


def test_bodies_in_flight_are_bounded_together(affine: Path, start_server: Start) -> None:
    server = start_server(affine, "--inflight-bytes", "1MiB")
    with server.connect() as holder:
        holder.sendall(f"POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: 900000\r\n\r\n".encode() + bytes(800_000))
        wait_for(lambda: gauge(server, "fastinfer_body_bytes_in_flight") == 800_000)
        answer = server.raw(post(INFER, GOOD + b" " * 400_000))
        assert (answer.status, answer.json()["code"]) == (503, "unavailable")
        assert server.raw(post(INFER, GOOD)).status == 200
    wait_for(lambda: gauge(server, "fastinfer_body_bytes_in_flight") == 0)
    assert server.raw(post(INFER, GOOD + b" " * 400_000)).status == 200


# ---- logs ---------------------------------------------------------------------------------------------------------
def requests_logged(server: ServerProcess) -> list[dict[str, object]]:
    return [record for record in server.records() if record["logger"] == "fastinfer.request"]



def test_errors_are_logged_always_but_not_without_end(affine: Path, start_server: Start) -> None:
    server = start_server(affine)
    for _ in range(200):
        server.raw(post(INFER, b"{"))
    server.raw(post(INFER, GOOD))
    logged = requests_logged(server)
    assert 10 <= len(logged) < 150
    assert all(record["level"] == "warning" for record in logged)


@pytest.mark.parametrize("option", ["--fast-lane", "--no-fast-lane"])
def test_a_run_that_fails_is_logged_on_both_lanes(tmp_path: Path, start_server: Start, option: str) -> None:
    server = start_server(onnx_models.picky(tmp_path / "picky.onnx"), option)
    body = b'{"inputs":[{"name":"i","shape":[1],"datatype":"INT64","data":[99]}]}'
    assert server.raw(post("/v2/models/picky/infer", body, "X-Request-ID: mine")).status == 500
    wait_for(lambda: requests_logged(server))
    (record,) = requests_logged(server)
    assert (record["request_id"], record["model"], record["status"]) == ("mine", "picky", 500)
    assert (record["code"], record["level"]) == ("runtime_failed", "error")



@pytest.mark.parametrize("option", ["--fast-lane", "--no-fast-lane"])
def test_refusals_are_logged_and_counted_on_both_lanes(affine: Path, start_server: Start, option: str) -> None:
    server = start_server(affine, option)
    many = 60
    refused = post(INFER, GOOD, "X-Request-ID: mine", "X-Request-Timeout: 0.000000001")
    with server.connect() as connection:
        for _ in range(many):
            connection.sendall(refused)
            assert read_answer(connection).json()["code"] == "deadline_unreachable"
    wait_for(lambda: requests_logged(server))
    first, *others = requests_logged(server)
    del first["time"], first["logger"]
    first.pop("total_ms", None)
    assert first == {
        "level": "warning", "message": "the request would most likely not be answered by its deadline", "rows": 0,
        "request_id": "mine", "model": "affine", "version": "1", "status": 503, "code": "deadline_unreachable",
    }  # fmt: skip
    assert len(others) < many / 2
    time.sleep(1.1)  # a second later the log has how many they were in all
    server.raw(refused)

    def told() -> int:
        seen = [record["message"] for record in requests_logged(server)]
        more = [int(text.split()[0]) for text in seen if "more errors of the kind deadline_unreachable" in text]
        return len(seen) - len(more) + sum(more)

    wait_for(lambda: told() == many + 1)
    assert gauge(server, 'fastinfer_refused_total{model="affine",reason="deadline",version="1"}') == many + 1


def test_health_answers_while_a_model_runs(tmp_path: Path, start_server: Start) -> None:
    """Runs of about 200 ms one after another: as soon as from an idle server, but for the cores that they take."""
    root = tmp_path / "models"
    onnx_models.slow(root / "slow" / "1" / "model.onnx")
    (root / "slow" / "model.toml").write_text("inline_budget_us = 0\n")
    server = start_server(root)
    asks = b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"

    def times(connection: socket.socket, count: int) -> list[float]:
        taken = []
        for _ in range(count):
            time.sleep(0.003)
            started = time.perf_counter()
            connection.sendall(asks)
            assert read_answer(connection, "GET").status == 200
            taken.append(time.perf_counter() - started)
        return taken

    with server.connect() as connection, server.connect() as other:
        idle = statistics.median(times(connection, 50))
        for _ in range(6):
            other.sendall(slow_request(200))
        busy = times(connection, 50)
        assert in_flight(server), "the runs were over too soon to tell anything"
    assert statistics.median(busy) < 5 * idle + 0.005


def test_a_json_log_says_what_is_served(affine: Path, start_server: Start) -> None:
    server = start_server(affine, "--log-format", "json", wait=False)
    wait_for(lambda: any(record["message"] == "serving" for record in server.records()), 60)
    (record,) = [record for record in server.records() if record["message"] == "serving"]
    assert record["models"] == [{"model": "affine", "version": "1", "platform": "onnxruntime_onnx"}]
    done = subprocess.run(["bash", "-c", str(record["try"])], capture_output=True, timeout=60)
    assert json.loads(done.stdout)["model_name"] == "affine"


def test_many_clients_while_it_drains_get_an_answer_or_none_at_all(affine: Path, start_server: Start) -> None:
    server = start_server(affine)
    bad: list[object] = []

    def ask() -> None:
        while True:
            try:
                with server.connect() as connection:
                    connection.sendall(post(INFER, GOOD))
                    answer = read_answer(connection)
            except OSError:  # refused or reset: RemoteDisconnected is one
                return
            if answer.status != 200:
                bad.append(answer.body)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert server.stop() == 0
    for thread in threads:
        thread.join(30)
    assert bad == []
