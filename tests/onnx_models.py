"""Small ONNX models, each with one property that a test is about."""

from __future__ import annotations

import functools
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save_model
from onnxruntime import InferenceSession

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}
Dims = list[int | str]
WEIGHTS = np.array([[0.5, -1.0, 0.25], [1.5, 0.75, -0.5], [-0.25, 2.0, 1.0], [0.125, 0.375, -1.25]], dtype=np.float32)
BIAS = np.array([0.5, -0.25, 0.125], dtype=np.float32)
TABLE = np.array([10.0, 20.0, 30.0, 40.0], dtype=np.float32)


def value(name: str, datatype: str, dims: Dims) -> Any:
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], dims)


def write(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **constants: Any) -> Path:
    """A model file with these nodes; `constants` are its initializers."""
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def identity(path: Path, datatype: str, dims: Dims | None = None) -> Path:
    """y = x, of any datatype; [n, 2] unless `dims` says otherwise."""
    dims = dims or ["n", 2]
    node = helper.make_node("Identity", ["x"], ["y"])
    return write(path, [node], [value("x", datatype, dims)], [value("y", datatype, dims)])


def affine(path: Path) -> Path:
    """y = x @ WEIGHTS + BIAS: FP32 [n, 4] to [n, 3]."""
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    return write(path, [node], [value("x", "FP32", ["n", 4])], [value("y", "FP32", ["n", 3])], w=WEIGHTS, b=BIAS)


