"""Datasets as they come: one domain, domains without labels, a class in one of them only, any name."""

from __future__ import annotations

import csv
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from little import CLASSES, DOMAINS, Here, quick_tournament, record
from vl2v.benchmark.grid import Grid
from vl2v.benchmark.recommend import recommend
from vl2v.benchmark.run import plan, run
from vl2v.benchmark.work import fail
from vl2v.benchmark.worklist import WorkList
from vl2v.cli.app import app
from vl2v.errors import ConfigError, DataError, RunError
from vl2v.tree import assignments, merge

SETTINGS: dict[str, Any] = {
    "student": {"weights": "none", "image_size": 32},
    "data": {"workers": 0},
    "train": {"precision": "fp32", "accelerator": "cpu"},
    "stages": {"align": {"steps": 4, "batch_per_domain": 4}},
}


@pytest.fixture
def grid(shapes: Path, recording: Path) -> Grid:
    settings = {**SETTINGS, "teacher": {"spec": f"recorded:{recording}"}}
    return Grid({"shapes": str(shapes)}, [], ["erm"], ["test_efficientnet"], 1, settings=settings, steps=2, batch=4)


def some(shapes: Path, folder: Path, *parts: str, count: int = 12) -> str:
    """Return a dataset of `count` images of each domain/class."""
    for part in parts:
        (folder / part).mkdir(parents=True)
        for file in sorted((shapes / part).iterdir())[:count]:
            shutil.copy(file, folder / part)
    return str(folder)


def test_what_cant_be_learnt_from_is_refused_before_any_query(grid: Grid, shapes: Path, tmp_path: Path) -> None:
    one = replace(grid, data={"one": some(shapes, tmp_path / "one", *(f"ink/{name}" for name in CLASSES))})
    few = [f"{domain}/{name}" for domain in DOMAINS for name in CLASSES]
    little = replace(grid, data={"little": some(shapes, tmp_path / "little", *few, count=1)})
    for wanted, why in (
        (one, "every domain is a target"),
        (little, "has 3 usable images and none for valid"),
    ):
        with pytest.raises(DataError, match=why):
            plan(wanted, tmp_path / "bench")
    assert not (tmp_path / "bench").exists()
    assert len(plan(replace(one, methods=["zero-shot"]), tmp_path / "bench").jobs) == 1  # which learns from nothing


