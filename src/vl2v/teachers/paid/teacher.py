"""The protocol of paid teachers: every attempt at a query is reserved from a budget before it leaves."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Literal, Protocol, cast

from vl2v.errors import ConfigError, TeacherError
from vl2v.teachers.protocol import EncodedImage, Teacher, Vectors

Kind = Literal["image", "text"]
Status = Literal["answered", "wrong", "lost", "rejected"]
"""How a query ended: with embeddings; with an unusable response (paid for all the same); with none, though the vendor
may have billed it (time-out, broken connection); rejected by the vendor, which costs nothing."""

MICRO = 1_000_000  # money is integer micro-units of the vendor's currency
SAME = 0.98  # cosine of one model's embeddings of one item, at least; half precision and batching stay far above it

# Queried at the start of each session with a paid teacher: another embedding than last time is another model's.
CANARY_TEXT = "a photo of a canary"
CANARY_SIZE = (64, 64)
CANARY_IMAGE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAABjklEQVR42u2arXLDMAyAFZ9QcFHBHiFgKI+xhxgeGigaKBoYGt5D7AmGgwaChg"
    "uKCoaMB3KX+eYkZ0VOLd0klv7d91mKJV9THT6+QXM4UB4mYAImYAIm8L8FsDjB8aYNL59OHenrVcFR4g/6Oo0yAgvoVA0nlj7xk7YL5Vv+fXvZ"
    "txdqEqRkYEQPHfy7l5WB9OoPHQ6fjeg+MMS52w1rf+528bujw/NtL1RgDn3SJNRAIaVCijAhqAs9LiTUgh5XfzaBTdHru3p5oHCq6bkC16n4rQ"
    "SuQJ8yjaJM+vTzgKBGtu5E5pSWvp0H9ApsXT/U37cSMgETMAFlAtRWL3GUAIDTl1dcQgO9EAfaNHrvG1H1Q8tATC8hCY659hkd1m0PWLxsmJub"
    "49Pzk8DZmpFD/1b3/AGb2Vim/yNbQB+gs5wTsvTECYFJ+jnudRoZ2zku0ydy/5I9egA4vtRzr2efRDBGp0KnLXCz0RyFIz2fu2Qjy0P/2gAAPP"
    "QFBOxAYwImoPIOtgwIiMoe/jYBXvwAvYSfo9VB8SkAAAAASUVORK5CYII="
)


class BudgetReached(TeacherError):
    """The next query could pass the budget; every embedding that arrived is saved."""


@dataclass(frozen=True)
class Query:
    """One attempt at one request, and the most that it can cost.

    Attributes:
        count: how many images or texts.
        tokens: at most, as the vendor counts them; 0 where it doesn't.
        micro: the price at most, in millionths of the currency.
        digest: of the request's content; "" where it isn't to be recognised later.
        key: the Idempotency-Key that it is sent with.
    """

    kind: Kind
    count: int
    tokens: int
    micro: int
    digest: str = ""
    key: str = ""


class Budget(Protocol):
    """Where the money comes from; safe to call from several threads."""

    def reserve(self, query: Query) -> int:
        """Note durably that a query is about to leave; return its number.

        Raises:
            BudgetReached: with this query the spent and reserved money would pass the budget. Nothing is noted.
        """
        ...

    def key_of(self, digest: str) -> str | None:
        """Return the Idempotency-Key of a request of the last day whose embeddings never arrived, to be used again."""
        ...

    def bill(self) -> str:
        """Return the bill so far in a few words."""
        ...

    def settle(
        self,
        number: int,
        status: Status,
        *,
        tokens: int | None = None,
        micro: int | None = None,
        model: str = "",
        note: str = "",
    ) -> None:
        """Note how a query ended and what it cost: None leaves the reserved figure, as for lost queries.

        Args:
            status: how it ended; what was rejected costs nothing.
            tokens: as the vendor reports them.
            model: the model's name in the response.
            note: a few words; never a key, never an image.

        Raises:
            BudgetReached: it cost more than was reserved, and more than the budget has left, which is noted then.
        """
        ...


@dataclass(frozen=True)
class Forecast:
    """What queries would take, at most."""

    requests: int
    tokens: int
    micro: int
    seconds: float

    def __add__(self, other: Forecast) -> Forecast:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Forecast(*(one + another for one, another in pairs))


@dataclass(frozen=True)
class Embedded:
    """One request's embeddings.

    Attributes:
        positions: of its items among all that were queried.
        vectors: [n, d], unit rows.
        settle: to be called once the vectors are saved durably: only then is the query noted as answered.
    """

    positions: tuple[int, ...]
    vectors: Vectors
    settle: Callable[[], None]


@dataclass(frozen=True)
class Refused:
    """An image or text that the vendor won't take, alone in its request."""

    position: int
    reason: str


class PaidTeacher(Teacher, Protocol):
    """A teacher that is paid for.

    Attributes:
        budget: what pays; None: nothing may be queried.
        currency: "USD" and the like.
        doubt: why its prices may be wrong; empty where there is no reason to think so.
    """

    budget: Budget | None
    currency: str

    @property
    def doubt(self) -> str: ...  # noqa: D102

    def forecast(self, kind: Kind, sizes: Iterable[tuple[int, int]]) -> Forecast:
        """Return what querying images of these (width, height) would take; for texts: (bytes, 1).

        Raises:
            TeacherError: no price is known; the message says where to put one.
        """
        ...

    def stop(self) -> None:
        """End, soon and for good, the queries of other threads; they get a TeacherError."""
        ...

    def query(self, kind: Kind, items: Iterable[EncodedImage] | Iterable[str]) -> Iterator[Embedded | Refused]:
        """Query all items, several requests in flight; yield embeddings as they arrive, in any order.

        When the budget is reached nothing more leaves, what is in flight is still yielded, then BudgetReached comes.

        Raises:
            BudgetReached: see above.
            TeacherError: wrong key, no money at the vendor, unknown model, retries used up; after what is in flight.
            Stopped, Terminated: Ctrl-C or SIGTERM came; what was in flight is yielded, or broken off and counted.
        """
        ...


def money(micro: int, currency: str) -> str:
    """Return an amount for people: two digits after the point, or as many as it takes."""
    whole = f"{micro / MICRO:.6f}".rstrip("0")
    point = whole.index(".")
    return f"{whole}{'0' * max(0, 3 - len(whole) + point)} {currency}"


def micro_of(budget: float) -> int:
    """Return a budget in millionths of its currency.

    Raises:
        ConfigError: it isn't an amount of money.
    """
    if not 0 <= budget < 1e12:  # NaN isn't, either
        raise ConfigError(f"--budget {budget}: give an amount of money, for example 5 (0: nothing may be paid)")
    return round(budget * MICRO)


def as_paid(teacher: Teacher) -> PaidTeacher | None:
    """Return the teacher if it is a paid one; sends nothing."""
    return cast(PaidTeacher, teacher) if hasattr(type(teacher), "query") else None
