"""PyTorch: programs of `torch.export`, `.pt2`, on the CPU or a GPU, on worker threads."""

import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fastinfer._core import Engine, Tensor
from fastinfer.errors import InvalidShapeError, ModelLoadError
from fastinfer.runtimes import Arrays, Runtime, needed, torch_audit
from fastinfer.runtimes.onnx import SMALL_FILE, first_line, usable_cpus
from fastinfer.settings import ModelConfig, Settings

DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "bfloat16": "BF16",
}  # fmt: skip
CONSTRAINT = re.compile(r"Expected input (at )?\*")  # so torch 2.8 says that a shape was not exported for


class TorchRuntime:
    """One exported program.

    Attributes:
        low, high: rows that the program takes at once; fewer are filled up, more are run in parts, where rows are
            independent.
    """

    platform = "pytorch_pt2"
    inline = False

    def __init__(self, torch: Any, program: Any, path: Path, device: str, threads: int) -> None:
        self.torch = torch
        self.path = path
        self.device = device
        self.threads = threads
        self.native: Engine | None = None
        self.classes: dict[str, tuple[str, ...]] = {}
        whole = self.stateless(program)
        metas = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        self.arguments = list(self.user_inputs(program, metas))
        self.inputs = [each for each in self.arguments if isinstance(each, Tensor)]
        if not self.inputs:
            raise ModelLoadError(f"{path} takes no tensor.")
        self.given = program.call_spec.in_spec
        answers = next(node for node in program.graph.nodes if node.op == "output").args[0]
        shown = list(answers)[-len(program.graph_signature.user_outputs):]
        names = output_names(program.call_spec.out_spec, len(shown))
        self.answers = [None if node is None else self.tensor(name, getattr(node, "meta", {}).get("val"))
                        for name, node in zip(names, shown, strict=True)]
        self.outputs = [each for each in self.answers if each is not None]
        self.batched = all(each.shape and each.shape[0] == -1 for each in (*self.inputs, *self.outputs))
        self.low, self.high = self.bounds(program, metas)
        self.module = (whole if torch_audit.nests(program.graph) else program).module()

    def stateless(self, program: Any) -> Any:
        """The program in operations that change nothing in place.

        One that changes its inputs or itself would let one client's rows touch another's. What it changes shows in this
        form, which batch normalisation in training has too.
        """
        for node in program.graph.nodes:
            sizes = getattr(getattr(node.meta.get("val"), "fake_mode", None), "shape_env", None)
            ranges = getattr(sizes, "var_to_range", {})
            for size in [size for size in ranges if not size.is_Symbol]:
                del ranges[size]  # as 4*s0, which torch writes and then stumbles over
        try:
            with ThreadPoolExecutor(1) as thread:  # of its own: a map over a dimension that fails stays in its thread
                whole = thread.submit(program.run_decompositions, {}).result()
        except Exception as error:
            raise ModelLoadError(f"{self.path}: whether it has a state cannot be told: {first_line(error)}") from None
        signature = whole.graph_signature
        changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
        if torch_audit.nests(whole.graph):
            raise ModelLoadError(f"{self.path} maps over a dimension in a form that is not served.")
        if changed:
            raise ModelLoadError(f"{self.path} changes {changed[0]!r} when it runs; only programs without state are "
                                 "served.")
        return whole

    def user_inputs(self, program: Any, metas: dict[str, Any]) -> Iterator[Any]:
        """The arguments, flat: a Tensor for each tensor, and values that the program was exported for."""
        for spec in program.graph_signature.input_specs:
            if spec.kind.name == "USER_INPUT":
                constant = type(spec.arg).__name__ == "ConstantArgument"
                yield spec.arg.value if constant else self.tensor(spec.arg.name, metas.get(spec.arg.name))

    def tensor(self, name: Any, meta: Any) -> Tensor:
        """An input or output, by the tensor that stands for it in the graph."""
        if not isinstance(name, str) or not isinstance(meta, self.torch.Tensor):
            raise ModelLoadError(f"{self.path}: {name!r:.100} is no tensor, which alone are served.")
        datatype = DATATYPES.get(str(meta.dtype).removeprefix("torch."))
        if datatype is None:
            raise ModelLoadError(f"{self.path}: {name!r} is of {meta.dtype}, which is not served.")
        return Tensor(name, datatype, tuple(int(dim) if isinstance(dim, int) else -1 for dim in meta.shape))

    def bounds(self, program: Any, metas: dict[str, Any]) -> tuple[int, int]:
        """The fewest and the most rows that the program was exported for."""
        low, high = 0, 1 << 30
        for tensor in self.inputs:
            rows = metas[tensor.name].shape[0] if tensor.shape else None
            symbol = getattr(getattr(rows, "node", None), "expr", None)
            for known, values in program.range_constraints.items():
                if symbol is not None and str(known) == str(symbol):
                    low = max(low, int(values.lower))
                    high = min(high, int(min(values.upper, 1 << 30)))
        return low, high

    def tell_batched(self, batched: bool) -> None:
        """Whether rows may be filled up and run in parts."""
        self.batched = batched

    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch.

        Raises:
            InvalidShapeError: dimensions that the program was not exported for.
        """
        rows = len(next(iter(inputs.values()))) if self.batched else 0
        if rows > self.high:
            parts = [self.run({name: array[start : start + self.high] for name, array in inputs.items()})
                     for start in range(0, rows, self.high)]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if 0 < rows < self.low:
            filled = {name: np.concatenate([array, np.repeat(array[-1:], self.low - rows, axis=0)])
                      for name, array in inputs.items()}
            return {name: array[:rows].copy() for name, array in self.run_whole(filled).items()}
        return self.run_whole(inputs)

    def run_whole(self, inputs: Arrays) -> Arrays:
        torch = self.torch
        if torch.get_num_threads() != self.threads:  # of this thread
            torch.set_num_threads(self.threads)
        flat = [self.taken(each, inputs[each.name]) if isinstance(each, Tensor) else each for each in self.arguments]
        arguments, named = torch.utils._pytree.tree_unflatten(flat, self.given)
        with torch.inference_mode():
            try:
                answer = self.module(*arguments, **named)
            except (AssertionError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not CONSTRAINT.match(str(error)):
                    raise
                raise InvalidShapeError(f"the model refuses the inputs' shapes: {first_line(error)}") from error
            values, _ = torch.utils._pytree.tree_flatten(answer)
            return {tensor.name: self.answered(tensor, value)
                    for tensor, value in zip(self.answers, values, strict=True) if tensor is not None}

    def taken(self, tensor: Tensor, array: np.ndarray[Any, Any]) -> Any:
        torch = self.torch
        if tensor.datatype == "BF16":
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(self.device)
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)

    def answered(self, tensor: Tensor, value: Any) -> np.ndarray[Any, Any]:
        """A copy: an output may be an input, or a part of the program."""
        value = value.detach().to("cpu").contiguous()
        if tensor.datatype == "BF16":
            return np.array(value.view(self.torch.int16).numpy().view(np.uint16))
        return np.array(value.numpy())


def output_names(spec: Any, count: int) -> list[str]:
    """The keys of a dict of tensors, else output, or output_0, output_1, …"""
    keys = list(spec.context) if spec.type in (dict, OrderedDict) else []
    if len(keys) == count and all(isinstance(key, str) and key for key in keys):
        return keys
    return ["output"] if count == 1 else list(numbered(count))


def numbered(count: int) -> Iterator[str]:
    yield from (f"output_{place}" for place in range(count))


_loading = threading.Lock()  # torch.export is not made for several threads


def load(path: Path, config: ModelConfig, settings: Settings) -> Runtime:
    """Load an exported program.

    Raises:
        ConfigurationError: torch is not installed.
        ModelLoadError: the file is damaged, might run code and is not trusted, holds what is not served, or there is no
            such device.
    """
    torch = needed("torch", path, "torch")
    needed("torch.export", path, "torch")
    torch_audit.check(path, settings.trust_pickle)
    strange = sorted(torch_audit.devices(path) - {"cpu", "meta", "cuda" if torch.cuda.is_available() else ""})
    if strange:  # some releases of torch would end the process
        raise ModelLoadError(f"{path} was exported on {strange[0]}, which torch {torch.__version__} does not see here: "
                             'for the CPU, save torch.export.passes.move_to_device_pass(program, "cpu").')
    where = place(torch, path, config)
    small = path.stat().st_size <= SMALL_FILE
    threads = config.torch.threads or (1 if small else max(1, usable_cpus() // settings.workers))
    with _loading, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        try:
            program = moved(torch, torch.export.load(path), where)
        except Exception as error:
            raise ModelLoadError(f"{path}: torch {torch.__version__} cannot load it: {first_line(error)}") from None
        return TorchRuntime(torch, program, path, where, threads)


def place(torch: Any, path: Path, config: ModelConfig) -> str:
    """The device, as torch calls it.

    Raises:
        ModelLoadError: there is no such device.
    """
    if config.torch.device != "cuda":
        return "cpu"
    if not torch.cuda.is_available():
        raise ModelLoadError(f"{path}: [torch] device = 'cuda', and torch {torch.__version__} sees no GPU.")
    if config.torch.device_id >= torch.cuda.device_count():
        raise ModelLoadError(f"{path}: [torch] device_id = {config.torch.device_id}, and torch sees "
                             f"{torch.cuda.device_count()} GPU(s), numbered from 0.")
    return f"cuda:{config.torch.device_id}"


def moved(torch: Any, program: Any, where: str) -> Any:
    """The program on a device, if it is not there: also one that was exported on a GPU and runs on the CPU."""
    device = torch.device(where)
    held = [*program.state_dict.values(), *program.constants.values()]
    held += [node.meta.get("val") for node in program.graph.nodes]
    if all(each.device == device for each in held if isinstance(each, torch.Tensor)):
        return program
    return import_module("torch.export.passes").move_to_device_pass(program, where)
