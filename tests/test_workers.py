"""Several workers under a supervisor: their deaths, their end, and what they count together."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import onnx_models
import pytest
from conftest import PACKAGE, Answer, ServerProcess, Start, post, read_answer
from prometheus_client.parser import text_string_to_metric_families

from fastinfer.workers import Channel, Worker

GOOD = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()
INFER = "/v2/models/affine/infer"


@pytest.fixture(scope="module")
def affine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.affine(tmp_path_factory.mktemp("affine") / "affine.onnx")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that takes its time to load."""
    root = tmp_path_factory.mktemp("several")
    for number in range(12):
        onnx_models.affine(root / f"affine{number}" / "1" / "model.onnx")
    return root


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.slow(tmp_path_factory.mktemp("slow") / "slow.onnx")


def slow_request(steps: int) -> bytes:
    tensor = {"name": "steps", "shape": [1], "datatype": "INT64", "data": [steps]}
    return post("/v2/models/slow/infer", json.dumps({"inputs": [tensor]}).encode())


def stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def children(pid: int) -> dict[int, str]:
    """The processes that a process has started, and their states; Z is a zombie."""
    result = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = stat(int(entry.name))[:2]
            except OSError:
                continue  # it has ended
            if int(parent) == pid:
                result[int(entry.name)] = state
    return result


def workers(server: ServerProcess) -> list[int]:
    return sorted(children(server.process.pid))


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return stat(pid)[0] != "Z"
    except OSError:
        return False


