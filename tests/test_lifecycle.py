"""Models that come and go while the server serves: at the HTTP surface, with traffic."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx_models
import pytest
from conftest import PACKAGE, Answer, ServerProcess, Start, post, read_answer

SWAPS = int(os.environ.get("FASTINFER_SWAPS", "100"))  # of a model under load
RELOADS = int(os.environ.get("FASTINFER_RELOADS", "45"))  # after which the memory is looked at
QUICK = "max_batch_size = 2\nwarmup_rows = 1\n"  # less to prove at a load
BODY = json.dumps({
    "inputs": [{"name": "x", "shape": [3, 2], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]
}).encode()  # fmt: skip


def put(path: Path, number: float, weight: int = 0) -> None:
    """A model that answers with the number, there at once and whole."""
    part = path.parent.parent / f".{path.parent.name}.part"
    onnx_models.constant(part, number, weight)
    path.parent.mkdir(parents=True, exist_ok=True)
    part.rename(path)


def ask(server: ServerProcess, method: str, path: str, body: Any = None) -> Answer:
    """One request on a connection of its own."""
    data = b"" if body is None else json.dumps(body).encode()
    with server.connect() as connection:
        connection.sendall(post(path, data).replace(b"POST", method.encode(), 1))
        return read_answer(connection, method)


def on(connection: Any, path: str, body: bytes = b"") -> Answer:
    connection.sendall(post(path, body))
    return read_answer(connection)


def load(server: ServerProcess, name: str) -> Answer:
    return ask(server, "POST", f"/v2/repository/models/{name}/load")


def unload(server: ServerProcess, name: str) -> Answer:
    return ask(server, "POST", f"/v2/repository/models/{name}/unload")


def index(server: ServerProcess) -> dict[tuple[str, str], tuple[str, str]]:
    """State and reason by name and version."""
    entries = ask(server, "POST", "/v2/repository/index").json()
    return {(each["name"], each["version"]): (each["state"], each["reason"]) for each in entries}


def answered(answer: Answer) -> float:
    """The one number that the whole answer holds."""
    assert answer.status == 200, answer.body
    (number,) = {number for tensor in answer.json()["outputs"] for number in tensor["data"]}
    return float(number)


def infer(server: ServerProcess, name: str) -> float:
    return answered(ask(server, "POST", f"/v2/models/{name}/infer", json.loads(BODY)))


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


class Client(threading.Thread):
    """Asks for a model's answer on one connection, again and again, some requests at once."""

    def __init__(self, server: ServerProcess, path: str, *headers: str, depth: int = 1) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.request = post(path, BODY, *headers) * depth
        self.depth = depth
        self.stop = False
        self.numbers: list[float] = []  # as they came
        self.faults: list[Any] = []

    def run(self) -> None:
        try:
            with self.server.connect() as connection, connection.makefile("rb") as stream:
                while not self.stop:
                    connection.sendall(self.request)
                    for _ in range(self.depth):
                        self.numbers.append(self._number(stream))
        except BaseException as error:
            self.faults.append(error)

    @staticmethod
    def _number(stream: Any) -> float:
        """The one number of the next answer; several may be in the stream's buffer."""
        head = b"".join(iter(stream.readline, b"\r\n"))
        if head.startswith(b"HTTP/1.1 100"):
            return Client._number(stream)
        body = stream.read(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        assert head.startswith(b"HTTP/1.1 200 "), head + body
        (number,) = {number for tensor in json.loads(body)["outputs"] for number in tensor["data"]}
        return float(number)


@pytest.fixture
def traffic() -> Iterator[Callable[..., list[Client]]]:
    """Starts clients, and ends them."""
    clients: list[Client] = []

    def start(server: ServerProcess, path: str) -> list[Client]:
        clients.extend([
            Client(server, path), Client(server, path, depth=4), Client(server, path, "Expect: 100-continue"),
        ])  # fmt: skip
        for client in clients:
            client.start()
        return clients

    yield start
    for client in clients:
        client.stop = True
    for client in clients:
        client.join(30)


def test_a_hundred_swaps_under_load_fail_nobody(
    tmp_path: Path, start_server: Start, traffic: Callable[..., list[Client]]
) -> None:
    file = tmp_path / "m" / "1" / "model.onnx"
    put(file, 0)
    (tmp_path / "m" / "model.toml").write_text(QUICK)
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "m")
    clients = traffic(server, "/v2/models/m/infer")
    for number in range(1, SWAPS + 1):
        put(file, number)
        answer = load(server, "m")
        assert (answer.status, answer.body) == (200, b"")
        assert infer(server, "m") == number  # from the answer on, only the new one answers
    wait_for(lambda: all(each.faults or each.numbers[-1:] == [SWAPS] for each in clients))  # what it had in its buffer
    assert [client.faults for client in clients] == [[]] * len(clients)
    for client in clients:
        numbers = list(client.numbers)  # which still grows
        assert numbers == sorted(numbers)


