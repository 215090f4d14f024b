"""The benchmark: every job once, whatever dies; the figures of single runs; a table that claims nothing unproven."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import reduce
from itertools import product
from operator import getitem
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import vl2v
from little import DOMAINS, Here, processes, quick_tournament
from vl2v.benchmark.domainbed import read_domainbed
from vl2v.benchmark.draws import Range, drawn, ranges, suggested
from vl2v.benchmark.engine import Local, Ray, _Worker, engine_named
from vl2v.benchmark.grid import Grid, methods_for
from vl2v.benchmark.results import Result, gather, of, of_same_images, results
from vl2v.benchmark.run import plan, run
from vl2v.benchmark.table import as_table
from vl2v.benchmark.work import attempt, claimed, do, fail
from vl2v.benchmark.worklist import Corruptions, Job, Selection, WorkList
from vl2v.cli.app import app
from vl2v.data import open_dataset
from vl2v.data.corrupted import corrupt_dataset
from vl2v.errors import ConfigError, DataError, RunError, StudentError
from vl2v.evaluation.compare import Marks
from vl2v.methods import LOOP, METHODS
from vl2v.report.bench import Bench
from vl2v.report.differences import _reader
from vl2v.runs.evaluate import evaluate
from vl2v.runs.predictions import Predictions
from vl2v.runs.query import embed
from vl2v.runs.settings import resolve
from vl2v.tree import assignments, merge


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def calm(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> WorkList:
    """A benchmark at which nothing went wrong."""
    bench = plan(grid, tmp_path_factory.mktemp("calm"))
    run(bench, engine=Local(2))
    assert not bench.missing
    return bench.work


def copied(work: WorkList, folder: Path) -> WorkList:
    """Return a copy of a benchmark, to be changed."""
    shutil.copytree(work.folder, folder / "bench")
    return WorkList(folder / "bench")


def accuracies(work: WorkList) -> dict[tuple[Any, ...], float]:
    return {(r.dataset, r.target, r.method, r.student, r.seed): r.accuracy for r in results(work)}


def of_one_seed(work: WorkList) -> dict[tuple[Any, ...], float]:
    """Return what a benchmark of a single seed finds."""
    return {key: accuracy for key, accuracy in accuracies(work).items() if key[-1] == 0}


def test_a_benchmark_has_the_figures_of_single_runs(calm: WorkList, tmp_path: Path) -> None:
    figures = accuracies(calm)
    assert len(figures) == 6
    for job in calm.jobs():
        if job.method != "zero-shot":
            alone = vl2v.distill(job.settings, tmp_path / "alone" / job.name, store=tmp_path / "store").evaluation
            assert alone is not None
            found = figures["shapes", job.target, job.method, job.student, job.seed]
            assert found == pytest.approx(alone.mean(role="unseen"))
    teacher = figures["shapes", "paint", "zero-shot", "test_efficientnet", 0]
    assert teacher == figures["shapes", "paint", "zero-shot", "test_efficientnet", 1] > 0.5


def test_what_is_done_is_not_done_again(calm: WorkList, grid: Grid, tmp_path: Path) -> None:
    calm = copied(calm, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in calm.folder.rglob("*.json")}
    bench = plan(grid, calm.folder)
    run(bench, engine=Local(1), notify=lambda event: pytest.fail(f"{event}"))
    assert {file: file.stat().st_mtime_ns for file in before} == before and len(bench.jobs) == 6
    larger = plan(replace(grid, methods=[*grid.methods, "lp"], seeds=1), calm.folder)
    assert [job.method for job in larger.missing] == ["lp"]
    other = plan(replace(grid, steps=4), calm.folder)
    assert {job.method for job in other.missing} == {"erm", "adip"}  # other settings are other jobs


def test_later_seeds_can_be_asked_for_alone(grid: Grid) -> None:
    everything = {job.name: job for job in replace(grid, seeds=4).jobs()}
    later = list(replace(grid, seeds=2, first_seed=2).jobs())
    assert [job.seed for job in later] == [2] * 3 + [3] * 3
    assert all(everything[job.name].settings == job.settings for job in later)


def test_what_changes_no_result_is_in_no_name(grid: Grid) -> None:
    unseen = {"train": {"strategy": "fsdp", "tensorboard": True}, "data": {"workers": 3}}
    shared = replace(grid, settings=merge(grid.settings, unseen))
    assert [job.name for job in shared.jobs()] == [job.name for job in grid.jobs()]
    assert shared.variant == grid.variant  # so that they stand in one table
    alone = replace(grid, settings={"train": {"strategy": "fsdp"}})
    assert alone.variant == replace(grid, settings={}).variant


def test_a_preset_is_of_every_method_and_settings_change_it(grid: Grid) -> None:
    ours, steps = replace(grid, steps=None, batch=None), {"zero-shot": [], "erm": [5001], "adip": [10, 5001]}
    published = list(replace(ours, preset="paper").jobs())
    for job in published:
        config = resolve(job.settings)
        assert config.train.swad and config.published.swad_discarded and config.student.statistics == "imagenet"
        assert not config.published.target_in_split
        assert config.student.image_size == 32  # as the settings have it
        assert [stage.steps for stage in config.stages.values()] == steps[job.method]
    assert {job.name for job in published}.isdisjoint(job.name for job in ours.jobs())
    assert replace(ours, preset="paper").variant != ours.variant
    shorter = replace(grid, preset="paper", methods=["adip"]).jobs()
    assert {resolve(job.settings).stages["distill"].steps for job in shorter} == {3}
    with pytest.raises(ConfigError, match="there are default, paper"):
        list(replace(grid, preset="papers").jobs())


def test_a_black_box_that_is_to_be_asked_online_is_refused_by_those_who_would(grid: Grid, tmp_path: Path) -> None:
    online = replace(grid, settings=merge(grid.settings, {"teacher": {"online": True}}), seeds=1)
    with pytest.raises(ConfigError, match=r"teacher\.online: method erm doesn't query .* no other method"):
        plan(replace(online, methods=["erm"]), tmp_path)
    bench = plan(replace(online, methods=["zero-shot", "erm"]), tmp_path)
    run(bench, engine=Here())
    assert not bench.missing
    with pytest.raises(ConfigError, match="is a black box"):
        run(plan(replace(online, methods=["erm", "adip"]), tmp_path), engine=Here())


def test_a_setting_of_one_method_renames_no_job_of_another(grid: Grid) -> None:
    both = replace(grid, methods=["erm", "kd"], seeds=1)
    heavier = replace(both, settings=merge(grid.settings, {"loss": {"kd_weight": 0.9}}))
    before, after = ({job.method: job.name for job in one.jobs()} for one in (both, heavier))
    assert before["erm"] == after["erm"] and before["kd"] != after["kd"]


def test_what_jobs_share_is_made_once_by_processes_that_start_together(grid: Grid, tmp_path: Path) -> None:
    shared = merge(grid.settings, {"stages": {"probe": {"steps": 200}}})
    bench = plan(replace(grid, methods=["lp-ft", "soup"], seeds=1, settings=shared), tmp_path)
    made: dict[str, dict[str, int]] = {"probe": {}, "student's features": {}}

    def notify(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["what"] in made and event["done"] == event["total"]:
            counts = made[event["what"]]
            counts[event["job"]] = counts.get(event["job"], 0) + event["total"]

    run(bench, engine=Local(2), notify=notify)
    assert not bench.missing
    assert list(made["probe"].values()) == [200]  # one of the two trained it
    assert sum(made["student's features"].values()) == 72  # the source domains' images


def test_a_failed_job_keeps_its_log_and_stops_nothing(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, methods=["rise", "erm"], seeds=1), tmp_path)  # rise wants texts that aren't recorded
    events: list[dict[str, Any]] = []
    run(bench, engine=Here(), notify=events.append)
    assert [(e["event"]) for e in events if e["event"] != "progress"] == ["started", "failed", "started", "done"]
    (failed,) = bench.missing
    assert failed.method == "rise" and "'a chalk of a " in (bench.work.failure(failed) or "")
    assert "Traceback" in (bench.work.folder_of(failed) / "log.txt").read_text()
    told = CliRunner().invoke(app, ["benchmark", "status", str(tmp_path)]).stdout
    assert "2 jobs: 1 done, 0 running, 1 failed, 0 waiting" in told and "'a chalk of a " in told


def test_a_student_that_cant_be_had_is_told_before_the_teacher_is_asked(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, students=["test_efficientnet", "no_such_model"]), tmp_path)
    with pytest.raises(StudentError, match="timm has no such model"):
        run(bench, engine=Here())
    assert not (tmp_path / "store").exists() and len(bench.missing) == len(bench.jobs)


def test_what_a_black_box_cant_teach_is_told_before_it_is_asked(grid: Grid, tmp_path: Path) -> None:
    online = merge(grid.settings, {"teacher": {"online": True}})
    for wanted in (replace(grid, students=["test_efficientnet", "teacher"]), replace(grid, settings=online)):
        with pytest.raises(ConfigError, match="is a black box, and "):
            run(plan(wanted, tmp_path), engine=Here())  # the zero-shot row, which it can answer, comes first
    assert not (tmp_path / "store").exists()


def test_a_student_has_one_name(grid: Grid) -> None:
    short, full, both = (
        [job.name for job in replace(grid, students=students).jobs()]
        for students in (["lite0"], ["tf_efficientnet_lite0"], ["lite0", "tf_efficientnet_lite0"])
    )
    assert short == full == both


def test_methods_that_start_from_the_teacher_are_trained_once(grid: Grid) -> None:
    wanted = replace(grid, methods=["zero-shot", "sd", "erm"], students=["lite0", "resnet50"], seeds=1)
    cells = [(job.method, job.student) for job in wanted.jobs()]
    assert cells == [("zero-shot", "lite0"), ("sd", "teacher"), ("erm", "lite0"), ("erm", "resnet50")]


def test_settings_of_one_method_are_not_given_to_all(shapes: Path, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(CliRunner().invoke(app, ["config"]).stdout)
    words = ["benchmark", "--data", f"shapes={shapes}", "--out", str(tmp_path / "bench"), "--config", str(file)]
    refused = CliRunner().invoke(app, words).exception
    assert isinstance(refused, ConfigError) and "my.toml: method: the runs of a benchmark differ in it" in str(refused)
    assert not (tmp_path / "bench").exists()


def test_a_killed_worker_is_replaced_and_no_job_is_lost(calm: WorkList, grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, seeds=1), tmp_path / "bench")
    killed: list[str] = []
    done: list[str] = []

    def kill_once(event: dict[str, Any]) -> None:
        if event["event"] == "done":
            done.append(event["job"])
        if event["event"] == "progress" and event["what"] == "distill" and not killed:
            killed.append(event["job"])
            os.kill(processes("vl2v.benchmark.work")[0], signal.SIGKILL)

    run(bench, engine=Local(1), notify=kill_once)
    assert killed and not bench.missing
    assert sorted(done) == sorted(job.name for job in bench.jobs)
    assert accuracies(bench.work) == of_one_seed(calm)


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_ends_the_workers_too(
    number: signal.Signals, ends: type[BaseException], grid: Grid, tmp_path: Path
) -> None:
    bench = plan(replace(grid, methods=["erm"], seeds=1), tmp_path)

    def end(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            assert processes("vl2v.benchmark.work")
            signal.raise_signal(number)

    with pytest.raises(ends):
        run(bench, engine=Local(1), notify=end)
    assert not processes("vl2v.benchmark.work") and bench.missing and not bench.work.failure(bench.jobs[0])


def test_a_worker_that_dies_between_two_jobs_is_replaced(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = plan(replace(grid, methods=["zero-shot"], seeds=2), tmp_path)
    made: list[Any] = []

    def worker(number: int, count: int, order: dict[str, Any], events: Any) -> Any:
        if made:
            made.append(_Worker(number, count, order, events))
            return made[-1]
        made.append(SimpleNamespace(number=number, job=None, told=False))
        (job, *_) = bench.jobs
        attempt(bench.work, job, since=order["since"], budget=0, notify=lambda event: events.put((made[0], event)))
        for event in ({"event": "done", "job": job.name}, {"event": "ended", "code": -signal.SIGKILL}):
            events.put((made[0], event))
        return made[0]

    monkeypatch.setattr("vl2v.benchmark.engine._Worker", worker)
    run(bench, engine=Local(1))
    assert len(made) == 2 and not bench.missing


def test_a_worker_that_cant_start_is_no_end_of_the_list(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = plan(replace(grid, methods=["zero-shot"], seeds=2), tmp_path)
    for job in bench.jobs:
        fail(bench.work, job, "it failed yesterday", "")
        (bench.work.folder_of(job) / "failed.json").write_text(json.dumps({"error": "it failed yesterday", "at": 0.0}))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "vl2v.py").write_text("raise SystemExit('no memory')")
    with pytest.raises(RuntimeError, match="a worker can't start: no memory"):
        run(bench, engine=Local(2))


def test_a_job_at_which_the_process_always_dies_is_given_up(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, methods=["adip", "erm"], seeds=1), tmp_path)

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and "adip" in event["job"]:
            for worker in processes("vl2v.benchmark.work"):
                os.kill(worker, signal.SIGKILL)

    run(bench, engine=Local(1), notify=kill)
    (lost,) = bench.missing
    assert lost.method == "adip" and "died at it 2 times" in (bench.work.failure(lost) or "")


def test_the_same_on_ray_with_a_worker_killed(calm: WorkList, grid: Grid, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    bench = plan(replace(grid, seeds=1), tmp_path / "bench")
    told: dict[str, list[str]] = {"started": [], "progress": [], "done": []}
    killed: list[int] = []

    def kill_once(event: dict[str, Any]) -> None:
        told[event["event"]].append(event["job"])
        if not killed and event["event"] == "progress" and (workers := processes("ray::_ray_task")):
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)

    try:
        run(bench, engine=Ray(1, {"num_cpus": 2}), notify=kill_once)
    finally:
        ray.shutdown()
    names = sorted(job.name for job in bench.jobs)
    assert killed and sorted(told["done"]) == names
    starts = sorted(Counter(told["started"]).values())
    assert set(told["started"]) == set(names) and starts[:-1] == [1] * (len(names) - 1) and starts[-1] <= 2
    assert accuracies(bench.work) == of_one_seed(calm)
    assert as_table(results(bench.work)).rows[0][:4] == as_table(of(results(calm), seed=0)).rows[0][:4]


def test_draws_are_selected_by_each_rule(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, methods=["erm"], seeds=1, draws=2, selection="leave-one-out"), tmp_path)
    assert [(job.draw, job.held) for job in bench.jobs] == [(d, h) for d in (0, 1) for h in ("", "chalk", "ink")]
    run(bench, engine=Here())
    assert not bench.missing
    for rule in ("training", "leave-one-out", "oracle"):
        (found,) = results(bench.work, rule)
        assert found.folder in {bench.work.folder_of(job) for job in bench.jobs if not job.held}
    assert drawn("erm", 0, 1) == drawn("erm", 0, 1) != drawn("erm", 0, 2)
    stage = drawn("erm", 0, 1)["stages"]["finetune"]
    assert 1e-5 <= stage["lr"] <= 10**-3.5 and 1e-6 <= stage["weight_decay"] <= 1e-2
    assert 8 <= stage["batch_per_domain"] <= 45


def test_optuna_goes_by_the_results_in_the_folder(grid: Grid, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    wanted = replace(grid, methods=["zero-shot", "kd"], seeds=1, draws=3, search="optuna", batch=None)
    first, second, _ = wanted.rounds
    for part in (first, second):
        run(plan(part, tmp_path), engine=Here())
    third = plan(wanted, tmp_path)
    assert [(job.method, job.draw) for job in third.missing] == [("kd", 2)]
    (suggestion,) = third.missing
    again = plan(wanted, tmp_path)  # it is on the list: another process, or a resumed one, takes the very same
    assert [job.name for job in again.jobs] == [job.name for job in third.jobs]
    (tmp_path / "jobs.jsonl").write_text("".join((tmp_path / "jobs.jsonl").read_text().splitlines(True)[:-1]))
    assert plan(wanted, tmp_path).missing[0].name == suggestion.name  # and from the results alone
    stage = suggestion.settings["stages"]["distill"]
    assert 1e-5 <= stage["lr"] <= 10**-3.5 and 1 <= suggestion.settings["loss"]["temperature"] <= 5
    random = plan(replace(wanted, search="random"), tmp_path)
    assert not {job.name for job in random.jobs if job.draw} & {job.name for job in third.jobs}


def test_optuna_looks_where_results_are_good(grid: Grid) -> None:
    pytest.importorskip("optuna")

    def worth(tree: dict[str, Any]) -> float:  # best at a learning rate of 1e-4
        return -abs(np.log10(tree["stages"]["finetune"]["lr"]) + 4)

    results: list[Any] = []
    for draw in range(1, 26):
        tree = suggested("erm", 0, draw, results)
        results.append((resolve(merge({"data": {"path": "x"}, "method": "erm"}, tree)), worth(tree)))
    at_random = np.mean([worth(drawn("erm", 0, draw)) for draw in range(1, 26)])
    assert np.mean([found for _, found in results[-10:]]) > at_random + 0.1
    assert suggested("erm", 0, 3, results[:2]) == suggested("erm", 0, 3, results[:2])


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.stage_defaults])
def test_a_value_has_one_place_in_its_range(method: str) -> None:
    for found in ranges(method).values():
        middle = (found.low + found.high) / 2
        assert found.value(found.position(found.value(middle))) == pytest.approx(found.value(middle))
    assert Range(3, 5.5, 2, whole=True).value(5.0) == 32 and Range(3, 5.5, 2, whole=True).position(32) == pytest.approx(
        5
    )


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.stage_defaults])
def test_a_methods_own_hyperparameters_are_in_its_ranges(method: str) -> None:
    own = resolve({"data": {"path": "x"}, "method": method}).model_dump(by_alias=True)
    for name, found in ranges(method).items():
        value = reduce(getitem, name.split("."), own)
        if value:  # a weight decay of nothing is on no scale of powers, and counts as the least
            assert found.value(found.position(value)) == pytest.approx(value), name
        assert found.low <= found.position(value) <= found.high


def test_optuna_knows_what_the_defaults_are_worth() -> None:
    pytest.importorskip("optuna")
    own = resolve({"data": {"path": "x"}, "method": "erm"})
    others = [(resolve(merge({"data": {"path": "x"}, "method": "erm"}, drawn("erm", 0, n))), 0.5) for n in range(1, 6)]
    told = {worth: suggested("erm", 0, 6, [(own, worth), *others]) for worth in (0.1, 0.9)}
    assert told[0.1] != told[0.9]


def test_optuna_passes_over_runs_that_chose_for_themselves() -> None:
    pytest.importorskip("optuna")
    tree: dict[str, Any] = {"data": {"path": "x"}, "method": "kd", "loss": {"temperature": "auto"}}
    assert suggested("kd", 0, 1, [(resolve(tree), 0.9)]) == suggested("kd", 0, 1, [])


def test_a_batch_that_was_asked_for_is_in_every_draw(grid: Grid) -> None:
    jobs = list(replace(grid, methods=["erm"], seeds=1, draws=4, batch=4).jobs())
    assert {job.settings["stages"]["finetune"]["batch_per_domain"] for job in jobs} == {4} and len(jobs) == 4


def test_the_command_runs_resumes_and_prints(shapes: Path, recording: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(f'[teacher]\nspec = "recorded:{recording}"\n')
    command = ["benchmark", "--data", f"shapes={shapes}", "--methods", "erm,adip"]
    command += ["--config", str(tmp_path / "settings.toml")]
    command += [
        "--students",
        "test_efficientnet",
        "--targets",
        "paint,ink",
        "--seeds",
        "1",
        "--first-seed",
        "3",
        "--steps",
        "2",
    ]
    command += [
        "--batch",
        "4",
        "--engine",
        "local:2",
        "--out",
        str(tmp_path / "bench"),
        "--set",
        "student.weights=none",
    ]
    command += ["--set", "student.image_size=32", "--set", "data.workers=0", "--set", "stages.align.steps=5"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert "| test_efficientnet | adip |" in first.stdout and "one seed" in first.stdout
    jobs = WorkList(tmp_path / "bench").jobs()
    assert {job.settings["teacher"]["spec"] for job in jobs} == {f"recorded:{recording}"}
    assert {job.seed for job in jobs} == {3}
    assert "there are default, paper" in str(CliRunner().invoke(app, [*command, "--preset", "papers"]).exception)
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0 and "4 jobs: 4 were finished before, 0 are missing" in again.output
    for form, sign in (("latex", r"\toprule"), ("html", "<table>"), ("csv", "student,method,ink,paint,mean")):
        told = CliRunner().invoke(app, ["benchmark", "table", str(tmp_path / "bench"), "--format", form])
        assert told.exit_code == 0 and sign in told.stdout
    wrong = CliRunner().invoke(app, ["benchmark", "table", str(tmp_path / "bench"), "--format", "pdf"])
    assert isinstance(wrong.exception, ConfigError)


@pytest.mark.parametrize("way", ["--teacher", "--config", "--set"])
@pytest.mark.parametrize("command", ["benchmark", "recommend"])
def test_the_teacher_is_the_one_that_the_settings_end_with(
    command: str, way: str, shapes: Path, recording: Path, tmp_path: Path
) -> None:
    (tmp_path / "settings.toml").write_text(f'[teacher]\nspec = "recorded:{recording}"\n')
    given = {"--teacher": f"recorded:{recording}", "--set": f"teacher.spec=recorded:{recording}"}
    named = [way, given.get(way, str(tmp_path / "settings.toml"))]
    wrong = CliRunner().invoke(
        app, [command, "--data", str(shapes), "--methods", "sd", *named, "--out", str(tmp_path / "bench")]
    )
    assert f"needs the teacher's weights, and recorded:{recording} is a black box" in str(wrong.exception)


def test_mistakes_are_told_before_anything_runs(grid: Grid, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="steel"):
        plan(replace(grid, targets=["steel"]), tmp_path / "a")
    with pytest.raises(ConfigError, match="'adib': unknown"):
        methods_for(["adib"], "tiny")
    with pytest.raises(ConfigError, match="needs the teacher's weights"):
        methods_for(["sd"], "recorded:x")
    assert methods_for(["erm", "kd"], "a plugin's that can't be opened:x") == ["erm", "kd"]
    assert "sd" not in methods_for(["all"], "jina:m") and "sd" in methods_for(["all"], "open_clip:m")
    with pytest.raises(ConfigError, match="there are local"):
        engine_named("slurm")
    with pytest.raises(RunError, match="not a benchmark folder"):
        WorkList(tmp_path).jobs()
    with pytest.raises(ConfigError, match=r"stages.distill = 5: a table"):
        plan(replace(grid, settings=merge(grid.settings, {"stages": {"distill": 5}})), tmp_path / "a")


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("data=x", "data = 'x'"),
        ("student=x", "student = 'x'"),
        ('student={name="x"}', "--set student.name: the runs of a benchmark differ in it"),
        ("seed=1", "--set seed: the runs of a benchmark differ in it"),
    ],
)
def test_settings_of_the_wrong_shape_are_told(pair: str, words: str, shapes: Path, tmp_path: Path) -> None:
    command = ["benchmark", "--data", str(shapes), "--teacher", "tiny", "--out", str(tmp_path), "--set", pair]
    wrong = CliRunner().invoke(app, command)
    assert isinstance(wrong.exception, ConfigError) and words in str(wrong.exception)


def killed_in_finetune(what: str, done: int, total: int, words: str) -> None:
    if (what, done) == ("finetune", 2):
        raise KeyboardInterrupt


def test_a_killed_job_counts_the_time_that_it_took(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vl2v.benchmark.work.SAVED_EVERY", 0)
    bench = plan(replace(grid, methods=["erm"], seeds=1), tmp_path)
    (job,) = bench.jobs

    with pytest.raises(KeyboardInterrupt):
        do(bench.work, job, progress=killed_in_finetune)
    file = bench.work.folder_of(job) / "spent.json"
    so_far = json.loads(file.read_text())
    file.write_text(json.dumps(so_far + 1000))
    assert so_far > 0 and do(bench.work, job) and bench.work.seconds(job) > 1000


def test_what_libraries_print_is_not_taken_for_news(tmp_path: Path) -> None:
    program = "import os, vl2v.benchmark.work as work; work.attempt = lambda *_, **__: bool(os.write(1, b'noise'))"
    job = {"name": "a", "dataset": "d", "target": "t", "method": "erm", "student": "s", "seed": 0, "draw": 0}
    job |= {"held": "", "version": "1.1", "settings": {}}
    order = {"folder": str(tmp_path), "jobs": [job], "since": 0, "budget": 0}
    command = [sys.executable, "-c", f"{program}; work.main()"]
    told = subprocess.run(command, input=f"{json.dumps(order)}\n", capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in told.stdout.splitlines()] == [{"event": "done", "job": "a"}]
    assert "noise" in told.stderr


def test_a_job_whose_command_was_killed_has_not_failed(tmp_path: Path) -> None:
    program = """
