"""The benchmark: every job once, under a name that says what it is; the figures of single runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import vl2v
from bench import accuracies, copied
from little import Here
from vl2v.benchmark.engine import Local, engine_named
from vl2v.benchmark.grid import Grid, methods_for
from vl2v.benchmark.results import results
from vl2v.benchmark.run import plan, run
from vl2v.benchmark.worklist import WorkList
from vl2v.cli.app import app
from vl2v.errors import ConfigError, DataError, RunError, StudentError
from vl2v.runs.settings import resolve
from vl2v.tree import merge


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


def test_later_seeds_can_be_run_alone(grid: Grid) -> None:
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


def test_the_last_layer_goes_by_the_same_rule_for_all(grid: Grid) -> None:
    asked = merge(grid.settings, {"train": {"head": "refit"}})
    for some, head in (
        (replace(grid, methods=["erm", "adip"]), "auto"),
        (replace(grid, methods=["erm", "adip"], settings=asked), "refit"),
        (replace(grid, methods=["erm", "adip"], preset="paper"), "method"),
    ):
        assert {resolve(job.settings).train.head for job in some.jobs()} == {head}


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
    with pytest.raises(ConfigError, match="choose one of default, paper"):
        list(replace(grid, preset="papers").jobs())


def test_a_black_box_is_refused_by_methods_that_would_query_it_online(grid: Grid, tmp_path: Path) -> None:
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


def test_a_failed_job_keeps_its_log_and_stops_nothing(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, methods=["rise", "erm"], seeds=1), tmp_path)  # rise wants texts that aren't recorded
    events: list[dict[str, Any]] = []
    run(bench, engine=Here(), notify=events.append)
    assert [(e["event"]) for e in events if e["event"] != "progress"] == ["started", "failed", "started", "done"]
    (failed,) = bench.missing
    assert failed.method == "rise" and "'a chalk of a " in (bench.work.failure(failed) or "")
    assert "Traceback" in (bench.work.folder_of(failed) / "log.txt").read_text()
    result = CliRunner().invoke(app, ["benchmark", "status", str(tmp_path)]).stdout
    assert "2 jobs: 1 done, 0 running, 1 failed, 0 waiting" in result and "'a chalk of a " in result


def test_a_student_that_cant_be_had_is_refused_before_the_teacher_is_queried(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, students=["test_efficientnet", "no_such_model"]), tmp_path)
    with pytest.raises(StudentError, match="timm has no such model"):
        run(bench, engine=Here())
    assert not (tmp_path / "store").exists() and len(bench.missing) == len(bench.jobs)


def test_what_a_black_box_cant_teach_is_refused_before_it_is_queried(grid: Grid, tmp_path: Path) -> None:
    online = merge(grid.settings, {"teacher": {"online": True}})
    for wanted in (replace(grid, students=["test_efficientnet", "teacher"]), replace(grid, settings=online)):
        with pytest.raises(ConfigError, match="is a black box, and "):
            run(plan(wanted, tmp_path), engine=Here())  # the zero-shot row, which it can do, comes first
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
        "local:1",
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
    assert "choose one of default, paper" in str(CliRunner().invoke(app, [*command, "--preset", "papers"]).exception)
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0 and "4 jobs: 4 were finished before, 0 are missing" in again.output
    for form, sign in (("latex", r"\toprule"), ("html", "<table>"), ("csv", "student,method,ink,paint,mean")):
        result = CliRunner().invoke(app, ["benchmark", "table", str(tmp_path / "bench"), "--format", form])
        assert result.exit_code == 0 and sign in result.stdout
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


def test_mistakes_are_refused_before_anything_runs(grid: Grid, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="steel"):
        plan(replace(grid, targets=["steel"]), tmp_path / "a")
    with pytest.raises(ConfigError, match="'adib': unknown"):
        methods_for(["adib"], "tiny")
    with pytest.raises(ConfigError, match="needs the teacher's weights"):
        methods_for(["sd"], "recorded:x")
    assert methods_for(["erm", "kd"], "a plugin's that can't be opened:x") == ["erm", "kd"]
    assert "sd" not in methods_for(["all"], "jina:m") and "sd" in methods_for(["all"], "open_clip:m")
    with pytest.raises(ConfigError, match="choose one of local"):
        engine_named("slurm")
    with pytest.raises(RunError, match="not a benchmark folder"):
        WorkList(tmp_path).jobs()
    with pytest.raises(ConfigError, match=r"stages.distill = 5: must be a table"):
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
def test_settings_of_the_wrong_shape_are_refused(pair: str, words: str, shapes: Path, tmp_path: Path) -> None:
    command = ["benchmark", "--data", str(shapes), "--teacher", "tiny", "--out", str(tmp_path), "--set", pair]
    wrong = CliRunner().invoke(app, command)
    assert isinstance(wrong.exception, ConfigError) and words in str(wrong.exception)


def test_another_dataset_under_the_same_name_is_refused(grid: Grid, shapes: Path, tmp_path: Path) -> None:
    plan(grid, tmp_path / "bench")
    fewer = tmp_path / "fewer.txt"
    fewer.write_text(f"{next((shapes / 'ink').rglob('*.png')).relative_to(shapes).as_posix()}\n")
    changed = replace(grid, settings={**grid.settings, "data": {"workers": 0, "exclude": str(fewer)}})
    with pytest.raises(RunError, match="shapes had 108 images when this benchmark began and has 107 now"):
        plan(changed, tmp_path / "bench")


def test_the_adapted_teacher_teaches_the_methods_that_it_can(grid: Grid, tmp_path: Path) -> None:
    settings = merge(grid.settings, {"teacher": {"adapt": "auto"}})
    bench = plan(replace(grid, methods=["zero-shot", "erm", "kd"], seeds=1, settings=settings), tmp_path)
    run(bench, engine=Here())
    assert [result.method for result in results(bench.work)] == ["zero-shot", "erm", "kd"]
    adapted = {job.method: resolve(job.settings).teacher.adapt for job in bench.jobs}
    assert adapted == {"zero-shot": "off", "erm": "off", "kd": "auto"}
