"""Engines that run a model: a table of import strings, loaded only when chosen.

An engine is a module with ``load(path, config, workers) -> Runtime``. A Runtime states its inputs and outputs and runs
them: dicts of name to C-contiguous array, rows first.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastinfer._core import Session, Tensor
from fastinfer.errors import ConfigurationError
from fastinfer.settings import ModelConfig

Arrays = dict[str, np.ndarray[Any, Any]]

RUNTIMES: Mapping[str, str] = {"onnx": "fastinfer.runtimes.onnx"}


class Runtime(Protocol):
    """One loaded model file.

    Attributes:
        platform: as the protocol's metadata names it.
        inputs, outputs: as the file declares them, -1 where a dimension is variable.
        classes: class names by output, where an output's columns have names in the file.
        native: what the core runs batches on without coming back to Python, or None.
    """

    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    classes: dict[str, tuple[str, ...]]
    native: Session | None

    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch. Safe to call from several threads; raises whatever the engine raises."""
        ...


def load(name: str, path: Path, config: ModelConfig, workers: int = 1) -> Runtime:
    """Load ``path`` with the engine ``name``, in each of so many processes.

    Raises:
        ConfigurationError: an unknown engine, or one that is not installed.
        ModelLoadError: the file does not load; the message names it and says why.
    """
    if name not in RUNTIMES:
        raise ConfigurationError(f"unknown runtime {name!r}; there is {', '.join(sorted(RUNTIMES))}")
    runtime: Runtime = import_module(RUNTIMES[name]).load(path, config, workers)
    return runtime
