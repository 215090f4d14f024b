"""The bill: who queried what, when, for how much, paid for or not."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

import vl2v
from typed import Said, typed
from vl2v.cli.store import bill as show_bill
from vl2v.embeddings.bill import LedgerBudget, asker
from vl2v.embeddings.ledger import Entry, Ledger
from vl2v.teachers.paid.teacher import Query


@pytest.fixture
def bill(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    return lambda *words: typed(capfd, "bill", *words, "--store", tmp_path / "store")


def test_nothing_yet(bill, tmp_path: Path) -> None:
    missing = bill()
    assert missing.returncode == 2 and "makes one" in missing.stderr
    with Ledger(tmp_path / "store"):
        pass
    assert bill() == Said(0, "no paid queries\n", "")
    assert bill("--json").stdout == "[]\n"
    assert bill("--csv").stdout.splitlines() == [",".join(Entry.columns())]


def test_teachers_that_cost_nothing_are_on_it_and_runs_are_distinguished(
    bill, quick: dict[str, Any], tmp_path: Path
) -> None:
    queried = vl2v.embed(quick, store=tmp_path / "store").plan
    run = tmp_path / "gone"
    with Ledger(tmp_path / "store") as ledger:
        spending = LedgerBudget(ledger, "vendor:m", "EUR", 10_000, asker(run))
        spending.settle(spending.reserve(Query("image", 4, 40, 400)), "answered", tokens=36, micro=360, model="m")
        spending.reserve(Query("text", 2, 20, 20))
    rows = json.loads(bill("--json").stdout)
    free = [row for row in rows if not row["currency"]]
    assert {row["kind"]: row["count"] for row in free} == {"image": len(queried.pending), "text": 3}
    assert {(row["asker"], row["micro"]) for row in free} == {("", 0)}
    assert rows == sorted(rows, key=lambda row: row["at"])
    paid = list(csv.DictReader(io.StringIO(bill(run, "--csv").stdout)))
    assert [(row["kind"], row["count"], row["micro"], row["status"]) for row in paid] == [
        ("image", "4", "360", "answered"),
        ("text", "2", "20", "reserved"),
    ]
    table = bill().stdout
    assert "free" in table and "recorded:shapes-teacher" in table and "total: 0.00038 EUR" in table
    unknown = bill(tmp_path / "gome")
    assert unknown.returncode == 2
    assert "no such run folder, and none of this name queried a paid teacher" in unknown.stderr


@pytest.mark.parametrize("terminal", [True, False])
def test_prices_are_whole_however_narrow_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    long = "openai-compatible:https://embeddings.a-vendor-with-a-long-name.example/v1/multimodal#a-model/of-some-size"
    with Ledger(tmp_path / "store") as ledger:
        spending = LedgerBudget(ledger, long, "USD", None, asker(tmp_path / "a-run-with-a-name-that-is-long"))
        spending.settle(spending.reserve(Query("image", 123_456, 1_234_567_890, 12_345_678_901)), "answered")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE" if terminal else "NO_COLOR", "1")
    show_bill(store=tmp_path / "store")
    said = capsys.readouterr().out
    table = [line for line in said.splitlines() if "│" in line]
    for figure in ("12345.678901 USD", "123,456", "1,234,567,890"):
        assert any(figure in line for line in table), said
    assert terminal == (max(map(len, table)) <= 80) and (terminal or long in said)
