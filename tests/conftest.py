"""Servers to test against: real processes on free loopback ports."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import onnx_models
import pytest

import fastinfer

PACKAGE = Path(fastinfer.__file__).parent.parent  # a checkout, or where it is installed
START = 60.0  # seconds; a slow machine under load must not fail a test
hypothesis.settings.register_profile("unhurried", deadline=None)  # nor must a preempted example
hypothesis.settings.load_profile("unhurried")
ADDRESS = re.compile(r"fastinfer \S+ at http://127\.0\.0\.1:(\d+)")


class ServerProcess:
    """`python -m fastinfer serve` and what it printed."""

    def __init__(self, path: Path, *options: str, folder: Path) -> None:
        self.err = folder / "stderr"
        environment = {name: text for name, text in os.environ.items() if not name.startswith("FASTINFER_")}
        search = [str(PACKAGE), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, search))
        with self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fastinfer", "serve", str(path), "--port", "0", *options],
                cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=err, text=True,
            )  # fmt: skip
        self.out: list[str] = []
        self.port = 0
        self.grpc_port = 0
        self._said = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.out.append(line.rstrip("\n"))
            found = ADDRESS.match(line)
            if found:
                self.port = int(found.group(1))
            if line.startswith("  gRPC at "):
                self.grpc_port = int(line.rpartition(":")[2])
            if line.startswith("  curl "):
                self._said.set()
        self._said.set()

    def wait_until_ready(self) -> ServerProcess:
        assert self._said.wait(START), "the server said nothing"
        assert self.process.poll() is None, self.log()
        return self

    def log(self) -> str:
        return self.err.read_text()

    def records(self) -> list[dict[str, Any]]:
        """The log's JSON records."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def raw(self, data: bytes) -> Answer:
        """Send bytes on a connection of their own, and read one answer, whole."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_answer(connection)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code

    def stop(self) -> int:
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.wait()


class Answer(HTTPResponse):
    """An answer whose body has been read."""

    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def read_answer(connection: socket.socket, method: str = "POST") -> Answer:
    """The next answer on a connection."""
    answer = Answer(connection, method=method)
    answer.begin()
    answer.body = answer.read()
    return answer


def post(path: str, body: bytes, *headers: str) -> bytes:
    """The bytes of a POST with a Content-Length."""
    head = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


DECISION = """
[decision]
version = "7"
missing = "ask a person"
[decision.classes]
2 = 0.25
[decision.names]
0 = "approve"
1 = "review \\"soon\\""
"""
DECISION_ONLY = """
[decision]
positive = 1
thresholds = [0.1, 0.5]
labels = ["approve", "review", "décline"]
missing = "review"
only = true
[decision.score]
scale = "log_odds"
factor = -28.85
offset = 600
decimals = 0
low = 300
high = 850
"""


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with every model of onnx_models that loads."""
    root = tmp_path_factory.mktemp("models")
    for datatype in onnx_models.ONNX_TYPES:
        onnx_models.identity(root / f"identity_{datatype.lower()}" / "1" / "model.onnx", datatype)
    onnx_models.identity(root / "words" / "1" / "model.onnx", "BYTES", ["n", 1])
    onnx_models.identity(root / "wide" / "1" / "model.onnx", "FP32", ["n", "m"])
    onnx_models.affine(root / "affine" / "1" / "model.onnx")
    onnx_models.affine(root / "affine" / "2" / "model.onnx")
    onnx_models.two_inputs(root / "two" / "1" / "model.onnx")
    onnx_models.classifier(root / "classifier" / "1" / "model.onnx")
    onnx_models.fixed_batch(root / "fixed" / "1" / "model.onnx")
    onnx_models.picky(root / "picky" / "1" / "model.onnx")
    onnx_models.judged(root / "decided" / "1" / "model.onnx", columns=3)
    onnx_models.judged(root / "decided" / "2" / "model.onnx", "FP64")
    (root / "decided" / "model.toml").write_text(DECISION)
    (root / "decided" / "2" / "decision.toml").write_text(DECISION_ONLY)
    onnx_models.with_program(root / "people" / "1")
    onnx_models.with_program(root / "lenient" / "1")
    (root / "lenient" / "model.toml").write_text('extra_fields = "ignore"\n')
    onnx_models.with_dates(root / "visits" / "1")
    return root


Start = Callable[..., ServerProcess]


@contextmanager
def starting(factory: pytest.TempPathFactory) -> Iterator[Start]:
    """start(path, *options): a server, by default one that has loaded; all are stopped at the end."""
    servers: list[ServerProcess] = []

    def start(path: Path, *options: str, wait: bool = True) -> ServerProcess:
        server = ServerProcess(path, *options, folder=factory.mktemp("server"))
        servers.append(server)
        return server.wait_until_ready() if wait else server

    try:
        yield start
    finally:
        for server in servers:
            server.stop()


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Servers for one test."""
    with starting(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server over the whole repository, with default settings but a small body limit."""
    with starting(tmp_path_factory) as start:
        yield start(repository, "--max-body-bytes", "4MiB")


@pytest.fixture(scope="session")
def standard_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The same without the fast lane: whatever `server` answers, this one answers too."""
    with starting(tmp_path_factory) as start:
        yield start(repository, "--max-body-bytes", "4MiB", "--no-fast-lane")


@pytest.fixture(scope="session")
def grpc_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The same with gRPC beside it."""
    pytest.importorskip("grpc", reason="pip install 'fastinfer[grpc]'")
    with starting(tmp_path_factory) as start:
        yield start(repository, "--max-body-bytes", "4MiB", "--grpc-port", "0")


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client
