"""Closed loop: a fixed number of users, each of whom sends when it was answered. What a server carries at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from schedule import Phase

from scenarios.shape import Scenario


class ClosedLoop(Scenario):
    """A server that stalls is asked less, so its latencies are not to be judged; its throughput is."""

    name: ClassVar[str] = "closed-loop"
    needs_capacity: ClassVar[bool] = False
    users = 16

    def phases(self) -> Sequence[Phase]:
        return [Phase("warm-up", self.warmup, measured=False), Phase("closed", self.seconds)]
