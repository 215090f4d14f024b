"""Whether everything that a store ever saved is still there, and undamaged; and what can be done if it isn't."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from vl2v.embeddings.rows import CHUNK, FIND, Rows, TeacherRow
from vl2v.embeddings.schema import crc, half_of, halves_of
from vl2v.errors import StoreError
from vl2v.sqlite import explained, transaction


class Checked(Rows):
    """Rows that are counted and checksummed: what is lost is missed, what is damaged isn't returned."""

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
                f"{self.file}: {due - found} of {due} embeddings of {teacher.record.name} are lost or damaged: put "
                "back a copy, or save what is left with `vl2v store repair`, then `vl2v embed` queries the others again"
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
                else:  # only its question was lost
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
                self._sign(number)
        self._teachers.clear()
        self._complete.clear()
        return len(lost)

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
