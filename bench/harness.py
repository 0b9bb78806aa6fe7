"""Servers that are driven in turn: started, checked, measured window by window, stopped."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import environments
import models
import numpy as np
import wrk
from peers import PEERS, interpreter
from process import Cores, Launch, Server, ServerError, core_busy_seconds, cpu_seconds, free_port, free_ports

BENCH = Path(__file__).resolve().parent.parent / ".bench"
WARM_SECONDS = 1
IDLE_SHARE = 0.02  # of the core: more than this used by the resting server spoils the window
LOAD_TIMEOUT = 300  # a thousand models
FOREIGN_SHARE = 0.05  # the kernel's own work is in it
CHECKED = 8
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Measurement:
    """One window of one server. Latencies in microseconds; ``resting_cpu`` is the other servers' share of the core,
    ``foreign_cpu`` that of everybody else."""

    rate: float
    p50_us: float
    p99_us: float
    cpu_us: float
    failed: int
    resting_cpu: float
    foreign_cpu: float


@dataclass(frozen=True)
class Side:
    """One of two that are compared: a server and what is asked of it."""

    name: str
    server: Server
    script: Path


def post(port: int, path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body,
                                     headers or {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return bytes(response.read())


def answers(port: int, path: str, body: bytes) -> bool:
    try:
        post(port, path, body)
    except (OSError, http.client.HTTPException):
        return False
    return True


@contextlib.contextmanager
def started(name: str, model: str, options: argparse.Namespace, cores: Cores) -> Iterator[Server]:
    """A server that answers, and right: its probabilities are onnxruntime's.

    Raises:
        ServerError: it did not start, or answers wrongly.
        InstallError: its environment could not be made.
    """
    peer = PEERS[name]
    python = interpreter(peer, options.python, options.base_python)
    folder = BENCH / "work" / f"{name}-{model}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    port, spare = free_ports(2)
    launch = Launch(model, models.model_path(model), port, spare, folder, python)
    environ = {"BENCH_MODEL": str(launch.path), "BENCH_MODEL_NAME": model,
               **({} if peer.environment else pass_on(options)),
               **{key: launch.fill(value) for key, value in peer.environ.items()}}
    try:
        peer.prepare(launch)
        server = Server(name, [launch.fill(part) for part in peer.command], port=port, core=cores.server,
                        log=BENCH / "logs" / f"{name}-{model}.log", environ=environ)
        try:
            rows = wrk.rows()
            server.wait(lambda port: answers(port, wrk.infer_path(model), wrk.body(rows[0])))
            if peer.computes:
                check(server, model, rows)
            yield server
        finally:
            server.stop()
    finally:
        peer.clean(launch)


@contextlib.contextmanager
def serving(name: str, arguments: Sequence[str], options: argparse.Namespace, cores: Cores) -> Iterator[Server]:
    """fastinfer with other arguments than a peer's; ready when it says so."""
    port = free_port()
    command = [options.python, "-P", "-m", "fastinfer", "serve", *arguments, "--host", "127.0.0.1", "--port",
               str(port), "--log-level", "warning"]
    server = Server(name, command, port=port, core=cores.server, log=BENCH / "logs" / f"{name}.log",
                    environ=pass_on(options))
    try:
        server.wait(ready, timeout=LOAD_TIMEOUT)
        yield server
    finally:
        server.stop()


def ready(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=10).close()
    except (OSError, http.client.HTTPException):
        return False
    return True


def pass_on(options: argparse.Namespace) -> dict[str, str]:
    """PYTHONPATH, for a fastinfer that is run from its source tree; never to an environment that the harness made."""
    return {"PYTHONPATH": os.environ["PYTHONPATH"]} if options.given and "PYTHONPATH" in os.environ else {}


def ensure_models(names: Iterable[str], options: argparse.Namespace) -> None:
    """Make the models that are missing.

    Raises:
        ServerError: fastinfer's environment cannot.
    """
    models.ensure(names, options.python, pass_on(options))


