"""Every answer a teacher ever gave, kept in one SQLite file: durable, checksummed, never asked for twice.

The layout was chosen by measuring; docs/store.md has the figures. Rows are appended in the order of arrival, so that
the large part of the file never moves. Keys are random, so an index over them is written all over its pages; it is
kept narrow (the first half of the key), and new entries gather in a small one that joins the large one now and then.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vl2v.embeddings.ledger import FILE_NAME as LEDGER
from vl2v.errors import StoreError
from vl2v.privacy import without_secrets
from vl2v.sqlite import BUSY_SECONDS, Format, explained, is_shared, journal, transaction
from vl2v.teachers.paid.teacher import SAME

Kind = Literal["image", "text"]

FILE_NAME = "answers.sqlite"
KEY_BYTES = 16
PAGE_BYTES = 16384
GATHERED = 8192  # entries of `new_places` that join `places` at a time
CHUNK = 1000  # rows a statement: enough to amortise the statement, little enough to keep memory flat

_SCHEMA = """
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
    vector BLOB NOT NULL
) STRICT;
CREATE TABLE places (
    teacher INTEGER NOT NULL, half_key INTEGER NOT NULL, answer INTEGER NOT NULL,
    PRIMARY KEY (teacher, half_key, answer)
) STRICT, WITHOUT ROWID;
CREATE TABLE new_places (
    teacher INTEGER NOT NULL, half_key INTEGER NOT NULL, answer INTEGER NOT NULL,
    PRIMARY KEY (teacher, half_key, answer)
) STRICT, WITHOUT ROWID;
"""
_FORMAT = Format("an embedding store of vl2v: choose another folder", 0x564C3256, 2, _SCHEMA)  # "VL2V"
_FROM_1 = (  # version 1 had no counts, no checksums of teachers, and those of answers didn't cover the teacher
    "ALTER TABLE teachers ADD COLUMN same_as INTEGER",
    "ALTER TABLE teachers ADD COLUMN answers INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE teachers ADD COLUMN crc INTEGER NOT NULL DEFAULT 0",
    "UPDATE teachers SET name = clean_name(name), answers = (SELECT count(*) FROM answers "
    "JOIN questions ON questions.id = question WHERE questions.teacher = teachers.id)",
    "UPDATE teachers SET crc = teacher_crc(fingerprint, name, dim, logit_scale, same_as, answers)",
    "UPDATE answers SET crc = newer_crc(crc, key, vector, (SELECT fingerprint FROM questions JOIN teachers "
    "ON teachers.id = questions.teacher WHERE questions.id = question))",
    "PRAGMA user_version = 2",
)

_FIND = """
SELECT key, {columns} FROM (
    SELECT answer, teacher FROM places
    WHERE teacher IN (SELECT value FROM json_each(?1)) AND half_key IN (SELECT value FROM json_each(?2))
    UNION ALL
    SELECT answer, teacher FROM new_places
    WHERE teacher IN (SELECT value FROM json_each(?1)) AND half_key IN (SELECT value FROM json_each(?2))
) CROSS JOIN answers ON answers.id = answer
"""
_TEACHER = "id, fingerprint, name, dim, logit_scale, same_as, answers, crc"

log = logging.getLogger(__name__)


class TeacherFacts(Protocol):
    """What the store remembers of a teacher; every `vl2v.teachers.Teacher` has these."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def dim(self) -> int: ...  # noqa: D102
    @property
    def logit_scale(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True)
class TeacherRecord:
    """A teacher as the store remembers it, without its weights."""

    fingerprint: str
    name: str
    dim: int
    logit_scale: float | None


@dataclass(frozen=True)
class _Row:
    """A teacher's row: under which numbers its answers stand, its own and those of its address's other spellings."""

    number: int
    record: TeacherRecord
    numbers: tuple[int, ...]

    @property
    def group(self) -> str:
        """The numbers, as a parameter of `_FIND`."""
        return json.dumps(self.numbers)


@dataclass(frozen=True)
class Question:
    """One batch that was asked: when (seconds since the epoch), of whom, what kind, and how many."""

    asked_at: float
    fingerprint: str
    teacher: str
    kind: Kind
    count: int