import sys
import vl2v.benchmark.work as work, vl2v.runs.train as train
train.distill = lambda *_, progress, **__: (sys.stdin.readline(), progress("training", 1, 1, ""))
work.main()
"""
    job = {"name": "a", "dataset": "d", "target": "t", "method": "erm", "student": "s", "seed": 0, "draw": 0}
    job |= {"held": "", "version": "1.1", "settings": {"method": "erm", "data": {"path": "."}}}
    order = {"folder": str(tmp_path), "jobs": [job], "since": 0, "budget": 0}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(f"{json.dumps(order)}\n")
        worker.stdin.flush()
        assert json.loads(worker.stdout.readline())["event"] == "started"
        worker.stdout.close()  # as when the one who reads dies
        worker.stdin.write("go on\n")
        worker.stdin.close()
        assert worker.wait() == 1
    assert not (tmp_path / "jobs/a/failed.json").exists()


def test_a_job_has_the_path_that_it_is_given_now(grid: Grid, shapes: Path, tmp_path: Path) -> None:
    two = replace(grid, methods=["erm"])
    before = tmp_path / "before"
    before.symlink_to(shapes)
    bench = plan(replace(two, data={"shapes": str(before)}), tmp_path / "bench")

    with pytest.raises(KeyboardInterrupt):
        do(bench.work, bench.jobs[0], progress=killed_in_finetune)  # the other one isn't begun
    before.unlink()
    bench = plan(two, tmp_path / "bench", Corruptions(("fog",), 3))  # the same jobs, elsewhere
    run(bench, engine=Local(1))
    assert len(bench.work.jobs()) == 2 and not bench.missing


def test_a_job_goes_on_wherever_its_list_of_exceptions_lies(grid: Grid, shapes: Path, tmp_path: Path) -> None:
    left_out = next((shapes / "ink").rglob("*.png")).relative_to(shapes).as_posix()
    benches = []
    for name in ("before", "now"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "exclude.txt").write_text(f"{left_out}\n")
        told = merge(grid.settings, {"data": {"exclude": str(tmp_path / name / "exclude.txt")}})
        wanted = replace(grid, methods=["erm"], seeds=1, settings=told)
        benches.append(plan(wanted, tmp_path / "bench", Corruptions(("fog",), 3)))
    (before,), (now,) = (bench.jobs for bench in benches)
    assert before.name == now.name
    with pytest.raises(KeyboardInterrupt):
        do(benches[0].work, before, progress=killed_in_finetune)
    shutil.rmtree(tmp_path / "before")
    run(benches[1], engine=Here())
    assert not benches[1].missing


def test_another_dataset_under_the_same_name_is_refused(grid: Grid, shapes: Path, tmp_path: Path) -> None:
    plan(grid, tmp_path / "bench")
    fewer = tmp_path / "fewer.txt"
    fewer.write_text(f"{next((shapes / 'ink').rglob('*.png')).relative_to(shapes).as_posix()}\n")
    changed = replace(grid, settings={**grid.settings, "data": {"workers": 0, "exclude": str(fewer)}})
    with pytest.raises(RunError, match="shapes had 108 images when this benchmark began and has 107 now"):
        plan(changed, tmp_path / "bench")


def domainbed_line(
    step: int,
    accuracies: Sequence[float],
    *,
    targets: Sequence[int] = (3,),
    seed: int = 0,
    draw: int = 0,
    inside: float | None = None,
    **hparams: object,
) -> str:
    """Return a line of DomainBed's: each environment's accuracies; of the target `inside` on its 80%."""
    columns = {f"env{i}_{part}_acc": accuracy for i, accuracy in enumerate(accuracies) for part in ("in", "out")}
    if inside is not None:
        columns[f"env{targets[0]}_in_acc"] = inside
    arguments = {"algorithm": "ERM", "dataset": "PACS", "test_envs": list(targets), "trial_seed": seed}
    told = {"args": {**arguments, "hparams_seed": draw, "holdout_fraction": 0.2}, "step": step, "loss": 0.3}
    return json.dumps({**told, "hparams": {"resnet18": False, **hparams}, **columns}) + "\n"


def test_domainbeds_own_results_stand_in_the_same_table(calm: WorkList, tmp_path: Path) -> None:
    for seed in (0, 1):
        file = tmp_path / f"sweep/{seed}/results.jsonl"
        file.parent.mkdir(parents=True)
        steps = [(300, 0.8, 0.9), (600, 0.9, 0.7 + seed / 10), (900, 0.7, 0.95)]
        file.write_text(
            "".join(domainbed_line(s, [seen] * 3 + [new + 0.1], seed=seed, inside=new) for s, seen, new in steps)
        )
    found, notes = read_domainbed(tmp_path / "sweep")
    assert [(r.method, r.target, r.in_split) for r in found] == [
        ("ERM (DomainBed)", "sketch", 0.7),
        ("ERM (DomainBed)", "sketch", pytest.approx(0.8)),
    ]
    assert found[0].accuracy == pytest.approx(0.8 * 0.7 + 0.2 * 0.8) and not notes
    told = as_table(found).render("md")
    assert "77.0 ± 3.5" in told and "over n seeds, not n - 1" in told  # theirs: np.std of 72 and 82, over root 2
    ours = as_table([replace(result, theirs=False) for result in found]).render("md")
    assert "77.0 ± 5.0" in ours and "not n - 1" not in ours
    (tmp_path / "other.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(DataError, match=r"other.jsonl, line 1: not DomainBed's"):
        read_domainbed(tmp_path / "other.jsonl")


def test_a_sweep_of_domainbeds_is_selected_by_the_rule_of_the_table(tmp_path: Path) -> None:
    """Two draws with runs that leave one and two environments out, as its sweep makes them by default."""
    lines = []
    for draw, seen, held, last in ((0, 0.9, 0.3, 0.2), (1, 0.5, 0.8, 0.4)):
        lines += [domainbed_line(300, [seen] * 3 + [0.9], draw=draw, inside=0.6 + draw / 10)]
        lines += [domainbed_line(600, [seen - 0.1] * 3 + [last], draw=draw, inside=0.8 + draw / 10)]
        for other in range(3):
            pair = [held if i == other else 0.5 for i in range(4)]
            lines += [domainbed_line(300, pair, targets=[other, 3], draw=draw)]
    file = tmp_path / "results.jsonl"
    file.write_text("".join(lines))
    (found,), notes = read_domainbed(file, "training")
    assert found.in_split == 0.6 and "6 lines with several test environments aren't in the table" in notes[0]
    (found,), notes = read_domainbed(file, "leave-one-out")
    assert found.in_split == pytest.approx(0.7) and not notes
    (found,), _ = read_domainbed(file, "oracle")  # the last step of each run only
    assert found.in_split == pytest.approx(0.9)
    coral = domainbed_line(300, [0.5] * 4, inside=0.4).replace('"ERM"', '"CORAL"')
    file.write_text("".join([*lines, coral]))
    (_, single), notes = read_domainbed(file, "leave-one-out")
    assert single.method == "CORAL (DomainBed)" and "no runs to select CORAL by leaving" in notes[0]
    file.write_text("".join(line for line in lines if '"test_envs": [3]' in line))
    (found,), notes = read_domainbed(file, "leave-one-out")
    assert found.in_split == 0.6 and "selected by source validation" in notes[0]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("selection", ["training", "leave-one-out", "oracle"])
def test_of_equal_validation_accuracies_domainbed_takes_the_last_hparams_seed(
    selection: Selection, order: Sequence[int], tmp_path: Path
) -> None:
    """Its runs are sorted by hparams_seed, then by accuracy, stably, and reversed; within a run the first step wins."""
    lines = []
    for draw in order:
        steps = [(300, 0.1), (600, 0.2)] if selection != "leave-one-out" else [(600, 0.2), (300, 0.1)]  # theirs sorts
        for step, more in steps:
            lines += [domainbed_line(step, [0.5] * 4, draw=draw, inside=0.4 + draw / 10 + more / 10)]
            lines += [domainbed_line(step, [0.5] * 4, targets=[other, 3], draw=draw) for other in range(3)]
    file = tmp_path / "results.jsonl"
    file.write_text("".join(lines))
    (found,), _ = read_domainbed(file, selection)
    assert found.in_split == pytest.approx(0.62 if selection == "oracle" else 0.61)  # the oracle's step is the last


def test_domainbeds_students_are_told_apart_and_stop_no_bold_row(calm: WorkList, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    kinds = [{"resnet18": True}, {}, {"vit": True, "dinov2": True}, {"vit": True}]
    file.write_text("".join(domainbed_line(300, [0.5] * 4, seed=seed, **kind) for seed, kind in enumerate(kinds)))
    imported, _ = read_domainbed(file)
    alike = [domainbed_line(300, [0.5] * 4, **kind) for kind in kinds]  # the same seed: nothing but the student differs
    (tmp_path / "alike.jsonl").write_text("".join(alike))
    assert len(read_domainbed(tmp_path / "alike.jsonl", "oracle")[0]) == 4
    assert [result.student for result in imported] == ["resnet18", "resnet50", "dinov2", "vit"]
    rng = np.random.default_rng(0)
    right = {"erm": 0.5, "adip": 0.9}
    ours = [
        replace(r, marks=Marks(np.arange(1000), rng.random(1000) < right[r.method]))
        for r in results(calm)
        if r.method in right
    ]
    theirs = [replace(imported[0], dataset="shapes", target="paint", student=ours[0].student)]
    table = as_table([*ours, *theirs])
    assert [table.rows[i][1] for i in table.bold] == ["adip"] and "trained its student here" in table.notes[-1]


def test_the_table_is_bold_only_where_the_lead_is_sure(calm: WorkList) -> None:
    found = [result for result in results(calm) if result.method != "zero-shot"]
    rng = np.random.default_rng(0)
    right = {"erm": 0.5, "adip": 0.9}
    clear = [replace(r, marks=Marks(np.arange(1000), rng.random(1000) < right[r.method])) for r in found]
    close = [replace(r, marks=Marks(np.arange(1000), rng.random(1000) < 0.7)) for r in found]
    assert [as_table(clear).rows[i][1] for i in as_table(clear).bold] == ["adip"]
    assert not as_table(close).bold


def test_a_teacher_that_left_answers_out_is_compared_on_the_others(grid: Grid, shapes: Path, tmp_path: Path) -> None:
    told = {"teacher": {"select": "known"}, "published": {"target_in_split": True}}
    bench = plan(replace(grid, methods=["zero-shot", "erm"], settings=merge(grid.settings, told)), tmp_path / "bench")
    unknown = tmp_path / "unknown.txt"
    balls = sorted((shapes / "paint/ball").iterdir())
    unknown.write_text("".join(f"{file.relative_to(shapes).as_posix()}\n" for file in balls))
    asked = {"data": {"path": str(shapes), "exclude": str(unknown)}, "teacher": grid.settings["teacher"]}
    embed(asked, store=bench.work.folder / "store")
    run(bench, engine=Here())
    assert not bench.missing
    found = results(bench.work)
    assert {len(r.marks.images) for r in found if r.method == "erm" and r.marks} == {29}  # 80% of 36
    teachers = [r for r in found if r.method == "zero-shot"]
    missing = sum(29 - len(r.marks.images) for r in teachers if r.marks)
    assert missing > 0 and all(r.accuracy == r.in_split for r in teachers)
    table = as_table(found)
    assert f"zero-shot: {missing} of 58 predictions are missing" in table.notes[1]
    (row,) = [row for row in table.rows if row[1] == "zero-shot"]
    assert "[" in row[table.heads.index("against erm, 95%")]
    evaluation = json.loads((teachers[0].folder / "evaluation.json").read_text())
    assert "images have no embedding" in evaluation["notes"][0]


def test_a_table_never_mixes_settings(calm: WorkList, grid: Grid, tmp_path: Path) -> None:
    work = copied(calm, tmp_path)
    before = accuracies(work)
    other = plan(replace(grid, steps=4, seeds=1), work.folder)
    run(other, engine=Here())
    assert set(accuracies(work)) == {key for key in before if key[-1] == 0}
    assert {result.folder for result in results(work)} == {work.folder_of(job) for job in other.jobs}
    told = CliRunner().invoke(app, ["benchmark", "table", str(work.folder)])
    assert "jobs in" in told.stderr and "other settings" in told.stderr
    plan(grid, work.folder)  # asked for again, the first ones stand there again
    assert accuracies(work) == before
    wrong = CliRunner().invoke(app, ["benchmark", "table", str(work.folder), "--reference", "kd"])
    assert "--reference kd: not in this table" in str(wrong.exception)


def test_folders_stand_in_one_table(calm: WorkList, grid: Grid, tmp_path: Path) -> None:
    (path,) = grid.data.values()
    other = plan(replace(grid, data={"drawn": path}, methods=["erm", "adip"]), tmp_path)
    run(other, engine=Here())
    both = ["benchmark", "table", str(calm.folder), str(tmp_path)]
    told = CliRunner().invoke(app, [*both, "--format", "csv"])
    header, *lines = csv.reader(told.stdout.splitlines())
    rows = {line[1]: dict(zip(header, line, strict=False)) for line in lines if len(line) == len(header)}
    expected = as_table([*results(calm), *results(other.work)])
    assert {"drawn paint", "shapes paint", "mean"} <= set(header) == set(expected.heads)
    assert rows["adip"]["wins/losses"] == expected.rows[2][expected.heads.index("wins/losses")]
    assert rows["zero-shot"]["drawn paint"] == rows["zero-shot"]["mean"] == ""  # not measured there: no mean
    assert rows["adip"]["mean"] != ""
    wrong = CliRunner().invoke(app, [*both, str(calm.folder)])
    assert "another of the folders has it, too" in str(wrong.exception)
    longer = plan(replace(grid, methods=["kd"], steps=4), tmp_path / "longer")
    run(longer, engine=Here())
    wrong = CliRunner().invoke(app, [*both, str(tmp_path / "longer")])
    assert "shapes has other images or settings" in str(wrong.exception)


def test_commands_on_one_folder_show_their_own_jobs(calm: WorkList, grid: Grid, tmp_path: Path) -> None:
    work = copied(calm, tmp_path)
    others = [replace(grid, methods=["erm"], steps=4 + number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        benches = list(pool.map(lambda other: plan(other, work.folder), others))
    for other, bench in zip(others, benches, strict=True):
        assert [job.name for job in work.shown(other.variant)] == [job.name for job in bench.jobs]
    work.show(grid.variant, [])  # as a command does when it ends
    assert accuracies(work) == accuracies(calm)


def test_a_torn_line_costs_no_job_and_none_is_listed_twice(grid: Grid, tmp_path: Path) -> None:
    names = [job.name for job in plan(grid, tmp_path).jobs]
    file = tmp_path / "jobs.jsonl"
    file.write_bytes(file.read_bytes()[:-20])  # as a kill or a full disk leaves it
    plan(grid, tmp_path)
    more = plan(replace(grid, methods=["lp"]), tmp_path)
    assert [job.name for job in WorkList(tmp_path).jobs()] == [*names, *(job.name for job in more.jobs)]
    file.write_text(file.read_text() * 2)  # as two commands of an older version could
    assert len(WorkList(tmp_path).jobs()) == len(names) + 2
    folder = tmp_path / "both"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: plan(grid, folder), range(8)))
    assert len((folder / "jobs.jsonl").read_text().splitlines()) == len(names)


def test_a_command_that_leaves_jobs_to_another_says_so(
    calm: WorkList, grid: Grid, shapes: Path, recording: Path, tmp_path: Path
) -> None:
    work = copied(calm, tmp_path)
    command = ["benchmark", "--data", f"shapes={shapes}", "--teacher", f"recorded:{recording}", "--methods", "erm"]
    command += ["--students", "test_efficientnet", "--targets", "paint", "--seeds", "2", "--steps", "3", "--batch", "4"]
    command += ["--engine", "local:1", "--out", str(work.folder)]
    for key, value in (("student.weights", "none"), ("student.image_size", "32"), ("data.workers", "0")):
        command += ["--set", f"{key}={value}"]
    (job, *_) = [job for job in work.jobs() if job.method == "erm"]
    (work.folder_of(job) / "seconds.json").unlink()
    with claimed(work, job):
        told = CliRunner().invoke(app, [*command, "--set", "train.precision=fp32", "--set", "train.accelerator=cpu"])
    assert "2 jobs: 1 were finished before, 1 are missing" in told.output and told.exit_code == 2


def test_a_job_that_another_process_has_is_left_alone(calm: WorkList, tmp_path: Path) -> None:
    """As a Ray task, or a worker of this machine, finds it when another command works on the folder."""
    work = copied(calm, tmp_path)
    (job, *_) = [job for job in work.jobs() if job.method == "erm"]
    (work.folder_of(job) / "seconds.json").unlink()
    with claimed(work, job):
        assert attempt(work, job, since=time.time(), budget=0, notify=lambda event: pytest.fail(f"{event}")) is None
    assert work.failure(job) is None and not work.done(job)


def test_status_counts_nothing_that_no_command_waits_for(calm: WorkList, grid: Grid, tmp_path: Path) -> None:
    work = copied(calm, tmp_path)
    plan(replace(grid, steps=4), work.folder)  # asked for, then given up:
    plan(grid, work.folder)
    told = CliRunner().invoke(app, ["benchmark", "status", str(work.folder)]).stdout
    assert "6 jobs: 6 done, 0 running, 0 failed, 0 waiting" in told and "4 more jobs have other settings" in told


def test_results_of_older_code_are_done_again_and_not_shown(
    calm: WorkList, grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = copied(calm, tmp_path)
    monkeypatch.setattr(METHODS["erm"], "version", METHODS["erm"].version + 1)
    bench = plan(grid, work.folder)
    assert [job.method for job in bench.missing] == ["erm", "erm"]
    assert {result.method for result in results(work)} == {"zero-shot", "adip"}
    monkeypatch.setattr("vl2v.methods.base.LOOP", LOOP + 1)
    assert len(plan(grid, work.folder).missing) == 6 and not results(work)
    monkeypatch.undo()
    assert not plan(grid, work.folder).missing and accuracies(work) == accuracies(calm)


def finish(work: WorkList, job: Job, parts: Sequence[tuple[str, bool, int, float]]) -> None:
    """Write a job's result: (domain, in its 80%, how many images, share right)."""
    domain, in_split, good = (
        np.concatenate([[DOMAINS.index(name)] * count for name, _, count, _ in parts]),
        np.concatenate([[inside] * count for _, inside, count, _ in parts]),
        np.concatenate([np.arange(count) < round(count * share) for _, _, count, share in parts]),
    )
    columns = {"index": np.arange(len(good)), "domain": domain, "in_split": in_split}
    columns |= {"label": np.zeros(len(good), int), "answer": (~good).astype(int)}
    place = work.folder_of(job)
    place.mkdir(parents=True)
    Predictions(["a", "b"], DOMAINS, columns={name: [column] for name, column in columns.items()}).save(place)
    (place / "seconds.json").write_text("1")


