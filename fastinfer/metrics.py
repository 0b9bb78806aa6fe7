"""Counters and histograms of the front end, and the Prometheus text that shows them and the models' own."""

from __future__ import annotations

import mmap
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from fastinfer._core import BOUNDS, Scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric

    from fastinfer.model import Model

PHASES = ("queue", "preprocess", "run", "total")
COUNTS = {
    "rows": "Rows that models have run.",
    "batches": "Batches that models have run.",
    "overdue_batches": "Batches that began with a request past its deadline.",
    "cancelled": "Requests whose client left first.",
    "admitted": "Requests that were let in.",
    "goodput": "Requests answered with 200 by their deadline, or that had none.",
    "late": "Requests answered with 200 after their deadline.",
    "expired": "Requests whose deadline passed in the queue, which did not run.",
}
EDGES = (*map(str, BOUNDS), "+Inf")


def scoreboard(workers: int) -> Scoreboard:
    """An empty one. Processes that are forked share it where it is of several workers; else each has a copy."""
    kind = mmap.MAP_SHARED if workers > 1 else mmap.MAP_PRIVATE
    return Scoreboard(mmap.mmap(-1, Scoreboard.size(workers), kind | mmap.MAP_ANONYMOUS), workers)


class Counters:
    """What one worker counts: its slot of the scoreboard that all workers share.

    Attributes:
        board: the scoreboard; any worker reads all of it.
        worker: the slot.
    """

    def __init__(
        self, board: Scoreboard | None = None, worker: int = 0, add: Callable[[str, str, int], int] | None = None
    ) -> None:
        """`add`: makes a row for (model, version, max_batch_size); by default in the board itself, as its one owner."""
        self.board = scoreboard(1) if board is None else board
        self.worker = worker
        self._add = self.board.add if add is None else add
        self._rows: dict[tuple[str, str], int] = {("", ""): Scoreboard.nobody}
        self._inflight_bytes = 0
        self._connections = 0

    def register(self, model: Model) -> None:
        """Count a model's requests from here; before its first one. Blocks while the supervisor is asked."""
        row = self.board.find(model.name, model.version)
        if row < 0:
            row = self._add(model.name, model.version, model.batcher.max_batch_size)
        self._rows[model.name, model.version] = row
        model.endpoint.count_in(self.board, self.worker, row)

    def count(self, model: str, version: str, status: int, lane: str = "standard") -> None:
        """One answered infer request. `model` is "" where no such model is served: a client names no series."""
        self.board.count(self.worker, self._rows.get((model, version), Scoreboard.other), lane, status)

    @property
    def inflight_bytes(self) -> int:
        """Bytes of the bodies of this worker's requests in flight."""
        return self._inflight_bytes

    @inflight_bytes.setter
    def inflight_bytes(self, size: int) -> None:
        self._inflight_bytes = size
        self.board.set_gauge(self.worker, "body_bytes", size)

    @property
    def connections(self) -> int:
        """Connections that are open to this worker."""
        return self._connections

    @connections.setter
    def connections(self, count: int) -> None:
        self._connections = count
        self.board.set_gauge(self.worker, "connections", count)

    def beat(self) -> None:
        """The event loop turns: what a supervisor looks for."""
        self.board.set_gauge(self.worker, "heartbeat", time.monotonic_ns())

    def tell_loop(self, late_ns: int, waited_ns: int) -> None:
        """How late the event loop came to what was due, and how long it had no core since it was told last."""
        self.board.note_lag(self.worker, late_ns)
        self.board.set_gauge(self.worker, "loop_wait", self.board.gauge(self.worker, "loop_wait") + waited_ns)

    def tell_ready(self, ready: bool) -> None:
        """Whether this worker's /v2/health/ready answers 200."""
        self.board.set_gauge(self.worker, "ready", ready)


