"""What every SQLite file of vl2v needs: its log turned on by any number of processes at once, and errors in words."""

from __future__ import annotations

import sqlite3
import time

BUSY_SECONDS = 30.0


def write_ahead(db: sqlite3.Connection) -> None:
    """Turn the write-ahead log on, which lasts.

    Of processes that open a new file at once, SQLite tells all but one that it is locked, at once and whatever their
    timeout is (waiting there could be a deadlock): they ask again, for `BUSY_SECONDS`.

    Raises:
        sqlite3.OperationalError: it stays locked, or can't be written.
    """
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


def remedy(error: sqlite3.Error) -> str:
    """Return what an error of SQLite means and what the person can do about it."""
    code = getattr(error, "sqlite_errorcode", 0)
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return "the disk is full; all that was acknowledged is kept: free some space, then run the command again"
        case sqlite3.SQLITE_IOERR:
            return f"the disk is full or failing ({error}): free some space or check it, then run the command again"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"another process has been writing for {BUSY_SECONDS:g} s: wait for it to end, or stop it"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return (
                f"the file is corrupt ({error}): put back a copy, or move it aside and `vl2v embed` asks again "
                "(`sqlite3 FILE .recover` may save part of it)"
            )
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return f"cannot be opened or written ({error}): check its permissions, or choose another folder"
    return f"SQLite says: {error}"
