"""Requests of all clients, gathered into batches for one teacher, and billed together before they are answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from vl2v.data.decoding import PictureError, decode
from vl2v.vendor.meter import Meter, Sale
from vl2v.web.batches import Batches

if TYPE_CHECKING:
    from vl2v.teachers import EncodedImage, Teacher


Rows = NDArray[np.float32]
Things = Sequence["EncodedImage"] | Sequence[str]
_log = logging.getLogger(__name__)


class BadPicture(Exception):
    """A picture of a request can't be decoded."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class Unbilled(Exception):
    """The ledger can't be written; the log tells why."""


@dataclass(frozen=True)
class Request:
    """What one client asks, and what it will be billed."""

    things: Things
    sale: Sale


class Desk:
    """One teacher, asked in one thread, batch by batch.

    Args:
        teacher: who answers.
        meter: where sales are written before the answers leave.
        most: things in a batch.
        waiting: things that may wait; more are turned away (a request alone may be larger).
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
        self.teacher = teacher
        self.meter = meter
        self._batches: Batches[Request, Rows] = Batches(
            self._answer, most=most, waiting=waiting, seconds=seconds, observe=observe, kind=lambda r: r.sale.kind
        )

    @property
    def queued(self) -> int:
        """How many things wait."""
        return self._batches.queued

    async def ask(self, request: Request) -> Rows:
        """Return the answer [n, d] to a request, billed by then.

        Raises:
            Busy, Waited: nothing is billed.
            BadPicture, Unbilled: nothing is billed.
            Exception: what the teacher raised; nothing is billed.
        """
        return await self._batches.ask(request, len(request.things))

    def close(self) -> None:
        """End the teacher's thread."""
        self._batches.close()

    def _answer(self, batch: list[Request]) -> list[Rows | Exception]:
        """Return the answer to each request, or what is wrong with it; the good ones are billed in one commit."""
        try:
            rows = self._embed(cast(Things, list(chain.from_iterable(r.things for r in batch))), batch[0].sale.kind)
            cuts = np.cumsum([len(request.things) for request in batch])[:-1]
            results: list[Rows | Exception] = list(np.split(rows, cuts))
        except Exception as error:  # one request's picture must not fail another's
            results = [_culprit(batch[0], error)] if len(batch) == 1 else [self._alone(request) for request in batch]
        sold = [r.sale for r, result in zip(batch, results, strict=True) if not isinstance(result, Exception)]
        if sold:
            try:
                self.meter.write(sold)
            except Exception:  # what can't be billed isn't answered
                _log.exception("the ledger can't be written")
                return [result if isinstance(result, Exception) else Unbilled() for result in results]
        return results

    def _alone(self, request: Request) -> Rows | Exception:
        try:
            return self._embed(request.things, request.sale.kind)
        except Exception as error:
            return _culprit(request, error)

    def _embed(self, things: Things, kind: str) -> Rows:
        if kind == "text":
            return self.teacher.embed_texts(cast(Sequence[str], things))
        return self.teacher.embed_images(cast("Sequence[EncodedImage]", things))


def _culprit(request: Request, error: Exception) -> Exception:
    """Return which picture is broken, if one is; else the error."""
    pictures = () if request.sale.kind == "text" else cast("Sequence[EncodedImage]", request.things)
    for index, thing in enumerate(pictures):
        try:
            decode(thing.data)
        except PictureError as reason:
            return BadPicture(index, str(reason))
    return error
