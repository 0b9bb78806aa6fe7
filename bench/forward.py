"""A model behind a Triton: asked through fastinfer, and asked of the same Triton directly.

    python bench/forward.py                    # with the environment of fastinfer that the harness makes
    python bench/forward.py --python …         # with another one, as the other benchmarks
    python bench/forward.py --perf-analyzer …  # a command that runs perf_analyzer, for whole batches over gRPC; else
                                               # tritonclient from several threads stands in for it
    python bench/forward.py --keys 'shared_memory = false'  # more of [triton], lines

One-row requests at 64 connections go to Triton with its dynamic batching, at the best of several delays, and to
fastinfer before it; requests of whole batches go to both. fastinfer stands on Triton's core ("together"), or on the
client's ("apart"), as where Triton's work is a GPU's.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import models
import numpy as np
import real_triton
import triton_server
import wrk
from process import Cores, Server, pinned
from real_triton import RealTriton

MODEL = "mlp"
DELAYS = (0, 500, 1000)  # microseconds of Triton's batcher
ROWS = 64
WORK = harness.BENCH / "work" / "forward"
BATCHING = "dynamic_batching {{ max_queue_delay_microseconds: {delay} }}\n"
CALLERS = 4  # of whole batches


def repository() -> Path:
    """The model once for each delay."""
    folder = WORK / "models"
    for delay in DELAYS:
        name = f"{MODEL}-{delay}"
        (folder / name / "1").mkdir(parents=True)
        batching = BATCHING.format(delay=delay)
        (folder / name / "config.pbtxt").write_text(triton_server.CONFIGURATION.format(model=name) + batching)
        shutil.copyfile(Path(__file__).parent / "servers" / "triton_model.py", folder / name / "1" / "model.py")
    return folder


@contextlib.contextmanager
def triton(cores: Cores) -> Iterator[RealTriton]:
    shutil.rmtree(WORK, ignore_errors=True)
    server = RealTriton(WORK, repository(), environ={"BENCH_MODEL": str(models.model_path(MODEL))})
    with pinned(cores.server):
        server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def before(server: RealTriton, protocol: str, core: int, options: argparse.Namespace) -> Iterator[Server]:
    """fastinfer before a Triton, over a protocol, on a core."""
    folder = WORK / f"before-{protocol}-{core}"
    (folder / MODEL).mkdir(parents=True)
    port = {"http": server.http, "grpc": server.grpc}[protocol]
    text = (f'runtime = "triton"\n[triton]\nurl = "{protocol}://127.0.0.1:{port}"\nmodel = "{MODEL}-0"\n'
            f"{options.keys}\n")
    (folder / MODEL / "model.toml").write_text(text)
    with harness.serving(f"forward-{protocol}", [str(folder)], options, Cores(core, core)) as found:
        yield found


def whole_batches(model: str) -> Path:
    """A wrk script of binary requests of whole batches."""
    rows = np.concatenate([wrk.rows(), wrk.rows()])
    head = (f'{{"inputs":[{{"name":"input","shape":[{ROWS},{models.FEATURES}],"datatype":"FP32",'
            f'"parameters":{{"binary_data_size":{ROWS * models.FEATURES * 4}}}}}],'
            '"parameters":{"binary_data_output":true}}').encode()
    bodies = [head + rows[start:start + ROWS].tobytes() for start in range(0, 512, ROWS)]
    return wrk.write_script(f"whole-{model}", wrk.infer_path(model), bodies,
                            headers={"Inference-Header-Content-Length": str(len(head)),
                                     "Content-Type": "application/octet-stream"})


def by_grpc(server: RealTriton, seconds: float, core: int) -> float:
    """Batches a second of tritonclient's gRPC client, from several threads, as perf_analyzer does it."""
    import tritonclient.grpc as client

    rows, counts, stop = wrk.rows(), [0] * CALLERS, threading.Event()

    def call(caller: int) -> None:
        with client.InferenceServerClient(f"127.0.0.1:{server.grpc}") as connection:
            given = client.InferInput("input", [ROWS, models.FEATURES], "FP32")
            start = 0
            while not stop.is_set():
                given.set_data_from_numpy(rows[start:start + ROWS])
                connection.infer(f"{MODEL}-0", [given])
                counts[caller] += 1
                start = (start + ROWS) % 512

    with pinned(core):
        callers = [threading.Thread(target=call, args=(i,)) for i in range(CALLERS)]
        for each in callers:
            each.start()
    time.sleep(seconds / 4)
    began, before_it = time.monotonic(), sum(counts)
    time.sleep(seconds)
    rate = (sum(counts) - before_it) / (time.monotonic() - began)
    stop.set()
    for each in callers:
        each.join()
    return rate


