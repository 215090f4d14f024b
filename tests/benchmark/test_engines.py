"""Where jobs run: whatever dies, and whoever else works on the folder, no job is lost and none done twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import accuracies, copied, killed_in_finetune, of_one_seed
from little import Here, processes
from vl2v.benchmark.engine import Local, Worker
from vl2v.benchmark.grid import Grid
from vl2v.benchmark.run import plan, run
from vl2v.benchmark.work import attempt, claimed, do, fail
from vl2v.benchmark.worklist import Corruptions, WorkList
from vl2v.cli.app import app
from vl2v.tree import merge


@pytest.fixture(autouse=True)
def quick_workers(quick_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers start with everything imported."""
    monkeypatch.setattr(sys, "executable", quick_python)


def test_what_jobs_share_is_made_once_by_processes_that_start_together(grid: Grid, tmp_path: Path) -> None:
    shared = merge(grid.settings, {"stages": {"probe": {"steps": 200}}, "train": {"head": "method"}})
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


def test_a_killed_worker_is_replaced_and_no_job_is_lost(calm: WorkList, grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, seeds=1), tmp_path / "bench")
    killed: list[str] = []
    done: list[str] = []

    def kill_once(event: dict[str, Any]) -> None:
        if event["event"] == "done":
            done.append(event["job"])
        distilling = event["event"] == "progress" and event["what"] == "distill"
        if distilling and not killed and (workers := processes("vl2v.benchmark.work")):
            killed.append(event["job"])
            os.kill(workers[0], signal.SIGKILL)

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
        if event["event"] == "started":
            assert processes("vl2v.benchmark.work")
            signal.raise_signal(number)

    with pytest.raises(ends):
        run(bench, engine=Local(1), notify=end)
    assert not processes("vl2v.benchmark.work") and bench.missing and not bench.work.failure(bench.jobs[0])


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_while_a_worker_starts_ends_it_too(
    number: signal.Signals, ends: type[BaseException], grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Worker):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            signal.raise_signal(number)

    monkeypatch.setattr("vl2v.benchmark.engine.Worker", Interrupted)
    with pytest.raises(ends):
        run(plan(replace(grid, methods=["erm"], seeds=1), tmp_path), engine=Local(2))
    assert not processes("vl2v.benchmark.work")


def test_a_worker_that_dies_between_two_jobs_is_replaced(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = plan(replace(grid, methods=["zero-shot"], seeds=2), tmp_path)
    made: list[Any] = []

    def worker(number: int, count: int, order: dict[str, Any], events: Any) -> Any:
        if made:
            made.append(Worker(number, count, order, events))
            return made[-1]
        made.append(SimpleNamespace(number=number, job=None, started=False))
        (job, *_) = bench.jobs
        attempt(bench.work, job, since=order["since"], budget=0, notify=lambda event: events.put((made[0], event)))
        for event in ({"event": "done", "job": job.name}, {"event": "ended", "code": -signal.SIGKILL}):
            events.put((made[0], event))
        return made[0]

    monkeypatch.setattr("vl2v.benchmark.engine.Worker", worker)
    run(bench, engine=Local(1))
    assert len(made) == 2 and not bench.missing


def test_a_worker_that_cant_start_is_no_end_of_the_list(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = plan(replace(grid, methods=["zero-shot"], seeds=2), tmp_path)
    for job in bench.jobs:
        fail(bench.work, job, "it failed yesterday", "")
        (bench.work.folder_of(job) / "failed.json").write_text(json.dumps({"error": "it failed yesterday", "at": 0.0}))
    monkeypatch.undo()  # a Python that finds no vl2v
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "vl2v.py").write_text("raise SystemExit('no memory')")
    with pytest.raises(RuntimeError, match="a worker can't start: no memory"):
        run(bench, engine=Local(2))


def test_a_job_at_which_the_process_always_dies_is_given_up(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, methods=["adip", "erm"], seeds=1), tmp_path)

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "started" and "adip" in event["job"]:
            for worker in processes("vl2v.benchmark.work"):
                os.kill(worker, signal.SIGKILL)

    run(bench, engine=Local(1), notify=kill)
    (lost,) = bench.missing
    assert lost.method == "adip" and "process died 2 times" in (bench.work.failure(lost) or "")


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
    result = subprocess.run(command, input=f"{json.dumps(order)}\n", capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in result.stdout.splitlines()] == [{"event": "done", "job": "a"}]
    assert "noise" in result.stderr


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
    run(bench, engine=Here())
    assert len(bench.work.jobs()) == 2 and not bench.missing


def test_a_job_goes_on_wherever_its_list_of_exceptions_lies(grid: Grid, shapes: Path, tmp_path: Path) -> None:
    left_out = next((shapes / "ink").rglob("*.png")).relative_to(shapes).as_posix()
    benches = []
    for name in ("before", "now"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "exclude.txt").write_text(f"{left_out}\n")
        changed = merge(grid.settings, {"data": {"exclude": str(tmp_path / name / "exclude.txt")}})
        wanted = replace(grid, methods=["erm"], seeds=1, settings=changed)
        benches.append(plan(wanted, tmp_path / "bench", Corruptions(("fog",), 3)))
    (before,), (now,) = (bench.jobs for bench in benches)
    assert before.name == now.name
    with pytest.raises(KeyboardInterrupt):
        do(benches[0].work, before, progress=killed_in_finetune)
    shutil.rmtree(tmp_path / "before")
    run(benches[1], engine=Here())
    assert not benches[1].missing


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
        result = CliRunner().invoke(app, [*command, "--set", "train.precision=fp32", "--set", "train.accelerator=cpu"])
    assert "2 jobs: 1 were finished before, 1 are missing" in result.output and result.exit_code == 2


def test_a_job_that_another_process_has_is_left_alone(calm: WorkList, tmp_path: Path) -> None:
    """As a Ray task, or a worker of this machine, finds it when another command works on the folder."""
    work = copied(calm, tmp_path)
    (job, *_) = [job for job in work.jobs() if job.method == "erm"]
    (work.folder_of(job) / "seconds.json").unlink()
    with claimed(work, job):
        assert attempt(work, job, since=time.time(), budget=0, notify=lambda event: pytest.fail(f"{event}")) is None
    assert work.failure(job) is None and not work.done(job)