def image_key(sha256: bytes, view: str = "clean") -> bytes:
    """Return the 16-byte key of one view of an image, from the SHA-256 of the image file's bytes."""
    if len(sha256) != 32:
        raise ValueError(f"a SHA-256 has 32 bytes, not {len(sha256)}")
    return hashlib.blake2b(sha256 + view.encode(), digest_size=KEY_BYTES, person=b"vl2v image").digest()


def text_key(text: str) -> bytes:
    """Return the 16-byte key of a text."""
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES, person=b"vl2v text").digest()


def flaw(vectors: NDArray[np.floating], shape: tuple[int, int]) -> str | None:
    """Return what is wrong with a batch of answers that should be finite unit rows of this shape, or None."""
    if vectors.shape != shape:
        return f"{shape[0]} answers of {shape[1]} numbers were due, the shape is {vectors.shape}"
    norms = np.linalg.norm(vectors.astype(np.float32, copy=False), axis=1)
    for wrong, what in (
        (~np.isfinite(norms), "not finite"),
        (norms == 0, "zero"),
        (np.abs(norms - 1) > 0.01, "not of unit length"),
    ):
        if wrong.any():
            return f"{int(wrong.sum())} of {shape[0]} answers are {what} (first: number {int(wrong.argmax())})"
    return None


