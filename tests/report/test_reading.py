"""Commands that read a run or a benchmark leave its folder as it is, byte for byte."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vl2v.benchmark.worklist import WorkList
from vl2v.cli.app import app
from vl2v.runs.predict import add_class
from vl2v.runs.predictions import FILE

from .pages import Written


def contents(folder: Path) -> dict[str, str]:
    """Return a hash of every file in a folder; SQLite's own, which come and go with a reader, apart."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(("-shm", "-wal")))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def command(*words: object) -> str:
    """Return what a command printed, which must have done what it was told."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.output


@pytest.fixture(params=["as distill left it", "with a class added", "without its predictions", "with a wrong checksum"])
def run(request: pytest.FixtureRequest, of_run: Written, tmp_path: Path) -> Path:
    folder = shutil.copytree(of_run.folder, tmp_path / "run")
    file = folder / FILE
    if request.param == "with a class added":
        add_class(folder, "star", store=of_run.store)
    elif request.param == "without its predictions":
        file.unlink()
    elif request.param == "with a wrong checksum":
        file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    return folder


def test_commands_that_read_a_run_leave_its_folder_as_it_is(
    run: Path, of_run: Written, shapes: Path, tmp_path: Path
) -> None:
    before, store = contents(run), ["--store", of_run.store]
    image = next((shapes / "paint" / "ball").iterdir())
    readers = [
        ["evaluate", run, *store],
        ["evaluate", run, "--json", *store],
        ["evaluate", run, "--data", shutil.copytree(shapes, tmp_path / "elsewhere"), *store],
        ["predict", run, image, "--json"],
        ["classes", "list", run],
        ["bill", run, *store],
        ["report", run, "--out", tmp_path / "report.html", *store],
        ["push", run, "me/student", "--dry-run"],
    ]
    for words in readers:
        command(*words)
        assert contents(run) == before, words
    command("report", run, *store)
    assert contents(run).items() - before.items() == {
        ("report.html", hashlib.sha256((run / "report.html").read_bytes()).hexdigest())
    }


@pytest.mark.parametrize("damaged", [False, True])
def test_commands_that_read_a_benchmark_leave_its_folder_as_it_is(
    damaged: bool, of_benchmark: Written, tmp_path: Path
) -> None:
    folder = shutil.copytree(of_benchmark.folder, tmp_path / "bench")
    shutil.rmtree(folder / "claims")
    work = WorkList(folder)
    job = next(job for job in work.shown() if job.method == "erm")
    if damaged:
        file = work.folder_of(job) / FILE
        file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    else:
        (work.folder_of(job) / "seconds.json").unlink()  # a job that is still to be done
    before = contents(folder)
    readers = [
        ["benchmark", "status", folder],
        ["benchmark", "table", folder],
        ["benchmark", "table", folder, "--format", "json", "--metric", "in_split"],
        ["report", folder, "--out", tmp_path / "report.html"],
        ["evaluate", work.folder_of(work.jobs()[-1]), "--store", folder / "store"],
    ]
    for words in readers:
        result = command(*words)
        assert contents(folder) == before, words
        assert not damaged or words[1] != "status" or f"can't be read: {job.name}" in result
