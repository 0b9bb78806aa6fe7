"""Every command and snippet of README.md and docs/ is run, every answer shown is the one that comes back.

A fenced block says what is done with it by the word after its language:
  `bash run`, `python run`      run, in one folder a page, in the order of the page
  `bash serve`                  a server that runs until the next one or the end of the page
  `json answer`, `json error`   what the command before it printed: all of it, or at least these members
  `toml model`, `toml settings` a model.toml, a fastinfer.toml
`make serve` in a block to serve stands for the server that it starts, on the demo model that `make test` builds too.
Other commands of pip and make need no word: what they name must exist.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import fastinfer
from fastinfer.settings import ModelConfig, resolve

ROOT = Path(__file__).parent.parent
PACKAGE = Path(fastinfer.__file__).parent.parent  # a checkout, or where it is installed
DEMO = ROOT / ".demo" / "models"  # what `make serve` makes and serves
PIPELINE = ROOT / ".demo" / "pipeline.joblib"  # stand in for a reader's own files
MODEL = DEMO / "credit" / "1" / "model.onnx"
# Locust has an environment of its own (`make test` makes it); a developer may have all in one.
LOCUST = next((str(path) for path in (ROOT / ".venv-load" / "bin" / "python",) if path.exists()), sys.executable)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)?[ ]*(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
RUN_BY_NOBODY = re.compile(r"(pip install .*|make \w+|\s*|#.*)")


class Block(NamedTuple):
    line: int
    language: str
    purpose: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(text.count("\n", 0, each.start()) + 1, each[1] or "", each[2], each[3])
            for each in FENCE.finditer(text)]


class Page:
    """A folder, a port and at most one server in which a page's blocks are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = ""
        self.server: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as sock, socket.create_server(("127.0.0.1", 0)) as other:
            self.port, self.grpc_port = sock.getsockname()[1], other.getsockname()[1]
        command = folder / ".bin" / "fastinfer"
        command.parent.mkdir()
        for name, source in {"pipeline.joblib": PIPELINE, "model.onnx": MODEL}.items():
            (folder / name).write_bytes(source.read_bytes())
        (folder / "loadtests").symlink_to(ROOT / "loadtests")
        # A page that says `python` means the environment with Locust; whatever imports fastinfer is a python block.
        for name, exact in {"fastinfer": f"{sys.executable} -m fastinfer", "python": LOCUST,
                            "locust": f"{LOCUST} -m locust"}.items():
            script = command.with_name(name)
            script.write_text(f'#!/bin/sh\nexec {exact} "$@"\n')
            script.chmod(0o755)
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FASTINFER_")},
            "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")])),
            "FASTINFER_PORT": str(self.port),
        }

    def do(self, block: Block) -> None:
        text = re.sub(r"(localhost|127\.0\.0\.1):8000", f"127.0.0.1:{self.port}", block.text)
        text = re.sub(r"(127\.0\.0\.1:|--grpc-port )8001", rf"\g<1>{self.grpc_port}", text)
        match block.language, block.purpose:
            case "bash", "run":
                self.run(["bash", "-euo", "pipefail", "-c", text])
            case "python", "run":
                self.run([sys.executable, "-c", text])
            case "bash", "serve":
                self.serve(text)
            case "json", "answer":
                assert matches(json.loads(text), json.loads(self.output)), self.output
            case "json", "error":
                answer = json.loads(self.output)
                assert "error" in answer
                assert matches(json.loads(text), {key: answer.get(key) for key in json.loads(text)}), self.output
            case "toml", "model":
                ModelConfig.read(self.write("model.toml", text))
            case "toml", "settings":
                resolve({}, {}, self.write("settings.toml", text))

    def write(self, name: str, text: str) -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name

    def run(self, command: list[str]) -> None:
        done = subprocess.run(command, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
        self.output = done.stdout

    def serve(self, command: str) -> None:
        self.stop()
        command = re.sub(r"^make serve$", f"fastinfer serve {shlex.quote(str(DEMO))}", command, flags=re.MULTILINE)
        self.server = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.environ)
        deadline = time.monotonic() + 60
        while not self.ready():
            assert self.server.poll() is None, f"{command} ended with {self.server.returncode}"
            assert time.monotonic() < deadline, f"{command} is not ready"
            time.sleep(0.05)

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def stop(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGTERM)
            assert self.server.wait(30) == 0
            self.server = None