def constant(path: Path, number: float, weight: int = 0) -> Path:
    """a = b = number, whatever x is: FP32 [n, 2] to [n, 2] twice; with so many bytes of `weight` that do nothing."""
    nodes = [
        helper.make_node("Mul", ["x", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "number"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
    ]
    constants = {"zero": np.zeros(1, np.float32), "number": np.full(1, number, np.float32)}
    if weight:
        nodes.insert(0, helper.make_node("ReduceSum", ["ballast"], ["sum"], keepdims=0))
        nodes.insert(1, helper.make_node("Mul", ["sum", "zero"], ["naught"]))
        nodes[2] = helper.make_node("Mul", ["x", "naught"], ["nothing"])
        constants["ballast"] = np.ones(weight // 4, np.float32)
    outputs = [value(name, "FP32", ["n", 2]) for name in ("a", "b")]
    return write(path, nodes, [value("x", "FP32", ["n", 2])], outputs, **constants)


def two_inputs(path: Path) -> Path:
    """total = a + b and difference = a - b: FP32 [n, 2] each."""
    nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    names = ["a", "b"], ["total", "difference"]
    inputs, outputs = ([value(name, "FP32", ["n", 2]) for name in group] for group in names)
    return write(path, nodes, inputs, outputs)


def classifier(path: Path) -> Path:
    """label (INT64 [n]) and probabilities (FP32 [n, 3]) of an affine model."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [value("label", "INT64", ["n"]), value("probabilities", "FP32", ["n", 3])]
    return write(path, nodes, [value("x", "FP32", ["n", 4])], outputs, w=WEIGHTS, b=BIAS)


def judged(path: Path, datatype: str = "FP32", columns: int | str = 2, rows: int | str = "n") -> Path:
    """label (INT64 [n]) and probabilities, which are x as it is: whatever is sent is judged."""
    nodes = [
        helper.make_node("Identity", ["x"], ["probabilities"]),
        helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [value("label", "INT64", [rows]), value("probabilities", datatype, [rows, columns])]
    return write(path, nodes, [value("x", datatype, [rows, columns])], outputs)


def fixed_batch(path: Path) -> Path:
    """y = -x, FP32 [2, 3] and nothing else: it cannot be batched."""
    return write(
        path, [helper.make_node("Neg", ["x"], ["y"])], [value("x", "FP32", [2, 3])], [value("y", "FP32", [2, 3])]
    )


def picky(path: Path) -> Path:
    """y = TABLE[i]: INT64 [n] to FP32 [n]; a run with any i outside -4..3 fails."""
    node = helper.make_node("Gather", ["table", "i"], ["y"], axis=0)
    return write(path, [node], [value("i", "INT64", ["n"])], [value("y", "FP32", ["n"])], table=TABLE)


def slow(path: Path) -> Path:
    """y = steps, after about as many milliseconds, whatever the machine: INT64 [1] to INT64 [1]."""
    return write_loop(path, trips_per_millisecond())


def endless(path: Path) -> Path:
    """As `slow`, of steps that take ages, but between their nodes a run can be told to end."""
    return write_loop(path, 1 << 40)


def hanging(path: Path) -> Path:
    """y = size: INT64 [1] to INT64 [1]; of a size over a thousand after hours in one node, which nothing ends."""
    nodes = [
        helper.make_node("Concat", ["one", "one", "size", "size"], ["shape"], axis=0),
        helper.make_node("Expand", ["nought", "shape"], ["image"]),
        helper.make_node("MaxPool", ["image"], ["pooled"], kernel_shape=[1024, 1024], auto_pad="SAME_UPPER"),
        helper.make_node("ReduceMax", ["pooled"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["nothing"], to=TensorProto.INT64),
        helper.make_node("Add", ["size", "nothing"], ["y"]),
    ]
    constants = {"one": np.array([1]), "nought": np.float32(0).reshape(())}
    return write(path, nodes, [value("size", "INT64", [1])], [value("y", "INT64", [1])], **constants)


@functools.cache
def trips_per_millisecond() -> int:
    with tempfile.TemporaryDirectory() as folder:
        session = InferenceSession(write_loop(Path(folder) / "loop.onnx", 1))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        session.run(None, {"steps": np.array([20])})
        times.append(time.perf_counter() - started)
    return math.ceil(20 / (1000 * min(times)))


def write_loop(path: Path, trips_per_step: int) -> Path:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["m", "matrix"], ["product"]),
            helper.make_node("Tanh", ["product"], ["m_out"]),
        ],
        "body",
        [value("step", "INT64", []), value("go", "BOOL", []), value("m", "FP32", [256, 256])],
        [value("go_on", "BOOL", []), value("m_out", "FP32", [256, 256])],
    )
    nodes = [
        helper.make_node("Squeeze", ["steps"], ["count"]),
        helper.make_node("Mul", ["count", "trips_per_step"], ["trips"]),
        helper.make_node("Loop", ["trips", "yes", "matrix"], ["last"], body=body),
        # Uses the loop's result, so that no optimiser drops the loop.
        helper.make_node("ReduceMin", ["last"], ["least"], keepdims=0),
        helper.make_node("Cast", ["least"], ["least_int"], to=TensorProto.INT64),
        helper.make_node("Mul", ["least_int", "zero"], ["nothing"]),
        helper.make_node("Add", ["steps", "nothing"], ["y"]),
    ]
    matrix = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32) / 16
    constants = {"matrix": matrix, "yes": np.array(True), "zero": np.array(0)}
    constants["trips_per_step"] = np.array(trips_per_step)
    return write(path, nodes, [value("steps", "INT64", [1])], [value("y", "INT64", [1])], **constants)


def with_program(folder: Path) -> Path:
    """value = standardised age + 10 * (job is "fixed"); a missing age and an unknown job are refused."""
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    from fastinfer import Program

    frame = pd.DataFrame({"age": [20.0, 30.0, 40.0], "job": ["clerk", "fixed", "other"]})
    steps = make_column_transformer((StandardScaler(), ["age"]), (OneHotEncoder(), ["job"])).fit(frame)
    folder.mkdir(parents=True)
    Program.from_sklearn(steps, sample=frame, dtype="float32", allow="finite").save(folder / "features.json")
    weights = np.array([[1.0], [0.0], [10.0], [0.0]], dtype=np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["value"])
    features, answer = value("x", "FP32", ["n", 4]), value("value", "FP32", ["n", 1])
    return write(folder / "model.onnx", [node], [features], [answer], w=weights)


def with_dates(folder: Path) -> Path:
    """parts = year, month, day, hour and microsecond of the date "when", and whether the date "seen" is missing."""
    from fastinfer import Program

    parts = ["year", "month", "day", "hour", "microsecond"]
    seen = ["seen", "days"]
    column = {"datatype": "BYTES", "dtype": "datetime"}
    program = Program.from_json(json.dumps({
        "fastinfer": 2,
        "columns": [{"name": "when", **column, "example": "2024-02-29T12:30:00Z"},
                    {"name": "seen", **column, "nullable": True, "example": "1999-12-31"}],
        "steps": [*[{"op": "date_part", "from": ["when"], "to": [part], "part": part} for part in parts],
                  {"op": "date_part", "from": ["seen"], "to": [seen[1]], "part": "days"},
                  {"op": "indicate", "from": [seen[1]], "to": ["unseen"], "missing": "nan"}],
        "output": {"dtype": "float64", "allow": "finite",
                   "features": [{"name": name, "value": name} for name in [*parts, "unseen"]]},
    }))
    folder.mkdir(parents=True)
    program.save(folder / "features.json")
    node = helper.make_node("Identity", ["x"], ["parts"])
    return write(folder / "model.onnx", [node], [value("x", "FP64", ["n", 6])], [value("parts", "FP64", ["n", 6])])
