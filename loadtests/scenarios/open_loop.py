"""Open loop: Poisson arrivals at one rate, whatever the server does with them. What its clients feel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from schedule import Phase

from scenarios.shape import Scenario, ScenarioError


class OpenLoop(Scenario):
    """At ``load`` times the capacity, or ``--rate`` requests a second."""

    name: ClassVar[str] = "open-loop"
    needs_capacity: ClassVar[bool] = False

    def check(self) -> None:
        if not self.rate and not self.capacity:
            raise ScenarioError("open-loop needs --rate (requests a second), or --capacity")

    def phases(self) -> Sequence[Phase]:
        rate = self.rate or self.share(self.load)
        return [Phase("warm-up", self.warmup, rate, measured=False), Phase("steady", self.seconds, rate)]
