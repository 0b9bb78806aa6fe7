"""What a load test measured: latency histograms that are finer than Locust's own.

Locust keeps response times in whole milliseconds below 100 ms, which is the whole range that matters here, so the
percentiles come from ``events.request`` instead. Nothing in this file imports Locust or gevent: an environment is
handed in, and the arithmetic is tested without either.

A request ends in one of three ways: answered, refused (503 or 429: the server says that it cannot in time) or failed.
"""

from __future__ import annotations

import json
import math
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schedule import Phase, Timetable
from usage import Usage, usage

RESOLUTION_MS = 0.01
LINEAR_BITS = 10  # 1,024 steps of 10 µs, then 512 steps an octave: at most 1/512 too high
LINEAR = 1 << LINEAR_BITS
OCTAVE = LINEAR // 2
LARGEST = (1 << 24) - 1  # 168 s; longer times are counted there
ERRORS_KEPT = 20
BIN_SECONDS = 0.25  # of the timeline
SHORTEST_CPU_WINDOW = 0.5  # seconds over which a generator's use of its core says something


def bucket(units: int) -> int:
    """Index of the bucket that holds ``units`` of 10 µs."""
    if units < LINEAR:
        return units
    shift = min(units, LARGEST).bit_length() - LINEAR_BITS
    return OCTAVE * shift + (min(units, LARGEST) >> shift)


def upper_edge(index: int) -> int:
    """First number of units past the bucket."""
    if index < LINEAR:
        return index + 1
    shift = index // OCTAVE - 1
    return (index - OCTAVE * shift + 1) << shift


BUCKETS = bucket(LARGEST) + 1


class Histogram:
    """Log-linear counts of times in milliseconds; merging two loses nothing.

    A percentile is the nearest-rank one (numpy's ``inverted_cdf``), given as its bucket's upper edge: never below the
    true one, and above it by at most 10 µs or 1/512 of it, whichever is larger.
    """

    __slots__ = ("_counts", "count", "largest")

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * BUCKETS))
        self.count = 0
        self.largest = 0.0

    def add(self, milliseconds: float) -> None:
        self._counts[bucket(max(0, int(milliseconds / RESOLUTION_MS)))] += 1
        self.count += 1
        self.largest = max(self.largest, milliseconds)

    def percentile(self, percent: float) -> float:
        """The time in milliseconds that ``percent`` (0 to 100) of the samples do not exceed; NaN without samples."""
        if not self.count:
            return math.nan
        rank = max(1, math.ceil(percent / 100 * self.count))
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(upper_edge(index) * RESOLUTION_MS, self.largest)
        return self.largest

    def within(self, milliseconds: float) -> int:
        """How many samples are surely not above so many milliseconds; those of the bucket that it cuts do not count."""
        stop = bucket(max(0, int(milliseconds / RESOLUTION_MS + 1e-6)))
        return sum(self._counts[:stop])

    def merge(self, other: Histogram) -> None:
        for index, count in enumerate(other._counts):
            if count:
                self._counts[index] += count
        self.count += other.count
        self.largest = max(self.largest, other.largest)

    def to_dict(self) -> dict[str, Any]:
        counts = {str(index): count for index, count in enumerate(self._counts) if count}
        return {"counts": counts, "largest_ms": self.largest}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Histogram:
        histogram = cls()
        for index, count in data["counts"].items():
            histogram._counts[int(index)] = count
            histogram.count += count
        histogram.largest = data["largest_ms"]
        return histogram


@dataclass
class Series:
    """Some of the requests: the times of those answered, how many failed, the times of those refused.

    Attributes:
        silent: refusals without a Retry-After.
    """

    latency: Histogram = field(default_factory=Histogram)
    failures: int = 0
    refusals: Histogram = field(default_factory=Histogram)
    silent: int = 0

    @property
    def requests(self) -> int:
        return self.latency.count + self.failures + self.refusals.count

    def merge(self, other: Series) -> None:
        self.latency.merge(other.latency)
        self.failures += other.failures
        self.refusals.merge(other.refusals)
        self.silent += other.silent

    def to_dict(self) -> dict[str, Any]:
        return {"latency": self.latency.to_dict(), "failures": self.failures, "refusals": self.refusals.to_dict(),
                "silent": self.silent}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Series:
        return cls(Histogram.from_dict(data["latency"]), data["failures"], Histogram.from_dict(data["refusals"]),
                   data["silent"])