def test_reloads_leave_nothing_behind(tmp_path: Path, start_server: Start) -> None:
    """By default so few that only a leak of a whole model shows; 1,000 of them for less."""
    file = tmp_path / "m" / "1" / "model.onnx"
    put(file, 0, weight=1 << 20)
    (tmp_path / "m" / "model.toml").write_text(QUICK)
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "m")
    status = Path(f"/proc/{server.process.pid}/status")

    def anonymous_kib() -> int:
        return int(status.read_text().partition("RssAnon:")[2].split()[0])

    settled = 0
    with server.connect() as idle:  # it has been answered by the first, and then says nothing
        assert answered(on(idle, "/v2/models/m/infer", BODY)) == 0
        for number in range(1, RELOADS + 1):
            put(file, number, weight=1 << 20)
            assert load(server, "m").status == 200
            assert infer(server, "m") == number
            if number % 7 == 0:  # an error of the standard lane, whose frames knew the model
                assert ask(server, "POST", "/v2/models/m/infer", {"inputs": []}).status == 400
            if number == min(50, RELOADS // 3):
                settled = anonymous_kib()
        wait_for(lambda: set(index(server).values()) == {("READY", "")})
        assert anonymous_kib() - settled < (5 << 10 if RELOADS >= 1000 else 16 << 10)
        assert answered(on(idle, "/v2/models/m/infer", BODY)) == RELOADS


def test_statistics_go_on_over_reloads(tmp_path: Path, start_server: Start) -> None:
    put(tmp_path / "m" / "1" / "model.onnx", 1)
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "m")
    for number in range(2, 5):
        infer(server, "m")
        put(tmp_path / "m" / "1" / "model.onnx", number)
        assert load(server, "m").status == 200
    infer(server, "m")
    (statistics,) = ask(server, "GET", "/v2/models/m/stats").json()["model_stats"]
    assert statistics["inference_stats"]["success"]["count"] == 4
    assert unload(server, "m").status == 200
    assert ask(server, "GET", "/v2/models/stats").json()["model_stats"] == []
    metrics = ask(server, "GET", "/metrics").body.decode()
    assert 'fastinfer_requests_total{lane="fast",model="m",status="200",version="1"} 4.0' in metrics
    assert "fastinfer_requests_in_flight 0.0" in metrics
    assert load(server, "m").status == 200
    (statistics,) = ask(server, "GET", "/v2/models/stats").json()["model_stats"]
    assert statistics["inference_stats"]["success"]["count"] == 4


def test_a_load_that_fails_leaves_the_one_before_and_says_why(tmp_path: Path, start_server: Start) -> None:
    put(tmp_path / "m" / "1" / "model.onnx", 1)
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "*")
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(b"not a model")
    put(tmp_path / "m" / "2" / "model.onnx", 2)
    (tmp_path / "m" / "3").mkdir()
    (tmp_path / "m" / "3" / "model.onnx").write_bytes(b"nor is this")
    answer = load(server, "m")
    assert answer.status == 500
    assert answer.json()["code"] == "load_failed"
    assert answer.json()["error"].startswith("failed to load 'm', version 3: ")
    states = index(server)
    assert {key: state for key, (state, _) in states.items()} == {
        ("m", "1"): "READY", ("m", "2"): "READY", ("m", "3"): "UNAVAILABLE"}  # fmt: skip
    assert "model.onnx" in states["m", "1"][1]
    assert states["m", "2"][1] == ""
    assert "model.onnx" in states["m", "3"][1]
    assert infer(server, "m") == 2
    assert infer(server, "m/versions/1") == 1
    assert ask(server, "POST", "/v2/models/m/versions/3/infer", json.loads(BODY)).status == 503
    assert ask(server, "GET", "/v2/health/ready").status == 200
    put(tmp_path / "m" / "1" / "model.onnx", 11)
    (tmp_path / "m" / "3" / "model.onnx").unlink()
    (tmp_path / "m" / "3").rmdir()
    assert load(server, "m").status == 200
    assert index(server) == {("m", "1"): ("READY", ""), ("m", "2"): ("READY", "")}
    assert infer(server, "m/versions/1") == 11


