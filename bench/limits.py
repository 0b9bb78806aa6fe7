"""The floor under every server: onnxruntime alone in process, one thread, microseconds a row by batch size.

    python bench/limits.py
"""

from __future__ import annotations

import os
import statistics
import sys
import time

import models
import numpy as np
import onnxruntime
import wrk
from process import Cores, pinned

BATCHES = (1, 8, 64, 256)
REPEATS = 7
SECONDS = 0.3


def session(model: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(models.model_path(model)), options, providers=["CPUExecutionProvider"])


def microseconds_a_row(model: onnxruntime.InferenceSession, rows: np.ndarray, batch: int) -> float:
    """Median over the repeats; each batch holds other rows than the one before."""
    names = [output.name for output in model.get_outputs()]
    batches = [np.take(rows, range(start, start + batch), axis=0, mode="wrap") for start in range(0, len(rows), batch)]
    samples = []
    for _ in range(REPEATS):
        runs, began = 0, time.process_time()
        while time.process_time() - began < SECONDS:
            for inputs in batches:
                model.run(names, {"input": inputs})
            runs += len(batches)
        samples.append((time.process_time() - began) / runs / batch * 1e6)
    return statistics.median(samples)


def main() -> None:
    rows = wrk.rows()
    models.ensure(models.BUILDERS, sys.executable, os.environ)
    print("model     " + "".join(f"batch {batch:>4}  " for batch in BATCHES) + "(µs a row)")
    with pinned(Cores.choose().server):
        for name in models.BUILDERS:
            model = session(name)
            print(f"{name:8}" + "".join(f"{microseconds_a_row(model, rows, batch):12.3f}" for batch in BATCHES))


if __name__ == "__main__":
    main()
