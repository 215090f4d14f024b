"""Whatever is wrong with what a run is given: one line that names it and says what to do, and nothing lost."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import vl2v
from little import Interrupted, no_file_larger_than, quick_settings, stopping
from vendor.servers import Stub
from vl2v.data import audit, inspect, open_dataset
from vl2v.embeddings.rows import FILE_NAME
from vl2v.errors import DataError, RunError, StoreError, StudentError, TeacherError, VL2VError, VL2VWarning
from vl2v.methods import version_of
from vl2v.runs.folder import locked


@pytest.fixture
def images(shapes: Path, tmp_path: Path) -> Path:
    """Return a copy of the shapes, to be spoilt."""
    return Path(shutil.copytree(shapes, tmp_path / "shapes"))


@pytest.fixture
def given(quick: dict[str, Any], images: Path) -> dict[str, Any]:
    """Return the settings of a run on the copy."""
    return {**quick, "data": {**quick["data"], "path": str(images)}}


@pytest.fixture(scope="module")
def calm(trained: Callable[[str], vl2v.Run]) -> vl2v.Run:
    """Return a run in which all went well, not to be changed."""
    return trained("adip")


@contextmanager
def refused(kind: type[VL2VError], message: str) -> Iterator[None]:
    with pytest.raises(kind, match=message) as error:
        yield
    assert "\n" not in str(error.value)


def one_class_only(images: Path) -> None:
    for name in ("box", "cone"):
        for domain in images.iterdir():
            shutil.rmtree(domain / name)


def one_class_in_the_sources(images: Path) -> None:
    for name in ("box", "cone"):
        for domain in ("chalk", "ink"):
            shutil.rmtree(images / domain / name)


def an_empty_target(images: Path) -> None:
    shutil.rmtree(images / "paint")
    (images / "paint").mkdir()


def an_empty_source(images: Path) -> None:
    for file in (images / "ink").rglob("*.png"):
        file.write_bytes(b"")


def one_image_in_a_source(images: Path) -> None:
    for file in list((images / "ink").rglob("*.png"))[1:]:
        file.unlink()


def a_class_called_unknown(images: Path) -> None:
    (images / "ink" / "cone").rename(images / "ink" / "unknown")


def nothing(images: Path) -> None:
    shutil.rmtree(images)
    images.mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (one_class_only, r"only one class \(ball\); a classifier needs two"),
        (one_class_in_the_sources, "only one class in the source domains; a classifier needs two"),
        (
            an_empty_target,
            r"domain 'paint' has no usable images \(paint: an empty folder\); add some, or delete the folder",
        ),
        (an_empty_source, r"none of the 36 images of domain ink can be used \(.*empty file"),
        (one_image_in_a_source, "domain ink has 1 usable image and none of it for validation; add images"),
        (
            a_class_called_unknown,
            "class 'unknown': 'unknown' is what is predicted where no class is likely enough; rename it",
        ),
        (nothing, "no images"),
    ],
)
def test_images_that_no_student_can_learn_from(
    spoil: Callable[[Path], None], message: str, given: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    spoil(images)
    with refused(DataError, message):
        vl2v.distill(given, tmp_path / "run", store=tmp_path / "store")


def test_a_class_missing_in_a_source_is_learnt_from_the_others(
    given: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    shutil.rmtree(images / "ink" / "cone")
    run = vl2v.distill(given, tmp_path / "run", store=tmp_path / "store")
    assert run.classifier.classes == ["ball", "box", "cone"]


def test_a_class_that_only_the_target_has_is_known_by_its_text_or_not_at_all(
    given: dict[str, Any], images: Path, recording: Path, tmp_path: Path
) -> None:
    for domain in ("chalk", "ink"):
        shutil.rmtree(images / domain / "cone")
    with refused(DataError, "no source domain has images of cone, so that erm can't learn it; take adip"):
        erm = {**quick_settings(images, recording, "erm"), "data": given["data"]}
        vl2v.distill(erm, tmp_path / "erm", store=tmp_path / "store")
    run = vl2v.distill(given, tmp_path / "adip", store=tmp_path / "store")
    assert run.classifier.classes == ["ball", "box", "cone"]


def test_a_student_is_not_measured_on_classes_that_it_does_not_know(
    calm: vl2v.Run, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images / "ink" / "ball", images / "ink" / "star")
    with refused(DataError, "the student doesn't know the class 'star'; it knows ball, box, cone; add it with"):
        vl2v.evaluate(calm, images, store=tmp_path / "store")


class Odd(Stub):
    """A teacher whose answers about images are made odd."""

    def __init__(self, spoil: Callable[[np.ndarray], np.ndarray], dim: int = 16) -> None:
        super().__init__()
        self.spoil, self.dim = spoil, dim

    def rows(self, contents: list[bytes]) -> np.ndarray:
        return self.spoil(super().rows(contents))


def a_split(images: Path) -> Path:
    for name, split in zip(("chalk", "ink", "paint"), ("train", "validation", "test"), strict=True):
        (images / name).rename(images / split)
    return images


def a_list_without_a_first_line(images: Path) -> Path:
    (images / "list.csv").write_text("".join(f"{file},ball\n" for file in images.rglob("*.png")))
    return images / "list.csv"


@pytest.mark.parametrize("spoil", [a_split, a_list_without_a_first_line])
def test_what_cannot_be_opened_is_refused_by_a_run_in_the_same_words(
    spoil: Callable[[Path], Path], images: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    given["data"]["path"] = str(spoil(images))
    with pytest.raises(DataError) as opened:
        open_dataset(given["data"]["path"])
    with refused(DataError, f"^{re.escape(str(opened.value))}$"):
        vl2v.distill(given, tmp_path / "run", store=tmp_path / "store")


def test_a_run_reads_a_list_as_inspect_does(
    images: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a BOM, stray blanks, its own columns, an image listed twice and one that is gone."""
    files = [file.relative_to(images) for file in sorted(images.rglob("*.png"))]
    lines = ["Image Path\tLabel \tGroup", *(f"{file}\t  {file.parts[1]} \t{file.parts[0]}" for file in files)]
    (images / "list.tsv").write_text("\n".join([*lines, lines[1], "gone.png\tball\tink"]), encoding="utf-8-sig")
    given["data"]["path"] = str(images / "list.tsv")
    dataset = open_dataset(images / "list.tsv")
    found = inspect(dataset, audit(dataset), ["paint"])
    assert {gone.reason for gone in found.excluded} == {"listed twice", "no such file"}
    monkeypatch.setattr("vl2v.teachers.open_teacher", lambda spec, **options: Stub())
    run = vl2v.distill(given, tmp_path / "run", store=tmp_path / "store")
    assert run.classifier.classes == [*dataset.classes] and run.evaluation is not None
    assert run.evaluation.rows[-1].metrics.images == sum(found.rows["paint"].values()) == 36


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "stub:m: 1 of [0-9]+ embeddings are not finite .* nothing of this batch was saved: check the teacher"),
        (0.0, "stub:m: 1 of [0-9]+ embeddings are zero .* nothing of this batch was saved: check the teacher"),
    ],
)
def test_replies_that_are_no_embeddings(
    value: float, message: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(rows: np.ndarray) -> np.ndarray:
        rows[0] = value
        return rows

    monkeypatch.setattr("vl2v.teachers.open_teacher", lambda spec, **options: Odd(spoil))
    with refused(TeacherError, message):
        vl2v.distill(given, tmp_path / "run", store=tmp_path / "store")


def test_a_teacher_of_another_dimension_than_its_embeddings_in_the_store(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vl2v.teachers.open_teacher", lambda spec, **options: Stub())
    vl2v.embed(given, store=tmp_path / "store")
    monkeypatch.setattr("vl2v.teachers.open_teacher", lambda spec, **options: Odd(lambda rows: rows[:, :8], 8))
    given["data"]["target"] = []  # more to ask
    with refused(StoreError, "embeddings have 8 numbers, those here have 16: give it a store of its own"):
        vl2v.distill(given, tmp_path / "run", store=tmp_path / "store")


@pytest.mark.parametrize("size", [100, 10_000, 60_000, 1_000_000, 1_600_000])
def test_a_full_disk_loses_nothing(size: int, calm: vl2v.Run, given: dict[str, Any], tmp_path: Path) -> None:
    with no_file_larger_than(size), refused(VL2VError, f"^{tmp_path}/.*free some space"):
        vl2v.distill(given, tmp_path / "run", store=tmp_path / "store")
    vl2v.distill(given, tmp_path / "run", store=tmp_path / "store")
    one, other = (load_file(run / "student" / "student.safetensors") for run in (calm.folder, tmp_path / "run"))
    assert all((one[key] == other[key]).all() for key in one)


def test_a_helper_that_is_killed_while_training_is_done_without(
    calm: vl2v.Run, given: dict[str, Any], tmp_path: Path
) -> None:
    given["data"]["workers"] = 1
    others = set(active_children())

    def progress(task: str, done: int, total: int, words: str) -> None:
        if (task, done) == ("distill", 1):
            (helper,) = set(active_children()) - others
            helper.kill()

    with pytest.warns(VL2VWarning, match="^data.workers = 1: .* too little memory .*data.workers=0 avoids this"):
        vl2v.distill(given, tmp_path / "run", store=tmp_path / "store", progress=progress)
    one, other = (load_file(run / "student" / "student.safetensors") for run in (calm.folder, tmp_path / "run"))
    assert all((one[key] == other[key]).all() for key in one)


@pytest.mark.parametrize(
    ("out", "store", "kind", "message"),
    [
        ("file/run", "store", RunError, "file/run: can't be written .*; choose another folder"),
        ("file", "store", RunError, "file: can't be written .*; choose another folder"),
        ("run", "file/store", DataError, "store/audit.sqlite: the audit of the images can't be saved .*another"),
    ],
)
def test_a_folder_that_cannot_be_written_to(
    out: str, store: str, kind: type[VL2VError], message: str, given: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("a file, and no folder")
    with refused(kind, message):
        vl2v.distill(given, tmp_path / out, store=tmp_path / store)


def test_a_folder_in_which_another_run_is_under_way(given: dict[str, Any], tmp_path: Path) -> None:
    with locked(tmp_path / "run"), refused(RunError, "run: another process is training in it"):
        vl2v.distill(given, tmp_path / "run", store=tmp_path / "store")


@pytest.fixture
def begun(given: dict[str, Any], tmp_path: Path) -> Path:
    """Return a run that is interrupted before its end."""
    with pytest.raises(Interrupted):
        vl2v.distill(given, tmp_path / "run", store=tmp_path / "store", progress=stopping("distill", 5))
    return tmp_path / "run"


def test_a_corrupt_checkpoint_is_passed_over_and_reported(begun: Path, given: dict[str, Any], tmp_path: Path) -> None:
    newest = max((begun / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:1000])
    result: list[str] = []
    vl2v.distill(given, begun, store=tmp_path / "store", progress=lambda what, *_: result.append(what))
    assert any(f"{newest}: corrupt" in what and what.endswith("passed over") for what in result)


def test_checkpoints_that_are_all_corrupt(begun: Path, given: dict[str, Any], tmp_path: Path) -> None:
    for file in (begun / "checkpoints").iterdir():
        file.write_bytes(b"x")
    with refused(RunError, "checkpoints: every checkpoint is corrupt; delete the folder to start this run again"):
        vl2v.distill(given, begun, store=tmp_path / "store")
    shutil.rmtree(begun / "checkpoints")
    assert vl2v.distill(given, begun, store=tmp_path / "store").finished


@pytest.mark.parametrize("before", ["1.1\n", "", None], ids=["another version", "an empty file", "none saved"])
def test_a_run_that_another_version_began_to_train(
    before: str | None, begun: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    version = begun / "version.txt"
    now = version.read_text()
    assert now == f"{version_of(given['method'])}\n"
    version.unlink()
    if before is not None:
        version.write_text(before)
    with refused(RunError, "its training was begun by another version .* delete .*checkpoints to train it again"):
        vl2v.distill(given, begun, store=tmp_path / "store")
    shutil.rmtree(begun / "checkpoints")
    assert vl2v.distill(given, begun, store=tmp_path / "store").finished
    assert version.read_text() == now


def test_a_corrupt_store(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / FILE_NAME).write_bytes(b"images of cats" * 4096)
    with refused(StoreError, r"answers.sqlite: the file is corrupt .*`vl2v embed` queries again"):
        vl2v.distill(given, tmp_path / "run", store=tmp_path / "store")


@pytest.mark.parametrize(
    ("file", "content", "kind", "message"),
    [
        ("evaluation.json", b"{", RunError, "evaluation.json: corrupt .* delete it"),
        ("student/student.json", b"[]", StudentError, "the student is corrupt .* train it again"),
        ("student/student.json", b"{}", StudentError, "the student is corrupt .* train it again"),
        ("student/student.safetensors", b"x", StudentError, "the student is corrupt .* train it again"),
    ],
)
def test_a_run_folder_with_a_corrupt_file(
    file: str, content: bytes, kind: type[VL2VError], message: str, calm: vl2v.Run, tmp_path: Path
) -> None:
    shutil.copytree(calm.folder, tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(content)
    with refused(kind, message):
        run = vl2v.Run(tmp_path / "run")
        assert run.classifier and run.evaluation
