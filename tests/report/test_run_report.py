"""The report of a run: its figures are the run's, it is complete in itself, and names are names."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from little import quick_settings
from vl2v.cli.app import app
from vl2v.errors import RunError
from vl2v.evaluation.compare import wilson
from vl2v.evaluation.metrics import measure
from vl2v.report.charts import calibration, coverage
from vl2v.report.evaluated_run import open_evaluated
from vl2v.report.page import lead, write_report
from vl2v.runs.adapting import BEFORE, adapt
from vl2v.runs.evaluate import evaluate
from vl2v.runs.folder import Run
from vl2v.runs.predict import add_class
from vl2v.runs.predictions import Predictions
from vl2v.runs.settings import without_paths
from vl2v.runs.train import distill
from vl2v.session import Session

from .pages import NASTY, Page, Written


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def test_its_figures_are_the_evaluations(of_run: Written) -> None:
    evaluation = evaluate(of_run.run, store=of_run.store)
    rows = {row["domain"]: row for row in Page(of_run.html).rows("Accuracy by domain")}
    assert rows.keys() == {"paint", "chalk", "ink"}
    for who, head in (("student", "student %"), ("teacher, zero-shot", "teacher %")):
        assert len(evaluation.of(who)) == 3  # the teacher was asked about paint, too, after the run
        for row in evaluation.of(who):
            shown, m = rows[row.domain], row.metrics
            low, high = wilson(round(m.accuracy * m.images), m.images)
            assert shown[head] == f"{percent(m.accuracy)} {percent(low)} to {percent(high)}"
            assert shown["images"] == str(m.images)
            if who == "student":
                assert (shown["balanced %"], shown["ECE %"]) == (percent(m.balanced_accuracy), percent(m.ece))
                assert shown["known %"] == percent(m.known)


def test_a_sentence_says_whether_it_is_good_enough(of_run: Written) -> None:
    words, evaluated = Page(of_run.html).words, open_evaluated(of_run.run, Session(of_run.store))
    unseen = evaluated.unseen
    (sentence,) = re.findall(r"On unseen domains it is right about .*\.\n", words)
    assert f"{percent(evaluated.right[unseen].mean())}% of {unseen.sum()} images" in sentence
    assert "most frequent class (33.3%)" in sentence and " its teacher (" in sentence
    assert "it fails most on" in sentence or "no class is surely worse" in sentence
    assert "unseen domains pooled" in words


def luminance(colour: np.ndarray) -> float:
    """Return WCAG's relative luminance of a colour, 0 to 1."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_figures_in_shaded_cells_can_be_read(of_run: Written) -> None:
    style = of_run.html.split("<style>")[1].split("</style>")[0]
    (most,) = re.findall(r"color-mix\(in srgb, var\(--heat\) calc\(var\(--v\) \* (\d+)%\), var\(--card\)\)", style)
    schemes = re.findall(r"--card: (#\w+); --ink: (#\w+);.*?--heat: (#\w+);", style, re.S)
    assert len(schemes) == 2  # light and dark
    for scheme in schemes:
        wide = ("".join(2 * sign for sign in name[1:]) if len(name) == 4 else name[1:] for name in scheme)
        card, ink, heat = (np.array([int(name[at : at + 2], 16) / 255 for at in (0, 2, 4)]) for name in wide)
        for shade in np.linspace(0, int(most) / 100, 20):
            dark, light = sorted((luminance(ink), luminance(shade * heat + (1 - shade) * card)))
            assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize("which", ["of_run", "of_benchmark"])
def test_what_scrolls_is_reached_by_the_keyboard(which: str, request: pytest.FixtureRequest) -> None:
    html = request.getfixturevalue(which).html
    for tag in re.findall(r"<pre[^>]*>|<div class=.(?:wide|inner)[^>]*>", html):
        assert 'tabindex="0"' in tag and "aria-label=" in tag
    assert all("print" in tag for tag in re.findall(r"<details(?! class=.figures)[^>]*>", html))  # open on paper


