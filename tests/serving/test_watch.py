"""What the server remembers of live traffic, and what is read from it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vl2v.cli.app import app
from vl2v.errors import DataError
from vl2v.runtime import load
from vl2v.serving import watch
from vl2v.serving.watch import Watch, read_log

from .conftest import Servers, http


def files(folder: Path) -> list[tuple[str, bytes]]:
    return [("picture", file.read_bytes()) for file in sorted(folder.rglob("*.png"))]


def test_traffic_is_logged_without_pictures_and_monitored(
    served: Servers, opened: Path, shapes: Path, tmp_path: Path
) -> None:
    log = tmp_path / "live.jsonl"
    url = served(log=log)
    sent = files(shapes / "paint")
    said = http.post(f"{url}/predict", files=sent).json()["predictions"]
    gauge = float(re.search(r"^vl2v_drift_distance (\S+)$", http.get(f"{url}/metrics").text, re.M).group(1))
    served.stop()
    assert log.stat().st_mode & 0o077 == 0 and all(data not in log.read_bytes() for _, data in sent)
    traffic = read_log(log, load(opened))
    assert traffic.labels == [answer["label"] for answer in said] and traffic.broken == 0
    student = load(opened, threads=1)
    expected = student.run(np.stack([student.view(data) for _, data in sent]))
    np.testing.assert_allclose(traffic.rows, expected, atol=1e-3)
    told = CliRunner().invoke(app, ["monitor", str(log), "--run", str(opened), "--json"])
    found = json.loads(told.stdout)
    assert found["pictures"] == len(sent) and found["distance"] == pytest.approx(gauge, rel=0.05)
    told = CliRunner().invoke(app, ["monitor", str(log), "--run", str(opened.parent)])
    assert told.exit_code == 0 and "from the training domains" in told.stdout and "unknown" in told.stdout


def test_a_log_is_gone_on_with_after_a_crash(opened: Path, tmp_path: Path, shapes: Path) -> None:
    log, student = tmp_path / "live.jsonl", load(opened, threads=1)
    rows = student.run(np.stack([student.view(data) for _, data in files(shapes / "ink")]))
    for _ in range(2):
        kept = Watch(student, log)
        kept.add(rows, student.predictions(rows))
        kept.close()
        log.write_bytes(log.read_bytes()[:-10])  # the end of the last line was never written
    traffic = read_log(log, student)
    assert (len(traffic.labels), traffic.broken) == (2 * len(rows) - 2, 2)
    assert len(read_log(log, student, last=10).labels) == 9


def test_a_log_has_an_end(opened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, student = tmp_path / "live.jsonl", load(opened, threads=1)
    rows = student.run(np.zeros((1, 32, 32, 3), np.uint8))
    monkeypatch.setattr(watch, "MOST", 1000)
    kept = Watch(student, log)
    for _ in range(100):
        kept.add(rows, student.predictions(rows))
    assert 1000 < log.stat().st_size < 1500
    assert kept.drift().pictures == 100  # what is in memory goes on


def test_another_students_log_is_refused(opened: Path, closed: Path, tmp_path: Path) -> None:
    log = tmp_path / "live.jsonl"
    Watch(load(opened), log).close()
    with pytest.raises(DataError, match="another student's log"):
        Watch(load(closed), log)
    with pytest.raises(DataError, match="another student's log"):
        read_log(log, load(closed))
    log.write_text("something else\n")
    with pytest.raises(DataError, match="not a log of `vl2v serve --log`"):
        Watch(load(opened), log)
    assert log.read_text() == "something else\n"


@pytest.mark.parametrize("form", ["opened", "closed"])
def test_an_export_knows_its_training_domains(form: str, request: pytest.FixtureRequest) -> None:
    student = load(request.getfixturevalue(form))
    kept = student.card["reference"]
    assert set(kept["domains"]) == {"chalk", "ink"} and 0 <= kept["unknown"] <= 1
