"""Noisy neighbour: clients that ask modestly, beside one that asks for many times what the server carries.

The greedy one comes from an address of its own (127.0.0.2, where the server is on this host) and says so in
X-Forwarded-For too, for a server behind a proxy, or one with ``--forwarded-allow-ips``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from locust import tag, task
from schedule import Phase
from users import InferenceUser

from scenarios.shape import Scenario

ADDRESS = "127.0.0.2"


class GreedyUser(InferenceUser):
    """All of them together are one client, with a schedule of its own."""

    kind = "greedy"
    group = "greedy"
    address = ADDRESS
    default_headers: ClassVar[dict[str, str]] = {"X-Forwarded-For": ADDRESS}
    fixed_count = 384

    @tag("greedy")
    @task
    def flood(self) -> None:
        self.send()


class NoisyNeighbour(Scenario):
    """The modest ones first alone, for a quarter of the time, then beside the greedy one.

    Targets may name the phases ``alone`` and ``beside``, which hold the modest ones' requests only, and ``greedy``.
    """

    name: ClassVar[str] = "noisy-neighbour"
    extra_users = (GreedyUser,)
    load = 0.2
    peak = 10.0

    def phases(self) -> Sequence[Phase]:
        rate = self.share(self.load)
        return [Phase("warm-up", self.warmup, rate, measured=False), Phase("alone", self.seconds / 4, rate),
                Phase("beside", self.seconds * 3 / 4, rate)]

    def schedules(self) -> Mapping[str, Sequence[Phase]]:
        quiet = Phase("before greedy", self.warmup + self.seconds / 4, 0.0, measured=False)
        return {"": self.phases(),
                GreedyUser.group: [quiet, Phase("greedy", self.seconds * 3 / 4, self.share(self.peak))]}
