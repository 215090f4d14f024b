"""The report of a benchmark: its figures are the table's, and each can be traced to a run folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from jinja2 import Environment, PackageLoader
from safetensors.numpy import load_file

from vl2v.benchmark.results import mean_and_error, of, results
from vl2v.benchmark.table import as_table, runs_of
from vl2v.benchmark.worklist import WorkList
from vl2v.errors import RunError
from vl2v.evaluation.compare import lead
from vl2v.report import charts
from vl2v.report.charts import Chart, Series, axis
from vl2v.report.page import write_report
from vl2v.runs.predictions import Predictions

from .pages import Page, Written


@pytest.fixture
def page(of_benchmark: Written) -> Page:
    return Page(of_benchmark.html)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def test_its_table_is_the_benchmarks(of_benchmark: Written, page: Page) -> None:
    table = as_table(results(WorkList(of_benchmark.folder)))
    assert page.tables["Accuracy by method and unseen domain"] == [table.heads, *table.rows]
    assert all(note in page.words for note in table.notes)


def test_every_run_is_listed_with_its_folder(of_benchmark: Written, page: Page) -> None:
    found = results(WorkList(of_benchmark.folder))
    rows = {row["folder"]: row for row in page.rows("Every run")}
    assert rows.keys() == {result.folder.name for result in found} and len(rows) == 10
    for result in found:
        row = rows[result.folder.name]
        assert (row["accuracy %"], row["seen %"]) == (percent(result.accuracy), percent(result.seen))
        assert (row["method"], row["student"], row["seed"]) == (result.method, result.student, str(result.seed))
        assert (of_benchmark.folder / "jobs" / row["folder"] / "predictions.safetensors").is_file()


def test_leads_have_the_intervals_of_the_comparison(of_benchmark: Written, page: Page) -> None:
    found = results(WorkList(of_benchmark.folder))
    rows = {row["method"]: row["lead, points"] for row in page.rows("Leads")}
    assert len(rows) == 2
    for student in ("test_efficientnet", "test_resnet"):
        runs = {method: runs_of(of(found, student=student, method=method)) for method in ("adip", "erm")}
        ahead = lead(runs["adip"], runs["erm"])
        assert ahead is not None
        mean, low, high = (f"{100 * value:+.1f}" for value in (ahead.mean, ahead.low, ahead.high))
        assert rows[f"adip, {student}"] == f"{mean} {low} to {high}"


def test_prices_are_minutes_sizes_and_queries(of_benchmark: Written, page: Page) -> None:
    work = WorkList(of_benchmark.folder)
    found = results(work)
    sizes = {x["series"]: [] for x in page.rows("Figures of Accuracy against size")}
    for row in page.rows("Figures of Accuracy against size"):
        sizes[row["series"]].append(float(row["million parameters"]))
    assert sizes.keys() == {"erm", "adip"} and all(len(set(each)) == 2 for each in sizes.values())
    weights = load_file(of(found, student="test_resnet", method="erm")[0].folder / "student" / "student.safetensors")
    count = sum(value.size for name, value in weights.items() if "running" not in name and "tracked" not in name)
    assert any(abs(size - count / 1e6) < 1e-3 for size in sizes["erm"])
    (fewer, everything) = page.rows("Figures of Accuracy against queries")
    label = "images queried"
    assert (fewer["series"], fewer[label], everything[label]) == ("adip, test_efficientnet", "12", "58")
    mean = mean_and_error(of(found, student="test_efficientnet", method="adip"))[0]
    assert float(everything["accuracy on unseen domains, %"]) == pytest.approx(100 * mean, abs=0.05)
    assert len(page.rows("Figures of Accuracy against minutes")) == 4


def test_classes_and_disagreements_are_those_of_the_predictions(of_benchmark: Written, page: Page) -> None:
    found = results(WorkList(of_benchmark.folder))
    teacher = Predictions.load(of(found, method="zero-shot")[0].folder)
    paint = teacher["domain"] == teacher.domains.index("paint")
    right = (teacher["label"] == teacher["answer"])[paint]
    heat = {row[""]: row for row in page.rows("shapes")}
    for number, name in enumerate(teacher.classes):
        share = right[teacher["label"][paint] == number].mean()
        assert heat["teacher, zero-shot"][name] == f"{100 * share:.0f}"
    (row,) = page.rows("Agreement of student and teacher")
    run = Predictions.load(of_benchmark.folder / "jobs" / row["run"])
    mine = run["domain"] == run.domains.index("paint")
    student = (run["label"] == run["answer"])[mine]
    np.testing.assert_array_equal(run["index"][mine], teacher["index"][paint])
    counts = [int(x) for x in list(row.values())[1:5]]
    assert counts == [
        (a & b).sum() for a, b in ((student, right), (student, ~right), (~student, right), (~student, ~right))
    ]


def test_thumbnails_are_there_only_with_the_images(of_benchmark: Written, shapes: Path, tmp_path: Path) -> None:
    count = len(re.findall(r"<img src=.data:image/webp", of_benchmark.html))
    assert count > 0
    jobs = shutil.copytree(of_benchmark.folder, tmp_path / "bench") / "jobs.jsonl"
    jobs.write_text(jobs.read_text().replace(str(shapes), str(tmp_path / "away")))
    html = write_report(jobs.parent).read_text()
    assert "<img" not in html and Page(html).rows("Every run") == Page(of_benchmark.html).rows("Every run")


def test_settings_are_those_of_all_runs_and_those_of_a_method(page: Page) -> None:
    assert "stages.distill.steps = 3" in page.words and "stages.finetune.steps = 3" in page.words
    assert page.words.count("student.image_size = 32") == 1
    assert 'teacher.spec = "recorded:recording"' in page.words


def test_a_benchmark_without_a_student_has_no_report(tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text("")
    with pytest.raises(RunError, match="no student is trained yet"):
        write_report(tmp_path)


def test_more_methods_than_colours_differ_in_dashes_and_marks() -> None:
    series = [Series(f"m{n}", n, [(0.0, n, f"start of m{n}"), (1.0, n, f"end of m{n}")]) for n in range(18)]
    chart = Chart("Training", axis("steps", [0, 1]), axis("accuracy", [0, 17]), series)
    environment = Environment(loader=PackageLoader("vl2v.report"), autoescape=True)
    environment.globals.update(width=420, height=260, left=64, right=14, top=10, bottom=40, number=charts.number)
    html = environment.from_string('{% import "macros.html" as m with context %}{{ m.draw(c) }}').render(c=chart)
    drawn = re.findall(r'<g class="(series[^"]*)" style="(--k: var\(--c\d\))">(.*?)</g>', html, re.S)
    styles = {(style, colour, "circle" if "<circle" in marks else "path") for style, colour, marks in drawn}
    assert len(drawn) == 18 and len(styles) == 18
    assert len(set(re.findall(r'<li style="(--k: var\(--c\d\))"><svg class="(series key[^"]*)"', html))) == 18
