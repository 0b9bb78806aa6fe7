"""What a check is, and the run of many."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastinfer.errors import FastinferError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PASS, FAIL, SKIP = "pass", "FAIL", "skip"


class FailError(Exception):
    """The server does not do what the protocol says; the message says what it does."""


class SkipError(Exception):
    """The check does not apply to this server; the message says why."""


def need(condition: Any, says: str) -> None:
    """Fail the check unless the condition holds."""
    if not condition:
        raise FailError(says)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a client may rely on.

    Attributes:
        name: stable, `group.what`.
        says: what holds of a server that passes.
        function: raises FailError or SkipError; what it returns is noted beside the result.
    """

    name: str
    says: str
    function: Callable[..., str | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a check.

    Attributes:
        result: `pass`, `FAIL` or `skip`.
        note: what was seen, or why it was skipped.
        seconds: that it took.
    """

    name: str
    says: str
    result: str
    note: str
    seconds: float


class Checks:
    """The checks of one group, in the order in which they are written."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.all: list[Check] = []

    def add(self, name: str, says: str) -> Callable[[Callable[..., str | None]], Callable[..., str | None]]:
        """Decorates a check."""

        def decorate(function: Callable[..., str | None]) -> Callable[..., str | None]:
            self.all.append(Check(f"{self.group}.{name}", says, function))
            return function

        return decorate


def run(checks: Iterable[Check], server: Any) -> Iterator[Outcome]:
    """Try one check after the other; what goes wrong in one does not keep the next from being tried."""
    for check in checks:
        started = time.monotonic()
        result, note = PASS, ""
        try:
            note = check.function(server) or ""
        except SkipError as why:
            result, note = SKIP, str(why)
        except FailError as fault:
            result, note = FAIL, str(fault)
        except (FastinferError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            # An answer of another form than any server should give.
            result, note = FAIL, f"{type(error).__name__}: {error}"
        yield Outcome(check.name, check.says, result, note, time.monotonic() - started)
