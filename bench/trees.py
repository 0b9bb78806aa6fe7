"""LightGBM's trees in the core beside onnxruntime, lleaves and LightGBM itself, in turn, in one process on one thread.

    pip install lightgbm onnxmltools lleaves 'llvmlite<0.45'     # beside fastinfer; what is missing is left out
    taskset -c 1 python bench/trees.py           # half a minute

300 trees of 31 leaves, 30 features, rows that differ. Every round asks each of them for all rows, in batches of one
size; what is printed is the median of the rounds, and of the rounds' ratios. Before anything is timed, the answers are
compared: ours are LightGBM's, bit by bit. onnxruntime has the float32 operator that onnxmltools writes, on one thread.

At the end the same file is served, on another core where there is one, and one-row requests come one after the other:
the model's time a request, as the server's statistics have it, beside what ``Booster.predict`` takes for the same rows
one by one from Python.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
from process import Cores

FEATURES, TREES, LEAVES = 30, 300, 31
SIZES = (1, 10, 64, 100)
ROWS = 6400
Predict = Callable[[Any], Any]


def booster() -> Any:
    import lightgbm

    source = np.random.default_rng(0)
    rows = source.normal(size=(20_000, FEATURES))
    good = rows[:, 0] * rows[:, 1] + rows[:, 2] + np.sin(3 * rows[:, 3]) + source.normal(size=20_000) / 2 > 0
    options = {"objective": "binary", "num_leaves": LEAVES, "verbose": -1, "num_threads": 1}
    return lightgbm.train(options, lightgbm.Dataset(rows, good), TREES)


def peers(model: Any, folder: Path) -> dict[str, tuple[Predict, Any]]:
    """By name: what answers rows with the second class's probability, and the rows' dtype."""
    from fastinfer.runtimes.lightgbm import planted

    path = folder / "model.txt"
    model.save_model(path)
    forest = planted(path.read_bytes()).forest()
    found: dict[str, tuple[Predict, Any]] = {
        "fastinfer": (lambda rows: forest.run({"features": rows})["probabilities"][:, 1], np.float64),
        "lightgbm": (lambda rows: model.predict(rows, num_threads=1), np.float64),
    }
    if importlib.util.find_spec("onnxmltools"):
        found["onnxruntime"] = (onnxruntime_session(model), np.float32)
    if importlib.util.find_spec("lleaves"):
        import lleaves

        compiled = lleaves.Model(model_file=str(path))
        compiled.compile()
        found["lleaves"] = (lambda rows: compiled.predict(rows, n_jobs=1), np.float64)
    return found


def onnxruntime_session(model: Any) -> Predict:
    import onnxruntime
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    graph = convert_lightgbm(model, initial_types=[("x", FloatTensorType([None, FEATURES]))], zipmap=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_outputs()[1].name
    return lambda rows: session.run([name], {"x": rows})[0][:, 1]


def seconds(predict: Predict, batches: list[Any]) -> float:
    started = time.perf_counter()
    for batch in batches:
        predict(batch)
    return time.perf_counter() - started


def served(model: Any, rows: Any, rounds: int) -> None:
    """One-row requests to a server that has the file, in turn with the library."""
    mine = os.sched_getaffinity(0)
    core = next((each for each in range(os.cpu_count() or 1) if each not in mine), min(mine))
    options = argparse.Namespace(python=sys.executable, given=True)
    with tempfile.TemporaryDirectory() as folder:
        version = Path(folder) / "trees" / "1"
        version.mkdir(parents=True)
        model.save_model(version / "model.txt")
        with harness.serving("trees", [folder], options, Cores(core, core)) as server:
            connection = http.client.HTTPConnection("127.0.0.1", server.port)

            def ask(path: str, body: Any = None) -> Any:
                connection.request("POST" if body else "GET", f"/v2/models/trees{path}", body and json.dumps(body),
                                   {"content-type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200:
                    raise harness.ServerError(f"status {answer.status}: {text[:300]!r}")
                return json.loads(text)

            def spent() -> tuple[int, int]:
                part = ask("/stats")["model_stats"][0]["inference_stats"]["compute_infer"]
                return part["count"], part["ns"]

            name = ask("")["inputs"][0]["name"]
            ours, theirs = [], []
            for _ in range(rounds):
                count, ns = spent()
                for row in rows:
                    ask("/infer", {"inputs": [{"name": name, "shape": [1, FEATURES], "datatype": "FP64",
                                               "data": row.tolist()}]})
                after = spent()
                ours.append((after[1] - ns) / (after[0] - count) / 1e3)
                taken = seconds(lambda row: model.predict(row, num_threads=1), list(rows[:, None]))
                theirs.append(taken / len(rows) * 1e6)
            connection.close()
    ratio = statistics.median(own / their for own, their in zip(ours, theirs, strict=True))
    print(f"\none row through the server: {statistics.median(ours):.2f} us in the model, Booster.predict "
          f"{statistics.median(theirs):.1f} us, {ratio:.4f} of it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    model = booster()
    rows = np.random.default_rng(1).normal(size=(ROWS, FEATURES))
    with tempfile.TemporaryDirectory() as folder:
        asked = peers(model, Path(folder))
    expected = model.predict(rows)
    for name, (predict, dtype) in asked.items():
        answers = np.asarray(predict(rows.astype(dtype)), np.float64)
        print(f"{name:<12} largest difference from LightGBM: {np.abs(answers - expected).max():.1g}")
    print(f"\n{'rows':>4}  " + "  ".join(f"{name:>12}" for name in asked) + "   µs a row; fastinfer's advantage")
    for size in SIZES:
        count = ROWS if size > 1 else ROWS // 16
        batches = {dtype: [np.ascontiguousarray(rows[i:i + size], dtype) for i in range(0, count - size + 1, size)]
                   for dtype in (np.float32, np.float64)}
        times: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(arguments.rounds):
            for name, (predict, dtype) in asked.items():
                times[name].append(seconds(predict, batches[dtype]) / (len(batches[dtype]) * size) * 1e6)
        ours = times["fastinfer"]
        ratios = {name: statistics.median(theirs / own for theirs, own in zip(each, ours, strict=True))
                  for name, each in times.items() if name != "fastinfer"}
        print(f"{size:>4}  " + "  ".join(f"{statistics.median(each):>12.2f}" for each in times.values()) + "   "
              + ", ".join(f"{name} {ratio:.1f}x" for name, ratio in ratios.items()), flush=True)
    served(model, rows[:ROWS // 16], arguments.rounds)


if __name__ == "__main__":
    main()
