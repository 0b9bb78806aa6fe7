"""When requests are due in an open loop: a Poisson process, whatever the server does with it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple


class Turn(NamedTuple):
    """How a request kept to its schedule, in milliseconds.

    Attributes:
        overdue_ms: from the scheduled time to the sending; belongs to the request's latency.
        lag_ms: the part of it that the generator caused, by waking up late. The rest was spent waiting for a free
            user, so it is the server's.
    """

    overdue_ms: float
    lag_ms: float


class Arrivals:
    """Arrivals at ``rate`` a second, handed to whichever user is free next.

    All users of a process draw from one schedule. A user that is late for its arrival sends at once and the wait
    counts as latency, so a slow server cannot slow the load down and hide what its clients would have felt.
    """

    def __init__(self, rate: float, sleep: Callable[[float], None], *, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._rate = rate
        self._sleep = sleep
        self._due = time.perf_counter()

    def wait(self) -> Turn:
        """Sleep until the next arrival is due."""
        free = time.perf_counter()
        self._due += self._random.expovariate(self._rate)
        due = self._due
        if due > free:
            self._sleep(due - free)
        now = time.perf_counter()
        return Turn((now - due) * 1000, (now - max(due, free)) * 1000)