@dataclass
class Bin:
    """What became of the requests that were due in one short piece of the run."""

    counts: Counter[int] = field(default_factory=Counter)  # the answered ones by bucket
    refused: int = 0
    failed: int = 0

    @property
    def answered(self) -> int:
        return self.counts.total()

    @property
    def requests(self) -> int:
        return self.answered + self.refused + self.failed

    def within(self, milliseconds: float) -> int:
        """As the histogram's."""
        stop = bucket(max(0, int(milliseconds / RESOLUTION_MS + 1e-6)))
        return sum(count for index, count in self.counts.items() if index < stop)

    def merge(self, other: Bin) -> None:
        self.counts.update(other.counts)
        self.refused += other.refused
        self.failed += other.failed

    def percentile(self, percent: float) -> float:
        histogram = Histogram.from_dict({"counts": self.counts, "largest_ms": math.inf})
        return histogram.percentile(percent)


@dataclass
class Recording:
    """What one run, or one generator process of it, measured.

    Attributes:
        seconds: length of the measured window.
        generator_cpu: share of a core that the busiest generator process used in its busiest phase.
        generator_waited: share of such a phase in which a generator could run and others had its core.
        series: by name of user class.
        lag: how late the generator itself sent (open loop), in milliseconds.
        errors: text of a failure to its count.
        phases: the measured requests by the phase in which they were due.
        phase_seconds: how long each measured phase lasted.
        marks: where each phase began, in seconds after the beginning of the run.
        timeline: all requests, the warm-up's too, by quarter of a second in which they were due.
    """

    seconds: float = 0.0
    generator_cpu: float = 0.0
    generator_waited: float = 0.0
    series: dict[str, Series] = field(default_factory=dict)
    lag: Histogram = field(default_factory=Histogram)
    errors: Counter[str] = field(default_factory=Counter)
    phases: dict[str, Series] = field(default_factory=dict)
    phase_seconds: dict[str, float] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)
    timeline: dict[int, Bin] = field(default_factory=dict)

    def all(self) -> Series:
        """Every user class taken together."""
        total = Series()
        for series in self.series.values():
            total.merge(series)
        return total

    @property
    def throughput(self) -> float:
        """Answered requests a second; failures do not count."""
        return sum(series.latency.count for series in self.series.values()) / self.seconds if self.seconds else 0.0

    def merge(self, other: Recording) -> None:
        self.seconds = max(self.seconds, other.seconds)
        self.generator_cpu = max(self.generator_cpu, other.generator_cpu)
        self.generator_waited = max(self.generator_waited, other.generator_waited)
        for mine, theirs in ((self.series, other.series), (self.phases, other.phases)):
            for name, series in theirs.items():
                mine.setdefault(name, Series()).merge(series)
        for name, seconds in other.phase_seconds.items():
            self.phase_seconds[name] = max(self.phase_seconds.get(name, 0.0), seconds)
        self.marks.update(other.marks)
        for number, piece in other.timeline.items():
            self.timeline.setdefault(number, Bin()).merge(piece)
        self.lag.merge(other.lag)
        self.errors.update(other.errors)

    def to_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "generator_cpu": self.generator_cpu,
            "generator_waited": self.generator_waited,
            "series": {name: series.to_dict() for name, series in self.series.items()},
            "lag": self.lag.to_dict(),
            "errors": dict(self.errors.most_common(ERRORS_KEPT)),
            "phases": {name: series.to_dict() for name, series in self.phases.items()},
            "phase_seconds": self.phase_seconds,
            "marks": self.marks,
            "timeline": {str(number): [dict(piece.counts), piece.refused, piece.failed]
                         for number, piece in sorted(self.timeline.items())},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recording:
        return cls(
            seconds=data["seconds"],
            generator_cpu=data["generator_cpu"],
            generator_waited=data["generator_waited"],
            series={name: Series.from_dict(series) for name, series in data["series"].items()},
            lag=Histogram.from_dict(data["lag"]),
            errors=Counter(data["errors"]),
            phases={name: Series.from_dict(series) for name, series in data["phases"].items()},
            phase_seconds=dict(data["phase_seconds"]),
            marks=dict(data["marks"]),
            timeline={int(number): Bin(Counter({int(index): count for index, count in counts.items()}), refused, failed)
                      for number, (counts, refused, failed) in data["timeline"].items()},
        )

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict()))

    @classmethod
    def load(cls, path: Path) -> Recording:
        return cls.from_dict(json.loads(path.read_text()))