class EmbeddingStore:
    """The answers of any number of teachers, in a folder; one writer at a time, any number of readers.

    A vector is kept in half precision with a CRC-32 over its teacher, its key and itself; a teacher's row has one, too,
    and counts its answers, so that what gets lost is missed. `put` returns only when its rows are on
    the disk. A second writer waits up to `BUSY_SECONDS` for its turn. Use it from the thread that opened it.

    Args:
        path: the store's folder, made if it is not there (unless `read_only`).
        read_only: never write, not even to create; works while another process writes.

    Raises:
        StoreError: not a store, corrupt, unwritable, of a newer schema, or (read-only) not there.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self.file = self.path / FILE_NAME
        self.read_only = read_only
        self._teacher_ids: dict[str, _Row] = {}
        self._complete: set[str] = set()  # fingerprints of teachers none of whose answers is lost
        with explained(self.file):
            self._db = self._connect()
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        self._db.close()

    # Teachers and what they were asked

    def register(self, teacher: TeacherFacts) -> None:
        """Remember a teacher, so that its answers can be kept.

        Raises:
            StoreError: the fingerprint is known with another dimension.
        """
        known = self._teacher(teacher.fingerprint)
        if known is None:
            known = self._enrol(teacher, teacher.dim)
        if known.record.dim != teacher.dim:
            raise StoreError(
                f"{self.file}: teacher {teacher.name} ({teacher.fingerprint}) answers with {teacher.dim} numbers, "
                f"its answers here have {known.record.dim}: give it a store of its own"
            )
        self.recognise(teacher)

    def _enrol(self, teacher: TeacherFacts, dim: int) -> _Row:
        with explained(self.file), transaction(self._db):
            facts = (teacher.fingerprint, without_secrets(teacher.name), dim, teacher.logit_scale)
            self._db.execute(
                "INSERT OR IGNORE INTO teachers (fingerprint, name, dim, logit_scale, crc) VALUES (?, ?, ?, ?, ?)",
                (*facts, _teacher_crc(*facts, None, 0)),
            )
        return self._require(teacher.fingerprint)

    def recognise(self, teacher: TeacherFacts) -> None:
        """Take what is stored under other spellings of a teacher's address for its own.

        A store that can't be written to remembers that only while it is open.
        """
        spelt = getattr(teacher, "was_spelt", None)
        if spelt is None:
            return
        known = self._teacher(teacher.fingerprint)
        records = [one for one in self.teachers() if one.fingerprint != teacher.fingerprint]
        others = [self._require(one.fingerprint) for one in records if spelt(one.name, one.fingerprint)]
        numbers = {number for row in others for number in row.numbers}
        if not numbers or (known is not None and numbers <= set(known.numbers)):
            return
        if not self.read_only:
            known = known or self._enrol(teacher, others[0].record.dim)
            with explained(self.file), transaction(self._db):
                for number in sorted(numbers):
                    self._db.execute("UPDATE teachers SET same_as = ? WHERE id = ?", (known.number, number))
                    self._sign(number)
            self._teacher_ids.clear()
            return
        own = known or others[0]
        record = TeacherRecord(teacher.fingerprint, teacher.name, own.record.dim, own.record.logit_scale)
        together = tuple(sorted({*numbers, *(known.numbers if known else ())}))
        self._teacher_ids[teacher.fingerprint] = _Row(own.number, record, together)

    def teachers(self) -> list[TeacherRecord]:
        """Return the teachers that answers are kept of, oldest first."""
        with explained(self.file):
            rows = self._db.execute("SELECT fingerprint, name, dim, logit_scale FROM teachers ORDER BY id")
            return [TeacherRecord(fingerprint, without_secrets(name), *row) for fingerprint, name, *row in rows]

    def queries(self) -> list[Question]:
        """Return every batch that was ever asked, oldest first."""
        with explained(self.file):
            rows = self._db.execute(
                "SELECT asked_at, fingerprint, name, kind, count FROM questions "
                "JOIN teachers ON teachers.id = questions.teacher ORDER BY questions.id"
            )
            return [Question(at, of, without_secrets(name), *row) for at, of, name, *row in rows]

    # Answers

    def known(self, fingerprint: str, keys: Sequence[bytes]) -> NDArray[np.bool_]:
        """Return, for each of the n keys, whether its answer is kept: bool [n].

        Where one isn't, it is seen to that none got lost, which would be asked, and paid, again.

        Raises:
            StoreError: answers of this teacher got lost; the message counts them.
        """
        teacher = self._teacher(fingerprint)
        out = np.zeros(len(keys), dtype=np.bool_)
        if teacher is None:
            self._check_teachers()
            return out
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            with explained(self.file):
                there = self._present(teacher, chunk)
            out[start : start + len(chunk)] = [key in there for key in chunk]
        if not out.all():
            self.check(fingerprint)
        return out

    def check(self, fingerprint: str) -> None:
        """See that all answers that a teacher ever gave are there and undamaged; once while the store is open.

        Raises:
            StoreError: they aren't; the message counts them.
        """
        if fingerprint in self._complete or self._version() == 1:
            return
        self._check_teachers()
        teacher = self._require(fingerprint)
        with explained(self.file), self._snapshot():
            found, due = self._intact(teacher), self._due(teacher)
        if found < due:
            raise StoreError(
                f"{self.file}: {due - found} of {due} answers of {teacher.record.name} are lost or damaged: put back a "
                "copy, or save what is left with `vl2v store repair`, then `vl2v embed` asks for the others again"
            )
        self._complete.add(fingerprint)

    def get(self, fingerprint: str, keys: Sequence[bytes]) -> NDArray[np.float32]:
        """Return the answers to n keys: float32 [n, dim], unit rows, in the order of the keys.

        Raises:
            StoreError: some answers are missing, or fail their checksum; the message counts them.
        """
        out = np.empty((len(keys), self._require(fingerprint).record.dim), dtype=np.float32)
        for start, half in self._read(fingerprint, keys):
            rows = out[start : start + len(half)]
            rows[:] = half
            rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]  # half precision moved them off by 1e-4
        return out

    def get_half(self, fingerprint: str, keys: Sequence[bytes]) -> NDArray[np.float16]:
        """Return the answers bit for bit as they are kept: float16 [n, dim]. Raises as `get` does."""
        out = np.empty((len(keys), self._require(fingerprint).record.dim), dtype=np.float16)
        for start, half in self._read(fingerprint, keys):
            out[start : start + len(half)] = half
        return out

    def put(
        self,
        fingerprint: str,
        keys: Sequence[bytes],
        vectors: NDArray[np.floating],
        *,
        kind: Kind,
    ) -> None:
        """Keep the answers to n keys, and that they were asked, in one durable commit.

        The first answer to a key is the one that stays. When this returns, the rows survive kill -9.

        Args:
            fingerprint: of a registered teacher.
            keys: n keys of 16 bytes, from `image_key` or `text_key`.
            vectors: [n, dim], unit rows.
            kind: what was asked about.

        Raises:
            StoreError: the vectors have another shape or are not finite unit rows; the disk is full; another process
                kept the store busy. Nothing of the batch is kept then.
        """
        teacher = self._require(fingerprint)
        half = self._checked(teacher.record, len(keys), vectors)
        raw, width = half.tobytes(), 2 * teacher.record.dim
        with explained(self.file), transaction(self._db):
            standing = self._db.execute("SELECT fingerprint FROM teachers WHERE id = ?", (teacher.number,)).fetchone()
            if standing != (fingerprint,):
                raise StoreError(
                    f"{self.file}: teacher {teacher.record.name} was removed meanwhile: run the command again"
                )
            there = self._present(teacher, keys)
            question = self._db.execute(
                "INSERT INTO questions (asked_at, teacher, kind, count) VALUES (?, ?, ?, ?)",
                (time.time(), teacher.number, kind, len(keys)),
            ).lastrowid
            answers = []
            for i, key in enumerate(keys):
                if key not in there:
                    there.add(key)
                    vector = raw[i * width : (i + 1) * width]
                    answers.append((question, key, _crc(fingerprint, key, vector), vector))
            self._append(teacher.number, answers)

    @contextmanager
    def absorbing(self, other: EmbeddingStore, fingerprint: str | None = None) -> Iterator[int]:
        """Take over another store's questions and answers, durably when the block ends; nothing if the block fails.

        What is here already stays as it is, so a store can be taken over again, whole or grown. A question is known by
        its time, teacher, kind and count.

        Args:
            other: is left as it is.
            fingerprint: of the teacher whose answers are taken over; None: all teachers'.

        Yields:
            How many answers are new here.

        Raises:
            StoreError: an answer of either fails its checksum, or the two give different answers to one question.
        """
        whole = other._teacher(fingerprint) if fingerprint else None
        spelt = whole.numbers if whole else ()
        teachers = other.teachers()
        wanted = [one for one in teachers if not fingerprint or other._require(one.fingerprint).number in spelt]
        for teacher in wanted:
            self.register(teacher)
        with explained(self.file), transaction(self._db):
            yield sum(self._absorb(other, teacher) for teacher in wanted)

    def repair(self) -> int:
        """Drop the answers that fail their checksum, so that `vl2v embed` asks for them again; return how many.

        What the index had lost is found again. Answers that are gone altogether are no longer missed.
        """
        with explained(self.file), transaction(self._db):
            rows = self._db.execute(
                "SELECT answers.id, key, vector, crc, (SELECT fingerprint FROM questions JOIN teachers "
                "ON teachers.id = questions.teacher WHERE questions.id = question) FROM answers"
            )
            bad = [(*row[:4],) for row in rows if row[4] is None or _crc(row[4], *row[1:3]) != row[3]]
            teachers = self._db.execute("SELECT id, fingerprint FROM teachers").fetchall()
            lost = []
            for number, key, vector, crc in bad:
                of = next((teacher for teacher, name in teachers if _crc(name, key, vector) == crc), None)
                if of is None:
                    lost.append((number,))
                else:  # only its question was lost
                    self._db.execute("UPDATE answers SET question = ? WHERE id = ?", (self._question_of(of), number))
            self._db.executemany("DELETE FROM answers WHERE id = ?", lost)
            self._db.execute("DELETE FROM places")
            self._db.execute("DELETE FROM new_places")
            rows = self._db.execute(
                "SELECT teacher, key, answers.id FROM answers JOIN questions ON questions.id = question"
            )
            places = ((teacher, _half(key), number) for teacher, key, number in rows)
            self._db.executemany("INSERT INTO new_places VALUES (?, ?, ?)", places)
            self._gather()
            for (number,) in self._db.execute("SELECT id FROM teachers").fetchall():
                count = "SELECT count(*) FROM places WHERE teacher = ?1"
                self._db.execute(f"UPDATE teachers SET answers = ({count}) WHERE id = ?1", (number,))
                self._sign(number)
        self._teacher_ids.clear()
        self._complete.clear()
        return len(lost)

    def keys(self, fingerprint: str) -> list[tuple[bytes, Kind]]:
        """Return the key of every embedding of a teacher and whether it is of an image or a text, oldest first."""
        sql = (
            "SELECT key, kind FROM answers CROSS JOIN questions ON questions.id = question "
            "WHERE teacher IN (SELECT value FROM json_each(?)) ORDER BY answers.id"
        )
        with explained(self.file):
            rows: list[tuple[bytes, Kind]] = self._db.execute(sql, (self._require(fingerprint).group,)).fetchall()
        return list(dict(rows).items())

    def remove(self, fingerprint: str) -> int:
        """Delete a teacher, its embeddings and the record of its queries, durably; return how many embeddings went."""
        group = self._require(fingerprint).group
        listed = "(SELECT value FROM json_each(?))"
        of_teacher = f"(SELECT id FROM questions WHERE teacher IN {listed})"
        with explained(self.file), transaction(self._db):
            removed = self._db.execute(f"DELETE FROM answers WHERE question IN {of_teacher}", (group,)).rowcount
            for table, column in (("places", "teacher"), ("new_places", "teacher"), ("questions", "teacher")):
                self._db.execute(f"DELETE FROM {table} WHERE {column} IN {listed}", (group,))
            self._db.execute(f"DELETE FROM teachers WHERE id IN {listed}", (group,))
        self._teacher_ids.clear()
        self._complete.clear()
        return removed

    def compact(self) -> None:
        """Give the space of removed embeddings back to the disk; takes as much free space as the file has."""
        with explained(self.file):
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # Inside

    def _read(self, fingerprint: str, keys: Sequence[bytes]) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Yield (start, float16 [chunk, dim]); raise at the end if any was missing or damaged."""
        row, crc_of = self._require(fingerprint), self._checksums(fingerprint)
        teacher = row.record
        sql = _FIND.format(columns="teacher, crc, vector")
        nothing = bytes(2 * teacher.dim)
        missing, damaged = 0, []
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            with explained(self.file):
                rows = self._db.execute(sql, (row.group, _halves(chunk))).fetchall()
            found: dict[bytes, tuple[int, int, bytes]] = {}
            for key, *there in rows:
                found.setdefault(key, (there[0], there[1], there[2]))
            vectors = []
            for key in chunk:
                if key not in found:
                    missing += 1
                    vectors.append(nothing)
                    continue
                number, crc, vector = found[key]
                if crc != crc_of(number, key, vector) or len(vector) != len(nothing):
                    damaged.append(key)
                    vector = nothing
                vectors.append(vector)
            if not missing and not damaged:
                yield start, np.frombuffer(b"".join(vectors), dtype="<f2").reshape(len(chunk), teacher.dim)
        if damaged:
            raise StoreError(
                f"{self.file}: {len(damaged)} of {len(keys)} answers of {teacher.name} fail their checksum (first: "
                f"key {damaged[0].hex()}): drop them with EmbeddingStore.repair(), then `vl2v embed` asks again"
            )
        if missing:
            self.check(fingerprint)  # more may be missing
            raise StoreError(
                f"{self.file}: {missing} of {len(keys)} answers of {teacher.name} ({fingerprint}) are missing: "
                "`vl2v embed` asks for them"
            )

    def _present(self, teacher: _Row, keys: Sequence[bytes]) -> set[bytes]:
        """Return those of the keys that are kept (and possibly others that share their first half)."""
        sql = _FIND.format(columns="id")
        found: set[bytes] = set()
        for start in range(0, len(keys), CHUNK):
            rows = self._db.execute(sql, (teacher.group, _halves(keys[start : start + CHUNK])))
            found.update(key for key, _ in rows)
        return found

    def _append(self, teacher: int, answers: Sequence[tuple[object, bytes, int, bytes]]) -> None:
        (last,) = self._db.execute("SELECT coalesce(max(id), 0) FROM answers").fetchone()
        numbered = list(enumerate(answers, last + 1))
        self._db.executemany("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", ((n, *row) for n, row in numbered))
        self._db.executemany(
            "INSERT INTO new_places VALUES (?, ?, ?)", ((teacher, _half(row[1]), n) for n, row in numbered)
        )
        if answers:
            self._db.execute("UPDATE teachers SET answers = answers + ? WHERE id = ?", (len(answers), teacher))
            self._sign(teacher)
        if last // GATHERED != (last + len(answers)) // GATHERED:
            self._gather()

    def _question_of(self, teacher: int) -> int:
        """Return the last question that a teacher was asked, made up if all are lost."""
        sql = "SELECT max(id) FROM questions WHERE teacher = ?"
        (found,) = self._db.execute(sql, (teacher,)).fetchone()
        if found is None:
            made = "INSERT INTO questions (asked_at, teacher, kind, count) VALUES (?, ?, 'image', 0)"
            found = self._db.execute(made, (time.time(), teacher)).lastrowid
        return int(found)

    def _sign(self, teacher: int) -> None:
        """Write the checksum of a teacher's row, which was changed."""
        row = self._db.execute(f"SELECT {_TEACHER} FROM teachers WHERE id = ?", (teacher,)).fetchone()
        self._db.execute("UPDATE teachers SET crc = ? WHERE id = ?", (_teacher_crc(*row[1:-1]), teacher))

    def _check_teachers(self) -> None:
        """See that no teacher's row was changed or is gone."""
        if self._version() == 1:
            return
        with explained(self.file):
            rows = self._db.execute(f"SELECT {_TEACHER} FROM teachers").fetchall()
            (orphans,) = self._db.execute(
                "SELECT count(*) FROM questions WHERE teacher NOT IN (SELECT id FROM teachers)"
            ).fetchone()
        bad = [str(row[2]) for row in rows if _teacher_crc(*row[1:-1]) != row[-1]]
        if bad or orphans:
            what = f"the record of {', '.join(bad)} is damaged" if bad else "the record of a teacher is lost"
            raise StoreError(f"{self.file}: {what}, so its answers can't be found: put back a copy")

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Read one state of the file, whoever writes meanwhile."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    def _due(self, teacher: _Row) -> int:
        """Return how many answers were ever kept of a teacher."""
        sql = "SELECT sum(answers) FROM teachers WHERE id IN (SELECT value FROM json_each(?))"
        return int(self._db.execute(sql, (teacher.group,)).fetchone()[0])

    def _intact(self, teacher: _Row) -> int:
        """Return how many answers of a teacher are there, undamaged, and found by their key."""
        crc_of, find = self._checksums(teacher.record.fingerprint), _FIND.format(columns="id")
        rows = self._db.execute(
            "SELECT answers.id, teacher, key, crc, vector FROM answers CROSS JOIN questions ON questions.id = question "
            "WHERE teacher IN (SELECT value FROM json_each(?))",
            (teacher.group,),
        )
        intact = 0
        while chunk := rows.fetchmany(CHUNK):
            good = [(n, key) for n, of, key, crc, vector in chunk if crc == crc_of(of, key, vector)]
            keys = [key for _, key in good]
            there = {number for _, number in self._db.execute(find, (teacher.group, _halves(keys)))} if good else set()
            intact += sum(number in there for number, _ in good)
        return intact

    def _checksums(self, fingerprint: str) -> Callable[[int, bytes, bytes], int]:
        """Return what gives the checksum that (teacher's number, key, vector) should have."""
        old = self._version() == 1
        rows = self._db.execute("SELECT id, fingerprint FROM teachers")
        fingerprints: dict[int, str] = dict(rows)
        return lambda number, key, vector: _crc("" if old else fingerprints.get(number, "?"), key, vector)

    def _version(self) -> int:
        with explained(self.file):
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
        return int(version)

    def _absorb(self, other: EmbeddingStore, teacher: TeacherRecord) -> int:
        """Take over one teacher's questions and answers; return how many answers are new."""
        number = self._require(teacher.fingerprint).number
        asked, own_question = self._asked(teacher.fingerprint), {}
        for question, theirs in other._asked(teacher.fingerprint).items():
            if question not in asked:
                row = self._db.execute(
                    "INSERT INTO questions (teacher, asked_at, kind, count) VALUES (?, ?, ?, ?)", (number, *question)
                )
                asked[question] = row.lastrowid or 0
            own_question[theirs] = asked[question]
        new = 0
        for found in other._answered(teacher.fingerprint):
            rows = [(key, question) for key, question in found if question in own_question]  # others are newer
            keys = [key for key, _ in rows]
            vectors, there = other.get_half(teacher.fingerprint, keys), self.known(teacher.fingerprint, keys)
            self._agree(other, teacher, [keys[i] for i in np.flatnonzero(there)], vectors[there])
            answers = []
            for i in np.flatnonzero(~there):
                (key, question_of), vector = rows[i], vectors[i].tobytes()
                answers.append((own_question[question_of], key, _crc(teacher.fingerprint, key, vector), vector))
            self._append(number, answers)
            new += len(answers)
        return new

    def _agree(
        self, other: EmbeddingStore, teacher: TeacherRecord, keys: list[bytes], theirs: NDArray[np.float16]
    ) -> None:
        """See that another store has the same answers to these keys, up to rounding."""
        cosines = np.einsum("nd,nd->n", self.get(teacher.fingerprint, keys), theirs.astype(np.float32))
        different = np.flatnonzero(cosines < SAME)
        if len(different):
            raise StoreError(
                f"{other.file}: {len(different)} answers of {teacher.name} differ from those in {self.file} (first: "
                f"key {keys[different[0]].hex()}, cosine {cosines[different[0]]:.3f}); nothing was taken over: one of "
                "the two stores is of another model"
            )

    def _asked(self, fingerprint: str) -> dict[tuple[float, str, int], int]:
        """Return a teacher's questions, (when, kind, count) -> id."""
        with explained(self.file):
            rows = self._db.execute(
                "SELECT asked_at, kind, count, id FROM questions WHERE teacher = ?",
                (self._require(fingerprint).number,),
            )
            return {(at, kind, count): number for at, kind, count, number in rows}

    def _answered(self, fingerprint: str) -> Iterator[list[tuple[bytes, int]]]:
        """Yield a teacher's answers as (key, question), in the order of arrival, some at a time."""
        with explained(self.file):
            rows = self._db.execute(
                "SELECT key, question FROM answers CROSS JOIN questions ON questions.id = question WHERE teacher = ?",
                (self._require(fingerprint).number,),
            )
            while chunk := rows.fetchmany(CHUNK):
                yield chunk

    def _gather(self) -> None:
        self._db.execute("INSERT INTO places SELECT * FROM new_places ORDER BY teacher, half_key, answer")
        self._db.execute("DELETE FROM new_places")

    def _checked(self, teacher: TeacherRecord, count: int, vectors: NDArray[np.floating]) -> NDArray[np.float16]:
        wrong = flaw(vectors, (count, teacher.dim))
        if wrong:
            raise StoreError(f"{self.file}: {teacher.name}: {wrong}; nothing of this batch was kept: check the teacher")
        return np.ascontiguousarray(vectors, dtype="<f2")

    def _teacher(self, fingerprint: str) -> _Row | None:
        if fingerprint not in self._teacher_ids:
            old = self._version() == 1
            with explained(self.file):
                columns = "id, fingerprint, name, dim, logit_scale" if old else _TEACHER
                row = self._db.execute(
                    f"SELECT {columns} FROM teachers WHERE fingerprint = ?", (fingerprint,)
                ).fetchone()
                if row is None:
                    return None
                number, _, name, dim, scale = row[:5]
                if not old and _teacher_crc(*row[1:-1]) != row[-1]:
                    raise StoreError(f"{self.file}: the record of {name} is damaged: put back a copy")
                group = (
                    [(number,)]
                    if old
                    else self._db.execute(
                        "SELECT id FROM teachers WHERE coalesce(same_as, id) = ? ORDER BY id = ? DESC, id",
                        (number if row[5] is None else row[5], number),
                    )
                )
                numbers = tuple(other for (other,) in group)
            record = TeacherRecord(fingerprint, without_secrets(name), dim, scale)
            self._teacher_ids[fingerprint] = _Row(number, record, numbers)
        return self._teacher_ids[fingerprint]

    def _require(self, fingerprint: str) -> _Row:
        teacher = self._teacher(fingerprint)
        if teacher is None:
            self._check_teachers()
            raise StoreError(f"{self.file}: holds no answers of teacher {fingerprint}: run `vl2v embed` with it first")
        return teacher

    def _connect(self) -> sqlite3.Connection:
        if self.read_only:
            if not self.file.is_file():
                raise StoreError(f"{self.path}: there is no embedding store here: `vl2v embed` makes one")
            # Without its log and in a folder that cannot be written to, nobody can be writing: skip all locking.
            frozen = not os.access(self.path, os.W_OK) and not self.file.with_name(FILE_NAME + "-wal").exists()
            uri = f"{self.file.absolute().as_uri()}?mode=ro" + ("&immutable=1" if frozen else "")
            return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot make the store's folder ({error.strerror}): choose another place"
            ) from None
        return sqlite3.connect(self.file, timeout=BUSY_SECONDS, isolation_level=None)

    def _prepare(self) -> None:
        made = _FORMAT.is_in(self._db, self.file)
        if self.read_only and not made:
            raise StoreError(f"{self.file}: is not {_FORMAT.what}")
        if not self.read_only:
            self._db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            journal(self._db, self.file)
            self._db.execute("PRAGMA synchronous = FULL")
            # 64 MB of log between checkpoints: an index page that many commits touch is moved once.
            self._db.execute("PRAGMA wal_autocheckpoint = 4000")
            self._db.execute("PRAGMA journal_size_limit = 67108864")
        self._db.execute("PRAGMA cache_size = -65536")
        if not is_shared(self.file):
            self._db.execute("PRAGMA mmap_size = 2147418112")
        if not made:
            _FORMAT.make(self._db, self.file)
            self._miss_what_was_paid()
        if not self.read_only and self._version() == 1:
            self._upgrade()

    def _miss_what_was_paid(self) -> None:
        """Say of a new store that the ledger beside it knows of embeddings that were paid for."""
        ledger = self.path / LEDGER
        if not ledger.is_file():
            return
        sql = "SELECT coalesce(sum(count), 0) FROM entries WHERE status = 'answered'"
        with explained(ledger), closing(sqlite3.connect(f"{ledger.absolute().as_uri()}?mode=ro", uri=True)) as bills:
            try:
                (paid,) = bills.execute(sql).fetchone()
            except sqlite3.OperationalError:  # it is being made
                return
        if paid:
            log.warning(
                "%s: is new or was emptied, but %s embeddings were paid for by %s: put back a copy, or they are paid "
                "for again", self.file, f"{paid:,}", ledger,
            )  # fmt: skip

    def _upgrade(self) -> None:
        """Bring a file of version 1 to today's; what it holds stays, what was damaged stays damaged."""
        self._db.create_function("clean_name", 1, without_secrets, deterministic=True)
        self._db.create_function("teacher_crc", 6, _teacher_crc, deterministic=True)
        self._db.create_function("newer_crc", 4, _newer_crc, deterministic=True)
        self._db.execute("PRAGMA secure_delete = ON")  # of a name with a password nothing stays
        with transaction(self._db):
            for statement in _FROM_1 if self._version() == 1 else ():  # another process may have been faster
                self._db.execute(statement)
        self._db.execute("PRAGMA secure_delete = OFF")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _half(key: bytes) -> int:
    """Return the first half of a key as the signed integer that SQLite keeps and compares fastest."""
    return int.from_bytes(key[:8], "big", signed=True)


