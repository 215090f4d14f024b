"""`--quick`: the backbone's lower blocks stay as they are, and their activations are computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vl2v
from little import Interrupted, quick_settings, stopping
from vl2v.errors import ConfigError, StudentError
from vl2v.methods import METHODS
from vl2v.runs.settings import applicable, resolve
from vl2v.students.backbone import pretrained_backbone
from vl2v.students.student import cuts, split
from vl2v.tree import merge

QUICK = {"train": {"quick": "blocks.3", "quick_views": 3}}


def weights(run: vl2v.Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "student" / "student.safetensors")


def changed(run: vl2v.Run, other: vl2v.Run) -> set[str]:
    a, b = weights(run), weights(other)
    return {key for key in a if not torch.equal(a[key], b[key])}


@pytest.mark.parametrize("method", ["adip", "kd", "miro", "rise", "sagm"])
def test_only_the_upper_blocks_learn_and_a_killed_run_ends_the_same(
    method: str, shapes: Path, recording: Path, tmp_path: Path
) -> None:
    settings = merge(quick_settings(shapes, recording, method), QUICK)
    run = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    stage = "distill" if method != "miro" and method != "sagm" else "finetune"
    with pytest.raises(Interrupted):
        vl2v.distill(settings, tmp_path / "other", store=tmp_path / "store", progress=stopping(stage, 4))
    assert [file.name for file in sorted((tmp_path / "other" / "activations").iterdir())] == [
        "training.f16",
        "validation.f16",
    ]
    resumed = vl2v.distill(settings, tmp_path / "other", store=tmp_path / "store")
    assert not changed(run, resumed), "killed or not"
    assert not (run.folder / "activations").exists(), "nobody needs them any more"
    fresh, _ = pretrained(run)
    learnt = {key for key, value in fresh.items() if not torch.equal(weights(run)[f"backbone.{key}"], value)}
    assert learnt and all(key.startswith(("blocks.3", "blocks.4", "conv_head", "bn2")) for key in learnt), learnt


def test_trained_once_more_the_lower_blocks_stay_as_they_were(shapes: Path, recording: Path, tmp_path: Path) -> None:
    settings = merge(quick_settings(shapes, recording, "erm++"), QUICK)
    run = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    about = run.classifier.about
    assert about["retrained"] > 0 and not (run.folder / "again" / "activations").exists()
    fresh, _ = pretrained(run)
    learnt = {key for key, value in fresh.items() if not torch.equal(weights(run)[f"backbone.{key}"], value)}
    assert learnt and all(key.startswith(("blocks.3", "blocks.4", "conv_head", "bn2")) for key in learnt), learnt
    said: list[str] = []

    def second_time(task: str, done: int, total: int, words: str) -> None:
        said.append(task)
        if task == "finetune" and done and any(task.startswith("once more") for task in said):
            raise Interrupted

    with pytest.raises(Interrupted):
        vl2v.distill(settings, tmp_path / "other", store=tmp_path / "store", progress=second_time)
    assert not changed(run, vl2v.distill(settings, tmp_path / "other", store=tmp_path / "store")), "killed or not"


def pretrained(run: vl2v.Run) -> tuple[dict[str, torch.Tensor], Any]:
    from vl2v.runs.start import new_backbone

    backbone, spec = new_backbone(run.config)
    return backbone.state_dict(), spec


def test_where_it_cant_apply_it_says_why(shapes: Path, recording: Path) -> None:
    def refused(method: str, **more: Any) -> str:
        with pytest.raises(ConfigError) as error:
            resolve(merge(quick_settings(shapes, recording, method), QUICK, more))
        return str(error.value)

    assert "mixes the images" in refused("mixup")
    assert "no stage of method lp" in refused("lp")
    assert "pixels of every batch" in refused("adip", teacher={"online": True})
    assert "teacher.views" in refused("adip", teacher={"views": 2})
    with pytest.raises(ConfigError, match=r"train.quick_views: only with train.quick"):
        resolve({"data": {"path": "x"}, "train": {"quick_views": 3}})


def test_in_a_benchmark_it_is_for_the_methods_that_train_a_backbone() -> None:
    for method, quick in (
        ("zero-shot", False),
        ("adapted-teacher", False),
        ("lp", False),
        ("lp-ft", True),
        ("kd", True),
    ):
        assert ("train" in applicable({**QUICK, "seed": 1}, METHODS[method])) == quick, method


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit", "test_convnext", "test_mambaout"])
def test_both_parts_together_are_the_backbone(name: str) -> None:
    torch.manual_seed(0)
    backbone, spec = pretrained_backbone(name, "none", image_size=None if "vit" in name else 64)
    blank = torch.zeros(1, 3, spec.image_size, spec.image_size)
    backbone.eval()
    made = split(backbone, "auto", blank)
    x = torch.randn(3, *blank.shape[1:])
    torch.testing.assert_close(made.upper(made.lower(x)), backbone(x), rtol=1e-4, atol=1e-5)
    made.freeze()
    trained = [key for key, weight in backbone.named_parameters() if weight.requires_grad]
    assert 0 < len(trained) < len([*backbone.parameters()])
    share = dict(cuts(backbone, blank))[made.cut]
    assert 0.5 < share < 1


def test_a_block_that_isnt_there_is_reported_with_those_that_are() -> None:
    backbone, _ = pretrained_backbone("test_efficientnet", "none", image_size=32)
    backbone.eval()
    with pytest.raises(StudentError, match=r"train.quick = 'blocks.9'.*use one of .*blocks\.3"):
        split(backbone, "blocks.9", torch.zeros(1, 3, 32, 32))


def test_activations_are_shared_and_change_nothing(shapes: Path, recording: Path, tmp_path: Path) -> None:
    runs, passed = {}, []

    def progress(task: str, done: int, total: int, remark: str) -> None:
        passed.append(task)

    for name, shared in (("alone", None), ("first", tmp_path / "shared"), ("second", tmp_path / "shared")):
        settings = merge(quick_settings(shapes, recording, "kd"), QUICK)
        passed.clear()
        runs[name] = vl2v.distill(
            settings, tmp_path / name, store=tmp_path / "store", shared_cache=shared, progress=progress
        )
        assert ("lower blocks" in passed) == (name != "second")
    assert not changed(runs["alone"], runs["first"]) and not changed(runs["alone"], runs["second"])
    interrupt = stopping("distill", 4)
    given = {"store": tmp_path / "store", "shared_cache": tmp_path / "shared"}
    with pytest.raises(Interrupted):
        vl2v.distill(settings, tmp_path / "third", progress=interrupt, **given)
    passed.clear()
    assert not changed(runs["alone"], vl2v.distill(settings, tmp_path / "third", progress=progress, **given))
    assert "distill" in passed and "lower blocks" not in passed, "a resumed run finds them, too"
