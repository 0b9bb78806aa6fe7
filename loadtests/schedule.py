"""When requests are due: phases of a run, and in an open loop a Poisson process through them."""

from __future__ import annotations

import bisect
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Phase:
    """A part of a run in which the load follows one line.

    Attributes:
        name: what targets call it.
        seconds: its length; infinite for one that lasts as long as the run.
        rate: arrivals a second at its beginning; None for a closed loop, where each user sends when it was answered.
        to_rate: arrivals a second at its end, the same by default; between them lies a straight line.
        measured: whether its requests are judged; a warm-up's are not.
    """

    name: str
    seconds: float = math.inf
    rate: float | None = None
    to_rate: float | None = None
    measured: bool = True

    def rates(self) -> tuple[float, float]:
        """At its beginning and at its end; nothing arrives by itself in a closed loop."""
        first = self.rate or 0.0
        return first, first if self.to_rate is None else self.to_rate


class Clock:
    """When a process's part of a run began; its timetables share one."""

    began: float | None = None

    def begin(self) -> float:
        """Now, unless it has begun."""
        if self.began is None:
            self.began = time.perf_counter()
        return self.began


class Timetable:
    """Phases one after the other, from the beginning of the run on."""

    def __init__(self, phases: Sequence[Phase], clock: Clock | None = None) -> None:
        self.phases = tuple(phases)
        self.clock = clock or Clock()
        self._ends = list(itertools.accumulate(phase.seconds for phase in self.phases))

    @property
    def open_loop(self) -> bool:
        """Whether requests arrive by themselves."""
        return any(phase.rate is not None for phase in self.phases)

    def index_at(self, elapsed: float) -> int:
        """The phase at so many seconds after the beginning; past the last where all are over."""
        return bisect.bisect_right(self._ends, elapsed)

    def start_of(self, index: int) -> float:
        return self._ends[index - 1] if index else 0.0


class Turn(NamedTuple):
    """How a request kept to its schedule.

    Attributes:
        overdue_ms: from the scheduled time to the sending; belongs to the request's latency.
        lag_ms: the part of it that the generator caused, by waking up late. The rest was spent waiting for a free
            user, so it is the server's.
        due_s: the scheduled time, in seconds after the beginning.
    """

    overdue_ms: float
    lag_ms: float
    due_s: float


class Arrivals:
    """A Poisson process along the phases of a timetable, each arrival handed to whichever user is free next.

    All users of a group in a process draw from one schedule. A user that is late for its arrival sends at once and the
    wait counts as latency, so a slow server cannot slow the load down and hide what its clients would have felt.

    Args:
        share: of the rate, where several processes carry the load together.
        over: called at the end of the last phase.
    """

    def __init__(self, timetable: Timetable, sleep: Callable[[float], None], *, share: float = 1.0,
                 over: Callable[[], None] | None = None, seed: int | None = None) -> None:
        self._timetable = timetable
        self._sleep = sleep
        self._share = share
        self._over = over
        self._random = random.Random(seed)
        self._due = 0.0
        self._index = 0

    def wait(self) -> Turn | None:
        """Sleep until the next arrival is due; None at the end of the last phase, when there are no more."""
        began = self._timetable.clock.begin()
        free = time.perf_counter()
        scheduled = self._due = self._next()  # others draw theirs while this one sleeps
        if math.isinf(scheduled):  # long before the end, where many users have drawn their turns
            self._sleep(max(0.0, began + self._timetable.start_of(len(self._timetable.phases)) - free))
            if self._over is not None:
                self._over()
            return None
        due = began + scheduled
        if due > free:
            self._sleep(due - free)
        now = time.perf_counter()
        return Turn((now - due) * 1000, (now - max(due, free)) * 1000, scheduled)

    def _next(self) -> float:
        """The time at which the expected number of arrivals has grown by a draw of the unit exponential."""
        if math.isinf(self._due):
            return math.inf
        wanted = self._random.expovariate(1.0)
        at = self._due
        for index in range(self._index, len(self._timetable.phases)):
            self._index = index
            phase, start = self._timetable.phases[index], self._timetable.start_of(index)
            first, last = (self._share * rate for rate in phase.rates())
            slope = 0.0 if math.isinf(phase.seconds) else (last - first) / phase.seconds
            rate = first + slope * (at - start)
            left = start + phase.seconds - at
            holds = math.inf if math.isinf(left) and rate else (rate + last) / 2 * left if rate or last else 0.0
            if wanted < holds:
                return at + 2 * wanted / (rate + math.sqrt(max(0.0, rate * rate + 2 * slope * wanted)))
            wanted -= holds
            at = start + phase.seconds
        self._index = len(self._timetable.phases)
        return math.inf
