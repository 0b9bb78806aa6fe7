"""onnxruntime: ONNX files on the CPU through its C API; what that does not take goes to its Python package."""

import importlib.util
import math
import os
from pathlib import Path
from typing import Any

from fastinfer._core import Engine, Session, Tensor
from fastinfer.errors import ModelLoadError
from fastinfer.runtimes import Arrays, Runtime, onnx_file
from fastinfer.settings import ModelConfig, Settings

SMALL_FILE = 8 << 20  # a model up to this size runs on one thread: waking others costs more than they compute
IN_ORDER = "fastinfer.in-order"  # the domain of a model whose sums several threads would make in another order
HEAD_BYTES = 256  # of a file, where its domain stands
OPTIMISATIONS = {"all": 99, "extended": 2, "basic": 1, "disabled": 0}  # onnxruntime's GraphOptimizationLevel
# Spinning saves a batch microseconds and burns whole cores between batches.
ENTRIES = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}


class OnnxRuntime:
    """One session of onnxruntime on the CPU, whose inputs are tensors of numbers, and its outputs tensors."""

    platform = "onnxruntime_onnx"
    inline = True

    def __init__(self, session: Session) -> None:
        self.native: Engine | None = session
        self.run_session = session.run
        self.inputs = [Tensor(*each) for each in session.inputs]
        self.outputs = [Tensor(*each) for each in session.outputs]
        self.classes: dict[str, tuple[str, ...]] = {}

    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch."""
        return self.run_session(inputs)


def load(path: Path, config: ModelConfig, settings: Settings) -> Runtime:
    """Load an ONNX file, in each of the settings' workers, which share the CPUs.

    Raises:
        ModelLoadError: the file is broken, uses a type that cannot be served, or a provider that was asked for is
            not there.
    """
    library = shared_object()
    providers = config.onnx.providers or ("CPUExecutionProvider",)
    if library is not None and providers == ("CPUExecutionProvider",) and not config.onnx.provider_options:
        session = open_session(library, path, config, settings.workers)
        if session.plain:
            return checked(OnnxRuntime(session), path)
    from fastinfer.runtimes import onnx_binding

    return checked(onnx_binding.load(path, config, settings), path)


def checked(runtime: Runtime, path: Path) -> Runtime:
    """The runtime of a file that can be served.

    Raises:
        ModelLoadError: it answers nothing, or does not say how many dimensions an input has, which onnxruntime does not
            tell from none.
    """
    if not runtime.outputs:
        raise ModelLoadError(f"{path} has no outputs.")
    if any(not tensor.shape for tensor in runtime.inputs):
        shapeless = onnx_file.shapeless_inputs(path)
        if shapeless:
            raise ModelLoadError(f"{path}: the input {shapeless[0]!r} has no declared shape; declare one, with a "
                                 "name in place of each dimension that varies.")
    return runtime


def open_session(library: Path, path: Path, config: ModelConfig, workers: int = 1) -> Session:
    """A session of the C API.

    Raises:
        ModelLoadError: the file or the library does not load.
    """
    try:
        return Session(
            str(library),
            str(path),
            intra_op_threads=config.onnx.intra_op_threads or default_threads(path, workers),
            inter_op_threads=config.onnx.inter_op_threads or 1,
            optimisation=OPTIMISATIONS[config.onnx.graph_optimization],
            entries=ENTRIES,
        )
    except RuntimeError as error:
        raise ModelLoadError(f"{path}: onnxruntime cannot load it: {first_line(error)}") from None


def shared_object() -> Path | None:
    """onnxruntime's library with its C API, as the wheel has it; None where another build has none."""
    spec: Any = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        raise ModelLoadError("ONNX files need onnxruntime: pip install onnxruntime")
    found = sorted(Path(spec.submodule_search_locations[0], "capi").glob("libonnxruntime.so.*"))
    return found[-1] if found else None


def default_threads(path: Path, workers: int = 1) -> int:
    """One thread for a small model and for sums that have an order, else this process's share of the CPUs."""
    if path.stat().st_size <= SMALL_FILE:
        return 1
    with path.open("rb") as stream:
        if IN_ORDER.encode() in stream.read(HEAD_BYTES):
            return 1
    return max(1, usable_cpus() // workers)


def usable_cpus() -> int:
    """CPUs by affinity and by the cgroup's quota (v2, then v1), at least 1."""
    cpus = len(os.sched_getaffinity(0))
    quota, period = "max", "100000"
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text().strip()
            period = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return cpus
    if quota in ("max", "-1") or int(period) <= 0:
        return cpus
    return max(1, min(cpus, math.ceil(int(quota) / int(period))))


def first_line(error: Exception) -> str:
    """An engine's message, one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
