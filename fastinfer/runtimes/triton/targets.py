"""The urls at which a model runs: which of them takes the next batch, and which is left alone for a while."""

import logging
import random
import time
from collections.abc import Sequence

from fastinfer.errors import BackendUnavailableError

logger = logging.getLogger("fastinfer.triton")

MOST_FAILURES = 3  # in a row, after which a url is left alone
FIRST_WAIT = 0.25  # seconds, then doubled
LONGEST_WAIT = 5.0


class Target:
    """One url and its circuit breaker.

    Closed, batches go there. After failures in a row it opens, and none do; when its readiness answers again, it is
    half open: one batch goes, and closes it or opens it for longer. Times are of time.monotonic.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.in_flight = 0
        self.failures = 0
        self.open = False
        self.half_open = False
        self.wait = FIRST_WAIT
        self.answered_at = 0.0
        self.doubted = True  # whether the model there may be another one than was read

    @property
    def usable(self) -> bool:
        return not self.open and not (self.half_open and self.in_flight)

    def answered(self) -> None:
        """It gave an answer, if only that a batch is at fault."""
        self.answered_at = time.monotonic()
        self.failures = 0
        self.wait = FIRST_WAIT
        if self.half_open:
            self.half_open = False
            logger.warning("Triton at %s answers again", self.address)

    def failed(self, why: object, *, at_once: bool = False) -> None:
        """A batch, or the question for readiness, was not answered."""
        self.failures += 1
        if self.open or not (at_once or self.half_open or self.failures >= MOST_FAILURES):
            return
        if self.half_open:
            self.wait = min(2 * self.wait, LONGEST_WAIT)
        self.half_open = False
        self.open = True
        logger.warning("Triton at %s is left alone for now: %s", self.address, why)

    def pause(self) -> float:
        """Seconds until it is asked for readiness again while it is open; each time longer."""
        wait = self.wait * random.uniform(0.8, 1.2)  # noqa: S311 - many servers must not ask at once
        self.wait = min(2 * self.wait, LONGEST_WAIT)
        return wait

    def woke(self) -> None:
        """Its readiness answers."""
        if self.open:
            self.half_open = True
            self.open = False


def shortest(targets: Sequence[Target], tried: Sequence[Target] = ()) -> Target:
    """The target with the least to do of those that take batches, not one that was tried where there is another.

    Raises:
        BackendUnavailableError: there is none.
    """
    usable = [target for target in targets if target.usable]
    if not usable:
        raise BackendUnavailableError("the model's server does not answer, and is left alone for a moment")
    least = min((target in tried, target.in_flight) for target in usable)
    return random.choice([each for each in usable if (each in tried, each.in_flight) == least])  # noqa: S311
