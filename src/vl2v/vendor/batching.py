"""Requests of all clients: images prepared one by one, embedded in batches, billed before the response."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vl2v.data.decoding import ImageError, decode
from vl2v.vendor.fair import FairQueue, Job
from vl2v.vendor.meter import Meter, Sale
from vl2v.web.batches import Busy

if TYPE_CHECKING:
    from vl2v.teachers.protocol import EncodedImage, Teacher

Rows = NDArray[np.float32]
SECONDS = 10.0  # of processor time for the images of a request, until its last one is begun
SMALL = 2_000_000  # pixels; larger images are prepared in a thread of their own
CHARACTERS = 32_000  # in a batch of texts, about
_log = logging.getLogger(__name__)


class BadImage(Exception):
    """An image of a request can't be decoded."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class TooExpensive(Exception):
    """The images of a request take too much processor time."""


class Unbilled(Exception):
    """The ledger can't be written; the reason is in the log."""


@dataclass(frozen=True)
class Image:
    """An image of a request; `pixels` to decode are more than it has if it comes in many layers."""

    index: int
    image: EncodedImage
    pixels: int


@dataclass
class _Part:
    """An image, and the seconds of processor time spent on its request."""

    image: Image
    spent: list[float] = field(repr=False)


class Batcher:
    """Queries one teacher in one thread, batch by batch; images are prepared beside it, large ones apart from small.

    Args:
        meter: takes the sales before embeddings are returned.
        waiting: queued items per client; beyond that `Busy` (a single request may be larger).
        observe: called with the size of each batch.
    """

    def __init__(
        self,
        teacher: Teacher,
        meter: Meter,
        *,
        most: int = 64,
        waiting: int = 512,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.teacher: Any = teacher
        self.meter = meter
        self.waiting = waiting
        self._splits = hasattr(type(teacher), "prepare_image")
        self._inside: dict[str, int] = defaultdict(int)  # items by client
        self._embedding: FairQueue[Any, Any] = FairQueue(
            self._embed, most=most, cost=CHARACTERS, finish=self._bill, observe=observe
        )
        self._small: FairQueue[_Part, Any] = FairQueue(self._prepare, most=16, cost=4 * SMALL)
        self._large: FairQueue[_Part, Any] = FairQueue(self._prepare, most=1, cost=1)

    @property
    def queued(self) -> int:
        """Number of queued items."""
        return self._embedding.queued + self._small.queued + self._large.queued

    async def texts(self, texts: Sequence[str], sale: Sale) -> bytes:
        """Return the embeddings [n, d] of texts, as little-endian float32, after billing them.

        Raises:
            Busy, Waited, Stopped, Unbilled: nothing is billed.
            Exception: from the teacher; nothing is billed.
        """
        count = self._enter(sale.client, len(texts))
        try:
            costs = [CHARACTERS / self._embedding.most + len(text) for text in texts]
            vectors: bytes = await self._embedding.submit(sale.client, "text", texts, costs, sale)
            return vectors
        finally:
            self._inside[sale.client] -= count

    async def images(self, images: Sequence[Image], sale: Sale) -> bytes:
        """Return the embeddings [n, d] of images likewise. Raises as `texts` does, and:

        Raises:
            BadImage, TooExpensive: nothing is billed.
        """
        count = self._enter(sale.client, len(images))
        try:
            large = any(each.pixels > SMALL for each in images)
            spent = [0.0]
            parts = [_Part(image, spent) for image in images]
            prepare = self._large if large else self._small
            pixels = [max(2**16, each.pixels) for each in images]
            ready = await prepare.submit(sale.client, "image", parts, pixels)
            costs = [CHARACTERS / self._embedding.most] * len(ready)
            vectors: bytes = await self._embedding.submit(sale.client, "image", ready, costs, sale)
            return vectors
        finally:
            self._inside[sale.client] -= count

    def full(self, client: str) -> bool:
        """Whether any request of a client would be refused as `Busy`."""
        return self._inside[client] > self.waiting + self._embedding.most

    def close(self) -> None:
        """Stop the threads once their batches are done."""
        for queue in (self._small, self._large, self._embedding):
            queue.close()

    def _enter(self, client: str, count: int) -> int:
        """Count a client's items.

        Raises:
            Busy: it has too many queued.
        """
        inside = self._inside[client]
        if inside and inside + count > self.waiting + self._embedding.most:
            raise Busy("too many requests are waiting")
        self._inside[client] += count
        return count

    def _prepare(self, kind: str, parts: list[_Part]) -> list[Any]:
        """Return the teacher's input for each image, or the error."""
        return [self._prepared(part) for part in parts]

    def _prepared(self, part: _Part) -> Any:
        if part.spent[0] > SECONDS:
            return TooExpensive(f"over {SECONDS:g} s of processor time; send fewer images, or smaller ones")
        begun = time.thread_time()
        try:
            if self._splits:
                return self.teacher.prepare_image(part.image.image)
            decode(part.image.image.data)
            return part.image.image
        except ImageError as reason:
            return BadImage(part.image.index, str(reason))
        except Exception as error:
            return error
        finally:
            part.spent[0] += time.thread_time() - begun

    def _embed(self, kind: str, items: list[Any]) -> Sequence[Any]:
        """Return each item's embedding as bytes, or the error: an item that the teacher fails at fails no other."""
        try:
            vectors = np.ascontiguousarray(self._rows(kind, items), "<f4").reshape(len(items), -1).tobytes()
            size = len(vectors) // len(items)
            return [vectors[i : i + size] for i in range(0, len(vectors), size)]
        except Exception as error:
            if len(items) == 1:
                return [error]
            middle = len(items) // 2  # one client's item must not fail another's
            return [*self._embed(kind, items[:middle]), *self._embed(kind, items[middle:])]

    def _rows(self, kind: str, items: list[Any]) -> Rows:
        if kind == "text":
            rows: Rows = self.teacher.embed_texts(items)
        elif self._splits:
            rows = self.teacher.embed_prepared(items)
        else:
            rows = self.teacher.embed_images(items)
        return rows

    def _bill(self, jobs: list[Job[Any, Any]]) -> None:
        """Write the sales of finished requests in one commit; what can't be billed is not sent."""
        if not jobs:
            return
        try:
            for job in jobs:
                job.value = b"".join(job.results)
            self.meter.write([(job.context, job.value) for job in jobs])
        except Exception:
            _log.exception("the ledger can't be written")
            for job in jobs:
                job.error = Unbilled()
