"""A small benchmark, at which nothing went wrong: made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from little import Here
from once import copied_once
from vl2v.benchmark.grid import Grid
from vl2v.benchmark.run import plan, run
from vl2v.benchmark.worklist import WorkList


@pytest.fixture(scope="session")
def grid(shapes: Path, recording: Path) -> Grid:
    settings: dict[str, Any] = {
        "teacher": {"spec": f"recorded:{recording}"},
        "student": {"weights": "none", "image_size": 32},
        "data": {"workers": 0},
        "train": {"precision": "fp32", "accelerator": "cpu"},
        "stages": {"align": {"steps": 10, "lr": 1e-2}, "probe": {"steps": 10}},
    }
    return Grid(
        {"shapes": str(shapes)},
        ["paint"],
        ["zero-shot", "erm", "adip"],
        ["test_efficientnet"],
        2,
        settings=settings,
        steps=3,
        batch=4,
    )


@pytest.fixture(scope="session")
def calm(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> WorkList:
    """A benchmark at which nothing went wrong."""

    def make(folder: Path) -> None:
        bench = plan(grid, folder)
        run(bench, engine=Here())
        assert not bench.missing

    return WorkList(copied_once(tmp_path_factory, "calm_benchmark", make))
