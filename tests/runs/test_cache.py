"""Runs that share what they compute alike end with the weights that they would have had alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vl2v
from little import quick_settings
from vl2v.runs import features
from vl2v.runs.predictions import Predictions
from vl2v.students.backbone import pretrained_backbone


def weights(run: vl2v.Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "student" / "student.safetensors")


def same(one: vl2v.Run, other: vl2v.Run) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def fixed_start(settings: dict[str, Any], weights: Path) -> dict[str, Any]:
    return {**settings, "student": {**settings["student"], "weights": str(weights)}}


def test_sharing_changes_no_weight(shapes: Path, recording: Path, tmp_path: Path, monkeypatch) -> None:
    computed = []
    compute = features.compute_features

    def counted(student, pixels, *rest):
        found = compute(student, pixels, *rest)
        computed.append(len(found))
        return found

    monkeypatch.setattr(features, "compute_features", counted)
    backbone, _ = pretrained_backbone("test_efficientnet", "none", image_size=32)
    torch.save(backbone.state_dict(), tmp_path / "start.pth")
    shared_cache, store = tmp_path / "cache", tmp_path / "store"
    for target in ("paint", "ink"):
        for number, lambda_ in enumerate((0.5, 0.9)):
            settings = fixed_start(quick_settings(shapes, recording), tmp_path / "start.pth")
            settings |= {"loss": {"lambda": lambda_}}
            settings["data"]["target"] = [target]
            alone = vl2v.distill(settings, tmp_path / f"alone-{target}-{number}", store=store)
            computed.clear()
            together = vl2v.distill(
                settings, tmp_path / f"shared-{target}-{number}", store=store, shared_cache=shared_cache
            )
            assert same(alone, together)
            wanted = {("paint", 0): 72, ("paint", 1): 0, ("ink", 0): 36, ("ink", 1): 0}
            assert sum(computed) == wanted[target, number]  # each image once, whatever the target


def test_a_first_stage_is_gone_through_once(shapes: Path, recording: Path, tmp_path: Path) -> None:
    shared_cache, store = tmp_path / "cache", tmp_path / "store"
    settings = quick_settings(shapes, recording)
    first = vl2v.distill(settings, tmp_path / "first", store=store, shared_cache=shared_cache)
    stages: list[str] = []
    settings["stages"]["distill"] |= {"lr": 1e-4}
    second = vl2v.distill(
        settings,
        tmp_path / "second",
        store=store,
        shared_cache=shared_cache,
        progress=lambda what, *rest: stages.append(what),
    )
    assert "align" not in stages and "distill" in stages
    assert same(second, vl2v.distill(settings, tmp_path / "alone", store=store))
    assert not same(first, second)
    stages = [line.split('"stage": "')[1][:5] for line in (second.folder / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["align", "align", "disti", "disti", "disti"]


def test_a_first_stage_of_another_lambda_is_not_taken(
    shapes: Path, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_cache, store, ended = tmp_path / "cache", tmp_path / "store", []
    for share in (0.0, 1.0):  # chosen on the same images, as after a change of the rule
        monkeypatch.setattr("vl2v.runs.start.best_lambda", lambda *found, share=share: share)
        settings = quick_settings(shapes, recording, "adip-plus")
        alone = vl2v.distill(settings, tmp_path / f"alone-{share}", store=store)
        ended.append(vl2v.distill(settings, tmp_path / f"shared-{share}", store=store, shared_cache=shared_cache))
        assert same(alone, ended[-1])
    assert not same(*ended)


def test_methods_that_begin_alike_share_their_beginning(shapes: Path, recording: Path, tmp_path: Path) -> None:
    shared_cache, store = tmp_path / "cache", tmp_path / "store"
    for first, second, stage in (("adip", "adip-plus", "align"), ("lp-ft", "soup", "probe")):
        vl2v.distill(quick_settings(shapes, recording, first), tmp_path / first, store=store, shared_cache=shared_cache)
        stages: list[str] = []
        settings = quick_settings(shapes, recording, second)
        shared = vl2v.distill(
            settings,
            tmp_path / second,
            store=store,
            shared_cache=shared_cache,
            progress=lambda what, *rest, stages=stages: stages.append(what),
        )
        assert stage not in stages
        assert same(shared, vl2v.distill(settings, tmp_path / f"{second}-alone", store=store))
    other = quick_settings(shapes, recording, "adip") | {"loss": {"lambda": 0.9}}
    stages = []
    vl2v.distill(
        other,
        tmp_path / "other",
        store=store,
        shared_cache=shared_cache,
        progress=lambda what, *rest: stages.append(what),
    )
    assert "align" in stages  # its loss is another


def test_measuring_alone_writes_nothing(trained: Callable[[str], vl2v.Run]) -> None:
    run = trained("adip")
    before = {file: file.stat().st_mtime_ns for file in run.folder.rglob("*")}
    vl2v.evaluate(run, store=run.folder.with_name("store"))
    assert {file: file.stat().st_mtime_ns for file in run.folder.rglob("*")} == before


def test_every_image_that_was_measured_has_its_prediction_saved(trained: Callable[[str], vl2v.Run]) -> None:
    run = trained("adip")
    predictions = Predictions.load(run.folder)
    unseen = predictions["domain"] == predictions.domains.index("paint")
    right = predictions["label"] == predictions["answer"]
    assert run.evaluation is not None
    assert np.isclose(right[unseen].mean(), run.evaluation.mean(role="unseen"))
    assert predictions["in_split"][unseen].sum() == 36 - int(0.2 * 36)
    assert (predictions["teacher"][unseen] == -1).all() and (predictions["teacher"][~unseen] >= 0).all()
