"""The scenarios by name. To use one elsewhere, put loadtests/ on the path and import its class.

    locust -f loadtests/locustfile.py --host URL --headless --scenario spike --capacity 250
    locust -f loadtests/locustfile.py,loadtests/scenarios/spike.py --host URL --headless --capacity 250

A scenario is a LoadTestShape over phases; GreedyUser and SlowUser are user classes of two of them.
"""

from __future__ import annotations

from scenarios.closed_loop import ClosedLoop
from scenarios.noisy_neighbour import GreedyUser, NoisyNeighbour
from scenarios.open_loop import OpenLoop
from scenarios.overload import Overload, OverloadX3, OverloadX10
from scenarios.ramp import Ramp, Staircase
from scenarios.shape import Scenario, ScenarioError
from scenarios.slow_client import SlowClient, SlowUser
from scenarios.soak import Soak
from scenarios.spike import Spike

SCENARIOS: dict[str, type[Scenario]] = {scenario.name: scenario for scenario in (
    ClosedLoop, OpenLoop, Ramp, Staircase, Spike, Soak, OverloadX3, OverloadX10, NoisyNeighbour, SlowClient)}

__all__ = ["SCENARIOS", "ClosedLoop", "GreedyUser", "NoisyNeighbour", "OpenLoop", "Overload", "OverloadX3",
           "OverloadX10", "Ramp", "Scenario", "ScenarioError", "SlowClient", "SlowUser", "Soak", "Spike", "Staircase"]
