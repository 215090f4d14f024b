"""What the routes share: a student behind its queue, its traffic log and its metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request

from vl2v.deploy.prediction import Prediction
from vl2v.deploy.runtime import Exported
from vl2v.serving.decoders import Decoders
from vl2v.serving.metrics import ServingMetrics
from vl2v.serving.network import Network, Thing
from vl2v.serving.teacher_client import TeacherClient
from vl2v.serving.traffic_log import TrafficLog
from vl2v.web.batches import Busy


@dataclass(frozen=True)
class Service:
    """A student that serves predictions.

    Attributes:
        name: of the model.
        student: the loaded export.
        network: its queue.
        decoders: for images that are large.
        teacher_client: its teacher.
        traffic_log: remembers the network's outputs.
        metrics: count the predictions.
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
