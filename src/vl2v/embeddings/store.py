"""Every embedding that a teacher ever gave, in one SQLite file: durable, checksummed, never queried twice."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vl2v.embeddings.rows import CHUNK, FIND, Rows, TeacherFacts, TeacherRecord, TeacherRow
from vl2v.embeddings.schema import CLEAN, UNNAMED, crc, halves_of
from vl2v.errors import StoreError
from vl2v.privacy import without_secrets
from vl2v.sqlite import explained, transaction
from vl2v.teachers.paid.teacher import SAME

Kind = Literal["image", "text"]


@dataclass(frozen=True)
class QueryBatch:
    """One batch of queries: when (seconds since the epoch), to which teacher, of what kind, and how many."""

    asked_at: float
    fingerprint: str
    teacher: str
    kind: Kind
    count: int


def flaw(vectors: NDArray[np.floating], shape: tuple[int, int]) -> str | None:
    """Return what is wrong with a batch of embeddings that should be finite unit rows of this shape, or None."""
    if vectors.shape != shape:
        return f"{shape[0]} embeddings of {shape[1]} numbers were due, the shape is {vectors.shape}"
    norms = np.linalg.norm(vectors.astype(np.float32, copy=False), axis=1)
    for wrong, what in (
        (~np.isfinite(norms), "not finite"),
        (norms == 0, "zero"),
        (np.abs(norms - 1) > 0.01, "not of unit length"),
    ):
        if wrong.any():
            return f"{int(wrong.sum())} of {shape[0]} embeddings are {what} (first: number {int(wrong.argmax())})"
    return None


class EmbeddingStore(Rows):
    """The embeddings of any number of teachers, in a folder; one writer at a time, any number of readers.

    A vector is stored in half precision with a CRC-32 over its teacher, its key and itself; a teacher's row has one,
    too, and counts its embeddings, so that what gets lost is missed. `put` returns only when its rows are on the disk.
    A second writer waits up to `BUSY_SECONDS` for its turn. Use it from the thread that opened it.

    Args:
        path: the store's folder, made if it is not there (unless `read_only`).
        read_only: never write, not even to create; works while another process writes.

    Raises:
        StoreError: not a store, corrupt, unwritable, of a newer schema, or (read-only) not there.
    """

    def register(self, teacher: TeacherFacts) -> None:
        """Enter a teacher, so that its embeddings can be saved.

        Raises:
            StoreError: the fingerprint is there with another dimension.
        """
        row = self._teacher(teacher.fingerprint)
        if row is None:
            row = self._enrol(teacher, teacher.dim)
        if row.record.dim != teacher.dim:
            raise StoreError(
                f"{self.file}: teacher {teacher.name} ({teacher.fingerprint}) embeddings have {teacher.dim} numbers, "
                f"those here have {row.record.dim}: give it a store of its own"
            )
        self.recognise(teacher)

    def recognise(self, teacher: TeacherFacts) -> None:
        """Take what is stored under other spellings of a teacher's address for its own.

        A store that can't be written to remembers that only while it is open.
        """
        spelt = getattr(teacher, "was_spelt", None)
        if spelt is None:
            return
        row = self._teacher(teacher.fingerprint)
        records = [one for one in self.teachers() if one.fingerprint != teacher.fingerprint]
        others = [self._require(one.fingerprint) for one in records if spelt(one.name, one.fingerprint)]
        numbers = {number for row in others for number in row.numbers}
        if not numbers or (row is not None and numbers <= set(row.numbers)):
            return
        if not self.read_only:
            row = row or self._enrol(teacher, others[0].record.dim)
            with explained(self.file), transaction(self._db):
                for number in sorted(numbers):
                    self._db.execute("UPDATE teachers SET same_as = ? WHERE id = ?", (row.number, number))
                    self.sign(number)
            self._teachers.clear()
            return
        own = row or others[0]
        record = TeacherRecord(teacher.fingerprint, teacher.name, own.record.dim, own.record.logit_scale)
        together = tuple(sorted({*numbers, *(row.numbers if row else ())}))
        self._teachers[teacher.fingerprint] = TeacherRow(own.number, record, together)

    def queries(self) -> list[QueryBatch]:
        """Return every batch of queries there ever was, oldest first."""
        with explained(self.file):
            rows = self._db.execute(
                "SELECT asked_at, fingerprint, name, kind, count FROM questions "
                "JOIN teachers ON teachers.id = questions.teacher ORDER BY questions.id"
            )
            return [QueryBatch(at, of, without_secrets(name), *row) for at, of, name, *row in rows]

    def cached(self, fingerprint: str, keys: Sequence[bytes]) -> NDArray[np.bool_]:
        """Return, for each of the n keys, whether its embedding is here: bool [n].

        Where one isn't, none may have got lost: it would be queried, and paid for, again.

        Raises:
            StoreError: embeddings of this teacher got lost; the message counts them.
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

    def get(self, fingerprint: str, keys: Sequence[bytes]) -> NDArray[np.float32]:
        """Return the embeddings of n keys: float32 [n, dim], unit rows, in the order of the keys.

        Raises:
            StoreError: some are missing, or fail their checksum; the message counts them.
        """
        out = np.empty((len(keys), self._require(fingerprint).record.dim), dtype=np.float32)
        for start, half in self._read(fingerprint, keys):
            rows = out[start : start + len(half)]
            rows[:] = half
            rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]  # half precision moved them off by 1e-4
        return out

    def get_half(self, fingerprint: str, keys: Sequence[bytes]) -> NDArray[np.float16]:
        """Return the embeddings bit for bit as they are stored: float16 [n, dim]. Raises as `get` does."""
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
        views: Sequence[str] = (),
    ) -> None:
        """Save the embeddings of n keys, and that they were queried, in one durable commit.

        The first embedding of a key is the one that stays. When this returns, the rows survive kill -9.

        Args:
            keys: n keys of 16 bytes, from `image_key` or `text_key`.
            vectors: [n, dim], unit rows.
            views: of images, the names of the views; by default all are clean.

        Raises:
            StoreError: the vectors have another shape or are not finite unit rows; the disk is full; another process
                holds the store's lock. Nothing of the batch is saved then.
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
            batch = self._db.execute(
                "INSERT INTO questions (asked_at, teacher, kind, count) VALUES (?, ?, ?, ?)",
                (time.time(), teacher.number, kind, len(keys)),
            ).lastrowid
            of_images = views or [CLEAN] * len(keys)
            numbers: list[int | None] = [*self._view_ids(of_images)] if kind == "image" else [None] * len(keys)
            rows = []
            for i, key in enumerate(keys):
                if key not in there:
                    there.add(key)
                    vector = raw[i * width : (i + 1) * width]
                    rows.append((batch, key, crc(fingerprint, key, vector), vector, numbers[i]))
            self._append(teacher.number, rows)

    @contextmanager
    def absorbing(self, other: EmbeddingStore, fingerprint: str | None = None) -> Iterator[int]:
        """Copy another store's queries and embeddings, durably when the block ends; nothing if the block fails.

        What is here already stays as it is, so a store can be copied again, whole or grown. A batch of queries is
        recognised by its time, teacher, kind and count.

        Args:
            other: is left as it is.
            fingerprint: of the teacher whose embeddings are copied; None: all teachers'.

        Yields:
            How many embeddings are new here.

        Raises:
            StoreError: an embedding of either fails its checksum, or the two have different ones for one key.
        """
        whole = other._teacher(fingerprint) if fingerprint else None
        spelt = whole.numbers if whole else ()
        teachers = other.teachers()
        wanted = [one for one in teachers if not fingerprint or other._require(one.fingerprint).number in spelt]
        for teacher in wanted:
            self.register(teacher)
        with explained(self.file), transaction(self._db):
            yield sum(self._absorb(other, teacher) for teacher in wanted)

    def keys(self, fingerprint: str) -> list[tuple[bytes, Kind, str]]:
        """Return (key, kind, view) of every embedding of a teacher, oldest first; "" where no view is recorded."""
        sql = (
            f"SELECT key, kind, coalesce({self._view_of}, '') FROM answers "
            "CROSS JOIN questions ON questions.id = question "
            "WHERE teacher IN (SELECT value FROM json_each(?)) ORDER BY answers.id"
        )
        with explained(self.file):
            rows: list[tuple[bytes, Kind, str]] = self._db.execute(sql, (self._require(fingerprint).group,)).fetchall()
        return list({row[0]: row for row in rows}.values())

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
        self._teachers.clear()
        self._complete.clear()
        return removed

    def compact(self) -> None:
        """Give the space of removed embeddings back to the disk; takes as much free space as the file has."""
        with explained(self.file):
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _read(self, fingerprint: str, keys: Sequence[bytes]) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Yield (start, float16 [chunk, dim]); raise at the end if any was missing or damaged."""
        row, crc_of = self._require(fingerprint), self._checksums(fingerprint)
        teacher = row.record
        sql = FIND.format(columns="teacher, crc, vector")
        nothing = bytes(2 * teacher.dim)
        missing, damaged = 0, []
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            with explained(self.file):
                rows = self._db.execute(sql, (row.group, halves_of(chunk))).fetchall()
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
                f"{self.file}: {len(damaged)} of {len(keys)} embeddings of {teacher.name} fail their checksum (first: "
                f"key {damaged[0].hex()}): drop them with `vl2v store repair`, then `vl2v embed` queries them again"
            )
        if missing:
            self.check(fingerprint)  # more may be missing
            raise StoreError(
                f"{self.file}: {missing} of {len(keys)} embeddings of {teacher.name} ({fingerprint}) are missing: "
                "`vl2v embed` queries them"
            )

    def _absorb(self, other: EmbeddingStore, teacher: TeacherRecord) -> int:
        """Copy one teacher's queries and embeddings; return how many are new."""
        number = self._require(teacher.fingerprint).number
        queried, own_batch = self._queried(teacher.fingerprint), {}
        for batch, theirs in other._queried(teacher.fingerprint).items():
            if batch not in queried:
                row = self._db.execute(
                    "INSERT INTO questions (teacher, asked_at, kind, count) VALUES (?, ?, ?, ?)", (number, *batch)
                )
                queried[batch] = row.lastrowid or 0
            own_batch[theirs] = queried[batch]
        new = 0
        if other.views() is None:
            self._view_ids([UNNAMED])
        for found in other._saved(teacher.fingerprint):
            rows = [row for row in found if row[1] in own_batch]  # others are newer
            keys = [key for key, _, _ in rows]
            vectors, there = other.get_half(teacher.fingerprint, keys), self.cached(teacher.fingerprint, keys)
            self._agree(other, teacher, [keys[i] for i in np.flatnonzero(there)], vectors[there])
            fresh = []
            for i in np.flatnonzero(~there):
                (key, batch_of, view), vector = rows[i], vectors[i].tobytes()
                number_of = None if view is None else self._view_ids([view])[0]
                fresh.append((own_batch[batch_of], key, crc(teacher.fingerprint, key, vector), vector, number_of))
            self._append(number, fresh)
            new += len(fresh)
        return new

    def _agree(
        self, other: EmbeddingStore, teacher: TeacherRecord, keys: list[bytes], theirs: NDArray[np.float16]
    ) -> None:
        """Check that another store has the same embeddings of these keys, up to rounding."""
        cosines = np.einsum("nd,nd->n", self.get(teacher.fingerprint, keys), theirs.astype(np.float32))
        different = np.flatnonzero(cosines < SAME)
        if len(different):
            raise StoreError(
                f"{other.file}: {len(different)} embeddings of {teacher.name} differ from those in {self.file} (first: "
                f"key {keys[different[0]].hex()}, cosine {cosines[different[0]]:.3f}); nothing was copied: one of "
                "the two stores is of another model"
            )

    def _queried(self, fingerprint: str) -> dict[tuple[float, str, int], int]:
        """Return a teacher's batches of queries, (when, kind, count) -> id."""
        with explained(self.file):
            rows = self._db.execute(
                "SELECT asked_at, kind, count, id FROM questions WHERE teacher = ?",
                (self._require(fingerprint).number,),
            )
            return {(at, kind, count): number for at, kind, count, number in rows}

    def _saved(self, fingerprint: str) -> Iterator[list[tuple[bytes, int, str | None]]]:
        """Yield a teacher's rows as (key, batch of queries, view), in the order of arrival, some at a time."""
        with explained(self.file):
            rows = self._db.execute(
                f"SELECT key, question, {self._view_of} FROM answers CROSS JOIN questions ON questions.id = question "
                "WHERE teacher = ?",
                (self._require(fingerprint).number,),
            )
            while chunk := rows.fetchmany(CHUNK):
                yield chunk

    def _checked(self, teacher: TeacherRecord, count: int, vectors: NDArray[np.floating]) -> NDArray[np.float16]:
        wrong = flaw(vectors, (count, teacher.dim))
        if wrong:
            raise StoreError(f"{self.file}: {teacher.name}: {wrong}; nothing of this batch was saved")
        return np.ascontiguousarray(vectors, dtype="<f2")
