"""A model repository with one model that is as slow as it is told to be, on the machine and the core that make it.

    python loadtests/paced_model.py OUT --rate 300 --max-batch-size 16 --slo-ms 200

The model gives back its input (FP32 [n, 8]) after a loop of small matrix products. A run costs as much as its rows and
two more, so batches pay, as they do with models that are slow in earnest. How many turns the loop takes is measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, save_model

NAME = "paced"
WIDTH = 8
SIZE = 48  # of the products: too small for onnxruntime to use a second thread
FIXED_ROWS = 2  # what a run costs beside its rows
TRIAL_TURNS = 20
TRIALS = 9
CLOSE = 0.03  # to what is wanted


def value(name: str, kind: int, shape: list[int | str]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def write(path: Path, turns_a_row: int) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("MatMul", ["m", "matrix"], ["product"]),
         helper.make_node("Tanh", ["product"], ["m_out"])],
        "body",
        [value("step", TensorProto.INT64, []), value("go", TensorProto.BOOL, []),
         value("m", TensorProto.FLOAT, [SIZE, SIZE])],
        [value("go_on", TensorProto.BOOL, []), value("m_out", TensorProto.FLOAT, [SIZE, SIZE])],
    )
    nodes = [
        helper.make_node("Shape", ["input"], ["rows"], start=0, end=1),
        helper.make_node("Squeeze", ["rows"], ["count"]),
        helper.make_node("Add", ["count", "fixed"], ["paid"]),
        helper.make_node("Mul", ["paid", "turns_a_row"], ["turns"]),
        helper.make_node("Loop", ["turns", "yes", "matrix"], ["last"], body=body),
        # What the loop gives is used, so that no optimiser leaves it out.
        helper.make_node("ReduceMin", ["last"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "zero"], ["nothing"]),
        helper.make_node("Add", ["input", "nothing"], ["output"]),
    ]
    matrix = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32) / np.float32(SIZE ** 0.5)
    constants = {"matrix": matrix, "yes": np.array(True), "zero": np.float32(0), "fixed": np.array(FIXED_ROWS),
                 "turns_a_row": np.array(turns_a_row)}
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, NAME, [value("input", TensorProto.FLOAT, ["n", WIDTH])],
                              [value("output", TensorProto.FLOAT, ["n", WIDTH])], tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def seconds_a_run(path: Path, rows: int) -> float:
    """The best of several runs, on one thread: what else the machine does makes a run slower, and nothing faster."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    batch = {"input": np.zeros((rows, WIDTH), np.float32)}
    times = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        session.run(None, batch)
        times.append(time.perf_counter() - began)
    return min(times)


def make(out: Path, *, rate: float, max_batch_size: int, slo_ms: float) -> float:
    """Write the repository; seconds that a full batch takes."""
    path = out / NAME / "1" / "model.onnx"
    turns = TRIAL_TURNS
    wanted = max_batch_size / rate
    for _ in range(8):  # the first times from a run that is much shorter, and until two agree
        write(path, turns)
        took = seconds_a_run(path, max_batch_size)
        if abs(took / wanted - 1) < CLOSE:
            break
        turns = max(1, round(turns * wanted / took))
    (out / NAME / "model.toml").write_text(f"max_batch_size = {max_batch_size}\nslo_ms = {slo_ms:g}\n")
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="the repository's folder")
    parser.add_argument("--rate", type=float, default=300.0, help="rows a second in full batches")
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--slo-ms", type=float, default=200.0, help="written into its model.toml")
    options = parser.parse_args()
    took = make(options.out, rate=options.rate, max_batch_size=options.max_batch_size, slo_ms=options.slo_ms)
    print(f"{options.max_batch_size} rows take {took * 1000:.1f} ms on core {min(os.sched_getaffinity(0))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
