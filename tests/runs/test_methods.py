"""Every method as a whole run: it ends with a student, and after an interruption with the very same one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vl2v
from little import Interrupted, quick_settings, stopping
from vl2v.embeddings.plan import Views
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError
from vl2v.evaluation.ridge import LAMBDAS, best_lambda
from vl2v.methods import METHODS, find_method, version_of
from vl2v.runs.datasets import open_sources
from vl2v.runs.features import Features
from vl2v.runs.heads import align_again
from vl2v.runs.query import open_session
from vl2v.session import Session, silent
from vl2v.teachers import the_teacher
from vl2v.training.device import OneDevice

# Method and version -> losses, of a method that learns from labels, one that learns from targets, one from the start.
TRAINED = {
    "erm 6.1": [1.10011, 1.10382, 1.09773],
    "adip 6.1": [-0.34278, -0.4846, -0.49667, -0.50154, -0.35125],
    "miro 6.2": [0.98477, 0.98766, 0.98109],
}

WHITE = [name for name, entry in METHODS.items() if entry.tower]
BLACK = [name for name, task in METHODS.items() if name not in WHITE and task.stage_defaults]


def weights(run: vl2v.Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "student" / "student.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def white(settings: dict[str, Any]) -> dict[str, Any]:
    stages = {name: {**stage, "batch_per_domain": 2, "lr": 1e-4} for name, stage in settings["stages"].items()}
    return {**settings, "teacher": {"spec": "tiny", "precision": "fp32"}, "stages": stages}


@pytest.mark.parametrize("key", TRAINED)
def test_a_version_trains_as_it_did_when_its_losses_were_written_down(
    key: str, trained: Callable[[str], vl2v.Run]
) -> None:
    method, _ = key.split()
    rows = [json.loads(line) for line in (trained(method).folder / "metrics.jsonl").read_text().splitlines()]
    found, now = [round(row["loss"], 5) for row in rows], f"{method} {version_of(method)}"
    assert now == key and found == pytest.approx(TRAINED[key], rel=1e-3, abs=1e-4), (  # processors differ by less
        f"{method} trains differently. If that is meant, raise its version in METHODS (or LOOP, if it is every "
        f'method\'s) and put "{now} (new version)": {found} into TRAINED'
    )


@pytest.mark.parametrize("method", BLACK)
def test_a_student_of_every_method_predicts(method: str, trained: Callable[[str], vl2v.Run], shapes: Path) -> None:
    run = trained(method)
    assert run.evaluation is not None and run.evaluation.mean(role="unseen") is not None
    image = next((shapes / "paint").rglob("*.png"))
    (prediction,) = vl2v.load(run.folder).predict([image])
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-4)
    if method == "rise":
        assert run.classifier.student.projector.out_features == 3  # the head on the projector is one layer now


@pytest.mark.parametrize("method", ["adip", "kd", "erm", "lp", "lp-ft", "mixup"])  # more are interrupted below
def test_every_method_gives_the_same_weights_twice(
    method: str, trained: Callable[[str], vl2v.Run], shapes: Path, recording: Path, tmp_path: Path
) -> None:
    settings = quick_settings(shapes, recording, method)
    settings["data"]["workers"] = 2  # changes nothing but the time
    again = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    assert same(weights(trained(method)), weights(again))


@pytest.mark.parametrize(
    ("method", "stage", "step"),
    [
        ("miro", "finetune", 5),
        ("sagm", "finetune", 5),
        ("soup", "finetune 2/3", 3),
        ("soup", "finetune 3/3", 1),
        ("rise", "distill", 3),
        ("mixup", "finetune", 3),
        ("scmd", "distill", 3),
    ],
)
def test_an_interrupted_run_ends_the_same(
    method: str,
    stage: str,
    step: int,
    trained: Callable[[str], vl2v.Run],
    shapes: Path,
    recording: Path,
    tmp_path: Path,
) -> None:
    settings = quick_settings(shapes, recording, method)
    calm = trained(method)
    with pytest.raises(Interrupted):
        vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store", progress=stopping(stage, step))
    assert same(weights(calm), weights(vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")))


def test_lambda_is_chosen_before_training_and_kept(shapes: Path, recording: Path, tmp_path: Path) -> None:
    settings = quick_settings(shapes, recording, "adip-plus")
    run = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    result = json.loads((run.folder / "chosen.json").read_text())
    accuracies = {float(share): accuracy for share, accuracy in result["accuracies"].items()}
    learnt = sum(run.classifier.about["images"].values())
    assert result["lambda"] == best_lambda(accuracies, learnt)
    settings["loss"] = {"lambda": result["lambda"], "temperature": result["temperature"]}
    given = vl2v.distill(settings, tmp_path / "given", store=tmp_path / "store")
    assert same(weights(run), weights(given)) and not (given.folder / "chosen.json").exists()


@pytest.mark.parametrize("method", ["adip-plus", "kd"])
def test_the_temperature_is_chosen_by_the_teachers_predictions(
    method: str, shapes: Path, recording: Path, tmp_path: Path
) -> None:
    settings = quick_settings(shapes, recording, method) | {"loss": {"temperature": "auto"}}
    run = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    chosen = json.loads((run.folder / "chosen.json").read_text())["temperature"]
    for given, alike in ((chosen, True), (chosen + 1, False)):
        settings["loss"] = {"temperature": given}
        other = vl2v.distill(settings, tmp_path / f"{given}", store=tmp_path / "store")
        assert same(weights(run), weights(other)) == alike


@pytest.mark.parametrize(("method", "names"), [("kd", ["temperature"]), ("adip", ["accuracies", "lambda"])])
def test_only_what_a_method_uses_is_chosen(
    method: str, names: list[str], shapes: Path, recording: Path, tmp_path: Path
) -> None:
    settings = quick_settings(shapes, recording, method) | {"loss": {names[-1]: "auto"}}
    file = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store").folder / "chosen.json"
    assert (sorted(json.loads(file.read_text())) if file.exists() else []) == names


def test_a_black_box_isnt_paid_for_what_it_cant_be_queried(shapes: Path, recording: Path, tmp_path: Path) -> None:
    settings = quick_settings(shapes, recording, "adip")
    settings["teacher"]["online"] = True
    with pytest.raises(ConfigError, match="is a black box"):
        vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    with EmbeddingStore(tmp_path / "store") as store:
        assert not store.queries()


def test_an_interrupted_run_keeps_its_lambda(shapes: Path, recording: Path, tmp_path: Path) -> None:
    settings = quick_settings(shapes, recording, "adip-plus")
    ended = {}
    for share in (0.0, 1.0):
        run = tmp_path / f"{share}"
        with pytest.raises(Interrupted):
            vl2v.distill(settings, run, store=tmp_path / "store", progress=stopping("distill", 1))
        (run / "chosen.json").write_text(json.dumps({"lambda": share}))  # is read, not chosen anew
        ended[share] = weights(vl2v.distill(settings, run, store=tmp_path / "store"))
    assert not same(ended[0.0], ended[1.0])


def test_methods_that_query_texts_alone_query_no_image(shapes: Path, recording: Path, tmp_path: Path) -> None:
    settings = quick_settings(shapes, recording, "erm-text")
    run = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    with EmbeddingStore(tmp_path / "store", read_only=True) as store:
        assert [(question.kind, question.count) for question in store.queries()] == [("text", 3)]
    assert "texts" in weights(run)


def test_a_soup_is_the_mean_of_its_members(shapes: Path, recording: Path, tmp_path: Path) -> None:
    settings = quick_settings(shapes, recording, "soup")
    settings["stages"]["finetune"] |= {"steps": 1, "eval_every": 1}
    with pytest.raises(Interrupted):
        vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store", progress=stopping("evaluating", 0))
    run = vl2v.Run(tmp_path / "run")
    before, last = (tmp_path / "run" / "checkpoints" / f"{n:02d}-00000000.safetensors" for n in (3, 4))
    start, ended = load_file(before), load_file(last)
    soup = {key.removeprefix("soup/"): value for key, value in start.items() if key.startswith("soup/")}
    key = "projector.weight"
    assert not torch.equal(soup[key], start[f"model/{key}"])  # the next member starts where the first did
    third = 3 * ended[f"model/{key}"] - 2 * soup[key]  # mean = (2 soup of two + third) / 3
    moved = (third - start[f"model/{key}"]).abs().max()
    assert 0 < moved < 2e-3 and torch.equal(weights(run)[key], ended[f"model/{key}"])


@pytest.mark.parametrize("method", WHITE)
def test_a_white_box_is_fine_tuned(method: str, shapes: Path, recording: Path, tmp_path: Path) -> None:
    settings = white(quick_settings(shapes, recording, method))
    run = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    assert "texts" in weights(run) and run.evaluation is not None


def test_wise_ft_ends_halfway_to_the_zero_shot_weights(shapes: Path, recording: Path, tmp_path: Path) -> None:
    def trained(interpolate: float) -> dict[str, torch.Tensor]:
        settings = white(quick_settings(shapes, recording, "wise-ft"))
        settings |= {"loss": {"interpolate": interpolate}, "train": {**settings["train"], "select": "last"}}
        return weights(vl2v.distill(settings, tmp_path / f"at{interpolate}", store=tmp_path / "store"))

    start, middle, end = (trained(share) for share in (0.0, 0.5, 1.0))
    assert not same(start, end)
    assert all(
        torch.allclose(middle[key], (start[key] + end[key]) / 2, atol=1e-6)
        for key in start
        if start[key].is_floating_point()
    )


def test_adip_plus_ends_where_source_validation_is_best(
    shapes: Path, recording: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("vl2v.runs.heads.align_again", lambda *_: None)  # else P is another one than was measured

    def trained(*ways: float) -> tuple[dict[str, torch.Tensor], float]:
        monkeypatch.setattr("vl2v.methods.adip.INTERPOLATE", ways)
        settings = quick_settings(shapes, recording, "adip-plus")
        run = vl2v.distill(settings, tmp_path / "-".join(map(str, ways)), store=tmp_path / "store")
        return weights(run), run.classifier.about["validation_accuracy"]

    single = {way: trained(way) for way in (0.0, 0.5, 1.0)}
    chosen, accuracy = trained(0.0, 0.5, 1.0)
    assert accuracy == max(score for _, score in single.values())
    assert any(same(chosen, student) for student, _ in single.values())
    assert not same(single[0.5][0], single[1.0][0])


def test_adip_plus_fits_its_projector_to_the_backbone_it_ends_with(
    trained: Callable[[str], vl2v.Run], tmp_path: Path
) -> None:
    run = trained("adip-plus")
    config, student = run.config, run.classifier.student
    sources = open_sources(config, Session(tmp_path))
    with EmbeddingStore(run.folder.with_name("store"), read_only=True) as store:
        teacher = the_teacher(config.teacher)
        answers = open_session(config, store, teacher, None, sources, Views(), silent).targets()
    before, others = weights(run), sources.training[::2]
    with torch.no_grad():
        student.projector.weight.zero_()
    found = Features(student, sources.dataset, OneDevice(config.train), 0, silent)
    share = align_again(student, sources, answers, found)
    assert share in LAMBDAS
    assert torch.allclose(student.projector.weight, before["projector.weight"], rtol=1e-2, atol=1e-2)
    images = answers.images.copy()
    images[others] = 0  # they weren't asked about: their classes' texts stand for what the teacher would have said
    assert align_again(student, sources, replace(answers, images=images), found) in LAMBDAS
    half = student.projector.weight.detach().clone()
    assert half.isfinite().all()
    images[others, 0] = answers.texts[answers.labels[others]]
    align_again(student, sources, replace(answers, images=images), found)
    assert torch.allclose(student.projector.weight, half, rtol=1e-2, atol=1e-2)
    assert not torch.allclose(half, before["projector.weight"], rtol=1e-2, atol=1e-2)
    images[sources.training] = 0
    assert align_again(student, sources, replace(answers, images=images), found) is None


def test_any_method_starts_from_a_white_boxs_tower_on_request(shapes: Path, recording: Path, tmp_path: Path) -> None:
    settings = white(quick_settings(shapes, recording, "erm-text"))
    settings["student"] = {"name": "teacher"}
    run = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    assert isinstance(run.classifier.student.projector, torch.nn.Identity)
    linear = white(quick_settings(shapes, recording, "erm")) | {"student": {"name": "teacher"}}
    assert vl2v.distill(linear, tmp_path / "linear", store=tmp_path / "store").classifier.student.head == "linear"


def test_find_method_knows_what_trains() -> None:
    stages = find_method("soup")().stages
    assert [stage.trains for stage in stages] == ["projector", "all", "all", "all"]
