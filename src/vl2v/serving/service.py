"""What the routes share: a student behind its queue, its traffic log and its metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter, Gauge
from starlette.exceptions import HTTPException
from starlette.requests import Request

from vl2v.deploy.drift import WINDOW
from vl2v.deploy.prediction import Prediction
from vl2v.deploy.runtime import Exported
from vl2v.names import UNKNOWN
from vl2v.serving.decoders import Decoders
from vl2v.serving.network import Network, Thing
from vl2v.serving.teacher_client import TeacherClient
from vl2v.serving.traffic_log import TrafficLog
from vl2v.web.batches import Busy
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


@dataclass(frozen=True)
class Service:
    """A student that serves predictions.

    Attributes:
        student: the loaded export.
        decoders: for images that are large.
    """

    name: str
    student: Exported
    network: Network
    decoders: Decoders
    teacher_client: TeacherClient
    traffic_log: TrafficLog
    metrics: ServingMetrics

    async def predictions(self, things: Sequence[Thing], client: str = "") -> list[Prediction]:
        """Return what is in images; clients take turns.

        Raises:
            BadImage: one can't be decoded.
            Busy, Waited: too much to do.
        """
        rows = await self.network.outputs(await self.decoders.views(things, client), client)
        found = self.student.predictions(rows)
        self.traffic_log.add(rows, found)
        if self.traffic_log.images is not None:
            await asyncio.to_thread(self.traffic_log.images.add, [one for one in things if isinstance(one, bytes)])
        self.metrics.count(found)
        return found

    def check_room(self, client: str) -> None:
        """Refuse a request before its body is read, if it will be refused anyhow.

        Raises:
            Busy: it will.
        """
        if self.network.batches.full(1, client):
            raise Busy("too many images are waiting")

    def check_ready(self, client: str) -> None:
        """Check that the next image would be taken.

        Raises:
            HTTPException: it wouldn't.
        """
        if self.network.batches.full(1, client):
            raise HTTPException(503, "too many images are waiting", {"Retry-After": "1"})


def client_of(request: Request) -> str:
    """Return whose turn a request takes: its address."""
    return request.client.host if request.client else ""
