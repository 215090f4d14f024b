"""Images without any label: class names and a teacher are all that a student learns from."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import vl2v
from little import CLASSES, quick_settings, record
from vl2v.cli.app import app
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, DataError
from vl2v.runs.datasets import by_folder, open_sources
from vl2v.runs.settings import resolve
from vl2v.session import Session


@pytest.fixture(scope="module")
def pool(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of one domain's images in one heap."""
    folder = tmp_path_factory.mktemp("pool") / "heap"
    folder.mkdir()
    for file in sorted(shapes.glob("ink/*/*.png")):
        shutil.copy(file, folder / f"{file.parent.name}{file.name}")
    return folder


def without_labels(pool: Path, recording: Path, method: str = "adip", **data: Any) -> dict[str, Any]:
    settings = quick_settings(pool, recording, method)
    settings["data"] = {"classes": list(CLASSES), "unlabelled": [str(pool)], "workers": 0, **data}
    return settings


def queries(store: Path) -> int:
    with EmbeddingStore(store, read_only=True) as opened:
        return sum(query.count for query in opened.queries() if query.kind == "image")


@pytest.fixture(scope="module")
def runs(pool: Path, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], vl2v.Run]:
    base, made = tmp_path_factory.mktemp("runs"), dict[str, vl2v.Run]()

    def run(method: str) -> vl2v.Run:
        if method not in made:
            settings = without_labels(pool, recording, method)
            made[method] = vl2v.distill(settings, base / method, store=base / "store")
        return made[method]

    return run


@pytest.mark.parametrize("method", ["adip", "adip-plus", "kd", "pseudo-labels", "scmd"])
def test_a_student_learns_from_class_names_and_images_alone(runs: Any, shapes: Path, method: str) -> None:
    run = runs(method)
    about = run.classifier.about
    assert run.classifier.classes == list(CLASSES) and about["sources"] == [] and about["validation_images"] == 7
    assert "validation_accuracy" not in about and 0 <= about["validation_agreement"] <= 1
    assert run.evaluation is not None and not run.evaluation.rows, "nobody knows how accurate it is"
    assert "accuracy isn't known" in run.evaluation.notes[0] and "7 held-out images" in run.evaluation.notes[0]
    found = vl2v.evaluate(run, shapes, domains=["paint", "ink"])
    assert {row.domain for row in found.rows} == {"ink", "paint"}
    assert any("95% interval" in note for note in found.notes)
    assert any("36 of them are among the images that it learnt from" in note for note in found.notes)


def test_what_validates_is_held_out_and_measured_against_the_teacher(
    runs: Any, pool: Path, recording: Path, tmp_path: Path
) -> None:
    config = resolve(without_labels(pool, recording))
    sources = open_sources(config, Session.of(tmp_path))
    assert len(sources.split.unlabelled) == 29 and len(sources.split.val) == 7 and not sources.labelled
    assert not np.intersect1d(sources.split.val, sources.training).size
    assert queries(runs("adip").folder.parent / "store") == 36, "every image once, those held out, too"


def test_another_folder_changes_nothing_of_what_was_held_out(
    pool: Path, shapes: Path, recording: Path, tmp_path: Path
) -> None:
    settings = without_labels(pool, recording)
    before = open_sources(resolve(settings), Session.of(tmp_path))
    settings["data"]["unlabelled"] = [str(pool), str(shapes / "paint")]
    after = open_sources(resolve(settings), Session.of(tmp_path))
    held, both = ({one.dataset.file(i).resolve() for i in one.split.val} for one in (before, after))
    assert held < both and all(file.is_relative_to(shapes) for file in both - held)
    assert [len(group) for group in after.groups(after.split.unlabelled)] == [29, 29]


def test_small_folders_hold_out_as_many_as_one_heap(pool: Path, recording: Path, tmp_path: Path) -> None:
    base = tmp_path / "cameras"
    for number, file in enumerate(sorted(pool.iterdir())):
        (base / f"{number // 4}").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, base / f"{number // 4}")
    settings = without_labels(pool, recording, unlabelled=[str(folder) for folder in sorted(base.iterdir())])
    sources = open_sources(resolve(settings), Session.of(tmp_path))
    assert (len(sources.split.val), len(sources.split.unlabelled)) == (7, 29)
    assert len(sources.groups(sources.split.unlabelled)) == 9
    settings["data"]["unlabelled"] = [str(base), str(base / "1")]  # one in the other: the inner one counts
    sources = open_sources(resolve(settings), Session.of(tmp_path))
    assert [len(group) for group in by_folder(sources.dataset, np.arange(36), (".", "1"))] == [32, 4]


