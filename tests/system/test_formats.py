"""What earlier versions wrote stays readable: stores, ledgers, runs, exports; a checkpoint is resumed or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from typed import typed
from vl2v import Run, load
from vl2v.deploy import runtime

EARLIER = Path(__file__).parents[1] / "formats"
TEACHER = "openai-compatible:http://127.0.0.1:8123/v1#tiny"  # nobody listens there any more


@pytest.fixture(params=sorted(run.parent.name for run in EARLIER.glob("*/run")))
def earlier(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of an earlier version's files, which is also the working directory."""
    folder = tmp_path / "earlier"
    shutil.copytree(EARLIER / request.param, folder)
    monkeypatch.chdir(folder)
    return folder


def test_a_student_and_its_export_predict_as_they_did(earlier: Path) -> None:
    expected = json.loads((earlier / "predictions.json").read_text())
    for model in (load("run"), runtime.load("export.onnx")):
        found = [prediction.probabilities["circle"] for prediction in model.predict(list(expected))]
        assert found == pytest.approx(list(expected.values()), abs=1e-4)


def test_predictions_are_printed_in_columns(earlier: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = next(iter(json.loads((earlier / "predictions.json").read_text())))
    assert typed(capfd, "predict", "run", image).stdout == f"{image}\tcircle\t1.000\n"


def test_a_finished_run_is_opened(earlier: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = Run("run")
    assert run.classifier.about["images"] == {"paint": 8}
    assert run.evaluation is not None and [row.metrics.images for row in run.evaluation.rows] == [2, 2, 10]
    done = typed(capfd, "evaluate", "run", "--store", "store")
    assert done.returncode == 0, done.stderr
    assert "photo *" in done.stdout


def test_stored_embeddings_are_found(earlier: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("embed", "--data", "data", "--target", "photo", "--set", "teacher.precision=fp32", "--dry-run")
    assert " 0 pending" in typed(capfd, *words, "--store", "store").stdout


def test_paid_embeddings_and_their_bill_are_found(
    earlier: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    assert "0.028 USD" in typed(capfd, "bill", "--store", "paid").stdout
    words = ("embed", "--data", "data", "--target", "photo", "--teacher", TEACHER, "--dry-run")
    assert " 0 pending" in typed(capfd, *words, "--store", "paid").stdout


def test_an_interrupted_run_is_resumed_or_refused_in_a_line(earlier: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("distill", "--config", "interrupted/config.toml", "--out", "interrupted", "--store", "store")
    done = typed(capfd, *words)
    if done.returncode:
        assert done.returncode == 2 and "Traceback" not in done.stderr and "--out" in done.stderr
    else:
        steps = [json.loads(line) for line in (earlier / "interrupted/metrics.jsonl").read_text().splitlines()]
        assert [(row["stage"], row["step"]) for row in steps] == [
            ("align", 2), ("align", 4), ("distill", 2), ("distill", 4),
        ]  # fmt: skip