def test_versions_and_aliases_come_and_go_with_the_configuration(tmp_path: Path, start_server: Start) -> None:
    for version in range(1, 5):
        put(tmp_path / "m" / str(version) / "model.onnx", version)
    config = tmp_path / "m" / "model.toml"
    config.write_text("[version_policy]\nlatest = 2\n[aliases]\nchampion = 1\n")
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "m")

    def state() -> tuple[list[str], float, float]:
        metadata = ask(server, "GET", "/v2/models/m").json()
        return metadata["versions"], infer(server, "m"), infer(server, "m@champion")

    assert state() == (["4", "3", "1"], 4, 1)
    config.write_text("[version_policy]\nspecific = [2, 3]\n[aliases]\nchampion = 2\n'a.b-c_d' = 3\n")
    assert load(server, "m").status == 200
    assert state() == (["3", "2"], 3, 2)
    for path in ("/v2/models/m@a.b-c_d/infer", "/v2/models/m%40a.b-c_d/infer", "/v2/models/m%40a%2Eb-c_d/infer"):
        answer = ask(server, "POST", path, json.loads(BODY))
        assert (answered(answer), answer.json()["model_name"], answer.json()["model_version"]) == (3, "m", "3")
    for path in ("/v2/models/m@champion", "/v2/models/m@champion/ready", "/v2/models/m@champion/config",
                 "/v2/models/m@champion/stats"):  # fmt: skip
        assert ask(server, "GET", path).status == 200
    assert ask(server, "GET", "/v2/models/m@champion").json()["properties"]["aliases"] == "champion=2,a.b-c_d=3"
    assert ask(server, "GET", "/v2/models/m/config").json()["version_policy"] == {"specific": {"versions": [2, 3]}}
    (statistics,) = ask(server, "GET", "/v2/models/m@champion/stats").json()["model_stats"]
    assert statistics["version"] == "2"
    for path, code in (("m@nobody", "unknown_version"), ("m@", "unknown_version"), ("x@champion", "unknown_model"),
                       ("m@champion/versions/2", "unknown_version"), ("m/versions/4", "unknown_version")):  # fmt: skip
        answer = ask(server, "POST", f"/v2/models/{path}/infer", json.loads(BODY))
        assert (answer.status, answer.json()["code"]) == (404, code)
    config.write_text("[version_policy]\nspecific = [2, 9]\n")
    assert "asks for version 9" in load(server, "m").json()["error"]
    assert state() == (["3", "2"], 3, 2)
    config.unlink()
    assert load(server, "m").status == 200
    assert ask(server, "GET", "/v2/models/m").json()["versions"] == ["4", "3", "2", "1"]
    assert ask(server, "POST", "/v2/models/m@champion/infer", json.loads(BODY)).status == 404


def test_a_call_reaches_nothing_but_the_repository(tmp_path: Path, start_server: Start) -> None:
    root = tmp_path / "models"
    put(root / "m" / "1" / "model.onnx", 1)
    put(tmp_path / "secret" / "1" / "model.onnx", 2)
    put(tmp_path / "loose.onnx", 3)
    (root / "linked").symlink_to(tmp_path / "secret")
    (root / "inner").mkdir()
    (root / "inner" / "1").symlink_to(tmp_path / "secret" / "1")
    (root / "file" / "1").mkdir(parents=True)
    (root / "file" / "1" / "model.onnx").symlink_to(tmp_path / "loose.onnx")
    (root / "within").symlink_to("m")
    server = start_server(root, "--model-control", "explicit", "--load-model", "m")
    for name in ("linked", "inner", "file"):
        answer = load(server, name)
        assert (answer.status, answer.json()["code"]) == (500, "load_failed")
        assert "leads out of the repository" in answer.json()["error"]
    for name in ("..", "%2e%2e", ".", "stats", "m%00", "a%20b", "nobody", "m@x", "1", "-"):
        answer = load(server, name)
        assert (answer.status, answer.json()["code"]) == (500, "load_failed"), name
        assert "failed to poll from model repository" in answer.json()["error"]
        assert unload(server, name).status == 200
    for name in ("../secret", "..%2fsecret", "%2e%2e%2fsecret"):
        assert load(server, name).status == 404
    assert load(server, "within").status == 200
    path = "/v2/repository/models/m/load"
    for parameters, message in (
        ({"config": "{}"}, "the parameter 'config' is not taken"),
        ({"file:1/model.onnx": "AAAA"}, "the parameter 'file:1/model.onnx' is not taken"),
        ({"file:../x": ""}, "the parameter 'file:../x' is not taken"),
        ({"what": 1}, "'what' is not a known parameter"),
        ([], "parameters must be an object"),
    ):
        answer = ask(server, "POST", path, {"parameters": parameters})
        assert (answer.status, message in answer.json()["error"]) == (400, True)
    assert ask(server, "POST", path, {"parameters": None}).status == 200
    assert ask(server, "POST", path, [1]).status == 400
    assert ask(server, "POST", path.replace("load", "unload"), {"parameters": {"unload_dependents": 1}}).status == 400
    assert infer(server, "m") == 1
    for origin, status in (("http://evil.example", 400), ("null", 400), (f"http://127.0.0.1:{server.port}", 200)):
        host = f"Host: 127.0.0.1:{server.port}".encode()
        answer = server.raw(post(path, b"", f"Origin: {origin}").replace(b"Host: test", host))
        assert answer.status == status
    assert ask(server, "POST", "/v2/repository/here/models/m/load").status == 501
    assert {key for key, (state, _) in index(server).items() if state == "READY"} == {("m", "1"), ("within", "1")}


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_explicit_control_is_for_this_machine_alone(tmp_path: Path, start_server: Start, host: str) -> None:
    put(tmp_path / "m" / "1" / "model.onnx", 1)
    server = start_server(tmp_path, "--model-control", "explicit", "--host", host, wait=False)
    assert server.wait() == 2
    (line,) = server.log().splitlines()
    assert "loopback" in line
    assert host in line


