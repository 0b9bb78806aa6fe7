"""Ramp: the rate climbs along a line. Where the latency leaves its bounds is what the server carries.

The staircase is the same in steps, each of them judged by itself: verify.py finds the capacity with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

from schedule import Phase

from scenarios.shape import Scenario


class Ramp(Scenario):
    """From ``load`` to ``peak`` times the capacity in three pieces of one line."""

    name: ClassVar[str] = "ramp"
    load = 0.1
    peak = 1.0

    def phases(self) -> Sequence[Phase]:
        climb = (self.peak - self.load) / 3
        rates = [self.share(self.load + climb * step) for step in range(4)]
        return [Phase("warm-up", self.warmup, rates[0], measured=False),
                *(Phase(name, self.seconds / 3, first, last)
                  for name, (first, last) in zip(("low", "middle", "high"), itertools.pairwise(rates), strict=True))]


class Staircase(Scenario):
    """From ``load`` to ``peak`` times what a closed loop gave, in equal steps named by their share in percent."""

    name: ClassVar[str] = "staircase"
    load = 0.4
    peak = 1.1
    steps = 8

    def shares(self) -> list[float]:
        """Of the rate that ``--capacity`` tells, step by step."""
        return [self.load + (self.peak - self.load) * step / (self.steps - 1) for step in range(self.steps)]

    def phases(self) -> Sequence[Phase]:
        each = self.seconds / self.steps
        return [Phase("warm-up", self.warmup, self.share(self.load), measured=False),
                *(Phase(f"{share:.4f}", each, self.share(share)) for share in self.shares())]
