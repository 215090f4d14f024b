"""Requests of all clients: images prepared one by one, embedded in batches, and billed before they are answered."""

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
from vl2v.vendor.fair import Fair, Job
from vl2v.vendor.meter import Meter, Sale
from vl2v.web.batches import Busy

if TYPE_CHECKING:
    from vl2v.teachers import EncodedImage, Teacher

Rows = NDArray[np.float32]
SECONDS = 10.0  # of processor time for the images of a request, before its last one is begun
SMALL = 2_000_000  # pixels; images of more are prepared on a thread of their own
CHARACTERS = 32_000  # of a batch of texts, about
_log = logging.getLogger(__name__)


class BadImage(Exception):
    """An image of a request can't be decoded."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class TooDear(Exception):
    """The images of a request take too much processor time."""


class Unbilled(Exception):
    """The ledger can't be written; the log tells why."""


@dataclass(frozen=True)
class Image:
    """An image of a request; `pixels` is what decoding it takes, more than it has if it is in many layers."""

    index: int
    image: EncodedImage
    pixels: int


@dataclass
class _Part:
    """An image, and the seconds of processor time that its request has had."""

    thing: Image
    spent: list[float] = field(repr=False)


class Batcher:
    """One teacher, queried in one thread, batch by batch; images are prepared beside it, large ones apart from others.

    Args:
        teacher: who embeds.
        meter: where sales are written before embeddings leave.
        most: items in a batch.
        waiting: items of one client that may wait; more are turned away (a request alone may be larger).
        seconds: that a request may wait for its turn.
        observe: told the size of each batch.
    """

    def __init__(
        self,
        teacher: Teacher,
        meter: Meter,
        *,
        most: int = 64,
        waiting: int = 512,
        seconds: float = 30.0,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.teacher: Any = teacher
        self.meter = meter
        self.waiting = waiting
        self._splits = hasattr(type(teacher), "prepare_image")
        self._inside: dict[str, int] = defaultdict(int)  # items by client
        self._embedding: Fair[Any, Any] = Fair(
            self._embed, most=most, cost=CHARACTERS, seconds=seconds, finish=self._bill, observe=observe
        )
        self._small: Fair[_Part, Any] = Fair(self._prepare, most=16, cost=4 * SMALL, seconds=seconds)
        self._large: Fair[_Part, Any] = Fair(self._prepare, most=1, cost=1, seconds=seconds)

    @property
    def queued(self) -> int:
        """How many items wait."""
        return self._embedding.queued + self._small.queued + self._large.queued

    async def texts(self, texts: Sequence[str], sale: Sale) -> Rows:
        """Return the embeddings [n, d] of texts, billed by then.

        Raises:
            Busy, Waited, Stopped, Unbilled: nothing is billed.
            Exception: what the teacher raised; nothing is billed.
        """
        count = self._enter(sale.client, len(texts))
        try:
            costs = [CHARACTERS / self._embedding.most + len(text) for text in texts]
            rows: Rows = await self._embedding.ask(sale.client, "text", texts, costs, sale)
            return rows
        finally:
            self._inside[sale.client] -= count

    async def images(self, images: Sequence[Image], sale: Sale) -> Rows:
        """Return the embeddings [n, d] of images, billed by then. Raises as `texts` does, and:

        Raises:
            BadImage, TooDear: nothing is billed.
        """
        count = self._enter(sale.client, len(images))
        try:
            large = any(each.pixels > SMALL for each in images)
            spent = [0.0]
            parts = [_Part(image, spent) for image in images]
            prepare = self._large if large else self._small
            pixels = [max(2**16, each.pixels) for each in images]
            ready = await prepare.ask(sale.client, "image", parts, pixels)
            costs = [CHARACTERS / self._embedding.most] * len(ready)
            rows: Rows = await self._embedding.ask(sale.client, "image", ready, costs, sale)
            return rows
        finally:
            self._inside[sale.client] -= count

    def full(self, client: str) -> bool:
        """Whether any request of a client would be turned away."""
        return self._inside[client] > self.waiting + self._embedding.most

    def close(self) -> None:
        """End the threads when they are done with their batches."""
        for queue in (self._small, self._large, self._embedding):
            queue.close()

    def _enter(self, client: str, count: int) -> int:
        """Count what a client has inside.

        Raises:
            Busy: it has too much there already.
        """
        inside = self._inside[client]
        if inside and inside + count > self.waiting + self._embedding.most:
            raise Busy("too many requests are waiting")
        self._inside[client] += count
        return count

    def _prepare(self, kind: str, parts: list[_Part]) -> list[Any]:
        """Return what the teacher takes of each image, or why it can't be had."""
        return [self._prepared(part) for part in parts]

    def _prepared(self, part: _Part) -> Any:
        if part.spent[0] > SECONDS:
            return TooDear(f"over {SECONDS:g} s of processor time; send fewer images, or smaller ones")
        begun = time.thread_time()
        try:
            if self._splits:
                return self.teacher.prepare_image(part.thing.image)
            decode(part.thing.image.data)
            return part.thing.image
        except ImageError as reason:
            return BadImage(part.thing.index, str(reason))
        except Exception as error:
            return error
        finally:
            part.spent[0] += time.thread_time() - begun

    def _embed(self, kind: str, items: list[Any]) -> Sequence[Any]:
        """Return the embedding of each item; if the teacher fails, of each that it doesn't fail at."""
        try:
            return list(self._rows(kind, items))
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
        """Write the sales of requests that are done, in one commit; what can't be billed isn't answered."""
        if not jobs:
            return
        try:
            for job in jobs:
                job.results = np.stack(job.results)  # type: ignore[assignment]
            self.meter.write([(job.about, job.results) for job in jobs])  # type: ignore[misc]
        except Exception:
            _log.exception("the ledger can't be written")
            for job in jobs:
                job.error = Unbilled()
