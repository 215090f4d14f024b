"""A last layer in closed form for every method (`train.head`)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vl2v
from little import quick_settings
from vl2v.errors import ConfigError
from vl2v.evaluation.metrics import fit_temperature
from vl2v.evaluation.ridge import fitted_head
from vl2v.runs.datasets import open_sources
from vl2v.runs.features import Features
from vl2v.runs.heads import toward_parent
from vl2v.runs.settings import resolve
from vl2v.session import Session, silent
from vl2v.students.student import Student
from vl2v.training.device import OneDevice


def distilled(method: str, head: str, shapes: Path, recording: Path, tmp_path: Path) -> vl2v.Run:
    settings = quick_settings(shapes, recording, method)
    settings["train"]["head"] = head
    return vl2v.distill(settings, tmp_path / f"{method}-{head}", store=tmp_path / "store")


@pytest.mark.parametrize("method", ["erm", "kd", "rise", "adip"])
def test_every_method_can_have_it(shapes: Path, recording: Path, tmp_path: Path, method: str) -> None:
    trained, refitted = (distilled(method, head, shapes, recording, tmp_path) for head in ("trained", "refit"))
    mine, theirs = (run.classifier.student for run in (refitted, trained))
    for one, other in zip(mine.backbone.parameters(), theirs.backbone.parameters(), strict=True):
        torch.testing.assert_close(one, other)  # only the last layer differs
    assert mine.head in (("text",) if method == "adip" else ("linear",) if method == "erm" else ("text", "linear"))
    assert mine.head != theirs.head or not torch.equal(mine.projector.weight, theirs.projector.weight)
    assert refitted.evaluation is not None and refitted.evaluation.mean() is not None


def test_a_linear_head_is_the_ridge_regression_of_the_labels(shapes: Path, recording: Path, tmp_path: Path) -> None:
    run = distilled("erm", "refit", shapes, recording, tmp_path)
    sources = open_sources(run.config, Session(tmp_path / "store"))
    student, train = run.classifier.student, sources.split.train
    features = Features(student, sources.dataset, OneDevice(run.config.train), 0, silent).of(train).numpy()
    fit = fitted_head(features, sources.dataset.labels[train], sources.dataset.domain_ids[train], 3)
    np.testing.assert_allclose(student.projector.weight.detach(), fit.weight, atol=5e-3)


def test_auto_never_validates_worse_than_what_was_trained(shapes: Path, recording: Path, tmp_path: Path) -> None:
    for method in ("erm", "adip-plus"):
        trained, best = (distilled(method, head, shapes, recording, tmp_path) for head in ("trained", "auto"))
        now, before = (run.classifier.about["validation_accuracy"] for run in (best, trained))
        assert now >= before


def test_trained_once_more_it_ends_as_the_validated_training_did(shapes: Path, recording: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def run(head: str, again: str = "on") -> vl2v.Run:
        settings = quick_settings(shapes, recording, "kd")
        settings["train"] |= {"retrain": again, "head": head}
        out, keep = tmp_path / f"{head}-{again}", (lambda task, *_: said.append(task)) if again == "off" else silent
        return vl2v.distill(settings, out, store=tmp_path / "store", progress=keep)

    once, twice = (run("auto", again).classifier for again in ("off", "on"))
    assert once.student.head == twice.student.head and once.temperature == twice.temperature
    trained = any("as trained" in task for task in said)
    other = run("trained" if trained else "refit").classifier.student
    assert torch.equal(twice.student.projector.weight, other.projector.weight)


def test_trained_once_more_it_starts_in_closed_form_again(shapes: Path, recording: Path, tmp_path: Path) -> None:
    settings = quick_settings(shapes, recording, "kd")
    settings["stages"]["distill"] |= {"steps": 1, "lr": 1e-12}
    settings["train"] |= {"head": "start", "retrain": "off"}
    once = vl2v.distill(settings, tmp_path / "once", store=tmp_path / "store")
    settings["train"] |= {"retrain": "on"}
    twice = vl2v.distill(settings, tmp_path / "twice", store=tmp_path / "store")
    mine, theirs = (run.classifier.student.projector.weight for run in (twice, once))
    torch.testing.assert_close(mine, theirs)


def test_a_linear_head_may_start_in_closed_form(shapes: Path, recording: Path, tmp_path: Path) -> None:
    settings = quick_settings(shapes, recording, "kd")
    settings["train"]["head"] = "start"
    settings["stages"]["distill"] |= {"steps": 1, "lr": 1e-12}  # the head stays where it started
    run = vl2v.distill(settings, tmp_path / "kd", store=tmp_path / "store")
    sources = open_sources(run.config, Session(tmp_path / "store"))
    student, train, val = run.classifier.student, sources.split.train, sources.split.val
    features = Features(student, sources.dataset, OneDevice(run.config.train), 0, silent)
    labels, domains = sources.dataset.labels, sources.dataset.domain_ids
    fit = fitted_head(features.of(train).numpy(), labels[train], domains[train], 3)
    weight = student.projector.weight.detach().numpy()
    factor = float((weight * fit.weight).sum() / (fit.weight**2).sum())
    assert factor > 0
    np.testing.assert_allclose(weight, factor * fit.weight, atol=1e-3 * np.abs(weight).max())  # processors differ
    logits = student.projector(features.of(val)).detach()
    assert fit_temperature(logits, torch.from_numpy(labels[val])) == pytest.approx(1, abs=0.02)
    with pytest.raises(ConfigError, match=r"train.head: method adip has no linear head to fit"):
        resolve({**settings, "method": "adip"})


@pytest.mark.parametrize(("sign", "words"), [(1, "100% of the way"), (-1, "stays as its parent is")])
def test_a_parent_that_ends_in_the_teachers_space_has_no_projector_to_go_back_to(
    trained: Any, sign: int, words: str
) -> None:
    spec = trained().classifier.student.spec
    parent, student = (Student(nn.Flatten(), last, spec, "text") for last in (nn.Identity(), nn.Linear(3, 3)))
    student.projector.load_state_dict({"weight": sign * torch.eye(3), "bias": torch.zeros(3)})
    sources = SimpleNamespace(dataset=SimpleNamespace(labels=np.arange(3)), split=SimpleNamespace(val=np.arange(3)))
    targets = SimpleNamespace(texts=np.eye(3, dtype=np.float32))
    said = toward_parent(student, parent, sources, targets, lambda student: SimpleNamespace(of=lambda _: torch.eye(3)))
    assert words in said and isinstance(student.projector, nn.Linear if sign > 0 else nn.Identity)
