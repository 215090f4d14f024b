"""What every SQLite file of vl2v needs: a fitting journal, made once by any number of processes; plain errors."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vl2v.errors import StoreError

BUSY_SECONDS = 30.0
MOUNTS = Path("/proc/self/mounts")
_SHARED = re.compile(r"nfs|cifs|smb|lustre|gpfs|ceph|beegfs|afs|orangefs|fuse\.|9p|virtiofs|vboxsf")


def journal(db: sqlite3.Connection, file: Path) -> None:
    """Have a file written ahead: readers and a writer don't wait for each other. It lasts.

    That takes memory which all who have the file open share, so on disks that other machines mount as well the older
    journal serves, with which they do wait. Of processes that open a new file at once, SQLite reports to all but one
    that it is locked, at once and whatever their timeout is (waiting there could be a deadlock): they try again, for
    `BUSY_SECONDS`.

    Raises:
        sqlite3.OperationalError: it stays locked, or can't be written.
    """
    mode = "TRUNCATE" if is_shared(file) else "WAL"
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute(f"PRAGMA journal_mode = {mode}")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, on the disk when the block ends."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite itself rolls back when the disk is full
            db.execute("ROLLBACK")
        raise


@contextmanager
def closed_on_error(db: sqlite3.Connection) -> Iterator[None]:
    """Close a file that is being opened if the block fails, whatever the reason; the error is raised again."""
    try:
        yield
    except BaseException:
        db.close()
        raise


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """Raise SQLite's errors as a `StoreError`, with what the person can do about them."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # our mistake, not the person's
    except sqlite3.Error as error:
        raise StoreError(f"{file}: {remedy(error)}") from error


def statements(schema: str) -> list[str]:
    """Return the statements of a schema; those of a trigger belong together."""
    return [part.replace("\0", ";") for part in schema.replace("; END", "\0 END").split(";")]


@dataclass(frozen=True)
class Format:
    """One kind of file, known by the numbers in its header.

    Attributes:
        what: it is, and what to do where the file is something else.
        version: of the schema.
    """

    what: str
    application: int
    version: int
    schema: str

    def is_in(self, db: sqlite3.Connection, file: Path) -> bool:
        """Return whether a file is of this kind; False: it is empty.

        Raises:
            StoreError: it is something else, or was written by a newer vl2v.
        """
        # Whoever sees tables sees the numbers that came with them; read the other way round, another process may
        # have made the file in between.
        (objects,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if application != self.application and (application or objects):
            raise StoreError(f"{file}: is not {self.what}")
        if version > self.version:
            raise StoreError(f"{file}: was written by a newer vl2v (schema {version}): upgrade vl2v")
        return bool(application == self.application)

    def make(self, db: sqlite3.Connection, file: Path) -> None:
        """Make the tables, unless another process was faster; raises as `is_in` does."""
        with transaction(db):
            if not self.is_in(db, file):
                for statement in statements(self.schema):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {self.application}")
                db.execute(f"PRAGMA user_version = {self.version}")


def is_shared(file: Path) -> bool:
    """Return whether a file is on a disk that other machines, too, may have mounted, as far as Linux tells."""
    try:
        mounts = MOUNTS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    resolved, found = file.resolve(), (0, "")
    for line in mounts:
        _, root, kind, *_ = line.split(" ")
        root = root.replace("\\040", " ")
        if resolved.is_relative_to(root) and len(root) >= found[0]:  # a later one hides an earlier one
            found = len(root), kind
    return _SHARED.match(found[1]) is not None


def remedy(error: sqlite3.Error) -> str:
    """Return what an error of SQLite means and what the person can do about it."""
    code = getattr(error, "sqlite_errorcode", 0)
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return "the disk is full; all that was acknowledged is saved: free some space, then run the command again"
        case sqlite3.SQLITE_IOERR:
            return f"the disk is full or failing ({error}): free some space or check it, then run the command again"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"another process has been writing for {BUSY_SECONDS:g} s: wait for it to end, or stop it"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return (
                f"the file is corrupt ({error}): restore a backup, or move it aside and `vl2v embed` queries again "
                "(`sqlite3 FILE .recover` may save part of it)"
            )
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return f"cannot be opened or written ({error}): check its permissions, or choose another folder"
    return f"SQLite says: {error}"