def test_a_domain_without_labels_is_no_target(grid: Grid, shapes: Path, recording: Path, tmp_path: Path) -> None:
    data = Path(some(shapes, tmp_path / "data", *(f"{domain}/{name}" for domain in DOMAINS for name in CLASSES)))
    with (data / "images.csv").open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["path", "class", "domain"])
        for file in sorted(data.rglob("*.png")):
            domain, name, _ = file.relative_to(data).parts
            rows.writerow([file.relative_to(data), "" if domain == "chalk" else name, domain])
    jobs = plan(replace(grid, data={"data": str(data / "images.csv")}), tmp_path / "bench").jobs
    assert {job.target for job in jobs} == {"ink", "paint"}
    with pytest.raises(DataError, match="three or more labelled domains are needed"):
        recommend(data / "images.csv", f"recorded:{recording}", tmp_path / "out", minutes=1, engine=Here())


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        (["ink, pen"], ["ink, pen"]),
        (["ink, pen", "chalk,paint"], ["ink, pen", "chalk", "paint"]),
        (["chalk,paint"], ["chalk", "paint"]),
        (["all"], ["chalk", "ink, pen", "paint"]),
        ([], ["chalk", "ink, pen", "paint"]),
    ],
)
def test_a_target_may_have_commas_in_its_name(
    given: list[str], targets: list[str], shapes: Path, recording: Path, tmp_path: Path
) -> None:
    data = Path(some(shapes, tmp_path / "data", *(f"{domain}/{name}" for domain in DOMAINS for name in CLASSES)))
    (data / "ink").rename(data / "ink, pen")
    command = ["benchmark", "--data", str(data), "--teacher", f"recorded:{recording}", "--methods", "zero-shot"]
    command += ["--seeds", "1", "--out", str(tmp_path / "bench")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vl2v.benchmark.engine.engine_named", lambda spec: Here())
        result = CliRunner().invoke(app, [*command, *(word for name in given for word in ("--targets", name))])
    assert result.exit_code == 0, result.output
    assert [job.target for job in WorkList(tmp_path / "bench").jobs()] == targets


def test_images_that_moved_to_another_class_are_another_dataset(grid: Grid, shapes: Path, tmp_path: Path) -> None:
    data = Path(some(shapes, tmp_path / "shapes", *(f"{domain}/{name}" for domain in DOMAINS for name in CLASSES)))
    wanted = replace(grid, data={"shapes": str(data)})
    plan(wanted, tmp_path / "bench")
    plan(replace(wanted), tmp_path / "bench")
    (data / "ink/ball/00.png").rename(data / "ink/box/mended.png")
    with pytest.raises(RunError, match="as many images as when this benchmark began, but other names, classes"):
        plan(replace(wanted), tmp_path / "bench")


def test_a_stage_that_no_method_has_is_refused(grid: Grid, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages.distil: no method has such a stage; choose one of align, distill, "):
        plan(replace(grid, settings=merge(grid.settings, {"stages": {"distil": {"lr": 1e-3}}})), tmp_path)


@pytest.mark.parametrize(("select", "methods"), [(12, ["adip"]), ("known", ["zero-shot", "adip"])])
def test_the_teachers_row_is_of_predictions_that_no_run_decides(
    select: object, methods: list[str], grid: Grid, tmp_path: Path
) -> None:
    changed = merge(grid.settings, {"teacher": {"select": select}})
    jobs = plan(replace(grid, methods=["zero-shot", "adip"], targets=["ink"], settings=changed), tmp_path).jobs
    assert [job.method for job in jobs] == methods


def test_the_row_of_a_teacher_that_is_queried_online_is_there(grid: Grid, shapes: Path, tmp_path: Path) -> None:
    data = some(shapes, tmp_path / "data", "ink/ball", "ink/box", "chalk/ball", "chalk/box", count=3)
    changed = merge(grid.settings, {"teacher": {"spec": "tiny", "online": True}})
    wanted = replace(grid, data={"data": data}, methods=["zero-shot"], targets=["ink"], settings=changed)
    bench = plan(wanted, tmp_path / "bench")
    run(bench, engine=Here())
    assert not bench.missing, bench.work.failure(bench.jobs[0])


def test_a_job_that_failed_before_it_was_a_run_is_tried_again(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, targets=["ink"]), tmp_path)
    fail(bench.work, bench.jobs[0], "its process died 2 times (exit code -9)", "")
    run(bench, engine=Here())
    assert not bench.missing, bench.work.failure(bench.jobs[0])


def test_a_tournament_goes_on_without_those_that_cant_learn_a_class(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_tournament(monkeypatch)
    data = Path(some(shapes, tmp_path / "data", "chalk/cone", *(f"{d}/{c}" for d in DOMAINS for c in CLASSES[:2])))
    for domain in DOMAINS:
        (data / domain / "box").rename(data / domain / "box.v2")
    settings = merge(SETTINGS, {"prompts": {"overrides": {"box.v2": "box"}}})
    teacher = f"recorded:{record(data, tmp_path / 'recording', extra=('box.v2',))}"
    students = ("test_efficientnet", "test_convnext")
    how: dict[str, Any] = {"minutes": 0.02, "students": students, "settings": settings, "engine": Here()}
    advice = recommend(data, teacher, tmp_path / "bench", methods=("zero-shot", "kd", "adip"), **how)
    assert {f"adip on {advice.student}", advice.runner_up} == {f"adip on {student}" for student in students}
    assert {row.student for row in advice.table if row.method == "adip"} == set(students)
    assert set(advice.failed) == {f"kd on {student}" for student in students}  # and not erm
    assert "no source domain has images of cone, so that kd can't learn it" in advice.verdict()
    assert f"weights that {advice.student} starts from: apache-2.0" in advice.verdict()
    words = shlex.split(advice.command)
    changed = assignments([words[place + 1] for place, word in enumerate(words) if word == "--set"])
    assert changed["prompts"] == settings["prompts"]


def test_datasets_have_any_path_and_one_name_each(shapes: Path, recording: Path, tmp_path: Path) -> None:
    for parent in ("a=b", "c d"):
        (tmp_path / parent).mkdir()
        (tmp_path / parent / "shapes").symlink_to(shapes)
    one, other = (str(tmp_path / parent / "shapes") for parent in ("a=b", "c d"))
    command = ["benchmark", "--teacher", f"recorded:{recording}", "--methods", "zero-shot", "--targets", "ink"]
    command += ["--seeds", "1", "--out", str(tmp_path / "bench"), "--engine", "local:1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vl2v.benchmark.engine.engine_named", lambda spec: Here())
        for data in (one, f"shapes={one}"):
            result = CliRunner().invoke(app, [*command, "--data", data])
            assert result.exit_code == 0 and "1 jobs: " in result.output, result.output
    wrong = CliRunner().invoke(app, [*command, "--data", one, "--data", other])
    assert isinstance(wrong.exception, ConfigError) and "are both called shapes" in str(wrong.exception)
    assert CliRunner().invoke(app, [*command, "--data", one, "--steps", "0"]).exit_code == 2


@pytest.mark.parametrize("pair", ["method=kd", "student.name=resnet50", "data.target=[]", "seed=3"])
def test_what_runs_differ_in_is_no_setting_of_all(pair: str, shapes: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["benchmark", "--data", f"A={shapes}", "--set", pair, "--out", str(tmp_path / "b")])
    assert isinstance(done.exception, ConfigError) and f"--set {pair.partition('=')[0]}: " in str(done.exception)
    assert not (tmp_path / "b").exists()
