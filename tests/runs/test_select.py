"""A run that queries some of its images only."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vl2v
from vl2v.embeddings.bill import LedgerBudget
from vl2v.embeddings.ledger import Ledger
from vl2v.embeddings.plan import Views
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError
from vl2v.runs.datasets import open_sources
from vl2v.runs.plan import plan_run
from vl2v.runs.query import advise, open_session
from vl2v.runs.settings import resolve
from vl2v.session import Session
from vl2v.teachers import the_teacher
from vl2v.teachers.protocol import EncodedImage


def queried(store: Path) -> dict[str, int]:
    with EmbeddingStore(store, read_only=True) as opened:
        return {kind: sum(q.count for q in opened.queries() if q.kind == kind) for kind in ("image", "text")}


def student(run: vl2v.Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "student" / "student.safetensors")


def same(one: vl2v.Run, other: vl2v.Run) -> bool:
    return all(torch.equal(value, student(other)[key]) for key, value in student(one).items())


@pytest.mark.parametrize("strategy", ["random", "balanced", "kcenter", "uncertainty"])
def test_so_many_are_queried_and_no_more(strategy: str, quick: dict[str, Any], tmp_path: Path) -> None:
    quick["teacher"] |= {"select": 12, "strategy": strategy}
    vl2v.embed(quick, store=tmp_path / "store")
    assert queried(tmp_path / "store") == {"image": 12, "text": 3}
    run = vl2v.distill(quick, tmp_path / "run", store=tmp_path / "store")
    assert queried(tmp_path / "store") == {"image": 12, "text": 3}, "the run wants what was queried in advance"
    assert len(json.loads((run.folder / "asked.json").read_text())) == 12
    quick["teacher"]["select"] = 20
    vl2v.embed(quick, store=tmp_path / "store")
    most = 20 if strategy != "uncertainty" else 12 + 20 - 6  # of which the first six by k-center are the same
    images, texts = queried(tmp_path / "store").values()
    assert 20 <= images <= most and texts == 3, "more is asked on top"


def test_a_selection_that_was_made_is_forecast_as_it_is(quick: dict[str, Any], tmp_path: Path) -> None:
    quick["teacher"] |= {"select": 12, "strategy": "uncertainty"}
    vl2v.embed(quick, store=tmp_path / "store")
    assert vl2v.embed(quick, store=tmp_path / "store", dry_run=True).plan.queries == 0


def test_a_selection_is_that_of_every_image_size_and_forecast(quick: dict[str, Any], tmp_path: Path) -> None:
    quick["teacher"] |= {"select": 12, "strategy": "kcenter"}
    vl2v.embed(quick, store=tmp_path / "store")
    quick["student"] = {**quick["student"], "image_size": 64}  # as a plan may choose
    plan = plan_run(quick, store=tmp_path / "store", minutes=None)
    assert (plan.teaching.queries, plan.teaching.cached) == (0, 12 + 3)
    vl2v.distill(quick, tmp_path / "run", store=tmp_path / "store")
    assert queried(tmp_path / "store") == {"image": 12, "text": 3}


@pytest.mark.parametrize("strategy", ["random", "kcenter"])
def test_a_forecast_is_never_less_than_what_is_queried(strategy: str, quick: dict[str, Any], tmp_path: Path) -> None:
    first = {**quick, "data": {**quick["data"], "target": ["ink", "paint"]}}
    vl2v.embed(first, store=tmp_path / "store")  # the dataset's first images
    cached = queried(tmp_path / "store")["image"]
    quick["teacher"] |= {"select": 12, "strategy": strategy}
    plan = plan_run(quick, store=tmp_path / "store", minutes=None)
    assert (plan.teaching.queries, plan.teaching.cached) == (12, 3), "none of those selected may be cached"
    vl2v.embed(quick, store=tmp_path / "store")
    assert cached < queried(tmp_path / "store")["image"] <= cached + 12


def test_a_run_does_not_depend_on_what_else_is_known(quick: dict[str, Any], tmp_path: Path) -> None:
    quick["teacher"] |= {"select": 12, "strategy": "balanced"}
    alone = vl2v.distill(quick, tmp_path / "alone", store=tmp_path / "store")
    vl2v.embed({**quick, "teacher": {"spec": quick["teacher"]["spec"]}}, store=tmp_path / "full")
    assert same(alone, vl2v.distill(quick, tmp_path / "rich", store=tmp_path / "full"))
    everything = {**quick, "teacher": {"spec": quick["teacher"]["spec"]}}
    assert not same(alone, vl2v.distill(everything, tmp_path / "all", store=tmp_path / "full"))


def test_known_asks_about_no_more_images_and_is_remembered(quick: dict[str, Any], tmp_path: Path) -> None:
    quick["teacher"] |= {"select": 10, "strategy": "random"}
    vl2v.embed(quick, store=tmp_path / "store")
    quick["teacher"] |= {"select": "known"}
    run = vl2v.distill(quick, tmp_path / "run", store=tmp_path / "store")
    assert queried(tmp_path / "store")["image"] == 10
    assert len(json.loads((run.folder / "asked.json").read_text())) == 10
    before = student(run)
    vl2v.embed({**quick, "teacher": {"spec": quick["teacher"]["spec"]}}, store=tmp_path / "store")
    (run.folder / "student" / "student.json").unlink()  # as if it had been stopped before the end
    again = vl2v.distill(quick, run.folder, store=tmp_path / "store")
    assert all(torch.equal(value, before[key]) for key, value in student(again).items())


def test_kd_learns_from_some_embeddings_too(quick: dict[str, Any], tmp_path: Path) -> None:
    quick |= {"method": "kd", "stages": {"distill": quick["stages"]["distill"]}}
    quick["teacher"] |= {"select": 5, "strategy": "random"}
    run = vl2v.distill(quick, tmp_path / "run", store=tmp_path / "store")
    assert all(torch.isfinite(value).all() for value in student(run).values())
    assert queried(tmp_path / "store")["image"] == 5


def test_advice_is_a_curve_and_a_verdict(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick["data"]["target"] = []
    with pytest.raises(ConfigError, match="0 of 87 training images and 0 of 3 texts are queried; query"):
        advise(quick, store=tmp_path / "store")
    quick["teacher"] |= {"select": 64}
    vl2v.embed(quick, store=tmp_path / "store")
    advice = advise(quick, store=tmp_path / "store")
    assert [point.images for point in advice.points] == [8, 16, 32, 64]
    assert advice.left == 23
    assert all(1 / 3 < point.accuracy <= 1 for point in advice.points), "better than chance"
    assert f"the 23 images that are left may add {100 * advice.gain()[0]:.1f} points" in advice.verdict()
    assert queried(tmp_path / "store") == {"image": 64, "text": 3}
    del quick["teacher"]["select"]
    vl2v.embed(quick, store=tmp_path / "store")
    monkeypatch.setattr("vl2v.runs.query.SHARES", (1,))  # the curve isn't looked at
    assert "every training image was queried" in advise(quick, store=tmp_path / "store").verdict()


@pytest.mark.parametrize(
    ("curve", "left", "verdict"),
    [
        ((0.40, 0.50, 0.60, 0.70), 4000, "worth querying more"),
        ((0.80, 0.82, 0.821, 0.821), 4000, "not worth querying more"),
        ((0.40, 0.50, 0.60, 0.70), 1, "not worth querying more"),
    ],
)
def test_verdicts(curve: tuple[float, ...], left: int, verdict: str) -> None:
    from vl2v.runs.query import Advice, Point

    points = tuple(Point(125 * 2**i, accuracy, 0.001) for i, accuracy in enumerate(curve))
    assert Advice(points, left, None).verdict().startswith(verdict)


def test_what_a_process_is_buying_another_does_not_buy_as_well(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve(quick)
    teacher = the_teacher(config.teacher)
    sources = open_sources(config, Session(tmp_path))
    begun, waits = threading.Event(), threading.Event()
    bought: list[int] = []
    embed = teacher.embed_images

    def slow(images: Sequence[EncodedImage]) -> np.ndarray:
        begun.set()
        assert waits.wait(300)
        bought.append(len(images))
        return embed(images)

    def ask(ledger: Ledger) -> None:
        def progress(what: str, *_: Any) -> None:
            if what.startswith("waiting for another process"):
                waits.set()

        spending = LedgerBudget(ledger, "vendor:m", "EUR", 10_000, "a run")
        with EmbeddingStore(tmp_path / "store") as store:
            open_session(config, store, teacher, spending, sources, Views(), progress).query()

    monkeypatch.setattr(teacher, "embed_images", slow)
    with Ledger(tmp_path / "store") as ledger, ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, ledger)
        assert begun.wait(300)
        second = pool.submit(ask, ledger)
        first.result()
        second.result()
    assert sum(bought) == len(sources.dataset) == queried(tmp_path / "store")["image"]


@pytest.mark.parametrize("strategy", ["random", "balanced", "kcenter", "uncertainty", "nearest"])
def test_of_a_pool_so_many_are_queried_and_all_images_with_labels(
    strategy: str, quick: dict[str, Any], shapes: Path, tmp_path: Path
) -> None:
    heap = tmp_path / "heap"
    heap.mkdir()
    for file in sorted(shapes.glob("paint/*/*.png")):  # the unseen domain, as images without labels
        shutil.copy(file, heap / f"{file.parent.name}{file.name}")
    quick["teacher"] |= {"select": 10_000, "strategy": strategy}
    vl2v.embed(quick, store=tmp_path / "store")
    labelled = queried(tmp_path / "store")["image"]
    sources = open_sources(resolve(quick), Session(tmp_path / "store"))
    twin = sources.dataset.root / sources.dataset.paths[sources.split.train[0]]
    shutil.copy(twin, heap / "twin.png")  # is known by its label's image, and not chosen
    quick["data"]["unlabelled"] = str(heap)
    quick["teacher"] |= {"select": 5, "select_from": "unlabelled"}
    run = vl2v.distill(quick, tmp_path / "run", store=tmp_path / "store")
    assert queried(tmp_path / "store")["image"] == labelled + 5
    assert len(json.loads((run.folder / "asked.json").read_text())) == labelled + 5


def test_a_run_with_a_pool_can_be_adapted(quick: dict[str, Any], shapes: Path, tmp_path: Path) -> None:
    quick["data"]["unlabelled"] = str(shapes / "paint")
    quick["teacher"] |= {"select": 5, "select_from": "unlabelled"}
    run = vl2v.distill(quick, tmp_path / "run", store=tmp_path / "store")
    new, out = shapes / "paint", tmp_path / "adapted"
    found = vl2v.adapt(run, new, out, select=8, closed_form=True, store=tmp_path / "store")
    assert found.run is not None and found.run.config.teacher.select_from == "all"


def test_what_is_selected_from_has_to_be_there(quick: dict[str, Any], tmp_path: Path) -> None:
    quick["teacher"] |= {"select": 5, "select_from": "unlabelled"}
    with pytest.raises(ConfigError, match="no images without labels; name some with --unlabelled"):
        vl2v.embed(quick, store=tmp_path / "store")
    with pytest.raises(ConfigError, match=r"teacher.select_from: only with teacher.select, a number"):
        resolve({**quick, "teacher": {**quick["teacher"], "select": None}})