def by_perf_analyzer(command: str, server: RealTriton, seconds: float, core: int) -> float:
    """Batches a second as perf_analyzer tells them, at the same concurrency."""
    with pinned(core):
        done = subprocess.run(
            [*shlex.split(command), "-m", f"{MODEL}-0", "-u", f"127.0.0.1:{server.grpc}", "-i", "grpc", "-b", str(ROWS),
             "--concurrency-range", f"{CALLERS}:{CALLERS}", "--measurement-interval", str(int(1000 * seconds / 2)),
             "--stability-percentage", "999", "--max-trials", "3"],
            capture_output=True, text=True, timeout=120)
    told = re.search(r"Throughput: ([0-9.]+) infer/sec", done.stdout)
    if told is None:
        raise SystemExit(f"perf_analyzer: {done.stdout[-2000:]} {done.stderr[-2000:]}")
    return float(told[1]) / ROWS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_options(parser, rounds=3, seconds=2)
    parser.add_argument("--perf-analyzer", help="the command that runs it")
    parser.add_argument("--keys", default="", help="more of the table [triton]")
    options = parser.parse_args()
    if absent := real_triton.why_absent():
        raise SystemExit(absent)
    cores = harness.settle(options)
    harness.ensure_models([MODEL], options)
    seen: dict[str, list[float]] = {}

    def window(name: str, port: int, script: Path, connections: int, rows: int = 1) -> None:
        found = wrk.drive(port, script, connections=connections, seconds=options.seconds, core=cores.client)
        if found.failed:
            raise SystemExit(f"{found.failed} requests of {name} failed")
        seen.setdefault(name, []).append(found.requests * rows / found.seconds)

    with triton(cores) as server, contextlib.ExitStack() as stack:
        fronts = {f"{place}, {protocol}": stack.enter_context(before(server, protocol, core, options))
                  for place, core in (("together", cores.server), ("apart", cores.client))
                  for protocol in ("http", "grpc")}
        for front in fronts.values():
            harness.check(front, MODEL, wrk.rows())
        direct = {f"Triton, {delay} µs": wrk.infer_script(f"{MODEL}-{delay}") for delay in DELAYS}
        for _ in range(options.rounds):
            for name, script in direct.items():
                window(name, server.http, script, 64)
            for name, front in fronts.items():
                window(f"fastinfer {name}", front.port, wrk.infer_script(MODEL), 64)
            rate = (by_perf_analyzer(options.perf_analyzer, server, options.seconds, cores.client)
                    if options.perf_analyzer else by_grpc(server, options.seconds, cores.client))
            seen.setdefault("Triton, whole, gRPC", []).append(ROWS * rate)
            window("Triton, whole, HTTP", server.http, whole_batches(f"{MODEL}-0"), CALLERS, ROWS)
            for name, front in fronts.items():
                window(f"fastinfer {name}, whole", front.port, whole_batches(MODEL), CALLERS, ROWS)
    report({name: statistics.median(rates) for name, rates in seen.items()})


def report(rates: dict[str, float]) -> None:
    single = max(rate for name, rate in rates.items() if name.startswith("Triton") and "whole" not in name)
    whole = rates["Triton, whole, gRPC"]
    over: Callable[[str], Any] = lambda name: rates[name] / (whole if "whole" in name else single)  # noqa: E731
    for name, rate in rates.items():
        kind = "rows/s" if "whole" in name else "requests/s"
        print(f"{name:36} {rate:>10,.0f} {kind:10} {over(name):5.2f} of Triton's")


if __name__ == "__main__":
    main()
