"""The servers that are compared, one entry each: what to install, and how to start it with one worker.

A new peer is a new entry here and, where it is a library and not a program, an application in servers/. Every one
answers ``POST /v2/models/<model>/infer`` on 127.0.0.1, so one client script drives them all.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from process import clean_environment

HERE = Path(__file__).resolve().parent
SERVERS = HERE / "servers"
VENVS = HERE.parent / ".bench" / "venvs"
RUNTIME = ("onnxruntime", "numpy")
ASGI = ("uvicorn", "httptools", "uvloop")
UVICORN = ("{python}", "-m", "uvicorn", "--app-dir", str(SERVERS), "--host", "127.0.0.1", "--port", "{port}",
           "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")


@dataclass(frozen=True)
class Peer:
    """Attributes:
        command: with {python}, {port}, {model} (its name) and {path} (its file) filled in.
        environment: folder of the virtual environment under .bench/venvs; "" takes the interpreter given.
        requirements: what pip installs there.
        environ: added to the process's environment.
        computes: whether it runs the model; a limit does not, and its answers are not checked.
        note: how it was set up, for the report.
    """

    command: tuple[str, ...]
    environment: str = ""
    requirements: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    computes: bool = True
    note: str = ""


PEERS: dict[str, Peer] = {
    "fastinfer": Peer(
        ("{python}", "-P", "-m", "fastinfer", "serve", "{path}", "--name", "{model}", "--host", "127.0.0.1",
         "--port", "{port}", "--log-level", "warning"),
        note="defaults",
    ),
    "starlette": Peer(
        (*UVICORN, "starlette_app:app"), "starlette", ("starlette", "orjson", *ASGI, *RUNTIME),
        note="uvicorn with httptools and uvloop, orjson, one onnxruntime thread, run on the loop",
    ),
    "fastapi": Peer(
        (*UVICORN, "fastapi_app:app"), "fastapi", ("fastapi", *ASGI, *RUNTIME),
        note="uvicorn with httptools and uvloop, pydantic models, one onnxruntime thread, run on the loop",
    ),
    "granian": Peer(
        ("{python}", "-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}",
         "--workers", "1", "--loop", "uvloop", "--no-ws", "--log-level", "warning", "--working-dir", str(SERVERS),
         "starlette_app:app"),
        "granian", ("granian[uvloop]", "starlette", "orjson", *RUNTIME),
        note="the Starlette application under a Rust server",
    ),
    "mosec": Peer(
        ("{python}", str(SERVERS / "mosec_app.py"), "--address", "127.0.0.1", "--port", "{port}", "--log-level",
         "warning"),
        "mosec", ("mosec", "msgpack", "orjson", *RUNTIME),
        note="JSON by orjson, no batching",
    ),
    "mosec-batch": Peer(
        ("{python}", str(SERVERS / "mosec_app.py"), "--address", "127.0.0.1", "--port", "{port}", "--log-level",
         "warning"),
        "mosec", ("mosec", "msgpack", "orjson", *RUNTIME), {"BENCH_BATCH": "64"},
        note="JSON by orjson, batches of at most 64, the shortest wait it has (1 ms)",
    ),
    "constant": Peer(
        ("{python}", str(SERVERS / "constant.py"), "{port}"), "starlette", ("starlette", "orjson", *ASGI, *RUNTIME),
        computes=False, note="a limit: a uvloop protocol that looks at nothing and runs no model",
    ),
}


def interpreter(peer: Peer, given: str) -> str:
    """The peer's Python, its environment made first where it is missing or of other requirements."""
    if not peer.environment:
        return given
    home = VENVS / peer.environment
    python, stamp = home / "bin" / "python", home / "requirements.txt"
    wanted = "\n".join(sorted(peer.requirements))
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {peer.environment}: {', '.join(peer.requirements)}", file=sys.stderr)
        venv.create(home, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *peer.requirements], check=True,
                       env=clean_environment({}), stdout=sys.stderr)
        stamp.write_text(wanted)
    return str(python)


def versions(python: str) -> dict[str, str]:
    """Installed packages of an environment, by importlib.metadata."""
    code = ("import importlib.metadata as m, platform; print('python', platform.python_version()); "
            "[print(d.name, d.version) for d in m.distributions()]")
    output = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    return dict(line.split(maxsplit=1) for line in output.splitlines())
