"""What the routes share: a student's network behind a queue for all clients' images, its traffic log and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge
from starlette.exceptions import HTTPException
from starlette.requests import Request

from vl2v.data.decoding import ImageError
from vl2v.deploy.drift import WINDOW
from vl2v.deploy.prediction import Prediction
from vl2v.deploy.runtime import Exported
from vl2v.names import UNKNOWN
from vl2v.serving.decoders import BadImage, Decoders, Thing
from vl2v.serving.teacher_client import TeacherClient
from vl2v.serving.traffic_log import TrafficLog
from vl2v.system import processors
from vl2v.web.batches import Batches, Busy
from vl2v.web.metrics import Metrics

Rows = NDArray[np.float32]


class Network:
    """A student's network behind a queue.

    A thread a core takes a batch, decodes it and puts it through the network, for which onnxruntime gets one thread: at
    saturation no core waits for another.

    Args:
        student: loaded with one thread.
        most: images in a batch.
        waiting: images that may wait.
        seconds: that a request may wait for its turn.
        observe: called with the size of each batch.
    """

    def __init__(
        self,
        student: Exported,
        *,
        most: int = 32,
        waiting: int = 128,
        seconds: float = 10.0,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.student = student
        self.batches: Batches[Sequence[Thing], Rows] = Batches(
            self._outputs, most=most, waiting=waiting, seconds=seconds, threads=processors(), observe=observe
        )

    async def outputs(self, things: Sequence[Thing], client: str = "") -> Rows:
        """Return what the network gives for each image [n, d]: logits or embeddings.

        Raises:
            BadImage: one can't be decoded.
            Busy, Waited: too much to do.
        """
        return await self.batches.submit(things, len(things), client)

    def _outputs(self, requests: list[Sequence[Thing]]) -> list[Rows | Exception]:
        decoded = [self._pixels(things) for things in requests]
        good = [pixels for pixels in decoded if not isinstance(pixels, Exception)]
        rows = iter(np.split(self._run(np.concatenate(good)), np.cumsum([len(p) for p in good])[:-1]) if good else ())
        return [pixels if isinstance(pixels, Exception) else next(rows) for pixels in decoded]

    def _pixels(self, things: Sequence[Thing]) -> NDArray[np.uint8] | BadImage:
        views = []
        for index, thing in enumerate(things):
            try:
                views.append(self.student.view(thing) if isinstance(thing, bytes) else thing)
            except ImageError as error:
                return BadImage(index, str(error))
        return np.stack(views)

    def _run(self, pixels: NDArray[np.uint8]) -> Rows:
        most = self.batches.most
        return np.concatenate([self.student.run(pixels[i : i + most]) for i in range(0, len(pixels), most)])


class ServingMetrics(Metrics):
    """What every server counts, predictions, and how far the latest images are from the training domains."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"registry": self.registry}
        self.images = Counter("vl2v_images", "images predicted", **options)
        self.unknown = Counter("vl2v_unknown", 'images predicted as "unknown"', **options)
        latest = f"of the latest {WINDOW} images"
        self.distance = Gauge(
            "vl2v_drift_distance", f"{latest}: from the training domains; from 1 it isn't chance", **options
        )
        self.share = Gauge("vl2v_drift_unknown_share", f'{latest}: predicted as "unknown"', **options)
        self.expected = Gauge(
            "vl2v_drift_unknown_expected", "that share on validation images of the same classes", **options
        )

    def count(self, predictions: Sequence[Prediction]) -> None:
        """Count predictions."""
        self.images.inc(len(predictions))
        self.unknown.inc(sum(prediction.label == UNKNOWN for prediction in predictions))

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
