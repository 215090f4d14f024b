"""What was queried, when, by whom and for how much: an append-only SQLite file beside the store, and the budget.

Money is committed before a query leaves and corrected when it has ended, so that a process killed in between has
counted too much rather than too little. Every row carries the balance after it, as in a bank's book: what
is spent and reserved of one teacher is a single query, and several processes can draw on one budget.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Self

from vl2v.embeddings.schema import COLUMNS, LEDGER_FORMAT, RESERVED, entry_crc, upgrade_ledger
from vl2v.errors import StoreError
from vl2v.privacy import without_secrets
from vl2v.sqlite import BUSY_SECONDS, closed_on_error, explained, journal, transaction
from vl2v.teachers.paid.limits import canonical_spec
from vl2v.teachers.paid.teacher import BudgetReached, Kind, Query, Status, money

FILE_NAME = "ledger.sqlite"
REMEMBERED = 24 * 3600.0  # seconds for which vendors that honour an Idempotency-Key usually know it

_INSERT = f"INSERT INTO entries ({COLUMNS}) VALUES ({', '.join('?' * 16)})"
_BALANCE = f"SELECT balance, {COLUMNS} FROM entries WHERE teacher = ? ORDER BY id DESC LIMIT 1"
_TEACHERS = """
WITH RECURSIVE names (teacher) AS (
    SELECT min(teacher) FROM entries
    UNION ALL SELECT (SELECT min(teacher) FROM entries WHERE teacher > names.teacher) FROM names
    WHERE names.teacher IS NOT NULL
) SELECT teacher FROM names WHERE teacher IS NOT NULL
"""

_RESERVATIONS = (
    "SELECT id, at, teacher, asker, kind, count, tokens, micro, currency, digest, key FROM entries "
    "WHERE status = 'reserved' ORDER BY id"
)
_LAST_OF = (
    "SELECT first.key, first.at, last.status FROM entries first "
    "LEFT JOIN entries last ON last.query = first.id AND last.status != 'reserved' "
    "WHERE first.digest = ? AND first.digest != '' AND first.teacher = ? ORDER BY first.id DESC LIMIT 1"
)
_ENDS = "SELECT query, at, status, tokens, micro, model, note FROM entries WHERE status != 'reserved'"

# One row a query: how it ended, or that it is still open, with what counts of its price.
_QUERIES = """
SELECT first.at, first.teacher, first.asker, first.kind, coalesce(last.status, first.status), first.count,
    coalesce(last.tokens, first.tokens), coalesce(last.micro, first.micro), first.currency,
    coalesce(last.model, ''), coalesce(last.note, '')
