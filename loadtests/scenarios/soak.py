"""Soak: an open loop for long, its beginning and its end judged apart. What grows with time shows in the difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from schedule import Phase

from scenarios.shape import Scenario


class Soak(Scenario):
    """The first fifth, the middle and the last fifth of an open loop; ten minutes unless ``--seconds`` says more."""

    name: ClassVar[str] = "soak"
    seconds = 600.0

    def phases(self) -> Sequence[Phase]:
        rate = self.share(self.load)
        return [Phase("warm-up", self.warmup, rate, measured=False), Phase("first", self.seconds / 5, rate),
                Phase("middle", self.seconds * 3 / 5, rate), Phase("last", self.seconds / 5, rate)]