@pytest.mark.parametrize(("rule", "best"), [("training", 0), ("leave-one-out", 1), ("oracle", 2)])
def test_each_rule_selects_by_its_own_images(rule: str, best: int, grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, methods=["erm"], seeds=1, draws=3, selection="leave-one-out"), tmp_path)
    right = {  # draw -> share right on: validation of the sources, a source left out, the target's 80%, its other 20%
        0: (0.9, 0.2, 0.5, 0.2),
        1: (0.2, 0.9, 0.6, 0.2),
        2: (0.2, 0.2, 0.7, 0.9),
    }
    for job in bench.jobs:
        seen, held, inside, outside = right[job.draw]
        sources = [(name, False, 10, held if name == job.held else seen) for name in ("chalk", "ink")]
        finish(bench.work, job, [("paint", True, 10, inside), ("paint", False, 10, outside), *sources])
    (found,) = results(bench.work, rule)
    assert found.folder == bench.work.folder_of(next(job for job in bench.jobs if job.draw == best and not job.held))
    assert found.in_split == pytest.approx(right[best][2])


def test_source_validation_is_the_mean_over_domains_however_large(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, methods=["erm"], seeds=1, draws=2), tmp_path)
    for job, chalk, ink in zip(bench.jobs, (0.5, 0.7), (1.0, 0.7), strict=True):
        finish(bench.work, job, [("paint", True, 10, 0.5), ("chalk", True, 90, chalk), ("ink", True, 10, ink)])
    (found,) = results(bench.work, "training")
    assert found.folder == bench.work.folder_of(bench.jobs[0]) and found.seen == pytest.approx(0.75)


