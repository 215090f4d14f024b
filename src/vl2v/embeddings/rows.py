"""The rows of an embedding store, counted and checksummed: what is lost is missed, what is damaged isn't returned.

The layout was chosen by measuring; docs/store.md has the figures. Rows are appended in the order of arrival, so that
the large part of the file never moves. Keys are random, so an index over them is written all over its pages; it is
narrow (the first half of the key), and new entries gather in a small one that is merged into the large one in turn.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from vl2v.embeddings.ledger import FILE_NAME as LEDGER
from vl2v.embeddings.schema import FORMAT, UNNAMED, crc, half_of, halves_of, teacher_crc, upgrade, version_of
from vl2v.errors import StoreError
from vl2v.privacy import without_secrets
from vl2v.sqlite import BUSY_SECONDS, closed_on_error, explained, is_shared, journal, transaction

FILE_NAME = "answers.sqlite"
PAGE_BYTES = 16384
GATHERED = 8192  # entries of `new_places` that join `places` at a time
CHUNK = 1000  # rows a statement: enough to amortise the statement, little enough to keep memory flat

FIND = """
SELECT key, {columns} FROM (
    SELECT answer, teacher FROM places
    WHERE teacher IN (SELECT value FROM json_each(?1)) AND half_key IN (SELECT value FROM json_each(?2))
    UNION ALL
    SELECT answer, teacher FROM new_places
    WHERE teacher IN (SELECT value FROM json_each(?1)) AND half_key IN (SELECT value FROM json_each(?2))
) CROSS JOIN answers ON answers.id = answer
"""
TEACHER = "id, fingerprint, name, dim, logit_scale, same_as, answers, crc"

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
class TeacherRow:
    """A teacher's row: the ids of its embeddings, its own and those of its address's other spellings."""

    number: int
    record: TeacherRecord
    numbers: tuple[int, ...]

    @property
    def group(self) -> str:
        """The numbers, as a parameter of `FIND`."""
        return json.dumps(self.numbers)


class Rows:
    """What `EmbeddingStore` is made of; opened as that is."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self.file = self.path / FILE_NAME
        self.read_only = read_only
        self._teachers: dict[str, TeacherRow] = {}
        self._complete: set[str] = set()  # fingerprints of teachers that have lost no embedding
        with explained(self.file):
            self._db = self._connect()
            with closed_on_error(self._db):
                self._prepare()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        self._db.close()

    def teachers(self) -> list[TeacherRecord]:
        """Return the teachers that embeddings are saved of, oldest first."""
        with explained(self.file):
            rows = self._db.execute("SELECT fingerprint, name, dim, logit_scale FROM teachers ORDER BY id")
            return [TeacherRecord(fingerprint, without_secrets(name), *row) for fingerprint, name, *row in rows]

    def check(self, fingerprint: str) -> None:
        """Check that all embeddings of a teacher are there and undamaged; once while the store is open.

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
                f"{self.file}: {due - found} of {due} embeddings of {teacher.record.name} are lost or damaged: restore "
                "a backup, or save what is left with `vl2v store repair`, then `vl2v embed` queries the others again"
            )
        self._complete.add(fingerprint)

    def repair(self) -> int:
        """Drop the embeddings that fail their checksum, so that `vl2v embed` queries them again; return how many.

        What the index had lost is found again. Embeddings that are gone altogether are no longer missed.
        """
        with explained(self.file), transaction(self._db):
            rows = self._db.execute(
                "SELECT answers.id, key, vector, crc, (SELECT fingerprint FROM questions JOIN teachers "
                "ON teachers.id = questions.teacher WHERE questions.id = question) FROM answers"
            )
            bad = [(*row[:4],) for row in rows if row[4] is None or crc(row[4], *row[1:3]) != row[3]]
            teachers = self._db.execute("SELECT id, fingerprint FROM teachers").fetchall()
            lost = []
            for number, key, vector, found in bad:
                of = next((teacher for teacher, name in teachers if crc(name, key, vector) == found), None)
                if of is None:
                    lost.append((number,))
                else:  # only its batch of queries was lost
                    self._db.execute("UPDATE answers SET question = ? WHERE id = ?", (self._question_of(of), number))
            self._db.executemany("DELETE FROM answers WHERE id = ?", lost)
            self._db.execute("DELETE FROM places")
            self._db.execute("DELETE FROM new_places")
            rows = self._db.execute(
                "SELECT teacher, key, answers.id FROM answers JOIN questions ON questions.id = question"
            )
            places = ((teacher, half_of(key), number) for teacher, key, number in rows)
            self._db.executemany("INSERT INTO new_places VALUES (?, ?, ?)", places)
            self._gather()
            for (number,) in self._db.execute("SELECT id FROM teachers").fetchall():
                count = "SELECT count(*) FROM places WHERE teacher = ?1"
                self._db.execute(f"UPDATE teachers SET answers = ({count}) WHERE id = ?1", (number,))
                self.sign(number)
        self._teachers.clear()
        self._complete.clear()
        return len(lost)

    def _enrol(self, teacher: TeacherFacts, dim: int) -> TeacherRow:
        with explained(self.file), transaction(self._db):
            facts = (teacher.fingerprint, without_secrets(teacher.name), dim, teacher.logit_scale)
            self._db.execute(
                "INSERT OR IGNORE INTO teachers (fingerprint, name, dim, logit_scale, crc) VALUES (?, ?, ?, ?, ?)",
                (*facts, teacher_crc(*facts, None, 0)),
            )
        return self._require(teacher.fingerprint)

    def _teacher(self, fingerprint: str) -> TeacherRow | None:
        if fingerprint not in self._teachers:
            old = self._version() == 1
            with explained(self.file):
                columns = "id, fingerprint, name, dim, logit_scale" if old else TEACHER
                row = self._db.execute(
                    f"SELECT {columns} FROM teachers WHERE fingerprint = ?", (fingerprint,)
                ).fetchone()
                if row is None:
                    return None
                number, _, name, dim, scale = row[:5]
                if not old and teacher_crc(*row[1:-1]) != row[-1]:
                    raise StoreError(f"{self.file}: the record of {name} is damaged: restore a backup")
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
            self._teachers[fingerprint] = TeacherRow(number, record, numbers)
        return self._teachers[fingerprint]

    def _require(self, fingerprint: str) -> TeacherRow:
        teacher = self._teacher(fingerprint)
        if teacher is None:
            self._check_teachers()
            raise StoreError(
                f"{self.file}: holds no embeddings of teacher {fingerprint}: run `vl2v embed` with it first"
            )
        return teacher

    def _check_teachers(self) -> None:
        """Check that no teacher's row was changed or is gone."""
        if self._version() == 1:
            return
        with explained(self.file):
            rows = self._db.execute(f"SELECT {TEACHER} FROM teachers").fetchall()
            (orphans,) = self._db.execute(
                "SELECT count(*) FROM questions WHERE teacher NOT IN (SELECT id FROM teachers)"
            ).fetchone()
        bad = [str(row[2]) for row in rows if teacher_crc(*row[1:-1]) != row[-1]]
        if bad or orphans:
            what = f"the record of {', '.join(bad)} is damaged" if bad else "the record of a teacher is lost"
            raise StoreError(f"{self.file}: {what}, so its embeddings can't be found: restore a backup")

    def _present(self, teacher: TeacherRow, keys: Sequence[bytes]) -> set[bytes]:
        """Return those of the keys that are stored (and possibly others that share their first half)."""
        sql = FIND.format(columns="id")
        found: set[bytes] = set()
        for start in range(0, len(keys), CHUNK):
            rows = self._db.execute(sql, (teacher.group, halves_of(keys[start : start + CHUNK])))
            found.update(key for key, _ in rows)
        return found

    def _append(self, teacher: int, embeddings: Sequence[tuple[object, bytes, int, bytes, int | None]]) -> None:
        """Add rows of (batch of queries, key, checksum, vector, view)."""
        (last,) = self._db.execute("SELECT coalesce(max(id), 0) FROM answers").fetchone()
        numbered = list(enumerate(embeddings, last + 1))
        self._db.executemany(
            "INSERT INTO answers (id, question, key, crc, vector, view) VALUES (?, ?, ?, ?, ?, ?)",
            ((n, *row) for n, row in numbered),
        )
        self._db.executemany(
            "INSERT INTO new_places VALUES (?, ?, ?)", ((teacher, half_of(row[1]), n) for n, row in numbered)
        )
        if embeddings:
            self._db.execute("UPDATE teachers SET answers = answers + ? WHERE id = ?", (len(embeddings), teacher))
            self.sign(teacher)
        if last // GATHERED != (last + len(embeddings)) // GATHERED:
            self._gather()

    def _view_ids(self, names: Sequence[str]) -> list[int]:
        """Return the number of each view's name, noted if it is new."""
        for name in dict.fromkeys(names):
            self._db.execute("INSERT OR IGNORE INTO views (name) VALUES (?)", (name,))
        numbers = {name: number for number, name in self._db.execute("SELECT id, name FROM views")}
        return [numbers[name] for name in names]

    @property
    def _view_of(self) -> str:
        """SQL for the view's name in a query of `answers`; NULL where it isn't recorded."""
        return "NULL" if self._version() < 3 else "(SELECT name FROM views WHERE id = view)"

    def views(self) -> set[str] | None:
        """Return the names of all views that embeddings are of; None: some were saved before views had names."""
        with explained(self.file):
            if self._version() < 3:
                return None
            names = {str(name) for (name,) in self._db.execute("SELECT name FROM views")}
        return None if UNNAMED in names else names

    def _gather(self) -> None:
        """Let the new index entries join the others."""
        self._db.execute("INSERT INTO places SELECT * FROM new_places ORDER BY teacher, half_key, answer")
        self._db.execute("DELETE FROM new_places")

    def sign(self, teacher: int) -> None:
        """Write the checksum of a teacher's row, which was changed."""
        row = self._db.execute(f"SELECT {TEACHER} FROM teachers WHERE id = ?", (teacher,)).fetchone()
        self._db.execute("UPDATE teachers SET crc = ? WHERE id = ?", (teacher_crc(*row[1:-1]), teacher))

    def _checksums(self, fingerprint: str) -> Callable[[int, bytes, bytes], int]:
        """Return what gives the checksum that (teacher's number, key, vector) should have."""
        old = self._version() == 1
        rows = self._db.execute("SELECT id, fingerprint FROM teachers")
        fingerprints: dict[int, str] = dict(rows)
        return lambda number, key, vector: crc("" if old else fingerprints.get(number, "?"), key, vector)

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

    def _due(self, teacher: TeacherRow) -> int:
        """Return how many embeddings were ever saved of a teacher."""
        sql = "SELECT sum(answers) FROM teachers WHERE id IN (SELECT value FROM json_each(?))"
        return int(self._db.execute(sql, (teacher.group,)).fetchone()[0])

    def _intact(self, teacher: TeacherRow) -> int:
        """Return how many embeddings of a teacher are there, undamaged, and found by their key."""
        crc_of, find = self._checksums(teacher.record.fingerprint), FIND.format(columns="id")
        rows = self._db.execute(
            "SELECT answers.id, teacher, key, crc, vector FROM answers CROSS JOIN questions ON questions.id = question "
            "WHERE teacher IN (SELECT value FROM json_each(?))",
            (teacher.group,),
        )
        intact = 0
        while chunk := rows.fetchmany(CHUNK):
            good = [(n, key) for n, of, key, crc, vector in chunk if crc == crc_of(of, key, vector)]
            keys = [key for _, key in good]
            there = (
                {number for _, number in self._db.execute(find, (teacher.group, halves_of(keys)))} if good else set()
            )
            intact += sum(number in there for number, _ in good)
        return intact

    def _question_of(self, teacher: int) -> int:
        """Return the last batch of queries to a teacher, made up if all are lost."""
        sql = "SELECT max(id) FROM questions WHERE teacher = ?"
        (found,) = self._db.execute(sql, (teacher,)).fetchone()
        if found is None:
            made = "INSERT INTO questions (asked_at, teacher, kind, count) VALUES (?, ?, 'image', 0)"
            found = self._db.execute(made, (time.time(), teacher)).lastrowid
        return int(found)

    def _version(self) -> int:
        with explained(self.file):
            return version_of(self._db)

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
                f"{self.path}: cannot make the store's folder ({error.strerror}): choose another folder"
            ) from None
        return sqlite3.connect(self.file, timeout=BUSY_SECONDS, isolation_level=None)

    def _prepare(self) -> None:
        made = FORMAT.is_in(self._db, self.file)
        if self.read_only and not made:
            raise StoreError(f"{self.file}: is not {FORMAT.what}")
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
            FORMAT.make(self._db, self.file)
            self._miss_what_was_paid()
        if not self.read_only and self._version() < FORMAT.version:
            upgrade(self._db)

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
                "%s: is new or was emptied, but %s embeddings were paid for by %s: restore a backup, or they are paid "
                "for again", self.file, f"{paid:,}", ledger,
            )  # fmt: skip
