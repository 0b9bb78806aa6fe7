"""The feature program beside scikit-learn and the same pipeline converted by skl2onnx: one thread, in process.

    python bench/program.py                 # the table
    python bench/program.py --json          # the figures as one line of JSON
    python bench/program.py --only growth   # one of its measures

The pipeline has 20 columns: 8 numbers (imputed, scaled), 8 categories of 50 values (one-hot), 2 dates (year, month,
weekday and hour, which scikit-learn's side takes with pandas in a FunctionTransformer) and 2 texts of eight words
(TF-IDF). It gives a sparse matrix as it is, or a dense one with `sparse_threshold=0`. Samples of both sides alternate,
in CPU time; a ratio is the median of theirs. Before anything is timed, both sides give the same numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from loops import compiled
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from fastinfer._core import Signature
from fastinfer.preprocessing.program import Program
from fastinfer.preprocessing.spec import Column, Step
from fastinfer.preprocessing.vectors import Features

ROWS, BATCH = 100_000, 1_024
ROUNDS = 9
NUMBERS = [f"number_{i}" for i in range(8)]
CATEGORIES = [f"category_{i}" for i in range(8)]
DATES = [f"date_{i}" for i in range(2)]
PARTS = ("year", "month", "weekday", "hour")
TEXTS = [f"text_{i}" for i in range(2)]
WIDTHS = (8, 32, 128, 512, 1_024, 2_048, 3_072, 4_096)


class Figure(NamedTuple):
    """One line of the table: microseconds of ours and of the peer where there is one, and what the target is of."""

    name: str
    own_us: float
    peer_us: float | None
    value: float
    target: float

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.name.startswith("JSON") else self.value >= self.target


# ---- the data and the pipelines --------------------------------------------------------------------------------
def frame_of(rows: int) -> pd.DataFrame:
    source = np.random.default_rng(11)
    words = np.array(["".join(source.choice(list("abcdefghijklmnoprstuvwz"), size))
                      for size in source.integers(2, 11, 400)])
    columns: dict[str, Any] = {}
    for i, name in enumerate(NUMBERS):
        columns[name] = source.normal(10.0 * i, 3.0, rows)
        columns[name][source.uniform(size=rows) < 0.05] = np.nan
    for i, name in enumerate(CATEGORIES):
        columns[name] = pd.array(source.integers(0, 50, rows).astype(str), dtype="str") + f"-{'value' * (i % 3)}"
    for name in DATES:
        columns[name] = np.datetime64("1990-01-01") + source.integers(0, 10**9, rows).astype("timedelta64[s]")
    for name in TEXTS:
        chosen = words[source.integers(0, len(words), (rows, 8))]
        columns[name] = pd.array([" ".join(row) for row in chosen], dtype="str")
    return pd.DataFrame(columns)


def date_parts(frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    names = {"weekday": "day_of_week"}  # what pandas calls it
    parts = [getattr(frame[name].dt, names.get(part, part)) for name in frame for part in PARTS]
    return np.stack(parts, axis=1).astype(float)


def pipeline_of(*, dates: bool = True, dense: bool = False) -> ColumnTransformer:
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    parts: list[tuple[str, Any, Any]] = [
        ("numbers", numbers, NUMBERS),
        ("categories", OneHotEncoder(handle_unknown="ignore"), CATEGORIES),
        *[(name, TfidfVectorizer(), name) for name in TEXTS],
    ]
    if dates:
        parts.append(("dates", FunctionTransformer(date_parts), DATES))
    return ColumnTransformer(parts, sparse_threshold=0.0 if dense else 0.3)


def program_of(pipeline: ColumnTransformer, frame: pd.DataFrame, dtype: str = "float64") -> Program:
    """The fitted pipeline's program: all but its dates imported, and their parts as operations of the program."""
    rest = ColumnTransformer([(name, part, columns) for name, part, columns in pipeline.transformers
                              if name != "dates"], sparse_threshold=pipeline.sparse_threshold)
    rest = rest.fit(frame.drop(columns=DATES))
    spec = Program.from_sklearn(rest, sample=frame.drop(columns=DATES)[:100], dtype=dtype).spec
    columns = tuple([Column(name, "BYTES", "datetime") for name in DATES])
    steps = tuple([Step("date_part", (name,), (f"{name} {part}",), {"part": part}) for name in DATES for part in PARTS])
    features = Features([*spec.output.features.parts, *[(step.targets[0], step.targets[0]) for step in steps]])
    return Program(replace(spec, columns=spec.columns + columns, steps=spec.steps + steps, certificate=None,
                           output=replace(spec.output, features=features)))


def records_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """As JSON has them: dates are text."""
    return [{key: None if value != value else value.isoformat() if isinstance(value, pd.Timestamp) else value
             for key, value in record.items()} for record in frame.to_dict("records")]


def dense(result: Any) -> np.ndarray[Any, Any]:
    return np.asarray(result.toarray() if hasattr(result, "toarray") else result)


# ---- timing ----------------------------------------------------------------------------------------------------
def microseconds(function: Callable[[], Any], calls: int) -> float:
    began = time.process_time_ns()
    for _ in range(calls):
        function()
    return (time.process_time_ns() - began) / calls / 1000


def beside(own: Callable[[], Any], peer: Callable[[], Any], own_calls: int, peer_calls: int) -> tuple[float, ...]:
    """(microseconds of ours, of the peer's, the peer's over ours)."""
    own(), peer()
    pairs = [(microseconds(own, own_calls), microseconds(peer, peer_calls)) for _ in range(ROUNDS)]
    return (statistics.median([own for own, _ in pairs]), statistics.median([peer for _, peer in pairs]),
            statistics.median([peer / own for own, peer in pairs]))


