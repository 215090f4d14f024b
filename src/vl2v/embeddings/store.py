"""Every answer a teacher ever gave, kept in one SQLite file: durable, checksummed, never asked for twice.

The layout was chosen by measuring; docs/store.md has the figures. Rows are appended in the order of arrival, so that
the large part of the file never moves. Keys are random, so an index over them is written all over its pages; it is
kept narrow (the first half of the key), and new entries gather in a small one that joins the large one now and then.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vl2v.errors import StoreError
from vl2v.sqlite import BUSY_SECONDS, Format, explained, is_shared, journal, transaction

Kind = Literal["image", "text"]

FILE_NAME = "answers.sqlite"
KEY_BYTES = 16
PAGE_BYTES = 16384
GATHERED = 8192  # entries of `new_places` that join `places` at a time
CHUNK = 1000  # rows a statement: enough to amortise the statement, little enough to keep memory flat
SAME = 0.98  # cosine between two answers of one model to one question; half precision and batching stay far above it

_SCHEMA = """
CREATE TABLE teachers (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    dim INTEGER NOT NULL,
    logit_scale REAL
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
_FORMAT = Format("an embedding store of vl2v: choose another folder", 0x564C3256, 1, _SCHEMA)  # "VL2V"

_FIND = """
SELECT key, {columns} FROM (
    SELECT answer FROM places WHERE teacher = ?1 AND half_key IN (SELECT value FROM json_each(?2))
    UNION ALL
    SELECT answer FROM new_places WHERE teacher = ?1 AND half_key IN (SELECT value FROM json_each(?2))
) CROSS JOIN answers ON answers.id = answer
"""


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
class Question:
    """One batch that was asked: when (seconds since the epoch), of whom, what kind, and how many."""

    asked_at: float
    fingerprint: str
    teacher: str
    kind: Kind
    count: int


def image_key(sha256: bytes, view: str = "clean") -> bytes:
    """Return the 16-byte key of one view of a picture, from the SHA-256 of the picture file's bytes."""
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

    A vector is kept in half precision with a CRC-32 over its key and itself. `put` returns only when its rows are on
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
        self._teacher_ids: dict[str, tuple[int, TeacherRecord]] = {}
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
            with explained(self.file), transaction(self._db):
                self._db.execute(
                    "INSERT OR IGNORE INTO teachers (fingerprint, name, dim, logit_scale) VALUES (?, ?, ?, ?)",
                    (teacher.fingerprint, teacher.name, teacher.dim, teacher.logit_scale),
                )
            known = self._require(teacher.fingerprint)
        if known[1].dim != teacher.dim:
            raise StoreError(
                f"{self.file}: teacher {teacher.name} ({teacher.fingerprint}) answers with {teacher.dim} numbers, "
                f"its answers here have {known[1].dim}: give it a store of its own"
            )

    def teachers(self) -> list[TeacherRecord]:
        """Return the teachers that answers are kept of, oldest first."""
        with explained(self.file):
            rows = self._db.execute("SELECT fingerprint, name, dim, logit_scale FROM teachers ORDER BY id")
            return [TeacherRecord(*row) for row in rows]

    def questions(self) -> list[Question]:
        """Return every batch that was ever asked, oldest first."""
        with explained(self.file):
            rows = self._db.execute(
                "SELECT asked_at, fingerprint, name, kind, count FROM questions "
                "JOIN teachers ON teachers.id = questions.teacher ORDER BY questions.id"
            )
            return [Question(*row) for row in rows]

    # Answers

    def known(self, fingerprint: str, keys: Sequence[bytes]) -> NDArray[np.bool_]:
        """Return, for each of the n keys, whether its answer is kept: bool [n]."""
        teacher = self._teacher(fingerprint)
        out = np.zeros(len(keys), dtype=np.bool_)
        if teacher is None:
            return out
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            with explained(self.file):
                there = self._present(teacher[0], chunk)
            out[start : start + len(chunk)] = [key in there for key in chunk]
        return out

    def get(self, fingerprint: str, keys: Sequence[bytes]) -> NDArray[np.float32]:
        """Return the answers to n keys: float32 [n, dim], unit rows, in the order of the keys.

        Raises:
            StoreError: some answers are missing, or fail their checksum; the message counts them.
        """
        out = np.empty((len(keys), self._require(fingerprint)[1].dim), dtype=np.float32)
        for start, half in self._read(fingerprint, keys):
            rows = out[start : start + len(half)]
            rows[:] = half
            rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]  # half precision moved them off by 1e-4
        return out

    def get_half(self, fingerprint: str, keys: Sequence[bytes]) -> NDArray[np.float16]:
        """Return the answers bit for bit as they are kept: float16 [n, dim]. Raises as `get` does."""
        out = np.empty((len(keys), self._require(fingerprint)[1].dim), dtype=np.float16)
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
        number, teacher = self._require(fingerprint)
        half = self._checked(teacher, len(keys), vectors)
        raw, width = half.tobytes(), 2 * teacher.dim
        with explained(self.file), transaction(self._db):
            there = self._present(number, keys)
            question = self._db.execute(
                "INSERT INTO questions (asked_at, teacher, kind, count) VALUES (?, ?, ?, ?)",
                (time.time(), number, kind, len(keys)),
            ).lastrowid
            answers = []
            for i, key in enumerate(keys):
                if key not in there:
                    there.add(key)
                    vector = raw[i * width : (i + 1) * width]
                    answers.append((question, key, _crc(key, vector), vector))
            self._append(number, answers)

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
        wanted = [teacher for teacher in other.teachers() if fingerprint in (None, teacher.fingerprint)]
        for teacher in wanted:
            self.register(teacher)
        with explained(self.file), transaction(self._db):
            yield sum(self._absorb(other, teacher) for teacher in wanted)

    def repair(self) -> int:
        """Drop the answers that fail their checksum, so that `vl2v embed` asks for them again; return how many."""
        with explained(self.file), transaction(self._db):
            rows = self._db.execute("SELECT id, key, crc, vector FROM answers")
            bad = [(number,) for number, key, crc, vector in rows if _crc(key, vector) != crc]
            self._db.executemany("DELETE FROM answers WHERE id = ?", bad)
            self._db.execute("DELETE FROM places")
            self._db.execute("DELETE FROM new_places")
            rows = self._db.execute(
                "SELECT teacher, key, answers.id FROM answers JOIN questions ON questions.id = question"
            )
            places = ((teacher, _half(key), number) for teacher, key, number in rows)
            self._db.executemany("INSERT INTO new_places VALUES (?, ?, ?)", places)
            self._gather()
        return len(bad)

    # Inside

    def _read(self, fingerprint: str, keys: Sequence[bytes]) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Yield (start, float16 [chunk, dim]); raise at the end if any was missing or damaged."""
        number, teacher = self._require(fingerprint)
        sql = _FIND.format(columns="crc, vector")
        nothing = bytes(2 * teacher.dim)
        missing, damaged = 0, []
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            with explained(self.file):
                rows = self._db.execute(sql, (number, _halves(chunk))).fetchall()
            found = {key: (crc, vector) for key, crc, vector in rows}
            vectors = []
            for key in chunk:
                crc, vector = found.get(key, (None, nothing))
                if crc is None:
                    missing += 1
                elif crc != _crc(key, vector) or len(vector) != len(nothing):
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
            raise StoreError(
                f"{self.file}: {missing} of {len(keys)} answers of {teacher.name} ({fingerprint}) are missing: "
                "`vl2v embed` asks for them"
            )

    def _present(self, teacher: int, keys: Sequence[bytes]) -> set[bytes]:
        """Return those of the keys that are kept (and possibly others that share their first half)."""
        sql = _FIND.format(columns="id")
        found: set[bytes] = set()
        for start in range(0, len(keys), CHUNK):
            rows = self._db.execute(sql, (teacher, _halves(keys[start : start + CHUNK])))
            found.update(key for key, _ in rows)
        return found

    def _append(self, teacher: int, answers: Sequence[tuple[object, bytes, int, bytes]]) -> None:
        (last,) = self._db.execute("SELECT coalesce(max(id), 0) FROM answers").fetchone()
        numbered = list(enumerate(answers, last + 1))
        self._db.executemany("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", ((n, *row) for n, row in numbered))
        self._db.executemany(
            "INSERT INTO new_places VALUES (?, ?, ?)", ((teacher, _half(row[1]), n) for n, row in numbered)
        )
        if last // GATHERED != (last + len(answers)) // GATHERED:
            self._gather()

    def _absorb(self, other: EmbeddingStore, teacher: TeacherRecord) -> int:
        """Take over one teacher's questions and answers; return how many answers are new."""
        number, _ = self._require(teacher.fingerprint)
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
                answers.append((own_question[question_of], key, _crc(key, vector), vector))
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
                "SELECT asked_at, kind, count, id FROM questions WHERE teacher = ?", (self._require(fingerprint)[0],)
            )
            return {(at, kind, count): number for at, kind, count, number in rows}

    def _answered(self, fingerprint: str) -> Iterator[list[tuple[bytes, int]]]:
        """Yield a teacher's answers as (key, question), in the order of arrival, some at a time."""
        with explained(self.file):
            rows = self._db.execute(
                "SELECT key, question FROM answers CROSS JOIN questions ON questions.id = question WHERE teacher = ?",
                (self._require(fingerprint)[0],),
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

    def _teacher(self, fingerprint: str) -> tuple[int, TeacherRecord] | None:
        if fingerprint not in self._teacher_ids:
            with explained(self.file):
                row = self._db.execute(
                    "SELECT id, fingerprint, name, dim, logit_scale FROM teachers WHERE fingerprint = ?",
                    (fingerprint,),
                ).fetchone()
            if row is None:
                return None
            self._teacher_ids[fingerprint] = (row[0], TeacherRecord(*row[1:]))
        return self._teacher_ids[fingerprint]

    def _require(self, fingerprint: str) -> tuple[int, TeacherRecord]:
        teacher = self._teacher(fingerprint)
        if teacher is None:
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


def _half(key: bytes) -> int:
    """Return the first half of a key as the signed integer that SQLite keeps and compares fastest."""
    return int.from_bytes(key[:8], "big", signed=True)


def _halves(keys: Sequence[bytes]) -> str:
    """Return the first halves as JSON, which is how a list of any length becomes one parameter."""
    joined = b"".join(keys)
    if len(joined) != KEY_BYTES * len(keys):
        raise ValueError(f"a key has {KEY_BYTES} bytes: make it with image_key or text_key")
    return str(np.frombuffer(joined, dtype=">i8")[::2].tolist())


def _crc(key: bytes, vector: bytes) -> int:
    """CRC-32 over key and vector, as the signed integer that takes SQLite the fewest bytes."""
    return zlib.crc32(vector, zlib.crc32(key)) - 2**31