# ---- several workers ----------------------------------------------------------------------------------------------
def connect_to_all(server: ServerProcess, count: int) -> list[Any]:
    """A connection to each of so many workers; the kernel shares connections out by chance."""
    found: dict[str, Any] = {}
    for _ in range(1000):
        connection = server.connect()
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n")
        worker = read_answer(connection, "GET").headers["x-request-id"].partition("-")[0]
        if worker in found:
            connection.close()
        found.setdefault(worker, connection)
        if len(found) == count:
            return list(found.values())
    raise AssertionError(f"only {len(found)} of {count} workers answer")


def answers(connection: Any) -> bool:
    """Whether the connection's worker is not stopped."""
    connection.settimeout(0.5)
    try:
        return on(connection, "/v2/models/m/infer", BODY).status == 200
    except TimeoutError:
        return False
    finally:
        connection.settimeout(30)


def children(pid: int) -> list[int]:
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_change_is_made_on_every_worker(tmp_path: Path, start_server: Start) -> None:
    put(tmp_path / "m" / "1" / "model.onnx", 1)
    put(tmp_path / "n" / "1" / "model.onnx", 5)
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "m", "--workers", "3")
    connections = connect_to_all(server, 3)
    for number, connection in enumerate(connections, 2):  # whichever is asked
        put(tmp_path / "m" / "1" / "model.onnx", number)
        assert on(connection, "/v2/repository/models/m/load").status == 200
        assert [answered(on(each, "/v2/models/m/infer", BODY)) for each in connections] == [number] * 3
    assert on(connections[0], "/v2/repository/models/n/load").status == 200
    assert [answered(on(each, "/v2/models/n/infer", BODY)) for each in connections] == [5] * 3
    assert on(connections[1], "/v2/repository/models/m/unload").status == 200
    assert [on(each, "/v2/models/m/infer", BODY).status for each in connections] == [404] * 3
    answer = on(connections[2], "/v2/repository/models/nobody/load")
    assert (answer.status, answer.json()["error"]) == (
        500, "failed to load 'nobody', failed to poll from model repository")  # fmt: skip
    put(tmp_path / "new" / "1" / "model.onnx", 9)
    # A replacement serves what the others serve, whatever lies on the disk or was loaded at the start.
    for pid in children(server.process.pid):
        before = children(server.process.pid)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda before=before: len(children(server.process.pid)) == 3
                 and children(server.process.pid) != before)  # fmt: skip
    connections = connect_to_all(server, 3)
    for connection in connections:
        wait_for(lambda connection=connection: on(connection, "/v2/models/n/infer", BODY).status == 200)
        assert on(connection, "/v2/models/m/infer", BODY).status == 404
        assert on(connection, "/v2/models/new/infer", BODY).status == 404
        states = {(each["name"], each["state"]) for each in on(connection, "/v2/repository/index").json()}
        assert ("n", "READY") in states
        assert ("m", "READY") not in states