def test_a_rule_whose_runs_are_missing_selects_nothing(grid: Grid, tmp_path: Path) -> None:
    wanted = replace(grid, methods=["erm"], seeds=1, draws=2)
    bench = plan(wanted, tmp_path)
    parts = [("paint", True, 10, 0.5), ("chalk", True, 10, 0.5), ("ink", True, 10, 0.5)]
    for job in bench.jobs:
        finish(bench.work, job, parts)
    with pytest.raises(ConfigError, match=r"there are draws, and no runs .* again with --selection leave-one-out"):
        results(bench.work, "leave-one-out")
    with pytest.raises(ConfigError, match="nothing is left of paint to select by"):
        results(bench.work, "oracle")
    larger = plan(replace(wanted, selection="leave-one-out"), tmp_path)
    first, second = ([job for job in larger.missing if job.draw == draw] for draw in (0, 1))
    for job in [*first, second[0]]:
        finish(larger.work, job, parts)
    (found,) = results(larger.work, "leave-one-out")  # the other draw isn't judged yet
    assert found.folder == larger.work.folder_of(bench.jobs[0])


def test_students_are_measured_on_corrupted_images_without_training_anew(
    calm: WorkList, grid: Grid, tmp_path: Path
) -> None:
    work = copied(calm, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in work.folder.rglob("student.safetensors")}
    one = replace(grid, seeds=1)
    bench = plan(one, work.folder, Corruptions(("fog", "pixelate"), 3))
    assert {job.method for job in bench.missing} == {"erm", "adip"}  # the teacher isn't asked about them
    assert all(np.isnan(result.corrupted) for result in results(bench.work))
    run(bench, engine=Here())
    assert not bench.missing and {file: file.stat().st_mtime_ns for file in before} == before
    found = {result.method: result for result in results(bench.work) if result.seed == 0}
    corrupt_dataset(
        open_dataset(grid.data["shapes"]),
        tmp_path / "apart",
        kinds=["fog", "pixelate"],
        severities=[3],
        domains=["paint"],
    )
    for method in ("erm", "adip"):
        apart = evaluate(vl2v.Run(found[method].folder), tmp_path / "apart", store=work.folder / "store")
        rows = {row.domain: row.metrics.accuracy for row in apart.of()}
        assert found[method].corrupted == pytest.approx((rows["fog-3"] + rows["pixelate-3"]) / 2)
        assert found[method].accuracy == accuracies(calm)["shapes", "paint", method, "test_efficientnet", 0]
    told = CliRunner().invoke(app, ["benchmark", "table", str(work.folder), "--metric", "corrupted"])
    assert "under corruptions" in told.stdout and f"| {100 * found['erm'].corrupted:.1f} |" in told.stdout
    more = plan(one, work.folder, Corruptions(("fog", "pixelate", "contrast"), 3))
    assert [more.work.unmeasured(job) for job in more.missing] == [["contrast"], ["contrast"]]
    evaluated: list[str] = []
    run(more, engine=Here(), notify=lambda event: evaluated.append(event.get("words", "")) if "what" in event else None)
    assert {words for words in evaluated if words.endswith("-3")} == {"contrast-3"}  # the others aren't measured again
    assert not more.missing and not plan(one, work.folder).missing
    others = replace(one, data={"drawn": grid.data["shapes"]}, methods=["erm"])
    plan(others, tmp_path / "others", Corruptions(("fog",), 5))
    both = [str(work.folder), str(tmp_path / "others")]
    told = CliRunner().invoke(app, ["benchmark", "table", *both, "--metric", "corrupted"])
    assert "differ in corruptions or severity" in str(told.exception)


