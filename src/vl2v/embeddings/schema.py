"""The files of the store and of its ledger: their tables, how earlier versions become today's, keys and checksums.

Tables and columns have the names of the first version: an embedding is an `answers` row, a batch of queries a
`questions` row, and an embedding's index entry a `places` row.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vl2v.privacy import without_secrets
from vl2v.sqlite import Format, transaction

KEY_BYTES = 16
RESERVED = "reserved"  # the status of a query that has left
CLEAN = "clean"  # the view that is the image file as it is
UNNAMED = ""  # the view of images that were saved before version 3

SCHEMA = """
CREATE TABLE teachers (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    dim INTEGER NOT NULL,
    logit_scale REAL,
    same_as INTEGER,
    answers INTEGER NOT NULL DEFAULT 0,
    crc INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE questions (
    id INTEGER PRIMARY KEY,
    asked_at REAL NOT NULL,
    teacher INTEGER NOT NULL REFERENCES teachers (id),
    kind TEXT NOT NULL CHECK (kind IN ('image', 'text')),
    count INTEGER NOT NULL
) STRICT;
CREATE TABLE answers (
    id INTEGER PRIMARY KEY,
    question INTEGER NOT NULL REFERENCES questions (id),
    key BLOB NOT NULL,
    crc INTEGER NOT NULL,
    vector BLOB NOT NULL,
    view INTEGER REFERENCES views (id)
) STRICT;
CREATE TABLE views (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE places (
    teacher INTEGER NOT NULL, half_key INTEGER NOT NULL, answer INTEGER NOT NULL,
    PRIMARY KEY (teacher, half_key, answer)
) STRICT, WITHOUT ROWID;
CREATE TABLE new_places (
    teacher INTEGER NOT NULL, half_key INTEGER NOT NULL, answer INTEGER NOT NULL,
    PRIMARY KEY (teacher, half_key, answer)
) STRICT, WITHOUT ROWID;
"""
FORMAT = Format("an embedding store of vl2v: choose another folder", 0x564C3256, 3, SCHEMA)  # "VL2V"
_FROM_1 = (  # version 1 had no counts, no checksums of teachers, and those of embeddings didn't cover the teacher
    "ALTER TABLE teachers ADD COLUMN same_as INTEGER",
    "ALTER TABLE teachers ADD COLUMN answers INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE teachers ADD COLUMN crc INTEGER NOT NULL DEFAULT 0",
    "UPDATE teachers SET name = clean_name(name), answers = (SELECT count(*) FROM answers "
    "JOIN questions ON questions.id = question WHERE questions.teacher = teachers.id)",
    "UPDATE teachers SET crc = teacher_crc(fingerprint, name, dim, logit_scale, same_as, answers)",
    "UPDATE answers SET crc = newer_crc(crc, key, vector, (SELECT fingerprint FROM questions JOIN teachers "
    "ON teachers.id = questions.teacher WHERE questions.id = question))",
)
_FROM_2 = (  # version 2 didn't say which view of an image an embedding is of
    "CREATE TABLE views (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
    "ALTER TABLE answers ADD COLUMN view INTEGER REFERENCES views (id)",
    f"INSERT INTO views (name) SELECT '{UNNAMED}' WHERE EXISTS (SELECT 1 FROM questions WHERE kind = 'image')",
    "PRAGMA user_version = 3",
)


_LEDGER = """
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    query INTEGER NOT NULL,
    teacher TEXT NOT NULL,
    asker TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('image', 'text')),
    status TEXT NOT NULL CHECK (status IN ('reserved', 'answered', 'wrong', 'lost', 'rejected')),
    count INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    micro INTEGER NOT NULL,
    currency TEXT NOT NULL,
    balance INTEGER NOT NULL,
    model TEXT NOT NULL,
    note TEXT NOT NULL,
    digest TEXT NOT NULL DEFAULT '',
    key TEXT NOT NULL DEFAULT '',
    crc INTEGER
) STRICT;
CREATE INDEX by_teacher ON entries (teacher, id);
CREATE UNIQUE INDEX once ON entries (query) WHERE status != 'reserved';
CREATE INDEX by_digest ON entries (digest) WHERE digest != '';
CREATE TRIGGER kept BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_FIXED = "CREATE TRIGGER fixed BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
# How many entries there are, and the checksum of the last: written with each, so that one cut off at the end is missed.
_TAIL = (
    "CREATE TABLE IF NOT EXISTS tail (one INTEGER PRIMARY KEY CHECK (one = 1), entries INTEGER NOT NULL, crc INTEGER)"
)
_LEDGER += f"{_FIXED};\n{_TAIL} STRICT"
LEDGER_FORMAT = Format("a ledger of vl2v: move it aside", 0x564C3242, 5, _LEDGER)  # "VL2B"
_LEDGER_FROM_1 = (
    "ALTER TABLE entries ADD COLUMN digest TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE entries ADD COLUMN key TEXT NOT NULL DEFAULT ''",
    "CREATE INDEX by_digest ON entries (digest) WHERE digest != ''",
    "PRAGMA user_version = 2",
)
_LEDGER_FROM_4 = (_TAIL, "INSERT OR REPLACE INTO tail SELECT 1, id, crc FROM entries ORDER BY id DESC LIMIT 1")
_LEDGER_FROM_2 = (
    "ALTER TABLE entries ADD COLUMN crc INTEGER",
    "PRAGMA user_version = 3",
)  # rows before have no checksum

