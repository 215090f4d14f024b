"""A whole run on small images: what it promises, and what goes wrong in words."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vl2v
from little import Interrupted, quick_settings, stopping
from vl2v.errors import ConfigError, DataError, RunError, StudentError, TeacherError, VL2VError
from vl2v.runs.predict import predict_files
from vl2v.runs.predictions import Predictions


def weights(run: vl2v.Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "student" / "student.safetensors")


def same(one: vl2v.Run, other: vl2v.Run) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def calm(trained: Callable[[str], vl2v.Run]) -> vl2v.Run:
    """Return a run that nothing happens to, its store beside it."""
    return trained("adip")


@pytest.fixture
def run(calm: vl2v.Run, tmp_path: Path) -> vl2v.Run:
    """Return a copy of it, to be changed; the store is copied, too."""
    shutil.copytree(calm.folder.parent, tmp_path, dirs_exist_ok=True)
    return vl2v.Run(tmp_path / calm.folder.name)


def test_a_run_learns_and_says_how_well(calm: vl2v.Run) -> None:
    evaluation = calm.evaluation
    assert evaluation is not None
    assert {(row.domain, row.role) for row in evaluation.of("student")} == {
        ("chalk", "seen"),
        ("ink", "seen"),
        ("paint", "unseen"),
    }
    assert {row.metrics.images for row in evaluation.of("student", "seen")} == {7}  # int(0.2 x 36)
    assert {row.metrics.images for row in evaluation.of("student", "unseen")} == {36}
    assert {row.domain for row in evaluation.of("teacher, zero-shot")} == {"chalk", "ink"}
    rows = [json.loads(line) for line in (calm.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [
        ("align", 10),
        ("align", 20),
        ("distill", 2),
        ("distill", 4),
        ("distill", 6),
    ]


def test_align_trains_the_projector_alone_and_distill_the_backbone_alone(quick: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        vl2v.distill(quick, tmp_path / "run", store=tmp_path / "store", progress=stopping("evaluating", 0))
    run = vl2v.Run(tmp_path / "run")
    aligned = load_file(tmp_path / "run" / "checkpoints" / "02-00000000.safetensors")
    projector = {key.removeprefix("model/"): value for key, value in aligned.items() if "projector" in key}
    assert all(torch.equal(weights(run)[key], value) for key, value in projector.items())
    assert "texts" in weights(run) and weights(run)["texts"].shape == (3, 16)
    vl2v.distill(quick, run.folder, store=tmp_path / "store")
    assert run.evaluation is not None and not (run.folder / "checkpoints").exists(), "nobody needs them any more"


def test_the_target_is_not_used_before_the_end(
    calm: vl2v.Run, quick: dict[str, Any], shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "shapes"
    shutil.copytree(shapes, other)
    for file in (other / "paint").rglob("*.png"):
        file.write_bytes(b"not an image")  # would be set aside, or change what is learnt, if it were looked at
    settings = {**quick, "data": {**quick["data"], "path": str(other)}}
    opened: list[str] = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(str(path)) or read(path))
    module = sys.modules["vl2v.runs.train"]  # the name in the package is the function
    found = calm.evaluation, Predictions.load(calm.folder)
    monkeypatch.setattr(module, "evaluate_images", lambda *args, **kwargs: found)
    blind = vl2v.distill(settings, tmp_path / "blind", store=tmp_path / "store")
    assert same(calm, blind)
    assert any("/chalk/" in path for path in opened)
    assert not any("/paint/" in path for path in opened)


def test_the_images_are_listed_once_and_each_is_audited_once(
    quick: dict[str, Any], shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vl2v.runs import datasets

    data = shutil.copytree(shapes, tmp_path / "shapes")
    (data / "paint" / "ball" / "00.png").write_bytes(b"not an image")
    (data / "ink" / "ball" / "00.png").write_bytes(b"not an image")
    listed, audited = [], Counter[str]()
    open_dataset, audit = datasets.open_dataset, datasets.audit

    def opening(*args: Any, **kwargs: Any) -> Any:
        listed.append(args)
        return open_dataset(*args, **kwargs)

    def auditing(dataset: Any, **kwargs: Any) -> Any:
        audited.update(dataset.paths)
        return audit(dataset, **kwargs)

    monkeypatch.setattr(datasets, "open_dataset", opening)
    monkeypatch.setattr(datasets, "audit", auditing)
    run = vl2v.distill(quick, tmp_path / "run", data=str(data), store=tmp_path / "store", minutes=5)
    assert len(listed) == 1 and set(audited.values()) == {1} and len(audited) == len(list(data.rglob("*.png")))
    assert run.evaluation is not None and "2 files set aside" in run.evaluation.notes


def test_keywords_are_settings_and_win_over_the_tree(quick: dict[str, Any], calm: vl2v.Run, tmp_path: Path) -> None:
    """The very run that the tree describes, with the command line's names."""
    tree = {name: section for name, section in quick.items() if name not in ("data", "teacher", "student", "method")}
    run = vl2v.distill(
        {**tree, "seed": 7},
        tmp_path / "run",
        data=quick["data"],
        teacher=quick["teacher"]["spec"],
        student=quick["student"],
        method=quick["method"],
        target="paint",
        seed=0,
        image_size=32,
        store=tmp_path / "store",
    )
    assert run.config == calm.config and same(calm, run)
    with pytest.raises(ConfigError, match=r"swad: unknown setting, did you mean train\.swad"):
        vl2v.distill(quick, tmp_path / "other", swad=True)  # type: ignore[call-arg]
    assert "method adip" in repr(run) and "finished yes" in repr(run)
    assert "<table>" in run._repr_html_() and "paint" in run._repr_html_()


