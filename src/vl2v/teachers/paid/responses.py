"""What a vendor's responses claim beside the vectors: tokens and prices, and the model's name.

Reserved is the most that the table and this session's responses make possible. A figure above that is believed where
it can be true: of the first response of a kind, which is sent alone, and of items somewhat larger than estimated.
Gateways have several names for one model, and a vendor may change the model under its name.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from vl2v.errors import TeacherError
from vl2v.teachers.paid.failures import Rejected, TryAgain
from vl2v.teachers.paid.limits import Limits, Price
from vl2v.teachers.paid.requests import Item, item_of
from vl2v.teachers.paid.teacher import CANARY_IMAGE, CANARY_TEXT, MICRO, SAME, Kind, Query
from vl2v.teachers.protocol import EncodedImage, Vectors

FIRST = 1000  # times what was reserved that the first response of a kind may cost
LATER = 10  # and another one
AN_ITEM = MICRO // 10  # and what an item may cost of which no price is known
HUGE = 10**12  # what is more is taken for this
MOST = 8  # names that a model may have
Canary = Callable[[Kind, Item], Awaitable[None]]
KINDS: tuple[Kind, ...] = ("text", "image")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counted:
    """What counts of a response's price.

    Attributes:
        tokens: None: as reserved.
        micro: None: as reserved.
        doubt: what is odd about the vendor's figures; "" where nothing is.
        said: the price by the vendor's figures, where it can't be true; the session has to end then.
    """

    tokens: int | None = None
    micro: int | None = None
    doubt: str = ""
    said: int | None = None


@dataclass
class Usage:
    """The most that an item of each kind has cost so far."""

    _tokens: dict[Kind, float] = field(default_factory=dict)
    _micro: dict[Kind, int] = field(default_factory=dict)

    def at_most(self, kind: Kind, tokens: Sequence[int], price: Price) -> tuple[int, int]:
        """Return the tokens and the price, in millionths, that items of so many tokens each may take."""
        count = len(tokens)
        most = max(sum(tokens), math.ceil(self._tokens.get(kind, 0) * count))
        return most, max(price.micro(kind, count, most), self._micro.get(kind, 0) * count)

    def count(
        self, query: Query, tokens: Sequence[Any], micro: Any, price: Price, *, first: bool, sized: bool = True
    ) -> Counted:
        """Return what counts of a response, and learn from it.

        Args:
            tokens: the vendor's counts, to be summed up; none if it gives none.
            micro: what it says that it cost; None if it doesn't.
            first: whether it is the first response of its kind in this session.
            sized: whether the table knows how many tokens an item has.
        """
        counts = [whole(each) for each in tokens]
        odd = [each for each, number in zip([*tokens, micro], [*counts, whole(micro)], strict=True) if number is None]
        odd = [each for each in odd if each is not None]
        sums = None if None in counts or not counts else sum(each for each in counts if each is not None)
        by_token = price.micro(query.kind, 0, MICRO) > 0
        if sums is not None and sums < query.count and by_token:
            odd, sums = [*odd, sums], None
        doubt = f"says {str(odd[0])[:40]!r} of its usage" if odd else ""
        said = whole(micro)
        if micro is None and sums is not None:
            said = min(price.micro(query.kind, query.count, sums), HUGE)
        if said is None:
            return Counted(sums, None, doubt)
        if said > query.micro:
            limit = (FIRST if first or (by_token and not sized) else LATER) * query.micro
            if said > limit and not (first and not query.micro and said <= AN_ITEM * query.count):
                return Counted(None, None, doubt or "says more than it can have cost", said)
            doubt = doubt or ("costs more than the table says" if query.micro else "")
        if sums is not None:
            self._tokens[query.kind] = max(self._tokens.get(query.kind, 0), sums / query.count)
        if micro is not None:
            self._micro[query.kind] = max(self._micro.get(query.kind, 0), -(-said // query.count))
        return Counted(sums, said, doubt)


def whole(number: Any) -> int | None:
    """Return a vendor's figure if it is a whole number, not negative; at most `HUGE`."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
        return None
    return min(int(number), HUGE) if number == int(number) else None


class Names:
    """The names of one model, each but the first proved by the canaries' embeddings under it."""

    def __init__(self, teacher: str, limits: Limits) -> None:
        self._teacher = teacher
        self._proved: list[str] = []
        self._proving = asyncio.Lock()
        self._canaries: dict[tuple[Kind, str], Vectors] = {}  # by the response's model name
        self._canary = cache(lambda kind: item_of(limits, 0, _CANARIES[kind]))

    def observe(self, kind: Kind, batch: Sequence[Item], said: str, vectors: Vectors) -> None:
        """Remember an embedding, if it is a canary's."""
        if len(batch) == 1 and batch[0].thing == self._canary(kind).thing:
            self._canaries[kind, said] = vectors[0]

    async def prove(self, said: str, query: Canary) -> None:
        """Find out whether a name is of the same model as those proved.

        Args:
            said: the name; "" where a response has none.
            query: queries a canary; `observe` gets the embedding.

        Raises:
            TeacherError: under this name a canary is embedded differently, or not at all.
        """
        if said in self._proved or not said:
            return
        async with self._proving:
            if said in self._proved:
                return
            if self._proved:
                changed = f"{self._teacher}: the model changed from {self._proved[0]!r} to {said!r} during the session"
                if len(self._proved) == MOST:
                    raise TeacherError(f"{changed}: too many names for one model")
                for kind in KINDS:
                    await self._compare(kind, said, changed, query)
                if len(self._proved) == 1:
                    words = "%s: names its model %r and %r; it is one model: a known text and image are embedded alike"
                    _log.warning(words, self._teacher, self._proved[0], said)
            self._proved.append(said)

    async def _compare(self, kind: Kind, said: str, changed: str, query: Canary) -> None:
        """Query until a canary was embedded under the new name and under a proved one."""
        for _ in range(2 * MOST):
            before = [vector for (of, name), vector in self._canaries.items() if of == kind and name in self._proved]
            new = self._canaries.get((kind, said))
            if before and new is not None:
                cosine = float(before[0] @ new)
                if cosine < SAME:
                    raise TeacherError(f"{changed}: it embeds a known {kind} differently (cosine {cosine:.3f})")
                return
            try:
                await query(kind, self._canary(kind))
            except (TryAgain, Rejected) as error:
                raise TeacherError(f"{changed}: and a known {kind} isn't embedded ({error})") from None
        raise TeacherError(f"{changed}: and nothing shows whether it is the same one")


_CANARIES: dict[Kind, EncodedImage | str] = {"text": CANARY_TEXT, "image": EncodedImage("canary", CANARY_IMAGE)}
