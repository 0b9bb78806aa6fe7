"""fastinfer beside its peers: the same requests, one core, alternating windows, medians.

    python bench/compare.py
    python bench/compare.py --models mlp --peers starlette,constant --concurrency 1,64 --rounds 3

For each model and each peer both servers are started on the first core and driven in turn by wrk from the last one.
A round is one window of each, in alternating order; the ratio of a round is the peer's CPU time a request over
fastinfer's, and the table shows medians. CPU time is that of the server's whole process tree, from /proc. Answers are
compared with onnxruntime's before anything is timed. Run it from an environment with fastinfer[sklearn], on an idle
machine; results also go to .bench/results as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import environments
import harness
import models
import wrk
from harness import Side
from peers import PEERS, interpreter
from process import Cores, ServerError

DEFAULT = ("starlette", "fastapi", "mosec", "mosec-batch", "triton", "constant")


@dataclass(frozen=True)
class Row:
    """Medians over the rounds. ``cpu_ratio`` and ``rate_ratio`` are medians of the rounds' own ratios, each above 1
    where the subject does better; 1 for the subject itself. Latencies in microseconds; ``foreign_cpu`` is the share of
    the server's core that nobody measured used."""

    model: str
    concurrency: int
    server: str
    versus: str
    rate: float
    p50_us: float
    p99_us: float
    cpu_us: float
    failed: int
    foreign_cpu: float
    cpu_ratio: float
    rate_ratio: float
    p50_ratio: float
    p99_ratio: float
    rounds: int


def pair(model: str, name: str, concurrency: Sequence[int], options: argparse.Namespace, cores: Cores) -> Iterator[Row]:
    """The subject's and a peer's rows at each concurrency, as they are measured.

    Raises:
        ServerError: a server did not start, answers wrongly or is gone.
        InstallError: an environment could not be made.
    """
    script = wrk.infer_script(model)
    with harness.started(options.subject, model, options, cores) as subject, \
            harness.started(name, model, options, cores) as peer:
        sides = [Side(options.subject, subject, script), Side(name, peer, script)]
        for connections in concurrency:
            found = harness.rounds(sides, connections, options, cores)
            for own, versus in ((options.subject, name), (name, options.subject)):
                yield summed(model, connections, own, versus, options.subject, found)


def summed(model: str, connections: int, name: str, versus: str, subject: str, found: Sequence[harness.Round]) -> Row:
    middle = harness.median(found, name)
    return Row(
        model, connections, name, versus, middle["rate"], middle["p50_us"], middle["p99_us"], middle["cpu_us"],
        int(middle["failed"]), middle["foreign_cpu"],
        cpu_ratio=harness.ratio(found, name, subject, lambda m: m.cpu_us),
        rate_ratio=harness.ratio(found, subject, name, lambda m: m.rate),
        p50_ratio=harness.ratio(found, name, subject, lambda m: m.p50_us),
        p99_ratio=harness.ratio(found, name, subject, lambda m: m.p99_us), rounds=len(found),
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
    """What the numbers are measured on, and how busy it is now: load, and the share of time that the host took."""
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": str(os.cpu_count()), "kernel": platform.release(), "system": system(),
            "load": " ".join(f"{load:.2f}" for load in os.getloadavg())}


def system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.system()


SHOWN = ("python", "fastinfer", "starlette", "fastapi", "pydantic", "uvicorn", "httptools", "uvloop", "orjson",
         "granian", "mosec", "litserve", "bentoml", "mlserver", "onnxruntime", "numpy")


def setting(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """How a server was set up, and what of."""
    peer = PEERS[name]
    found: dict[str, Any] = {"title": peer.title, "setting": peer.note, "computes": peer.computes}
    if not peer.programs:
        packages = environments.versions(interpreter(peer, options.python, options.base_python))
        found["versions"] = {package: packages[package] for package in SHOWN if package in packages}
    return found


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
    harness.add_options(parser)
    parser.add_argument("--models", type=names(list(models.BUILDERS)), default=list(models.BUILDERS))
    parser.add_argument("--subject", choices=PEERS, default="fastinfer", help="what the peers are compared with")
    parser.add_argument("--peers", type=names(list(PEERS)), default=list(DEFAULT))
    parser.add_argument("--concurrency", type=lambda text: [int(part) for part in text.split(",")],
                        default=[1, 16, 64, 256])
    return parser


def main() -> int:
    options = parser().parse_args()
    rows, failed = [], False
    try:
        cores = harness.settle(options)
        harness.ensure_models(options.models, options)
    except (ServerError, environments.InstallError) as error:
        print(error, file=sys.stderr)
        return 1
    for model in options.models:
        for name in options.peers:
            try:
                for row in pair(model, name, options.concurrency, options, cores):
                    rows.append(row)
                    print(table([row]).split("\n", 1)[1], file=sys.stderr, flush=True)
            except (ServerError, environments.InstallError) as error:
                failed = True
                print(f"  ! {name}, {model}: {error}", file=sys.stderr, flush=True)
    found = {"command": " ".join(sys.argv), "machine": machine(),
             "servers": {name: setting(name, options) for name in {row.server for row in rows}}}
    results = harness.BENCH / "results"
    results.mkdir(parents=True, exist_ok=True)
    path = results / time.strftime("compare-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps({**found, "rows": [asdict(row) for row in rows]}, indent=1))
    print(json.dumps(found, indent=1))
    print(f"\n{table(rows)}\n\nCPU ratio: CPU time a request over the subject's in the same round. "
          f"Rate ratio: the subject's requests/s over it.\n{path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
