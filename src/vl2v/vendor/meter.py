"""What was sold: an append-only SQLite file, written before the bytes leave."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vl2v.errors import StoreError
from vl2v.sqlite import BUSY_SECONDS, journal, statements, transaction
from vl2v.vendor.keys import Key

Kind = Literal["image", "text"]
MINUTE = 60.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sold (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    client TEXT NOT NULL,
    kind TEXT NOT NULL,
    count INTEGER NOT NULL,
    micro INTEGER NOT NULL,
    request TEXT NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS kept BEFORE DELETE ON sold BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS fixed BEFORE UPDATE ON sold BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END
"""


@dataclass(frozen=True)
class Sale:
    """One request that is answered: of whom, what, how many, for how much, under which number."""

    client: str
    kind: Kind
    count: int
    micro: int
    request: str


class Meter:
    """Quotas, rates and the ledger; safe for threads.

    Args:
        file: the ledger, made if it is not there.

    Raises:
        StoreError: it can't be opened or written.
    """

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()  # of the counts
        self._writing = threading.Lock()  # of the file: a commit waits for the disk, the counts don't
        self._held: dict[str, int] = defaultdict(int)  # questions that are being worked on
        self._requests: dict[str, deque[float]] = defaultdict(deque)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            journal(self._db, file)
            self._db.execute("PRAGMA synchronous = FULL")
            for statement in statements(_SCHEMA):
                self._db.execute(statement)
            rows = self._db.execute("SELECT client, sum(count) FROM sold GROUP BY client")
            self._sold: dict[str, int] = defaultdict(int, rows)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{file}: can't be a ledger ({error}); choose another --ledger") from None

    def wait(self, key: Key) -> float:
        """Count a request; return 0, or the seconds until the key's rate allows one (it isn't counted then)."""
        if key.rate is None:
            return 0.0
        now = time.monotonic()
        with self._lock:
            sent = self._requests[key.name]
            while sent and sent[0] <= now - MINUTE:
                sent.popleft()
            if len(sent) >= key.rate:
                return sent[0] + MINUTE - now
            sent.append(now)
        return 0.0

    def hold(self, key: Key, count: int) -> bool:
        """Set questions aside from the key's quota while they are worked on; False: it doesn't suffice."""
        with self._lock:
            taken = self._sold[key.name] + self._held[key.name]
            if key.quota is not None and taken + count > key.quota:
                return False
            self._held[key.name] += count
        return True

    def release(self, key: Key, count: int) -> None:
        """Give back what was held: the questions came to nothing."""
        with self._lock:
            self._held[key.name] -= count

    def write(self, sales: Sequence[Sale]) -> None:
        """Write sales durably, all in one commit; what was held for them is sold then.

        Raises:
            sqlite3.Error: they can't be written; none of them is sold.
        """
        now = time.time()
        rows = [(now, sale.client, sale.kind, sale.count, sale.micro, sale.request) for sale in sales]
        with self._writing, transaction(self._db):
            self._db.executemany(
                "INSERT INTO sold (at, client, kind, count, micro, request) VALUES (?, ?, ?, ?, ?, ?)", rows
            )
        with self._lock:
            for sale in sales:
                self._held[sale.client] -= sale.count
                self._sold[sale.client] += sale.count

    def sold(self, client: str) -> int:
        """Return how many questions a client was answered, ever."""
        with self._lock:
            return self._sold[client]

    def close(self) -> None:
        """Close the file."""
        self._db.close()