class Recorder:
    """Listens to a Locust environment and keeps a :class:`Recording` of what was due in the measured phases.

    A request belongs to the phase in which it was due, in a closed loop to the one in which it ended. The run begins
    with its first arrival, in a closed loop when the last user was started, and ends when the test begins to stop. With
    worker processes each records its own users and reports what is new to the master, whose recording is the sum.

    Attributes:
        timetables: of this run, by group of user classes; "" is always there.
    """

    def __init__(self, environment: Any) -> None:
        self.timetables = {"": Timetable([Phase("run")])}
        self.recording = Recording()
        self._reset()
        self._closed = True
        events = environment.events
        events.test_start.add_listener(self._on_start)
        events.spawning_complete.add_listener(self._on_spawned)
        events.test_stopping.add_listener(self._on_stopping)
        events.request.add_listener(self._on_request)
        events.report_to_master.add_listener(self._on_report)
        events.worker_report.add_listener(self._on_worker_report)

    def _reset(self) -> None:
        self._closed = False
        self._phase = -1
        self._entered = 0.0
        self._usage = Usage(0.0, {}, 0.0)

    def _on_start(self, **_: Any) -> None:
        self.recording = Recording()
        self._reset()

    def _on_spawned(self, **_: Any) -> None:
        self.timetables[""].clock.begin()

    def _on_request(self, *, request_type: str, name: str, response_time: float, exception: BaseException | None,
                    context: dict[str, Any], **_: Any) -> None:
        group = context.get("group", "")
        timetable = self.timetables[group]
        began = timetable.clock.began
        if self._closed or began is None:
            return
        due = context.get("due_s")
        if due is None:
            due = time.perf_counter() - began
        index = timetable.index_at(due)
        if index >= len(timetable.phases):
            self.end_schedule()
            return
        if index > self._phase and not group:
            self._enter(index)
        recording, phase = self.recording, timetable.phases[index]
        number = int(due / BIN_SECONDS)
        piece = recording.timeline.get(number)
        if piece is None:
            piece = recording.timeline[number] = Bin()
        took, refused = response_time + context.get("overdue_ms", 0.0), "retry_after" in context
        if exception is None:
            piece.counts[bucket(max(0, int(took / RESOLUTION_MS)))] += 1
        elif refused:
            piece.refused += 1
        else:
            piece.failed += 1
            recording.errors[f"{name}: {exception}"[:300]] += 1
        if not phase.measured:
            return
        for kept, key in ((recording.series, context.get("user", name)), (recording.phases, phase.name)):
            series = kept.get(key)
            if series is None:
                series = kept[key] = Series()
            if exception is None:
                series.latency.add(took)
            elif refused:
                series.refusals.add(took)
                series.silent += not context["retry_after"]
            else:
                series.failures += 1
        if "lag_ms" in context:
            recording.lag.add(context["lag_ms"])

    def lost(self, context: dict[str, Any]) -> None:
        """A request of an open loop that had no answer when the run ended; to be told before the run closes."""
        if "due_s" in context:
            self._on_request(request_type="POST", name=context.get("user", ""), response_time=0.0, context=context,
                             exception=TimeoutError("no answer when the run ended"))

    def _enter(self, index: int) -> None:
        """The first request of another phase: what the last one cost the generator is known."""
        self._measure_generator()
        self._phase, self._entered, self._usage = index, time.perf_counter(), usage()
        timetable = self.timetables[""]
        self.recording.marks[timetable.phases[index].name] = timetable.start_of(index)

    def end_schedule(self) -> None:
        """Nothing is due any more: what the generator does from here on is not the test."""
        self._measure_generator()
        self._phase = len(self.timetables[""].phases)

    def _measure_generator(self) -> None:
        seconds = time.perf_counter() - self._entered
        phases = self.timetables[""].phases
        if not 0 <= self._phase < len(phases) or not phases[self._phase].measured or seconds < SHORTEST_CPU_WINDOW:
            return
        share = usage().since(self._usage, seconds)
        self.recording.generator_cpu = max(self.recording.generator_cpu, share.ran)
        self.recording.generator_waited = max(self.recording.generator_waited, share.waited)

    def _measure(self) -> None:
        """How long each measured phase has lasted so far."""
        recording = self.recording
        for group, timetable in self.timetables.items():
            if timetable.clock.began is None:
                return
            elapsed = time.perf_counter() - timetable.clock.began
            lasted = {phase.name: min(phase.seconds, elapsed - timetable.start_of(index))
                      for index, phase in enumerate(timetable.phases) if phase.measured}
            lasted = {name: seconds for name, seconds in lasted.items() if seconds > 0}
            recording.phase_seconds |= lasted
            if not group:
                recording.seconds = sum(lasted.values())

    def _on_stopping(self, **_: Any) -> None:
        if not self._closed:
            self._closed = True
            self._measure()
            self.end_schedule()

    def _on_report(self, client_id: str, data: dict[str, Any]) -> None:
        if not self._closed:
            self._measure()
        data["recording"] = self.recording.to_dict()
        sent = self.recording
        self.recording = Recording(sent.seconds, sent.generator_cpu, sent.generator_waited,
                                   phase_seconds=dict(sent.phase_seconds), marks=dict(sent.marks))

    def _on_worker_report(self, client_id: str, data: dict[str, Any]) -> None:
        if "recording" in data:
            self.recording.merge(Recording.from_dict(data["recording"]))