def test_what_one_worker_cannot_load_none_serves(tmp_path: Path, start_server: Start) -> None:
    """The file is whole for the worker that comes first, and damaged before the other reads it."""
    file = tmp_path / "m" / "1" / "model.onnx"
    put(file, 1, weight=1 << 20)
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "m", "--workers", "2")
    connections = connect_to_all(server, 2)
    victim = children(server.process.pid)[1]
    put(file, 2, weight=1 << 20)
    os.kill(victim, signal.SIGSTOP)  # it reads the file later
    (alive,) = [each for each in connections if answers(each)]
    asked: list[Answer] = []
    thread = threading.Thread(target=lambda: asked.append(on(alive, "/v2/repository/models/m/load")))
    thread.start()
    time.sleep(0.5)  # for the other to load it; where that takes longer, neither loads it, which is told the same
    file.write_bytes(file.read_bytes()[:1000])
    os.kill(victim, signal.SIGCONT)
    thread.join(30)
    assert asked[0].status == 500
    assert asked[0].json()["code"] == "load_failed"
    for connection in connect_to_all(server, 2):
        assert answered(on(connection, "/v2/models/m/infer", BODY)) == 1
        (entry,) = on(connection, "/v2/repository/index").json()
        assert entry["state"] == "READY"
        assert "model.onnx" in entry["reason"]
    put(file, 3)
    assert load(server, "m").status == 200
    assert [answered(on(each, "/v2/models/m/infer", BODY)) for each in connect_to_all(server, 2)] == [3, 3]


def test_a_replacement_serves_what_the_others_serve_or_says_why_not(tmp_path: Path, start_server: Start) -> None:
    """Between two loads the files may change: whoever starts then has nothing else to answer with."""
    for name in ("same", "changed", "gone"):
        put(tmp_path / name / "1" / "model.onnx", 1)
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "*", "--workers", "2")
    put(tmp_path / "changed" / "1" / "model.onnx", 2)
    (tmp_path / "gone").rename(tmp_path / ".gone")
    before = children(server.process.pid)
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: len(children(server.process.pid)) == 2 and children(server.process.pid) != before)
    connections = connect_to_all(server, 2)
    wait_for(lambda: all(on(each, "/v2/models/same/infer", BODY).status == 200 for each in connections))
    for name in ("changed", "gone"):
        answers = [on(each, f"/v2/models/{name}/infer", BODY) for each in connections]
        assert sorted(each.status for each in answers) == [200, 503]
        (right,) = [each for each in answers if each.status == 200]
        assert answered(right) == 1
    reasons = {each["name"]: each["reason"] for connection in connections
               for each in on(connection, "/v2/repository/index").json() if each["reason"]}  # fmt: skip
    assert "load it anew" in reasons["changed"]
    assert "not in the repository any more" in reasons["gone"]
    assert load(server, "changed").status == 200
    assert [answered(on(each, "/v2/models/changed/infer", BODY)) for each in connections] == [2, 2]
    assert unload(server, "gone").status == 200
    assert [on(each, "/v2/models/gone/infer", BODY).status for each in connections] == [404, 404]


# ---- polling ------------------------------------------------------------------------------------------------------
def test_a_repository_that_is_polled_is_followed(tmp_path: Path, start_server: Start) -> None:
    put(tmp_path / "m" / "1" / "model.onnx", 1)
    server = start_server(tmp_path, "--model-control", "poll", "--poll-period", "0.1")
    assert load(server, "m").status == unload(server, "m").status == 503
    put(tmp_path / "m" / "2" / "model.onnx", 2)  # a version more
    wait_for(lambda: infer(server, "m") == 2)
    put(tmp_path / "m" / "2" / "model.onnx", 22)  # in the place of another
    wait_for(lambda: infer(server, "m") == 22)
    put(tmp_path / "n" / "7" / "model.onnx", 7)  # a model more
    wait_for(lambda: index(server).get(("n", "7"), ("", ""))[0] == "READY")
    assert infer(server, "n") == 7
    (tmp_path / "m" / "model.toml").write_text("max_batch_size = 3\n[aliases]\nold = 1\n")
    wait_for(lambda: ask(server, "GET", "/v2/models/m/config").json()["max_batch_size"] == 3)
    assert infer(server, "m@old") == 1
    (tmp_path / "m" / "model.toml").write_text("max_batch_sise = 3\n")
    wait_for(lambda: "max_batch_sise" in index(server)["m", "1"][1])
    assert (infer(server, "m"), infer(server, "m@old")) == (22, 1)
    (tmp_path / "m" / "model.toml").unlink()
    wait_for(lambda: index(server)["m", "1"] == ("READY", ""))
    (tmp_path / "m" / "model.toml").write_text("[version_policy]\nspecific = [9]\n")  # of which there is no folder
    wait_for(lambda: "asks for version 9" in index(server).get(("m", "9"), ("", ""))[1])
    assert infer(server, "m") == 22
    (tmp_path / "m" / "model.toml").unlink()
    wait_for(lambda: ("m", "9") not in index(server))
    (tmp_path / "m" / "2").rename(tmp_path / "m" / ".2")  # a version less
    wait_for(lambda: infer(server, "m") == 1)
    (tmp_path / "n").rename(tmp_path / ".n")  # a model less
    wait_for(lambda: ask(server, "POST", "/v2/models/n/infer", json.loads(BODY)).status == 404)
    wait_for(lambda: set(index(server)) == {("m", "1")})
    (tmp_path).rename(tmp_path.with_name("away"))  # which says nothing of the models
    wait_for(lambda: "stay as they are" in server.log())
    assert infer(server, "m") == 1
    (tmp_path.with_name("away")).rename(tmp_path)
    put(tmp_path / "m" / "3" / "model.onnx", 3)
    wait_for(lambda: infer(server, "m") == 3)


