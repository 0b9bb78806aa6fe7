"""A file is loaded in another process first, where its library's loader may crash, or never end, on a damaged one."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from fastinfer.errors import ModelLoadError

PATIENCE, PATIENCE_PER_BYTE = 120.0, 1e-6  # seconds
BUSY, BUSY_PER_BYTE = 100, 1e-6  # seconds of the CPUs, which other programs do not use up; trying columns takes some
LEAST_MEMORY = 4 << 30  # that the process may ask for, where less is free: more than a large import reserves
BACK, TOO_LARGE = b"back", b"large"  # verdicts
SCRIPT = """
import sys
sys.path[:] = sys.argv[6:]
from fastinfer.runtimes.trial import run
run(*sys.argv[1:6])
"""


def check(module: str, path: Path) -> None:
    """Call the module's ``attempt(path)`` in another process; an exception there is nothing, since it comes here too.

    Raises:
        ModelLoadError: it crashed the process, ended it, asked for more memory than there is, or did not come back.
    """
    size = path.stat().st_size
    patience, busy = PATIENCE + PATIENCE_PER_BYTE * size, int(BUSY + BUSY_PER_BYTE * size)
    memory = max(LEAST_MEMORY, available_memory())
    verdict, said = os.pipe()
    command = [sys.executable, "-P", "-c", SCRIPT, module, str(path), *map(str, (busy, memory, said)), *sys.path]
    try:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,  # noqa: S603 - our own
                              stderr=subprocess.DEVNULL, pass_fds=[said], process_group=0) as child:
            try:
                code = child.wait(patience)
            except subprocess.TimeoutExpired:
                raise ModelLoadError(f"{path}: loading it takes longer than {patience:.0f} s.") from None
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # and what it has started
                    os.killpg(child.pid, signal.SIGKILL)
        text = heard(verdict)
    finally:
        os.close(verdict)
        os.close(said)
    if (text, code) == (BACK, 0):
        return
    if text == TOO_LARGE:
        raise ModelLoadError(f"{path}: loading it takes more memory than there is ({memory >> 20:,} MiB).")
    if code == -signal.SIGXCPU:
        raise ModelLoadError(f"{path}: loading it takes longer than {busy} s of a CPU's time.")
    if code < 0:
        raise ModelLoadError(f"{path} is damaged: loading it crashes its library ({signal.Signals(-code).name}).")
    raise ModelLoadError(f"{path}: loading it ends the process (code {code}).")


def heard(pipe: int) -> bytes:
    """What the process has said; nothing, where it ended before."""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, 64)
    except BlockingIOError:
        return b""


def available_memory() -> int:
    """Bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        found = re.search(r"^MemAvailable: *(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
        return int(found[1]) << 10 if found else 0
    return 0


def run(module: str, path: str, busy: str, memory: str, pipe: str) -> None:
    """In the other process: say how it went, and end."""
    import resource
    from importlib import import_module

    with contextlib.suppress(OSError):  # where memory runs out, this process is the one to go
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CPU, (int(busy), int(busy) + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    verdict = BACK
    try:
        import_module(module).attempt(Path(path))
    except BaseException as error:
        verdict = TOO_LARGE if is_shortage(error) else BACK
    os.write(int(pipe), verdict)
    os._exit(0)


def is_shortage(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__
    return error is not None
