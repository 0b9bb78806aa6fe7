"""Inference over gRPC: fastinfer and the real Triton beside grpc.aio with a handler that does nothing.

    python bench/rpc.py                 # with the environment of fastinfer that the harness makes
    python bench/rpc.py --python …      # with another one, as the other benchmarks; it needs the extra "grpc"
    python bench/rpc.py --models mlp --connections 1 --streams 1

All servers stand on the server's core, all but one resting, and are driven in turn by h2load from the client's. The
empty handler gives ready bytes, of the size of a true answer; it runs on asyncio's loop, as grpc.aio's documentation
has it, and on uvloop, as fastinfer does, and the quicker of the two is what the others are held against. h2load does
not see gRPC's status: good answers are counted by ModelStatistics, and the first is compared with onnxruntime's.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import h2load
import harness
import models
import numpy as np
import real_triton
import triton_server
import wrk
from environments import InstallError
from harness import Measurement, Round
from process import Cores, Server, ServerError, core_busy_seconds, cpu_seconds, free_ports, pinned
from real_triton import RealTriton
from tritonclient.grpc import service_pb2 as pb

WORK = harness.BENCH / "work" / "rpc"
SERVICE = "/inference.GRPCInferenceService/"
INFER = SERVICE + "ModelInfer"
EMPTY = {"grpc.aio, empty": "asyncio", "grpc.aio, empty, uvloop": "uvloop"}
BATCHING = "dynamic_batching { }\n"
WAIT = 30.0


class Side(NamedTuple):
    """One of those that are compared; ``pid`` is the root of its processes, ``checked`` whether it runs the model."""

    name: str
    pid: int
    port: int
    checked: bool


def message(model: str) -> bytes:
    """A ModelInferRequest of one row."""
    row = wrk.rows()[:1]
    asked = pb.ModelInferRequest(model_name=model, raw_input_contents=[row.tobytes()])
    asked.inputs.add(name="input", datatype="FP32", shape=row.shape)
    return bytes(asked.SerializeToString())


def call(port: int, method: str, body: bytes) -> bytes:
    """One call, on a connection of its own."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return bytes(channel.unary_unary(SERVICE + method)(body, timeout=WAIT, wait_for_ready=True))


def succeeded(side: Side, model: str) -> int:
    """Requests that a server has answered well so far."""
    asked = pb.ModelStatisticsRequest(name=model).SerializeToString()
    found = pb.ModelStatisticsResponse.FromString(call(side.port, "ModelStatistics", asked))
    return int(found.model_stats[0].inference_stats.success.count)


def check(side: Side, model: str) -> bytes:
    """The answer to the one request.

    Raises:
        ServerError: it is not onnxruntime's.
    """
    raw = call(side.port, "ModelInfer", message(model))
    if side.checked:
        answer = pb.ModelInferResponse.FromString(raw)
        place = [output.name for output in answer.outputs].index("probabilities")
        given = np.frombuffer(answer.raw_output_contents[place], np.float32)
        if not np.allclose(given, harness.expected(model)[0].ravel(), atol=harness.TOLERANCE):
            raise ServerError(f"{side.name} answers {given} where onnxruntime has {harness.expected(model)[0]}")
    return raw


@contextlib.contextmanager
def triton(model: str, cores: Cores) -> Iterator[Side | None]:
    """The real Triton with its dynamic batching, where it can be had."""
    if absent := real_triton.why_absent():
        print(f"  ! without Triton: {absent}", file=sys.stderr, flush=True)
        yield None
        return
    folder = WORK / "triton"
    version = folder / "models" / model / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(triton_server.CONFIGURATION.format(model=model) + BATCHING)
    shutil.copyfile(Path(__file__).parent / "servers" / "triton_model.py", version / "model.py")
    server = RealTriton(folder, folder / "models", environ={"BENCH_MODEL": str(models.model_path(model))})
    try:
        with pinned(cores.server):
            server.start()
        assert server.process is not None
        yield Side("Triton", server.process.pid, server.grpc, checked=True)
    finally:
        server.stop()