def test_an_interval_is_possible_or_cant_be_stated() -> None:
    assert lead(0.02, -0.01, 0.05) == ("+2.0", "-1.0 to +5.0")
    assert lead(0.9, 0.7, 1.4) == ("+90.0", "+70.0 to +100.0")
    for low, high in ((-1.498, 1.919), (float("nan"), float("nan")), (-0.6, 0.5)):
        assert lead(0.2, low, high)[1] == "too few runs to tell"


def test_classes_and_confusions_are_those_of_the_predictions(of_run: Written) -> None:
    page, kept = Page(of_run.html), Predictions.load(of_run.folder)
    unseen = kept["domain"] == kept.domains.index("paint")
    labels, answers = kept["label"][unseen], kept["answer"][unseen]
    (matrix,) = (label for label in page.tables if label.startswith("Rows: what an image shows"))
    cells = {row[""]: row for row in page.rows(matrix)}
    for number, name in enumerate(kept.classes):
        for other, said in enumerate(kept.classes):
            count = int(((labels == number) & (answers == other)).sum())
            assert cells[name][said] == (str(count) if count else "")
    for row in page.rows("Accuracy by class"):
        mine = labels == kept.classes.index(row["class"])
        assert row["student %"] == percent((answers == labels)[mine].mean())


def test_it_tells_what_was_trained_and_what_it_cost(of_run: Written) -> None:
    words = Page(of_run.html).words
    for result in (
        "adip (align: 20 steps, learning rate 0.01, 8 a domain; distill: 6 steps, learning rate 0.001, 4 a domain)",
        "recorded:shapes-teacher",
        "58 training images, and 3 texts",  # of 2 domains of 36, 7 of each validate
        "nothing: the teacher costs nothing",
        "vl2v predict adip IMAGE",
        'vl2v.load("adip")',
        "vl2v classes add adip NAME  # one more class",
        'method = "adip"',
    ):
        assert result in words
    assert Page(of_run.html).words.count("Selected by") == 1


def test_calibration_is_measured_as_the_evaluation_does() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(400, 5)) * rng.choice([1, 4, 200], (400, 1)))
    labels = torch.from_numpy(rng.integers(0, 5, 400))
    probability, answer = logits.softmax(-1).max(-1)
    assert (probability == 1).any()  # a bin of its own
    found = calibration(probability.numpy(), (answer == labels).numpy())
    assert found.ece == pytest.approx(measure(logits, labels).ece, abs=1e-6)
    assert found.counts.sum() == 400


def test_coverage_is_of_the_surest_predictions() -> None:
    found = coverage(np.array([0.2, 0.9, 0.6, 0.4]), np.array([False, True, True, False]))
    assert found == [(0.9, 0.25, 1.0), (0.6, 0.5, 1.0), (0.4, 0.75, pytest.approx(2 / 3)), (0.2, 1.0, 0.5)]


@pytest.mark.parametrize("which", ["of_run", "of_nasty", "of_benchmark"])
def test_a_report_is_one_file_that_refers_to_nothing_and_shows_no_paths(
    which: str, request: pytest.FixtureRequest, shapes: Path, recording: Path
) -> None:
    written: Written = request.getfixturevalue(which)
    html = written.html
    for tag, name, value in Page(html).links:
        assert value.startswith(("data:", "#")), f"{tag} {name}={value[:80]}"
    assert not re.search(r"url\((?!data:|\$\{all)|@import|<(iframe|object|embed|base)\b", html)
    for place in (shapes.parent, recording.parent, written.folder.parent, written.store, Path.home(), Path.cwd()):
        assert str(place) not in html
    assert written.page.stat().st_size < 1_000_000


