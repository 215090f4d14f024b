"""Training until source validation is flat, and once more on all source images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vl2v
from little import Interrupted, quick_settings, stopping
from vl2v.errors import ConfigError
from vl2v.methods.averaging import TailAverage
from vl2v.training.stage import PATIENCE


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(one: vl2v.Run, other: vl2v.Run) -> bool:
    mine, theirs = (run.classifier.student.state_dict() for run in (one, other))
    return all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.fixture
def settings(shapes: Path, recording: Path) -> dict[str, Any]:
    """Return settings of a run that can't get better: its rate is next to nothing."""
    found = quick_settings(shapes, recording, "kd")
    stage = {"steps": 40, "lr": 1e-12, "batch_per_domain": 2, "eval_every": 1}
    return {**found, "stages": {"distill": stage}, "train": {**found["train"], "steps": "auto"}}


def test_a_stage_ends_where_validation_is_flat_interrupted_or_not(settings: dict[str, Any], tmp_path: Path) -> None:
    whole = vl2v.distill(settings, tmp_path / "whole", store=tmp_path / "store")
    rows = rows_of(whole.folder)
    assert len(rows) == 1 + PATIENCE, "none is better than the first"
    assert {row["lr"] for row in rows} == {1e-12}, "at a constant rate"
    with pytest.raises(Interrupted):
        vl2v.distill(settings, tmp_path / "part", store=tmp_path / "store", progress=stopping("distill", len(rows) - 2))
    part = vl2v.distill(settings, tmp_path / "part", store=tmp_path / "store")
    assert len(rows_of(part.folder)) == len(rows) and same(whole, part)


def test_it_is_trained_once_more_on_all_source_images_for_as_long_as_validation_chose(
    shapes: Path, recording: Path, tmp_path: Path
) -> None:
    settings = quick_settings(shapes, recording, "kd")
    settings["train"] = {**settings["train"], "retrain": "on"}
    run = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    rows = rows_of(run.folder)
    best = max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"], -row["step"]))["step"]
    about = run.classifier.about
    assert about["retrained"] == best == rows_of(run.folder / "again")[-1]["step"]
    once = vl2v.distill(
        {**settings, "train": {**settings["train"], "retrain": "off"}}, tmp_path / "off", store=tmp_path / "store"
    )
    before = once.classifier.about
    assert sum(about["images"].values()) > sum(before["images"].values())
    assert about["validation_accuracy"] == before["validation_accuracy"], "as it was while nobody had learnt them"
    assert run.classifier.temperature == once.classifier.temperature and not same(run, once)
    assert run.evaluation is not None and any("trained on at last" in note for note in run.evaluation.notes)
    assert not (run.folder / "again" / "checkpoints").exists()


def test_once_more_ends_alike_after_an_interruption(shapes: Path, recording: Path, tmp_path: Path) -> None:
    settings = quick_settings(shapes, recording, "kd")
    settings["train"] = {**settings["train"], "retrain": "on", "select": "last"}
    whole = vl2v.distill(settings, tmp_path / "whole", store=tmp_path / "store")
    seen = []

    def second_time(result: str, done: int, total: int, words: str) -> None:
        seen.append((result, done))
        if seen.count(("distill", 3)) == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        vl2v.distill(settings, tmp_path / "part", store=tmp_path / "store", progress=second_time)
    part = vl2v.distill(settings, tmp_path / "part", store=tmp_path / "store")
    assert same(whole, part)


def test_what_can_not_be_trained_once_more_is_refused(shapes: Path, recording: Path, tmp_path: Path) -> None:
    settings = quick_settings(shapes, recording, "kd")
    settings["train"] = {**settings["train"], "retrain": "on", "swad": True}
    with pytest.raises(ConfigError, match=r"train\.swad"):
        vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")


def test_the_mean_of_the_last_steps_counts_each_alike() -> None:
    average = TailAverage(3)
    average.begin({"w": torch.zeros(2)}, steps=20)
    taken = [torch.tensor([float(step), 1.0]) for step in range(1, 9)]
    for weights in taken[:5]:
        average.step({"w": weights})
    again = TailAverage(3)
    again.begin({"w": torch.zeros(2)}, steps=20)
    again.restore(*average.state())
    for weights in taken[5:]:
        again.step({"w": weights})
    torch.testing.assert_close(again.finish({}, {}, lambda weights: pytest.fail("no need"))["w"], sum(taken[3:]) / 5)
    short = TailAverage(100)
    short.begin({}, steps=6)
    assert short.after == 3