def _halves(keys: Sequence[bytes]) -> str:
    """Return the first halves as JSON, which is how a list of any length becomes one parameter."""
    joined = b"".join(keys)
    if len(joined) != KEY_BYTES * len(keys):
        raise ValueError(f"a key has {KEY_BYTES} bytes: make it with image_key or text_key")
    return str(np.frombuffer(joined, dtype=">i8")[::2].tolist())


def _crc(fingerprint: str, key: bytes, vector: bytes) -> int:
    """CRC-32 over teacher, key and vector, as the signed integer that takes SQLite the fewest bytes."""
    return zlib.crc32(vector, zlib.crc32(key, zlib.crc32(fingerprint.encode()) if fingerprint else 0)) - 2**31


def _newer_crc(crc: int, key: bytes, vector: bytes, fingerprint: str | None) -> int:
    """Return the checksum of an answer of version 1; where that was wrong, this one is, too."""
    newer = _crc(fingerprint or "?", key, vector)
    return newer if crc == _crc("", key, vector) else newer ^ 1


def _teacher_crc(
    fingerprint: str, name: str, dim: int, logit_scale: float | None, same_as: int | None, answers: int
) -> int:
    return zlib.crc32(repr((fingerprint, name, dim, logit_scale, same_as, answers)).encode())
