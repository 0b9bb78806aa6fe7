"""Servers as processes: started on one core, asked what they cost, stopped with all their children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

TICK = os.sysconf("SC_CLK_TCK")
START_TIMEOUT = 60.0
STOP_TIMEOUT = 15.0
# Byte code must be written once and read ever after, or each start pays for compiling; and a peer's environment must
# not see this interpreter's path.
LEFT_OUT = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")


class ServerError(Exception):
    """A server cannot be started, or is gone; the message holds the end of its log."""


class Cores(NamedTuple):
    server: int
    client: int

    @classmethod
    def choose(cls) -> Cores:
        """The first and the last core that we may use."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise ServerError("two cores are needed: one for the server, one for the client")
        return cls(cores[0], cores[-1])


class Launch(NamedTuple):
    """One start of a server: the model's name and file, the port, and a folder of its own that is empty before."""

    model: str
    path: Path
    port: int
    spare_port: int
    folder: Path
    python: str

    def fill(self, text: str) -> str:
        """Put the fields in place of {port}, {folder}, …"""
        return text.format(**self._asdict())


class Memory(NamedTuple):
    """Of a process tree, in bytes; PSS counts each shared page by its share."""

    rss: int
    pss: int


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Children started inside inherit the core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def stat_fields(pid: int | str) -> list[str]:
    """The fields of /proc/<pid>/stat from the third (state) on; the second may hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def started_at(pid: int) -> str | None:
    """When a process began, in ticks since boot: with the id, what tells it from a later one. None: there is none."""
    try:
        return stat_fields(pid)[19]
    except OSError:
        return None


def tree(pid: int) -> list[int]:
    """The process and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                children.setdefault(int(stat_fields(entry)[1]), []).append(int(entry))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of the process tree so far, with that of children that have ended."""
    total = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):
            total += sum(int(field) for field in stat_fields(member)[11:15])
    return total / TICK


def core_busy_seconds(core: int) -> float:
    """What a core has spent so far on anything but idling, waiting for disks, and what the host took away."""
    fields = next(line.split()[1:] for line in Path("/proc/stat").read_text().splitlines()
                  if line.startswith(f"cpu{core} "))
    user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in fields[:7])
    return (user + nice + system + irq + softirq) / TICK


def memory(pid: int) -> Memory:
    rss = pss = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
            rss += sizes["Rss"] * 1024
            pss += sizes["Pss"] * 1024
    return Memory(rss, pss)


def free_ports(count: int) -> list[int]:
    """Different ones: all are bound before any is let go."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


def free_port() -> int:
    return free_ports(1)[0]


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in LEFT_OUT}
    return kept | {"ORT_DISABLE_TELEMETRY": "1"} | dict(extra)  # no server is charged for reporting home


def log_tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


class Server:
    """A started server."""

    def __init__(self, name: str, command: Sequence[str], *, port: int, core: int, log: Path,
                 environ: Mapping[str, str]) -> None:
        self.name = name
        self.port = port
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output, pinned(core):
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                            env=clean_environment(environ), start_new_session=True)
        self.pid = self.process.pid

    def wait(self, answers: Callable[[int], bool], *, interval: float = 0.05, timeout: float = START_TIMEOUT) -> None:
        """Until ``answers(port)`` holds.

        Raises:
            ServerError: the process ended, or nothing answered in time.
        """
        deadline = time.monotonic() + timeout
        while not answers(self.port):
            if self.process.poll() is not None:
                raise ServerError(f"{self.name} ended with {self.process.returncode}:\n{log_tail(self._log)}")
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name} did not answer in {timeout:g} s:\n{log_tail(self._log)}")
            time.sleep(interval)

    def stop(self) -> None:
        """Ask, then kill; nothing of its process group is left, nor of its tree where parts of it left the group."""
        members = {member: started_at(member) for member in tree(self.pid)[1:]}
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for member, moment in members.items():
            if moment is not None and started_at(member) == moment:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
