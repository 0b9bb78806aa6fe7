"""A Python class: `model.py`, in a thread of the server or in a process of its own."""

import sys
import threading
import weakref
from pathlib import Path

from fastinfer._core import Engine
from fastinfer.errors import ModelLoadError, RuntimeFailedError
from fastinfer.runtimes import Arrays, Runtime, trust
from fastinfer.runtimes.python_code import Code
from fastinfer.settings import ModelConfig, Settings


class PythonRuntime:
    """A user's object in this process, run by as many threads at once as the model has instances."""

    platform = "python"
    inline = False

    def __init__(self, code: Code, instances: int) -> None:
        self.code = code
        self.inputs = code.inputs
        self.outputs = code.outputs
        self.native: Engine | None = None
        self.classes: dict[str, tuple[str, ...]] = {}
        self.turns = threading.Semaphore(instances)
        weakref.finalize(self, sys.modules.pop, code.module, None)

    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch; raises as ``Code.run`` does."""
        with self.turns:
            try:
                return self.code.run(inputs)
            except RuntimeFailedError as error:
                interrupted = isinstance(error.__cause__, KeyboardInterrupt)
                if interrupted and threading.current_thread() is threading.main_thread():  # somebody's Ctrl-C
                    raise KeyboardInterrupt from error
                raise


def load(path: Path, config: ModelConfig, settings: Settings) -> Runtime:
    """Import a Python file and make its class Model.

    Raises:
        ModelLoadError: the operator has not allowed it, it has an error, or it takes longer than it may.
    """
    trust.check(path, settings)
    if config.python.process:
        from fastinfer.runtimes import python_process

        return python_process.load(path, config, settings)
    return PythonRuntime(bounded(path, config.python.start_timeout_ms / 1000), config.instances)


def bounded(path: Path, seconds: float) -> Code:
    """Make the object on a thread that is left alone when it takes too long: it cannot be ended."""
    made: list[Code] = []
    faults: list[BaseException] = []

    def make() -> None:
        try:
            made.append(Code(path, seconds))
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=make, name=f"load-{path.parent.name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise ModelLoadError(f"{path}: importing it and making Model(folder) took longer than {seconds:g} s "
                             "([python] start_timeout_ms).")
    if faults:
        raise faults[0]
    return made[0]
