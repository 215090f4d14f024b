"""What a table shows: nothing unproven, nothing mixed, nothing damaged."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import vl2v
from bench import accuracies, copied, finish, flip
from little import DOMAINS, Here
from vl2v.benchmark.grid import Grid
from vl2v.benchmark.results import Result, gather, of, of_same_images, results
from vl2v.benchmark.run import plan, run
from vl2v.benchmark.table import as_table
from vl2v.benchmark.worklist import Corruptions, WorkList
from vl2v.cli.app import app
from vl2v.data import open_dataset
from vl2v.data.corrupted import corrupt_dataset
from vl2v.errors import RunError
from vl2v.evaluation.compare import Marks
from vl2v.methods import LOOP, METHODS
from vl2v.report.bench import Bench
from vl2v.report.benchmark import image_reader
from vl2v.runs.evaluate import evaluate
from vl2v.runs.predictions import Predictions
from vl2v.runs.query import embed
from vl2v.tree import merge


def test_the_table_is_bold_only_where_the_lead_is_sure(calm: WorkList) -> None:
    found = [result for result in results(calm) if result.method != "zero-shot"]
    rng = np.random.default_rng(0)
    right = {"erm": 0.5, "adip": 0.9}
    clear = [replace(r, marks=Marks(np.arange(1000), rng.random(1000) < right[r.method])) for r in found]
    close = [replace(r, marks=Marks(np.arange(1000), rng.random(1000) < 0.7)) for r in found]
    assert [as_table(clear).rows[i][1] for i in as_table(clear).bold] == ["adip"]
    assert not as_table(close).bold


def test_a_teacher_without_some_predictions_is_compared_on_the_others(grid: Grid, shapes: Path, tmp_path: Path) -> None:
    known = {"teacher": {"select": "known"}, "published": {"target_in_split": True}}
    bench = plan(replace(grid, methods=["zero-shot", "erm"], settings=merge(grid.settings, known)), tmp_path / "bench")
    unknown = tmp_path / "unknown.txt"
    balls = sorted((shapes / "paint/ball").iterdir())
    unknown.write_text("".join(f"{file.relative_to(shapes).as_posix()}\n" for file in balls))
    embedded = {"data": {"path": str(shapes), "exclude": str(unknown)}, "teacher": grid.settings["teacher"]}
    embed(embedded, store=bench.work.folder / "store")
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
    result = CliRunner().invoke(app, ["benchmark", "table", str(work.folder)])
    assert "jobs in" in result.stderr and "other settings" in result.stderr
    plan(grid, work.folder)  # planned again, the first ones stand there again
    assert accuracies(work) == before
    wrong = CliRunner().invoke(app, ["benchmark", "table", str(work.folder), "--reference", "kd"])
    assert "--reference kd: not in this table" in str(wrong.exception)


def test_folders_stand_in_one_table(calm: WorkList, grid: Grid, tmp_path: Path) -> None:
    (path,) = grid.data.values()
    other = plan(replace(grid, data={"drawn": path}, methods=["erm", "adip"]), tmp_path)
    run(other, engine=Here())
    both = ["benchmark", "table", str(calm.folder), str(tmp_path)]
    result = CliRunner().invoke(app, [*both, "--format", "csv"])
    header, *lines = csv.reader(result.stdout.splitlines())
    rows = {line[1]: dict(zip(header, line, strict=False)) for line in lines if len(line) == len(header)}
    expected = as_table([*results(calm), *results(other.work)])
    assert {"drawn paint", "shapes paint", "mean"} <= set(header) == set(expected.heads)
    assert rows["adip"]["wins/losses"] == expected.rows[2][expected.heads.index("wins/losses")]
    assert rows["zero-shot"]["drawn paint"] == rows["zero-shot"]["mean"] == ""  # not measured there: no mean
    assert rows["adip"]["mean"] != ""
    wrong = CliRunner().invoke(app, [*both, str(calm.folder)])
    assert "is in another of the folders, too; leave one of them out" in str(wrong.exception)
    longer = plan(replace(grid, methods=["kd"], steps=4), tmp_path / "longer")
    run(longer, engine=Here())
    wrong = CliRunner().invoke(app, [*both, str(tmp_path / "longer")])
    assert "shapes has other images or settings" in str(wrong.exception)


def test_status_counts_nothing_that_no_command_waits_for(calm: WorkList, grid: Grid, tmp_path: Path) -> None:
    work = copied(calm, tmp_path)
    plan(replace(grid, steps=4), work.folder)  # planned, then given up:
    plan(grid, work.folder)
    result = CliRunner().invoke(app, ["benchmark", "status", str(work.folder)]).stdout
    assert "6 jobs: 6 done, 0 running, 0 failed, 0 waiting" in result and "4 more jobs have other settings" in result


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


def test_students_are_measured_on_corrupted_images_without_training_anew(
    calm: WorkList, grid: Grid, tmp_path: Path
) -> None:
    work = copied(calm, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in work.folder.rglob("student.safetensors")}
    one = replace(grid, seeds=1)
    bench = plan(one, work.folder, Corruptions(("fog", "pixelate"), 3))
    assert {job.method for job in bench.missing} == {"erm", "adip"}  # the teacher isn't queried about them
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
    result = CliRunner().invoke(app, ["benchmark", "table", str(work.folder), "--metric", "corrupted"])
    assert "under corruptions" in result.stdout and f"| {100 * found['erm'].corrupted:.1f} |" in result.stdout
    more = plan(one, work.folder, Corruptions(("fog", "pixelate", "contrast"), 3))
    assert [more.work.unmeasured(job) for job in more.missing] == [["contrast"], ["contrast"]]
    evaluated: list[str] = []
    run(more, engine=Here(), notify=lambda event: evaluated.append(event.get("words", "")) if "what" in event else None)
    assert {words for words in evaluated if words.endswith("-3")} == {"contrast-3"}  # the others aren't measured again
    assert not more.missing and not plan(one, work.folder).missing
    others = replace(one, data={"drawn": grid.data["shapes"]}, methods=["erm"])
    plan(others, tmp_path / "others", Corruptions(("fog",), 5))
    both = [str(work.folder), str(tmp_path / "others")]
    result = CliRunner().invoke(app, ["benchmark", "table", *both, "--metric", "corrupted"])
    assert "differ in corruptions or severity" in str(result.exception)


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
    assert image_reader(bench, one) is None and image_reader(bench, other) is not None  # only its own


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


def test_a_table_says_what_it_cant_know(calm: WorkList, tmp_path: Path) -> None:
    work = copied(calm, tmp_path)
    result = CliRunner().invoke(app, ["benchmark", "table", str(work.folder), "--metric", "corrupted"])
    assert isinstance(result.exception, RunError) and "nothing was measured under" in str(result.exception)
    for job in work.jobs():
        file = work.folder_of(job) / "evaluation.json"
        tree = json.loads(file.read_text())
        tree["notes"].append("leakage: 2 images of unseen domains are among those to learn from, too")
        file.write_text(json.dumps(tree))
    result = CliRunner().invoke(app, ["benchmark", "table", str(work.folder)])
    assert result.stdout.count("shapes paint: leakage: 2 images") == 1


def cut(file: Path) -> None:
    """Spoil a file as a full disk does."""
    file.write_bytes(file.read_bytes()[:-100])


def garble(file: Path) -> None:
    """Spoil the head of a file."""
    data = bytearray(file.read_bytes())
    data[60:160] = bytes(100)
    file.write_bytes(data)


@pytest.mark.parametrize("spoil", [cut, flip, garble, Path.unlink])
@pytest.mark.parametrize("method", ["zero-shot", "erm"])
def test_a_job_whose_predictions_cant_be_read_is_left_out_and_done_again(
    spoil: Callable[[Path], None], method: str, calm: WorkList, grid: Grid, tmp_path: Path
) -> None:
    work = copied(calm, tmp_path)
    job = next(job for job in work.jobs() if job.method == method and job.seed == 1)
    seconds, before = work.seconds(job), accuracies(work)
    spoil(work.folder_of(job) / "predictions.safetensors")
    for _ in range(2):  # it is named until it is done again
        result = CliRunner().invoke(app, ["benchmark", "table", str(work.folder)])
        assert result.exit_code == 0 and f"{job.name}: its predictions can't be read" in result.stderr
    result = CliRunner().invoke(app, ["benchmark", "status", str(work.folder)])
    assert "5 done, 0 running, 0 failed, 1 waiting" in result.stdout and f"can't be read: {job.name}" in result.stdout
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
        column = table.heads.index(f"against {reference}, 95%")
        assert {row[1]: row[column] for row in table.rows if row[1] in leads} == leads
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
