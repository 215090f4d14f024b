"""What the server remembers of live traffic, and what is read from it."""

from __future__ import annotations

import json
import re
import shutil
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from little import no_file_larger_than
from vl2v.cli.app import app
from vl2v.deploy.runtime import load
from vl2v.errors import ConfigError, DataError
from vl2v.serving import traffic_log
from vl2v.serving.traffic_log import ImageLog, TrafficLog, read_log

from .conftest import Servers, http


def files(folder: Path) -> list[tuple[str, bytes]]:
    return [("image", file.read_bytes()) for file in sorted(folder.rglob("*.png"))]


def test_traffic_is_logged_without_images_and_monitored(
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
    result = CliRunner().invoke(app, ["monitor", str(log), "--run", str(opened), "--json"])
    found = json.loads(result.stdout)
    assert len(sent) - 1 <= found["images"] <= len(sent), "images that look alike to the student count once"
    assert found["distance"] == pytest.approx(gauge, rel=0.05)
    result = CliRunner().invoke(app, ["monitor", str(log), "--run", str(opened.parent)])
    assert result.exit_code == 0 and "from the training domains" in result.stdout and "unknown" in result.stdout


def test_a_log_is_resumed_after_a_crash(opened: Path, tmp_path: Path, shapes: Path) -> None:
    log, student = tmp_path / "live.jsonl", load(opened, threads=1)
    rows = student.run(np.stack([student.view(data) for _, data in files(shapes / "ink")]))
    for _ in range(2):
        kept = TrafficLog(student, log)
        kept.add(rows, student.predictions(rows))
        kept.close()
        log.write_bytes(log.read_bytes()[:-10])  # the end of the last line was never written
    traffic = read_log(log, student)
    assert (len(traffic.labels), traffic.broken) == (2 * len(rows) - 2, 2)
    assert len(read_log(log, student, last=10).labels) == 9


def test_a_full_log_makes_way_for_another(opened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, student = tmp_path / "live.jsonl", load(opened, threads=1)
    rows = student.run(np.zeros((1, 32, 32, 3), np.uint8))
    monkeypatch.setattr(traffic_log, "HALF", 5000)
    kept = TrafficLog(student, log)
    for number in range(200):
        monkeypatch.setattr(time, "time", lambda number=number: number)
        kept.add(rows, student.predictions(rows))
    kept.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["live.jsonl", "live.jsonl.1"]
    assert all(file.stat().st_size < 5500 and file.stat().st_mode & 0o077 == 0 for file in files)
    assert files[1].stat().st_size > 5000
    times = read_log(log, student).times
    assert times == list(range(round(times[0]), 200)) and 0 < times[0] < 150  # the latest, without a gap
    last = read_log(log, student, last=40)
    assert last.times == list(range(160, 200)) and len(last.rows) == len(last.labels) == len(last.best) == 40
    result = CliRunner().invoke(app, ["monitor", str(log), "--run", str(opened), "--last", "40"])
    began, ended = (datetime.fromtimestamp(at).astimezone().isoformat(" ", "seconds") for at in (160, 199))
    assert f"images of {began} to {ended}\n" in result.stdout
    found = json.loads(CliRunner().invoke(app, ["monitor", str(log), "--run", str(opened), "--json"]).stdout)
    assert found["last"] == ended and found["images"] == 1, "one image, again and again"


def test_a_full_disk_ends_the_log_and_fails_no_request(
    served: Servers, tmp_path: Path, image: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "live.jsonl"
    url = served(log=log)
    assert http.post(f"{url}/predict", files={"image": image}).status_code == 200
    full = log.read_bytes()
    with no_file_larger_than(len(full) + 10):
        answers = [http.post(f"{url}/predict", files={"image": image}) for _ in range(3)]
    answers.append(http.post(f"{url}/predict", files={"image": image}))  # there is room again
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [record.message for record in caplog.records] == [
        "the log ends here, serving continues: [Errno 27] File too large"
    ]
    served.stop()
    assert log.read_bytes()[: len(full)] == full and log.stat().st_size <= len(full) + 10


def test_the_export_whose_log_it_is_is_found(opened: Path, closed: Path, tmp_path: Path) -> None:
    shutil.copyfile(closed, tmp_path / "student-int8.onnx")
    shutil.copyfile(opened, tmp_path / "student.onnx")
    log = tmp_path / "live.jsonl"
    for served in (opened, closed):
        TrafficLog(load(served), log).close()
        result = CliRunner().invoke(app, ["monitor", str(log), "--run", str(tmp_path)])
        assert result.exit_code == 0 and "too few images to tell (0 of 30)" in result.stdout, result.output
        log.unlink()
    log.write_text('{"vl2v log": 1, "student": "another"}\n')
    result = CliRunner().invoke(app, ["monitor", str(log), "--run", str(tmp_path)])
    assert isinstance(result.exception, DataError) and "another student's log" in str(result.exception)


def test_another_students_log_is_refused(opened: Path, closed: Path, tmp_path: Path) -> None:
    log = tmp_path / "live.jsonl"
    TrafficLog(load(opened), log).close()
    with pytest.raises(DataError, match="another student's log"):
        TrafficLog(load(closed), log)
    with pytest.raises(DataError, match="another student's log"):
        read_log(log, load(closed))
    log.write_text("something else\n")
    with pytest.raises(DataError, match="not a log of `vl2v serve --log`"):
        TrafficLog(load(opened), log)
    assert log.read_text() == "something else\n"
    log.rename(tmp_path / "other.jsonl.1")
    with pytest.raises(DataError, match=r"other\.jsonl\.1: not a log"):  # it would be lost one day
        TrafficLog(load(opened), tmp_path / "other.jsonl")


@pytest.mark.parametrize("form", ["opened", "closed"])
def test_an_export_knows_its_training_domains(form: str, request: pytest.FixtureRequest) -> None:
    student = load(request.getfixturevalue(form))
    kept = student.card["reference"]
    assert set(kept["domains"]) == {"chalk", "ink"} and 0 <= kept["unknown"] <= 1


def test_images_are_saved_once_each_as_they_came_and_only_where_that_is_wanted(
    served: Servers, shapes: Path, tmp_path: Path
) -> None:
    sent = files(shapes / "ink")[:5]
    url = served()
    http.post(f"{url}/predict", files=sent).raise_for_status()
    assert not list(tmp_path.rglob("*.png")) and not http.get(f"{url}/about").json()["saves_images"]
    folder = tmp_path / "traffic"
    url = served(images=ImageLog(folder, 2**20))
    assert http.get(f"{url}/about").json()["saves_images"]
    for _ in range(2):
        http.post(f"{url}/predict", files=sent).raise_for_status()
    assert http.post(f"{url}/predict", files=[("image", b"no image")]).status_code == 400
    served.stop()
    saved = sorted(folder.iterdir())
    assert {file.read_bytes() for file in saved} == {data for _, data in sent} and len(saved) == 5
    assert all(file.suffix == ".png" and file.stat().st_mode & 0o077 == 0 for file in saved)


def test_the_oldest_images_make_way_and_no_file_of_anyone_else_does(shapes: Path, tmp_path: Path) -> None:
    sent = [data for _, data in files(shapes / "ink")]
    most = sum(map(len, sent[-4:]))
    log = ImageLog(tmp_path / "traffic", most)
    log.add(sent)
    assert {file.read_bytes() for file in log.folder.iterdir()} == set(sent[-4:])
    (log.folder / f"{'0' * 64}.png.new").touch()  # of a server that was killed
    again = ImageLog(log.folder, most - 1)
    assert {file.read_bytes() for file in again.folder.iterdir()} < set(sent[-4:]), "counted when it is opened again"
    (log.folder / "holiday.jpg").touch()
    with pytest.raises(ConfigError, match=r"holds holiday\.jpg"):
        ImageLog(log.folder, most)


def test_a_full_disk_ends_the_saving_of_images_and_nothing_else(
    served: Servers, image: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = ImageLog(tmp_path / "traffic", 2**20)
    with no_file_larger_than(10):
        log.add([image])
    log.add([image])
    assert not list(log.folder.iterdir()) and "no more images are saved" in caplog.text