COLUMNS = (
    "at, query, teacher, asker, kind, status, count, tokens, micro, currency, balance, model, note, digest, key, crc"
)
_WORDS = ("teacher", "asker", "model", "note")  # earlier versions let addresses with passwords into these


def version_of(db: sqlite3.Connection) -> int:
    """Return the version of a file's tables."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def upgrade(db: sqlite3.Connection) -> None:
    """Bring a file of an earlier version to today's; what it holds stays, what was damaged stays damaged."""
    db.create_function("clean_name", 1, without_secrets, deterministic=True)
    db.create_function("teacher_crc", 6, teacher_crc, deterministic=True)
    db.create_function("newer_crc", 4, _newer_crc, deterministic=True)
    db.execute("PRAGMA secure_delete = ON")  # of a name with a password nothing stays
    with transaction(db):
        version = version_of(db)  # another process may have been faster
        for statement in (*(_FROM_1 if version < 2 else ()), *(_FROM_2 if version < 3 else ())):
            db.execute(statement)
    db.execute("PRAGMA secure_delete = OFF")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def image_key(sha256: bytes, view: str = CLEAN) -> bytes:
    """Return the 16-byte key of one view of an image, from the SHA-256 of the image file's bytes."""
    if len(sha256) != 32:
        raise ValueError(f"a SHA-256 has 32 bytes, not {len(sha256)}")
    return hashlib.blake2b(sha256 + view.encode(), digest_size=KEY_BYTES, person=b"vl2v image").digest()


def text_key(text: str) -> bytes:
    """Return the 16-byte key of a text."""
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES, person=b"vl2v text").digest()


def half_of(key: bytes) -> int:
    """Return the first half of a key as the signed integer that SQLite stores and compares fastest."""
    return int.from_bytes(key[:8], "big", signed=True)


def halves_of(keys: Sequence[bytes]) -> str:
    """Return the first halves as JSON, which is how a list of any length becomes one parameter."""
    joined = b"".join(keys)
    if len(joined) != KEY_BYTES * len(keys):
        raise ValueError(f"a key has {KEY_BYTES} bytes: make it with image_key or text_key")
    return str(np.frombuffer(joined, dtype=">i8")[::2].tolist())


