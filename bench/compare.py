"""fastinfer beside its peers: the same requests, one core, alternating windows, medians.

    python bench/compare.py --python .venv/bin/python
    python bench/compare.py --models mlp --peers starlette,constant --concurrency 1,64 --rounds 3

For each model and each peer both servers are started on the first core and driven in turn by wrk from the last one.
A round is one window of each, in alternating order; the ratio of a round is the peer's CPU time a request over
fastinfer's, and the table shows medians. CPU time is that of the server's whole process tree, from /proc. Answers are
compared with onnxruntime's before anything is timed. Run it from an environment with fastinfer[sklearn], on an idle
machine; results also go to .bench/results as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import wrk
from peers import PEERS, Peer, interpreter, versions
from process import Cores, Server, ServerError, cpu_seconds, free_port

BENCH = Path(__file__).resolve().parent.parent / ".bench"
WARM_SECONDS = 1
IDLE_SHARE = 0.02  # of the core: more than this used by the resting server spoils the window


@dataclass(frozen=True)
class Measurement:
    """One window of one server. Latencies in microseconds; ``resting_cpu`` is the other server's share of the core."""

    rate: float
    p50_us: float
    p99_us: float
    cpu_us: float
    failed: int
    resting_cpu: float


@dataclass(frozen=True)
class Row:
    """Medians over the rounds. ``cpu_ratio`` and ``rate_ratio`` are medians of the rounds' own ratios, each above 1
    where the subject does better; 1 for the subject itself."""

    model: str
    concurrency: int
    server: str
    versus: str
    rate: float
    p50_us: float
    p99_us: float
    cpu_us: float
    cpu_ratio: float
    rate_ratio: float
    rounds: int


def post(port: int, model: str, body: str) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{wrk.infer_path(model)}", body.encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return bytes(response.read())


def answers(port: int, model: str, body: str) -> bool:
    try:
        post(port, model, body)
    except (OSError, urllib.error.URLError):
        return False
    return True


@contextlib.contextmanager
def started(name: str, model: str, options: argparse.Namespace, cores: Cores) -> Iterator[Server]:
    """A server that answers, and right: its probabilities are onnxruntime's."""
    peer = PEERS[name]
    path, port = models.model_path(model), free_port()
    fill = {"python": interpreter(peer, options.python), "port": port, "model": model, "path": path}
    server = Server(name, [part.format(**fill) for part in peer.command], port=port, core=cores.server,
                    log=BENCH / "logs" / f"{name}-{model}.log",
                    environ={"BENCH_MODEL": str(path), "BENCH_MODEL_NAME": model, **pass_on(peer), **peer.environ})
    try:
        rows = wrk.rows()
        server.wait(lambda port: answers(port, model, wrk.body(rows[0])))
        if peer.computes:
            check(server, model, rows)
        yield server
    finally:
        server.stop()


def pass_on(peer: Peer) -> dict[str, str]:
    """PYTHONPATH, for a fastinfer that is run from its source tree; never to a peer's own environment."""
    return {"PYTHONPATH": os.environ["PYTHONPATH"]} if not peer.environment and "PYTHONPATH" in os.environ else {}


def check(server: Server, model: str, rows: Any) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(models.model_path(model)), providers=["CPUExecutionProvider"])
    for row in rows[:8]:
        expected = session.run(["probabilities"], {"input": row[None]})[0]
        document = json.loads(post(server.port, model, wrk.body(row)))
        given = {output["name"]: output["data"] for output in document["outputs"]}["probabilities"]
        if not np.allclose(np.ravel(given), expected.ravel(), atol=1e-5):
            raise ServerError(f"{server.name} answers {given} where onnxruntime has {expected.tolist()}")


def measure(server: Server, resting: Server, script: Path, concurrency: int, seconds: float,
            cores: Cores) -> Measurement:
    before, rested = cpu_seconds(server.pid), cpu_seconds(resting.pid)
    window = wrk.drive(server.port, script, connections=concurrency, seconds=seconds, core=cores.client)
    used, disturbed = cpu_seconds(server.pid) - before, cpu_seconds(resting.pid) - rested
    if not window.requests:
        raise ServerError(f"{server.name} answered nothing at {concurrency} connections")
    return Measurement(window.requests / window.seconds, window.p50_us, window.p99_us, used / window.requests * 1e6,
                       window.failed, disturbed / window.seconds)


def pair(subject: Server, peer: Server, model: str, concurrency: int, options: argparse.Namespace,
         cores: Cores) -> list[Row]:
    """All rounds of two servers at one concurrency."""
    script = wrk.write_script(model)
    for server in (subject, peer):
        wrk.drive(server.port, script, connections=concurrency, seconds=WARM_SECONDS, core=cores.client)
    rounds: list[dict[str, Measurement]] = []
    for number in range(options.rounds):
        order = [(subject, peer), (peer, subject)][:: 1 if number % 2 == 0 else -1]
        rounds.append({server.name: measure(server, resting, script, concurrency, options.seconds, cores)
                       for server, resting in order})
    for warning in warnings(rounds, concurrency):
        print(f"  ! {warning}", file=sys.stderr)
    return [summed(server.name, other.name, model, concurrency, rounds, subject.name)
            for server, other in ((subject, peer), (peer, subject))]


