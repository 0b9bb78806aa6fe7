"""A Python model in a process of its own: what it does to that process, it does to its own requests alone."""

import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from fastinfer import errors
from fastinfer._core import Engine, Tensor
from fastinfer.errors import InvalidRequestError, ModelLoadError, NotReadyError, RuntimeFailedError, RunTimeoutError
from fastinfer.runtimes import Arrays
from fastinfer.runtimes.python_wire import POLL, BrokenError, Channel, Memory, put, take
from fastinfer.settings import ModelConfig, Settings

FREE_DEATHS = 8  # in a row, after which the next start waits: finding one culprit in a batch takes some
LONGEST_WAIT = 30.0  # seconds until the next start
GRACE = 0.25  # seconds after run_timeout_ms, by when the batcher has answered those who wait

logger = logging.getLogger("fastinfer.python")


class ProcessRuntime:
    """As many processes as the model has instances, each started anew when it dies."""

    platform = "python"
    inline = False

    def __init__(self, path: Path, config: ModelConfig, run_timeout: float) -> None:
        self.native: Engine | None = None
        self.classes: dict[str, tuple[str, ...]] = {}
        start_timeout = config.python.start_timeout_ms / 1000
        self.processes = [Process(path, start_timeout, run_timeout) for _ in range(config.instances)]
        weakref.finalize(self, end_all, self.processes)
        for each in self.processes:
            each.start()
        self.inputs = self.processes[0].inputs
        self.outputs = self.processes[0].outputs
        self.idle: queue.LifoQueue[Process] = queue.LifoQueue()
        for each in self.processes:
            self.idle.put(each)

    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch; raises as ``Process.run`` does."""
        process = self.idle.get()
        try:
            return process.run(inputs)
        finally:
            self.idle.put(process)


class Process:
    """One process and what is shared with it. Used by one thread at a time; ``end`` by any."""

    def __init__(self, path: Path, start_timeout: float, run_timeout: float) -> None:
        self.path = path
        self.start_timeout = start_timeout
        self.run_timeout = run_timeout
        self.child: subprocess.Popen[bytes] | None = None
        self.deaths = 0  # since it last answered
        self.due = 0.0  # time of the next start
        self.up = threading.Event()
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def start(self) -> None:
        """Start it, and wait until its model is made: `up` is set then.

        Raises:
            ModelLoadError: the file has an error, takes too long, or kills its process.
        """
        ours, theirs = socket.socketpair()
        lifeline, held = os.pipe()
        self.given = Memory.create("fastinfer-inputs")
        self.taken = Memory.create("fastinfer-outputs")
        self.channel = Channel(ours)
        self.held = held
        passed = [theirs.fileno(), self.given.descriptor, self.taken.descriptor, lifeline]
        command = [sys.executable, "-P", "-X", "faulthandler", "-m", "fastinfer.runtimes.python_child", str(self.path),
                   str(self.start_timeout), *map(str, passed)]  # fmt: skip
        search = os.pathsep.join(str(Path(each).absolute()) for each in sys.path)
        with self.lock:
            try:
                if self.over.is_set():
                    raise ModelLoadError(f"{self.path}: the server is shutting down")
                self.child = subprocess.Popen(  # noqa: S603 - our own command
                    command, pass_fds=passed, stdin=subprocess.DEVNULL, process_group=0,
                    env={**os.environ, "PYTHONPATH": search},
                )  # fmt: skip
            finally:
                theirs.close()
                os.close(lifeline)
                if self.child is None:
                    self.release()
        try:
            self.greet()
        except BaseException:
            self.stop()
            raise
        self.up.set()

    def greet(self) -> None:
        """Hear what the model takes and gives."""
        try:
            message = self.channel.receive(self.start_timeout, self.alive)
        except TimeoutError:
            raise ModelLoadError(f"{self.path}: importing it and making Model(folder) took longer than "
                                 f"{self.start_timeout:g} s ([python] start_timeout_ms).") from None
        except BrokenError:
            raise ModelLoadError(f"{self.path}: importing it and making Model(folder) ended its process, which "
                                 f"{self.fate()}.") from None
        if "failed" in message:
            raise ModelLoadError(str(message["failed"]))
        inputs, outputs = ([Tensor(name, datatype, tuple(shape)) for name, datatype, shape, *_ in message[what]]
                           for what in ("inputs", "outputs"))
        if self.inputs and (inputs, outputs) != (self.inputs, self.outputs):
            raise ModelLoadError(f"{self.path} declares other inputs or outputs than when it was loaded")
        self.inputs, self.outputs = inputs, outputs

    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch, in a new process where the last one has died.

        Raises:
            InvalidRequestError: as the class raised it.
            RunTimeoutError: it did not answer, or is not up again; one that did not answer is killed.
            RuntimeFailedError: the class failed, or its process died.
            NotReadyError: it has died so often that the next start waits.
        """
        if self.up.is_set() and not self.alive():
            logger.error("%s: its process %s between two runs", self.path, self.fate())
            self.bury()
        self.wait_until_up()
        try:
            self.channel.send({"run": put(self.given, self.inputs, inputs)}, self.run_timeout + GRACE)
            message = self.channel.receive(self.run_timeout + GRACE, self.alive)
            if "error" not in message:
                outputs = take(self.taken, self.outputs, message.get("outputs"))
                self.deaths = 0
                return outputs
        except TimeoutError:
            logger.error("%s: a run has not come back after %g s; its process is killed", self.path, self.run_timeout)
            self.bury()
            raise RunTimeoutError(f"the model did not answer within {self.run_timeout:g} s") from None
        except MemoryError as error:
            raise RuntimeFailedError(f"the model failed on this request: {error}") from None
        except BrokenError:
            fate = self.fate()
            self.bury()
            logger.error("%s: its process %s during a run", self.path, fate)
            raise RuntimeFailedError(f"the model failed on this request: its process {fate}") from None
        self.deaths = 0
        raise error_of(message)

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + self.run_timeout
        while not self.up.is_set():
            now = time.monotonic()
            if self.due > now:
                refusal = NotReadyError(f"the model's process has died {self.deaths} times in a row")
                refusal.retry_after = max(1.0, self.due - now)
                raise refusal
            if now >= deadline or self.over.is_set():
                raise RunTimeoutError(f"the model's process was not up again within {self.run_timeout:g} s")
            self.up.wait(min(POLL, deadline - now))

    def bury(self) -> None:
        """Count a death, and start another one at once, or, after too many, a while later."""
        self.up.clear()
        self.stop()
        self.deaths += 1
        if self.deaths >= FREE_DEATHS:
            self.due = time.monotonic() + min(LONGEST_WAIT, 2.0 ** min(self.deaths - FREE_DEATHS, 10))
        threading.Thread(target=self.restart, name="restart", daemon=True).start()

    def restart(self) -> None:
        if self.over.wait(max(0.0, self.due - time.monotonic())):
            return
        try:
            self.start()
        except (ModelLoadError, OSError) as error:
            if not self.over.is_set():
                logger.error("%s: its process does not start again: %s", self.path, error)
                self.bury()
            return
        logger.info("%s: its process was started again", self.path)

    def alive(self) -> bool:
        return self.child is not None and not self.end_of(self.child)

    def end_of(self, child: subprocess.Popen[bytes]) -> str:
        """How the process ended, empty while it lives; it stays a zombie, whose number nobody else can have."""
        try:
            ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return "ended"
        if ended is None:
            return ""
        if ended.si_code == os.CLD_EXITED:
            return f"ended with code {ended.si_status}"
        return f"was killed by {signal.Signals(ended.si_status).name}"

    def fate(self) -> str:
        """How the process ended, which is about to be seen."""
        child = self.child
        if child is None:
            return "was ended"
        for _ in range(100):
            if end := self.end_of(child):
                return end
            time.sleep(0.01)
        return "answered what makes no sense"

    def stop(self) -> None:
        """Kill it, with all that it has started, and let go of what is shared."""
        with self.lock:
            if self.child is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.child.pid, signal.SIGKILL)
                self.child.wait()
                self.child = None
                self.release()

    def release(self) -> None:
        self.channel.end.close()
        self.given.close()
        self.taken.close()
        os.close(self.held)

    def end(self) -> None:
        """Kill it for good. The descriptors go with whoever still runs it."""
        with self.lock:
            self.over.set()
            child = self.child
        if child is not None and not self.end_of(child):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)


def end_all(processes: list[Process]) -> None:
    for each in processes:
        each.end()
    for each in processes:
        each.stop()


def error_of(message: dict[str, Any]) -> Exception:
    """The error that the process reports: a 400 as the class raised it, anything else a 500."""
    text, detail, at = message["error"], message.get("detail"), message.get("at")
    kind = getattr(errors, str(message.get("class")), None)
    if isinstance(kind, type) and issubclass(kind, InvalidRequestError):
        return kind(str(text), str(at) if at else None)
    failure = RuntimeFailedError(str(text))
    failure.detail = None if detail is None else str(detail)
    return failure


def load(path: Path, config: ModelConfig, settings: Settings) -> ProcessRuntime:
    """Start the model's processes; raises ModelLoadError as ``Process.start`` does."""
    limit = settings.run_timeout_ms if config.run_timeout_ms is None else config.run_timeout_ms
    return ProcessRuntime(path.absolute(), config, limit / 1000)
