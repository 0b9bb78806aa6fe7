"""What becomes of requests when the Triton behind a model breaks, and what a local model beside it feels of it.

    python bench/fault_table.py                 # every fault of faulty_proxy.py
    python bench/fault_table.py --only answer   # those whose name holds a text, and the row without a fault

For each fault: the statuses of requests with 500 ms to be answered, their longest time, and the local model's p99 under
a fixed rate while such requests go on, over its p99 in the window beside it, in which Triton is well: the median of
such pairs, which of the two comes first by turns, and the least and the largest ratio. The first row has no fault in
either window: what it shows is the measure's own spread.

The server has a core. On the other one the local model's client goes before all else: Triton, the proxy and those who
ask it have the lowest priority there, or their work would be taken for the server's.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import harness
import models
import real_triton
import triton_server
import wrk
from faulty_proxy import FAULTS, FaultyProxy
from process import pinned
from real_triton import RealTriton

MODEL, LOCAL = "mlp", "logistic"
LIMIT_MS = 500
RATE = 2000  # requests a second of the local model
ASKERS = 4
PAUSE = 0.02  # seconds of each between two requests
SETTLE = 0.3  # seconds, in which what was under way ends
T = TypeVar("T")
WORK = harness.BENCH / "work" / "faults"


class Asker:
    """Asks the model behind the faults, over and over."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.body = json.dumps({**json.loads(wrk.body(wrk.rows()[0])), "parameters": {"timeout": LIMIT_MS * 1000}})
        self.seen: Counter[int] = Counter()
        self.longest = 0.0
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.ask) for _ in range(ASKERS)]

    def __enter__(self) -> Asker:
        for each in self.threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for each in self.threads:
            each.join()

    def ask(self) -> None:
        yield_core()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        while not self.stop.is_set():
            began = time.monotonic()
            connection.request("POST", f"/v2/models/{MODEL}/infer", self.body)
            answer = connection.getresponse()
            answer.read()
            self.longest = max(self.longest, time.monotonic() - began)
            self.seen[answer.status] += 1
            time.sleep(PAUSE)

    def since(self) -> tuple[Counter[int], float]:
        """What was seen since the last time this was called."""
        seen, longest = self.seen, self.longest
        self.seen, self.longest = Counter(), 0.0
        return seen, longest


def yield_core() -> None:
    """This thread, and what it starts, after all others of its core: Linux has a priority for each thread."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def yielding(work: Callable[[], T]) -> T:
    """What a function gives, called where the threads and processes that it starts yield the core."""
    found: list[T] = []

    def run() -> None:
        yield_core()
        found.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def until_well(port: int) -> None:
    deadline = time.monotonic() + 20
    while not harness.answers(port, wrk.infer_path(MODEL), wrk.body(wrk.rows()[0])):
        if time.monotonic() > deadline:
            raise SystemExit("the model does not come back")
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_options(parser, rounds=5, seconds=2)
    parser.add_argument("--only", default="", help="faults whose name holds this")
    options = parser.parse_args()
    if absent := real_triton.why_absent():
        raise SystemExit(absent)
    cores = harness.settle(options)
    harness.ensure_models([MODEL, LOCAL], options)
    shutil.rmtree(WORK, ignore_errors=True)
    (WORK / "triton" / MODEL / "1").mkdir(parents=True)
    (WORK / "triton" / MODEL / "config.pbtxt").write_text(triton_server.CONFIGURATION.format(model=MODEL))
    shutil.copyfile(Path(__file__).parent / "servers" / "triton_model.py", WORK / "triton" / MODEL / "1" / "model.py")
    shutil.copytree(models.model_path(LOCAL).parent, WORK / "models" / LOCAL / "1")
    (WORK / "models" / MODEL).mkdir()
    server = RealTriton(WORK, WORK / "triton", environ={"BENCH_MODEL": str(models.model_path(MODEL))})
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        with pinned(cores.client):
            yielding(server.start)
            proxy = yielding(lambda: FaultyProxy(server.http))
        stack.callback(proxy.close)
        (WORK / "models" / MODEL / "model.toml").write_text(
            # What is done to answers is done to tensors in them.
            f'runtime = "triton"\n[triton]\nurl = "127.0.0.1:{proxy.port}"\nshared_memory = false\n')
        front = stack.enter_context(harness.serving("faults", [str(WORK / "models")], options, cores))
        stack.enter_context(pinned(cores.client))
        asker = stack.enter_context(Asker(front.port))
        script = wrk.infer_script(LOCAL, rate=RATE)

        def window(fault: str | None) -> float:
            """The local model's p99 meanwhile, microseconds."""
            proxy.set(fault)
            if fault is None:
                until_well(front.port)
            time.sleep(SETTLE)
            asker.since()
            return wrk.drive(front.port, script, connections=16, seconds=options.seconds, core=cores.client).p99_us

        print(f"{'fault':38} {'statuses':26} {'longest':>9} {'local p99':>10} {'over well':>9} {'least':>6} "
              f"{'most':>6}")
        for name in (None, *FAULTS):
            if name is not None and options.only not in name:
                continue
            ratios, statuses, longest, felt = [], Counter[int](), 0.0, []
            for i in range(options.rounds):
                well = window(None) if i % 2 == 0 else 0.0
                felt.append(window(name))
                seen, took = asker.since()
                statuses += seen
                longest = max(longest, took)
                ratios.append(felt[-1] / (well or window(None)))
            shown = " ".join(f"{status}×{count}" for status, count in sorted(statuses.items()))
            print(f"{name or 'none':38} {shown:26} {longest * 1e3:>6.0f} ms {statistics.median(felt):>7.0f} µs "
                  f"{statistics.median(ratios):>9.2f} {min(ratios):>6.2f} {max(ratios):>6.2f}", flush=True)


if __name__ == "__main__":
    main()
