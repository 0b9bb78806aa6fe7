"""targets.toml: what a scenario's run must reach, and the verdict on a recording.

A target is *missed* when the run measured enough to say so. What it did not measure enough of makes the run invalid
instead, unless another target was missed for certain.
"""

from __future__ import annotations

import difflib
import enum
import math
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from recorder import Recording, Series

USERS = ("all", "records", "oip_json", "oip_binary")
SAMPLES_BEYOND = 10  # a percentile with fewer samples above it is one or two outliers' value
PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)_ms")


class TargetsError(Exception):
    """targets.toml cannot be used as it stands."""


class Verdict(enum.IntEnum):
    """Also the exit code of a process that judges."""

    MET = 0
    MISSED = 1
    INVALID = 2


@dataclass(frozen=True)
class Capacity:
    """The closed loop that finds how much this server and this generator carry together.

    Attributes:
        users: each sends its next request when the last one was answered.
        warmup, seconds: left out of the measurement, and its length.
    """

    users: int = 16
    warmup: float = 3.0
    seconds: float = 12.0


@dataclass(frozen=True)
class Steady:
    """An open loop at a share of the capacity, whose latencies are judged.

    Attributes:
        load: requests sent a second, as a share of the capacity.
        users: most requests in flight.
        warmup, seconds: left out of the measurement, and its length.
    """

    load: float = 0.5
    users: int = 64
    warmup: float = 3.0
    seconds: float = 36.0


@dataclass(frozen=True)
class Validity:
    """What the generator may show before its measurements say more about itself than about the server.

    Attributes:
        generator_cpu: share of its core.
        waited: share of the time in which either side could run and others had its core; then a miss does not count.
        lag_p99_ms: how late it may send, 99 times in 100.
    """

    generator_cpu: float = 0.9
    waited: float = 0.3
    lag_p99_ms: float = 25.0


class Target(NamedTuple):
    users: str
    name: str
    limit: float


@dataclass(frozen=True)
class Targets:
    capacity: Capacity = field(default_factory=Capacity)
    steady: Steady = field(default_factory=Steady)
    validity: Validity = field(default_factory=Validity)
    targets: tuple[Target, ...] = ()


class Line(NamedTuple):
    """One row of the table."""

    target: Target
    measured: float
    samples: int
    verdict: Verdict
    note: str = ""


class Judgement(NamedTuple):
    """Attributes:
        lines: one a target.
        faults: why the run says nothing, if it does not.
        disturbances: what makes a server look slower than it is. Targets met in spite of it are met; one that was
            missed says nothing.
    """

    lines: tuple[Line, ...]
    faults: tuple[str, ...]
    disturbances: tuple[str, ...]

    @property
    def missed(self) -> list[Line]:
        return [line for line in self.lines if line.verdict is Verdict.MISSED]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the run is invalid as a whole; empty where it counts."""
        return self.faults + (self.disturbances if self.missed else ())

    @property
    def verdict(self) -> Verdict:
        if self.reasons:
            return Verdict.INVALID
        if self.missed:
            return Verdict.MISSED
        return max((line.verdict for line in self.lines), default=Verdict.MET)


def load(path: Path) -> Targets:
    """Read a targets file; every key must be known.

    Raises:
        TargetsError: unreadable, an unknown key (with the nearest known one), or a value that is no number.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TargetsError(f"{path}: {error}") from None
    refuse_unknown(path, document, ("capacity", "steady", "validity"), "")
    steady = dict(document.get("steady", {}))
    targets = steady.pop("targets", {})
    return Targets(
        section(path, Capacity, document.get("capacity", {}), "capacity"),
        section(path, Steady, steady, "steady"),
        section(path, Validity, document.get("validity", {}), "validity"),
        tuple(read_targets(path, targets)),
    )


def refuse_unknown(path: Path, given: Any, known: Sequence[str], place: str) -> None:
    if not isinstance(given, dict):
        raise TargetsError(f"{path}: {place} must be a table")
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise TargetsError(f"{path}: unknown key {place + key!r}{hint}")


