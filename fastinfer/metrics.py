"""Counters and histograms of the front end, and the Prometheus text that shows them and the models' own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastinfer._core import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric

    from fastinfer.model import Model

PHASES = ("queue", "preprocess", "run", "total")
BOUNDS = (*map(str, Histogram.bounds), "+Inf")


class Counters:
    """What the front end counts beside the core. Written on the loop's thread only."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int, str], int] = {}
        self.inflight_bytes = 0

    def count(self, model: str, version: str, status: int, lane: str = "standard") -> None:
        """One answered infer request. `model` is "" where no such model is served: a client names no series."""
        key = (model, version, status, lane)
        self.requests[key] = self.requests.get(key, 0) + 1


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
        for (model, version, status, lane), count in sorted(self.counters.requests.items()):
            requests.add_metric([model, version, str(status), lane], count)
        counters = [(each, each.endpoint.counters()) for each in self.models]
        for each, counted in counters:
            if counted["fast"]:
                requests.add_metric([each.name, each.version, "200", "fast"], counted["fast"])
        yield requests
        for phase in PHASES:
            family = HistogramMetricFamily(
                f"fastinfer_{phase}_seconds", f"Duration of a request's {phase} phase.", labels=["model", "version"]
            )
            for each, counted in counters:
                counts, total = counted["phases"][phase]
                if counts[-1]:
                    family.add_metric([each.name, each.version], list(zip(BOUNDS, counts, strict=True)), total)
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

        in_flight = sum(model.endpoint.counters()["in_flight"] for model in self.models)
        yield GaugeMetricFamily("fastinfer_ready", "1 when /v2/health/ready answers 200.", float(self.ready))
        yield GaugeMetricFamily(
            "fastinfer_requests_in_flight", "Infer requests not yet answered.", in_flight
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
