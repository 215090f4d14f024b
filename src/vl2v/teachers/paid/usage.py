"""What a query may cost and what it did: a vendor's own figures count within what they can be.

Reserved is the most that the table and this session's responses make possible. A figure above that is believed where
it can be true: of the first response of a kind, which is sent alone, and of items somewhat larger than estimated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vl2v.teachers.paid.limits import Price
from vl2v.teachers.paid.teacher import MICRO, Kind, Query

FIRST = 1000  # times what was reserved that the first response of a kind may cost
LATER = 10  # and another one
AN_ITEM = MICRO // 10  # and what an item may cost of which no price is known
HUGE = 10**12  # what is more is taken for this


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
            query: as it was reserved.
            tokens: the vendor's counts, to be summed up; none if it gives none.
            micro: what it says that it cost; None if it doesn't.
            price: by which tokens are charged.
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