def test_a_mean_under_corruptions_is_of_every_target() -> None:
    rows = [replace(found(*row, [True, False]), corrupted=0.4) for row in product(("erm", "kd"), ("ink", "wash"))]
    rows[-1] = replace(rows[-1], corrupted=math.nan)  # not measured yet
    rows += [found("lp", target, [True]) for target in ("ink", "wash")]
    table = as_table(rows, metric="corrupted")
    assert {row[1]: row[table.heads.index("mean")] for row in table.rows} == {"erm": "40.0", "kd": "", "lp": ""}
    assert any(note.startswith("No mean") for note in table.notes)
    assert not any(note.startswith("No mean") for note in as_table([*rows[:2], *rows[4:]], metric="corrupted").notes)


def test_runs_on_other_files_are_not_compared_image_by_image(calm: WorkList, tmp_path: Path) -> None:
    work = copied(calm, tmp_path)
    one, other = (job for job in work.jobs() if job.method == "adip")
    replace(Predictions.load(work.folder_of(one)), content="of a file that was mended").save(work.folder_of(one))
    results_, notes = gather([work.folder])
    assert [result.folder for result in results_ if result.marks is None] == [work.folder_of(one)]
    assert "1 run(s) had other files than the rest" in notes[0] and one.name in notes[0]
    assert notes[0] in CliRunner().invoke(app, ["benchmark", "table", str(work.folder)]).stdout
    bench = Bench(work, results_)
    assert _reader(bench, one) is None and _reader(bench, other) is not None  # no other image beside an answer


