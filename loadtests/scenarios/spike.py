"""Spike: a quiet service, a burst far past what it carries, and the time that it takes to recover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from schedule import Phase

from scenarios.shape import Scenario


class Spike(Scenario):
    """A quarter of the time at ``load``, a quarter at ``peak``, half of it at ``load`` again."""

    name: ClassVar[str] = "spike"
    load = 0.5
    peak = 10.0
    users = 512

    def phases(self) -> Sequence[Phase]:
        quiet, burst = self.share(self.load), self.share(self.peak)
        return [Phase("warm-up", self.warmup, quiet, measured=False), Phase("before", self.seconds / 4, quiet),
                Phase("spike", self.seconds / 4, burst), Phase("after", self.seconds / 2, quiet)]
