"""The application in other hands: mounted in another application, and under another server."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from socket import socket

import httpx
import pytest
from conftest import PACKAGE
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import fastinfer
from fastinfer.errors import ConfigurationError

RECORDS = {"records": [{"x": [0, 0, 0, 0]}]}


def works(client: httpx.Client, prefix: str = "") -> None:
    answer = client.post(f"{prefix}/v1/models/affine:predict", json=RECORDS)
    assert answer.json()["predictions"] == [{"y": [0.5, -0.25, 0.125]}]
    assert client.get(f"{prefix}/v2/health/ready").status_code == 200
    assert client.get(f"{prefix}/nowhere").json()["code"] == "not_found"
    assert client.get(f"{prefix}/v2/models/affine/infer").status_code == 405


def test_alone_with_its_lifespan(repository: Path) -> None:
    with TestClient(fastinfer.asgi(repository / "affine")) as client:
        works(client)


def test_mounted_without_a_lifespan_it_loads_on_the_first_request(repository: Path) -> None:
    app = Starlette(routes=[Mount("/models", fastinfer.asgi(repository / "affine"))])
    client = TestClient(app)  # every request on an event loop of its own
    assert client.get("/models/v2/health/live").status_code == 200
    for _ in range(3):
        works(client, "/models")


def test_mounted_with_the_lifespan_passed_on_it_is_ready_at_once(repository: Path) -> None:
    models = fastinfer.asgi(repository / "affine")
    app = Starlette(lifespan=models.lifespan, routes=[Mount("/models", models)])
    with TestClient(app) as client:
        assert client.get("/models/v2/health/ready").status_code == 200
        works(client, "/models")


def test_where_nothing_can_be_loaded_a_request_is_told_no_more(tmp_path: Path) -> None:
    client = TestClient(Starlette(routes=[Mount("/models", fastinfer.asgi(tmp_path / "nothing"))]))
    for _ in range(2):
        answer = client.post("/models/v1/models/affine:predict", json=RECORDS)
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert "nothing" not in answer.text
        assert client.get("/models/v2/health/ready").status_code == 503


def test_middleware_of_the_users_own(repository: Path) -> None:
    class Stamp:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def stamped(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"].append((b"x-stamp", b"1"))
                await send(message)

            await self.app(scope, receive, stamped)

    app = fastinfer.asgi(repository / "affine")
    app.add_middleware(Stamp)
    with TestClient(app) as client:
        works(client)
        assert client.get("/v2").headers["x-stamp"] == "1"


def test_pages_know_the_prefix_they_are_mounted_under(repository: Path) -> None:
    app = Starlette(routes=[Mount("/models", fastinfer.asgi(repository / "affine"))])
    client = TestClient(app)
    assert "http://testserver/models/v1/models/affine:predict" in client.get("/models/").text
    assert client.get("/models/openapi.json").json()["servers"] == [{"url": "/models"}]


def test_options_are_checked_when_the_application_is_made(repository: Path) -> None:
    assert fastinfer.asgi(repository, max_body_bytes="1MiB").service.settings.max_body_bytes == 1 << 20
    with pytest.raises(ConfigurationError, match="max_body"):
        fastinfer.asgi(repository, max_body=1)
    with pytest.raises(ConfigurationError, match="max_body_bytes"):
        fastinfer.asgi(repository, max_body_bytes="lots")


@pytest.fixture
def plain_uvicorn(repository: Path, tmp_path: Path) -> Iterator[httpx.Client]:
    """Uvicorn as anybody runs it, over a module of three lines."""
    path = str(repository / "affine")
    (tmp_path / "service.py").write_text(f"import fastinfer\n\napp = fastinfer.asgi({path!r})\n")
    with closing(socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "service:app", "--port", str(port), "--log-level", "warning"]
    environment = {"PYTHONPATH": f"{PACKAGE}:{tmp_path}", "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                client.get("/v2/health/live")
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        yield client
    process.terminate()
    process.wait(30)


def test_under_a_plain_uvicorn(plain_uvicorn: httpx.Client) -> None:
    works(plain_uvicorn)
    assert plain_uvicorn.get("/docs").status_code == 200
