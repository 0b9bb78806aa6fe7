"""onnxruntime through its C API gives what its Python package gives, and what it does not take goes there."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_models
import pytest
from onnx import TensorProto, helper, numpy_helper

import fastinfer
from fastinfer import _core
from fastinfer.errors import ModelLoadError
from fastinfer.runtimes import onnx, onnx_binding
from fastinfer.settings import ModelConfig, OnnxConfig, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    Array = np.ndarray[Any, Any]

NUMBERS = [name for name in _core.DATATYPES if name != "BYTES"]


def some(datatype: str, shape: tuple[int, ...]) -> Array:
    values = np.arange(np.prod(shape), dtype=np.float64) - 3
    if datatype == "BOOL":
        return (values % 2 == 0).reshape(shape)
    if datatype == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).reshape(shape)
    return np.abs(values).astype(_core.DTYPES[_core.DATATYPES.index(datatype)]).reshape(shape)


@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("shape", [(1, 2), (5, 2), (0, 2)], ids=str)
def test_every_datatype_goes_in_and_comes_out(tmp_path: Path, datatype: str, shape: tuple[int, ...]) -> None:
    runtime = onnx.load(onnx_models.identity(tmp_path / "m.onnx", datatype), ModelConfig(), Settings())
    assert isinstance(runtime, onnx.OnnxRuntime)
    assert runtime.outputs == [_core.Tensor("y", datatype, (-1, 2))]
    x = some(datatype, shape)
    y = runtime.run({"x": x})["y"]
    assert (y.dtype, y.shape, y.tobytes()) == (x.dtype, x.shape, x.tobytes())


@pytest.mark.parametrize("model", [onnx_models.affine, onnx_models.two_inputs, onnx_models.classifier])
def test_the_answers_are_those_of_the_python_package(tmp_path: Path, model: Callable[[Path], Path]) -> None:
    path = model(tmp_path / "m.onnx")
    native = onnx.load(path, ModelConfig(), Settings())
    binding = onnx_binding.load(path, ModelConfig(), Settings())
    assert (native.inputs, native.outputs) == (binding.inputs, binding.outputs)
    for rows in (1, 3, 64):
        inputs = {each.name: some(each.datatype, (rows, *each.shape[1:])) for each in native.inputs}
        expected = binding.run(inputs)
        for name, array in native.run(inputs).items():
            np.testing.assert_array_equal(array, expected[name])


def test_what_is_not_a_tensor_of_numbers_goes_to_the_python_package(tmp_path: Path) -> None:
    runtime = onnx.load(onnx_models.identity(tmp_path / "m.onnx", "BYTES"), ModelConfig(), Settings())
    assert isinstance(runtime, onnx_binding.BindingRuntime)
    assert runtime.run({"x": np.array([["a", "é"]], dtype=object)})["y"].tolist() == [["a", "é"]]


def strings(path: Path) -> Path:
    """A label and its length: FP32 [n, 1] to BYTES [n, 1]."""
    nodes = [
        onnx_models.helper.make_node("Cast", ["x"], ["index"], to=onnx_models.ONNX_TYPES["INT64"]),
        onnx_models.helper.make_node("Gather", ["words", "index"], ["y"]),
    ]
    words = np.array(["", "good", "é\u20ac", 'a "b"\n', "\0"], dtype=object)
    inputs = [onnx_models.value("x", "FP32", ["n", 1])]
    return onnx_models.write(path, nodes, inputs, [onnx_models.value("y", "BYTES", ["n", 1])], words=words)


def test_strings_come_out(tmp_path: Path) -> None:
    path = strings(tmp_path / "m.onnx")
    native, binding = onnx.load(path, ModelConfig(), Settings()), onnx_binding.load(path, ModelConfig(), Settings())
    assert isinstance(native, onnx.OnnxRuntime)
    for rows in ([0], [1, 2, 0, 3, 4, 1], []):
        x = np.array(rows, np.float32).reshape(-1, 1)
        assert native.run({"x": x})["y"].tolist() == binding.run({"x": x})["y"].tolist()


def test_strings_are_served_whole_in_parts_and_as_binary(tmp_path: Path) -> None:
    model = fastinfer.load(strings(tmp_path / "words.onnx"))
    expected = ["", "good", "é\u20ac", 'a "b"\n', "\0"]

    async def ask(rows: int, binary: bool) -> bytes:
        loop = asyncio.get_running_loop()
        model.batcher.attach(
            call_soon=loop.call_soon, call_later=loop.call_later, call_soon_threadsafe=loop.call_soon_threadsafe,
            submit=lambda work, *arguments: loop.run_in_executor(None, work, *arguments),
        )  # fmt: skip
        done: asyncio.Future[_core.Ticket] = loop.create_future()
        data = [row % 5 for row in range(rows)]
        tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 1], "data": data}
        request = {"inputs": [tensor], "parameters": {"binary_data_output": binary}}
        model.endpoint.submit(0, json.dumps(request).encode(), -1, done.set_result)
        body, size = (await done).encode()
        return body[size:] if binary else body

    for rows in (1, 64, 150):  # 150: in three batches
        words = [expected[row % 5] for row in range(rows)]
        assert json.loads(asyncio.run(ask(rows, False)))["outputs"][0]["data"] == words
        packed = b"".join(len(word.encode()).to_bytes(4, "little") + word.encode() for word in words)
        assert asyncio.run(ask(rows, True)) == packed


def test_a_build_without_the_shared_object_still_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "shared_object", lambda: None)
    runtime = onnx.load(onnx_models.affine(tmp_path / "m.onnx"), ModelConfig(), Settings())
    assert isinstance(runtime, onnx_binding.BindingRuntime)


def test_both_name_the_file_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model")
    for load in (onnx.load, onnx_binding.load):
        with pytest.raises(ModelLoadError, match=r"m\.onnx: onnxruntime cannot load it: .*[Pp]rotobuf parsing failed"):
            load(path, ModelConfig(), Settings())


def test_settings_reach_the_session(tmp_path: Path) -> None:
    path = onnx_models.affine(tmp_path / "m.onnx")
    for level in onnx.OPTIMISATIONS:
        config = ModelConfig(onnx=OnnxConfig(graph_optimization=level, intra_op_threads=2))
        for load in (onnx.load, onnx_binding.load):
            y = load(path, config, Settings()).run({"x": np.ones((1, 4), np.float32)})["y"]
            np.testing.assert_allclose(y, np.ones((1, 4)) @ onnx_models.WEIGHTS + onnx_models.BIAS, rtol=1e-6)


@pytest.mark.parametrize(
    "x",
    [np.zeros((1, 4)), np.zeros((2, 4), np.float32).T.copy().T, np.zeros((1,) * 9, np.float32)],
    ids=["another type", "not contiguous", "too many dimensions"],
)
def test_an_array_that_cannot_be_passed_is_refused(tmp_path: Path, x: Array) -> None:
    runtime = onnx.load(onnx_models.affine(tmp_path / "m.onnx"), ModelConfig(), Settings())
    with pytest.raises(ValueError, match="input 'x' is not a C-contiguous array of FP32"):
        runtime.run({"x": x})


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    runtime = onnx.load(onnx_models.affine(tmp_path / "m.onnx"), ModelConfig(), Settings())
    with pytest.raises(RuntimeError, match="invalid dimensions for input"):
        runtime.run({"x": np.zeros((1, 5), np.float32)})


def test_a_library_that_is_not_onnxruntime_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"nowhere\.so"):
        _core.Session(str(tmp_path / "nowhere.so"), str(onnx_models.affine(tmp_path / "m.onnx")))


@pytest.mark.parametrize("module", ["onnx", "onnx_binding"])
def test_nothing_is_reported_to_the_makers_of_the_runtime(tmp_path: Path, module: str) -> None:
    path = onnx_models.affine(tmp_path / "m.onnx")
    code = (
        "import sys, pathlib, numpy, fastinfer\n"
        "from fastinfer.settings import ModelConfig, Settings\n"
        f"from fastinfer.runtimes import {module} as engine\n"
        "runtime = engine.load(pathlib.Path(sys.argv[1]), ModelConfig(), Settings())\n"
        "runtime.run({'x': numpy.ones((1, 4), numpy.float32)})\n"
        "print(*(link.resolve() for link in pathlib.Path('/proc/self/fd').iterdir() if link.exists()), sep='\\n')\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    environ = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environ |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    environ["PYTHONPATH"] = str(Path(_core.__file__).parent.parent)
    command = [sys.executable, "-P", "-c", code, path]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert list(home.iterdir()) == []  # neither an identifier nor a queue of reports
    assert "onnxruntime.db" not in done.stdout


@pytest.mark.parametrize(("shape", "outputs", "message"), [
    (None, ["y"], r"m\.onnx: the input 'x' has no declared shape"),
    ([], ["y"], None),
    (["n", 4], [], r"m\.onnx has no outputs"),
])
def test_a_file_that_does_not_say_what_it_takes_or_answers_is_refused(
        tmp_path: Path, shape: Any, outputs: list[str], message: str | None) -> None:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
              helper.make_tensor_value_info("w", TensorProto.FLOAT, None)]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])], "g", inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
        [numpy_helper.from_array(np.array(2, np.float32), "w")])  # an initializer may stand among the inputs
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    if message is None:
        assert fastinfer.load(tmp_path / "m.onnx").run({"x": np.array(3, np.float32)})["y"] == 6
        return
    with pytest.raises(ModelLoadError, match=message):
        fastinfer.load(tmp_path / "m.onnx")
