"""The three models that every server is measured with, as a model repository: 32 float32 features, two classes.

    python bench/models.py          # writes .bench/models/<name>/1/model.onnx

Each has the outputs `label` (INT64) and `probabilities` (FP32 [-1, 2]). Seeds are fixed, so a second run makes the same
files. A fourth, ``mixed``, takes 20 raw columns through a feature program, and only fastinfer serves it. Needs the
`sklearn` extra; the harness runs this file with the interpreter of fastinfer's environment, which has it.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from process import ServerError, clean_environment

MIXED = "mixed"
FEATURES = 32
HIDDEN = 256
LARGE = 1536  # hidden units of a model of 10 MB
TREES = 300
ROWS = 4000
OPSET = 17
NUMERIC = tuple(f"amount_{index}" for index in range(12))
CATEGORIES = {f"kind_{index}": tuple(f"kind {index} level {level}" for level in range(2 + index)) for index in range(8)}
HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / ".bench" / "models"


def data() -> tuple[Any, Any]:
    from sklearn.datasets import make_classification

    features, labels = make_classification(ROWS, FEATURES, n_informative=20, random_state=1)
    return features.astype(np.float32), labels


def converted(estimator: Any) -> bytes:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    model = convert_sklearn(estimator, initial_types=[("input", FloatTensorType([None, FEATURES]))],
                            options={"zipmap": False}, target_opset=OPSET)
    for output, name in zip(model.graph.output, ("label", "probabilities"), strict=True):
        rename(model, output.name, name)
    return bytes(model.SerializeToString())


def rename(model: Any, old: str, new: str) -> None:
    """Give an output its name in every model alike, whatever the converter called it."""
    for node in model.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
        node.input[:] = [new if name == old else name for name in node.input]
    for output in model.graph.output:
        if output.name == old:
            output.name = new


def logistic() -> bytes:
    from sklearn.linear_model import LogisticRegression

    return converted(LogisticRegression(max_iter=1000).fit(*data()))


def trees() -> bytes:
    from sklearn.ensemble import GradientBoostingClassifier

    return converted(GradientBoostingClassifier(n_estimators=TREES, max_depth=3, random_state=1).fit(*data()))


def mlp(hidden: int = HIDDEN) -> bytes:
    """A perceptron 32-256-256-2, or with more hidden units; its weights are random: only its arithmetic is timed."""
    from onnx import TensorProto, checker, helper, numpy_helper

    source = np.random.default_rng(1)
    sizes = (FEATURES, hidden, hidden, 2)
    weights, nodes, flow = [], [], "input"
    for layer, (before, after) in enumerate(itertools.pairwise(sizes)):
        matrix = source.normal(0, before**-0.5, (before, after)).astype(np.float32)
        weights += [numpy_helper.from_array(matrix, f"W{layer}"),
                    numpy_helper.from_array(np.zeros(after, np.float32), f"b{layer}")]
        nodes.append(helper.make_node("Gemm", [flow, f"W{layer}", f"b{layer}"], [f"z{layer}"]))
        flow = f"z{layer}"
        if layer < 2:
            nodes.append(helper.make_node("Relu", [flow], [f"a{layer}"]))
            flow = f"a{layer}"
    nodes += [helper.make_node("Softmax", [flow], ["probabilities"], axis=-1),
              helper.make_node("ArgMax", [flow], ["label"], axis=-1, keepdims=0)]
    graph = helper.make_graph(
        nodes, "mlp", [helper.make_tensor_value_info("input", TensorProto.FLOAT, [None, FEATURES])],
        [helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
         helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def records(count: int) -> list[dict[str, Any]]:
    """Rows of 12 numbers, one in ten of them missing, and 8 categories of 2 to 9 levels; the same in every run."""
    source = np.random.default_rng(3)
    numbers = source.normal(100, 40, (count, len(NUMERIC))).round(2)
    missing = source.random(numbers.shape) < 0.1
    levels = {name: source.integers(0, len(known), count) for name, known in CATEGORIES.items()}
    return [{**{name: None if missing[row, column] else float(numbers[row, column])
                for column, name in enumerate(NUMERIC)},
             **{name: known[levels[name][row]] for name, known in CATEGORIES.items()}} for row in range(count)]


def mixed() -> Any:
    """A fitted pipeline of 20 columns: imputing and scaling, one-hot encoding, a logistic regression."""
    import pandas
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = pandas.DataFrame(records(ROWS)).astype(dict.fromkeys(NUMERIC, float))
    score = frame["amount_0"].fillna(100) + 30 * (frame["kind_0"] == "kind 0 level 1")
    labels = np.where(score > 115, "good", "bad")
    columns = ColumnTransformer([
        ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), list(NUMERIC)),
        ("categories", OneHotEncoder(handle_unknown="ignore"), list(CATEGORIES)),
    ])
    return make_pipeline(columns, LogisticRegression(max_iter=1000)).fit(frame, labels)


BUILDERS: dict[str, Callable[[], bytes]] = {"logistic": logistic, "trees": trees, "mlp": mlp}
ALONE: dict[str, Callable[[], bytes]] = {"large": partial(mlp, LARGE)}  # in no table


def model_path(name: str) -> Path:
    return MODELS / name / "1" / "model.onnx"


def ensure(names: Iterable[str], python: str, environ: Mapping[str, str]) -> None:
    """Have another interpreter make the models that are missing.

    Raises:
        ServerError: it cannot.
    """
    missing = [name for name in names if not model_path(name).exists()]
    if missing:
        finished = subprocess.run([python, __file__, *missing], capture_output=True, text=True,
                                  env=clean_environment(environ))
        if finished.returncode:
            raise ServerError(f"the models cannot be made: {finished.stderr.strip().splitlines()[-1]}")


def make(name: str) -> Path:
    """Make a model; its version folder."""
    version = model_path(name).parent
    shutil.rmtree(version, ignore_errors=True)
    version.parent.mkdir(parents=True, exist_ok=True)
    if name == MIXED:
        from fastinfer.importing import import_pipeline

        import_pipeline(mixed(), version)
        return version
    version.mkdir()
    (version / "model.onnx").write_bytes((BUILDERS | ALONE)[name]())
    return version


if __name__ == "__main__":
    for chosen in sys.argv[1:] or (*BUILDERS, *ALONE, MIXED):
        print(make(chosen))
