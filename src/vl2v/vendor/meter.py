"""The vendor's ledger: a SQLite file of sales, written before a response is sent, with recent replies for retries."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vl2v.errors import StoreError
from vl2v.sqlite import BUSY_SECONDS, journal, statements, transaction
from vl2v.vendor.keys import Key

Kind = Literal["image", "text"]
MINUTE = 60.0
SAVED = 24 * 3600.0  # seconds that a reply is saved for its Idempotency-Key
REPLIES = 256 * 2**20  # bytes of a client's saved replies; the oldest go first
OVERHEAD = 512  # bytes of a saved reply besides its embeddings
VERSION = 3  # 1 had no replies, 2 an index over them
PAGE_BYTES = 16384  # several replies; a commit writes whole pages

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
CREATE TRIGGER IF NOT EXISTS fixed BEFORE UPDATE ON sold BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TABLE IF NOT EXISTS saved_replies (
    id INTEGER PRIMARY KEY REFERENCES sold (id),
    client TEXT NOT NULL,
    digest BLOB NOT NULL,
    asked BLOB NOT NULL,
    vectors BLOB NOT NULL
) STRICT
"""
# Of a connection: a sale with its reply, all of a batch in one statement, which is a commit of its own. Each further
# statement would let go of the interpreter's lock several times, and wait for it again.
_SALE = """
CREATE TEMP VIEW sale AS SELECT sold.*, digest, asked, vectors FROM sold LEFT JOIN saved_replies USING (id);
CREATE TEMP TRIGGER sell INSTEAD OF INSERT ON sale BEGIN
    INSERT INTO sold VALUES (new.id, new.at, new.client, new.kind, new.count, new.micro, new.request);
    INSERT INTO saved_replies
        SELECT new.id, new.client, new.digest, new.asked, new.vectors WHERE new.digest IS NOT NULL;
END
"""
_ROW = f"({', '.join('?' * 10)})"
_FROM_2 = ("INSERT INTO saved_replies SELECT id, client, digest, asked, vectors FROM replies", "DROP TABLE replies")


@dataclass(slots=True)
class Sale:
    """A request that was answered.

    Attributes:
        client: the key's name.
        kind: of the items.
        count: of items.
        micro: their price, in millionths of the currency.
        request: its id.
        key_digest: of the client and the Idempotency-Key; empty where there is none.
        body_digest: of the request's body.
        at: when it was written; 0 before.
    """

    client: str
    kind: Kind
    count: int
    micro: int
    request: str
    key_digest: bytes = b""
    body_digest: bytes = b""
    at: float = 0.0


@dataclass
class _Saved:
    """A client's saved replies, the oldest first."""

    replies: deque[tuple[int, float, int, bytes]]  # id, when, bytes, digest
    bytes: int = 0


