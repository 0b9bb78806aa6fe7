"""The conformance kit: what it says of fastinfer, of the real Triton, and of servers that know no protocol."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import triton_models
from conftest import ServerProcess

from fastinfer.cli import main
from fastinfer.conformance import kit, report
from fastinfer.conformance.server import Server
from fastinfer.errors import ConfigurationError

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import real_triton

ABSENT = real_triton.why_absent()
# Checks that Triton passes and fastinfer does not, and why that is right.
DIFFERENT: dict[str, str] = {}


def results(url: str, grpc: str | None, **options: Any) -> dict[str, kit.Outcome]:
    return {each.name: each for each in report.outcomes(Server(url, **options), grpc)}


@pytest.fixture(scope="module")
def ours(grpc_server: ServerProcess) -> dict[str, kit.Outcome]:
    return results(grpc_server.url, f"127.0.0.1:{grpc_server.grpc_port}")


def test_fastinfer_passes_every_check(ours: dict[str, kit.Outcome]) -> None:
    assert {name: each.note for name, each in ours.items() if each.result != kit.PASS} == {}
    assert len(ours) > 140


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real_triton.RealTriton]:
    folder = tmp_path_factory.mktemp("triton")
    server = real_triton.RealTriton(folder, triton_models.repository(folder / "models"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
def test_what_triton_passes_fastinfer_passes(ours: dict[str, kit.Outcome], triton: real_triton.RealTriton) -> None:
    theirs = results(f"http://127.0.0.1:{triton.http}", f"127.0.0.1:{triton.grpc}")
    assert theirs.keys() == ours.keys()
    passed = {name for name, each in theirs.items() if each.result == kit.PASS}
    failed = {name: each.note for name, each in theirs.items() if each.result == kit.FAIL}
    assert {name: ours[name].note for name in passed if ours[name].result != kit.PASS} == DIFFERENT
    # What this Triton does not do; a kit that blames it for more has become too strict.
    assert failed.keys() <= {"error.not-json", "binary.header-text", "error.broken-gzip"}, failed


class Careless(BaseHTTPRequestHandler):
    """Answers everything with the same."""

    protocol_version = "HTTP/1.1"
    body = b"{}"
    status = 200

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize(("status", "body"), [(200, b"{}"), (200, b"[]"), (500, b""), (200, b"nonsense"), (404, b"{}")])
def test_a_server_that_is_none(status: int, body: bytes) -> None:
    handler = type("Handler", (Careless,), {"status": status, "body": body})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as careless:
        threading.Thread(target=careless.serve_forever, daemon=True).start()
        seen = results(f"127.0.0.1:{careless.server_port}", None, wanted="model", timeout=5.0)
        careless.shutdown()
    assert seen["metadata.server"].result == kit.FAIL
    assert seen["error.unknown-path"].result == kit.FAIL
    assert {name for name, each in seen.items() if each.result == kit.PASS} <= {
        "health.live", "health.ready", "health.unknown-model", "extension.system-memory", "extension.cuda-memory",
    }  # fmt: skip


def test_the_command(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", server.url, "--model", "affine", "--differences"]) == 0
    out = capsys.readouterr().out
    assert "pass  infer.json" in out
    assert "skip  datatype.INT8.json" in out
    assert " 0 failed, " in out
    assert "Triton 400, fastinfer 404" in out
    assert main(["conformance", server.url, "--model", "nobody", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["failed"] > 0
    assert {"check", "says", "result", "note", "seconds"} == set(said["checks"][0])


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://", "http://127.0.0.1:x"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Server(url)


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    assert main(["conformance", f"http://127.0.0.1:{port}"]) == 2
    assert "does not answer" in capsys.readouterr().err


def test_a_path_below_the_host() -> None:
    server = Server("http://localhost:9/models/")
    assert (server.base, server.host, server.port) == ("/models", "localhost", 9)