class Snapshot:
    """One scrape: a collector, as prometheus_client calls it, over the counters of all workers."""

    def __init__(self, board: Scoreboard) -> None:
        self.board = board
        self.rows: list[tuple[str, str, dict[str, Any]]] = []
        for row, name, version in board.rows():
            counted = board.counters(row)
            if version or counted["answered"]:
                self.rows.append((name, version, counted))

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._models()
        yield from self._gauges()

    def _requests(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        requests = CounterMetricFamily(
            "fastinfer_requests", "Infer requests answered.", labels=["model", "version", "status", "lane"]
        )
        for name, version, counted in self.rows:
            for (lane, status), count in sorted(counted["answered"].items()):
                requests.add_metric([name, version, str(status), lane], count)
        yield requests
        for phase in PHASES:
            family = HistogramMetricFamily(
                f"fastinfer_{phase}_seconds", f"Duration of a request's {phase} phase.", labels=["model", "version"]
            )
            for name, version, counted in self.rows:
                counts, total = counted["phases"][phase]
                if counts[-1]:
                    family.add_metric([name, version], list(zip(EDGES, counts, strict=True)), total)
            yield family

    def _models(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ["model", "version"]
        for key, text in COUNTS.items():
            family = CounterMetricFamily(f"fastinfer_{key}", text, labels=labels)
            for name, version, counted in self.rows:
                if name:
                    family.add_metric([name, version], counted[key])
            yield family
        refused = CounterMetricFamily(
            "fastinfer_refused", "Requests refused because they could not make it.", labels=[*labels, "reason"]
        )
        cost = GaugeMetricFamily(
            "fastinfer_run_cost_seconds", "What a run of at most so many rows is thought to take: a high quantile.",
            labels=[*labels, "rows"],
        )  # fmt: skip
        for name, version, counted in self.rows:
            if name:
                for reason, count in counted["refused_by"].items():
                    refused.add_metric([name, version, reason], count)
                for rows, _, high in counted["cost"]:
                    cost.add_metric([name, version, str(rows)], high / 1e9)
        yield from (refused, cost)
        waiting = GaugeMetricFamily("fastinfer_queue_rows", "Rows that wait for the model.", labels=labels)
        for name, version, counted in self.rows:
            if name:
                waiting.add_metric([name, version], counted["pending_rows"])
        yield waiting

    def _gauges(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        places = [worker for worker in range(self.board.workers) if not self.board.gauge(worker, "spare")]
        ready, restarts = [self.board.gauge(worker, "ready") for worker in places], self._gauge("restarts")
        in_flight = sum(counted["in_flight"] for _, _, counted in self.rows)
        yield GaugeMetricFamily(
            "fastinfer_ready", "1 when /v2/health/ready of every worker answers 200.", float(all(ready))
        )
        yield GaugeMetricFamily("fastinfer_workers_ready", "Workers whose /v2/health/ready answers 200.", sum(ready))
        yield CounterMetricFamily("fastinfer_worker_restarts", "Workers that were replaced.", sum(restarts))
        yield GaugeMetricFamily("fastinfer_connections", "Connections that are open.", sum(self._gauge("connections")))
        yield GaugeMetricFamily("fastinfer_requests_in_flight", "Infer requests not yet answered.", in_flight)
        yield GaugeMetricFamily(
            "fastinfer_body_bytes_in_flight", "Bytes of the bodies of those requests.", sum(self._gauge("body_bytes"))
        )
        counts, total = self.board.loop_lag()
        lag = HistogramMetricFamily("fastinfer_loop_lag_seconds", "How late the event loops come to what is due.")
        lag.add_metric([], list(zip(EDGES, counts, strict=True)), total)
        yield lag
        yield CounterMetricFamily(
            "fastinfer_loop_wait_seconds", "Time in which event loops had something to do and no core.",
            sum(self._gauge("loop_wait")) / 1e9,
        )  # fmt: skip

    def _gauge(self, name: str) -> list[int]:
        return [self.board.gauge(worker, name) for worker in range(self.board.workers)]


class Processes:
    """A collector of what the system knows of each worker's process, as prometheus_client tells it of one."""

    def __init__(self, board: Scoreboard) -> None:
        self.board = board

    def collect(self) -> Iterator[Metric]:
        from prometheus_client import Metric, ProcessCollector

        families: dict[str, Metric] = {}
        for worker in range(self.board.workers):
            pid = self.board.gauge(worker, "pid")
            if not pid:
                continue  # between a death and its replacement
            for family in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, "worker": str(worker)}, sample.value)
        yield from families.values()


def exposition(snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
    """The text for a scraper, and its content type, by the scraper's Accept header."""
    from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(snapshot)
    if snapshot.board.workers > 1:
        registry.register(Processes(snapshot.board))
    else:
        ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
