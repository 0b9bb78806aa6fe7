"""Models that come and go while the server serves: at the HTTP surface, with traffic."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx_models
import pytest
from conftest import Answer, ServerProcess, Start, post, read_answer

SWAPS = int(os.environ.get("FASTINFER_SWAPS", "100"))  # of a model under load
RELOADS = int(os.environ.get("FASTINFER_RELOADS", "150"))  # after which the memory is looked at
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
            Client(server, path), Client(server, path, depth=4), Client(server, path, "Prefer: x"),
            Client(server, path, "Expect: 100-continue"),
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
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "m")
    clients = traffic(server, "/v2/models/m/infer")
    for number in range(1, SWAPS + 1):
        put(file, number)
        answer = load(server, "m")
        assert (answer.status, answer.body) == (200, b"")
        assert infer(server, "m") == number  # from the answer on, only the new one answers
    before = [len(client.numbers) for client in clients]
    wait_for(lambda: all(len(each.numbers) > count for each, count in zip(clients, before, strict=True)))
    assert [client.faults for client in clients] == [[]] * len(clients)
    for client in clients:
        assert client.numbers == sorted(client.numbers)
        assert client.numbers[-1] == SWAPS


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


def on(connection: Any, path: str, body: bytes = b"") -> Answer:
    connection.sendall(post(path, body))
    return read_answer(connection)


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