def test_names_that_are_markup_are_shown_as_text(of_nasty: Written) -> None:
    html, words = of_nasty.html, Page(of_nasty.html).words
    for name in (*NASTY.values(), "<u>paint", "<em>run"):
        assert name in words
    for tag in ("<b>box", "<u>", "<i>data", "<em>run", "<script>alert"):
        assert tag not in html
    assert "none: nothing was queried" in words and "teacher %" not in words


def test_a_run_that_saved_no_predictions_is_evaluated_again(of_run: Written, tmp_path: Path) -> None:
    old = shutil.copytree(of_run.folder, tmp_path / "old")
    (old / "predictions.safetensors").unlink()
    page = Page(write_report(old, tmp_path / "page.html", store=of_run.store).read_text())
    assert page.tables["Accuracy by domain"] == Page(of_run.html).tables["Accuracy by domain"]
    assert "everything here was measured anew" in page.words and "measured anew" not in of_run.html


def test_a_class_that_was_added_competes_in_the_report(of_run: Written, tmp_path: Path) -> None:
    wider = shutil.copytree(of_run.folder, tmp_path / "wider")
    add_class(wider, "star", store=of_run.store)
    page = Page(write_report(wider, store=of_run.store).read_text())
    evaluation = evaluate(wider, store=of_run.store)
    assert evaluation.classes == ("ball", "box", "cone", "star")
    rows = {row["domain"]: row for row in page.rows("Accuracy by domain")}
    for row in evaluation.of():
        assert rows[row.domain]["ECE %"] == percent(row.metrics.ece)


def test_the_weights_that_a_student_started_from_are_those_that_the_run_saved(of_run: Written, tmp_path: Path) -> None:
    folder = shutil.copytree(of_run.folder, tmp_path / "run")
    config, card = folder / "config.toml", folder / "student" / "student.json"
    assert json.loads(card.read_text())["about"]["weights"] == "random"
    assert "weights at the start: random" in Page(of_run.html).words
    config.write_text(config.read_text().replace('weights = "none"', 'weights = "auto"'))
    for saved, words in (
        ("", "auto (an earlier version didn't save which those were)"),
        ("timm's a/b", "auto: timm's a/b"),
    ):
        tree = json.loads(card.read_text())
        tree["about"]["weights"] = saved
        card.write_text(json.dumps(tree))
        page = write_report(folder, tmp_path / "page.html", store=of_run.store)
        assert f"weights at the start: {words}" in Page(page.read_text()).words


def test_images_that_have_changed_are_measured_again(of_run: Written, shapes: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shapes, tmp_path / "shapes")
    folder = shutil.copytree(of_run.folder, tmp_path / "run")
    config = folder / "config.toml"
    config.write_text(config.read_text().replace(str(shapes), str(data)))
    kept = folder / "predictions.safetensors"
    before = kept.read_bytes()
    open_evaluated(Run(folder), Session(of_run.store))
    assert kept.read_bytes() == before  # the same images elsewhere
    shutil.copy(data / "paint" / "box" / "00.png", data / "paint" / "ball" / "00.png")
    evaluated = open_evaluated(Run(folder), Session(of_run.store))
    first = evaluated.predictions["index"] == evaluated.dataset.paths.index("paint/ball/00.png")
    twin = evaluated.predictions["index"] == evaluated.dataset.paths.index("paint/box/00.png")
    assert (
        kept.read_bytes() == before
        and evaluated.predictions["probability"][first] == evaluated.predictions["probability"][twin]
    )


def test_paths_are_cut_to_their_last_part_and_nothing_else_is() -> None:
    tree = {
        "data": {"path": Path("/home/me/secret/PACS"), "target": ["art/painting"]},
        "teacher": {"spec": "recorded:/home/me/secret/answers"},
        "others": ["open_clip:ViT-B-16/openai", "hf:user/repo", "open_clip:ViT-B-16//home/me/w.pt", "~/secret/w.pth"],
        "windows": r"recorded:C:\Users\me\answers",
        "lr": 1e-3,
    }
    assert without_paths(tree) == {
        "data": {"path": "PACS", "target": ["art/painting"]},
        "teacher": {"spec": "recorded:answers"},
        "others": ["open_clip:ViT-B-16/openai", "hf:user/repo", "open_clip:w.pt", "w.pth"],
        "windows": "recorded:answers",
        "lr": 1e-3,
    }