def test_the_teacher_has_one_row_whichever_student_it_was_measured_with(grid: Grid, tmp_path: Path) -> None:
    for target, student in (("paint", "lite0"), ("ink", "resnet50")):
        wanted = replace(grid, targets=[target], methods=["zero-shot", "erm"], students=[student], seeds=1)
        bench = plan(wanted, tmp_path)
        for job in bench.jobs:
            finish(bench.work, job, [(name, True, 10, 0.5) for name in DOMAINS])
    found, _ = gather([tmp_path])
    table = as_table(found)
    (row,) = [row for row in table.rows if row[1] == "zero-shot"]
    assert row[table.heads.index("mean")] == "50.0"


def test_what_a_rule_cant_judge_yet_is_left_out_and_told(grid: Grid, tmp_path: Path) -> None:
    wanted = replace(grid, methods=["erm"], seeds=2, draws=3)
    plan(wanted, tmp_path)
    plan(replace(wanted, seeds=1, draws=2, selection="leave-one-out"), tmp_path)
    work = WorkList(tmp_path)
    for job in work.shown():  # the third draw, which no rule can judge, has the best answers
        finish(work, job, [(name, True, 10, 0.5 + job.draw / 10) for name in DOMAINS])
    (found,), (note,) = gather([tmp_path], "leave-one-out")
    assert found.seed == 0 and found.accuracy == pytest.approx(0.6)
    assert "1 more have students" in note and ", erm, " in note