def matches(shown: object, got: object) -> bool:
    """Whether an answer is the one shown: the same, but for the digits that a page does not print."""
    if isinstance(shown, dict) and isinstance(got, dict):
        return list(shown) == list(got) and all(matches(value, got[key]) for key, value in shown.items())
    if isinstance(shown, list) and isinstance(got, list):
        return len(shown) == len(got) and all(map(matches, shown, got))
    if isinstance(shown, float) and isinstance(got, float):
        return abs(shown - got) <= 0.0051
    return type(shown) is type(got) and shown == got


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    page = Page(tmp_path)
    yield page
    page.stop()


@pytest.mark.parametrize("path", [path for path in PAGES if any(block.purpose for block in blocks(path))],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_does_what_it_says(path, page):
    for block in blocks(path):
        try:
            page.do(block)
        except BaseException as error:
            error.add_note(f"{path.relative_to(ROOT)}:{block.line}")
            raise


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_command_or_snippet_is_left_out(path):
    purposes = {"bash": {"run", "serve"}, "sh": set(), "shell": set(), "python": {"run"}, "json": {"answer", "error"},
                "toml": {"model", "settings"}}
    for block in blocks(path):
        if block.language == "bash" and not block.purpose:
            assert all(RUN_BY_NOBODY.fullmatch(line) for line in block.text.splitlines()), f"{path}:{block.line}"
        elif block.language in purposes:
            assert block.purpose in purposes[block.language], f"{path}:{block.line}"


def test_the_extras_and_targets_that_are_named_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    makefile = ROOT / "Makefile"
    targets = re.findall(r"^(\w+):", makefile.read_text(), re.MULTILINE) if makefile.exists() else []
    for path in PAGES:
        text = path.read_text()
        named = {each.strip() for group in re.findall(r"fastinfer\[([\w, ]+)\]", text) for each in group.split(",")}
        assert named <= extras.keys(), path
        for block in blocks(path):
            assert set(re.findall(r"^make (\w+)", block.text, re.MULTILINE)) <= set(targets), f"{path}:{block.line}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for link in LINK.findall(FENCE.sub("", path.read_text())):
        if link.startswith(("http:", "https:")):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}, link


def test_the_reference_is_what_the_declarations_say():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate
    finally:
        sys.path.pop(0)
    stale = [str(path.relative_to(ROOT)) for path, text in generate.pages().items()
             if not path.exists() or path.read_text() != text]
    assert stale == [], "run: python docs/generate.py"


def test_every_route_is_in_the_reference_and_every_path_there_is_a_route(tmp_path):
    text = (ROOT / "docs" / "reference" / "http.md").read_text()
    written = set()
    for verb, path in re.findall(r"`(GET|POST) (/\S*)`", text):
        written |= {(verb, re.sub(r"\[(.*?)\]", part, path)) for part in ("", r"\1")}
    routes = {(verb, route.path) for route in fastinfer.asgi(tmp_path).routes
              for verb in route.app.methods if verb != "HEAD"}
    assert written == routes - {("GET", "/docs/{file}")}


def test_the_schemas_accept_and_refuse_what_the_settings_do():
    for name, good, bad in [
        ("model", {"max_batch_size": 64, "onnx": {"graph_optimization": "all"}}, {"max_batch_sise": 64}),
        ("settings", {"port": 1, "max_body_bytes": "64MiB"}, {"prot": 1}),
    ]:
        schema = json.loads((ROOT / "docs" / "reference" / f"{name}.schema.json").read_text())
        assert schema["additionalProperties"] is False
        assert good.keys() <= schema["properties"].keys()
        assert not bad.keys() & schema["properties"].keys()
