"""targets.toml: what a scenario's run must reach, and the verdict on a recording.

A target is *missed* when the run measured enough to say so. What it did not measure enough of makes the run invalid
instead, unless another target was missed for certain.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from recorder import BIN_SECONDS, Recording, Series

USERS = ("all", "records", "oip_json", "oip_binary")
# The scenarios, and what their targets may name beside the user classes: their phases, and users of their own.
GROUPS = {
    "closed-loop": ("closed",),
    "open-loop": ("steady",),
    "ramp": ("low", "middle", "high"),
    "spike": ("before", "spike", "after"),
    "soak": ("first", "middle", "last"),
    "overload-x3": ("overload", "after"),
    "overload-x10": ("overload", "after"),
    "noisy-neighbour": ("alone", "beside", "greedy"),
    "slow-client": ("beside", "slow"),
}
SHARES = ("throughput", "goodput")  # of the capacity: the more the better
LIMITS = ("failures", "errors", "refused", "silent", "recovery_s")
SAMPLES_BEYOND = 10  # a percentile with fewer samples above it is one or two outliers' value
PERCENTILE = re.compile(r"(refusal_)?p(\d{1,2}(?:\.\d+)?)_ms")
RECOVERED = 0.9  # of what is sent in a quarter of a second is answered in time


class TargetsError(Exception):
    """targets.toml cannot be used as it stands."""


class Verdict(enum.IntEnum):
    """Also the exit code of a process that judges."""

    MET = 0
    MISSED = 1
    INVALID = 2


class Target(NamedTuple):
    """Attributes:
        users: a user class, a phase, or all.
    """

    users: str
    name: str
    limit: float


@dataclass(frozen=True)
class Capacity:
    """How the capacity C is found.

    A closed loop tells what the server and this generator carry together. With ``slo_ms`` a staircase of open loops
    around that rate follows, and C is the highest step at which the 99th percentile keeps it, as at all but one below.

    Attributes:
        users: of the closed loop; each sends its next request when the last one was answered.
        warmup, seconds: left out of the measurement, and its length.
        slo_ms: the bound on the latency; 0 leaves the staircase out.
        staircase: seconds for all of its steps: eight wide ones, then eight fine ones that are twice as long.
    """

    users: int = 16
    warmup: float = 3.0
    seconds: float = 12.0
    slo_ms: float = 0.0
    staircase: float = 36.0


@dataclass(frozen=True)
class Paced:
    """A model made for the overload scenarios: so slow that Locust can send ten times what it carries.

    Attributes:
        rate: rows a second that it shall carry in full batches on one core of this machine.
        max_batch_size, slo_ms: as in its model.toml; the capacity is found within the latter.
    """

    rate: float = 230.0
    max_batch_size: int = 16
    slo_ms: float = 200.0


@dataclass(frozen=True)
class Course:
    """A scenario as it shall be run; what is None is as the scenario has it.

    Attributes:
        users, load, peak, seconds, warmup: as in scenarios/.
        paced: whether it is for the paced model.
        slo_ms: up to which an answer counts as goodput.
    """

    users: int | None = None
    load: float | None = None
    peak: float | None = None
    seconds: float | None = None
    warmup: float | None = None
    paced: bool = False
    slo_ms: float | None = None
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class Validity:
    """What the generator may show before its measurements say more about itself than about the server.

    Attributes:
        generator_cpu: share of its core.
        waited: share of the time in which either side could run and others had its core; then a miss does not count.
        lag_p99_ms: how late it may send, 99 times in 100; in a scenario with an ``slo_ms`` at most a tenth of it.
    """

    generator_cpu: float = 0.9
    waited: float = 0.3
    lag_p99_ms: float = 25.0


@dataclass(frozen=True)
class Targets:
    capacity: Capacity = field(default_factory=Capacity)
    paced: Paced = field(default_factory=Paced)
    validity: Validity = field(default_factory=Validity)
    courses: Mapping[str, Course] = field(default_factory=dict)


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
    refuse_unknown(path, document, ("capacity", "paced", "validity", *GROUPS), "")
    return Targets(
        section(path, Capacity, document.get("capacity", {}), "capacity"),
        section(path, Paced, document.get("paced", {}), "paced"),
        section(path, Validity, document.get("validity", {}), "validity"),
        {name: course(path, name, given) for name, given in document.items() if name in GROUPS},
    )


def course(path: Path, name: str, given: Any) -> Course:
    refuse_unknown(path, given, tuple(Course.__dataclass_fields__), f"{name}.")
    settings = dict(given)
    targets = tuple(read_targets(path, name, settings.pop("targets", {})))
    if any(target.name in ("goodput", "recovery_s") for target in targets) and not given.get("slo_ms"):
        raise TargetsError(f"{path}: {name}.slo_ms is needed: goodput is what is answered within it")
    return section(path, Course, settings, name, targets=targets)


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


def section(path: Path, kind: type[Any], given: Any, place: str, **more: Any) -> Any:
    refuse_unknown(path, given, tuple(kind.__dataclass_fields__), f"{place}.")
    for key, value in given.items():
        wanted = kind.__dataclass_fields__[key].type
        if wanted == "bool":
            if not isinstance(value, bool):
                raise TargetsError(f"{path}: {place}.{key} must be true or false, not {value!r}")
            continue
        number(path, value, f"{place}.{key}")
        if wanted.startswith("int") and (not isinstance(value, int) or value < 1):
            raise TargetsError(f"{path}: {place}.{key} must be a whole number above 0, not {value!r}")
    return kind(**given, **more)


def read_targets(path: Path, name: str, given: Any) -> Iterable[Target]:
    refuse_unknown(path, given, (*USERS, *GROUPS[name]), f"{name}.targets.")
    for users, entries in given.items():
        place = f"{name}.targets.{users}."
        if not isinstance(entries, dict):
            raise TargetsError(f"{path}: {place[:-1]} must be a table")
        # Of a user class alone nobody knows how much of the capacity it had.
        shares = SHARES if users == "all" or users in GROUPS[name] else ()
        known = ("p50_ms", "p90_ms", "p99_ms", "refusal_p99_ms", *LIMITS, *shares)
        refuse_unknown(path, {key: 0 for key in entries if not PERCENTILE.fullmatch(key)}, known, place)
        for key, limit in entries.items():
            yield Target(users, key, number(path, limit, place + key))


def judge(validity: Validity, course: Course, recording: Recording, capacity: float | None, *,
          server_waited: float = 0.0) -> Judgement:
    """Compare a recording with its targets.

    Args:
        capacity: requests a second, None where it was not measured.
        server_waited: share of the time in which the server could run and others had its core, where it is known.
    """
    lines = tuple(judge_one(target, course, recording, capacity) for target in course.targets)
    if course.slo_ms:
        validity = dataclasses.replace(validity, lag_p99_ms=min(validity.lag_p99_ms, course.slo_ms / 10))
    return Judgement(lines, tuple(faults(validity, recording)),
                     tuple(disturbances(validity, recording, server_waited)))


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


def judge_one(target: Target, course: Course, recording: Recording, capacity: float | None) -> Line:
    series = group(target.users, recording)
    slo = course.slo_ms or math.inf
    if PERCENTILE.fullmatch(target.name):
        return latency(target, series)
    if target.name in SHARES:
        return ratio_to_capacity(target, recording, capacity, slo)
    if target.name == "recovery_s":
        return recovery(target, recording, slo)
    return share_of_requests(target, series)


def group(users: str, recording: Recording) -> Series:
    if users == "all":
        return recording.all()
    return recording.series.get(users) or recording.phases.get(users) or Series()


def share_of_requests(target: Target, series: Series) -> Line:
    """failures: of all requests those not answered; errors: without those refused; refused: those.

    silent: of the refused those without Retry-After.
    """
    if target.name == "silent":
        bad, of = series.silent, series.refusals.count
        if not of:
            return Line(target, 0.0, 0, Verdict.MET, "nothing was refused")
    else:
        refused, of = series.refusals.count, series.requests
        bad = {"failures": series.failures + refused, "errors": series.failures, "refused": refused}[target.name]
    if not of:
        return Line(target, math.nan, 0, Verdict.INVALID, "no requests")
    return Line(target, bad / of, of, Verdict.MISSED if bad / of > target.limit else Verdict.MET)


def ratio_to_capacity(target: Target, recording: Recording, capacity: float | None, slo_ms: float) -> Line:
    """throughput: what was answered; goodput: what was answered in time."""
    series = group(target.users, recording)
    seconds = recording.seconds if target.users == "all" else recording.phase_seconds.get(target.users, 0.0)
    counted = series.latency.within(slo_ms) if target.name == "goodput" else series.latency.count
    if not capacity:
        return Line(target, math.nan, counted, Verdict.MET, "not judged: the capacity was not measured")
    if not seconds:
        return Line(target, math.nan, 0, Verdict.INVALID, "no requests")
    ratio = counted / seconds / capacity
    return Line(target, ratio, counted, Verdict.MISSED if ratio < target.limit else Verdict.MET)


def recovery(target: Target, recording: Recording, slo_ms: float) -> Line:
    """Seconds after the load is low again until what is due is, from then on, answered in time.

    A quarter of a second counts as bad when fewer than nine tenths of what was due in it were answered in time.
    """
    begin = recording.marks.get("after")
    pieces = {} if begin is None else {number: piece for number, piece in recording.timeline.items()
                                       if number * BIN_SECONDS >= begin}
    if begin is None or not pieces:
        return Line(target, math.nan, 0, Verdict.INVALID, "no requests after the load")
    bad = [number for number, piece in pieces.items() if piece.within(slo_ms) < RECOVERED * piece.requests]
    measured = max(0.0, (max(bad) + 1) * BIN_SECONDS - begin) if bad else 0.0
    requests = sum(piece.requests for piece in pieces.values())
    return Line(target, measured, requests, Verdict.MISSED if measured > target.limit else Verdict.MET)


def latency(target: Target, series: Series) -> Line:
    found = PERCENTILE.fullmatch(target.name)
    assert found is not None
    percent, histogram = float(found[2]), series.refusals if found[1] else series.latency
    samples, measured = histogram.count, histogram.percentile(percent)
    needed = math.ceil(round(SAMPLES_BEYOND * 100 / (100 - percent), 6))
    if found[1] and not samples:
        return Line(target, math.nan, 0, Verdict.MET, "nothing was refused")
    if samples < needed:
        return Line(target, measured, samples, Verdict.INVALID, f"too few samples, {needed} are needed")
    return Line(target, measured, samples, Verdict.MISSED if measured > target.limit else Verdict.MET)


def table(judgement: Judgement) -> str:
    """The verdict as text, a line a target."""
    rows = [("users", "target", "limit", "measured", "samples", "")]
    for line in judgement.lines:
        verdict = line.note or line.verdict.name.lower()
        bound = bound_of(line.target)
        rows.append((line.target.users, line.target.name, f"{bound} {line.target.limit:g}", shown(line.measured),
                     str(line.samples), verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    aligned = [[cell.rjust(width) if 2 <= column <= 4 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def bound_of(target: Target) -> str:
    return ">=" if target.name in SHARES else "<="


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
