"""onnxruntime on a GPU: inputs from pinned memory, CUDA graphs by batch size, and batches that fit the memory."""

import ctypes
import logging
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fastinfer._core import DATATYPES, DTYPES, Tensor
from fastinfer.errors import ModelLoadError
from fastinfer.runtimes import Arrays
from fastinfer.runtimes.onnx_binding import BindingRuntime
from fastinfer.settings import ModelConfig

DEVICE = "cuda"
# What onnxruntime's arena, CUDA and TensorRT say of it; onnxruntime's exceptions tell no code.
SHORTAGE = ("out of memory", "failed to allocate memory", "cuda failure 2:", "cudaerrormemoryallocation",
            "available memory of", "could not be allocated", "cudnn_status_alloc_failed", "device_allocation_failed",
            "cublas_status_alloc_failed")

logger = logging.getLogger("fastinfer.onnx")


class Device:
    """Whose turn it is on the GPUs: while a graph is captured, CUDA forbids every thread to ask for memory."""

    def __init__(self) -> None:
        self.turn = threading.Condition()
        self.runs = 0
        self.captures = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Beside others that run, and never beside a capture."""
        with self.turn:
            self.turn.wait_for(lambda: not self.captures)
            self.runs += 1
        try:
            yield
        finally:
            with self.turn:
                self.runs -= 1
                self.turn.notify_all()

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Alone."""
        with self.turn:
            self.turn.wait_for(lambda: not self.captures)
            self.captures = True
            self.turn.wait_for(lambda: self.runs == 0)
        try:
            yield
        finally:
            with self.turn:
                self.captures = False
                self.turn.notify_all()


DEVICES = Device()  # of this process


