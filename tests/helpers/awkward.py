"""Small datasets on the disk, and what is found in them: for tests of odd ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vl2v.data import audit, inspect
from vl2v.data.dataset import DomainDataset


def draw(path: Path, number: int = 0, kind: str | None = None, **options: object) -> Path:
    """Write an image of its own colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(cells).resize((32, 32), Image.Resampling.NEAREST).save(path, kind, **options)
    return path


def folder(root: Path, domains: Sequence[str] = ("d1", "d2"), classes: Sequence[str] = ("cat", "dog")) -> Path:
    for number in range(6 * len(domains) * len(classes)):
        name = classes[number % len(classes)]
        draw(root / domains[number // len(classes) % len(domains)] / name / f"{number}.png", number)
    return root


def report(dataset: DomainDataset) -> str:
    return "\n".join(inspect(dataset, audit(dataset)).findings)


def labels(dataset: DomainDataset) -> dict[str, str]:
    return {path: dataset.classes[label] for path, label in zip(dataset.paths, dataset.labels, strict=True)}
