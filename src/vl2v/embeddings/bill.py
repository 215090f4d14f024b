"""The bill: what queries cost, before they are sent and after, by whom and when; and the budget that bounds them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vl2v.data.dataset import DomainDataset
from vl2v.data.decoding import ImageError, image_size
from vl2v.embeddings.ledger import FILE_NAME as LEDGER
from vl2v.embeddings.ledger import Entry, Ledger
from vl2v.embeddings.plan import Plan
from vl2v.embeddings.rows import FILE_NAME as STORE
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import RunError
from vl2v.session import Session
from vl2v.teachers.paid.teacher import (
    CANARY_IMAGE,
    CANARY_SIZE,
    CANARY_TEXT,
    BudgetReached,
    Forecast,
    Query,
    Status,
    as_paid,
    micro_of,
    money,
)
from vl2v.teachers.protocol import Teacher

SAMPLED = 256  # images whose size is read for a forecast


@dataclass(frozen=True)
class Total:
    """Queries that go together on a bill: (teacher, asker, day, kind, how they ended); free ones have no currency."""

    group: tuple[str, str, str, str, str]
    queries: int
    count: int
    tokens: int
    micro: int
    currency: str


def read_bill(store: Path, run: Path | None = None) -> list[Entry]:
    """Return every query to paid teachers, oldest first; only those of a run folder if one is given.

    Raises:
        RunError: there is no such folder, and no queries of one.
    """
    if (store / LEDGER).is_file():
        with Ledger(store) as ledger:
            found = ledger.entries(None if run is None else asker(run))
    else:
        found = []
    if run is not None and not found and not run.is_dir():
        raise RunError(f"{run}: no such run folder, and none of this name queried a paid teacher")
    return found


def free_queries(store: Path) -> list[Entry]:
    """Return the queries to teachers that cost nothing, oldest first; their askers aren't on record."""
    if not (store / STORE).is_file():
        return []
    paid = {entry.teacher for entry in read_bill(store)}
    with EmbeddingStore(store, read_only=True) as embeddings:
        return [
            Entry(query.asked_at, query.teacher, "", query.kind, "answered", query.count, 0, 0, "", "", "")
            for query in embeddings.queries()
            if query.teacher not in paid
        ]


def asker(run: Path) -> str:
    """Return the name of a run folder on the bill."""
    return str(run.resolve())


