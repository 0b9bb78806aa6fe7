"""Closed loop: a fixed number of users, each of whom sends when it was answered. What a server carries at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from schedule import Phase

from scenarios.shape import Scenario


class ClosedLoop(Scenario):
    """A server that stalls is asked less, so its latencies are not to be judged; its throughput is.

    With a ``load`` the users pause between their requests, so that together they ask for that share of the capacity at
    most: against a server that is faster than Locust, one without pauses measures Locust.
    """

    name: ClassVar[str] = "closed-loop"
    needs_capacity: ClassVar[bool] = False
    users = 16
    load = 0.0

    def phases(self) -> Sequence[Phase]:
        return [Phase("warm-up", self.warmup, measured=False), Phase("closed", self.seconds)]

    @property
    def pace(self) -> float:
        asked = self.share(self.load)
        return self.users / asked if asked else 0.0
