"""A student that meets a new domain: what is queried, what it starts from, and what stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import vl2v
from little import CLASSES, Interrupted, quick_settings, stopping
from vl2v.cli.app import app
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, DataError, RunError
from vl2v.export.student import open_images
from vl2v.runs.adapting import BEFORE, adapt
from vl2v.runs.datasets import open_sources
from vl2v.runs.folder import locked
from vl2v.runs.settings import resolve
from vl2v.session import Session
from vl2v.tree import merge


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def image_queries(store: Path) -> int:
    with EmbeddingStore(store, read_only=True) as opened:
        return sum(query.count for query in opened.queries() if query.kind == "image")


@pytest.fixture(scope="module")
def place(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 18 images of the unseen domain, without their labels, and a copy of one of them."""
    folder = tmp_path_factory.mktemp("place") / "new"
    folder.mkdir()
    for name in CLASSES:
        for number in range(6):
            shutil.copy(shapes / "paint" / name / f"{number:02}.png", folder / f"{name}{number}.png")
    shutil.copy(folder / "box0.png", folder / "copy.png")
    return folder


@pytest.fixture(scope="module")
def parents(trained: Any) -> Any:
    return trained


@pytest.fixture
def store(parents: Any, tmp_path: Path) -> Path:
    """Return a copy of the store that the parents' teacher filled."""
    return Path(shutil.copytree(parents().folder.parent / "store", tmp_path / "store"))


@pytest.mark.parametrize("method", ["adip", "adip-plus", "kd", "scmd", "pseudo-labels"])
def test_a_new_run_learns_from_a_few_queries_about_a_new_domain(
    parents: Any, place: Path, store: Path, tmp_path: Path, method: str
) -> None:
    parent = parents(method)
    before, queries = files_of(parent.folder), image_queries(store)
    found = adapt(parent, place, tmp_path / "adapted", select=8, store=store)
    run = found.run
    assert run is not None and run.finished and image_queries(store) - queries == 8 == found.queries.plan.queries
    assert files_of(parent.folder) == before, "the parent stays as it was"
    assert run.classifier.about["parent"]["run"] == method
    assert next(reversed(run.config.stages.values())).steps == 12
    assert run.evaluation is not None and parent.evaluation is not None
    then = {row.domain: row.metrics for row in run.evaluation.of(BEFORE)}
    assert then == {row.domain: row.metrics for row in parent.evaluation.of()}
    assert [row[0] for row in found.table().rows] == ["chalk", "ink", "paint *"]
    for mine, theirs in zip(run.classifier.student.parameters(), parent.classifier.student.parameters(), strict=True):
        assert mine.shape == theirs.shape
    again = adapt(parent, place, tmp_path / "adapted", select=8, store=store)
    assert again.run is not None and again.run.evaluation == run.evaluation and image_queries(store) - queries == 8