def test_a_table_says_what_it_cant_know(calm: WorkList, tmp_path: Path) -> None:
    work = copied(calm, tmp_path)
    told = CliRunner().invoke(app, ["benchmark", "table", str(work.folder), "--metric", "corrupted"])
    assert isinstance(told.exception, RunError) and "nothing was measured under" in str(told.exception)
    for job in work.jobs():
        file = work.folder_of(job) / "evaluation.json"
        tree = json.loads(file.read_text())
        tree["notes"].append("leakage: 2 images of unseen domains are among those to learn from, too")
        file.write_text(json.dumps(tree))
    told = CliRunner().invoke(app, ["benchmark", "table", str(work.folder)])
    assert told.stdout.count("shapes paint: leakage: 2 images") == 1


def cut(file: Path) -> None:
    """Spoil a file as a full disk does."""
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    """Spoil a file as a bad disk does: its head and its length are whole."""
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)


def garble(file: Path) -> None:
    """Spoil the head of a file."""
    data = bytearray(file.read_bytes())
    data[60:160] = bytes(100)
    file.write_bytes(data)


@pytest.mark.parametrize("spoil", [cut, flip, garble, Path.unlink])
@pytest.mark.parametrize("method", ["zero-shot", "erm"])
def test_a_job_whose_answers_cant_be_read_is_left_out_and_done_again(
    spoil: Callable[[Path], None], method: str, calm: WorkList, grid: Grid, tmp_path: Path
) -> None:
    work = copied(calm, tmp_path)
    job = next(job for job in work.jobs() if job.method == method and job.seed == 1)
    seconds, before = work.seconds(job), accuracies(work)
    spoil(work.folder_of(job) / "predictions.safetensors")
    for _ in range(2):  # it is named until it is done again
        told = CliRunner().invoke(app, ["benchmark", "table", str(work.folder)])
        assert told.exit_code == 0 and f"{job.name}: its predictions can't be read" in told.stderr
    told = CliRunner().invoke(app, ["benchmark", "status", str(work.folder)])
    assert "5 done, 0 running, 0 failed, 1 waiting" in told.stdout and f"can't be read: {job.name}" in told.stdout
    assert set(accuracies(work)) == set(before) - {key for key in before if key[2] == method and key[-1] == 1}
    student = work.folder_of(job) / "student" / "student.safetensors"
    stamp = student.stat().st_mtime_ns if student.exists() else 0
    bench = plan(grid, work.folder)
    assert [missing.name for missing in bench.missing] == [job.name]
    run(bench, engine=Here())
    assert not bench.missing and not work.spoilt(job) and accuracies(work) == before
    assert work.seconds(job) == seconds  # of the training, which isn't done again
    assert not stamp or student.stat().st_mtime_ns == stamp


def test_damage_that_the_report_meets_is_mended_as_well(calm: WorkList, grid: Grid, tmp_path: Path) -> None:
    work = copied(calm, tmp_path)
    job = next(job for job in work.jobs() if job.method == "erm")
    before, found = accuracies(work), results(work)
    flip(work.folder_of(job) / "predictions.safetensors")
    with pytest.raises(
        RunError, match=rf"{job.name}: its predictions can't be read; give the `vl2v benchmark` command"
    ):
        _ = Bench(work, found).predictions
    bench = plan(grid, work.folder)
    assert [missing.name for missing in bench.missing] == [job.name]
    run(bench, engine=Here())
    assert accuracies(work) == before and len(Bench(work, results(work)).predictions) == len(bench.jobs)


def test_a_draw_that_cant_be_read_is_not_selected(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, methods=["erm"], seeds=1, draws=3, selection="leave-one-out"), tmp_path)
    for job in bench.jobs:
        shares = 0.9 - job.draw / 10
        finish(bench.work, job, [(name, True, 10, shares) for name in DOMAINS])
    places = {(job.draw, job.held): bench.work.folder_of(job) for job in bench.jobs}
    flip(places[0, ""] / "predictions.safetensors")
    flip(places[1, "ink"] / "predictions.safetensors")
    (found,) = results(bench.work, "leave-one-out")
    assert found.folder == places[2, ""]
    assert {(job.draw, job.held) for job in bench.missing} == {(0, ""), (1, "ink")}


