"""Prometheus metrics that every server of ours has."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response


class Metrics:
    """Requests, how long they took, batches and the queue; none names a client."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("vl2v_requests", "answers by status", ["status"], **options)
        self.seconds = Histogram("vl2v_request_seconds", "time to answer", **options)
        self.batches = Histogram("vl2v_batch_things", "things in a batch", buckets=(1, 2, 4, 8, 16, 32, 64), **options)
        self.queued = Gauge("vl2v_queued_things", "things that wait", **options)

    def answered(self, status: int, seconds: float) -> None:
        """Count an answer."""
        self.requests.labels(str(status)).inc()
        self.seconds.observe(seconds)

    def page(self) -> Response:
        """Return all of them as Prometheus reads them."""
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4")
