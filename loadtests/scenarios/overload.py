"""Overload: more than the server carries, for as long as the test lasts. How much of it is still answered in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from schedule import Phase

from scenarios.shape import Scenario


class Overload(Scenario):
    """At ``peak`` times the capacity, after a moment below it, and a moment below it again."""

    abstract: ClassVar[bool] = True
    load = 0.5
    users = 512
    after = 4.0

    def phases(self) -> Sequence[Phase]:
        quiet, flood = self.share(self.load), self.share(self.peak)
        return [Phase("warm-up", self.warmup, quiet, measured=False), Phase("overload", self.seconds, flood),
                Phase("after", self.after, quiet)]


class OverloadX3(Overload):
    """Three times the capacity."""

    abstract: ClassVar[bool] = False
    name: ClassVar[str] = "overload-x3"
    peak = 3.0


class OverloadX10(Overload):
    """Ten times the capacity."""

    abstract: ClassVar[bool] = False
    name: ClassVar[str] = "overload-x10"
    peak = 10.0
