"""What a load test measured: latency histograms that are finer than Locust's own.

Locust keeps response times in whole milliseconds below 100 ms, which is the whole range that matters here, so the
percentiles come from ``events.request`` instead. Nothing in this file imports Locust or gevent: an environment is
handed in, and the arithmetic is tested without either.
"""

from __future__ import annotations

import json
import math
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

RESOLUTION_MS = 0.01
LINEAR_BITS = 10  # 1,024 steps of 10 µs, then 512 steps an octave: at most 1/512 too high
LINEAR = 1 << LINEAR_BITS
OCTAVE = LINEAR // 2
LARGEST = (1 << 24) - 1  # 168 s; longer times are counted there
ERRORS_KEPT = 20


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
    """One user class: the times of its answered requests, and how many failed."""

    latency: Histogram = field(default_factory=Histogram)
    failures: int = 0

    @property
    def requests(self) -> int:
        return self.latency.count + self.failures

    def merge(self, other: Series) -> None:
        self.latency.merge(other.latency)
        self.failures += other.failures


@dataclass
class Recording:
    """What one run, or one generator process of it, measured.

    Attributes:
        seconds: length of the measured window.
        generator_cpu: share of a core that the busiest generator process used in it.
        generator_waited: share of the window in which a generator could run and others had its core.
        series: by name of user class.
        lag: how late the generator itself sent (open loop), in milliseconds.
        errors: text of a failure to its count.
    """

    seconds: float = 0.0
    generator_cpu: float = 0.0
    generator_waited: float = 0.0
    series: dict[str, Series] = field(default_factory=dict)
    lag: Histogram = field(default_factory=Histogram)
    errors: Counter[str] = field(default_factory=Counter)

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
        for name, series in other.series.items():
            self.series.setdefault(name, Series()).merge(series)
        self.lag.merge(other.lag)
        self.errors.update(other.errors)

    def to_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "generator_cpu": self.generator_cpu,
            "generator_waited": self.generator_waited,
            "series": {name: {"latency": series.latency.to_dict(), "failures": series.failures}
                       for name, series in self.series.items()},
            "lag": self.lag.to_dict(),
            "errors": dict(self.errors.most_common(ERRORS_KEPT)),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recording:
        return cls(
            seconds=data["seconds"],
            generator_cpu=data["generator_cpu"],
            generator_waited=data["generator_waited"],
            series={name: Series(Histogram.from_dict(series["latency"]), series["failures"])
                    for name, series in data["series"].items()},
            lag=Histogram.from_dict(data["lag"]),
            errors=Counter(data["errors"]),
        )

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict()))

    @classmethod
    def load(cls, path: Path) -> Recording:
        return cls.from_dict(json.loads(path.read_text()))


class Usage(NamedTuple):
    """Seconds that a process's main thread ran, and that it was ready to run while others had its core."""

    ran: float
    waited: float

    def share(self, since: Usage, seconds: float) -> Usage:
        return Usage((self.ran - since.ran) / seconds, (self.waited - since.waited) / seconds)


def usage(pid: int | str = "self") -> Usage:
    """Of a process so far (Linux, docs: scheduler/sched-stats). gevent and uvloop each live on the main thread."""
    ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return Usage(int(ran) / 1e9, int(waited) / 1e9)


class Recorder:
    """Listens to a Locust environment and keeps a :class:`Recording` of the window after the warm-up.

    The window opens ``warmup`` seconds after the last user was started and closes when the test begins to stop. With
    worker processes each records its own users and reports what is new to the master, whose recording is the sum.
    """

    def __init__(self, environment: Any, *, warmup: float = 0.0) -> None:
        self.warmup = warmup
        self.recording = Recording()
        self._opens = math.inf
        self._open = False
        self._usage = Usage(0.0, 0.0)
        events = environment.events
        events.test_start.add_listener(self._on_start)
        events.spawning_complete.add_listener(self._on_spawned)
        events.test_stopping.add_listener(self._on_stopping)
        events.request.add_listener(self._on_request)
        events.report_to_master.add_listener(self._on_report)
        events.worker_report.add_listener(self._on_worker_report)

    def _on_start(self, **_: Any) -> None:
        self.recording = Recording()
        self._opens = math.inf
        self._open = False

    def _on_spawned(self, **_: Any) -> None:
        if self._opens == math.inf:
            self._opens = time.perf_counter() + self.warmup

    def _on_request(self, *, request_type: str, name: str, response_time: float, exception: BaseException | None,
                    context: dict[str, Any], **_: Any) -> None:
        now = time.perf_counter()
        if now < self._opens:
            return
        if not self._open:
            self._open = True
            self._usage = usage()
        series = self.recording.series.get(context.get("user", name))
        if series is None:
            series = self.recording.series.setdefault(context.get("user", name), Series())
        if exception is None:
            series.latency.add(response_time + context.get("overdue_ms", 0.0))
        else:
            series.failures += 1
            self.recording.errors[f"{name}: {exception}"[:300]] += 1
        if "lag_ms" in context:
            self.recording.lag.add(context["lag_ms"])

    def _measure(self) -> None:
        recording, now = self.recording, time.perf_counter()
        if now > self._opens:
            recording.seconds = now - self._opens
            if self._open:
                share = usage().share(self._usage, recording.seconds)
                recording.generator_cpu, recording.generator_waited = share

    def _on_stopping(self, **_: Any) -> None:
        self._measure()
        self._opens = math.inf

    def _on_report(self, client_id: str, data: dict[str, Any]) -> None:
        if self._opens < math.inf:
            self._measure()
        data["recording"] = self.recording.to_dict()
        sent = self.recording
        self.recording = Recording(sent.seconds, sent.generator_cpu, sent.generator_waited)

    def _on_worker_report(self, client_id: str, data: dict[str, Any]) -> None:
        if "recording" in data:
            self.recording.merge(Recording.from_dict(data["recording"]))