def test_what_arrives_by_halves_is_loaded_whole(tmp_path: Path, start_server: Start) -> None:
    file = tmp_path / "m" / "1" / "model.onnx"
    put(file, 1)
    server = start_server(tmp_path, "--model-control", "poll", "--poll-period", "0.05")
    whole = onnx_models.constant(tmp_path / ".new", 2, weight=1 << 20).read_bytes()
    (tmp_path / "m" / "2").mkdir()
    with (tmp_path / "m" / "2" / "model.onnx").open("wb", buffering=0) as copy:
        for start in range(0, len(whole), 1 << 18):
            copy.write(whole[start : start + (1 << 18)])
            time.sleep(0.2)
            assert infer(server, "m") == 1
            assert set(index(server)) == {("m", "1")}  # not even tried
    wait_for(lambda: infer(server, "m") == 2)
    # By another name at first, as a copy by rsync or a browser's download.
    (tmp_path / "m" / "3").mkdir()
    (tmp_path / "m" / "3" / ".model.onnx.x9").write_bytes(whole[:1000])
    (tmp_path / "m" / "3" / "model.onnx.part").write_bytes(whole[:1000])
    wait_for(lambda: ("m", "3") in index(server))
    assert infer(server, "m") == 2
    put(tmp_path / "m" / "3" / "model.onnx", 3)
    wait_for(lambda: infer(server, "m") == 3)


def test_polling_with_several_workers(tmp_path: Path, start_server: Start) -> None:
    put(tmp_path / "m" / "1" / "model.onnx", 1)
    server = start_server(tmp_path, "--model-control", "poll", "--poll-period", "0.1", "--workers", "2")
    for number in (2, 3):
        put(tmp_path / "m" / "1" / "model.onnx", number)
        connections = connect_to_all(server, 2)
        wait_for(lambda: numbers_of("m", connections) == [number] * 2)  # noqa: B023 - in this turn
        os.kill(children(server.process.pid)[0], signal.SIGKILL)  # the one that looks, at first
        wait_for(lambda: len(children(server.process.pid)) == 2)


def numbers_of(name: str, connections: list[Any]) -> list[float]:
    """What each connection's worker answers, where it does."""
    answers = [on(each, f"/v2/models/{name}/infer", BODY) for each in connections]
    return [answered(each) for each in answers if each.status != 503]


# ---- calls that meet each other, or the end -----------------------------------------------------------------------
def test_tritons_client_loads_and_unloads(tmp_path: Path, start_server: Start) -> None:
    triton = pytest.importorskip("tritonclient.http")
    put(tmp_path / "m" / "1" / "model.onnx", 1)
    put(tmp_path / "m" / "2" / "model.onnx", 2)
    put(tmp_path / "n" / "1" / "model.onnx", 3)
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "n")
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:

        def states() -> set[tuple[str, str, str, str]]:
            entries = client.get_model_repository_index()
            return {(each["name"], each["version"], each["state"], each["reason"]) for each in entries}

        assert client.is_server_ready()
        assert not client.is_model_ready("m")
        n = ("n", "1", "READY", "")
        assert states() == {n, ("m", "1", "UNAVAILABLE", "unloaded"), ("m", "2", "UNAVAILABLE", "unloaded")}
        client.load_model("m")
        assert client.is_model_ready("m")
        assert client.is_model_ready("m", "1")
        assert states() == {n, ("m", "1", "READY", ""), ("m", "2", "READY", "")}
        client.unload_model("m")
        assert not client.is_model_ready("m")
        assert not client.is_model_ready("m", "1")
        wait_for(lambda: states() == {n, ("m", "1", "UNAVAILABLE", "unloaded"), ("m", "2", "UNAVAILABLE", "unloaded")})
        client.unload_model("m", unload_dependents=True)
        client.unload_model("nobody")
        for call in (lambda: client.load_model("nobody"), lambda: client.load_model("m", config="{}"),
                     lambda: client.load_model("m", config="{}", files={"file:1/model.onnx": b"x"})):  # fmt: skip
            with pytest.raises(triton.InferenceServerException):
                call()
        assert states() == {n, ("m", "1", "UNAVAILABLE", "unloaded"), ("m", "2", "UNAVAILABLE", "unloaded")}


