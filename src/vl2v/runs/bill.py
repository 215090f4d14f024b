"""The bill: what teachers were asked, by whom, when and for how much."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vl2v.embeddings import EmbeddingStore, Entry, Ledger
from vl2v.embeddings.ledger import FILE_NAME as LEDGER
from vl2v.embeddings.store import FILE_NAME as ANSWERS
from vl2v.errors import RunError


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
        RunError: there is no such folder, and none that asked anything.
    """
    if (store / LEDGER).is_file():
        with Ledger(store) as ledger:
            found = ledger.entries(None if run is None else asker(run))
    else:
        found = []
    if run is not None and not found and not run.is_dir():
        raise RunError(f"{run}: no such run folder, and none of this name asked a paid teacher")
    return found


def free_queries(store: Path) -> list[Entry]:
    """Return what teachers were asked that cost nothing, oldest first; who asked them isn't on record."""
    if not (store / ANSWERS).is_file():
        return []
    paid = {entry.teacher for entry in read_bill(store)}
    with EmbeddingStore(store, read_only=True) as answers:
        return [
            Entry(asked.asked_at, asked.teacher, "", asked.kind, "answered", asked.count, 0, 0, "", "", "")
            for asked in answers.queries()
            if asked.teacher not in paid
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
