"""Runs on data of an odd shape, and run folders that were moved: every JSON is strict, nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vl2v
from typed import typed
from vl2v.config import PromptConfig
from vl2v.data import audit, inspect, leave_out, open_dataset
from vl2v.students.classifier import Classifier
from vl2v.students.student import Student
from vl2v.teachers.prompts import prompts_for
from vl2v.teachers.protocol import BackboneSpec

CLASSES = {"ink": ("ball", "box"), "chalk": ("cone", "box"), "paint": ("ball", "cone")}  # none has all


@pytest.fixture(scope="module")
def disjoint(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("disjoint")
    for domain, names in CLASSES.items():
        for name in names:
            shutil.copytree(shapes / domain / name, root / domain / name)
    return root


def strict(text: str) -> Any:
    """Return JSON as every other language reads it: without NaN and infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_domains_with_classes_of_their_own_train_and_move(
    disjoint: Path, quick: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**quick, "data": {**quick["data"], "path": str(disjoint)}}
    store = tmp_path / "store"
    run = vl2v.distill(settings, tmp_path / "run", store=store)
    assert list(run.classifier.classes) == ["ball", "box", "cone"]
    found = typed(capsys, "data", "inspect", disjoint, "--json")
    assert "domain ink has no images of cone" in " ".join(strict(found.stdout)["findings"])

    moved = tmp_path / "gr\u00f6\u00dfere L\u00e4ufe (alt)" / "\u00e9 \u00e0 [1]"
    moved.parent.mkdir()
    shutil.move(run.folder, moved)
    images = shutil.copytree(disjoint / "paint/cone", moved.parent / "ein Bild")
    predicted = typed(capsys, "predict", moved, images, "--json")
    assert predicted.returncode == 0 and len([strict(line) for line in predicted.stdout.splitlines()]) == 12
    evaluated = typed(capsys, "evaluate", moved, "--json", "--store", store)
    assert {row["domain"] for row in strict(evaluated.stdout)["rows"]} == set(CLASSES)
    files = sorted(moved.rglob("*.json"))
    assert len(files) >= 2
    for file in files:
        strict(file.read_text(encoding="utf-8"))
    for file in moved.rglob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            strict(line)


def test_twelve_hundred_classes(tmp_path: Path) -> None:
    names = [f"class {number:04d}" for number in range(1200)]
    rows = ["path,class,domain"]
    for number in range(3600):
        pixels = np.array([[[number % 251, number // 251, number % 7]]], np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.bmp")
        rows.append(f"{number}.bmp,{names[number % 1200]},{('ink', 'oil')[number // 1200 % 2]}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    dataset = open_dataset(tmp_path / "m.csv")
    inspection = inspect(dataset, audit(dataset), ["oil"])
    assert len(dataset.classes) == 1200 and all(len(line) < 500 for line in inspection.findings)
    strict(json.dumps(inspection.to_json()))
    split = leave_out(dataset, ["oil"])
    assert len(split.train) + len(split.val) == 2400 and len(split.target) == 1200
    assert len({text for group in prompts_for(dataset.classes, PromptConfig()) for text in group}) == 1200
    spec = BackboneSpec({"kind": "timm", "name": "test_efficientnet"}, 8, (0.5,) * 3, (0.5,) * 3)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 16))
    student = Student(flat, nn.Linear(16, 32), spec)
    texts = nn.functional.normalize(torch.randn(1200, 32), dim=1)
    made = Classifier(student, list(dataset.classes), texts, scale=20.0).predict([dataset.file(0)])
    assert len(made[0].probabilities) == 1200 and abs(sum(made[0].probabilities.values()) - 1) < 1e-3

    run = vl2v.distill(
        data={"path": str(tmp_path / "m.csv"), "target": ["oil"], "workers": 0},
        method="erm",
        student={"name": "test_efficientnet", "weights": "none"},
        image_size=32,
        stages={"finetune": {"steps": 2, "batch_per_domain": 8}},
        out=tmp_path / "run",
        store=tmp_path / "store",
    )
    assert len(run.classifier.classes) == 1200 and run.classifier.predict([dataset.file(0)])[0].best in names
    (unseen,) = run.evaluation.of(role="unseen")
    assert unseen.domain == "oil" and unseen.metrics.images == 1200
    strict((run.folder / "evaluation.json").read_text(encoding="utf-8"))