def test_loads_and_unloads_at_once_end_in_one_state(tmp_path: Path, start_server: Start) -> None:
    for name in ("a", "b"):
        put(tmp_path / name / "1" / "model.onnx", 1)
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "*")
    answers: list[int] = []

    def change(name: str, turn: int) -> None:
        answers.append((load if turn % 2 else unload)(server, name).status)

    threads = [threading.Thread(target=change, args=(name, turn)) for turn in range(20) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [200] * 40
    assert load(server, "a").status == load(server, "b").status == 200
    assert (infer(server, "a"), infer(server, "b")) == (1, 1)
    wait_for(lambda: set(index(server).values()) == {("READY", "")})


def test_a_model_that_goes_answers_what_it_has(
    tmp_path: Path, start_server: Start, traffic: Callable[..., list[Client]]
) -> None:
    put(tmp_path / "m" / "1" / "model.onnx", 1)
    onnx_models.slow(tmp_path / "slow" / "1" / "model.onnx")
    (tmp_path / "slow" / "model.toml").write_text("inline_budget_us = 0\n")
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "*")
    tensor = {"name": "steps", "shape": [1], "datatype": "INT64", "data": [60]}
    body = json.dumps({"inputs": [tensor]}).encode()
    waiting = []
    standard = "Expect: 100-continue"
    for headers in ((), (standard,), (), (standard,)):  # some run, some queue, on both lanes
        connection = server.connect()
        connection.sendall(post("/v2/models/slow/infer", body, *headers))
        waiting.append(connection)
    for headers in ((), (standard,)):
        waiting.append(server.connect())
        waiting[-1].sendall(post("/v2/models/slow/infer", body, *headers)[:-20])  # not all of it
    wait_for(lambda: b'fastinfer_queue_rows{model="slow",version="1"} 3.0' in ask(server, "GET", "/metrics").body)
    clients = traffic(server, "/v2/models/m/infer")
    assert unload(server, "slow").status == 200
    assert index(server)["slow", "1"][0] == "UNLOADING"
    assert ask(server, "POST", "/v2/models/slow/infer", json.loads(body)).status == 404
    for connection in waiting[:4]:
        assert read_answer(connection).status == 200
    for connection in waiting[4:]:
        connection.sendall(body[-20:])
    # The standard lane had begun the request when the model went, the fast lane had not.
    assert [read_answer(each).status for each in waiting[4:]] == [404, 200]
    wait_for(lambda: index(server)["slow", "1"] == ("UNAVAILABLE", "unloaded"))
    assert [client.faults for client in clients] == [[]] * len(clients)


def test_no_load_begins_while_the_server_drains(tmp_path: Path, start_server: Start) -> None:
    put(tmp_path / "m" / "1" / "model.onnx", 1)
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "m", "--drain-delay", "0.6")
    server.signal(signal.SIGTERM)
    wait_for(lambda: ask(server, "GET", "/v2/health/ready").status == 503)
    for answer in (load(server, "m"), unload(server, "m")):
        assert (answer.status, answer.json()["code"]) == (503, "shutting_down")
    assert infer(server, "m") == 1
    assert server.wait() == 0


# ---- a budget of memory -------------------------------------------------------------------------------------------
def resident(server: ServerProcess) -> set[str]:
    return {name for (name, _), (state, reason) in index(server).items() if state == "READY" and not reason}