class Meter:
    """Quotas, rates, the ledger and saved replies; safe for threads.

    Vectors are those of a request one after another, little-endian float32.

    Args:
        file: the ledger, made if it is not there.

    Raises:
        StoreError: it can't be opened or written, or was written by a newer vl2v.
    """

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()  # of the counts
        self._writing = threading.Lock()  # of the file: a commit waits for the disk, the counts don't
        self._held: dict[str, int] = defaultdict(int)  # reserved items
        self._requests: dict[str, deque[float]] = defaultdict(deque)
        self._saved: dict[str, _Saved] = defaultdict(lambda: _Saved(deque()))
        self._numbers: dict[bytes, int] = {}  # of all saved replies, by digest: an index would cost a page each
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._db.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a new file
            journal(self._db, file)
            self._db.execute("PRAGMA synchronous = FULL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise StoreError(f"{file}: was written by a newer vl2v (schema {version}): upgrade vl2v")
            with transaction(self._db):
                for statement in (*statements(_SCHEMA), *(_FROM_2 if version == 2 else ())):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")
            self._db.executescript(_SALE)
            self._last = self._newest()
            self._reading = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            rows = self._db.execute("SELECT client, sum(count) FROM sold GROUP BY client")
            self._sold: dict[str, int] = defaultdict(int, rows)
            found = (
                "SELECT r.client, r.id, s.at, length(r.vectors), r.digest FROM saved_replies r JOIN sold s USING (id) "
            )
            for row in self._db.execute(found + "ORDER BY r.id"):
                self._note(*row)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{file}: can't be a ledger ({error}); choose another --ledger") from None

    def wait(self, key: Key) -> float:
        """Count a request and return 0; or return the seconds until the key's rate allows it, without counting it."""
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
        """Reserve items of the key's quota while they are processed; return whether it suffices."""
        with self._lock:
            taken = self._sold[key.name] + self._held[key.name]
            if key.quota is not None and taken + count > key.quota:
                return False
            self._held[key.name] += count
        return True

    def release(self, key: Key, count: int) -> None:
        """Give the reserved items back: the request failed."""
        with self._lock:
            self._held[key.name] -= count

    def write(self, sales: Sequence[tuple[Sale, bytes]]) -> None:
        """Write sales durably, all in one commit, with their vectors where they have an Idempotency-Key.

        Their reservations become sales, and `at` is set.

        Raises:
            sqlite3.Error: they can't be written; none of them is sold.
        """
        now = time.time()
        with self._writing:
            self._forget(self._expired(now))
            try:
                self._insert(sales, now)
            except sqlite3.IntegrityError:  # another server writes to the same ledger
                self._last = self._newest()
                self._insert(sales, now)
            for number, (sale, vectors) in enumerate(sales, self._last + 1):
                if sale.key_digest:
                    self._note(sale.client, number, now, len(vectors), sale.key_digest)
            self._last += len(sales)
        with self._lock:
            for sale, _ in sales:
                sale.at = now
                self._held[sale.client] -= sale.count
                self._sold[sale.client] += sale.count

    def reply(self, digest: bytes) -> tuple[Sale, bytes] | None:
        """Return the sale under an Idempotency-Key and its vectors; None where there is none (any more).

        Raises:
            sqlite3.Error: the file can't be read.
        """
        number = self._numbers.get(digest)
        if number is None:
            return None
        row: Any = self._reading.execute(
            "SELECT s.client, s.kind, s.count, s.micro, s.request, r.digest, r.asked, s.at, r.vectors "
            "FROM saved_replies r JOIN sold s USING (id) WHERE r.id = ?",
            (number,),
        ).fetchone()
        if row is None or row[7] <= time.time() - SAVED:
            return None
        return Sale(*row[:-1]), row[-1]

    def sold(self, client: str) -> int:
        """Return how many items a client has bought in all."""
        with self._lock:
            return self._sold[client]

    def held(self, client: str) -> int:
        """Return how many items of a client are reserved: their request isn't answered yet."""
        with self._lock:
            return self._held[client]

    def close(self) -> None:
        """Close the file."""
        self._reading.close()
        self._db.close()

    def _newest(self) -> int:
        (number,) = self._db.execute("SELECT coalesce(max(id), 0) FROM sold").fetchone()
        return int(number)

    def _insert(self, sales: Sequence[tuple[Sale, bytes]], now: float) -> None:
        values: list[Any] = []
        for number, (sale, vectors) in enumerate(sales, self._last + 1):
            values += (number, now, sale.client, sale.kind, sale.count, sale.micro, sale.request)
            values += (sale.key_digest, sale.body_digest, vectors) if sale.key_digest else (None, None, None)
        self._db.execute(f"INSERT INTO sale VALUES {', '.join([_ROW] * len(sales))}", values)

    def _forget(self, gone: list[tuple[str, int]]) -> None:
        """Delete saved replies of these clients and ids."""
        if not gone:
            return
        with transaction(self._db):
            self._db.executemany("DELETE FROM saved_replies WHERE id = ?", [(number,) for _, number in gone])
        for client, _ in gone:
            saved = self._saved[client]
            number, _, size, digest = saved.replies.popleft()
            saved.bytes -= size
            if self._numbers.get(digest) == number:
                del self._numbers[digest]

    def _note(self, client: str, number: int, at: float, size: int, digest: bytes) -> None:
        saved = self._saved[client]
        saved.replies.append((number, at, size + OVERHEAD, digest))
        self._numbers[digest] = number
        saved.bytes += size + OVERHEAD

    def _expired(self, now: float) -> list[tuple[str, int]]:
        """Return client and id of the replies that are too old or over their client's limit."""
        gone = []
        for client, saved in self._saved.items():
            left = saved.bytes
            for number, at, size, _ in saved.replies:
                if at > now - SAVED and left <= REPLIES:
                    break
                gone.append((client, number))
                left -= size
        return gone


def sums(file: Path) -> dict[str, dict[str, tuple[int, int, int]]]:
    """Return what each client bought: requests, items and millionths of the currency, by kind.

    Raises:
        StoreError: there is no ledger, or it can't be read.
    """
    if not file.is_file():
        raise StoreError(f"{file}: there is no such ledger; name it with --ledger")
    found: dict[str, dict[str, tuple[int, int, int]]] = defaultdict(dict)
    query = (
        "SELECT client, kind, count(*), sum(count), sum(micro) FROM sold GROUP BY client, kind ORDER BY client, kind"
    )
    try:
        db = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=BUSY_SECONDS)
        try:
            for client, kind, requests, count, micro in db.execute(query):
                found[client][kind] = requests, count, micro
        finally:
            db.close()
    except sqlite3.Error as error:
        raise StoreError(f"{file}: can't be read as a ledger ({error})") from None
    return dict(found)
