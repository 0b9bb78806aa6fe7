"""What a process has had of its cores (Linux): how busy it was, and whether others kept it waiting."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

TICK = os.sysconf("SC_CLK_TCK")
BUSY = (0, 1, 2, 5, 6)  # fields of a line of /proc/stat: user, nice, system, irq, softirq


class Share(NamedTuple):
    """Attributes:
        ran: what was used of one core; more than 1 where several were used.
        waited: share of the time in which it could run and others had its core.
    """

    ran: float
    waited: float


class Usage(NamedTuple):
    """Of a process with its threads and children so far, in seconds.

    Attributes:
        ran: on any core.
        waited: by thread, ready to run while something else had the core: others, or its own threads.
        busy: what the cores that it may use have been, by whomever.
    """

    ran: float
    waited: Mapping[int, float]
    busy: float

    def since(self, before: Usage, seconds: float) -> Share:
        """Of the time between two of them. A thread that waits for another of its process is no disturbance, so what
        others used of the core is the bound."""
        ran = self.ran - before.ran
        waited = max((now - before.waited.get(thread, 0.0) for thread, now in self.waited.items()), default=0.0)
        others = max(0.0, self.busy - before.busy - ran)
        return Share(ran / seconds, min(waited, others) / seconds)


def usage(pid: int | None = None) -> Usage:
    """Of a process, by default this one.

    Raises:
        OSError: it is gone.
    """
    main = os.getpid() if pid is None else pid
    cores = os.sched_getaffinity(main)
    busy = sum(sum(int(fields[index + 1]) for index in BUSY) for line in Path("/proc/stat").read_text().splitlines()
               if (fields := line.split())[0] in {f"cpu{core}" for core in cores})
    ran, waited = 0, {}
    for member in tree(main):
        with contextlib.suppress(OSError, ValueError):  # a child that has just ended
            fields = stat_fields(member)
            ran += int(fields[11]) + int(fields[12])
            for task in Path(f"/proc/{member}/task").iterdir():
                waited[int(task.name)] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return Usage(ran / TICK, waited, busy / TICK)


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third (state) on; the second may hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(pid: int) -> list[int]:
    """The process and its living descendants.

    Raises:
        OSError: it is gone.
    """
    stat_fields(pid)
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found
