"""Counters and histograms of the front end, and the Prometheus text that shows them and the models' own."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric

    from fastinfer.model import Model

# Seconds. Fine below a millisecond, where most requests are.
BOUNDS = (
    0.00005,
    0.0001,
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    30.0,
)
NANOSECONDS = tuple(round(bound * 1e9) for bound in BOUNDS)
PHASES = ("queue", "preprocess", "run", "total")


class Histogram:
    """Durations counted by upper bound."""

    __slots__ = ("counts", "sum_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum_ns = 0

    def observe(self, ns: int) -> None:
        self.counts[bisect_left(NANOSECONDS, ns)] += 1
        self.sum_ns += ns

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated, as Prometheus has it: (upper bound, count)."""
        total, result = 0, []
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            total += count
            result.append((bound, float(total)))
        return result


class Counters:
    """What the front end counts. Written on the loop's thread only."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}
        self.phases: dict[tuple[str, str], tuple[Histogram, ...]] = {}
        self.inflight = 0
        self.inflight_bytes = 0

    def count(self, model: str, version: str, status: int) -> None:
        """One answered infer request. `model` is "" where no such model is served: a client names no series."""
        key = (model, version, status)
        self.requests[key] = self.requests.get(key, 0) + 1

    def observe(self, model: str, version: str, durations_ns: tuple[int, int, int, int]) -> None:
        """The phases of one request that ran, in the order of PHASES."""
        histograms = self.phases.get((model, version))
        if histograms is None:
            histograms = self.phases[model, version] = tuple(Histogram() for _ in PHASES)
        for histogram, ns in zip(histograms, durations_ns, strict=True):
            histogram.observe(ns)


class Snapshot:
    """One scrape: a collector, as prometheus_client calls it, over the counters and the models' statistics."""

    def __init__(self, counters: Counters, models: Iterable[Model], *, ready: bool) -> None:
        self.counters = counters
        self.models = list(models)
        self.ready = ready

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._models()
        yield from self._gauges()

    def _requests(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        requests = CounterMetricFamily(
            "fastinfer_requests", "Infer requests answered.", labels=["model", "version", "status", "lane"]
        )
        for (model, version, status), count in sorted(self.counters.requests.items()):
            requests.add_metric([model, version, str(status), "standard"], count)
        yield requests
        for position, phase in enumerate(PHASES):
            family = HistogramMetricFamily(
                f"fastinfer_{phase}_seconds", f"Duration of a request's {phase} phase.", labels=["model", "version"]
            )
            for (model, version), histograms in sorted(self.counters.phases.items()):
                histogram = histograms[position]
                family.add_metric([model, version], histogram.buckets(), histogram.sum_ns / 1e9)
            yield family

    def _models(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ["model", "version"]
        rows = CounterMetricFamily("fastinfer_rows", "Rows that models have run.", labels=labels)
        batches = CounterMetricFamily("fastinfer_batches", "Batches that models have run.", labels=labels)
        refused = CounterMetricFamily("fastinfer_refused", "Requests refused by a full queue.", labels=labels)
        cancelled = CounterMetricFamily("fastinfer_cancelled", "Requests whose client left first.", labels=labels)
        waiting = GaugeMetricFamily("fastinfer_queue_rows", "Rows that wait for the model.", labels=labels)
        for model in self.models:
            statistics, counters = model.statistics(), model.endpoint.counters()
            values = [model.name, model.version]
            rows.add_metric(values, statistics["inference_count"])
            batches.add_metric(values, statistics["execution_count"])
            refused.add_metric(values, counters["refused"])
            cancelled.add_metric(values, counters["cancelled"])
            waiting.add_metric(values, counters["pending_rows"])
        yield from (rows, batches, refused, cancelled, waiting)

    def _gauges(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        yield GaugeMetricFamily("fastinfer_ready", "1 when /v2/health/ready answers 200.", float(self.ready))
        yield GaugeMetricFamily(
            "fastinfer_requests_in_flight", "Infer requests not yet answered.", self.counters.inflight
        )
        yield GaugeMetricFamily(
            "fastinfer_body_bytes_in_flight", "Bytes of the bodies of those requests.", self.counters.inflight_bytes
        )


def exposition(snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
    """The text for a scraper, and its content type, by the scraper's Accept header."""
    from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(snapshot)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
