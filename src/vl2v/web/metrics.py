"""Prometheus metrics that every server of ours has."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TEXT = "text/plain; version=0.0.4"  # what Prometheus reads


class Metrics:
    """Requests, how long they took, batches and the queue; none names a client."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._by_status: dict[int, Any] = {}
        options: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("vl2v_requests", "responses by status", ["status"], **options)
        self.seconds = Histogram("vl2v_request_seconds", "time to respond", **options)
        self.batches = Histogram("vl2v_batch_things", "things in a batch", buckets=(1, 2, 4, 8, 16, 32, 64), **options)
        self.queued = Gauge("vl2v_queued_things", "things that wait", **options)

    def answered(self, status: int, seconds: float) -> None:
        """Count a response."""
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._by_status[status] = self.requests.labels(str(status))
        counter.inc()
        self.seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all of them as Prometheus reads them."""
        return generate_latest(self.registry)