def number(path: Path, value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise TargetsError(f"{path}: {place} must be a number that is not negative, not {value!r}")
    return value


def section(path: Path, kind: type[Any], given: dict[str, Any], place: str) -> Any:
    refuse_unknown(path, given, tuple(kind.__dataclass_fields__), f"{place}.")
    for key, value in given.items():
        number(path, value, f"{place}.{key}")
        if kind.__dataclass_fields__[key].type == "int" and (not isinstance(value, int) or value < 1):
            raise TargetsError(f"{path}: {place}.{key} must be a whole number above 0, not {value!r}")
    return kind(**given)


def read_targets(path: Path, given: Any) -> Iterable[Target]:
    refuse_unknown(path, given, USERS, "steady.targets.")
    for users, entries in given.items():
        place = f"steady.targets.{users}."
        known = ("p50_ms", "p90_ms", "p99_ms", "failures", *(("throughput",) if users == "all" else ()))
        refuse_unknown(path, {key: 0 for key in entries if not PERCENTILE.fullmatch(key)}, known, place)
        for name, limit in entries.items():
            yield Target(users, name, number(path, limit, place + name))


def judge(targets: Targets, recording: Recording, capacity: float | None, *, server_waited: float = 0.0) -> Judgement:
    """Compare a recording with its targets.

    Args:
        capacity: requests a second, None where it was not measured.
        server_waited: share of the time in which the server could run and others had its core, where it is known.
    """
    lines = tuple(judge_one(target, recording, capacity) for target in targets.targets)
    return Judgement(lines, tuple(faults(targets.validity, recording)),
                     tuple(disturbances(targets.validity, recording, server_waited)))


def faults(validity: Validity, recording: Recording) -> Iterable[str]:
    if not recording.all().requests:
        yield "no request was finished in the measured window"
    if recording.generator_cpu > validity.generator_cpu:
        yield (f"the generator used {recording.generator_cpu:.0%} of its core, above {validity.generator_cpu:.0%}: "
               "it measured itself")
    lag = recording.lag.percentile(99)
    if lag > validity.lag_p99_ms:
        yield f"the generator sent {lag:.1f} ms late at p99, above {validity.lag_p99_ms:g} ms: the machine is too busy"


def disturbances(validity: Validity, recording: Recording, server_waited: float) -> Iterable[str]:
    for side, share in (("generator", recording.generator_waited), ("server", server_waited)):
        if share > validity.waited:
            yield f"others had the {side}'s core for {share:.0%} of the time, above {validity.waited:.0%}"


def judge_one(target: Target, recording: Recording, capacity: float | None) -> Line:
    series = recording.all() if target.users == "all" else recording.series.get(target.users, Series())
    if target.name == "failures":
        return share_of_failures(target, series)
    if target.name == "throughput":
        return ratio_to_capacity(target, recording, capacity)
    return latency(target, series)


def share_of_failures(target: Target, series: Series) -> Line:
    if not series.requests:
        return Line(target, math.nan, 0, Verdict.INVALID, "no requests")
    share = series.failures / series.requests
    return Line(target, share, series.requests, Verdict.MISSED if share > target.limit else Verdict.MET)


def ratio_to_capacity(target: Target, recording: Recording, capacity: float | None) -> Line:
    answered = recording.all().latency.count
    if not capacity:
        return Line(target, math.nan, answered, Verdict.MET, "not judged: the capacity was not measured")
    ratio = recording.throughput / capacity
    return Line(target, ratio, answered, Verdict.MISSED if ratio < target.limit else Verdict.MET)


def latency(target: Target, series: Series) -> Line:
    percent = float(target.name[1:].removesuffix("_ms"))
    samples, measured = series.latency.count, series.latency.percentile(percent)
    needed = math.ceil(round(SAMPLES_BEYOND * 100 / (100 - percent), 6))
    if samples < needed:
        return Line(target, measured, samples, Verdict.INVALID, f"too few samples, {needed} are needed")
    return Line(target, measured, samples, Verdict.MISSED if measured > target.limit else Verdict.MET)


def table(judgement: Judgement) -> str:
    """The verdict as text, a line a target."""
    rows = [("users", "target", "limit", "measured", "samples", "")]
    for line in judgement.lines:
        verdict = line.note or line.verdict.name.lower()
        bound = ">=" if line.target.name == "throughput" else "<="
        rows.append((line.target.users, line.target.name, f"{bound} {line.target.limit:g}", shown(line.measured),
                     str(line.samples), verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    aligned = [[cell.rjust(width) if 2 <= column <= 4 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}" if value < 1 else f"{value:.2f}"


def conclusion(judgement: Judgement) -> str:
    """One sentence for the last line: which target was missed, or why the run does not count."""
    if judgement.verdict is Verdict.MET:
        return "met: every target"
    if judgement.reasons:
        return "invalid run: " + "; ".join(judgement.reasons)
    lines = judgement.missed or [line for line in judgement.lines if line.verdict is Verdict.INVALID]
    named = "; ".join(f"{line.target.users} {line.target.name} is {shown(line.measured)}"
                      f"{' (' + line.note + ')' if line.note else f', the limit is {line.target.limit:g}'}"
                      for line in lines)
    return f"missed: {named}" if judgement.missed else f"invalid run: {named}"
