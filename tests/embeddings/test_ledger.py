"""The bill: durable, append-only, and a budget that nothing passes."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from stores import sql
from vl2v.embeddings.bill import LedgerBudget
from vl2v.embeddings.ledger import Ledger
from vl2v.errors import StoreError
from vl2v.teachers.paid.teacher import BudgetReached, Query, money


def query(micro: int, count: int = 1) -> Query:
    return Query("image", count, 10 * count, micro)


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger(tmp_path) as opened:
        yield opened


def new_budget(ledger: Ledger, budget: int | None = 100, teacher: str = "vendor:a") -> LedgerBudget:
    return LedgerBudget(ledger, teacher, "USD", budget, "runs/a")


def test_what_is_reserved_counts_until_it_is_settled(ledger: Ledger) -> None:
    spending = new_budget(ledger)
    first, second = spending.reserve(query(60)), spending.reserve(query(40))
    with pytest.raises(BudgetReached, match=r"vendor:a: 0\.0001 USD of 0\.0001 USD are spent or reserved, .*--budget"):
        spending.reserve(query(1))
    spending.settle(first, "answered", tokens=7, micro=30, model="m-1")
    assert spending.committed == 70
    spending.settle(second, "lost")
    assert spending.committed == 70, "what may have been counted by the vendor stays counted"
    spending.settle(third := spending.reserve(query(30)), "rejected", micro=30, note="429")
    assert spending.committed == 70 and third > second
    entries = ledger.entries()
    assert [(e.status, e.micro, e.tokens, e.model) for e in entries] == [
        ("answered", 30, 7, "m-1"),
        ("lost", 40, 10, ""),
        ("rejected", 0, 0, ""),
    ]
    assert ledger.entries("runs/b") == []


def test_teachers_have_budgets_of_their_own(ledger: Ledger) -> None:
    new_budget(ledger).reserve(query(100))
    new_budget(ledger, teacher="vendor:b").reserve(query(100))
    assert ledger.committed("vendor:a") == ledger.committed("vendor:b") == 100
    assert ledger.committed("vendor:c") == 0
    new_budget(ledger, budget=None).reserve(query(10**12))


def test_rows_are_never_changed_and_queries_settled_once(ledger: Ledger) -> None:
    spending = new_budget(ledger)
    number = spending.reserve(query(5))
    spending.settle(number, "answered")
    with pytest.raises(StoreError, match="UNIQUE"):
        spending.settle(number, "lost")
    with sqlite3.connect(ledger.file) as db:
        for statement in ("DELETE FROM entries", "UPDATE entries SET micro = 0"):
            with pytest.raises(sqlite3.DatabaseError, match="append-only"):
                db.execute(statement)


def test_many_threads_never_pass_the_budget(ledger: Ledger) -> None:
    refused, done = [], []

    def spend() -> None:
        spending = new_budget(ledger, budget=1000)
        for _ in range(40):
            try:
                number = spending.reserve(query(10))
            except BudgetReached:
                refused.append(1)
            else:
                spending.settle(number, "answered", micro=9)
                done.append(1)

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(refused) == 320
    assert 990 < ledger.committed("vendor:a") <= 1000
    assert ledger.committed("vendor:a") == 9 * len(done)


SPENDER = """
import sys
from pathlib import Path
from vl2v.embeddings.bill import LedgerBudget
from vl2v.embeddings.ledger import Ledger
from vl2v.teachers.paid.teacher import Query
with Ledger(Path(sys.argv[1])) as ledger:
    spending = LedgerBudget(ledger, "vendor:a", "USD", None, "here")
    while True:
        number = spending.reserve(Query("image", 1, 1, 3))
        print("left", flush=True)
        spending.settle(number, "answered", micro=2)
