"""PyTorch: programs of `torch.export`, `.pt2`, on the CPU or a GPU, on worker threads."""

import threading
from collections.abc import Iterator
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
        self.refuse_state(program)
        metas = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        self.inputs = [self.tensor(name, metas.get(name)) for name in program.graph_signature.user_inputs]
        if not self.inputs:
            raise ModelLoadError(f"{path} takes no tensor.")
        self.given = program.call_spec.in_spec
        answers = next(node for node in program.graph.nodes if node.op == "output").args[0]
        shown = [getattr(node, "meta", {}).get("val") for node in answers][-len(program.graph_signature.user_outputs):]
        names = output_names(program.call_spec.out_spec, len(shown))
        self.outputs = [self.tensor(name, meta) for name, meta in zip(names, shown, strict=True)]
        self.batched = all(each.shape and each.shape[0] == -1 for each in (*self.inputs, *self.outputs))
        self.low, self.high = self.bounds(program, metas)
        self.module = program.module()

    def refuse_state(self, program: Any) -> None:
        """A program that changes its inputs or itself would let one client's rows touch another's.

        What it changes shows in the form without operations in place, which batch normalisation in training has too.
        """
        try:
            signature = program.run_decompositions({}).graph_signature
        except Exception as error:
            raise ModelLoadError(f"{self.path}: whether it has a state cannot be told: {first_line(error)}") from None
        changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
        if changed:
            raise ModelLoadError(f"{self.path} changes {changed[0]!r} when it runs; only programs without state are "
                                 "served.")

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
        flat = [self.taken(tensor, inputs[tensor.name]) for tensor in self.inputs]
        arguments, named = torch.utils._pytree.tree_unflatten(flat, self.given)
        with torch.inference_mode():
            try:
                answer = self.module(*arguments, **named)
            except AssertionError as error:
                raise InvalidShapeError(f"the model refuses the inputs' shapes: {first_line(error)}") from error
            values, _ = torch.utils._pytree.tree_flatten(answer)
            return {tensor.name: self.answered(tensor, value)
                    for tensor, value in zip(self.outputs, values, strict=True)}

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
    keys = list(spec.context) if spec.type is dict else []
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
    device = config.torch.device
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(f"{path}: [torch] device = 'cuda', and torch {torch.__version__} sees no GPU.")
    small = path.stat().st_size <= SMALL_FILE
    threads = config.torch.threads or (1 if small else max(1, usable_cpus() // settings.workers))
    with _loading:
        try:
            program = torch.export.load(path)
            if device == "cuda":
                program = torch.export.passes.move_to_device_pass(program, f"cuda:{config.torch.device_id}")
        except Exception as error:
            raise ModelLoadError(f"{path}: torch {torch.__version__} cannot load it: {first_line(error)}") from None
        where = f"cuda:{config.torch.device_id}" if device == "cuda" else "cpu"
        return TorchRuntime(torch, program, path, where, threads)
