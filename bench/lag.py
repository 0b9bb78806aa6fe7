"""How long the event loop keeps others waiting while a slow model runs on a thread beside it.

    python bench/lag.py --python .venv/bin/python
    python bench/lag.py --rate 2000

The server has one core, the client the other. Health is asked 200 times a second, and where `--rate` says so one-row
requests to a perceptron as well, in windows in turn without and with a model beside it whose runs take 0.2 s each, one
after the other: onnxruntime's, and a Python class's, which computes in Python alone. Beside the latencies stands how
long the loop's thread had something to do and no core, a wake-up, as the kernel has it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import latency
import models
import numpy as np
import wrk
from environments import InstallError
from process import Cores, Server, ServerError

RUN = 0.2  # seconds
HEALTH = 200.0  # questions a second
WIDTH = 256
PYTHON = f"""
import time

class Model:
    inputs = {{"x": ("FP32", (-1, 1))}}
    outputs = {{"y": ("FP32", (-1, 1))}}

    def __init__(self, folder):
        pass

    def predict(self, inputs):
        end, number = time.thread_time() + {RUN}, 0
        while time.thread_time() < end:
            for step in range(1000):
                number += step
        return {{"y": inputs["x"]}}
"""


def layers(count: int) -> bytes:
    """A network that takes one matrix and answers its first row."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
    constants = [numpy_helper.from_array(weights, "w"), *(
        numpy_helper.from_array(np.array([value], np.int64), name) for name, value in (("a", 0), ("b", 1)))]
    nodes, flow = [], "x"
    for layer in range(count):
        nodes += [helper.make_node("MatMul", [flow, "w"], [f"h{layer}"]),
                  helper.make_node("Tanh", [f"h{layer}"], [f"t{layer}"])]
        flow = f"t{layer}"
    nodes.append(helper.make_node("Slice", [flow, "a", "b", "a"], ["y"]))
    graph = helper.make_graph(
        nodes, "slow", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [WIDTH, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, WIDTH])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", models.OPSET)], ir_version=8)
    return bytes(model.SerializeToString())


def slow_network() -> bytes:
    """One whose run takes about so long on this machine."""
    import onnxruntime

    options, matrix = onnxruntime.SessionOptions(), np.ones((WIDTH, WIDTH), np.float32)
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(layers(20), options)
    session.run(None, {"x": matrix})
    started = time.perf_counter()
    session.run(None, {"x": matrix})
    return layers(max(1, round(20 * RUN / (time.perf_counter() - started))))


def tensor(shape: list[int]) -> bytes:
    data = np.ones(shape, np.float32).ravel().tolist()
    return json.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": data}]}).encode()


class Runs(threading.Thread):
    """Keeps a slow model busy."""

    def __init__(self, port: int, model: str, body: bytes) -> None:
        super().__init__(daemon=True)
        self.port, self.model, self.body = port, model, body
        self.took: list[float] = []
        self.stop = threading.Event()
        self.fault: OSError | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                started = time.perf_counter()
                harness.post(self.port, wrk.infer_path(self.model), self.body)
                self.took.append(time.perf_counter() - started)
        except OSError as error:
            self.fault = error


@contextmanager
def repository() -> Iterator[Path]:
    folder = harness.BENCH / "work" / "lag"
    shutil.rmtree(folder, ignore_errors=True)
    for name, file, data in (("mlp", "model.onnx", models.model_path("mlp").read_bytes()),
                             ("network", "model.onnx", slow_network()), ("python", "model.py", PYTHON.encode())):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / file).write_bytes(data)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def waits(server: Server) -> tuple[int, int]:
    """Nanoseconds that the loop's thread was ready and had no core, and how often it got one."""
    _, waited, times = Path(f"/proc/{server.pid}/task/{server.pid}/schedstat").read_text().split()
    return int(waited), int(times)


def compare(server: Server, what: str, body: bytes, ask: Callable[[], latency.Window], rounds: int) -> None:
    """Windows in turn without and with a model beside, and what they give together."""
    found: dict[str, list[Any]] = {"without": [], "with": []}
    waited, took, failed = {"without": 0.0, "with": 0.0}, [], 0
    for _ in range(rounds):
        for side in found:
            runs = Runs(server.port, what, body)
            if side == "with":
                runs.start()
            before = waits(server)
            window = ask()
            after = waits(server)
            runs.stop.set()
            if side == "with":
                runs.join()
            if runs.fault is not None:
                raise ServerError(f"a run failed: {runs.fault}")
            waited[side] += (after[0] - before[0]) / max(after[1] - before[1], 1) / 1000 / rounds
            found[side].append(window.latencies)
            failed += window.failed
            took += runs.took
    for side, latencies in found.items():
        whole = latency.Window(np.concatenate(latencies), failed)
        print(f"  {what}, {side}: p50 {whole.percentile(50):.0f} us, p99 {whole.percentile(99):.0f} us, largest "
              f"{whole.latencies.max() / 1000:.1f} ms; over 2 ms {whole.over(2):.2%}; {waited[side]:.0f} us without a "
              f"core a wake-up; {failed} of {len(whole.latencies)} failed")
    print(f"  its runs took {statistics.median(took) * 1000:.0f} ms")


def lag(options: argparse.Namespace, cores: Cores) -> None:
    with repository() as folder, harness.serving(
        "lag", [str(folder), "--allow-python-models"], options, cores
    ) as server:
        asked = [("health", latency.request("GET", "/v2/health/live"), HEALTH)]
        if options.rate:
            request = latency.request("POST", wrk.infer_path("mlp"), wrk.body(wrk.rows()[0]))
            asked.append(("the perceptron", request, options.rate))
        for name, request, rate in asked:
            print(f"{name}, {rate:.0f} a second:")

            def ask(request: bytes = request, rate: float = rate) -> latency.Window:
                return latency.drive(server.port, request, rate=rate, seconds=options.seconds, core=cores.client)

            ask()
            compare(server, "network", tensor([WIDTH, WIDTH]), ask, options.rounds)
            compare(server, "python", tensor([1, 1]), ask, options.rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_options(parser, rounds=3, seconds=4)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second to a perceptron, too (default: 0)")
    options = parser.parse_args()
    try:
        cores = harness.settle(options)
        harness.ensure_models(("mlp",), options)
        lag(options, cores)
    except (ServerError, InstallError) as error:
        print(f"lag.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
