"""Small real things that tests share: pictures on the disk, a recording of a teacher, quick settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest

from little import CLASSES, DOMAINS, draw, quick_settings, record

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of 3 domains x 3 classes x 12 pictures."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    rng = np.random.default_rng(0)
    for domain in DOMAINS:
        for name in CLASSES:
            (root / domain / name).mkdir(parents=True)
            for number in range(12):
                draw(name, domain, rng).save(root / domain / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def recording(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the recording of a teacher that was asked about all shapes; `worded`, beside it, has more texts."""
    folder = tmp_path_factory.mktemp("teacher")
    record(shapes, folder / "worded", worded=True)
    return record(shapes, folder / "recording")


@pytest.fixture
def quick(shapes: Path, recording: Path) -> dict[str, Any]:
    """Return settings of a run that takes a second or two."""
    return quick_settings(shapes, recording)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Yield one browser for all tests of a module: each loads its page anew."""
    from browser import chromium

    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