def test_the_command_prints_where_it_is_and_how_large(of_run: Written, tmp_path: Path) -> None:
    out = tmp_path / "run.html"
    done = CliRunner().invoke(app, ["report", str(of_run.folder), "--out", str(out), "--store", str(of_run.store)])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{out}: {out.stat().st_size / 1e6:.2f} MB\n"
    assert Page(out.read_text()).words == Page(of_run.html).words


def test_what_has_no_report_is_named(of_run: Written, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="neither a run folder"):
        write_report(tmp_path)
    (tmp_path / "config.toml").write_text((of_run.folder / "config.toml").read_text())
    with pytest.raises(RunError, match="no student yet"):
        write_report(tmp_path, store=of_run.store)


def test_a_student_with_a_linear_head_has_a_map_of_its_own(
    shapes: Path, recording: Path, of_run: Written, tmp_path: Path
) -> None:
    run = distill(quick_settings(shapes, recording, "kd"), tmp_path / "kd", store=of_run.store)
    words = Page(write_report(run.folder, store=of_run.store).read_text()).words
    assert "of what each model makes of an image" in words and "mean cosine" not in words
    assert "vl2v classes add" not in words and "vl2v export kd --int8" in words


def test_an_adapted_run_is_shown_before_and_after(of_run: Written, shapes: Path, tmp_path: Path) -> None:
    store = shutil.copytree(of_run.store, tmp_path / "store")
    new = shutil.copytree(shapes / "paint", tmp_path / "new")
    found = adapt(of_run.folder, new, tmp_path / "adapted", select=8, closed_form=True, store=store)
    assert found.run is not None and found.run.evaluation is not None and of_run.run.evaluation is not None
    page = Page(write_report(found.run.folder, store=store).read_text())
    rows = {row["domain"]: row for row in page.rows("Accuracy by domain")}
    assert rows.keys() == {"paint", "chalk", "ink"}
    for head, evaluation in (("before %", of_run.run.evaluation), ("student %", found.run.evaluation)):
        for row in evaluation.of():
            m = row.metrics
            low, high = wilson(round(m.accuracy * m.images), m.images)
            assert rows[row.domain][head] == f"{percent(m.accuracy)} {percent(low)} to {percent(high)}"
    assert "adip, adapted" in page.words
    assert "measured on paint, of which it saw no label." in page.words and "never saw" not in page.words
    assert "“Before” is the run that this one was adapted from." in page.words
    before = Page(of_run.html)
    assert "before %" not in before.rows("Accuracy by domain")[0] and "“Before”" not in before.words
    assert "measured on paint, which it never saw." in before.words
    missing = [row for row in found.run.evaluation.rows if (row.who, row.domain) != (BEFORE, "ink")]
    found.run.save_evaluation(replace(found.run.evaluation, rows=tuple(missing)))
    rows = Page(write_report(found.run.folder, store=store).read_text()).rows("Accuracy by domain")
    assert {row["domain"] for row in rows if row["before %"] == "not measured"} == {"ink"}


def test_a_run_without_an_unseen_domain_has_a_report(quick: dict[str, object], tmp_path: Path) -> None:
    quick["data"] = {**quick["data"], "target": []}  # type: ignore[dict-item]
    run = distill(quick, tmp_path / "run", store=tmp_path / "store")
    assert isinstance(run, Run)
    words = Page(write_report(run.folder, store=tmp_path / "store").read_text()).words
    assert "No domain was left out of training" in words and "seen domains' validation images" in words
