"""The connection of a running server: time-outs, clients that do not read, bounds in flight, disconnects, drain."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import struct
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import onnx_models
import pytest
from conftest import ServerProcess, Start, read_answer
from test_server import gauge, in_flight, slow_request, wait_for
from uvicorn.config import Config
from wire import chunked, message, parse_replies

from fastinfer.protocols import compatibility
from fastinfer.protocols import connection as module
from fastinfer.protocols.connection import Connection
from fastinfer.protocols.journal import Journal

MIB = 1 << 20
GOOD = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()
INFER = "/v2/models/affine/infer"
LANES = pytest.mark.parametrize("options", [(), ("--no-fast-lane",)], ids=["fast", "standard"])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    onnx_models.affine(root / "affine" / "1" / "model.onnx")
    onnx_models.identity(root / "wide" / "1" / "model.onnx", "FP32", ["n", "m"])
    onnx_models.slow(root / "slow" / "1" / "model.onnx")
    (root / "slow" / "model.toml").write_text("inline_budget_us = 0\n")
    return root


def resident(server: ServerProcess) -> int:
    """Bytes of memory."""
    with open(f"/proc/{server.process.pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def counted(server: ServerProcess, status: int, lane: str) -> int:
    text = httpx.get(f"{server.url}/metrics", trust_env=False).text
    found = [line for line in text.splitlines() if f'lane="{lane}"' in line and f'status="{status}"' in line]
    return sum(int(float(line.rpartition(" ")[2])) for line in found)


# ---- time-outs ----------------------------------------------------------------------------------------------------
class Dawdler:
    """A connection that sends something now and then, and when it was closed."""

    def __init__(self, server: ServerProcess, data: bytes, drop: bytes = b"", every: float = 0.2) -> None:
        self.socket = server.connect()
        self.started = self.sent = time.monotonic()
        self.drop, self.every = drop, every
        self.received = b""
        self.closed_after: float | None = None
        self.socket.sendall(data)

    def step(self) -> None:
        now = time.monotonic()
        if self.closed_after is not None:
            return
        try:
            if self.drop and now - self.sent > self.every:
                self.socket.sendall(self.drop)
                self.sent = now
            while select.select([self.socket], [], [], 0)[0]:
                data = self.socket.recv(65536)
                if not data:
                    self.closed_after = now - self.started
                    return
                self.received += data
        except (ConnectionResetError, BrokenPipeError):
            self.closed_after = now - self.started


def test_what_is_too_slow_is_closed_without_a_word(models: Path, start_server: Start) -> None:
    server = start_server(models, "--head-timeout", "1", "--idle-timeout", "3")
    half = b"POST /v2 HTTP/1.1\r\nHost: "
    long = message(INFER, GOOD + b" " * 100_000)
    odd = message(INFER + "?", bytes(100_000))
    early = {
        "half a head": Dawdler(server, half),
        "a head that trickles": Dawdler(server, half, b"a"),
        "a head behind an answer": Dawdler(server, message(INFER, GOOD) + half),
        "a line end": Dawdler(server, b"\r"),
    }
    idle = {
        "nothing": Dawdler(server, b""),
        "an answer": Dawdler(server, message(INFER, GOOD)),
        "an answer of the standard lane": Dawdler(server, message("/v2", None, method="GET")),
        "empty lines": Dawdler(server, b"\r\n" * 3),
    }
    late = {
        "a fast body": Dawdler(server, long[:500]),
        "a fast body that trickles": Dawdler(server, long[:500], b" " * 100),
        "a standard body that trickles": Dawdler(server, odd[:500], b"\0" * 100),
        "chunks that trickle": Dawdler(server, message(INFER, None, "Transfer-Encoding: chunked"), chunked(b"a")[:6]),
        "a body that is expected": Dawdler(server, message(INFER, GOOD, "Expect: 100-continue")[: -len(GOOD)]),
    }
    kept = {
        "a fast body, fast enough": Dawdler(server, long[:500], b" " * 1000),
        "a standard body, fast enough": Dawdler(server, odd[:500], b"\0" * 1000),
    }
    behind = Dawdler(server, slow_request(2500) + half)
    everything = [*early.values(), *idle.values(), *late.values(), *kept.values(), behind]
    began = time.monotonic()
    while time.monotonic() < began + 14 or (not behind.closed_after and time.monotonic() < began + 60):
        for each in everything:  # behind a run that other programs at work on the machine make longer
            each.step()
        if all(each.closed_after for each in everything if each not in kept.values()):
            break
        time.sleep(0.05)
    for each in everything:
        each.socket.close()
    times = {name: each.closed_after for group in (early, idle, late, kept) for name, each in group.items()}
    assert all(0.9 < (times[name] or 99) < 3.5 for name in early), times
    assert all(2.9 < (times[name] or 99) < 6 for name in idle), times
    assert all(9.5 < (times[name] or 99) < 13.5 for name in late), times
    assert all(times[name] is None for name in kept), times
    # An answer that is due is never lost to the next head's clock.
    assert [reply.status for reply in parse_replies(behind.received)[0]] == [200]
    assert behind.closed_after
    answers = {name: parse_replies(each.received) for group in (early, idle, late) for name, each in group.items()}
    assert all(rest == b"" for _, rest in answers.values())
    assert {name for name, (replies, _) in answers.items() if replies} == {
        "a head behind an answer", "an answer", "an answer of the standard lane", "a body that is expected",
    }  # fmt: skip
    assert [reply.status for reply in answers["a body that is expected"][0]] == [100]


class Socket:
    """A transport whose write buffer the test fills and empties."""

    def __init__(self) -> None:
        self.unsent = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def swept() -> tuple[Any, Socket]:
    connection: Any = Connection.__new__(Connection)
    connection.transport = transport = Socket()
    connection.wire = SimpleNamespace(body_since=0, head_since=0, idle_since=0)
    connection.unsent, connection.taken_at = 0, 0.0
    return connection, transport


def test_a_client_that_reads_nothing_is_given_up(swept: tuple[Any, Socket]) -> None:
    connection, transport = swept
    transport.unsent = 1000
    for second in range(100, 200):
        connection.sweep(float(second))
        if transport.aborted:
            break
    assert module.WRITE_STALL < second - 100 <= module.WRITE_STALL + 2


def test_a_client_that_reads_slowly_is_not(swept: tuple[Any, Socket]) -> None:
    connection, transport = swept
    transport.unsent = 100 * MIB
    for second in range(100, 400):
        transport.unsent -= 1000
        connection.sweep(float(second))
    transport.unsent = 0
    connection.sweep(1000.0)
    transport.unsent = 5
    connection.sweep(1001.0)
    assert not transport.aborted


# ---- clients that do not read -------------------------------------------------------------------------------------
@LANES
def test_a_client_that_does_not_read_is_not_read_and_gets_all_its_answers_later(
    models: Path, start_server: Start, options: tuple[str, ...]
) -> None:
    server = start_server(models, *options)
    count, width = 1500, 10_000
    tensor = f'{{"name":"x","shape":[1,{width}],"datatype":"FP32","data":[{",".join(["1"] * width)}]}}'
    requests = [
        message("/v2/models/wide/infer", f'{{"id":"{i}","inputs":[{tensor}]}}'.encode()) for i in range(count)
    ]
    with server.connect() as connection:
        read_answer_of(connection, requests[0])
        before = resident(server)
        connection.settimeout(60)
        sender = threading.Thread(target=connection.sendall, args=(b"".join(requests),), daemon=True)
        sender.start()
        done = -1
        while done != (done := answered(server)):  # until nothing moves any more
            assert in_flight(server) <= 32
            time.sleep(0.5)
        assert sender.is_alive(), "the server has read everything"
        assert done < count
        assert resident(server) - before < 32 * MIB
        with server.connect() as other:  # nobody else is held up
            read_answer_of(other, message(INFER, GOOD))
        reader = Reader(connection)
        for i in range(count):
            status, body = reader.next()
            assert (status, json.loads(body[: body.index(b',"outputs"')] + b"}")["id"]) == (200, str(i))
        sender.join(10)
        assert not sender.is_alive()
        assert resident(server) - before < 48 * MIB


def answered(server: ServerProcess) -> int:
    (stats,) = httpx.get(f"{server.url}/v2/models/wide/stats", trust_env=False).json()["model_stats"]
    return int(stats["inference_stats"]["success"]["count"])


def read_answer_of(connection: socket.socket, request: bytes) -> None:
    connection.sendall(request)
    assert read_answer(connection).status == 200


class Reader:
    """Answer after answer of a pipeline."""

    def __init__(self, connection: socket.socket) -> None:
        self.file = connection.makefile("rb")

    def next(self) -> tuple[int, bytes]:
        status = int(self.file.readline().split()[1])
        size = 0
        while (line := self.file.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                size = int(value)
        return status, self.file.read(size)


# ---- in flight ----------------------------------------------------------------------------------------------------
def test_32_requests_of_a_connection_are_in_flight(models: Path, start_server: Start) -> None:
    server = start_server(models)
    with server.connect() as connection:
        connection.sendall(slow_request(500) + slow_request(1) * 69)
        wait_for(lambda: in_flight(server) == 32)
        seen = {in_flight(server) for _ in range(20)}
        assert max(seen) <= 32
        reader = Reader(connection)
        steps = [json.loads(reader.next()[1])["outputs"][0]["data"][0] for _ in range(70)]
        assert steps == [500] + [1] * 69
    assert counted(server, 200, "fast") == 70


@LANES
def test_requests_in_flight_leave_with_their_client(
    models: Path, start_server: Start, options: tuple[str, ...]
) -> None:
    server = start_server(models, *options)
    lane, pipelined = ("standard", 1) if options else ("fast", 10)  # the standard lane begins one at a time
    running = server.connect()
    running.sendall(slow_request(3000))
    wait_for(lambda: in_flight(server) == 1)
    leaver = server.connect()
    leaver.sendall(slow_request(1) * 10)
    wait_for(lambda: in_flight(server) == 1 + pipelined)
    leaver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leave with a reset
    leaver.close()
    wait_for(lambda: in_flight(server) == 1)
    assert counted(server, 499, lane) == pipelined
    with running:
        assert read_answer(running).status == 200
        read_answer_of(running, slow_request(1))


@LANES
def test_a_drain_answers_what_is_in_flight_and_says_that_it_closes(
    models: Path, start_server: Start, options: tuple[str, ...]
) -> None:
    server = start_server(models, *options)
    count = 1 if options else 5  # the standard lane closes after the request it is at
    with server.connect() as connection, server.connect() as half, server.connect() as idle:
        read_answer_of(idle, message(INFER, GOOD))
        request = message(INFER, GOOD)
        half.sendall(request[:-5])
        connection.sendall(slow_request(3000) + slow_request(1) * (count - 1) + message("/v2", None, method="GET"))
        wait_for(lambda: in_flight(server) == count)
        server.signal(signal.SIGTERM)
        wait_for(lambda: "draining" in server.log())
        assert idle.recv(1) == b""
        half.sendall(request[-5:])
        last = read_answer(half)
        assert (last.status, last.headers["connection"]) == (200, "close")
        received = b""
        while piece := connection.recv(65536):
            received += piece
        replies, rest = parse_replies(received)
        assert [reply.status for reply in replies] == [200] * count
        assert [reply.field(b"connection") for reply in replies] == [None] * (count - 1) + [b"close"]
        assert rest == b""
    assert server.wait(10) == 0


# ---- bounds on memory ---------------------------------------------------------------------------------------------
def test_a_body_behind_a_slow_answer_is_not_taken_into_memory(models: Path, start_server: Start) -> None:
    server = start_server(models)
    with server.connect() as connection:
        connection.sendall(slow_request(20_000) + message("/v2", None, "Transfer-Encoding: chunked"))
        wait_for(lambda: in_flight(server) == 1)
        before = resident(server)
        connection.settimeout(1)
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        sent = 0
        try:
            while sent < 64 * MIB:
                connection.sendall(chunk)
                sent += len(chunk)
        except TimeoutError:
            pass
        assert sent < 32 * MIB  # what the kernel's buffers take
        assert resident(server) - before < 8 * MIB


# ---- errors of ours -----------------------------------------------------------------------------------------------
def test_an_error_that_nobody_foresaw_shows_nothing_of_itself() -> None:
    counts: list[tuple[Any, ...]] = []
    connection: Any = Connection.__new__(Connection)
    connection.service = SimpleNamespace(counters=SimpleNamespace(count=lambda *args: counts.append(args)))
    connection.journal = Journal(access_log=False)
    connection.server_state = SimpleNamespace(default_headers=[(b"date", b"now")])
    ticket: Any = SimpleNamespace(endpoint=SimpleNamespace(name="m", version="1"))
    data = connection.failure(ValueError("secret"), b"id", True, ticket)
    (reply,), rest = parse_replies(data)
    assert (reply.status, reply.field(b"connection"), reply.field(b"x-request-id")) == (500, b"close", b"id")
    assert rest == b""
    assert json.loads(reply.body)["code"] == "internal"
    assert b"secret" not in data
    assert counts == [("m", "1", 500, "fast")]


# ---- another uvicorn ----------------------------------------------------------------------------------------------
OTHERS = {
    "HttpToolsProtocol._unset_keepalive_if_required": """
        private = module.HttpToolsProtocol._unset_keepalive_if_required
        del module.HttpToolsProtocol._unset_keepalive_if_required
        module.HttpToolsProtocol.__getattr__ = lambda self, name: private.__get__(self)
    """,
    "httptools_impl.STATUS_LINE": "module.STATUS_LINE = collections.UserDict(module.STATUS_LINE)",
    "RequestResponseCycle.keep_alive": """
        module.RequestResponseCycle.keep_alive = property(
            lambda self: self.__dict__["keep"], lambda self, value: self.__dict__.update(keep=int(value))
        )
    """,
}


@pytest.mark.parametrize("part", OTHERS)
def test_with_another_uvicorn_all_is_served_on_the_standard_lane_and_said(
    part: str, models: Path, start_server: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import collections\nimport uvicorn.protocols.http.httptools_impl as module\n"
    (tmp_path / "sitecustomize.py").write_text(source + textwrap.dedent(OTHERS[part]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    server = start_server(models)
    (warning,) = [record for record in server.records() if record["level"] == "warning"]
    assert part in warning["message"]
    assert "standard lane" in warning["message"]
    with server.connect() as connection:
        for _ in range(2):
            connection.sendall(message(INFER, GOOD))
            answered = read_answer(connection)
            assert (answered.status, answered.json()["model_name"]) == (200, "affine")
    assert (counted(server, 200, "standard"), counted(server, 200, "fast")) == (2, 0)
    assert server.stop() == 0


def test_this_uvicorn_is_the_one_that_the_connection_was_made_for(server: ServerProcess) -> None:
    async def look() -> list[str]:
        return compatibility.faults(Config(server), asyncio.get_running_loop())  # type: ignore[arg-type]

    assert asyncio.run(look()) == []


def test_a_gauge_comes_back_to_nothing(server: ServerProcess) -> None:
    """After all that other tests did to this server: nothing is in flight any more."""
    wait_for(lambda: gauge(server, "fastinfer_requests_in_flight") == 0)
    wait_for(lambda: gauge(server, "fastinfer_body_bytes_in_flight") == 0)