def test_published_figures_stand_beside_their_own_kind_only(calm: WorkList) -> None:
    def figures(datasets: Sequence[str], student: str = "lite0") -> dict[str, str]:
        (one, *_) = results(calm)
        methods = ("zero-shot", "sd", "adip", "miro", "erm")
        rows = [replace(one, dataset=name, student=student, method=method) for name in datasets for method in methods]
        table = as_table(rows)
        if "published" not in table.heads:
            return {}
        assert "black, a ViT-B/16 that starts from ImageNet; white, the teacher's own tower" in table.notes[-1]
        return {row[1]: row[table.heads.index("published")] for row in table.rows}

    white = {"zero-shot": "96.5 white", "sd": "96.7 white"}
    assert figures(["PACS"]) == {**white, "adip": "94.9 black", "miro": "89.5 black", "erm": "90.3 black"}
    assert figures(["PACS"], "teacher") == {**white, "adip": "", "miro": "96.4 white", "erm": f"{91.35:.1f} white"}
    assert figures(["office_home"])["adip"] == "85.7 black"  # the folder that `vl2v data download` makes
    five = ["office_home", "terra_incognita", "VLCS", "PACS", "domain_net"]
    assert figures(five)["adip"] == "75.5 black"
    assert figures(["a", "b", "c", "d", "e"]) == {} == figures(["shapes"]) == figures(["PACS", "VLCS"])


def test_recommend_answers_plainly(
    shapes: Path, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vl2v.benchmark.recommend import recommend

    quick_tournament(monkeypatch)
    settings: dict[str, Any] = {"student": {"weights": "none", "image_size": 32}, "data": {"workers": 0}}
    settings["stages"] = {"align": {"steps": 10, "batch_per_domain": 8}}
    teacher = f"recorded:{recording}"
    methods = ("erm", "adip")
    data = tmp_path / "my images"
    data.symlink_to(shapes)
    how: dict[str, Any] = {"minutes": 0.02, "students": "test_efficientnet", "settings": settings, "engine": Here()}
    # rise wants texts that this recording doesn't have
    advice = recommend(data, teacher, tmp_path / "bench", methods=(*methods, "rise"), **how)
    assert {advice.method, advice.runner_up} == set(methods) and advice.steps == 3
    assert set(advice.failed) == {"rise"} and "rise didn't compete: " in advice.verdict()
    assert advice.command in advice.verdict()
    assert {r.target for r in advice.table} == set(DOMAINS)
    assert {r.seed for r in advice.table} == {1, 2}  # others than chose the finalists
    again = recommend(data, teacher, tmp_path / "bench", methods=methods, **how)
    assert (again.command, again.accuracy) == (advice.command, advice.accuracy)  # all was there already
    words = shlex.split(advice.command)
    assert words[words.index("--data") + 1] == str(data) and words[words.index("--method") + 1] == advice.method
    assert words[words.index("--store") + 1] == str(tmp_path / "bench" / "store")  # a paid teacher isn't asked again
    told = assignments([words[place + 1] for place, word in enumerate(words) if word == "--set"])
    *_, last = METHODS[advice.method].stage_defaults
    assert told["student"] == settings["student"] and told["data"] == settings["data"]
    assert told["stages"][last] == {"steps": 1000, "batch_per_domain": 4}


def test_a_tournaments_steps_follow_from_its_time() -> None:
    from vl2v.benchmark.recommend import _steps

    assert _steps(60, (0.01, 2.0), 1, Here()) == 2000 > _steps(60, (0.01, 4.0), 1, Here()) == 800  # 10 evaluations
    assert _steps(0, (0.01, 2.0), 1, Here()) == 20


def test_a_tournament_wants_two_that_train(shapes: Path, recording: Path, tmp_path: Path) -> None:
    from vl2v.benchmark.recommend import recommend

    for methods in (["zero-shot", "erm"], ["erm", "erm"]):
        with pytest.raises(ConfigError, match="takes 2 or more"):
            recommend(shapes, f"recorded:{recording}", tmp_path, minutes=1, methods=methods, engine=Here())
    assert not list(tmp_path.iterdir())


def found(method: str, target: str, right: Sequence[bool]) -> Result:
    marks = Marks(np.arange(len(right)), np.array(right))
    share = float(np.mean(right))
    return Result("icons", target, method, "lite0", 0, share, share, share, 1.0, Path(method) / target, marks, math.nan)


def test_a_lead_is_of_the_very_targets_that_the_mean_is_of(calm: WorkList) -> None:
    good, bad = [True] * 30 + [False] * 10, [False] * 30 + [True] * 10
    rows = [found(method, target, good) for method in ("adip", "kd") for target in ("ink", "wash|line")]
    rows += [found("erm", "ink", bad), found("lp", "ink", bad)]
    for reference, leads in (("erm", {"adip": "", "kd": ""}), ("kd", {"adip": "+0.0 [-2.3, +2.3]", "kd": ""})):
        table = as_table(rows, reference=reference)
        place = table.heads.index(f"against {reference}, 95%")
        assert {row[1]: row[place] for row in table.rows if row[1] in leads} == leads
    assert any(note.startswith("No mean, and no lead, where a target is missing") for note in table.notes)
    assert Bench(calm, rows).leads("lite0") == {}
    whole = [*rows, found("erm", "wash|line", bad)]
    assert set(Bench(calm, whole).leads("lite0")) == {"adip", "kd"}


def test_a_run_on_other_files_leaves_its_method_without_a_lead(calm: WorkList) -> None:
    rights = {"adip": [True] * 40, "erm": [False] * 40}
    rows = [
        replace(found(method, target, rights[method]), seed=seed, content="as it was")
        for method, target, seed in product(rights, ("ink", "wash"), (0, 1))
    ]
    assert as_table(rows).bold
    changed = [replace(row, content="mended") if (row.method, row.target) == ("adip", "ink") else row for row in rows]
    (same, (note,)) = of_same_images([*changed, *of(rows, method="erm", target="ink")])
    table = as_table(same)
    assert "2 run(s) had other files" in note and not table.bold
    (row,) = [row for row in table.rows if row[1] == "adip"]
    assert (row[table.heads.index("mean")], row[table.heads.index("against erm, 95%")]) == ("100.0 ± 0.0", "")
    assert Bench(calm, same).leads("lite0") == {}


def test_names_are_text_in_every_format() -> None:
    table = as_table([found("adip", "wash|line_$5~{^}", [True])])
    assert r"wash\|line" in table.render("md").splitlines()[0]
    assert r"wash|line\_\$5\textasciitilde{}\{\textasciicircum{}\}" in table.render("latex")


def test_a_lead_is_of_the_very_images_that_the_mean_is_of(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, methods=["erm", "adip"], seeds=1), tmp_path)
    for job in bench.jobs:
        inside, outside = (0.9, 0.0) if job.method == "adip" else (0.5, 1.0)
        finish(bench.work, job, [("paint", True, 40, inside), ("paint", False, 10, outside), ("ink", True, 10, 0.5)])
    for metric, mean in (("accuracy", "+12.0 ["), ("in_split", "+40.0 [")):
        table = as_table(results(bench.work), metric=metric)
        row = next(row for row in table.rows if row[1] == "adip")
        assert row[table.heads.index("against erm, 95%")].startswith(mean)


def test_the_adapted_teacher_has_a_row_of_its_own(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, methods=["zero-shot", "adapted-teacher"], seeds=1), tmp_path)
    run(bench, engine=Here())
    found = results(bench.work)
    assert [row[:2] for row in as_table(found).rows] == [["", "zero-shot"], ["", "adapted-teacher"]]
    zero_shot, adapted = (result.accuracy for result in found)
    assert adapted >= zero_shot > 0.5


def test_the_adapted_teacher_teaches_the_methods_that_it_can(grid: Grid, tmp_path: Path) -> None:
    settings = merge(grid.settings, {"teacher": {"adapt": "auto"}})
    bench = plan(replace(grid, methods=["zero-shot", "erm", "kd"], seeds=1, settings=settings), tmp_path)
    run(bench, engine=Here())
    assert [result.method for result in results(bench.work)] == ["zero-shot", "erm", "kd"]
    adapted = {job.method: resolve(job.settings).teacher.adapt for job in bench.jobs}
    assert adapted == {"zero-shot": "off", "erm": "off", "kd": "auto"}