@contextlib.contextmanager
def started(model: str, options: argparse.Namespace, cores: Cores) -> Iterator[list[Side]]:
    """All servers with one model, checked."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        ours, *ports = free_ports(1 + len(EMPTY))
        arguments = [str(models.model_path(model)), "--name", model, "--grpc-port", str(ours)]
        server = stack.enter_context(harness.serving(f"rpc-{model}", arguments, options, cores))
        found = [Side("fastinfer", server.pid, ours, checked=True)]
        (WORK / "answer").write_bytes(check(found[0], model))
        for (name, loop), port in zip(EMPTY.items(), ports, strict=True):
            command = [options.python, str(Path(__file__).parent / "servers" / "grpc_empty.py"), str(port),
                       str(WORK / "answer"), loop]
            empty = Server(name, command, port=port, core=cores.server, log=harness.BENCH / "logs" / f"rpc-{loop}.log",
                           environ={})
            stack.callback(empty.stop)
            found.append(Side(name, empty.pid, port, checked=False))
        peer = stack.enter_context(triton(model, cores))
        for side in (*found[1:], *filter(None, [peer])):
            check(side, model)
        yield [*found, *filter(None, [peer])]


def measure(side: Side, sides: Sequence[Side], model: str, options: argparse.Namespace, cores: Cores) -> Measurement:
    """One window of one server; requests that it did not answer well count as failed."""
    resting = [other for other in sides if other is not side]
    good = succeeded(side, model) if side.checked else 0
    before, rested = cpu_seconds(side.pid), sum(cpu_seconds(other.pid) for other in resting)
    busy, began = core_busy_seconds(cores.server), time.monotonic()
    window = h2load.drive(side.port, INFER, WORK / "request", connections=options.connections, streams=options.streams,
                          seconds=options.seconds, core=cores.client)
    used, spent = cpu_seconds(side.pid) - before, time.monotonic() - began
    busy = core_busy_seconds(cores.server) - busy
    disturbed = sum(cpu_seconds(other.pid) for other in resting) - rested
    if not window.requests:
        raise ServerError(f"{side.name} answered nothing")
    wrong = max(0, window.requests - (succeeded(side, model) - good)) if side.checked else 0
    return Measurement(window.requests / window.seconds, window.p50_us, window.p99_us, used / window.requests * 1e6,
                       window.failed + wrong, disturbed / spent, max(0.0, busy - used - disturbed) / spent)


def rounds(sides: Sequence[Side], model: str, options: argparse.Namespace, cores: Cores) -> list[Round]:
    """Windows of all servers, warmed, in an order that turns round each time."""
    (WORK / "request").write_bytes(h2load.framed(message(model)))
    for side in sides:
        h2load.drive(side.port, INFER, WORK / "request", connections=options.connections, streams=options.streams,
                     seconds=harness.WARM_SECONDS, core=cores.client)
    found: list[Round] = []
    for number in range(options.rounds):
        ordered = sides if number % 2 == 0 else sides[::-1]
        found.append({side.name: measure(side, sides, model, options, cores) for side in ordered})
    for warning in harness.warnings(found, options.connections * options.streams):
        print(f"  ! {warning}", file=sys.stderr, flush=True)
    return found


def report(model: str, found: Sequence[Round], options: argparse.Namespace) -> None:
    """A line for each server, its requests/s over those of the quicker empty handler's, round by round."""
    middle: dict[str, dict[str, Any]] = {name: harness.median(found, name) for name in found[0]}
    quickest = max(EMPTY, key=lambda name: float(middle[name]["rate"]))
    print(f"\n{model}, {options.connections} connections of {options.streams} calls at a time")
    print(f"{'':26}{'requests/s':>11}{'CPU µs':>9}{'p50 ms':>9}{'p99 ms':>9}{'of empty':>10}")
    for name, line in middle.items():
        share = harness.ratio(found, name, quickest, lambda each: each.rate)
        print(f"{name:26}{line['rate']:>11,.0f}{line['cpu_us']:>9.1f}{line['p50_us'] / 1000:>9.2f}"
              f"{line['p99_us'] / 1000:>9.2f}{share:>10.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_options(parser, rounds=5, seconds=3)
    parser.add_argument("--models", default="logistic,mlp", help="of models.py (default: logistic,mlp)")
    parser.add_argument("--connections", type=int, default=8, help="of the client (default: 8)")
    parser.add_argument("--streams", type=int, default=8, help="calls at a time on each of them (default: 8)")
    options = parser.parse_args()
    try:
        cores = harness.settle(options)
        names = options.models.split(",")
        harness.ensure_models(names, options)
        for model in names:
            with started(model, options, cores) as sides:
                report(model, rounds(sides, model, options, cores), options)
    except (ServerError, InstallError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