@cache
def expected(model: str) -> list[Any]:
    """What onnxruntime gives for the first rows."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(models.model_path(model)), providers=["CPUExecutionProvider"])
    return [session.run(["probabilities"], {"input": row[None]})[0] for row in wrk.rows()[:CHECKED]]


def check(server: Server, model: str, rows: Any) -> None:
    for row, right in zip(rows, expected(model), strict=False):
        document = json.loads(post(server.port, wrk.infer_path(model), wrk.body(row)))
        given = {output["name"]: output["data"] for output in document["outputs"]}["probabilities"]
        if not np.allclose(np.ravel(given), right.ravel(), atol=TOLERANCE):
            raise ServerError(f"{server.name} answers {given} where onnxruntime has {right.tolist()}")


def measure(side: Side, others: Sequence[Server], connections: int, seconds: float, cores: Cores) -> Measurement:
    """One window of one side."""
    server = side.server
    resting = [other for other in others if other is not server]
    before, rested = cpu_seconds(server.pid), sum(cpu_seconds(other.pid) for other in resting)
    busy, began = core_busy_seconds(cores.server), time.monotonic()
    window = wrk.drive(server.port, side.script, connections=connections, seconds=seconds, core=cores.client)
    used, spent = cpu_seconds(server.pid) - before, time.monotonic() - began
    busy = core_busy_seconds(cores.server) - busy
    disturbed = sum(cpu_seconds(other.pid) for other in resting) - rested
    if not window.requests:
        raise ServerError(f"{side.name} answered nothing at {connections} connections")
    if used <= 0:
        raise ServerError(f"{side.name} ended while it was measured")
    return Measurement(window.requests / window.seconds, window.p50_us, window.p99_us, used / window.requests * 1e6,
                       window.failed, disturbed / spent, max(0.0, busy - used - disturbed) / spent)


Round = dict[str, Measurement]


def rounds(sides: Sequence[Side], connections: int, options: argparse.Namespace, cores: Cores) -> list[Round]:
    """Windows of all sides, warmed, in an order that turns round each time (A B, B A, …)."""
    servers = [side.server for side in sides]
    for side in sides:
        wrk.drive(side.server.port, side.script, connections=connections, seconds=WARM_SECONDS, core=cores.client)
    found: list[Round] = []
    for number in range(options.rounds):
        ordered = sides if number % 2 == 0 else sides[::-1]
        found.append({side.name: measure(side, servers, connections, options.seconds, cores) for side in ordered})
    for warning in warnings(found, connections):
        print(f"  ! {warning}", file=sys.stderr, flush=True)
    return found


def warnings(found: Sequence[Round], connections: int) -> Iterator[str]:
    for name in found[0]:
        failed = sum(measured[name].failed for measured in found)
        if failed:
            yield f"{name} at {connections}: {failed} requests failed; its figures do not count"
        resting = max(measured[name].resting_cpu for measured in found)
        if resting > IDLE_SHARE:
            yield f"while {name} was measured at {connections}, resting servers used {resting:.1%} of the core"
        foreign = max(measured[name].foreign_cpu for measured in found)
        if foreign > FOREIGN_SHARE:
            yield f"while {name} was measured at {connections}, others used {foreign:.1%} of the core"


def ratio(found: Sequence[Round], over: str, under: str, value: Callable[[Measurement], float]) -> float:
    """Median over the rounds of one side's value over the other's."""
    return statistics.median(value(each[over]) / value(each[under]) for each in found)


def median(found: Sequence[Round], name: str) -> dict[str, float]:
    """A side's medians over the rounds, and the failed requests of all of them."""
    own = [each[name] for each in found]
    return {
        "rate": statistics.median(m.rate for m in own), "p50_us": statistics.median(m.p50_us for m in own),
        "p99_us": statistics.median(m.p99_us for m in own), "cpu_us": statistics.median(m.cpu_us for m in own),
        "failed": sum(m.failed for m in own), "foreign_cpu": statistics.median(m.foreign_cpu for m in own),
    }


def add_options(parser: argparse.ArgumentParser, *, rounds: int = 5, seconds: int = 4) -> None:
    """What every script takes."""
    parser.add_argument("--python", default="", help="interpreter with fastinfer (default: an environment with this "
                                                     "source tree, built when the sources have changed)")
    parser.add_argument("--base-python", default="", help="interpreter that the environments stand on (default: "
                                                          "/usr/bin/python3 if it is of this one's version)")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"windows of each server (default: {rounds})")
    parser.add_argument("--seconds", type=int, default=seconds, help=f"length of a window (default: {seconds})")


def end_by_signal(number: int, _: Any) -> None:
    raise SystemExit(128 + number)  # so that what was started is stopped on the way out


def settle(options: argparse.Namespace) -> Cores:
    """Fill in the interpreters; the cores to use.

    From here on closed terminals and kills end the servers too, as Ctrl-C does.

    Raises:
        ServerError: there is one core only.
        InstallError: fastinfer could not be built.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end_by_signal)
    cores = Cores.choose()
    options.base_python = options.base_python or environments.base_python()
    options.given = bool(options.python)
    options.python = options.python or environments.fastinfer(options.base_python)
    return cores
