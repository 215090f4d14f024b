"""A paid teacher from the command line: the price first, a budget that holds, a bill, and no trace of the key."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from little import quick_settings
from typed import Said, typed
from vendor.servers import row, running
from vl2v.embeddings.store import EmbeddingStore
from vl2v.runs.query import embed

PRICE = 20
pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def vendor(tmp_path: Path):
    with running(tmp_path / "vendor", price=PRICE) as opened:
        yield opened


@pytest.fixture
def command(vendor, shapes: Path, recording: Path, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch):
    settings = quick_settings(shapes, recording)
    settings["teacher"] = {"spec": f"openai-compatible:{vendor.url}/v1#stub:m", "logit_scale": 10.0}
    file = tmp_path / "config.toml"
    file.write_text(tomli_w.dumps(settings))

    def vl2v(*words: str | Path, key: str | None = None) -> Said:
        settled = ["--store", tmp_path / "store"] if words[0] != "predict" else []
        given = ["--config", file] if words[0] in ("embed", "distill") else []
        monkeypatch.setenv("VL2V_API_KEY", key or vendor.key)
        return typed(capfd, *words, *given, *settled)

    return vl2v


def bill(command: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(command("bill", "--json").stdout)
    return rows


def test_price_budget_bill_and_a_student(command, vendor, tmp_path: Path) -> None:
    dry = command("embed", "--dry-run")
    assert "72 queries, 0 cached, 72 pending" in dry.stdout, dry.stderr
    assert "requests: 7, tokens: at most" in dry.stdout and "price: at most 0.00156 USD" in dry.stdout
    assert vendor.meter.sold("client") == 0

    poor = command("embed")
    assert poor.returncode == 2 and "raise --budget" in poor.stderr
    assert vendor.meter.sold("client") == 0

    tight = command("embed", "--budget", "0.0009")
    assert tight.returncode == 2 and "of 0.0009 USD are spent or reserved" in tight.stderr, tight.stderr
    assert 0 < vendor.meter.sold("client") * PRICE <= 900

    enough = command("embed", "--budget", "0.002")
    assert enough.returncode == 0 and "bill so far: 0.0016 USD of 0.002 USD" in enough.stdout, enough.stderr
    assert (
        sum(row["count"] for row in bill(command)) == vendor.meter.sold("client") == 72 + 3 + 2 + 2 + 1
    )  # the data URI, as a text
    assert sum(row["micro"] for row in bill(command)) == PRICE * vendor.meter.sold("client")
    assert {row["status"] for row in bill(command)} == {"answered"}

    student = command("distill", "--out", tmp_path / "run")
    assert student.returncode == 0, student.stderr
    assert vendor.meter.sold("client") == 80, "all was known"
    more = command("classes", "add", tmp_path / "run", "zebra", "--budget", "0.002")
    assert more.returncode == 0, more.stderr
    rows = list(csv.DictReader(io.StringIO(command("bill", tmp_path / "run", "--csv").stdout)))
    billed = [(row["kind"], row["count"], row["micro"]) for row in rows]
    assert billed == [(kind, "1", str(PRICE)) for kind in ("text", "image", "text")], "the canaries and the zebra"
    table = command("bill").stdout
    assert "answered" in table and "total: 0.00166 USD" in table


@pytest.mark.parametrize("changed", [False, True])
def test_what_the_common_store_knows_is_not_bought_again(
    changed: bool, command, vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("embed", "--budget", "0.01").returncode == 0
    bought = vendor.meter.sold("client")
    monkeypatch.setattr("vl2v.embeddings.session.default_store", lambda: tmp_path / "store")
    monkeypatch.setenv("VL2V_API_KEY", vendor.key)
    if changed:  # another model under the same name
        monkeypatch.setattr(vendor.teacher, "rows", lambda all_: np.stack([row(b"new" + content) for content in all_]))
    settings = tomllib.loads((tmp_path / "config.toml").read_text())
    said: list[str] = []
    progress = lambda what, done, total, words: said.append(what)  # noqa: E731
    embed(settings, store=tmp_path / "another", budget=0.01, progress=progress)
    with EmbeddingStore(tmp_path / "store") as one, EmbeddingStore(tmp_path / "another") as other:
        (teacher,) = other.teachers()
        taken = {question.asked_at for question in one.queries()} & {q.asked_at for q in other.queries()}
        assert len(taken) == (0 if changed else len(one.queries()))
    result = next(what for what in said if "copied" in what)
    if changed:
        assert result.startswith("nothing is copied") and "of another model" in result
        assert vendor.meter.sold("client") > 2 * bought - 4
    else:
        assert result == f"copied from {tmp_path / 'store'}: 75 embeddings of {teacher.name}"
        assert vendor.meter.sold("client") == bought + 3  # whether it answers as before, and sees images


def test_an_interrupted_embedding_is_resumed_by_a_run(command, vendor, tmp_path: Path) -> None:
    command("embed", "--select", "12", "--budget", "0.01")
    assert vendor.meter.sold("client") == 12 + 3 + 2 + 1
    run = command("distill", "--select", "12", "--out", tmp_path / "run", "--budget", "0.01")
    assert run.returncode == 0, run.stderr
    assert vendor.meter.sold("client") == 18


def test_the_key_is_nowhere_when_all_goes_wrong(command, vendor, tmp_path: Path) -> None:
    wrong = "sk-wrong-0123456789"
    said = [command("embed", "--budget", "1", key=wrong), command("distill", "--out", tmp_path / "run", key=wrong)]
    command("embed", "--select", "5", "--budget", "1")
    vendor.stop()
    said += [command("distill", "--out", tmp_path / "run", "--budget", "1"), command("bill"), command("bill", "--json")]
    assert said[0].returncode == 2 and "the key in VL2V_API_KEY isn't accepted" in said[0].stderr
    assert said[2].returncode == 2 and "gave up after 8 attempts" in said[2].stderr
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.name == "ledger.sqlite" for file in files)
    for key in (wrong, vendor.key):
        assert not [file for file in files if key.encode() in file.read_bytes()]
        assert not [done for done in said if key in done.stdout + done.stderr]