FROM entries first LEFT JOIN entries last ON last.query = first.id AND last.id != first.id
WHERE first.status = 'reserved' AND (?1 IS NULL OR first.asker = ?1) ORDER BY first.id
"""


@dataclass(frozen=True)
class Entry:
    """One query as the bill has it.

    Attributes:
        at: when it left, seconds since the epoch.
        asker: the run folder, or the command.
        kind: "image" or "text".
        status: how it ended; "reserved": in flight, or the process was killed; counted in full.
        count: how many images or texts.
        tokens: as the vendor reported them, else at most.
        micro: what it cost, in millionths of the currency.
        currency: "USD" and the like.
        model: the model's name in the reply.
    """

    at: float
    teacher: str
    asker: str
    kind: Kind
    status: str
    count: int
    tokens: int
    micro: int
    currency: str
    model: str
    note: str

    @classmethod
    def columns(cls) -> list[str]:
        """Return the names of the attributes."""
        return [field.name for field in fields(cls)]

    def row(self) -> tuple[object, ...]:
        """Return the values, in the order of `columns`."""
        return astuple(self)


class Ledger:
    """The bills of all teachers, in the store's folder; safe for threads and for several processes.

    Args:
        path: the folder, made if it is not there.

    Raises:
        StoreError: not a ledger, corrupt, unwritable, or of a newer schema.
    """

    def __init__(self, path: Path) -> None:
        self.file = Path(path) / FILE_NAME
        self._lock = threading.Lock()
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.file}: cannot be made ({error.strerror}): choose another folder") from None
        with explained(self.file):
            self._db = sqlite3.connect(self.file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            with closed_on_error(self._db):
                self._prepare()
                self._check_count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def committed(self, teacher: str) -> int:
        """Return what is spent and reserved of a teacher, in millionths of its currency."""
        with explained(self.file):
            return self._spent(teacher)

    def entries(self, asker: str | None = None) -> list[Entry]:
        """Return every query, oldest first; only one asker's if wanted."""
        with explained(self.file):
            for row in self._db.execute(f"SELECT {COLUMNS} FROM entries"):
                self._check(row)
            rows = self._db.execute(_QUERIES, (asker,)).fetchall()
        return [Entry(at, canonical_spec(without_secrets(teacher)), *row) for at, teacher, *row in rows]

    def reserve(self, teacher: str, asker: str, currency: str, query: Query, budget: int | None) -> int:
        """Commit a query's price durably before it leaves; return its number.

        Raises:
            BudgetReached: it would pass the budget; nothing is written.
        """
        with explained(self.file), self._lock, transaction(self._db):
            before = self._spent(teacher)
            if budget is not None and before + query.micro > budget:
                raise BudgetReached(
                    f"{teacher}: {money(before, currency)} of {money(budget, currency)} are spent or reserved, the "
                    f"next query may cost {money(query.micro, currency)}; all embeddings are saved: raise --budget"
                )
            queried = (query.kind, query.count, query.tokens, query.micro)
            return self._reserve(time.time(), teacher, asker, *queried, currency, query.digest, query.key)

    def key_of(self, teacher: str, digest: str) -> str | None:
        """Return the Idempotency-Key of a request of the last day whose embeddings never arrived; else None."""
        with explained(self.file), self._lock:
            row = self._db.execute(_LAST_OF, (digest, teacher)).fetchone()
        if row is None or not row[0] or row[2] not in (None, "lost") or row[1] < time.time() - REMEMBERED:
            return None
        return str(row[0])

    def settle(
        self,
        number: int,
        status: Status,
        tokens: int | None,
        micro: int | None,
        model: str = "",
        note: str = "",
        budget: int | None = None,
    ) -> int:
        """Write how a query ended; what is None stays as it was reserved, what was rejected costs nothing.

        Args:
            micro: the price; where it is higher than reserved, what passes the budget isn't counted.
            budget: None: without limit.

        Returns:
            What wasn't counted, in millionths.
        """
        with explained(self.file), self._lock, transaction(self._db):
            over = 0
            if micro is not None and budget is not None:
                teacher, most = self._db.execute(
                    "SELECT teacher, micro FROM entries WHERE id = ?", (number,)
                ).fetchone()
                over = max(0, micro - most - max(0, budget - self._balance(teacher)))
                micro -= over
            self._settle(number, time.time(), status, tokens, micro, model, note)
        return over

    def absorb(self, other: Ledger) -> int:
        """Copy another ledger's queries that aren't here yet, and how open ones ended; return how many are new.

        A query is recognised by when it left, its run, teacher and kind, and what was reserved: copying a ledger
        again counts nothing twice.
        """
        with explained(other.file):
            reservations = other._db.execute(_RESERVATIONS).fetchall()
            ends = {query: end for query, *end in other._db.execute(_ENDS)}
        new = 0
        with explained(self.file), self._lock, transaction(self._db):
            here = {tuple(facts): number for number, *facts in self._db.execute(_RESERVATIONS)}
            ended = {query for query, *_ in self._db.execute(_ENDS)}
            for theirs, *facts in reservations:
                number = here.get(tuple(facts))
                if number is None:
                    number = self._reserve(*facts)
                    new += 1
                if theirs in ends and number not in ended:
                    self._settle(number, *ends[theirs])
        return new

    # Inside a transaction

    def _spent(self, teacher: str) -> int:
        """Return what is spent and reserved of a teacher, however its address was spelt."""
        name = canonical_spec(teacher)
        names = [one for (one,) in self._db.execute(_TEACHERS) if canonical_spec(without_secrets(one)) == name]
        return sum(map(self._balance, names))

    def _balance(self, teacher: str) -> int:
        row = self._db.execute(_BALANCE, (teacher,)).fetchone()
        if row is None:
            return 0
        self._check(row[1:])
        return int(row[0])

    def _check(self, row: tuple[object, ...]) -> None:
        if row[-1] is not None and row[-1] != entry_crc(row[:-1]):
            raise StoreError(f"{self.file}: the entry of query {row[1]} is damaged: restore a backup, or move it aside")

    def _insert(self, row: tuple[object, ...]) -> None:
        crc = entry_crc(row)
        number = self._db.execute(_INSERT, (*row, crc)).lastrowid
        self._db.execute("INSERT OR REPLACE INTO tail VALUES (1, ?, ?)", (number, crc))

    def _reserve(
        self,
        at: float,
        teacher: str,
        asker: str,
        kind: Kind,
        count: int,
        tokens: int,
        micro: int,
        currency: str,
        digest: str,
        key: str,
    ) -> int:
        (number,) = self._db.execute("SELECT coalesce(max(id), 0) + 1 FROM entries").fetchone()
        row = (at, number, teacher, asker, kind, RESERVED, count, tokens, micro, currency)
        self._insert((*row, self._balance(teacher) + micro, "", "", digest, key))
        return int(number)

    def _settle(
        self, number: int, at: float, status: Status, tokens: int | None, micro: int | None, model: str, note: str
    ) -> None:
        reserved = self._db.execute(
            "SELECT teacher, asker, kind, count, tokens, micro, currency FROM entries WHERE id = ?", (number,)
        ).fetchone()
        teacher, asker, kind, count, most_tokens, most, currency = reserved
        if status == "rejected":
            tokens, micro = 0, 0
        tokens, micro = (most_tokens if tokens is None else tokens), (most if micro is None else micro)
        row = (at, number, teacher, asker, kind, status, count, tokens, micro, currency)
        self._insert((*row, self._balance(teacher) - most + micro, model, note, "", ""))

    def _prepare(self) -> None:
        journal(self._db, self.file)
        self._db.execute("PRAGMA synchronous = FULL")
        LEDGER_FORMAT.make(self._db, self.file)
        upgrade_ledger(self._db)

    def _check_count(self) -> None:
        """Check that no entry is gone: they are numbered without gaps, and `tail` says which is the last.

        There may be more than that: from a process of an earlier version that has had the ledger open since.
        """
        count, last, entries, crc, last_crc = self._db.execute(
            "SELECT count(*), coalesce(max(id), 0), (SELECT entries FROM tail), (SELECT crc FROM tail), "
            "(SELECT crc FROM entries ORDER BY id DESC LIMIT 1) FROM entries"
        ).fetchone()
        written = max(last, entries or 0)
        if count != written:
            raise StoreError(
                f"{self.file}: {written - count} of {written} entries are gone, so what was spent isn't known: restore "
                "a backup, or move it aside"
            )
        if count == entries and crc != last_crc:
            raise StoreError(f"{self.file}: the last entry is damaged: restore a backup, or move it aside")
