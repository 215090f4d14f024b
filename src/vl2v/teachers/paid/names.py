"""The model names in a vendor's responses: gateways have several for one model, and a vendor may change the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import cache

from vl2v.errors import TeacherError
from vl2v.teachers.paid.limits import Limits
from vl2v.teachers.paid.requests import Item, Rejected, TryAgain, item_of
from vl2v.teachers.paid.teacher import CANARY_IMAGE, CANARY_TEXT, SAME, Kind
from vl2v.teachers.protocol import EncodedImage, Vectors

MOST = 8  # names that a model may have
Canary = Callable[[Kind, Item], Awaitable[None]]
KINDS: tuple[Kind, ...] = ("text", "image")
_log = logging.getLogger(__name__)


class Names:
    """The names of one model, each but the first proved by the canaries' embeddings under it.

    Args:
        teacher: its name, for messages.
        limits: by which canaries are sent.
    """

    def __init__(self, teacher: str, limits: Limits) -> None:
        self._teacher = teacher
        self._known: list[str] = []
        self._proving = asyncio.Lock()
        self._canaries: dict[tuple[Kind, str], Vectors] = {}  # by the response's model name
        self._canary = cache(lambda kind: item_of(limits, 0, _CANARIES[kind]))

    def hear(self, kind: Kind, batch: Sequence[Item], said: str, vectors: Vectors) -> None:
        """Remember an embedding, if it is a canary's."""
        if len(batch) == 1 and batch[0].thing == self._canary(kind).thing:
            self._canaries[kind, said] = vectors[0]

    async def prove(self, said: str, query: Canary) -> None:
        """Find out whether a name is of the same model as those known.

        Args:
            said: the name; "" where a response has none.
            query: queries a canary; `hear` gets the embedding.

        Raises:
            TeacherError: under this name a canary is embedded differently, or not at all.
        """
        if said in self._known or not said:
            return
        async with self._proving:
            if said in self._known:
                return
            if self._known:
                changed = f"{self._teacher}: the model changed from {self._known[0]!r} to {said!r} during the session"
                if len(self._known) == MOST:
                    raise TeacherError(f"{changed}: too many names for one model")
                for kind in KINDS:
                    await self._compare(kind, said, changed, query)
                if len(self._known) == 1:
                    words = "%s: names its model %r and %r; it is one model: a known text and image are embedded alike"
                    _log.warning(words, self._teacher, self._known[0], said)
            self._known.append(said)

    async def _compare(self, kind: Kind, said: str, changed: str, query: Canary) -> None:
        """Query until a canary was embedded under the new name and under a known one."""
        for _ in range(2 * MOST):
            known = [vector for (of, name), vector in self._canaries.items() if of == kind and name in self._known]
            new = self._canaries.get((kind, said))
            if known and new is not None:
                cosine = float(known[0] @ new)
                if cosine < SAME:
                    raise TeacherError(f"{changed}: it embeds a known {kind} differently (cosine {cosine:.3f})")
                return
            try:
                await query(kind, self._canary(kind))
            except (TryAgain, Rejected) as error:
                raise TeacherError(f"{changed}: and a known {kind} isn't embedded ({error})") from None
        raise TeacherError(f"{changed}: and nothing shows whether it is the same one")


_CANARIES: dict[Kind, EncodedImage | str] = {"text": CANARY_TEXT, "image": EncodedImage("canary", CANARY_IMAGE)}