def test_the_teacher_is_queried_once_whatever_is_run(quick: dict[str, Any], tmp_path: Path) -> None:
    from vl2v.embeddings.store import EmbeddingStore

    for seed in (0, 1):
        for target in ("paint", "ink"):
            settings = {**quick, "seed": seed, "data": {**quick["data"], "target": [target]}}
            vl2v.distill(settings, tmp_path / f"{target}{seed}", store=tmp_path / "store")
    with EmbeddingStore(tmp_path / "store", read_only=True) as store:
        queried = {kind: sum(q.count for q in store.queries() if q.kind == kind) for kind in ("image", "text")}
    assert queried == {"image": 3 * 36, "text": 3}


def test_swad_ships_the_averaged_weights(calm: vl2v.Run, quick: dict[str, Any], tmp_path: Path) -> None:
    quick["train"]["swad"] = True
    averaged = vl2v.distill(quick, tmp_path / "swad", store=tmp_path / "store")
    assert not same(calm, averaged)


def test_batch_norms_statistics_are_those_of_the_weights_that_are_chosen(
    shapes: Path, recording: Path, tmp_path: Path
) -> None:
    settings = change(quick_settings(shapes, recording, "erm"), "student", batch_norm="train")
    settings["stages"]["finetune"] |= {"lr": 0.03, "steps": 24}
    run = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    accuracies = [row["val_accuracy"] for row in rows]
    assert len(set(accuracies)) > 2 and run.classifier.about["validation_accuracy"] == max(accuracies)


def test_a_row_of_which_no_checkpoint_was_kept_is_written_once(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr("vl2v.training.stage.save_checkpoint", full)
    with pytest.raises(RunError, match="the disk is full"):
        vl2v.distill(quick, tmp_path / "run", store=tmp_path / "store")
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 1
    monkeypatch.undo()
    run = vl2v.distill(quick, tmp_path / "run", store=tmp_path / "store")
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 2, 4, 6]


def test_predict_evaluate_and_add_a_class(run: vl2v.Run, shapes: Path, tmp_path: Path) -> None:
    image = shapes / "ink" / "ball" / "00.png"
    (prediction,) = vl2v.load(run.folder).predict([image])
    assert prediction.best in ("ball", "box", "cone") and sum(prediction.probabilities.values()) == pytest.approx(
        1, abs=1e-5
    )
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    found = dict(predict_files(run.folder, [image, bad, shapes / "ink" / "box"]))
    assert len(found) == 14 and isinstance(found[bad], str) and found[image] == prediction
    classifier = vl2v.add_class(run, "star", store=tmp_path / "store")
    assert classifier.classes == ["ball", "box", "cone", "star"]
    assert set(vl2v.load(run.folder).predict([image])[0].probabilities) == {"ball", "box", "cone", "star"}
    assert vl2v.evaluate(vl2v.Run(run.folder), store=tmp_path / "store").rows
    with pytest.raises(StudentError, match="the new class has no name"):
        vl2v.add_class(vl2v.Run(run.folder), " ", store=tmp_path / "store")
    with pytest.raises(StudentError, match="'star' is there already"):
        vl2v.add_class(vl2v.Run(run.folder), "star", store=tmp_path / "store")
    with pytest.raises(StudentError, match="'unknown' is what is predicted where no class is likely"):
        vl2v.add_class(vl2v.Run(run.folder), "unknown", store=tmp_path / "store")
    with pytest.raises(TeacherError, match="no embedding of 1 of 1 texts: 'a photo of a comet'"):
        vl2v.add_class(vl2v.Run(run.folder), "comet", store=tmp_path / "store")