def test_it_starts_from_the_parents_weights(parents: Any, place: Path, store: Path, tmp_path: Path) -> None:
    parent = parents()
    hardly = {"stages": {"distill": {"steps": 1, "lr": 1e-12}}}
    run = adapt(parent, place, tmp_path / "adapted", select=4, settings=hardly, store=store).run
    assert run is not None
    mine, theirs = (one.classifier.student.state_dict() for one in (run, parent))
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("quick", ["off", "auto"])
def test_in_closed_form_the_backbone_stays_as_it_is(
    parents: Any, place: Path, shapes: Path, recording: Path, store: Path, tmp_path: Path, quick: str
) -> None:
    parent = parents()
    if quick == "auto":  # there is no block left to cut
        settings = merge(quick_settings(shapes, recording), {"train": {"quick": quick}})
        parent = vl2v.distill(settings, tmp_path / "quick", store=store)
    run = adapt(parent, place, tmp_path / "adapted", select=18, closed_form=True, store=store).run
    assert run is not None and run.evaluation is not None
    mine, theirs = run.classifier.student, parent.classifier.student
    for one, other in zip(mine.backbone.parameters(), theirs.backbone.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(mine.projector.weight, theirs.projector.weight)
    again = adapt(parent, place, tmp_path / "adapted", select=18, closed_form=True, store=store).run
    assert again is not None and again.evaluation == run.evaluation


@pytest.mark.parametrize("strategy", ["random", "kcenter", "uncertainty"])
def test_of_copies_one_is_queried_whatever_selects(
    parents: Any, place: Path, store: Path, tmp_path: Path, strategy: Any
) -> None:
    found = adapt(parents(), place, tmp_path / "out", select=100, strategy=strategy, store=store, dry_run=True)
    assert found.run is None and found.queries.plan.queries == 18 and not (tmp_path / "out").exists()
    few = adapt(parents(), place, tmp_path / "out", select=5, strategy=strategy, store=store, dry_run=True)
    assert few.queries.plan.queries == 5


def test_an_interrupted_one_ends_with_the_same_weights(parents: Any, place: Path, store: Path, tmp_path: Path) -> None:
    whole = adapt(parents(), place, tmp_path / "whole", select=8, store=store).run
    with pytest.raises(Interrupted):
        adapt(parents(), place, tmp_path / "part", select=8, store=store, progress=stopping("distill", 2))
    part = adapt(parents(), place, tmp_path / "part", select=8, store=store).run
    assert whole is not None and part is not None
    one, other = (run.classifier.student.state_dict() for run in (whole, part))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_it_can_be_adapted_again_to_another_domain(
    parents: Any, place: Path, shapes: Path, store: Path, tmp_path: Path
) -> None:
    first = adapt(parents(), place, tmp_path / "first", select=4, store=store).run
    more = tmp_path / "more"
    more.mkdir()
    for number in range(6, 12):
        shutil.copy(shapes / "paint" / "ball" / f"{number:02}.png", more)
    assert first is not None
    queries = image_queries(store)
    found = adapt(first, more, tmp_path / "second", select=4, store=store)
    second = found.run
    chosen = {found.queries.plan.dataset.file(index) for index, _ in found.queries.plan.pending}
    assert len(chosen) == 4 == image_queries(store) - queries and {file.parent.name for file in chosen} == {"more"}
    assert second is not None and len(np.atleast_1d(second.config.data.unlabelled)) == 2
    assert second.classifier.about["parent"]["run"] == "first"


def test_the_new_place_can_be_the_unseen_domain_of_the_datasets_own_folder(
    parents: Any, shapes: Path, store: Path, tmp_path: Path
) -> None:
    run = adapt(parents(), shapes / "paint", tmp_path / "adapted", select=4, store=store).run
    assert run is not None and run.evaluation is not None
    (row,) = run.evaluation.of(role="unseen")
    assert (row.domain, row.metrics.images) == ("paint", 36)
    assert "leakage: 36 images of unseen domains are among those to learn from, too" in run.evaluation.notes


def test_what_can_not_be_adapted_is_refused_before_anything_is_queried(
    parents: Any, place: Path, store: Path, shapes: Path, recording: Path, tmp_path: Path
) -> None:
    queries = image_queries(store)
    with pytest.raises(ConfigError, match="learns nothing from images without labels"):
        adapt(parents("erm"), place, tmp_path / "out", store=store)
    with pytest.raises(Interrupted):
        vl2v.distill(
            quick_settings(shapes, recording), tmp_path / "begun", store=store, progress=stopping("distill", 2)
        )
    with pytest.raises(RunError, match="no student yet"):
        adapt(tmp_path / "begun", place, tmp_path / "out", store=store)
    assert image_queries(store) == queries and not (tmp_path / "out").exists()


def test_a_folder_with_another_adapted_student_is_refused_before_anything_is_queried(
    parents: Any, place: Path, shapes: Path, store: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    adapt(parents(), place, out, select=4, closed_form=True, store=store)
    queries = image_queries(store)
    with pytest.raises(RunError, match=r"other settings \(--select\); choose another --out"):
        adapt(parents(), place, out, select=8, closed_form=True, store=store)
    with pytest.raises(RunError, match=r"\(--strategy\)"):
        adapt(parents(), place, out, select=4, strategy="random", closed_form=True, store=store)
    with pytest.raises(RunError, match=r"train.head"):
        adapt(parents(), place, out, select=4, store=store)
    shutil.copytree(place, other)
    shutil.copy(shapes / "paint" / "ball" / "11.png", other)
    with pytest.raises(RunError, match=r"\(--images\)"):
        adapt(parents(), other, out, select=4, closed_form=True, store=store)
    assert image_queries(store) == queries


def test_before_it_trains_a_larger_selection_takes_the_place_of_a_smaller_one(
    parents: Any, place: Path, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        adapt(parents(), place, out, select=4, store=store, progress=stopping("distill", 0))
    few = json.loads((out / "asked.json").read_text())
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    adapt(parents(), place, out, select=8, store=store)
    assert len(json.loads((out / "asked.json").read_text())) == len(few) + 4


def test_what_an_earlier_version_adapted_is_not_taken_for_an_answer(
    parents: Any, place: Path, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    adapt(parents(), place, out, select=4, closed_form=True, store=store)
    (out / "adapting.json").unlink()
    queries = image_queries(store)
    with pytest.raises(RunError, match="not which images it was adapted to"):
        adapt(parents(), place, out, select=8, closed_form=True, store=store)
    assert image_queries(store) == queries


def test_a_log_is_linked_anew_after_a_refusal(parents: Any, place: Path, store: Path, tmp_path: Path) -> None:
    log, out = Path(shutil.copytree(place, tmp_path / "log")), tmp_path / "out"
    with pytest.raises(ConfigError, match="give the --store"):
        adapt(parents(), None, out, log=log, store=tmp_path / "empty")
    assert not (tmp_path / "out-images").exists()
    adapt(parents(), None, out, log=log, select=4, closed_form=True, store=store)
    other = Path(shutil.copytree(place, tmp_path / "other"))
    with pytest.raises(RunError, match=r"adapts to the images of .*log; choose another --out"):
        adapt(parents(), None, out, log=other, select=4, closed_form=True, store=store)


def test_a_log_is_linked_anew_after_a_kill_and_other_folders_stay(
    parents: Any, place: Path, store: Path, tmp_path: Path
) -> None:
    log, beside = Path(shutil.copytree(place, tmp_path / "log")), tmp_path / "out-images"
    beside.mkdir()
    (beside / "mine.png").write_bytes(b"mine")
    with pytest.raises(RunError, match=r"isn't of .*out; choose another --out"):
        adapt(parents(), None, tmp_path / "out", log=log, store=store)
    assert (beside / "mine.png").read_bytes() == b"mine"
    (beside / ".linked").touch()  # killed before it was begun
    run = adapt(parents(), None, tmp_path / "out", log=log, select=4, closed_form=True, store=store).run
    assert run is not None
    assert {file.name for file in beside.iterdir()} == {".linked", *(image.name for image in log.iterdir())}
    shutil.rmtree(beside)
    with pytest.raises(RunError, match="are gone; choose another --out"):
        adapt(parents(), None, tmp_path / "out", log=log, select=4, closed_form=True, store=store)
    assert not beside.exists()


def test_what_is_finished_queries_no_more_and_what_trains_what_it_chose(
    parents: Any, place: Path, store: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "out", Path(shutil.copytree(store, tmp_path / "other"))
    with pytest.raises(Interrupted):
        adapt(parents(), place, out, select=4, store=store, progress=stopping("distill", 2))
    queries = image_queries(other)
    found = adapt(parents(), place, out, select=4, store=other)
    assert found.queries.plan.queries == 4 == image_queries(other) - queries
    again = adapt(parents(), place, out, select=4, store=other)
    assert found.run is not None and again.run is not None and again.run.evaluation == found.run.evaluation
    third = Path(shutil.copytree(parents().folder.parent / "store", tmp_path / "third"))
    queries = image_queries(third)
    for dry_run in (True, False):
        done = adapt(parents(), place, out, select=4, store=third, dry_run=dry_run)
        assert done.queries.plan.queries == 0 == image_queries(third) - queries


def test_what_was_chosen_is_saved_before_it_is_paid_for(
    parents: Any, place: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: Any) -> Any:
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("vl2v.embeddings.session.TeacherSession.query", stopped)
        adapt(parents(), place, tmp_path / "out", select=4, store=store)
    chosen = json.loads((tmp_path / "out" / "adapting.json").read_text())["chosen"]
    assert len(chosen) == 4
    monkeypatch.setattr("vl2v.runs.adapting.k_center_order", lambda found, count: np.arange(count))
    found = adapt(parents(), place, tmp_path / "out", select=4, closed_form=True, store=store)
    assert sorted(found.queries.plan.contents[index].hex() for index, _ in found.queries.plan.pending) == sorted(chosen)


def test_another_process_that_trains_there_keeps_its_selection(
    parents: Any, place: Path, store: Path, tmp_path: Path
) -> None:
    out, queries = tmp_path / "out", image_queries(store)
    out.mkdir()
    beside = Path(shutil.copytree(place, tmp_path / "out-images"))
    (beside / ".linked").touch()
    for given in ({"images": place}, {"images": None, "log": place}):
        with locked(out), pytest.raises(RunError, match="another process is training in it"):
            adapt(parents(), out=out, select=4, store=store, **given)
    assert image_queries(store) == queries and not (out / "adapting.json").exists()
    assert len(list(beside.iterdir())) == 1 + len(list(place.iterdir()))


def test_another_parent_or_seed_chooses_anew(
    parents: Any, place: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: Any) -> Any:
        raise Interrupted

    monkeypatch.setattr("vl2v.embeddings.session.TeacherSession.query", stopped)
    saved = []
    for method, seed in (("adip", 0), ("adip", 1), ("kd", 1)):
        with pytest.raises(Interrupted):
            adapt(parents(method), place, tmp_path / "out", select=4, strategy="random", store=store,
                  settings={"seed": seed})  # fmt: skip
        saved.append(json.loads((tmp_path / "out" / "adapting.json").read_text()))
    assert saved[0]["chosen"] != saved[1]["chosen"] and saved[1]["RUN"] != saved[2]["RUN"]


def test_a_place_that_moves_is_followed_until_the_run_has_ended(
    parents: Any, place: Path, store: Path, tmp_path: Path
) -> None:
    before, after = Path(shutil.copytree(place, tmp_path / "before")), tmp_path / "after"
    whole = adapt(parents(), place, tmp_path / "whole", select=4, store=store).run
    with pytest.raises(Interrupted):
        adapt(parents(), before, tmp_path / "out", select=4, store=store, progress=stopping("distill", 2))
    before.rename(after)
    run = adapt(parents(), after, tmp_path / "out", select=4, store=store).run
    assert run is not None and whole is not None and run.config.data.unlabelled == [after.resolve()]
    mine, theirs = (one.classifier.student.state_dict() for one in (run, whole))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    other = Path(shutil.copytree(after, tmp_path / "other"))
    (other / "box1.png").unlink()
    with pytest.raises(RunError, match="--images"):
        adapt(parents(), other, tmp_path / "out", select=4, store=store)


def test_what_its_parent_may_know_of_the_validation_images_is_said(
    place: Path, shapes: Path, recording: Path, tmp_path: Path
) -> None:
    data, store = Path(shutil.copytree(shapes, tmp_path / "data")), tmp_path / "store"
    settings = merge(quick_settings(data, recording), {"train": {"retrain": "on"}})
    parent = vl2v.distill(settings, tmp_path / "parent", store=store)

    def adapted(run: vl2v.Run, name: str) -> vl2v.Run:
        once = {"train": {"retrain": "off"}}
        made = adapt(run, place, tmp_path / name, select=4, closed_form=True, settings=once, store=store).run
        assert made is not None
        return made

    child = adapted(parent, "child")
    grandchild = adapted(child, "grandchild")
    (data / "ink" / "ball" / "00.png").unlink()
    changed = adapted(parent, "changed")
    for run, words in (
        (child, "parent was trained on 14 of the 14 images that validate here"),
        (grandchild, "child was trained on 14 of the 14 images that validate here"),
        (changed, "have changed since parent was trained"),
    ):
        assert run.evaluation is not None and any(words in note for note in run.evaluation.notes)


def test_a_setting_that_is_no_section_is_refused(parents: Any, place: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train"):
        adapt(parents(), place, tmp_path / "out", settings={"train": 3}, store=store)


def test_a_store_without_what_the_parent_learnt_from_is_refused(parents: Any, place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embeddings of 0 of the \d+ images that .*; give the --store of that run"):
        adapt(parents(), place, tmp_path / "out", store=tmp_path / "empty")
    assert not (tmp_path / "out").exists()


def test_a_place_without_a_usable_image_is_refused_by_name(
    parents: Any, place: Path, store: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of the 1 images .*broken/a.png"):
        adapt(parents(), broken, tmp_path / "out", store=store)


def test_what_a_finished_one_saw_of_a_log_is_told_from_what_came_since(
    parents: Any, place: Path, shapes: Path, store: Path, tmp_path: Path
) -> None:
    log, out = Path(shutil.copytree(place, tmp_path / "log")), tmp_path / "out"
    adapt(parents(), None, out, log=log, select=4, closed_form=True, store=store)
    again = adapt(parents(), None, out, log=log, select=4, closed_form=True, store=store)
    assert again.run is not None and again.queries.plan.queries == 0
    shutil.copy(shapes / "paint" / "ball" / "11.png", log / "since.png")
    (out / "evaluation.json").rename(tmp_path / "kept.json")  # as if it had been killed before it was evaluated
    ended = adapt(parents(), None, out, log=log, select=4, closed_form=True, store=store).run
    assert ended is not None and ended.evaluation is not None and ended.evaluation.of(BEFORE)
    with pytest.raises(RunError, match="has 1 others by now; choose another --out"):
        adapt(parents(), None, out, log=log, select=4, closed_form=True, store=store)


@pytest.mark.parametrize("emptied", [True, False])
def test_its_images_may_be_deleted_afterwards(
    parents: Any, place: Path, store: Path, tmp_path: Path, emptied: bool
) -> None:
    here = Path(shutil.copytree(place, tmp_path / "here"))
    run = adapt(parents(), here, tmp_path / "out", select=4, closed_form=True, store=store).run
    assert run is not None
    assert not any("gone" in note for note in vl2v.evaluate(run).notes)
    shutil.rmtree(here)
    if emptied:
        here.mkdir()
    found = vl2v.evaluate(run)
    assert any("without labels that it learnt from are gone" in note for note in found.notes)
    assert not any("have changed since" in note for note in found.notes)
    assert open_images(run, store).split.unlabelled.size == 0


def test_the_command_prints_before_and_after(parents: Any, place: Path, store: Path, tmp_path: Path) -> None:
    command = ["adapt", str(parents().folder), "--images", str(place), "--out", str(tmp_path / "out")]
    command += ["--select", "6", "--store", str(store)]
    forecast = CliRunner().invoke(app, [*command, "--dry-run"])
    assert forecast.exit_code == 0 and "6 pending" in forecast.stdout and not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    assert "before" in done.stdout and "paint *" in done.stdout and "6 queries" in done.stdout


def test_a_servers_log_is_linked_and_stays_as_it_was_then(
    parents: Any, place: Path, store: Path, tmp_path: Path
) -> None:
    log, out = Path(shutil.copytree(place, tmp_path / "log")), tmp_path / "out"
    with pytest.raises(Interrupted):
        adapt(parents(), None, out, log=log, select=4, store=store, progress=stopping("distill", 1))
    shutil.rmtree(log)  # the server deletes old images
    log.mkdir()
    run = adapt(parents(), None, out, log=log, select=4, store=store).run
    assert run is not None and run.config.data.unlabelled == [(tmp_path / "out-images").resolve()]
    with pytest.raises(DataError, match="no images in it yet"):
        adapt(parents(), None, tmp_path / "other", log=log, store=store)
    with pytest.raises(ConfigError, match="--images"):
        adapt(parents(), None, tmp_path / "other", store=store)


def test_a_student_that_forgets_goes_back_towards_its_parent(
    parents: Any, place: Path, store: Path, tmp_path: Path
) -> None:
    parent = parents()
    wild = {"stages": {"distill": {"steps": 6, "lr": 1.0, "eval_every": 6}}, "train": {"select": "last"}}
    run = adapt(parent, place, tmp_path / "wild", select=4, settings=wild, store=store).run
    assert run is not None
    before, after = (one.classifier.about["validation_accuracy"] for one in (parent, run))
    assert after >= before - 0.005
    tame = {"stages": {"distill": {"steps": 1, "lr": 1e-6}}}
    said: list[str] = []
    adapt(
        parent,
        place,
        tmp_path / "tame",
        select=4,
        settings=tame,
        store=store,
        progress=lambda task, *_: said.append(task),
    )
    assert any(line.startswith("75% of the way") for line in said)


@pytest.mark.parametrize(("domains", "groups"), [("auto", 2), (1, 1), (3, 3)])
def test_images_without_labels_count_as_a_domain_for_each_folder_or_as_set(
    shapes: Path, recording: Path, place: Path, tmp_path: Path, domains: Any, groups: int
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(shapes / "paint" / "cone" / "11.png", other)
    settings = quick_settings(shapes, recording)
    settings["data"] |= {"unlabelled": [str(place), str(other)], "unlabelled_domains": domains}
    sources = open_sources(resolve(settings), Session(tmp_path / "store"))
    unlabelled = sources.split.unlabelled
    assert len(unlabelled) == 20 and len(sources.groups(unlabelled)) == 2 + groups
    parts = sources.groups(unlabelled)[2:]
    if domains == "auto":
        assert [len(part) for part in parts] == [19, 1] and np.array_equal(np.sort(np.concatenate(parts)), unlabelled)
    else:
        assert all(np.array_equal(part, unlabelled) for part in parts)
    run = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    assert run.finished