"""


def test_a_killed_process_has_counted_all_that_left(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SPENDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    left = sum(1 for _ in zip(process.stdout, range(50), strict=False))
    os.kill(process.pid, signal.SIGKILL)
    left += sum(line == "left\n" for line in process.stdout)
    process.wait()
    with Ledger(tmp_path) as ledger:
        entries = ledger.entries()
        assert len(entries) >= left
        assert sum(entry.status == "reserved" for entry in entries) <= 1
        assert ledger.committed("vendor:a") == sum(entry.micro for entry in entries)


def test_not_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"something else, longer than a header of SQLite could be" * 20)
    with pytest.raises(StoreError, match="the file is corrupt"):
        Ledger(tmp_path)
    (tmp_path / "ledger.sqlite").unlink()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("CREATE TABLE things (a)")
    with pytest.raises(StoreError, match="is not a ledger of vl2v"):
        Ledger(tmp_path)


@pytest.mark.parametrize(
    ("micro", "text"), [(0, "0.00 EUR"), (5_000_000, "5.00 EUR"), (1_500_000, "1.50 EUR"), (123, "0.000123 EUR")]
)
def test_money(micro: int, text: str) -> None:
    assert money(micro, "EUR") == text


def test_the_key_of_a_request_that_never_ended_is_used_again(ledger: Ledger) -> None:
    spending = new_budget(ledger, budget=None)
    sent = replace(query(5), digest="d1", key="k1")
    assert spending.key_of("d1") is None and spending.key_of("") is None
    number = spending.reserve(sent)
    assert spending.key_of("d1") == "k1" and new_budget(ledger, teacher="vendor:b").key_of("d1") is None
    spending.settle(number, "lost")
    assert spending.key_of("d1") == "k1", "the vendor may have an answer to it"
    for status in ("rejected", "wrong", "answered"):
        spending.settle(spending.reserve(replace(sent, key=status)), status)
        assert spending.key_of("d1") is None, "only the newest request counts"


def test_a_key_is_forgotten_after_a_day(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    spending = new_budget(ledger)
    spending.reserve(replace(query(5), digest="d1", key="k1"))
    now = time.time()
    monkeypatch.setattr("vl2v.embeddings.ledger.time.time", lambda: now + 86_401)
    assert spending.key_of("d1") is None


def test_what_a_query_cost_above_its_reservation_never_passes_the_budget(ledger: Ledger) -> None:
    spending = new_budget(ledger, budget=100)
    first, second = spending.reserve(query(20)), spending.reserve(query(20))
    spending.settle(first, "answered", micro=50)
    with pytest.raises(BudgetReached, match=r"cost 0\.00002 USD more than the budget had left, by the vendor's own"):
        spending.settle(second, "answered", micro=70)
    assert spending.committed == 100
    assert [entry.micro for entry in ledger.entries()] == [50, 50]


def test_a_ledger_of_the_first_version_is_resumed(tmp_path: Path) -> None:
    before = Path(__file__).parents[1] / "formats/v1/paid/ledger.sqlite"
    shutil.copy(before, tmp_path)
    with Ledger(tmp_path) as opened:
        entries = opened.entries()
        teacher = entries[0].teacher
        paid = opened.committed(teacher)
        assert paid == sum(entry.micro for entry in entries if entry.teacher == teacher)
        spending = new_budget(opened, None, teacher)
        spending.settle(spending.reserve(replace(query(7), digest="d", key="k")), "answered")
    with Ledger(tmp_path) as again:
        assert again.committed(teacher) == paid + 7 and len(again.entries()) == len(entries) + 1


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_a_password_that_an_earlier_version_wrote_leaves_the_file(tmp_path: Path, schema: int) -> None:
    file, host = tmp_path / "ledger.sqlite", "openai-compatible:https://{}host/v1#m"
    shutil.copy(Path(__file__).parents[1] / "formats/v1/paid/ledger.sqlite", file)
    names = "at, query, teacher, asker, kind, status, count, tokens, micro, currency, balance, model, note"
    rows = [
        (1, "reserved", 50, 50, host.format("me:hunter2@"), ""),
        (1, "answered", 40, 40, host.format("me:hunter2@"), "307 to https://x?api_key=hunter2&a=1"),
        (3, "reserved", 30, 30, host.format("you:hunter3@"), ""),
        (4, "reserved", 20, 20, "jina:m", "a note"),
        (3, "lost", 30, 30, host.format("you:hunter3@"), ""),
    ]
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("DROP TRIGGER kept")
        db.execute("DELETE FROM entries")
        if schema > 1:
            db.execute("ALTER TABLE entries ADD COLUMN digest TEXT NOT NULL DEFAULT ''")
            db.execute("ALTER TABLE entries ADD COLUMN key TEXT NOT NULL DEFAULT ''")
            db.execute("CREATE INDEX by_digest ON entries (digest) WHERE digest != ''")
        if schema > 2:
            db.execute("ALTER TABLE entries ADD COLUMN crc INTEGER")
        for query_, status, micro, balance, teacher, note in rows:
            asker = "https://x?token=hunter2"
            row = (1.5, query_, teacher, asker, "text", status, 1, 9, micro, "USD", balance, "", note)
            db.execute(f"INSERT INTO entries ({names}) VALUES ({', '.join('?' * 13)})", row)
            if schema > 2:
                last = "UPDATE entries SET crc = ? WHERE id = (SELECT max(id) FROM entries)"
                db.execute("DROP TRIGGER IF EXISTS fixed")
                db.execute(last, (zlib.crc32(repr((*row, "", "")).encode()),))
        db.execute("CREATE TRIGGER kept BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END")
        db.execute(
            "CREATE TRIGGER IF NOT EXISTS fixed BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END"
        )
        db.execute(f"PRAGMA user_version = {schema}")
    db.close()
    with Ledger(tmp_path) as opened:
        assert opened.committed(host.format("")) == 70 and opened.committed("jina:m") == 20
        entries = opened.entries()
        assert [(entry.teacher, entry.micro) for entry in entries] == [
            (host.format(""), 40),
            (host.format(""), 30),
            ("jina:m", 20),
        ]
        assert entries[0].note == "307 to https://x?api_key=***&a=***" and entries[2].note == ""
        for path in tmp_path.iterdir():
            assert b"hunter" not in path.read_bytes(), path.name
        spending = new_budget(opened, 75, host.format(""))
        with pytest.raises(BudgetReached):
            spending.reserve(query(6))
        spending.settle(spending.reserve(query(5)), "answered")
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            sql(file, "UPDATE entries SET micro = 0")
    assert b"hunter" not in file.read_bytes()


def test_a_damaged_entry_is_not_made_good_by_taking_a_password_out(tmp_path: Path) -> None:
    with Ledger(tmp_path) as opened:
        new_budget(opened, teacher="openai-compatible:http://a:hunter2@host#m").reserve(query(9))
    sql(
        tmp_path / "ledger.sqlite",
        "DROP TRIGGER fixed",
        "UPDATE entries SET micro = 1",
        "CREATE TRIGGER fixed BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'no'); END",
        "PRAGMA user_version = 3",
    )
    with Ledger(tmp_path) as again, pytest.raises(StoreError, match="the entry of query 1 is damaged"):
        again.entries()
    assert b"hunter" not in (tmp_path / "ledger.sqlite").read_bytes()


def two_queries(folder: Path) -> None:
    with Ledger(folder) as ledger:
        for _ in range(2):
            number = ledger.reserve("jina:m", "runs/a", "USD", Query("image", 7, 70, 9), None)
            ledger.settle(number, "answered", 70, 9)


def spoil(folder: Path, *statements: str) -> None:
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        db.execute("DROP TRIGGER kept")
        db.execute("DROP TRIGGER fixed")
        for statement in statements:
            db.execute(statement)
    db.close()


@pytest.mark.parametrize(
    ("which", "count"), [("1", 1), ("2", 1), ("3", 1), ("4", 1), ("3, 4", 2), ("2, 4", 2), ("1, 2, 3, 4", 4)]
)
def test_entries_that_were_deleted_are_missed(tmp_path: Path, which: str, count: int) -> None:
    two_queries(tmp_path)
    spoil(tmp_path, f"DELETE FROM entries WHERE id IN ({which})")
    with pytest.raises(StoreError, match=rf"{count} of 4 entries are gone.*restore a backup"):
        Ledger(tmp_path)


def test_a_last_entry_that_is_another_one_is_missed(tmp_path: Path) -> None:
    two_queries(tmp_path)
    row = "4, 2.0, 3, 'jina:m', 'runs/a', 'image', 'answered', 7, 1, 1, 'USD', 10, '', '', '', '', 5"
    spoil(tmp_path, "DELETE FROM entries WHERE id = 4", f"INSERT INTO entries VALUES ({row})")
    with pytest.raises(StoreError, match="the last entry is damaged: restore a backup"):
        Ledger(tmp_path)


@pytest.mark.parametrize("version", [1, 4])
def test_the_last_entry_of_an_earlier_version_is_missed_once_that_is_upgraded(tmp_path: Path, version: int) -> None:
    if version == 1:
        shutil.copy(Path(__file__).parents[1] / "formats/v1/paid/ledger.sqlite", tmp_path)
    else:
        two_queries(tmp_path)
        with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
            db.execute("DROP TABLE tail")
            db.execute("PRAGMA user_version = 4")
        db.close()
    for _ in range(2):
        with Ledger(tmp_path):
            ((last,),) = sql(tmp_path / "ledger.sqlite", "SELECT max(id) FROM entries")
    spoil(tmp_path, f"DELETE FROM entries WHERE id = {last}")
    with pytest.raises(StoreError, match=f"1 of {last} entries are gone"):
        Ledger(tmp_path)


def test_entries_that_an_earlier_version_adds_meanwhile_are_taken(tmp_path: Path) -> None:
    two_queries(tmp_path)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("UPDATE tail SET entries = 2, crc = (SELECT crc FROM entries WHERE id = 2)")
    db.close()
    two_queries(tmp_path)
    with Ledger(tmp_path) as ledger:
        assert len(ledger.entries()) == 4
