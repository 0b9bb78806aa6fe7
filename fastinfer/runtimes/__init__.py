"""Engines that run a model: a table of import strings, loaded only when chosen.

An engine is a module with ``load(path, config, settings) -> Runtime``. A Runtime states its inputs and outputs and runs
them: dicts of name to C-contiguous array, rows first.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastinfer._core import Engine, Tensor
from fastinfer.errors import ConfigurationError
from fastinfer.settings import ModelConfig, Settings

Arrays = dict[str, np.ndarray[Any, Any]]

RUNTIMES: Mapping[str, str] = {
    "onnx": "fastinfer.runtimes.onnx",
    "forest": "fastinfer.runtimes.forest",
    "lightgbm": "fastinfer.runtimes.lightgbm",
    "catboost": "fastinfer.runtimes.catboost",
    "python": "fastinfer.runtimes.python",
    "sklearn": "fastinfer.runtimes.sklearn",
    "torch": "fastinfer.runtimes.torch",
    "triton": "fastinfer.runtimes.triton",
    "xgboost": "fastinfer.runtimes.xgboost",
}


class Runtime(Protocol):
    """One loaded model file.

    Attributes:
        platform: as the protocol's metadata names it.
        inputs, outputs: as the file declares them, -1 where a dimension is variable.
        classes: class names by output, where an output's columns have names in the file.
        native: what the core runs batches on without coming back to Python, or None.
        inline: a batch that is predicted to be short may run on the event loop; else every one runs on a thread.

    One that knows which values its model takes has ``examples(rows)`` too, see ``examples_of``.
    """

    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    classes: dict[str, tuple[str, ...]]
    native: Engine | None
    inline: bool

    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch. Safe to call from several threads; raises whatever the engine raises."""
        ...

    # A runtime may have ``stop(thread: int) -> None``, called from another thread: have the run on that thread, which
    # is past its time, raise as soon as it can. It must not wait.


def needed(module: str, path: Path, extra: str) -> Any:
    """A library that an engine needs for the file.

    Raises:
        ConfigurationError: it is not installed; says what installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(f"{path} needs {module.partition('.')[0]}, which is not installed: "
                                 f"pip install 'fastinfer[{extra}]'") from error


def tell_batched(runtime: Any, batched: bool) -> None:
    """Tell a runtime that wants to know whether a row's answer was proven not to depend on the rows beside it."""
    told = getattr(runtime, "tell_batched", None)
    if told is not None:
        told(batched)


def examples_of(runtime: Any) -> Callable[[int], Arrays] | None:
    """What makes inputs of so many rows that the model most likely answers, or None where nothing is known of them."""
    examples: Callable[[int], Arrays] | None = getattr(runtime, "examples", None)
    return examples


class RemoteRuntime(ABC):
    """A Runtime whose model runs in another server.

    Attributes:
        version: the model's there.
        max_batch_size: rows that it takes; 0 where it takes requests as they are.
        mixes: whether it puts several requests together itself.
        stale: whether that server has another model under the name now, so that a load would give another runtime.
        in_flight: batches that it may be given at the same time, to begin with.
        pace: how many from then on, or None: as the batcher's.
        forwards: gives of the fields of a client's head, pairs of name in lower case and value, those that go on to
            that server, something hashable; None where none do; a FastinferError where they cannot. None: none ever do.
    """

    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    classes: dict[str, tuple[str, ...]]
    native: Engine | None
    inline: bool = False
    version: str
    max_batch_size: int
    mixes: bool
    stale: bool = False
    in_flight: int
    pace: Callable[[int, bool, float], int] | None
    forwards: Callable[[Iterable[tuple[bytes, bytes]]], object] | None = None

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether anybody there takes batches."""

    @abstractmethod
    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch; on any thread but a loop's."""

    @abstractmethod
    async def run_async(self, inputs: Arrays, deadline: float, ids: list[str], priority: int, trace: str,
                        fields: Any = ()) -> Arrays:
        """Run one batch from a loop, which goes on meanwhile.

        Args:
            inputs: read before the first wait only.
            deadline: of time.monotonic; past it nobody waits for the answer.
            ids: of those requests in it that have one.
            priority: of its most urgent request, 1 the highest; 0 where none says so.
            trace: a W3C traceparent, or empty.
            fields: as ``forwards`` gave them, of all its requests.
        """

    @abstractmethod
    async def part(self) -> None:
        """Close the running loop's connections."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections and threads."""


def load(name: str, path: Path, config: ModelConfig, settings: Settings) -> Runtime:
    """Load ``path`` with the engine ``name``, in each of the settings' workers.

    Raises:
        ConfigurationError: an unknown engine, or one that is not installed.
        ModelLoadError: the file does not load; the message names it and says why.
    """
    if name not in RUNTIMES:
        raise ConfigurationError(f"unknown runtime {name!r}; there is {', '.join(sorted(RUNTIMES))}")
    runtime: Runtime = import_module(RUNTIMES[name]).load(path, config, settings)
    return runtime
