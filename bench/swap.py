"""What a hot swap costs those who are served meanwhile, and what a cold load costs the first who is.

    python bench/swap.py --python .venv/bin/python
    python bench/swap.py --rate 4000 --rounds 9
    python bench/swap.py --pause 1 --seconds 20     # a hundred swaps at an easier pace

Swap: one-row requests to a perceptron at a fixed rate, in windows in turn without and with loads of a new file, one
after the other. Each load makes a session, proves and warms it, and takes the place of the one before. What is kept is
the ratio of the windows' p99, and the number of requests that failed. The server has one core, which the loads want
too, and the client the other.

Cold: a perceptron of 10 MB, not loaded yet; from the call that loads it to its first answer, beside onnxruntime's own
session and first run in a process of its own that has imported it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import harness
import latency
import models
import wrk
from environments import InstallError
from process import Cores, Server, ServerError, clean_environment

ALONE = """
import sys, time
import numpy, onnxruntime
started = time.perf_counter()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options)
session.run(None, {"input": numpy.zeros((1, 32), "float32")})
print(time.perf_counter() - started)
"""


class Swaps(threading.Thread):
    """Puts a new file in the old one's place and has it loaded, again and again."""

    def __init__(self, port: int, file: Path, pause: float) -> None:
        super().__init__(daemon=True)
        self.port, self.file, self.pause = port, file, pause
        self.done = 0
        self.stop = threading.Event()
        self.fault: OSError | None = None

    def run(self) -> None:
        part = self.file.with_name(".part")
        try:
            while not self.stop.is_set():
                shutil.copyfile(self.file, part)
                part.rename(self.file)
                harness.post(self.port, f"/v2/repository/models/{self.file.parent.parent.name}/load", b"")
                self.done += 1
                self.stop.wait(self.pause)
        except OSError as error:
            self.fault = error


@contextmanager
def repository(name: str) -> Iterator[Path]:
    """A repository that holds a copy of a model."""
    folder = harness.BENCH / "work" / f"swap-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    version = folder / name / "1"
    version.mkdir(parents=True)
    shutil.copyfile(models.model_path(name), version / "model.onnx")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def everywhere(server: Server) -> None:
    """Let the server use all cores: a load has one, and the loop another."""
    os.sched_setaffinity(server.pid, range(os.cpu_count() or 1))


def swap(options: argparse.Namespace, cores: Cores) -> None:
    with repository("mlp") as folder, harness.serving(
        "swap", [str(folder), "--model-control", "explicit", "--load-model", "mlp"], options, cores
    ) as server:
        asked = latency.request("POST", wrk.infer_path("mlp"), wrk.body(wrk.rows()[0]))

        def window() -> latency.Window:
            return latency.drive(server.port, asked, rate=options.rate, seconds=options.seconds, core=cores.client)

        window()
        ratios, failed, done = [], 0, 0
        for _ in range(options.rounds):
            before = window()
            swaps = Swaps(server.port, folder / "mlp" / "1" / "model.onnx", options.pause)
            swaps.start()
            during = window()
            swaps.stop.set()
            swaps.join()
            if swaps.fault is not None:
                raise ServerError(f"a load failed: {swaps.fault}")
            ratios.append(during.percentile(99) / before.percentile(99))
            failed += before.failed + during.failed
            done += swaps.done
            print(f"  p99 {before.percentile(99):.0f} us before, {during.percentile(99):.0f} us during {swaps.done} "
                  f"swaps; p50 {before.percentile(50):.0f} and {during.percentile(50):.0f} us; over 2 ms "
                  f"{before.over(2):.2%} and {during.over(2):.2%}; {len(during.latencies)} requests, {during.failed} "
                  "failed")
        print(f"swap: {done} swaps at {options.rate:.0f} requests/s, {failed} requests failed, p99 during over before "
              f"{statistics.median(ratios):.2f}")


def cold(options: argparse.Namespace, cores: Cores) -> None:
    times, alone = [], []
    body = wrk.body(wrk.rows()[0])
    with repository("large") as folder, harness.serving(
        "cold", [str(folder), "--model-control", "explicit"], options, cores
    ) as server:
        everywhere(server)
        for _ in range(options.rounds):
            started = time.perf_counter()
            harness.post(server.port, "/v2/repository/models/large/load", b"")
            harness.post(server.port, wrk.infer_path("large"), body)
            times.append(time.perf_counter() - started)
            harness.post(server.port, "/v2/repository/models/large/unload", b"")
            finished = subprocess.run(
                [options.python, "-c", ALONE, str(models.model_path("large")), str(len(os.sched_getaffinity(0)))],
                capture_output=True, text=True, check=True, env=clean_environment({}),
            )  # fmt: skip
            alone.append(float(finished.stdout))
    ours, theirs = statistics.median(times) * 1e3, statistics.median(alone) * 1e3
    print(f"cold: a model of {models.model_path('large').stat().st_size / 1e6:.1f} MB answers after {ours:.0f} ms, "
          f"onnxruntime alone after {theirs:.0f} ms; {ours - theirs:+.0f} ms")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_options(parser, rounds=5, seconds=4)
    parser.add_argument("--rate", type=float, default=2000.0, help="requests a second (default: 2000)")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between two loads (default: 0.2)")
    options = parser.parse_args()
    try:
        cores = harness.settle(options)
        harness.ensure_models(("mlp", "large"), options)
        swap(options, cores)
        cold(options, cores)
    except (ServerError, InstallError) as error:
        print(f"swap.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
