"""A finished run and a finished benchmark, and their reports: made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from little import Here, quick_settings
from once import copied_once
from vl2v.benchmark.grid import Grid
from vl2v.benchmark.run import plan, run
from vl2v.report.page import write_report
from vl2v.runs.folder import Run
from vl2v.runs.query import embed
from vl2v.runs.train import distill
from vl2v.tree import merge

from .pages import NASTY, Written


@pytest.fixture(scope="session")
def of_run(trained: Callable[[str], Run], tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A run of ADiP whose teacher was queried about the unseen domain only after it was over."""

    def make(folder: Path) -> None:
        shutil.copytree(trained("adip").folder.parent, folder, dirs_exist_ok=True)
        finished, store = Run(folder / "adip"), folder / "store"
        assert finished.evaluation is not None
        assert not finished.evaluation.of("teacher, zero-shot", "unseen")
        embed(merge(finished.config.model_dump(by_alias=True), {"data": {"target": []}}), store=store)
        write_report(finished.folder, store=store)

    return Written(copied_once(tmp_path_factory, "reported_run", make) / "adip")


@pytest.fixture(scope="session")
def of_nasty(shapes: Path, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A run without a teacher on classes, domains and folders with names that are markup."""

    def make(folder: Path) -> None:
        data = folder / "<i>data"
        shutil.copytree(shapes, data)
        for domain in data.iterdir():
            for old, new in NASTY.items():
                (domain / old).rename(domain / new)
        (data / "paint").rename(data / "<u>paint")
        changed = {"data": {"path": str(data), "target": ["<u>paint"]}}
        settings = merge(quick_settings(shapes, recording, "erm"), changed)
        finished = distill(settings, folder / "<em>run", store=folder / "store")
        write_report(finished.folder, store=folder / "store")

    return Written(copied_once(tmp_path_factory, "reported_nasty", make) / "<em>run")


@pytest.fixture(scope="session")
def of_benchmark(shapes: Path, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A benchmark of two methods, two students and two seeds, with some runs that queried less, and a failed job."""
    settings = {
        "teacher": {"spec": f"recorded:{recording}"},
        "student": {"weights": "none", "image_size": 32},
        "data": {"workers": 0},
        "train": {"precision": "fp32", "accelerator": "cpu", "head": "method"},
        "stages": {"align": {"steps": 10, "lr": 1e-2}, "probe": {"steps": 10}},
    }
    everything = ["test_efficientnet", "test_resnet"]
    data = {"shapes": str(shapes)}
    fewer = merge(settings, {"teacher": {"select": 12, "strategy": "random"}})

    def make(folder: Path) -> None:
        for grid in (
            Grid(data, ["paint"], ["adip"], everything[:1], 2, settings=fewer, steps=3, batch=4),
            Grid(data, ["paint"], ["zero-shot", "erm", "adip"], everything, 2, settings=settings, steps=3, batch=4),
        ):
            bench = plan(grid, folder / "bench")
            run(bench, engine=Here())
            assert not bench.missing
        write_report(folder / "bench")

    return Written(copied_once(tmp_path_factory, "reported_benchmark", make) / "bench")