def test_a_folder_that_is_named_twice_is_there_once(pool: Path, shapes: Path, recording: Path, tmp_path: Path) -> None:
    roll = Path(shutil.copytree(pool, tmp_path / "roll"))
    run = vl2v.distill(without_labels(roll, recording), tmp_path / "run", store=tmp_path / "store")
    shutil.copy(shapes / "paint" / "ball" / "00.png", roll / "since.png")
    found = vl2v.adapt(run, roll, tmp_path / "adapted", select=37, closed_form=True, store=tmp_path / "store").run
    assert found is not None
    sources = open_sources(found.config, Session.of(tmp_path / "store"))
    held, learnt = ({sources.audit.sha256[i] for i in part} for part in (sources.split.val, sources.split.unlabelled))
    assert len(sources.dataset) == 37 and len(held) == 7 and not held & learnt


def test_nothing_to_fit_a_last_layer_to_is_an_error_and_no_student(pool: Path, recording: Path, tmp_path: Path) -> None:
    settings = without_labels(pool, recording, "kd")
    settings["train"] = {**settings["train"], "head": "only"}
    settings["teacher"] |= {"select": 8, "strategy": "random"}
    with pytest.raises(DataError, match="to fit a last layer to"):
        vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")


def test_a_run_without_labels_is_adapted_to_far_more_images_than_it_learnt_from(
    pool: Path, shapes: Path, recording: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted(pool.iterdir())[::3]:
        shutil.copy(file, few)
    run = vl2v.distill(without_labels(few, recording), tmp_path / "run", store=tmp_path / "store")
    found = vl2v.adapt(run, shapes, tmp_path / "adapted", select=4, closed_form=True, store=tmp_path / "store")
    assert found.run is not None and found.queries.plan.queries <= 4
    again = vl2v.adapt(run, shapes, tmp_path / "adapted", select=4, closed_form=True, store=tmp_path / "store")
    assert again.run is not None and again.run.evaluation == found.run.evaluation
    settings = {"data": {"path": "."}, "method": "erm-text", "train": {"head": "only"}}
    with pytest.raises(ConfigError, match=r"train.head: method erm-text has no embeddings of images"):
        resolve(settings)


def test_a_head_in_closed_form_needs_no_label(pool: Path, recording: Path, tmp_path: Path) -> None:
    settings = without_labels(pool, recording, "kd")
    settings["train"] = {**settings["train"], "head": "refit"}
    run = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    assert run.classifier.student.head == "text"


def test_a_sample_is_measured_without_the_images_that_it_learnt_from(
    shapes: Path, recording: Path, pool: Path, tmp_path: Path
) -> None:
    heap = Path(shutil.copytree(pool, tmp_path / "heap"))
    run = vl2v.distill(without_labels(heap, recording), tmp_path / "run", store=tmp_path / "store")
    shutil.rmtree(heap)
    found = vl2v.evaluate(run, shapes, domains=["paint"])
    assert [row.domain for row in found.rows] == ["paint"]
    assert any("isn't known" in note and "heap" in note for note in found.notes)


def test_a_selection_counts_the_held_out_images(pool: Path, recording: Path, tmp_path: Path) -> None:
    settings = without_labels(pool, recording)
    settings["teacher"] |= {"select": 20, "strategy": "uncertainty"}
    run = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    assert queries(tmp_path / "store") == 20 and 0 < run.classifier.about["validation_images"] < 7
    settings["teacher"] |= {"select": 1, "strategy": "kcenter"}
    with pytest.raises(DataError, match=r"about none of the .* images that are .*--select"):
        vl2v.distill(settings, tmp_path / "few", store=tmp_path / "other")


def test_an_adapted_or_a_hopeless_setting_is_refused_by_name(pool: Path, recording: Path) -> None:
    for extra, words in (
        ({"method": "erm"}, "data.classes: method erm doesn't query the teacher about images"),
        ({"teacher": {"adapt": "auto"}}, "teacher.adapt: no image has a label"),
        ({"data": {"target": ["ink"]}}, "data.target: no image has a label"),
    ):
        settings = without_labels(pool, recording, "kd", **extra.get("data", {}))
        settings |= {"method": extra["method"], "stages": {}} if "method" in extra else {}
        settings["teacher"] = settings["teacher"] | extra.get("teacher", {})
        with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
            resolve(settings)
    for method, allowed in (("adip", False), ("fd", False), ("kd", True), ("rise", True), ("adip-plus", True)):
        settings = {"method": method, "data": {"path": "."}, "teacher": {"adapt": "auto"}}
        if allowed:
            resolve(settings)
        else:
            with pytest.raises(ConfigError, match=f"teacher.adapt: the loss of method {method} has no term"):
                resolve(settings)


def test_classes_come_from_a_list_a_text_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("ball\n\nbox \ncone\n")
    for given in ("ball, box,cone", str(file), ["ball", "box", "cone"]):
        config = resolve({"data": {"classes": given, "unlabelled": [str(tmp_path), "more"]}})
        assert config.data.classes == list(CLASSES) and config.data.path == tmp_path
        assert config.data.unlabelled == [Path("more")]
    with pytest.raises(ConfigError, match=r"data\.classes"):
        resolve({"data": {"classes": str(tmp_path / "none.txt"), "path": "."}})


@pytest.mark.parametrize("classes", [["ball"], ["ball", "ball", "box"]])
def test_classes_that_nobody_can_tell_apart_are_refused(pool: Path, classes: list[str], tmp_path: Path) -> None:
    config = resolve({"data": {"classes": classes, "path": str(pool)}})
    with pytest.raises(DataError, match=r"twice|needs two"):
        open_sources(config, Session.of(tmp_path))


def test_a_manifest_lists_unlabelled_images_too(shapes: Path, pool: Path, tmp_path: Path) -> None:
    listed = sorted(pool.glob("*.png"))[:9]
    with (pool.parent / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name"], *([f"heap/{image.name}"] for image in listed), ["heap/gone.png"]])
    dataset = vl2v.open_dataset(shapes, unlabelled=pool.parent / "list.csv")
    new = np.flatnonzero(dataset.labels < 0)
    assert sorted(dataset.file(i).resolve() for i in new) == [image.resolve() for image in listed]
    assert [gone.reason for gone in dataset.excluded] == ["no such file"]


def test_images_of_none_of_the_classes_teach_too(shapes: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for domain in ("chalk", "ink"):
        for name in CLASSES:
            shutil.copytree(shapes / domain / name, tmp_path / "all" / "data" / domain / name)
    for folder, count in (("pool", 24), ("rest", 12)):
        (tmp_path / "all" / folder / "star").mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (40, 40), "white")
            x, y = rng.integers(4, 10, 2).tolist()
            corners = [(x + 11 + (11 - 7 * (k % 2)) * np.sin(k * np.pi / 4), y + 11) for k in range(8)]
            points = [(a, y + 11 - (11 - 7 * (k % 2)) * np.cos(k * np.pi / 4)) for k, (a, _) in enumerate(corners)]
            ImageDraw.Draw(image).polygon(points, fill="black")
            image.putpixel((39, 39), tuple(rng.integers(0, 256, 3).tolist()))
            image.save(tmp_path / "all" / folder / "star" / f"{number:02}.png")
    recording = record(tmp_path / "all", tmp_path / "recording")
    settings = quick_settings(tmp_path / "all" / "data", recording)
    settings["data"] |= {"target": []}
    settings["stages"] = {"align": {"steps": 300, "lr": 1e-2}, "distill": {"steps": 1, "lr": 1e-9}}
    texts = np.load(recording / "text_embeddings.npy").astype(np.float32)
    star = texts[-1] / np.linalg.norm(texts[-1])
    cosines = []
    for number, extra in enumerate(({}, {"unlabelled": [str(tmp_path / "all" / "pool")]})):
        data = settings["data"] | extra
        run = vl2v.distill(settings | {"data": data}, tmp_path / f"{number}", store=tmp_path / "store")
        pixels = [np.asarray(Image.open(file).resize((32, 32))) for file in sorted(tmp_path.glob("all/rest/star/*"))]
        with torch.no_grad():
            cosines.append((run.classifier.student.embed(torch.from_numpy(np.stack(pixels))).numpy() @ star).mean())
    assert cosines[1] > cosines[0] + 0.2, "embeddings of what nobody named come nearer to the teacher's"


def test_the_command_says_what_is_known(pool: Path, recording: Path, tmp_path: Path) -> None:
    command = f"distill --classes ball,box,cone --unlabelled {pool} --teacher recorded:{recording} --method kd"
    quick = "--set stages.distill.steps=2 --set stages.distill.batch_per_domain=4 --set student.weights=none"
    where = f"--student test_efficientnet --image-size 32 --set data.workers=0 --store {tmp_path / 's'}"
    result = CliRunner().invoke(app, f"{command} {quick} {where} --out {tmp_path / 'run'}".split())
    assert result.exit_code == 0, result.output
    assert "the student agrees with the teacher on" in result.output
