"""The servers that are compared, one entry each: what to install, and how to start it with one worker.

A new peer is a new entry here and, where it is a library and not a program, an application in servers/. Every one
answers ``POST /v2/models/<model>/infer`` on 127.0.0.1, so one client script drives them all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import environments
import nginx
import triton_server
from process import Launch, ServerError

SERVERS = Path(__file__).resolve().parent / "servers"
RUNTIME = ("onnxruntime", "numpy")
ASGI = ("uvicorn", "httptools", "uvloop")
UVICORN = ("{python}", "-m", "uvicorn", "--app-dir", str(SERVERS), "--host", "127.0.0.1", "--port", "{port}",
           "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")
MOSEC = ("{python}", str(SERVERS / "mosec_app.py"), "--address", "127.0.0.1", "--port", "{port}", "--log-level",
         "warning")


def nothing(launch: Launch) -> None:
    """Most peers need nothing on disk."""


@dataclass(frozen=True)
class Peer:
    """Attributes:
        title: as reports name it.
        command: with {python}, {port}, {model} (its name), {path} (its file) and {folder} (the peer's own, empty at
            each start) filled in.
        environment: folder of the virtual environment under .bench/venvs; "" takes fastinfer's.
        requirements: what pip installs there.
        unpacked: programs that are put there without what they depend on.
        environ: added to the process's environment, filled in alike.
        prepare: writes what must lie in the folder before the start.
        clean: removes what the server leaves outside of it.
        computes: whether it runs the model; a limit does not, and its answers are not checked.
        programs: what must be on the path, and how it gets there.
        note: how it was set up, for the report.
    """

    title: str
    command: tuple[str, ...]
    environment: str = ""
    requirements: tuple[str, ...] = ()
    unpacked: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Launch], None] = nothing
    clean: Callable[[Launch], None] = nothing
    computes: bool = True
    programs: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def triton_peer(title: str, note: str, *, delay_us: int | None) -> Peer:
    """The real Triton server. ``delay_us`` is its dynamic batcher's longest wait; None leaves the batcher out."""
    return Peer(
        title, triton_server.COMMAND, "triton", triton_server.REQUIREMENTS, triton_server.PROGRAM,
        triton_server.ENVIRON, lambda launch: triton_server.prepare(launch, delay_us), triton_server.clean,
        note=f"Triton 2.51 of the pytriton wheel, python backend, one instance, one onnxruntime thread, one HTTP "
             f"thread, gRPC and metrics off; {note}",
    )


PEERS: dict[str, Peer] = {
    "fastinfer": Peer(
        "fastinfer",
        ("{python}", "-P", "-m", "fastinfer", "serve", "{path}", "--name", "{model}", "--host", "127.0.0.1",
         "--port", "{port}", "--log-level", "warning"),
        note="defaults",
    ),
    "starlette": Peer(
        "Starlette + orjson", (*UVICORN, "starlette_app:app"), "starlette", ("starlette", "orjson", *ASGI, *RUNTIME),
        note="uvicorn with httptools and uvloop, orjson, one onnxruntime thread, run on the loop",
    ),
    "fastapi": Peer(
        "FastAPI", (*UVICORN, "fastapi_app:app"), "fastapi", ("fastapi", *ASGI, *RUNTIME),
        note="uvicorn with httptools and uvloop, pydantic models, one onnxruntime thread, run on the loop",
    ),
    "granian": Peer(
        "granian",
        ("{python}", "-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}",
         "--workers", "1", "--loop", "uvloop", "--no-ws", "--log-level", "warning", "--working-dir", str(SERVERS),
         "starlette_app:app"),
        "granian", ("granian[uvloop]", "starlette", "orjson", *RUNTIME),
        note="the Starlette application under a Rust server",
    ),
    "mosec": Peer(
        "mosec + orjson", MOSEC, "mosec", ("mosec", "msgpack", "orjson", *RUNTIME),
        note="JSON by orjson, no batching",
    ),
    "mosec-batch": Peer(
        "mosec + orjson, batching", MOSEC, "mosec", ("mosec", "msgpack", "orjson", *RUNTIME),
        environ={"BENCH_BATCH": "64"},
        note="JSON by orjson, batches of at most 64, the shortest wait it has (1 ms)",
    ),
    "triton": triton_peer("Triton", "dynamic batching, no delay", delay_us=0),
    "triton-delay": triton_peer("Triton, batch delay", "dynamic batching, 500 µs delay", delay_us=500),
    "triton-plain": triton_peer("Triton, no batcher", "no dynamic batching", delay_us=None),
    "litserve": Peer(
        "LitServe", ("{python}", str(SERVERS / "litserve_app.py"), "{port}"), "litserve",
        ("litserve", "orjson", *RUNTIME),
        note="one worker, one uvicorn process, no batching, fast_queue, orjson for the answer",
    ),
    "bentoml": Peer(
        "BentoML",
        ("{python}", "-m", "bentoml", "serve", "bentoml_service:Infer", "--working-dir", str(SERVERS), "--host",
         "127.0.0.1", "--port", "{port}", "--api-workers", "1"),
        "bentoml", ("bentoml", "orjson", "uvloop", "httptools", *RUNTIME),
        environ={"BENTOML_HOME": "{folder}", "BENTOML_DO_NOT_TRACK": "1"},
        note="one worker, access log, metrics and tracing off, pydantic tensors",
    ),
    "mlserver": Peer(
        "MLServer", ("{python}", "-m", "mlserver.cli.main", "start", "{folder}"), "mlserver",
        ("mlserver", "uvloop<0.22", "httptools", "orjson", *RUNTIME), environ={"PYTHONPATH": str(SERVERS)},
        prepare=lambda launch: mlserver_repository(launch),
        note="one process (no parallel workers), debug and metrics off; uvloop < 0.22, since newer ones do not start",
    ),
    "constant": Peer(
        "uvloop constant", ("{python}", str(SERVERS / "constant.py"), "{port}"), "starlette",
        ("starlette", "orjson", *ASGI, *RUNTIME),
        computes=False, note="a limit: a uvloop protocol that looks at nothing and runs no model",
    ),
    "nginx": Peer(
        "nginx static", nginx.COMMAND, prepare=nginx.prepare, computes=False,
        programs={"nginx": "Debian: apt-get install --no-install-recommends nginx-light"},
        note="a limit: one worker, a fixed answer from its configuration, no log",
    ),
}


def mlserver_repository(launch: Launch) -> None:
    """Settings of the server and of its one model."""
    import json

    settings = {"host": "127.0.0.1", "http_port": launch.port, "grpc_port": launch.spare_port, "parallel_workers": 0,
                "debug": False, "metrics_endpoint": None, "use_structured_logging": False,
                "logging_settings": {"version": 1, "root": {"level": "WARNING"}}}
    (launch.folder / "settings.json").write_text(json.dumps(settings))
    (launch.folder / "model-settings.json").write_text(json.dumps(
        {"name": launch.model, "implementation": "mlserver_model.OnnxModel", "parameters": {"version": "1"}}))


def interpreter(peer: Peer, given: str, base: str) -> str:
    """The peer's Python, its environment made first where it is missing.

    Raises:
        InstallError: pip failed.
        ServerError: a program is missing.
    """
    for program, source in peer.programs.items():
        if shutil.which(program) is None:
            raise ServerError(f"{program} is not installed ({source})")
    if not peer.environment:
        return given
    return environments.ensure(peer.environment, peer.requirements, base, unpacked=peer.unpacked)
