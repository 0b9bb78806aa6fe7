"""What is measured of fastinfer alone, two sides of it in alternating windows: formats, many models, idle connections,
two workers, memory. Each function gives a ``Found``; ``python bench/table.py --only NAME`` runs one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import harness
import models
import wrk
from harness import Side
from process import Cores, Server, ServerError, clean_environment, memory, pinned

CONNECTIONS = 64
MODEL = "logistic"  # the fastest one hides least
MANY_MODELS = 1000
IDLE_CONNECTIONS = 5000
FIXED_RATE = 10_000
RATE_TOLERANCE = 0.02
WARM_REQUESTS = 200_000
SLICE_SECONDS = 10


@dataclass(frozen=True)
class Found:
    """One measure.

    Attributes:
        value: what is held against the target.
        detail: what a reader should see beside it.
        sides: medians of both sides.
    """

    value: float
    detail: str
    sides: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def rates(sides: Sequence[Side], options: argparse.Namespace, cores: Cores) -> Found:
    """Requests/s of the first side over those of the second."""
    found = harness.rounds(sides, CONNECTIONS, options, cores)
    first, second = (side.name for side in sides)
    middle = {name: harness.median(found, name) for name in (first, second)}
    for name, seen in middle.items():
        if seen["failed"]:
            raise ServerError(f"{name}: {seen['failed']:.0f} requests failed")
    detail = ", ".join(f"{name} {seen['rate']:,.0f}/s at {seen['cpu_us']:.1f} µs" for name, seen in middle.items())
    return Found(harness.ratio(found, first, second, lambda m: m.rate), detail, middle)


# -- formats -----------------------------------------------------------------------------------------------------
def record_body(record: dict[str, Any]) -> bytes:
    return json.dumps({"records": [record]}, separators=(",", ":")).encode()


def tensors_body(record: dict[str, Any]) -> bytes:
    """The same row as tensors: one [1, 1] input a raw column."""
    inputs = [{"name": name, "shape": [1, 1], "datatype": "BYTES" if name in models.CATEGORIES else "FP64",
               "data": [value]} for name, value in record.items()]
    return json.dumps({"inputs": inputs}, separators=(",", ":")).encode()


def records(options: argparse.Namespace, cores: Cores) -> Found:
    """Named records through the feature program against the same rows as Open Inference Protocol tensors.

    Raises:
        ServerError: the two disagree about a row.
    """
    rows = models.records(wrk.ROWS)
    harness.ensure_models([models.MIXED], options)
    folder = models.MODELS / models.MIXED
    with harness.serving("fastinfer-mixed", [str(folder)], options, cores) as server:
        path = "/v1/models/mixed:predict"
        for row in rows[: harness.CHECKED]:
            named = json.loads(harness.post(server.port, path, record_body(row)))["predictions"][0]
            tensors = json.loads(harness.post(server.port, wrk.infer_path("mixed"), tensors_body(row)))["outputs"]
            flat = next(output["data"] for output in tensors if output["name"] == "probabilities")
            if sorted(named["probabilities"].values()) != sorted(flat):
                raise ServerError(f"records answer {named} where tensors answer {tensors}")
        return rates([Side("records", server, wrk.write_script("records", path, [record_body(row) for row in rows])),
                      Side("tensors", server, wrk.write_script("tensors", wrk.infer_path("mixed"),
                                                               [tensors_body(row) for row in rows]))], options, cores)


def binary_body(row: Any) -> tuple[bytes, int]:
    """A row as the binary extension has it, outputs binary too, as Triton's client asks; and its JSON part's length."""
    head = json.dumps({
        "inputs": [{"name": "input", "shape": [1, models.FEATURES], "datatype": "FP32",
                    "parameters": {"binary_data_size": row.nbytes}}],
        "parameters": {"binary_data_output": True},
    }, separators=(",", ":")).encode()
    return head + row.tobytes(), len(head)


def binary(options: argparse.Namespace, cores: Cores) -> Found:
    """JSON requests against binary ones of the same rows."""
    harness.ensure_models([MODEL], options)
    bodies = [binary_body(row) for row in wrk.rows()]
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(bodies[0][1])}
    script = wrk.write_script("binary", wrk.infer_path(MODEL), [body for body, _ in bodies], headers=headers)
    with harness.started("fastinfer", MODEL, options, cores) as server:
        for (body, _), right in zip(bodies, harness.expected(MODEL), strict=False):
            answer = harness.post(server.port, wrk.infer_path(MODEL), body, headers)
            if right.tobytes() not in answer:
                raise ServerError(f"a binary request is answered {answer!r}")
        return rates([Side("JSON", server, wrk.infer_script(MODEL)), Side("binary", server, script)], options, cores)


# -- scale -------------------------------------------------------------------------------------------------------
def repository(count: int, options: argparse.Namespace) -> Path:
    """A repository of ``count`` copies of one model; links, so that they take no space."""
    harness.ensure_models([MODEL], options)
    folder = harness.BENCH / "repositories" / str(count)
    shutil.rmtree(folder, ignore_errors=True)
    for number in range(count):
        version = folder / f"m{number:04}" / "1"
        version.mkdir(parents=True)
        os.link(models.model_path(MODEL), version / "model.onnx")
    return folder


def many_models(options: argparse.Namespace, cores: Cores) -> Found:
    """One busy model among a thousand loaded ones against one alone."""
    script = wrk.write_script("m0000", wrk.infer_path("m0000"), [wrk.body(row) for row in wrk.rows()])
    with harness.serving("fastinfer-1000", [str(repository(MANY_MODELS, options))], options, cores) as many, \
            harness.serving("fastinfer-1", [str(repository(1, options))], options, cores) as alone:
        found = rates([Side(f"{MANY_MODELS:,} models", many, script), Side("one model", alone, script)], options, cores)
        return Found(found.value, f"{found.detail}; RSS of the thousand {memory(many.pid).rss / 2**20:,.0f} MiB",
                     found.sides)


def raise_file_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def idle_connections(server: Server, count: int) -> Iterator[None]:
    """Keep-alive connections that have had one answer each, and are still open at the end.

    Raises:
        ServerError: one was closed.
    """
    request = (f"POST {wrk.infer_path(MODEL)} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
               "Content-Length: %d\r\n\r\n").encode()
    body = wrk.body(wrk.rows()[0])
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            sock.sendall(request % len(body) + body)
            if not sock.recv(65536).startswith(b"HTTP/1.1 200"):
                raise ServerError(f"connection {len(sockets)} of {count} is not served")
            sockets.append(sock)
        yield
        for sock in sockets:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                raise ServerError(f"an idle connection was closed: {sock.recv(100)!r}")


def idle(options: argparse.Namespace, cores: Cores) -> Found:
    """A server that holds 5,000 idle connections against one that holds none."""
    raise_file_limit()
    harness.ensure_models([MODEL], options)
    arguments = [str(models.model_path(MODEL)), "--name", MODEL, "--idle-timeout", "3600"]
    script = wrk.infer_script(MODEL)
    with harness.serving("fastinfer-idle", arguments, options, cores) as held, \
            harness.serving("fastinfer-none", arguments, options, cores) as free:
        before = memory(held.pid).rss
        with idle_connections(held, IDLE_CONNECTIONS):
            each = (memory(held.pid).rss - before) / IDLE_CONNECTIONS
            found = rates([Side(f"{IDLE_CONNECTIONS:,} idle", held, script), Side("none idle", free, script)], options,
                          cores)
    return Found(found.value, f"{found.detail}; {each / 1024:.1f} KiB an idle connection", found.sides)


def workers(options: argparse.Namespace, cores: Cores) -> Found:
    """CPU time a request of two workers over that of one, both on one core, at the same fixed rate."""
    harness.ensure_models([MODEL], options)
    arguments = [str(models.model_path(MODEL)), "--name", MODEL]
    script = wrk.infer_script(MODEL, rate=FIXED_RATE)
    with harness.serving("fastinfer-two", [*arguments, "--workers", "2"], options, cores) as two, \
            harness.serving("fastinfer-one", [*arguments, "--workers", "1"], options, cores) as one:
        sides = [Side("two workers", two, script), Side("one worker", one, script)]
        found = harness.rounds(sides, CONNECTIONS, options, cores)
    middle = {side.name: harness.median(found, side.name) for side in sides}
    for name, seen in middle.items():
        if seen["failed"] or abs(seen["rate"] / FIXED_RATE - 1) > RATE_TOLERANCE:
            raise ServerError(f"{name}: {seen['rate']:,.0f} requests/s where {FIXED_RATE:,} were asked")
    detail = ", ".join(f"{name} {seen['cpu_us']:.1f} µs" for name, seen in middle.items())
    return Found(harness.ratio(found, sides[0].name, sides[1].name, lambda m: m.cpu_us),
                 f"{detail} at {FIXED_RATE:,}/s", middle)


# -- time --------------------------------------------------------------------------------------------------------
def endurance(options: argparse.Namespace, cores: Cores) -> Found:
    """Growth of the resident memory, in MiB, over ``options.requests`` requests after a warm-up of 200,000."""
    harness.ensure_models([MODEL], options)
    script = wrk.infer_script(MODEL)
    with harness.started("fastinfer", MODEL, options, cores) as server:
        done, sizes = 0, []
        while done < WARM_REQUESTS:
            done += wrk.drive(server.port, script, connections=CONNECTIONS, seconds=2, core=cores.client).requests
        sizes.append(memory(server.pid).rss)
        done = failed = 0
        while done < options.requests:
            window = wrk.drive(server.port, script, connections=CONNECTIONS, core=cores.client,
                               seconds=min(SLICE_SECONDS, max(1, options.requests / 100_000)))
            done, failed = done + window.requests, failed + window.failed
            sizes.append(memory(server.pid).rss)
    if failed:
        raise ServerError(f"{failed} requests failed")
    growth = (sizes[-1] - sizes[0]) / 2**20
    return Found(growth, f"{sizes[0] / 2**20:.1f} MiB, after {done:,} requests {sizes[-1] / 2**20:.1f} MiB",
                 {"rss": sizes, "requests": done})


def decode(options: argparse.Namespace, cores: Cores) -> Found:
    """Decoding a large JSON body in process, in MB/s, and over orjson + numpy; decode.py's own figures.

    Raises:
        ServerError: it failed.
    """
    script = Path(__file__).resolve().parent / "decode.py"
    with pinned(cores.server):
        finished = subprocess.run([options.python, script, "--json"], capture_output=True, text=True, timeout=300,
                                  env=clean_environment(harness.pass_on(options)))
    if finished.returncode:
        raise ServerError(f"decode.py ended with {finished.returncode}: {finished.stderr}")
    told = json.loads(finished.stdout.splitlines()[-1])
    return Found(told["rate"], told["detail"], {"rate": told["rate"], "ratio": told["ratio"]})


def in_process(options: argparse.Namespace, cores: Cores) -> Found:
    """onnxruntime alone, microseconds a row of the MLP in batches of 64; no target, a floor."""
    import limits

    harness.ensure_models(models.BUILDERS, options)
    with pinned(cores.server):
        table = {name: {str(batch): limits.microseconds_a_row(limits.session(name), wrk.rows(), batch)
                        for batch in limits.BATCHES} for name in models.BUILDERS}
    return Found(table["mlp"]["64"], f"onnxruntime {importlib.metadata.version('onnxruntime')}", table)


MEASURES = {
    "records": records, "binary": binary, "models": many_models, "idle": idle, "workers": workers,
    "decode": decode, "memory": endurance, "in-process": in_process,
}