class DeviceRuntime(BindingRuntime):
    """One session whose first provider is a GPU's.

    Attributes:
        most: rows that a run may have; halved when the device has no memory for more.
        batched: rows may be run in parts, and beside copies of themselves; `tell_batched` says so.
    """

    def __init__(self, session: ort.InferenceSession, path: Path, config: ModelConfig, device: str = DEVICE) -> None:
        super().__init__(session, path)
        self.path = path
        self.device = device
        self.device_id = config.onnx.device_id
        self.graphs: dict[int, Graph] = {}
        self.graph_sizes = list(sizes_up_to(config.max_batch_size)) if config.onnx.cuda_graphs else []
        # onnxruntime has a session's graphs by the thread that captured them.
        self.graph_thread = ThreadPoolExecutor(1, "cuda-graphs") if self.graph_sizes else None
        self.batched = False
        self.most = 1 << 30
        self.plain = not self.bfloat16 and not self.maps and all(
            tensor.datatype != "BYTES" for tensor in (*self.inputs, *self.outputs))
        self.idle: queue.LifoQueue[Buffers] = queue.LifoQueue()
        loose = [tensor.name for tensor in (*self.inputs, *self.outputs) if -1 in tensor.shape[1:]]
        if self.graph_sizes and (loose or not self.plain):
            raise ModelLoadError(f"{path}: cuda_graphs needs numbers of fixed dimensions, but for the rows; "
                                 f"{loose[0] if loose else 'a tensor'!r} has others.")

    def tell_batched(self, batched: bool) -> None:
        """Whether a row's answer was proven not to depend on the rows beside it; then the graphs are captured."""
        self.batched = batched
        for size in self.graph_sizes if batched else ():
            zeros = {tensor.name: np.zeros((size, *tensor.shape[1:]), dtype_of(tensor)) for tensor in self.inputs}
            try:
                self.run_whole(zeros, size)
            except Exception as error:  # of the values, or the memory: as a request it is tried again
                logger.info("%s: no CUDA graph of %d rows yet: %s", self.path, size, error)

    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch, in parts where the device has shown that it has no memory for the whole."""
        rows = len(next(iter(inputs.values()))) if self.batched else 0
        if rows <= self.most:
            try:
                return self.run_whole(inputs, rows)
            except Exception as error:
                if rows < 2 or not is_shortage(error):
                    raise
                self.most = min(self.most, rows // 2)
                logger.warning("%s: the device has no memory for %d rows; at most %d are run at a time from now on",
                               self.path, rows, self.most)
        most = self.most  # which may shrink once more in one of the parts
        parts = [self.run({name: array[start : start + most] for name, array in inputs.items()})
                 for start in range(0, rows, most)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.output_names}

    def run_bound(self, binding: ort.IOBinding, graph: int, caller: int) -> None:
        """Run what is bound, as a CUDA graph of its own number or, with -1, as it is; `stop` knows it by its caller."""
        options = ort.RunOptions()
        if self.graph_sizes:
            options.add_run_config_entry("gpu_graph_id", str(graph))
        self.running[caller] = options
        try:
            self.session.run_with_iobinding(binding, options)
        finally:
            del self.running[caller]

    def run_whole(self, inputs: Arrays, rows: int) -> Arrays:
        if not self.plain:
            return super().run(inputs)
        size = next((size for size in self.graph_sizes if size >= rows), 0) if rows else 0
        if size and self.graph_thread is not None:
            return self.graph_thread.submit(self.run_graph, size, inputs, rows, threading.get_ident()).result()
        with DEVICES.running():
            return self.run_buffers(inputs)

    def run_buffers(self, inputs: Arrays) -> Arrays:
        try:
            buffers = self.idle.get_nowait()
        except queue.Empty:
            buffers = Buffers(self)
        try:
            return buffers.run(inputs)
        finally:
            self.idle.put(buffers)

    def run_graph(self, size: int, inputs: Arrays, rows: int, caller: int) -> Arrays:
        """Run a graph's batch, on the graphs' thread; the first one of its size captures it."""
        known = self.graphs.get(size)
        if known is not None:
            with DEVICES.running():
                return known.run(inputs, rows, caller)
        with DEVICES.capturing():
            made = Graph(self, size, inputs)
            answers = made.run(inputs, rows, caller)
        self.graphs[size] = made
        return answers


class Buffers:
    """Pinned memory for the inputs of one run at a time; it grows to the largest batch."""

    def __init__(self, runtime: DeviceRuntime) -> None:
        self.runtime = runtime
        self.binding = runtime.session.io_binding()
        self.memory: dict[str, tuple[np.ndarray[Any, Any], Any]] = {}

    def run(self, inputs: Arrays) -> Arrays:
        binding, runtime = self.binding, self.runtime
        for tensor in runtime.inputs:
            array = np.ascontiguousarray(inputs[tensor.name])
            memory, _ = self.memory.get(tensor.name, (None, None))
            if memory is None or memory.nbytes < array.nbytes:
                size = max(64, 1 << (array.nbytes - 1).bit_length()) if array.nbytes else 64
                memory, _ = self.memory[tensor.name] = pinned(size, runtime.device)
            memory[: array.nbytes].view(array.dtype)[:] = array.ravel()
            binding.bind_input(tensor.name, "cpu", 0, array.dtype, array.shape, memory.ctypes.data)
        for name in runtime.output_names:
            binding.bind_output(name, "cpu")
        try:
            runtime.run_bound(binding, -1, threading.get_ident())
            return dict(zip(runtime.output_names, binding.copy_outputs_to_cpu(), strict=True))
        finally:
            binding.clear_binding_outputs()


class Graph:
    """One batch size: a CUDA graph, captured at the first run, and the memory of the device that is in it."""

    def __init__(self, runtime: DeviceRuntime, size: int, inputs: Arrays) -> None:
        self.runtime = runtime
        self.size = size
        self.binding = runtime.session.io_binding()
        self.host = {name: np.empty((size, *array.shape[1:]), array.dtype) for name, array in inputs.items()}
        place = (runtime.device, runtime.device_id)
        self.given = {name: ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, *place)
                      for name, array in self.host.items()}
        self.taken: dict[str, Any] = {}
        for tensor in runtime.outputs:
            self.taken[tensor.name] = ort.OrtValue.ortvalue_from_shape_and_type(
                (size, *tensor.shape[1:]), dtype_of(tensor), *place)
        for name, value in self.given.items():
            self.binding.bind_ortvalue_input(name, value)
        for name, value in self.taken.items():
            self.binding.bind_ortvalue_output(name, value)

    def run(self, inputs: Arrays, rows: int, caller: int) -> Arrays:
        """Rows, and the last one again where there are fewer than the graph has."""
        for name, array in inputs.items():
            host = self.host[name]
            host[:rows] = array
            host[rows:] = array[rows - 1 : rows]
            self.given[name].update_inplace(host)
        self.runtime.run_bound(self.binding, self.size, caller)
        self.binding.synchronize_outputs()
        return {name: np.array(value.numpy()[:rows]) for name, value in self.taken.items()}


def dtype_of(tensor: Tensor) -> np.dtype[Any]:
    return np.dtype(DTYPES[DATATYPES.index(tensor.datatype)])


def pinned(size: int, device: str) -> tuple[np.ndarray[Any, Any], Any]:
    """Bytes of host memory from which the device copies by itself, where this onnxruntime can make such; else plain.

    With them comes what keeps them alive.
    """
    if device == DEVICE:
        try:
            kind = ort.OrtDeviceMemoryType.HOST_ACCESSIBLE
            infos = [each.memory_info(kind) for each in ort.get_ep_devices() if each.ep_name.startswith("CUDA")]
            info = next(each for each in infos if each is not None)
            value = ort.OrtValue.ortvalue_from_shape_and_type([size], np.uint8, memory_info=info)
            return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(value.data_ptr())), value
        except Exception:  # a release without this way to it
            logger.debug("no pinned memory", exc_info=True)
    return np.empty(size, np.uint8), None


def sizes_up_to(largest: int) -> Iterator[int]:
    """1, 2, 4, … and the largest batch."""
    size = 1
    while size < largest:
        yield size
        size *= 2
    if largest:
        yield largest


def is_shortage(error: Exception) -> bool:
    """Whether an engine says that the device's memory did not suffice."""
    text = str(error).lower()
    return any(sign in text for sign in SHORTAGE)
