"""What all scenarios are: phases of load as a LoadTestShape, set up from the options of loadtests/locustfile.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from locust import LoadTestShape, User
from locust.runners import MasterRunner
from schedule import Phase
from users import InferenceUser

DRAIN_SECONDS = 5.0  # in which the last answers come; what is not answered then has failed


class ScenarioError(Exception):
    """The scenario cannot be run as it was asked for."""


class Scenario(LoadTestShape):
    """A named course of load. A subclass says which phases it has; what it needs is set by :meth:`configure`.

    Attributes:
        name: as ``--scenario`` and targets.toml have it.
        needs_capacity: whether its rates are shares of the capacity.
        users: most requests in flight (open loop), or how many send (closed loop).
        load: arrivals a second as a share of the capacity.
        peak: the same where the load is highest, in scenarios that have such a phase.
        seconds: length of what is measured.
        warmup: seconds before it.
        extra_users: user classes that take part beside those that send the model's plain requests.
        schedules_of: by ``group`` of a user class, the phases whose arrivals its users share; "" is the plain ones'.
    """

    abstract: ClassVar[bool] = True
    use_common_options: ClassVar[bool] = True
    name: ClassVar[str] = ""
    needs_capacity: ClassVar[bool] = True
    extra_users: ClassVar[tuple[type[User], ...]] = ()
    users: int = 64
    load: float = 0.5
    peak: float = 1.0
    seconds: float = 30.0
    warmup: float = 3.0
    capacity: float = 0.0
    rate: float = 0.0

    def __init__(self) -> None:
        super().__init__()
        self._extra = sum(user.fixed_count for user in self.extra_users)

    def configure(self, course: Any, options: Any) -> None:
        """Take what the command line says, else what the table in targets.toml does, else what the class has."""
        given = {"users": "num_users", "load": "load", "peak": "peak", "seconds": "seconds", "warmup": "warmup",
                 "capacity": "capacity", "rate": "rate"}
        for name, option in given.items():
            value = getattr(options, option, None) or getattr(course, name, None)
            if value:
                setattr(self, name, value)

    def check(self) -> None:
        """Before the load begins.

        Raises:
            ScenarioError: what it is a share of is not known.
        """
        if self.needs_capacity and not self.capacity:
            raise ScenarioError(f"{self.name} needs --capacity, the requests a second that its load is a share of; "
                                "verify.py measures it first")

    def phases(self) -> Sequence[Phase]:
        """Of the plain requests."""
        raise NotImplementedError

    def schedules(self) -> Mapping[str, Sequence[Phase]]:
        """By group of user classes; all take equally long."""
        return {"": self.phases()}

    def share(self, load: float) -> float:
        """So many times the capacity, in requests a second."""
        return load * self.capacity

    @property
    def pace(self) -> float:
        """Seconds from one request of a user to its next, at least; 0 where answers or arrivals say when."""
        return 0.0

    @property
    def length(self) -> float:
        return sum(phase.seconds for phase in self.phases())

    def tick(self) -> tuple[int, float] | None:
        """All users from the beginning on; a second is enough to start them, and the warm-up lasts longer."""
        over = self.get_run_time() - self.length
        alone = not isinstance(self.runner, MasterRunner)  # a master does not know what its workers wait for
        if over > DRAIN_SECONDS or (over > 0 and alone and not InferenceUser.pending):
            return None
        users = self.users + self._extra
        return users, users
