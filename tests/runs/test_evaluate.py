"""A finished run on images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vl2v
import vl2v.runs
from little import Interrupted, quick_settings, stopping
from vl2v.errors import RunError
from vl2v.evaluation.metrics import Evaluation


@pytest.fixture(scope="module")
def run(trained: Callable[[str], vl2v.Run]) -> vl2v.Run:
    return trained("adip")


def test_a_runs_own_images_are_its_own_wherever_they_lie(run: vl2v.Run, shapes: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(shapes, tmp_path / "elsewhere")
    store = run.folder.with_name("store")
    for data in (None, shapes, elsewhere):
        found = vl2v.evaluate(run, data, store=store)
        assert found == run.evaluation and not any("every image" in note for note in found.notes)


def test_other_images_in_domains_of_the_same_name_all_count(run: vl2v.Run, shapes: Path, tmp_path: Path) -> None:
    others = shutil.copytree(shapes, tmp_path / "others")
    (others / "ink" / "ball" / "00.png").unlink()
    found = vl2v.evaluate(run, others, store=run.folder.with_name("store"))
    assert {row.role for row in found.rows} == {"unseen"}
    assert found.notes[-1].startswith("it was trained on domains called chalk, ink; here every image")
    shutil.rmtree(others / "paint")  # not even the domain that was left out
    assert vl2v.evaluate(run, others, store=run.folder.with_name("store")).notes == found.notes


def copied(run: vl2v.Run, shapes: Path, folder: Path) -> tuple[vl2v.Run, Path]:
    """Return a copy of a run, with a copy of its images at the path that it knows."""
    data = shutil.copytree(shapes, folder / "shapes")
    config = shutil.copytree(run.folder, folder / "run") / "config.toml"
    config.write_text(config.read_text().replace(str(shapes), str(data)))
    return vl2v.Run(folder / "run"), data


def test_it_is_reported_when_the_runs_own_images_have_changed(run: vl2v.Run, shapes: Path, tmp_path: Path) -> None:
    mine, data = copied(run, shapes, tmp_path)

    def evaluation() -> Evaluation:
        return vl2v.evaluate(mine, store=run.folder.with_name("store"))

    assert evaluation() == run.evaluation
    more = data / "new" / "ball"
    more.mkdir(parents=True)
    for file in (data / "paint" / "ball").iterdir():
        shutil.copy(file, more)
    found = evaluation()
    (new,) = (row for row in found.rows if row.domain == "new" and row.who == "student")
    assert new.role == "unseen" and new.metrics.images == len(list(more.iterdir()))  # it validates nothing
    assert any(note.startswith("images have changed since the run") for note in found.notes)


def test_leakage_by_unlabelled_images_is_reported(shapes: Path, recording: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for number in range(3):
        shutil.copy(shapes / "paint" / "ball" / f"{number:02}.png", pool)
    settings = quick_settings(shapes, recording)
    settings["data"]["unlabelled"] = str(pool)
    found = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store").evaluation
    assert found is not None and found.notes[0].startswith("leakage: 3 images of unseen domains")


def test_a_run_that_has_begun_to_learn_takes_no_other_images(shapes: Path, recording: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shapes, tmp_path / "shapes")
    settings: dict[str, Any] = quick_settings(data, recording)

    def distilled(**how: Any) -> vl2v.Run:
        return vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store", **how)

    with pytest.raises(Interrupted):
        distilled(progress=stopping("distill", 4))
    gone = data / "ink" / "ball" / "00.png"
    kept = gone.read_bytes()
    gone.unlink()
    with pytest.raises(RunError, match="have changed since this run began to learn from them"):
        distilled()
    gone.write_bytes(kept)
    assert distilled().finished


@pytest.mark.parametrize("method", ["kd", "adip"])
def test_the_teachers_row_has_the_teachers_own_scale(
    method: str, shapes: Path, recording: Path, tmp_path: Path
) -> None:
    settings = quick_settings(shapes, recording, method)
    settings["teacher"]["logit_scale"] = 50.0
    found = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store").evaluation
    assert found is not None
    (row,) = (row for row in found.rows if row.who != "student" and row.domain == "ink")
    assert row.metrics.accuracy == 1 and row.metrics.ece < 0.1  # of bare cosines it is 0.46


def test_sam_keeps_the_statistics_of_its_first_pass(shapes: Path, recording: Path, tmp_path: Path) -> None:
    found = []
    for method in ("erm", "sam"):
        settings = quick_settings(shapes, recording, method)
        settings["student"]["batch_norm"] = "train"
        settings["stages"]["finetune"]["steps"] = 1
        run = vl2v.distill(settings, tmp_path / method, store=tmp_path / "store")
        found.append({k: v for k, v in run.classifier.student.state_dict().items() if "running" in k})
    assert found[0] and all((value == found[1][key]).all() for key, value in found[0].items())


def test_near_copies_of_what_was_learnt_are_reported(shapes: Path, recording: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shapes, tmp_path / "shapes")
    run = vl2v.distill(quick_settings(data, recording), tmp_path / "run", store=tmp_path / "store")
    for number in range(3):
        Image.open(data / f"ink/ball/{number:02}.png").save(data / f"paint/box/copy{number}.jpg", quality=80)
    notes = vl2v.evaluate(run, store=tmp_path / "store").notes
    assert notes[0].startswith(
        "leakage: 3 images of unseen domains are near-copies of those to learn from, first paint"
    )
    assert notes[1].startswith("leakage within the source domains: 2 of 14 validation images are copies or near-copies")


def test_a_class_that_only_the_target_has_changes_no_weight(tmp_path: Path) -> None:
    students = []
    for name in ("aardvark", "zebra", None):
        data = tmp_path / str(name) / "data"
        for domain in ("a", "b", "t"):
            for number, kind in enumerate(("cat", "dog", *([name] if domain == "t" and name else []))):
                (data / domain / kind).mkdir(parents=True)
                for image in range(8):
                    pixels = np.random.default_rng([number, image, ord(domain)]).integers(0, 256, (24, 24, 3), np.uint8)
                    Image.fromarray(pixels).save(data / domain / kind / f"{image}.png")
        settings = {
            "data": {"path": str(data), "target": ["t"]},
            "teacher": {"spec": "tiny"},
            "student": {"name": "test_efficientnet", "weights": "none", "image_size": 32},
            "stages": {"align": {"steps": 2}, "distill": {"steps": 2, "batch_per_domain": 4}},
        }
        run = vl2v.distill(settings, tmp_path / str(name) / "run", store=tmp_path / "store")
        assert run.classifier.classes == ["cat", "dog", *([name] if name else [])]
        assert run.evaluation is not None
        assert run.evaluation.rows[-1].metrics.images == (24 if name else 16)  # the target's are all measured
        assert not any("changed" in note for note in run.evaluation.notes)
        students.append(run.classifier)
    first, second, without = ({**one.student.state_dict(), "texts": one.texts[:2]} for one in students)
    assert all(torch.equal(first[key], second[key]) and torch.equal(first[key], without[key]) for key in first)
    assert len({(one.temperature, one.threshold) for one in students}) == 1


def test_of_a_folder_that_is_predicted_on_what_training_would_take(run: vl2v.Run, shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes / "ink" / "ball", tmp_path / "q" / "real")
    some = tmp_path / "q" / "real" / "00.png"
    for junk in (".ipynb_checkpoints/a.png", "@eaDir/b.png", "__MACOSX/c.png", "real/._00.png"):
        (tmp_path / "q" / junk).parent.mkdir(exist_ok=True)
        shutil.copy(some, tmp_path / "q" / junk)
    (tmp_path / "q" / "linked").symlink_to("real")
    (tmp_path / "q" / "out.png").symlink_to(shapes / "ink" / "box" / "00.png")
    found = dict(vl2v.predict(run, [tmp_path / "q"]))
    result = {path.relative_to(tmp_path / "q").as_posix(): answer for path, answer in found.items()}
    assert result.pop("out.png") == "a link to outside the dataset's folder"
    assert sorted(result) == [f"{folder}/{number:02}.png" for folder in ("linked", "real") for number in range(12)]
