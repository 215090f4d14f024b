"""Prometheus metrics of predictions and of drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import Counter, Gauge

from vl2v.deploy.drift import WINDOW
from vl2v.deploy.prediction import Prediction
from vl2v.names import UNKNOWN
from vl2v.serving.traffic_log import TrafficLog
from vl2v.web.metrics import Metrics


class ServingMetrics(Metrics):
    """What every server counts, predictions, and how far the latest images are from the training domains."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"registry": self.registry}
        self.images = Counter("vl2v_images", "images that were answered", **options)
        self.unknown = Counter("vl2v_unknown", 'images with the answer "unknown"', **options)
        latest = f"of the latest {WINDOW} images"
        self.distance = Gauge(
            "vl2v_drift_distance", f"{latest}: from the training domains; from 1 it isn't chance", **options
        )
        self.share = Gauge("vl2v_drift_unknown_share", f'{latest}: with the answer "unknown"', **options)
        self.expected = Gauge(
            "vl2v_drift_unknown_expected", "that share on validation images of the same classes", **options
        )

    def count(self, predictions: Sequence[Prediction]) -> None:
        """Count predictions."""
        self.images.inc(len(predictions))
        self.unknown.inc(sum(answer.label == UNKNOWN for answer in predictions))

    def watched(self, traffic_log: TrafficLog) -> None:
        """Set the gauges of drift; what isn't known is NaN."""
        found = traffic_log.drift()
        nan = float("nan")
        self.distance.set(nan if found is None or found.distance is None else found.distance)
        self.share.set(nan if found is None else found.unknown)
        self.expected.set(nan if found is None else found.expected)