def value(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def metric(server: ServerProcess, name: str, **labels: str) -> float:
    with server.client() as client:
        return value(client.get("/metrics").text, name, **labels)


def prefix(answer: Answer) -> str:
    """What the request ids of a worker begin with."""
    return str(answer.headers["x-request-id"]).split("-", maxsplit=1)[0]


def connect_to_all(server: ServerProcess, count: int) -> dict[str, socket.socket]:
    """A connection to each of so many workers, by the worker's prefix; the kernel shares connections out by chance."""
    found: dict[str, socket.socket] = {}
    for _ in range(500):
        connection = server.connect()
        connection.sendall(post("/v2/repository/index", b""))
        name = prefix(read_answer(connection))
        if name in found:
            connection.close()
        found.setdefault(name, connection)
        if len(found) == count:
            return found
    raise AssertionError(f"only {len(found)} of {count} workers answer")


# ---- serving ------------------------------------------------------------------------------------------------------
def test_workers_share_out_connections_and_count_together(affine: Path, start_server: Start) -> None:
    server = start_server(affine, "--workers", "3")
    assert server.out[0].endswith(f"at {server.url}, 3 workers")
    assert len(workers(server)) == 3
    connections = connect_to_all(server, 3)
    ids = set()
    for count, connection in enumerate(connections.values(), 1):
        for _ in range(10 * count):
            connection.sendall(post(INFER, GOOD))
            answer = read_answer(connection)
            ids.add(answer.headers["x-request-id"])
            assert answer.status == 200
        connection.sendall(post(INFER, b"{"))
        assert read_answer(connection).status == 400
        connection.sendall(post("/v2/models/none/infer", b"{"))
        assert read_answer(connection).status == 404
    assert len(ids) == 60
    # The standard lane counts an answer once it is sent.
    wait_for(lambda: metric(server, "fastinfer_requests_total", lane="standard") == 6)

    seen = []
    for connection in connections.values():
        connection.sendall(b"GET /v2/models/affine/stats HTTP/1.1\r\nHost: t\r\n\r\n")
        (statistics,) = read_answer(connection, "GET").json()["model_stats"]
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n")
        text = read_answer(connection, "GET").body.decode()
        seen.append((
            statistics["inference_count"], statistics["inference_stats"]["success"]["count"],
            sum(size["compute_infer"]["count"] for size in statistics["batch_stats"]),
            value(text, "fastinfer_requests_total", status="200", lane="fast"),
            value(text, "fastinfer_requests_total", status="400", lane="standard", model="affine"),
            value(text, "fastinfer_requests_total", status="404", lane="standard", model=""),
            value(text, "fastinfer_total_seconds_count", model="affine"),
            value(text, "fastinfer_rows_total"), value(text, "fastinfer_connections"),
            value(text, "fastinfer_ready"), value(text, "fastinfer_workers_ready"),
        ))  # fmt: skip
        for number in range(3):
            assert value(text, "process_resident_memory_bytes", worker=str(number)) > 1 << 20
    assert seen == [(60, 60, 60, 60, 3, 3, 60, 60, 3, 1, 3)] * 3
    for connection in connections.values():
        connection.close()


def test_a_port_in_use_is_one_line_and_exit_2(affine: Path, start_server: Start) -> None:
    one, two = start_server(affine, "--workers", "1"), start_server(affine, "--workers", "2")
    assert workers(one) == []  # no supervisor
    assert one.out[0].endswith(one.url)
    for server, count in ((one, "2"), (two, "1"), (two, "2")):
        late = start_server(affine, "--workers", count, "--port", str(server.port), wait=False)
        assert late.wait() == 2
        (line,) = late.log().splitlines()
        assert f"port {server.port} on 127.0.0.1 is in use" in line
        for _ in range(10):
            assert server.raw(post(INFER, GOOD)).status == 200


def test_one_unix_socket_for_all(affine: Path, start_server: Start, tmp_path: Path) -> None:
    path = tmp_path / "fastinfer.sock"
    server = start_server(affine, "--workers", "2", "--uds", str(path))

    def ask() -> str:
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://localhost", trust_env=False) as client:
            answer = client.post(INFER, content=GOOD)
            assert answer.status_code == 200
            return answer.headers["x-request-id"].split("-")[0]

    first = ask()
    os.kill(workers(server)[0], signal.SIGKILL)
    wait_for(lambda: ask() != first)
    assert path.exists()
    assert server.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0"])
def test_other_addresses(affine: Path, start_server: Start, host: str) -> None:
    server = start_server(affine, "--workers", "2", "--host", host)
    server.port = int(server.out[0].split("localhost:")[1].split(",")[0])
    for connection in connect_to_all(server, 2).values():
        connection.sendall(post(INFER, GOOD))
        assert read_answer(connection).status == 200
        connection.close()


# ---- models that do not load --------------------------------------------------------------------------------------
def test_nothing_to_serve_ends_the_server_as_one_worker_does(start_server: Start, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    said = []
    for count in (1, 2):
        server = start_server(path, "--workers", str(count), wait=False)
        assert server.wait() == 2
        assert "Traceback" not in server.log()
        said.append([line for line in server.log().splitlines() if line.startswith("fastinfer:")])
    assert said[0] == said[1]
    assert len(said[0]) == 1
    assert "broken.onnx" in said[0][0]


def test_one_broken_model_is_served_around(start_server: Start, tmp_path: Path) -> None:
    onnx_models.affine(tmp_path / "affine" / "1" / "model.onnx")
    broken = tmp_path / "broken" / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a model")
    server = start_server(tmp_path, "--workers", "2")
    assert any("broken version 1 is not served" in line for line in server.out)
    for connection in connect_to_all(server, 2).values():
        connection.sendall(post(INFER, GOOD))
        assert read_answer(connection).status == 200
        connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: t\r\n\r\n")
        assert read_answer(connection, "GET").status == 503
        connection.close()
    assert metric(server, "fastinfer_ready") == 0


def test_workers_that_die_while_they_load_are_given_up(several: Path, start_server: Start) -> None:
    server = start_server(several, "--workers", "2", wait=False)
    while server.process.poll() is None:
        for pid in workers(server):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    assert server.wait() == 1
    said = [record["message"].partition(": ")[2] for record in server.records()]
    assert said[-1] == "was killed by SIGKILL before it served; the server ends"
    assert said.count("was killed by SIGKILL; it is replaced now") == 2


def test_a_device_is_not_shared(start_server: Start, tmp_path: Path) -> None:
    onnx_models.affine(tmp_path / "affine" / "1" / "model.onnx")
    config = '[onnx]\nexecution_providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]\n'
    (tmp_path / "affine" / "model.toml").write_text(config)
    server = start_server(tmp_path, "--workers", "2", wait=False)
    assert server.wait() == 2
    (line,) = server.log().splitlines()
    assert "CUDAExecutionProvider" in line
    assert "--workers 1" in line


# ---- deaths -------------------------------------------------------------------------------------------------------
class Client(threading.Thread):
    """Asks one request after the other on a connection, and connects again when that breaks."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.stop = False
        self.answered = 0
        self.lost: list[str] = []  # prefixes of the workers whose answer did not come
        self.bad: list[int] = []

    def run(self) -> None:
        while not self.stop:
            name = "?"
            with self.server.connect() as connection:
                try:
                    while not self.stop:
                        connection.sendall(post(INFER, GOOD))
                        answer = read_answer(connection)
                        name = prefix(answer)
                        self.answered += 1
                        if answer.status != 200:
                            self.bad.append(answer.status)
                except OSError:
                    self.lost.append(name)


def test_a_worker_killed_under_load_loses_its_own_requests_only(affine: Path, start_server: Start) -> None:
    server = start_server(affine, "--workers", "2")
    clients = [Client(server) for _ in range(8)]
    for client in clients:
        client.start()
    wait_for(lambda: all(client.answered > 20 for client in clients))
    victim, other = workers(server)
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: metric(server, "fastinfer_worker_restarts_total") == 1)
    wait_for(lambda: metric(server, "fastinfer_workers_ready") == 2)
    # Nobody waits for ever on the dead worker's socket: what was asked there has been answered by the replacement.
    before = [client.answered for client in clients]
    wait_for(lambda: all(client.answered > count for client, count in zip(clients, before, strict=True)))
    for client in clients:
        client.stop = True
    for client in clients:
        client.join(30)
    lost = [name for client in clients for name in client.lost]
    assert all(len(client.lost) <= 1 for client in clients)
    assert len(set(lost)) <= 1  # all on one worker
    assert [client.bad for client in clients] == [[]] * 8
    assert other in workers(server)
    assert victim not in workers(server)
    assert set(children(server.process.pid).values()) <= set("SR")  # no zombie
    # What was counted by the dead is kept. An answer that was lost on its way may have been counted.
    answered = sum(client.answered for client in clients)
    counted = metric(server, "fastinfer_requests_total", status="200")
    assert answered <= counted <= answered + len(lost)
    assert metric(server, "fastinfer_requests_in_flight") == 0
    (record,) = [each for each in server.records() if each["logger"] == "fastinfer.workers"]
    assert f"(pid {victim}): was killed by SIGKILL; it is replaced now" in record["message"]


def test_what_waits_for_dead_workers_is_served_by_their_replacements(affine: Path, start_server: Start) -> None:
    server = start_server(affine, "--workers", "2")
    server.signal(signal.SIGSTOP)  # so that nobody is replaced yet
    for pid in workers(server):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: set(children(server.process.pid).values()) == {"Z"})
    waiting = [server.connect() for _ in range(20)]
    for connection in waiting:
        connection.sendall(post(INFER, GOOD))
    server.signal(signal.SIGCONT)
    for connection in waiting:
        with connection:
            assert read_answer(connection).status == 200


def test_a_crash_loop_backs_off(affine: Path, start_server: Start) -> None:
    server = start_server(affine, "--workers", "2")
    kept, *_ = workers(server)

    def said() -> list[str]:
        records = [record for record in server.records() if record["logger"] == "fastinfer.workers"]
        return [record["message"].partition("; ")[2] for record in records]

    for deaths in range(1, 5):
        wait_for(lambda: len(workers(server)) == 2)
        (victim,) = [pid for pid in workers(server) if pid != kept]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len(said()) == deaths)  # noqa: B023 - called at once
    # Until the next one comes, all connections go to the worker that is left.
    for _ in range(20):
        assert server.raw(post(INFER, GOOD)).status == 200
    assert workers(server) == [kept]
    assert said() == [
        "it is replaced now",
        "it is replaced in 0.5 s, after 2 deaths in a row",
        "it is replaced in 1 s, after 3 deaths in a row",
        "it is replaced in 2 s, after 4 deaths in a row",
    ]
    assert metric(server, "fastinfer_worker_restarts_total") == 4
    wait_for(lambda: metric(server, "fastinfer_workers_ready") == 2)
    for connection in connect_to_all(server, 2).values():  # it is listened to again
        connection.close()


def test_messages_come_whole_whatever_their_size() -> None:
    here, there = (Channel(end) for end in socket.socketpair())
    sent = [{"a": 1}, {"serving": ["x" * 3_000_000]}, {"failed": "\n\u00e9"}]

    def send() -> None:
        for message in sent:
            there.send(message)
        there.close()

    thread = threading.Thread(target=send)
    thread.start()
    received: list[object] = []
    while (messages := here.receive()) is not None:
        received += messages
    thread.join()
    here.close()
    assert received == sent


def test_waits_grow_to_a_bound_and_end_with_a_stable_worker() -> None:
    worker = Worker(0)
    assert [worker.wait(100.0) for _ in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    worker.served_at = 100.0
    assert worker.wait(109.0) == 30
    assert worker.wait(110.0) == 0
    for _ in range(5000):
        worker.wait(101.0)
    assert worker.wait(101.0) == 30


@pytest.mark.parametrize("form", ["json", "text"])
def test_every_record_tells_its_worker(affine: Path, start_server: Start, form: str) -> None:
    server = start_server(affine, "--workers", "2", "--access-log", "--log-format", form, wait=False)
    wait_for(lambda: len(workers(server)) == 2 and ("serving" in server.log() or server.out), 60)
    pids = workers(server)
    if form == "json":
        server.port = int(server.records()[0]["url"].rpartition(":")[2])
    for connection in connect_to_all(server, 2).values():
        for body in (GOOD, b"{"):
            connection.sendall(post(INFER, body, "X-Request-ID: mine"))
            read_answer(connection)
        connection.close()
    assert server.stop() == 0
    if form == "json":
        told = {
            (record.get("worker"), record.get("pid"))
            for record in server.records()
            if record.get("request_id") == "mine"
        }
        assert {record.get("worker") for record in server.records() if record["message"] == "serving"} == {None}
    else:
        lines = [line for line in server.log().splitlines() if "mine" in line]
        told = {(int(number), int(pid)) for number, pid in re.findall(r" \[(\d+):(\d+)\] ", "\n".join(lines))}
        assert all(re.search(r"\[\d+:\d+\] \w", line) for line in lines)
    assert {number for number, _ in told} == {0, 1}
    assert {pid for _, pid in told} == set(pids)


def test_nobody_reads_what_the_server_prints(affine: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    path = tmp_path / "fastinfer.sock"
    arguments = ["serve", str(affine), "--workers", "2", "--uds", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    process = subprocess.Popen(
        [sys.executable, "-m", "fastinfer", *arguments], cwd=tmp_path, env=environment, stdout=writer
    )
    os.close(writer)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
        wait_for(lambda: path.exists() and "\nfastinfer_workers_ready 2" in client.get("/metrics").text, 60)
    first = children(process.pid)
    os.kill(min(first), signal.SIGKILL)
    wait_for(lambda: len(children(process.pid)) == 2 and children(process.pid).keys() != first.keys())
    process.terminate()
    assert process.wait(30) in (0, 120)  # 120: the interpreter's own, where it cannot flush


@pytest.mark.parametrize(
    ("number", "fate"), [(signal.SIGKILL, "was killed by SIGKILL"), (signal.SIGTERM, "ended with code 0")]
)
def test_a_worker_is_replaced_within_two_seconds(affine: Path, start_server: Start, number: int, fate: str) -> None:
    server = start_server(affine, "--workers", "2")
    pid = workers(server)[0]
    started = time.monotonic()
    os.kill(pid, number)
    wait_for(lambda: metric(server, "fastinfer_worker_restarts_total") == 1)
    wait_for(lambda: metric(server, "fastinfer_workers_ready") == 2)
    assert time.monotonic() - started < 2
    assert pid not in workers(server)
    assert f"(pid {pid}): {fate}; it is replaced now" in server.log()


# ---- the end ------------------------------------------------------------------------------------------------------
def busy(server: ServerProcess, count: int, steps: int) -> list[socket.socket]:
    """A connection to each worker, with a request in flight."""
    connections = list(connect_to_all(server, count).values())
    for connection in connections:
        connection.sendall(slow_request(steps))
    wait_for(lambda: metric(server, "fastinfer_requests_in_flight") == count)
    return connections


def test_a_signal_to_all_drains_all(slow: Path, start_server: Start) -> None:
    """Ctrl-C and a service manager signal every process of the group: nothing is cut off by that."""
    server = start_server(slow, "--workers", "2", "--inline-budget-us", "0")
    connections = busy(server, 2, 500)
    pids = workers(server)
    for pid in (*pids, server.process.pid):
        os.kill(pid, signal.SIGINT)
    for connection in connections:
        answer = read_answer(connection)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        connection.close()
    assert server.wait(10) == 0
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(ConnectionRefusedError):
        server.connect()
    drained = [record for record in server.records() if record["message"] == "drained"]
    assert sorted(record["worker"] for record in drained) == [0, 1]
    assert sorted(record["pid"] for record in drained) == pids


def test_the_drain_delay_goes_on_accepting(affine: Path, start_server: Start) -> None:
    server = start_server(affine, "--workers", "2", "--drain-delay", "1.5")
    server.signal(signal.SIGTERM)
    wait_for(lambda: server.log().count('"draining"') == 2)
    with server.client() as client:
        assert client.get("/v2/health/ready").status_code == 503
    for _ in range(10):
        assert server.raw(post(INFER, GOOD)).status == 200
    assert server.wait(10) == 0
    with pytest.raises(ConnectionRefusedError):
        server.connect()


def test_a_worker_that_cuts_requests_off_makes_the_exit_code_1(slow: Path, start_server: Start) -> None:
    server = start_server(slow, "--workers", "2", "--inline-budget-us", "0", "--shutdown-timeout", "0.3")
    connections = busy(server, 2, 20_000)
    server.signal(signal.SIGTERM)
    assert server.wait(10) == 1
    for connection in connections:
        connection.close()
    assert "cut off by shutdown_timeout" in server.log()


def test_a_second_signal_ends_everything_now(slow: Path, start_server: Start) -> None:
    server = start_server(slow, "--workers", "2", "--inline-budget-us", "0")
    connections = busy(server, 2, 20_000)
    pids = workers(server)
    server.signal(signal.SIGTERM)
    wait_for(lambda: server.log().count('"draining"') == 2)
    started = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.wait(5) == -signal.SIGTERM
    assert time.monotonic() - started < 1
    assert not any(alive(pid) for pid in pids)
    for connection in connections:
        connection.close()


def test_a_signal_while_workers_load_ends_them_clean(several: Path, start_server: Start) -> None:
    server = start_server(several, "--workers", "2", wait=False)
    wait_for(lambda: len(workers(server)) == 2, 60)
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0
    assert server.out == []


def test_a_killed_supervisor_leaves_nothing_behind(affine: Path, start_server: Start) -> None:
    server = start_server(affine, "--workers", "2")
    pids = workers(server)
    server.signal(signal.SIGKILL)
    server.wait()
    wait_for(lambda: not any(alive(pid) for pid in pids), 5)
    again = start_server(affine, "--workers", "2", "--port", str(server.port))
    assert again.raw(post(INFER, GOOD)).status == 200
