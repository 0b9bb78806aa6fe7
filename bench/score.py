"""`fastinfer score` beside a script of pandas, scikit-learn and onnxruntime, on the same Parquet file, in one run.

    python bench/score.py                       # 1,000,000 rows, three rounds in turn
    python bench/score.py --rows 200000 --rounds 1

12 columns: 8 numbers, half of them with missing values, and 4 of text; imputing, scaling, one-hot encoding; gradient
boosting of 300 trees. Each runs as a process of its own, its imports included; wall time and peak memory are the
process's. What is kept is the median of the rounds. The script is `score_script.py`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / ".bench" / "score"
TREES = 300
TRAINED = 20_000
CHUNK = 100_000
NUMBERS = tuple(f"amount_{i}" for i in range(8))
KINDS = {f"kind_{i}": tuple(f"kind {i} level {level}" for level in range(3 + 3 * i)) for i in range(4)}


class Cost(NamedTuple):
    """Of a process: seconds, seconds of CPU, and MiB at most."""

    wall: float
    cpu: float
    memory: float


def frame(rows: int, seed: int) -> Any:
    """Log-normal amounts, one in ten missing in half of the columns, and levels of 3 to 12, some missing."""
    import pandas

    source = np.random.default_rng(seed)
    columns: dict[str, Any] = {name: source.lognormal(3, 1, rows) for name in NUMBERS}
    for name in NUMBERS[: len(NUMBERS) // 2]:
        columns[name][source.random(rows) < 0.1] = np.nan
    columns |= {name: source.choice(levels, rows) for name, levels in KINDS.items()}
    made = pandas.DataFrame(columns)
    made.loc[source.random(rows) < 0.05, "kind_1"] = None
    return made


def make_model() -> None:
    """The fitted pipeline, its import, and its estimator as the script has it."""
    import joblib
    from skl2onnx import to_onnx
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    from fastinfer.importing import import_pipeline

    data = frame(TRAINED, 0)
    odd = data["kind_2"].str[-1].isin(list("02468"))
    labels = np.where((data["amount_0"].fillna(20) + data["amount_5"] > 60) ^ odd, "good", "bad")
    columns = ColumnTransformer([
        ("numbers", make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()),
         list(NUMBERS)),
        ("kinds", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")),
         list(KINDS)),
    ])
    pipeline = make_pipeline(columns, GradientBoostingClassifier(n_estimators=TREES, random_state=0))
    pipeline.fit(data, labels)
    FOLDER.mkdir(parents=True, exist_ok=True)
    features = np.asarray(columns.transform(data.iloc[:1]), dtype=np.float32)
    onnx = to_onnx(pipeline[-1], features, options={"zipmap": False})
    (FOLDER / "estimator.onnx").write_bytes(onnx.SerializeToString())
    import_pipeline(pipeline, FOLDER / "models" / "boosting" / "1", sample=data.iloc[:2000])
    joblib.dump(pipeline, FOLDER / "pipeline.joblib")


def make_rows(rows: int) -> Path:
    import pyarrow
    from pyarrow import parquet

    path = FOLDER / f"{rows}.parquet"
    if not path.exists():
        writer = None
        for seed, start in enumerate(range(0, rows, CHUNK), 1):
            table = pyarrow.Table.from_pandas(frame(min(CHUNK, rows - start), seed), preserve_index=False)
            writer = writer or parquet.ParquetWriter(FOLDER / "new", table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
        (FOLDER / "new").rename(path)
    return path


def run(command: list[str]) -> Cost:
    """Run it to its end; its output is kept for an error."""
    started = time.perf_counter()
    process = os.posix_spawn(sys.executable, [sys.executable, *command], os.environ)
    _, status, usage = os.wait4(process, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)}: it ended with {os.waitstatus_to_exitcode(status)}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def same(ours: Path, theirs: Path) -> float:
    """The largest difference of a probability; labels must be the same."""
    from pyarrow import parquet

    left, right = parquet.read_table(ours), parquet.read_table(theirs)
    assert left.column_names == right.column_names, (left.column_names, right.column_names)
    worst = max(float(np.abs(left[name].to_numpy() - right[name].to_numpy()).max())
                for name in left.column_names if name.startswith("probabilities."))
    moved = sum(a != b for a, b in zip(left["label"].to_pylist(), right["label"].to_pylist(), strict=True))
    print(f"labels that differ: {moved} of {left.num_rows:,}; worst difference of a probability: {worst:.1g}")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not (FOLDER / "pipeline.joblib").exists():
        make_model()
    source = make_rows(arguments.rows)
    quarter = make_rows(arguments.rows // 4)
    ours, theirs = FOLDER / "ours.parquet", FOLDER / "theirs.parquet"
    score = ["-P", "-m", "fastinfer", "score", str(FOLDER / "models" / "boosting")]
    script = [str(HERE / "score_script.py"), str(FOLDER / "pipeline.joblib"), str(FOLDER / "estimator.onnx")]
    small = run([*score, str(quarter), "--out", str(ours)])
    costs: dict[str, list[Cost]] = {"fastinfer score": [], "script": []}
    for _ in range(arguments.rounds):
        costs["script"].append(run([*script, str(source), str(theirs)]))
        costs["fastinfer score"].append(run([*score, str(source), "--out", str(ours)]))
    same(ours, theirs)
    medians = {name: Cost(*map(statistics.median, zip(*each, strict=True))) for name, each in costs.items()}
    for name, cost in medians.items():
        print(f"{name:<16} {cost.wall:6.2f} s  {cost.cpu:6.2f} s of CPU  {cost.memory:5.0f} MiB  "
              f"{arguments.rows / cost.wall:,.0f} rows/s")
    ratio = statistics.median(theirs.wall / ours.wall for ours, theirs in
                              zip(costs["fastinfer score"], costs["script"], strict=True))
    print(f"ratio {ratio:.2f}; memory on a quarter of the rows: {small.memory:.0f} MiB")


if __name__ == "__main__":
    main()
