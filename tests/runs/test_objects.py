"""A dataset that is an object is written beside the run that learns from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

import vl2v
from little import CLASSES, DOMAINS
from vl2v.errors import ConfigError
from vl2v.tree import merge

BRIEF = {
    "method": "erm",
    "student": {"name": "test_efficientnet", "weights": "none", "image_size": 32},
    "stages": {"finetune": {"steps": 2, "batch_per_domain": 2}},
    "train": {"precision": "fp32", "accelerator": "cpu"},
}


def dataset(kind: str, shapes: Path) -> tuple[Any, list[str]]:
    """Return an object of a kind with some of the shapes, and the domain of each of its images."""
    files = [file for domain in DOMAINS for name in CLASSES for file in sorted((shapes / domain / name).iterdir())[:4]]
    domains, labels = [file.parts[-3] for file in files], [file.parts[-2] for file in files]
    if kind == "pairs":
        return [(Image.open(file).convert("RGB"), label) for file, label in zip(files, labels, strict=True)], domains
    if kind == "frame":
        return pd.DataFrame({"path": [str(file) for file in files], "label": labels, "domain": domains}), domains
    if kind == "folder":
        theirs = ImageFolder(str(shapes / "chalk"))
        return theirs, [("chalk", "ink")[index % 2] for index in range(len(theirs))]
    rows = {"image": [str(file) for file in files], "label": labels, "domain": domains}
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()), domains


@pytest.mark.parametrize("kind", ["pairs", "frame", "folder", "hub"])
def test_a_student_learns_from_an_object(kind: str, shapes: Path, tmp_path: Path) -> None:
    data, domains = dataset(kind, shapes)
    named = None if kind in ("frame", "hub") else domains.__getitem__
    run = vl2v.distill(BRIEF, tmp_path / "run", data=data, target="ink", domain=named, store=tmp_path / "store")
    assert run.config.data.path == tmp_path / "run-data" / "manifest.csv"
    assert run.evaluation is not None
    assert {(row.domain, row.role) for row in run.evaluation.of("student")} == {
        *((domain, "seen") for domain in {*domains} - {"ink"}),
        ("ink", "unseen"),
    }
    again = vl2v.distill(BRIEF, tmp_path / "run", data=data, target="ink", domain=named, store=tmp_path / "store")
    assert again.folder == run.folder


def test_files_have_their_own_domains(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="domain: gives the domains of a dataset that is an object"):
        vl2v.distill(merge(BRIEF, {}), tmp_path / "run", data=shapes, domain=str)
