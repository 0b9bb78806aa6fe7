"""onnxruntime's Python package: other execution providers than the CPU, strings, and sequences of maps."""

import contextlib
import ctypes
import re
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fastinfer._core import Engine, Tensor
from fastinfer.errors import ModelLoadError
from fastinfer.runtimes import Arrays
from fastinfer.runtimes.onnx import ENTRIES, OPTIMISATIONS, default_threads, first_line
from fastinfer.settings import ModelConfig, Settings

# ONNX's element types as the Open Inference Protocol names them.
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "bfloat16": "BF16",
    "string": "BYTES",
}
BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
MAP_SEQUENCE = re.compile(r"seq\(map\((int64|string),\s*tensor\((float|double)\)\)\)")


class BindingRuntime:
    """One session of onnxruntime's Python package."""

    platform = "onnxruntime_onnx"
    inline = True

    def __init__(self, session: ort.InferenceSession, path: Path) -> None:
        self.session = session
        self.native: Engine | None = None
        self.inputs = [declared(node, path) for node in session.get_inputs()]
        self.outputs = [declared(node, path) for node in session.get_outputs()]
        self.output_names = [tensor.name for tensor in self.outputs]
        self.maps = [node.name for node in session.get_outputs() if MAP_SEQUENCE.fullmatch(node.type)]
        self.classes: dict[str, tuple[str, ...]] = {}
        self.keys: dict[str, list[Any]] = {}
        self.running: dict[int, ort.RunOptions] = {}  # by thread
        self.bfloat16 = any(tensor.datatype == "BF16" for tensor in (*self.inputs, *self.outputs))

    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch; an output that is a sequence of maps becomes its columns, in the order of ``classes``."""
        options = ort.RunOptions()
        self.running[threading.get_ident()] = options
        try:
            if self.bfloat16:
                return self.run_values(inputs, options)
            values = self.session.run(self.output_names, inputs, options)
        finally:
            del self.running[threading.get_ident()]
        outputs = dict(zip(self.output_names, values, strict=True))
        for name in self.maps:
            outputs[name] = self.columns(name, outputs[name])
        return outputs

    def stop(self, thread: int) -> None:
        """Have the run on a thread end with an error, before the graph's next node."""
        options = self.running.get(thread)
        if options is not None:
            options.terminate = True

    def run_values(self, inputs: Arrays, options: ort.RunOptions) -> Arrays:
        """As ``run`` where a tensor is BF16, which numpy does not have: its bits travel as uint16."""
        values = {}
        for tensor in self.inputs:
            kind = BFLOAT16 if tensor.datatype == "BF16" else None
            array = inputs[tensor.name]
            values[tensor.name] = (
                ort.OrtValue.ortvalue_from_numpy(array)
                if kind is None
                else ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)
            )
        outputs = self.session.run_with_ort_values(self.output_names, values, options)
        return {name: array_of(value) for name, value in zip(self.output_names, outputs, strict=True)}

    def columns(self, name: str, maps: list[dict[Any, float]]) -> np.ndarray[Any, Any]:
        keys = self.keys.get(name)
        if keys is None:
            keys = self.keys[name] = sorted(maps[0]) if maps else []
            self.classes[name] = tuple(str(key) for key in keys)
        return np.array([[row[key] for key in keys] for row in maps], dtype=np.float32).reshape(len(maps), len(keys))


def array_of(value: ort.OrtValue) -> np.ndarray[Any, Any]:
    """The tensor as an array of its own; BF16 as its bits, since onnxruntime offers no numpy view of it."""
    if value.element_type() != BFLOAT16:
        return np.asarray(value.numpy())
    bits = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(bits, dtype=np.uint16).reshape(value.shape())


def load(path: Path, config: ModelConfig, settings: Settings) -> BindingRuntime:
    """Load an ONNX file.

    Raises:
        ModelLoadError: the file is broken, uses a type that cannot be served, or a provider that was asked for is
            not there.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and said once
    options.intra_op_num_threads = config.onnx.intra_op_threads or default_threads(path, settings.workers)
    options.inter_op_num_threads = config.onnx.inter_op_threads or 1
    options.graph_optimization_level = ort.GraphOptimizationLevel(OPTIMISATIONS[config.onnx.graph_optimization])
    for key, value in ENTRIES.items():
        options.add_session_config_entry(key, value)
    providers = list(config.onnx.providers) or ["CPUExecutionProvider"]
    check_available(providers)
    given = [config.onnx.options_of(name) for name in providers]
    if config.onnx.engine_cache is not None:
        make_folder(config.onnx.engine_cache, path)
    if any(name.startswith(("CUDA", "Tensorrt")) for name in providers):
        with contextlib.redirect_stdout(None):  # the libraries of NVIDIA's packages, which it may not find by itself
            ort.preload_dlls()
    try:
        session = ort.InferenceSession(str(path), options, providers=providers, provider_options=given,
                                       enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base
        raise ModelLoadError(f"{path}: onnxruntime cannot load it: {first_line(without_banner(error))}") from None
    inactive = [name for name in providers if name not in session.get_providers()]
    if inactive:
        raise ModelLoadError(
            f"{path}: execution provider {inactive[0]} was asked for and is not active; "
            f"active: {', '.join(session.get_providers())}"
        )
    session.disable_fallback()
    if providers[0].startswith(("CUDA", "Tensorrt")):
        from fastinfer.runtimes.onnx_device import DeviceRuntime

        return DeviceRuntime(session, path, config)
    return BindingRuntime(session, path)


def make_folder(folder: Path, path: Path) -> None:
    """Raises ModelLoadError where there is no folder that can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ModelLoadError(f"{path}: engine_cache {folder} cannot be written to: {error.strerror}.") from None


def check_available(providers: list[str]) -> None:
    """A provider that this build lacks is an error that names what is missing, never a silent run on the CPU."""
    available = ort.get_available_providers()
    for name in providers:
        if name not in available:
            package = "onnxruntime-gpu" if name.startswith(("CUDA", "Tensorrt")) else "another build of onnxruntime"
            raise ModelLoadError(
                f"execution provider {name} is not in this onnxruntime ({', '.join(available)}); it needs {package}"
            )


def declared(node: Any, path: Path) -> Tensor:
    """An input or output as the file declares it, in the protocol's terms."""
    maps = MAP_SEQUENCE.fullmatch(node.type)
    if maps:
        return Tensor(node.name, "FP32", (-1, -1))
    element = re.fullmatch(r"tensor\((\w+)\)", node.type)
    if element is None or element[1] not in DATATYPES:
        raise ModelLoadError(f"{path}: {node.name!r} is a {node.type}, which cannot be served")
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape)
    return Tensor(node.name, DATATYPES[element[1]], shape)


def without_banner(error: Exception) -> Exception:
    """onnxruntime's message without its banner."""
    return RuntimeError(re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)))
