"""Prometheus metrics that every server of ours has."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

TEXT = "text/plain; version=0.0.4"  # what Prometheus reads
SECONDS = Histogram.DEFAULT_BUCKETS  # the last is infinite


class Metrics:
    """Requests, how long they took, batches and the queue; none names a client.

    What every request counts is counted here, on the event loop; prometheus_client would take locks for each.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._statuses: Counts[int] = Counts()
        self._times = [0] * len(SECONDS)
        self._total = 0.0
        self.registry.register(self)
        options: dict[str, Any] = {"registry": self.registry}
        self.batches = Histogram("vl2v_batch_things", "things in a batch", buckets=(1, 2, 4, 8, 16, 32, 64), **options)
        self.queued = Gauge("vl2v_queued_things", "things that wait", **options)

    def answered(self, status: int, seconds: float) -> None:
        """Count a response."""
        self._statuses[status] += 1
        self._times[bisect_left(SECONDS, seconds)] += 1
        self._total += seconds

    def collect(self) -> Iterator[Any]:
        """Yield what is counted here, as prometheus_client wants it."""
        requests = CounterMetricFamily("vl2v_requests", "responses by status", labels=["status"])
        for status, count in self._statuses.items():
            requests.add_metric([str(status)], count)
        yield requests
        buckets = list(zip(map(floatToGoString, SECONDS), accumulate(self._times), strict=True))
        yield HistogramMetricFamily("vl2v_request_seconds", "time to respond", buckets, self._total)

    def text(self) -> bytes:
        """Return all of them as Prometheus reads them."""
        return generate_latest(self.registry)
