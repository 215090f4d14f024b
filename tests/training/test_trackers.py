"""`--log`: the rows of metrics.jsonl reach another tool as they are written."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import vl2v
from vl2v.errors import ConfigError, MissingExtra
from vl2v.training.loop import TRACKERS, tracking


def test_every_row_reaches_the_hook_and_the_tool(quick: dict[str, Any], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    heard: list[dict[str, Any]] = []
    with tracking("tensorboard", tmp_path / "run") as log:

        def on_metrics(row: dict[str, Any]) -> None:
            heard.append(row)
            log(row)

        assert not (tmp_path / "run").exists()  # a tool is opened with the first row
        vl2v.distill(quick, tmp_path / "run", store=tmp_path / "store", on_metrics=on_metrics)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert heard == rows and {row["stage"] for row in rows} == {"align", "distill"}
    assert {"loss", "image", "text", "lr", "images_per_second", "seconds", "val_accuracy", "val_loss"} <= rows[
        -1
    ].keys()
    assert all(row["images_per_second"] > 0 for row in rows)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("loss", "lr", "val_accuracy"):
        logged = [(event.step, event.value) for event in events.Scalars(f"distill/{name}")]
        wanted = [(row["step"], row[name]) for row in rows if row["stage"] == "distill"]
        assert [step for step, _ in logged] == [step for step, _ in wanted]
        assert [value for _, value in logged] == pytest.approx([value for _, value in wanted], rel=1e-5)


@pytest.mark.parametrize("name", [name for name in TRACKERS if find_spec(name) is None])
def test_a_tool_that_is_not_installed_names_its_extra(name: str, tmp_path: Path) -> None:
    message = rf"{name} is not installed: pip install 'vl2v\[{name}\]'"
    with pytest.raises(MissingExtra, match=message), tracking(name, tmp_path):
        pass


def test_an_unknown_tool_is_refused(tmp_path: Path) -> None:
    message = "--log magic: choose one of wandb, mlflow, trackio, tensorboard"
    with pytest.raises(ConfigError, match=message), tracking("magic", tmp_path):
        pass


def test_mlflow_gets_every_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny isn't installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database takes ten seconds to make
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri(tmp_path / "mlruns")
    rows = [{"stage": "align", "step": 5, "loss": 0.5, "images_per_second": 9.0}]
    rows += [{"stage": "distill", "step": step, "loss": 1 / step} for step in (2, 4)]
    with tracking("mlflow", tmp_path / "a run") as log:
        for row in rows:
            log(row)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("vl2v").experiment_id])
    assert (run.info.run_name, run.info.status) == ("a run", "FINISHED")
    assert run.data.metrics == {"align/loss": 0.5, "align/images_per_second": 9.0, "distill/loss": 0.25}
    logged = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "distill/loss")]
    assert logged == [(2, 0.5), (4, 0.25)]
