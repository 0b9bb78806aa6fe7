"""A Python model's own process: `python -P -m fastinfer.runtimes.python_child`, started by python_process."""

import contextlib
import fcntl
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from fastinfer import errors
from fastinfer.errors import FastinferError, InvalidRequestError, ModelLoadError
from fastinfer.runtimes.python_code import Code, described
from fastinfer.runtimes.python_wire import BrokenError, Channel, Memory, put, take

F_SETSIG = 10  # of Linux, which the module fcntl does not name


def main(arguments: list[str]) -> None:
    path, patience, *descriptors = arguments
    channel, inputs, outputs, lifeline = map(int, descriptors)
    end_with(lifeline)
    for number in (signal.SIGINT, signal.SIGTERM):  # are for the server, which answers what it has before it ends
        signal.signal(number, signal.SIG_IGN)
    os.dup2(2, 1)  # what the class prints goes to the server's log, not among what the server says
    answer(Channel(socket.socket(fileno=channel)), Memory(inputs), Memory(outputs), Path(path), float(patience))


def end_with(lifeline: int) -> None:
    """Have the kernel kill this process when the server lets go of the other end, however busy either of them is."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    with contextlib.suppress(BlockingIOError):
        os.set_blocking(lifeline, False)
        if not os.read(lifeline, 1):  # it has let go already
            os._exit(1)


def answer(channel: Channel, inputs: Memory, outputs: Memory, path: Path, patience: float) -> None:
    """Make the model, then run what comes until the server goes."""
    try:
        code = Code(path, patience)
    except FastinferError as error:
        channel.send({"failed": str(error)})
        return
    except Exception as error:  # of what it declares
        channel.send({"failed": f"{path}: {described(error)}"})
        return
    sys.path.insert(0, str(path.parent.absolute()))  # here no other model can be hurt
    channel.send({"inputs": [list(each) for each in code.inputs], "outputs": [list(each) for each in code.outputs]})
    with contextlib.suppress(BrokenError):
        while True:
            channel.send(run(code, inputs, outputs, channel.receive()))


def run(code: Code, inputs: Memory, outputs: Memory, message: dict[str, Any]) -> dict[str, Any]:
    try:
        arrays = code.run(take(inputs, code.inputs, message["run"]))
        return {"outputs": put(outputs, code.outputs, arrays)}
    except (FastinferError, MemoryError) as error:
        known = isinstance(error, InvalidRequestError) and hasattr(errors, type(error).__name__)
        return {"error": str(error)[:10_000], "class": type(error).__name__ if known else "",
                "at": str(getattr(error, "at", None) or ""), "detail": getattr(error, "detail", None)}  # fmt: skip


if __name__ == "__main__":
    with contextlib.suppress(ModelLoadError):
        main(sys.argv[1:])