def warnings(rounds: Sequence[dict[str, Measurement]], concurrency: int) -> Iterator[str]:
    for name in rounds[0]:
        failed = sum(measured[name].failed for measured in rounds)
        if failed:
            yield f"{name} at {concurrency}: {failed} requests failed; its figures do not count"
        resting = max(measured[name].resting_cpu for measured in rounds)
        if resting > IDLE_SHARE:
            yield f"while {name} was measured at {concurrency}, the resting server used {resting:.1%} of the core"


def summed(name: str, other: str, model: str, concurrency: int, rounds: Sequence[dict[str, Measurement]],
           subject: str) -> Row:
    own = [measured[name] for measured in rounds]
    base = [measured[subject] for measured in rounds]
    return Row(
        model, concurrency, name, other,
        statistics.median(m.rate for m in own), statistics.median(m.p50_us for m in own),
        statistics.median(m.p99_us for m in own), statistics.median(m.cpu_us for m in own),
        statistics.median(m.cpu_us / b.cpu_us for m, b in zip(own, base, strict=True)),
        statistics.median(b.rate / m.rate for m, b in zip(own, base, strict=True)), len(rounds),
    )


HEADINGS = ("model", "conc.", "server", "requests/s", "p50 ms", "p99 ms", "CPU µs", "CPU ratio", "rate ratio")


def cells(row: Row) -> tuple[str, ...]:
    return (row.model, str(row.concurrency), row.server, f"{row.rate:,.0f}", f"{row.p50_us / 1000:.3f}",
            f"{row.p99_us / 1000:.3f}", f"{row.cpu_us:.2f}", f"{row.cpu_ratio:.2f}", f"{row.rate_ratio:.2f}")


def table(rows: Sequence[Row]) -> str:
    lines = [HEADINGS, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    left = (0, 2)
    return "\n".join("  ".join(cell.ljust(width) if column in left else cell.rjust(width)
                               for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
                     for line in lines)


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": str(os.cpu_count()), "kernel": platform.release(),
            "python": platform.python_version(), "load": " ".join(f"{load:.2f}" for load in os.getloadavg())}


SHOWN = ("python", "fastinfer", "starlette", "fastapi", "pydantic", "uvicorn", "httptools", "uvloop", "orjson",
         "granian", "mosec", "onnxruntime", "numpy")


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to judge the numbers and to get them again."""
    servers = {}
    for name in (options.subject, *options.peers):
        packages = versions(interpreter(PEERS[name], options.python))
        servers[name] = {"setting": PEERS[name].note,
                         "versions": {package: packages[package] for package in SHOWN if package in packages}}
    return {"command": " ".join(sys.argv), "machine": machine(), "servers": servers}


def run(options: argparse.Namespace) -> list[Row]:
    cores = Cores.choose()
    models.ensure(options.models)
    rows = []
    for model in options.models:
        for name in options.peers:
            with started(options.subject, model, options, cores) as subject, \
                    started(name, model, options, cores) as peer:
                for concurrency in options.concurrency:
                    found = pair(subject, peer, model, concurrency, options, cores)
                    rows += found
                    print(table(found).split("\n", 1)[1], file=sys.stderr, flush=True)
    return rows


def names(known: Sequence[str]) -> Any:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown {name!r}; known are {', '.join(known)}")
        return chosen

    return parse


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter with fastinfer (default: this one)")
    parser.add_argument("--models", type=names(list(models.BUILDERS)), default=list(models.BUILDERS))
    parser.add_argument("--subject", choices=PEERS, default="fastinfer", help="what the peers are compared with")
    parser.add_argument("--peers", type=names(list(PEERS)), default=["starlette", "fastapi", "mosec", "constant"])
    parser.add_argument("--concurrency", type=lambda text: [int(part) for part in text.split(",")],
                        default=[1, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=5, help="windows of each server (default: 5)")
    parser.add_argument("--seconds", type=int, default=4, help="length of a window (default: 4)")
    return parser


def main() -> int:
    options = parser().parse_args()
    try:
        rows = run(options)
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    found = facts(options)
    results = BENCH / "results"
    results.mkdir(parents=True, exist_ok=True)
    path = results / time.strftime("compare-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps({**found, "rows": [asdict(row) for row in rows]}, indent=1))
    print(json.dumps(found, indent=1))
    print(f"\n{table(rows)}\n\nCPU ratio: CPU time a request over the subject's in the same round. "
          f"Rate ratio: the subject's requests/s over it.\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