# ---- measures --------------------------------------------------------------------------------------------------
def beside_sklearn() -> Iterator[Figure]:
    """A record in a list, as a request handler has it; a dict of lists; a frame of a row, and a whole one."""
    frame = frame_of(ROWS)
    one, records = frame[:1], records_of(frame[:1])
    lists = {key: [value] for key, value in records[0].items()}
    for kind in ("dense", "sparse"):
        pipeline = pipeline_of(dense=kind == "dense").fit(frame[:5000])
        program = program_of(pipeline, frame[:5000])
        check(dense(program.transform(frame[:500])), dense(pipeline.transform(frame[:500])))
        for name, data in (("a record", records), ("a dict of lists", lists), ("a frame of pandas", one)):
            check(dense(program.transform(data)), dense(pipeline.transform(one)))
            own, peer, ratio = beside(lambda program=program, data=data: program.transform(data),
                                      lambda pipeline=pipeline: pipeline.transform(one), 200, 5)
            yield Figure(f"one row, {name}, {kind}, beside scikit-learn on a frame", own, peer, ratio, 500)
    own, peer, ratio = beside(lambda: program.transform(frame), lambda: pipeline.transform(frame), 1, 1)
    yield Figure(f"{ROWS:,} rows of pandas, sparse, beside scikit-learn", own, peer, ratio, 8)


def beside_onnx() -> Iterator[Figure]:
    """skl2onnx knows no dates; the other 18 columns. Both sides get an array a column; numbers are float32
    there, since onnxruntime has no imputer of float64."""
    import onnxruntime
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    frame = frame_of(BATCH + 4000).drop(columns=DATES)
    pipeline = pipeline_of(dates=False, dense=True).fit(frame[BATCH:])
    program = Program.from_sklearn(pipeline, sample=frame[:100])
    types = [(name, FloatTensorType([None, 1]) if name in NUMBERS else StringTensorType([None, 1]))
             for name in frame.columns]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Its own locale, en_US.UTF-8, is not on every machine; the texts are ASCII.
        model = to_onnx(pipeline, initial_types=types, options={TfidfVectorizer: {"locale": "C"}})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for rows, target, own_calls, peer_calls in ((1, 5, 500, 200), (BATCH, 3, 20, 5)):
        columns = {name: frame[name][:rows].to_numpy(float if name in NUMBERS else object) for name in frame.columns}
        tensors = {name: (values.astype(np.float32) if name in NUMBERS else values).reshape(-1, 1)
                   for name, values in columns.items()}
        check(dense(program.transform(columns)), session.run(None, tensors)[0], 1e-4)
        own, peer, ratio = beside(lambda columns=columns: program.transform(columns),
                                  lambda tensors=tensors: session.run(None, tensors), own_calls, peer_calls)
        yield Figure(f"{rows:,} row{'s' * (rows > 1)}, beside skl2onnx and onnxruntime, 18 columns", own, peer, ratio,
                     target)


def from_json() -> Iterator[Figure]:
    """Bytes of a request to rows of the estimator's matrix, in the compiled core; buffers are there already."""
    loop = compiled("program_loop")
    frame = frame_of(5000)
    program = program_of(pipeline_of(dense=True).fit(frame), frame, "float32")
    signature = Signature(program.signature.inputs, [])
    for rows in (1, 64):
        records = {"records": records_of(frame[:rows])}
        body = json.dumps(records, separators=(",", ":")).encode()
        samples = [loop.features_ns(signature, program.compiled, body, max(2000 // rows, 5)) for _ in range(ROUNDS * 3)]
        own = statistics.median(samples) / rows / 1000
        yield Figure(f"JSON record to feature row, {rows} in a request, {len(body) // rows} bytes, "
                     f"{program.width} features", own, None, own, 2.0)


def growth() -> Iterator[Figure]:
    """Time of 256 rows over the number of columns: the coefficient of determination of a straight line."""
    times = []
    for width in WIDTHS:
        values = np.random.default_rng(3).normal(size=(256, width))
        program = Program.from_sklearn(make_pipeline(SimpleImputer(), StandardScaler()).fit(values))
        program.transform(values)
        times.append(statistics.median([microseconds(lambda p=program, v=values: p.transform(v), max(4096 // width, 3))
                                        for _ in range(ROUNDS)]))
    line = np.polyval(np.polyfit(WIDTHS, times, 1), WIDTHS)
    determination = 1 - np.sum((np.array(times) - line) ** 2) / np.sum((np.array(times) - np.mean(times)) ** 2)
    yield Figure("growth with columns, 8 to 4,096, R² of a line (256 rows)", times[-1], None, float(determination),
                 0.99)


def check(own: np.ndarray[Any, Any], peer: np.ndarray[Any, Any], tolerance: float = 0.0) -> None:
    equal = np.array_equal(own, peer) if not tolerance else np.allclose(own, peer, tolerance, tolerance)
    if not equal:
        raise SystemExit("the two sides disagree")


MEASURES: dict[str, Callable[[], Iterator[Figure]]] = {
    "sklearn": beside_sklearn, "onnx": beside_onnx, "json": from_json, "growth": growth,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--only", choices=MEASURES, help="one measure")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    figures = [figure for name, measure in MEASURES.items() if options.only in (None, name) for figure in measure()]
    if options.json:
        print(json.dumps([figure._asdict() for figure in figures]))
        return
    print(f"{'':74} {'ours, µs':>11} {'peer, µs':>13} {'':>9} {'target':>7}")
    for figure in figures:
        peer = "" if figure.peer_us is None else f"{figure.peer_us:13,.1f}"
        print(f"{figure.name:74} {figure.own_us:11,.2f} {peer:>13} {figure.value:9,.3f} {figure.target:7g}"
              f"{'' if figure.met else '  missed'}")


if __name__ == "__main__":
    main()
