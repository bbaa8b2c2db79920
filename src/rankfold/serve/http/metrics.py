"""Metrics of a server in the format of Prometheus."""

from collections.abc import Iterator
from typing import Any, final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.types import Scope

from rankfold.serve.engine import Engine

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_FIRST_REFUSAL = 400
_BATCHES = (
    ("rankfold_batches", "Batches that ran.", "batches"),
    ("rankfold_batch_rows", "Rows in batches.", "rows"),
    ("rankfold_batch_seconds", "Seconds of batches.", "seconds"),
)


@final
class Metrics:
    """Counts of requests, and those of the engine whenever they are read.

    Args:
        engine: Its scheduler and its bank are counted.
        by_adapter: Whether requests are counted for each adapter; with many adapters these are many series.
    """

    def __init__(self, engine: Engine, *, by_adapter: bool = False) -> None:
        self._engine, self._by_adapter = engine, by_adapter
        self._registry = CollectorRegistry()
        labels = ("path", "status", *(("adapter",) if by_adapter else ()))
        self._requests = Counter("rankfold_requests", "Requests.", labels, registry=self._registry)
        self._latency = Histogram(
            "rankfold_request_seconds",
            "Seconds until an answer begins; refusals are only counted.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(self)
        _ = ProcessCollector(registry=self._registry)  # memory, descriptors and processor time

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            scope: The request's; its state has the adapter that was served.
            status: Of the answer.
            seconds: Until the answer began.
        """
        path = getattr(scope.get("route"), "path", "other")
        adapter = scope.get("state", {}).get("adapter", "")
        self._requests.labels(path, status, *((adapter,) if self._by_adapter else ())).inc()
        if status < _FIRST_REFUSAL:
            self._latency.labels(path).observe(seconds)

    def collect(self) -> Iterator[Any]:
        """Yield the engine's counts; prometheus-client calls this."""
        stats, bank = self._engine.scheduler.stats, self._engine.bank.stats
        for name, text, field in _BATCHES:
            family = CounterMetricFamily(name, text, labels=("operation",))
            for operation, value in dict(getattr(stats, field)).items():
                family.add_metric([operation], value)
            yield family
        yield CounterMetricFamily("rankfold_generated_tokens", "Generated tokens.", stats.tokens)
        yield GaugeMetricFamily("rankfold_waiting_rows", "Rows in the queue.", stats.waiting)
        yield GaugeMetricFamily("rankfold_decoding_rows", "Texts that are being continued.", stats.decoding)
        yield CounterMetricFamily("rankfold_slot_hits", "Rows whose adapter was in a slot.", bank.slot_hits)
        yield CounterMetricFamily("rankfold_adapter_rows", "Rows that had an adapter.", bank.rows)
        yield CounterMetricFamily("rankfold_adapter_loads", "Adapters read from the store.", bank.loads)
        yield CounterMetricFamily("rankfold_evictions", "Adapters that left their slot.", bank.evictions)
        yield GaugeMetricFamily("rankfold_resident_adapters", "Adapters in slots.", bank.resident)
        yield GaugeMetricFamily("rankfold_host_bytes", "Bytes of adapters in memory.", bank.host_bytes)

    def text(self) -> bytes:
        """Return all counts."""
        return generate_latest(self._registry)