def totals(entries: Sequence[Entry]) -> list[Total]:
    """Return the queries summed up by teacher, asker, day (local time), kind and how they ended."""
    groups: dict[tuple[str, str, str, str, str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        day = time.strftime("%Y-%m-%d", time.localtime(entry.at))
        groups[entry.teacher, entry.asker, day, entry.kind, entry.status, entry.currency].append(entry)
    return [
        Total(
            group[:5],
            len(queries),
            sum(query.count for query in queries),
            sum(query.tokens for query in queries),
            sum(query.micro for query in queries),
            group[5],
        )
        for group, queries in groups.items()
    ]


@dataclass(frozen=True)
class LedgerBudget:
    """The budget of one teacher: every reservation and settlement is a row of the ledger.

    Attributes:
        teacher: the teacher's name; the budget counts all that it was ever paid by this ledger.
        budget: in millionths; None: without limit, for teachers that cost nothing.
        asker: the run folder, or the command.
    """

    ledger: Ledger
    teacher: str
    currency: str
    budget: int | None
    asker: str

    @property
    def committed(self) -> int:
        """What is spent and reserved, in millionths."""
        return self.ledger.committed(self.teacher)

    def reserve(self, query: Query) -> int:
        """See `vl2v.teachers.paid.teacher.Budget`."""
        return self.ledger.reserve(self.teacher, self.asker, self.currency, query, self.budget)

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
        """See `vl2v.teachers.paid.teacher.Budget`."""
        over = self.ledger.settle(number, status, tokens, micro, model, note, self.budget)
        if over:
            raise BudgetReached(
                f"{self.teacher}: a query cost {money(over, self.currency)} more than the budget had left, by the "
                "vendor's own word; all embeddings are saved: check its bill and its prices, then raise --budget"
            )

    def key_of(self, digest: str) -> str | None:
        """See `vl2v.teachers.paid.teacher.Budget`."""
        return self.ledger.key_of(self.teacher, digest)

    def bill(self) -> str:
        """Return the bill so far in a few words: "0.12 of 5.00 USD"."""
        spent = money(self.committed, self.currency)
        return spent if self.budget is None else f"{spent} of {money(self.budget, self.currency)}"


@contextmanager
def with_budget(teacher: Teacher, session: Session, asker: str) -> Iterator[LedgerBudget | None]:
    """Give a paid teacher its budget while the block lasts; a teacher that costs nothing needs none."""
    paid = as_paid(teacher)
    with spending_of(teacher, session, asker) as spending:
        if paid is None:
            yield spending
            return
        paid.budget = spending
        try:
            yield spending
        finally:
            paid.budget = None


@contextmanager
def spending_of(teacher: Teacher, session: Session, asker: str) -> Iterator[LedgerBudget | None]:
    """Yield a paid teacher's spending, to read its bill while others query it; None: the teacher costs nothing."""
    paid, limit = as_paid(teacher), micro_of(session.budget)
    if paid is None:
        yield None
        return
    with Ledger(session.store) as ledger:
        yield LedgerBudget(ledger, teacher.name, paid.currency, limit, asker)


@dataclass(frozen=True)
class Cost:
    """The cost of queries to a paid teacher, forecast: an upper bound."""

    forecast: Forecast
    currency: str
    bill: str
    doubt: str

    def price(self) -> str:
        """Return the price in a few words."""
        amount = f"at most {money(self.forecast.micro, self.currency)}"
        return f"{amount}, unverified ({self.doubt})" if self.doubt else amount

    def summary(self) -> str:
        """Return two lines for people."""
        most = self.forecast
        time = f"{most.seconds / 60:.0f} min" if most.seconds >= 90 else f"{most.seconds:.0f} s"
        return (
            f"requests: {most.requests:,}, tokens: at most {most.tokens:,}, "
            f"price: {self.price()}, time at the rate limit: {time}\nspent so far: {self.bill}"
        )


def cost(plan: Plan, teacher: Teacher, spending: LedgerBudget | None) -> Cost | None:
    """Return the cost of the plan's queries and of a session's canaries; None for a teacher that costs nothing.

    Sizes are read of at most `SAMPLED` images, evenly drawn.

    Raises:
        TeacherError: no price is known.
    """
    paid = as_paid(teacher)
    if paid is None or spending is None:
        return None
    count = len(plan.pending)
    drawn = [plan.pending[i][0] for i in np.linspace(0, count - 1, min(count, SAMPLED)).astype(int)]
    sampled = [_size(plan.dataset, index) for index in drawn]
    sizes = (sampled[i % len(sampled)] for i in range(count))
    letters = ((len(text.encode()), 1) for text in plan.pending_texts)
    forecast = paid.forecast("image", sizes) + paid.forecast("text", letters)
    if plan.queries:
        canaries = [CANARY_TEXT, as_text(CANARY_IMAGE) if (as_text := getattr(paid, "image_as_text", None)) else None]
        forecast += paid.forecast("image", [CANARY_SIZE])
        forecast += sum((paid.forecast("text", [(len(text), 1)]) for text in canaries if text), Forecast(0, 0, 0, 0.0))
    bill = money(spending.committed, spending.currency)
    return Cost(forecast, paid.currency, bill, paid.doubt)


def _size(dataset: DomainDataset, index: int) -> tuple[int, int]:
    try:
        return image_size(dataset.read(index))
    except (ImageError, OSError):
        return (0, 0)