def test_a_linear_head_takes_no_new_class(shapes: Path, recording: Path, tmp_path: Path) -> None:
    run = vl2v.distill(quick_settings(shapes, recording, "erm"), tmp_path / "run", store=tmp_path / "store")
    with pytest.raises(StudentError, match="erm trains a fixed head"):
        vl2v.add_class(run, "star", store=tmp_path / "store")


def test_a_folder_belongs_to_one_configuration(run: vl2v.Run, quick: dict[str, Any], tmp_path: Path) -> None:
    stamp = (run.folder / "student" / "student.safetensors").stat().st_mtime_ns
    vl2v.distill(quick, run.folder, store=tmp_path / "store")  # finished: nothing is done again
    assert (run.folder / "student" / "student.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(RunError, match=r"other settings \(seed\)"):
        vl2v.distill({**quick, "seed": 9}, run.folder, store=tmp_path / "store")
    with pytest.raises(RunError, match="not empty, and not a run folder"):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("words")
        vl2v.distill(quick, tmp_path / "mine", store=tmp_path / "store")


@pytest.mark.parametrize("stop", [("distill", 4), ("evaluating", 1), None])
def test_a_run_goes_on_with_the_very_same_images_elsewhere(
    stop: tuple[str, int] | None, calm: vl2v.Run, quick: dict[str, Any], shapes: Path, tmp_path: Path
) -> None:
    def given(path: Path, **others: Any) -> vl2v.Run:
        data = {**quick["data"], "path": str(path)}
        return vl2v.distill({**quick, "data": data, **others}, tmp_path / "run", store=tmp_path / "store")

    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(shapes, before)
    quick["data"]["path"] = str(before)
    if stop is None:
        given(before)
    else:
        with pytest.raises(Interrupted):
            vl2v.distill(quick, tmp_path / "run", store=tmp_path / "store", progress=stopping(*stop))
    before.rename(after)
    with pytest.raises(RunError, match=r"other settings \(data.path, seed\)"):
        given(after, seed=9)
    other = tmp_path / "other"
    shutil.copytree(after, other)
    image = other / ("paint" if stop is None else "ink") / "ball" / "00.png"
    shutil.copy(image.with_name("01.png"), image)
    with pytest.raises(RunError, match=r"other settings \(data.path\)"):
        given(other)
    run = given(after)
    assert same(run, calm) and run.config.data.path == after
    assert run.evaluation == calm.evaluation


def change(settings: dict[str, Any], section: str, **values: Any) -> dict[str, Any]:
    return {**settings, section: {**settings.get(section, {}), **values}}


BAD: list[tuple[str, dict[str, Any], type[VL2VError], str]] = [
    ("data", {"target": ["pain"]}, DataError, "no domain 'pain'; did you mean paint"),
    ("data", {"target": ["paint", "ink", "chalk"]}, DataError, "every domain is a target"),
    ("data", {"path": "/nowhere"}, DataError, "/nowhere: no such folder"),
    ("student", {"name": "test_efficientnett"}, StudentError, "no such model; did you mean test_efficientnet"),
    ("student", {"weights": "/nowhere.safetensors"}, StudentError, "/nowhere.safetensors: no such weights file"),
    ("teacher", {"spec": "recordet:x"}, TeacherError, "'recordet': unknown kind; did you mean recorded"),
    ("teacher", {"spec": "recorded:/nowhere"}, TeacherError, "no such folder"),
    ("teacher", {"online": True}, ConfigError, "is a black box"),
    ("teacher", {"select": "som"}, ConfigError, "^teacher.select = 'som': must be a whole number, or must be 'known'"),
    ("prompts", {"overrides": {"bal": "orb"}}, ConfigError, "the data have no such class; did you mean ball"),
    ("train", {"accelerator": "cuda:9"}, ConfigError, "this machine has no such device; use auto, or cpu"),
]


def test_a_mistake_is_said_in_one_line_and_can_be_mended_in_the_same_folder(
    quick: dict[str, Any], tmp_path: Path
) -> None:
    for section, values, kind, message in BAD:
        with pytest.raises(kind, match=message) as error:
            vl2v.distill(change(quick, section, **values), tmp_path / "run", store=tmp_path / "store")
        assert "\n" not in str(error.value)
    assert vl2v.distill(quick, tmp_path / "run", store=tmp_path / "store").config.data.target == ["paint"]


def test_metrics_are_written_for_tensorboard_on_request(quick: dict[str, Any], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    vl2v.distill(change(quick, "train", tensorboard=True), tmp_path / "run", store=tmp_path / "store")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("distill/loss")] == [2, 4, 6]


def test_sd_needs_the_weights(quick: dict[str, Any], tmp_path: Path) -> None:
    del quick["stages"]
    with pytest.raises(ConfigError, match="a black box; a student can't start from its image tower, use method adip"):
        vl2v.distill({**quick, "method": "sd", "student": {}}, tmp_path / "run", store=tmp_path / "store")


def test_weights_of_another_model_are_refused(quick: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"conv_stem.weight": torch.zeros(3, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(StudentError, match="tensors don't fit the student"):
        vl2v.distill(
            change(quick, "student", weights=str(tmp_path / "w.safetensors")),
            tmp_path / "r",
            store=tmp_path / "store",
        )


def test_a_student_that_was_tampered_with_is_refused(run: vl2v.Run) -> None:
    file = run.folder / "student" / "student.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StudentError, match="the student is corrupt"):
        vl2v.load(run.folder)


def test_pretrained_weights_come_from_a_file(quick: dict[str, Any], tmp_path: Path) -> None:
    import timm

    torch.manual_seed(5)
    model = timm.create_model("test_efficientnet", num_classes=10)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    from vl2v.students.backbone import pretrained_backbone

    backbone, _ = pretrained_backbone("test_efficientnet", str(tmp_path / "w.pth"))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    "name", ["lcnet_035", "test_nfnet", "test_vit"]
)  # a hidden layer, no batch norm, a transformer
def test_students_of_every_kind_are_trained_exported_and_read_back(
    name: str, quick: dict[str, Any], shapes: Path, tmp_path: Path
) -> None:
    from vl2v.deploy.runtime import load
    from vl2v.export.student import export_student

    quick["student"]["name"] = name
    quick["stages"] = {stage: {"steps": 2, "batch_per_domain": 2} for stage in ("align", "distill")}
    run = vl2v.distill(quick, tmp_path / "run", store=tmp_path / "store")
    export_student(run, tmp_path / "student.onnx", preprocess="outside", store=tmp_path / "store")
    image = shapes / "paint" / "ball" / "00.png"
    (ours,), (theirs,) = (model.predict([image]) for model in (vl2v.load(run.folder), load(tmp_path / "student.onnx")))
    assert theirs.probabilities == pytest.approx(ours.probabilities, abs=1e-3)


@pytest.mark.parametrize("views", [0, 2])
def test_a_student_that_cannot_be_trained_is_refused_before_any_query(
    views: int, quick: dict[str, Any], tmp_path: Path
) -> None:
    from vl2v.embeddings.store import EmbeddingStore

    quick["student"] |= {"name": "test_vit", "image_size": 40}
    quick["teacher"]["views"] = views
    for verb in (
        lambda: vl2v.embed(quick, store=tmp_path),
        lambda: vl2v.distill(quick, tmp_path / "r", store=tmp_path),
    ):
        with pytest.raises(
            StudentError, match="student test_vit: can't take images of 40 pixels a side; use image size"
        ):
            verb()
    with EmbeddingStore(tmp_path) as store:
        assert not list(store.teachers()), "nothing was queried, not even the width of its embeddings"
