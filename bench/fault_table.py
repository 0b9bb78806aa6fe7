"""What becomes of requests when the Triton behind a model breaks, and what a local model beside it feels of it.

    python bench/fault_table.py                    # every fault of faulty_proxy.py
    python bench/fault_table.py --only answer      # those whose name holds a text
    python bench/fault_table.py --keep FILE        # add to what FILE has of earlier runs, and show all of it

For each fault: the statuses of requests with 500 ms to be answered, their longest time, and what becomes meanwhile of
a local model under a fixed rate of requests: its p99, and the CPU time of the whole server for each of its answers.
Windows are short and many, for a machine is never quiet for long; every third one has no fault, but requests for a
Triton that is well. A figure is the median over a fault's windows, over the median of those without a fault, with the
interval in which 19 of 20 such quotients lie when windows are drawn anew from those that were seen. The first row
compares every other window without a fault with the rest of them: how far it is from 1 is what the measure cannot tell.

Of the p99 only bursts tell, and it takes many windows (--rounds); CPU time is quiet, but does not tell of bursts.

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
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import harness
import models
import numpy as np
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
EVERY = 3  # so many windows, one of them without a fault
DRAWN = 4000  # quotients
FEWEST = 5  # windows of which an interval says something
MOST = 1.10  # of what the local model has without a fault
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


def cpu_ns(pid: int) -> int:
    """Processor time of all threads of a process so far."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_options(parser, rounds=30, seconds=1)
    parser.add_argument("--only", default="", help="faults whose name holds this; several with commas")
    parser.add_argument("--keep", type=Path, help="a file of windows, to which those of this run are added")
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
    keep = options.keep or WORK / "windows"
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
        file = stack.enter_context(keep.open("a"))

        def window(fault: str | None) -> dict[str, Any]:
            proxy.set(None)
            until_well(front.port)
            proxy.set(fault)
            time.sleep(SETTLE)
            asker.since()
            used = cpu_ns(front.pid)
            found = wrk.drive(front.port, script, connections=16, seconds=options.seconds, core=cores.client)
            used = cpu_ns(front.pid) - used
            statuses, longest = asker.since()
            return {"fault": fault or "", "p99_us": found.p99_us, "cpu_us": used / 1e3 / found.requests,
                    "statuses": statuses, "longest_ms": 1e3 * longest}

        chosen = [fault for fault in FAULTS if any(text in fault for text in options.only.split(","))]
        for number in range(options.rounds):
            for i, fault in enumerate(chosen if number % 2 == 0 else chosen[::-1]):
                for each in (None, fault) if i % (EVERY - 1) == 0 else (fault,):
                    print(json.dumps(window(each)), file=file, flush=True)
    show([json.loads(line) for line in keep.read_text().splitlines()])


def show(windows: list[dict[str, Any]]) -> None:
    """The table of windows, of one run or of several."""
    well = [each for each in windows if not each["fault"]]
    rows = [("none", well[::2], well[1::2])]
    by_fault = {fault: [each for each in windows if each["fault"] == fault] for fault in FAULTS}
    rows += [(fault, found, well) for fault, found in by_fault.items() if found]
    print(f"{'fault':36} {'statuses':26} {'longest':>8} {'windows':>7} {'p99':>8} {'over well':>17} {'CPU':>7} "
          f"{'over well':>17}  p99 {MOST - 1:.0%} more?")
    for name, found, beside in rows:
        statuses: Counter[str] = sum((Counter(each["statuses"]) for each in found), Counter())
        said = " ".join(f"{status}×{count}" for status, count in sorted(statuses.items()))
        line = f"{name:36} {said:26} {max(each['longest_ms'] for each in found):>5.0f} ms {len(found):>7}"
        for key in ("p99_us", "cpu_us"):
            here, there = ([each[key] for each in side] for side in (found, beside))
            middle, low, high = quotient(here, there)
            line += f" {np.median(here):>5.0f} µs {middle:>5.2f} ({low:.2f}–{high:.2f})"
            if key == "p99_us":
                told = "no" if high < MOST else "yes" if low > MOST else "not told"
                if min(len(here), len(there)) < FEWEST:
                    told = "not told"
        print(f"{line}  {told}")


def quotient(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """The quotient of two medians, and between what it lies in 19 of 20 draws from the same values."""
    generator = np.random.default_rng(7)
    drawn = [np.median(generator.choice(side, (DRAWN, len(side))), axis=1) for side in (over, under)]
    low, high = np.quantile(drawn[0] / drawn[1], (0.025, 0.975))
    return float(np.median(over) / np.median(under)), float(low), float(high)


if __name__ == "__main__":
    main()