def test_models_share_a_budget_of_memory(tmp_path: Path, start_server: Start) -> None:
    names = [f"m{number}" for number in range(6)]
    for number, name in enumerate(names):
        put(tmp_path / name / "1" / "model.onnx", number, weight=8 << 20)
        (tmp_path / name / "model.toml").write_text(QUICK)
    server = start_server(tmp_path, "--memory-budget", "40MiB", "--model-control", "explicit", "--load-model", "*")
    assert ask(server, "GET", "/v2/health/ready").status == 200
    assert set(index(server)) == {(name, "1") for name in names}
    assert 1 <= len(resident(server)) < 6
    for _ in range(2):  # each is asked for, and answers, whether it is in memory or not
        for number, name in enumerate(names):
            assert ask(server, "GET", f"/v2/models/{name}/ready").status == 200
            assert infer(server, name) == number
            assert name in resident(server)
            assert len(resident(server)) < 6
    last = resident(server)
    assert names[5] in last
    kept = names[5]
    for number in (0, 1, 2):  # what is asked for again and again stays
        assert infer(server, f"m{number}") == number
        assert infer(server, kept) == 5
        assert kept in resident(server)
    # All at once, more than have room: everybody gets an answer of the right model.
    answers: list[tuple[int, float]] = []

    def several(number: int) -> None:
        answers.extend((number, infer(server, names[number])) for _ in range(3))

    threads = [threading.Thread(target=several, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 18
    assert all(number == answer for number, answer in answers)
    # One that does not load any more says so, at once, and the others go on.
    (gone,) = sorted(set(names) - resident(server) - {kept})[:1]
    (tmp_path / gone / "1" / "model.onnx").write_bytes(b"no model")
    for _ in range(3):
        answer = ask(server, "POST", f"/v2/models/{gone}/infer", json.loads(BODY))
        assert (answer.status, answer.json()["code"]) == (503, "not_ready")
        assert answer.headers["retry-after"]
    assert index(server)[gone, "1"][0] == "UNAVAILABLE"
    assert ask(server, "GET", f"/v2/models/{gone}/ready").status == 503
    put(tmp_path / gone / "1" / "model.onnx", 42, weight=8 << 20)
    assert load(server, gone).status == 200
    assert infer(server, gone) == 42
    assert infer(server, kept) == 5
    assert unload(server, kept).status == 200
    assert ask(server, "POST", f"/v2/models/{kept}/infer", json.loads(BODY)).status == 404


def test_a_request_waits_for_its_model_for_as_long_as_it_may(tmp_path: Path, start_server: Start) -> None:
    for name in ("a", "b"):
        put(tmp_path / name / "1" / "model.onnx", 1, weight=8 << 20)
    put(tmp_path / "large" / "1" / "model.onnx", 1, weight=32 << 20)
    server = start_server(tmp_path, "--memory-budget", "12MiB")
    with server.connect() as connection:
        connection.sendall(post("/v2/models/large/infer", BODY))
        answer = read_answer(connection)
    assert answer.status == 503
    assert "memory_budget" in index(server)["large", "1"][1]
    (away,) = {"a", "b"} - resident(server)
    with server.connect() as connection:
        connection.sendall(post(f"/v2/models/{away}/infer", BODY, "X-Request-Timeout: 0.0001"))
        answer = read_answer(connection)
    assert (answer.status, answer.json()["code"]) == (503, "not_ready")
    wait_for(lambda: infer(server, away) == 1)


# ---- the command line ---------------------------------------------------------------------------------------------
def models(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `fastinfer models`."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fastinfer", "models", *arguments], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_the_command_lists_loads_and_unloads(tmp_path: Path, start_server: Start) -> None:
    put(tmp_path / "credit" / "1" / "model.onnx", 1)
    put(tmp_path / "n" / "12" / "model.onnx", 1)
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "n")
    address = f"127.0.0.1:{server.port}"
    code, out, err = models(server.url)
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["MODEL", "VERSION", "STATE", "REASON"],
        ["credit", "1", "UNAVAILABLE", "unloaded"],
        ["n", "12", "READY"],
    ]
    code, out, err = models(f"{server.url}/", "load", "credit", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == [{"name": "credit", "version": "1", "state": "READY", "reason": ""}]
    code, out, _ = models(address, "unload", "n")
    assert (code, out.splitlines()[1].split()[0]) == (0, "n")
    assert ask(server, "POST", "/v2/models/n/infer", json.loads(BODY)).status == 404
    code, out, err = models(address, "load", "nobody")
    assert (code, out) == (1, "")
    assert err == f"fastinfer: {address}: failed to load 'nobody', failed to poll from model repository\n"
    (tmp_path / "credit" / "1" / "model.onnx").write_bytes(b"damaged")
    code, out, err = models(address, "load", "credit")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "version 1: " in err


def test_the_command_says_what_is_wrong_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    for arguments, message in (
        ((f"http://127.0.0.1:{port}",), "Connection refused; is the server running there?"),
        (("ftp://127.0.0.1",), "is not the URL of a server"),
        (("http://127.0.0.1:99999",), "is not the URL of a server"),
        ((f"127.0.0.1:{port}", "drop", "m"), "'drop' is not something to do with a model: load or unload."),
        ((f"127.0.0.1:{port}", "load"), "load needs the NAME of a model."),
        ((), "missing argument 'URL'"),
    ):
        code, out, err = models(*arguments)
        assert (code, out) == (2, "")
        assert message in err.splitlines()[0]