def crc(fingerprint: str, key: bytes, vector: bytes) -> int:
    """CRC-32 over teacher, key and vector, as the signed integer that takes SQLite the fewest bytes."""
    return zlib.crc32(vector, zlib.crc32(key, zlib.crc32(fingerprint.encode()) if fingerprint else 0)) - 2**31


def _newer_crc(old: int, key: bytes, vector: bytes, fingerprint: str | None) -> int:
    """Return the checksum of an embedding of version 1; where that was wrong, this one is, too."""
    newer = crc(fingerprint or "?", key, vector)
    return newer if old == crc("", key, vector) else newer ^ 1


def teacher_crc(
    fingerprint: str, name: str, dim: int, logit_scale: float | None, same_as: int | None, answers: int
) -> int:
    """CRC-32 over a teacher's row."""
    return zlib.crc32(repr((fingerprint, name, dim, logit_scale, same_as, answers)).encode())


def entry_crc(row: tuple[object, ...]) -> int:
    """Return the checksum of a row, times as SQLite gives them back."""
    return zlib.crc32(repr((float(str(row[0])), *row[1:])).encode())


def upgrade_ledger(db: sqlite3.Connection) -> None:
    """Bring a ledger of an earlier version to today's."""
    for version, steps in ((1, _LEDGER_FROM_1), (2, _LEDGER_FROM_2)):
        if version_of(db) == version:
            with transaction(db):
                for statement in steps if version_of(db) == version else ():  # another process may have been faster
                    db.execute(statement)
    if version_of(db) == 3:
        _without_passwords(db)
    if version_of(db) < 5:
        with transaction(db):
            for statement in _LEDGER_FROM_4 if (version := version_of(db)) < 5 else ():
                db.execute(statement)
            if version == 4:
                db.execute("PRAGMA user_version = 5")


def _without_passwords(db: sqlite3.Connection) -> None:
    """Take passwords and keys out of the addresses that an earlier version wrote, and their traces out of the file.

    It counts as done when no copy is left, so that what was killed or held up is done again.
    """
    with transaction(db):
        db.execute("DROP TRIGGER fixed")
        merged: set[str] = set()
        for number, *row in db.execute(f"SELECT id, {COLUMNS} FROM entries").fetchall():
            words = dict(zip(COLUMNS.split(", "), row, strict=True))
            clean = words | {name: without_secrets(words[name]) for name in _WORDS}
            if clean != words:
                merged.add(clean["teacher"])
                _rewrite(db, number, words, clean)
        for teacher in merged:
            _rebalance(db, teacher)
        db.execute(_FIXED)
    db.execute("VACUUM")
    (waits, *_) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if not waits:  # for someone who still reads the old pages
        db.execute("PRAGMA user_version = 4")


def _rewrite(db: sqlite3.Connection, number: int, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Change an entry and its checksum; where that was wrong, or there was none, it stays so."""
    *old, crc = before.values()
    *new, _ = after.values()
    if crc is not None and crc == entry_crc(tuple(old)):
        crc = entry_crc(tuple(new))
    names = ", ".join(f"{name} = ?" for name in after)
    db.execute(f"UPDATE entries SET {names} WHERE id = ?", (*new, crc, number))


def _rebalance(db: sqlite3.Connection, teacher: str) -> None:
    """Have the balance of a teacher run through all its entries: it may have had several passwords."""
    balance = 0
    reserved: dict[int, int] = {}
    entries = f"SELECT id, {COLUMNS} FROM entries WHERE teacher = ? ORDER BY id"
    for number, *row in db.execute(entries, (teacher,)).fetchall():
        words = dict(zip(COLUMNS.split(", "), row, strict=True))
        query, micro = words["query"], words["micro"]
        if words["status"] == RESERVED:
            reserved[query] = micro
            balance += micro
        else:
            balance += micro - reserved.get(query, 0)
        if words["balance"] != balance:
            _rewrite(db, number, words, words | {"balance": balance})
