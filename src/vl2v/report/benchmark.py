"""The report of a benchmark: which method is ahead and by how much, at what price, where, and how surely.

Where its models differ: domains, classes, confidence, images, training.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vl2v.benchmark.results import Result, gather, leakage, mean_and_error, of
from vl2v.benchmark.table import as_table
from vl2v.benchmark.worklist import TEACHERS, Job, Selection, WorkList
from vl2v.errors import DataError, RunError
from vl2v.evaluation.compare import Lead
from vl2v.report.bench import Bench, Model, costs
from vl2v.report.charts import Chart, Heat, Series, Span, axis, calibration, heat
from vl2v.report.page import duration, lead, page, percent, thumbnail
from vl2v.runs.datasets import open_data, usable
from vl2v.runs.evaluate import TEACHER
from vl2v.runs.predictions import content
from vl2v.runs.settings import resolve, without_paths
from vl2v.session import Progress, Session
from vl2v.training.batches import read_image
from vl2v.training.loop import MetricsLog
from vl2v.tree import Tree, flat

SHOWN = 5  # images of each kind of disagreement
ACROSS = 30  # classes beside one another
FEW = 20  # predictions below which a bin of a reliability curve says nothing

Group = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Probabilities [n], and whether each prediction is right."""


def by_domain(bench: Bench) -> Heat:
    """Return the mean accuracy of each model on each unseen domain."""
    rows = [(TEACHER, bench.teachers)] if bench.teachers else []
    rows += [(bench.named(model), bench.results(model)) for model in bench.models]
    shares = [
        [mean_and_error(of(found, dataset=dataset, target=target))[0] for dataset, target in bench.cells]
        for _, found in rows
    ]
    return heat([name for name, _ in rows], [bench.target_name(cell) for cell in bench.cells], np.array(shares))


def by_class(bench: Bench) -> Iterator[tuple[str, Heat]]:
    """Yield for each dataset how often each class of the unseen domains is recognised, the mean over runs.

    The hardest classes come first, at most `ACROSS` in a table.
    """
    for dataset in dict.fromkeys(result.dataset for result in bench.found):
        rows = [(TEACHER, of(bench.teachers, dataset=dataset))]
        rows += [(bench.named(model), of(bench.results(model), dataset=dataset)) for model in bench.models]
        rows = [(name, found) for name, found in rows if found]
        classes = bench.predictions[rows[0][1][0].folder].classes
        shares = np.stack([_recalls(bench, found, len(classes)) for _, found in rows])
        order = np.argsort(shares.mean(0))  # classes without an image, NaN, come last
        parts = np.array_split(order, math.ceil(len(order) / ACROSS))
        for number, part in enumerate(parts, 1):
            words = dataset if len(parts) == 1 else f"{dataset}, part {number} of {len(parts)}"
            names = [classes[index] for index in part]
            yield words, heat([name for name, _ in rows], names, shares[:, part], low=0, high=1)


def _recalls(bench: Bench, found: Sequence[Result], classes: int) -> NDArray[np.float64]:
    """Return the share of each class's images that was predicted correctly, the mean over runs that have any."""
    seen, right = np.zeros((2, len(found), classes))
    for number, result in enumerate(found):
        rows = bench.of_target(result)
        seen[number] = np.bincount(rows["label"], minlength=classes)
        right[number] = np.bincount(rows["label"], weights=rows["label"] == rows["answer"], minlength=classes)
    runs = np.maximum((seen > 0).sum(0), 1)
    return np.where(seen.any(0), (right / np.maximum(seen, 1)).sum(0) / runs, np.nan)


def confidence(bench: Bench) -> dict[str, Any]:
    """Return each model's calibration error, and its reliability on unseen domains, of all runs together."""
    rows, series = [], []
    for number, model in enumerate(bench.models):
        unseen: list[Group] = []
        seen: list[Group] = []
        for result in bench.results(model):
            predictions = bench.predictions[result.folder]
            right, target = predictions.right, predictions.in_domain(result.target)
            for mine, into in ((target, unseen), (~target, seen)):
                if mine.any():
                    into.append((predictions["probability"][mine], right[mine]))
        errors = [percent(float(np.mean([calibration(*part).ece for part in group]))) for group in (unseen, seen)]
        rows.append((bench.named(model), *errors))
        probability, right = (np.concatenate(parts) for parts in zip(*unseen, strict=True))
        found = calibration(probability, right)
        line = [
            (100 * sure, 100 * hit, f"{bench.named(model)}: {count:,} predictions around {sure:.0%}, {hit:.0%} right")
            for count, sure, hit in zip(found.counts, found.confidence, found.accuracy, strict=True)
            if count >= FEW
        ]
        series.append(Series(bench.named(model), number, line))
    diagonal = Series("", "soft", [(0, 0, ""), (100, 100, "")], dashed=True)
    x, y = (axis(words, [0, 100], low=0, high=100) for words in ("probability, %", "share that is right, %"))
    return {"rows": rows, "chart": Chart("Reliability on unseen domains", x, y, [diagonal, *series])}


def disagreements(bench: Bench, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yield for each unseen domain how often the best model and the teacher are right, and where only one is."""
    best = bench.best
    teachers = {(r.dataset, r.target, r.content): bench.of_target(r) for r in bench.teachers}
    for number, cell in enumerate(bench.cells):
        progress("disagreements", number + 1, len(bench.cells), bench.target_name(cell))
        mine = [r for r in bench.results(best) if (*cell, r.content) in teachers and (r.dataset, r.target) == cell]
        if not mine:
            continue
        result = min(mine, key=lambda result: result.seed)
        rows, other_rows = bench.of_target(result), teachers[*cell, result.content]
        predicted = dict(zip(other_rows["index"].tolist(), other_rows["answer"].tolist(), strict=True))
        teacher = np.array([predicted.get(index, -1) for index in rows["index"].tolist()])
        student, other = rows["answer"] == rows["label"], teacher == rows["label"]
        queried = teacher >= 0
        groups = {
            "only the student is right": student & ~other & queried,
            "only the teacher is right": other & ~student,
        }
        images = image_reader(bench, bench.jobs[result.folder])
        yield {
            "name": bench.target_name(cell),
            "counts": [int((student & other).sum()), *(int(group.sum()) for group in groups.values())],
            "wrong": int((queried & ~student & ~other).sum()),
            "run": result.folder.name,
            "images": {words: list(images(group, rows, teacher)) for words, group in groups.items()} if images else {},
        }


def image_reader(bench: Bench, job: Job) -> Any:
    """Return what makes thumbnails of some of a target's images; None where they aren't at hand, or have changed."""
    try:
        dataset, found = usable(open_data(resolve(job.settings).data), Session(bench.work.folder / "store"))
    except DataError:
        return None
    predictions = bench.predictions[bench.work.folder_of(job)]
    if predictions.content != content(dataset, found):
        return None
    classes = predictions.classes

    def images(group: NDArray[np.bool_], rows: dict[str, NDArray[Any]], teacher: NDArray[np.int64]) -> Iterator[Any]:
        indices = np.flatnonzero(group)
        for index in indices[np.argsort(-rows["probability"][indices], kind="stable")][:SHOWN]:
            truth, student, other = (classes[i] for i in (rows["label"][index], rows["answer"][index], teacher[index]))
            yield {
                "image": thumbnail(read_image(dataset, int(rows["index"][index]))),
                "alt": f"{truth}: the student predicts {student}, the teacher {other}",
                "lines": [
                    (f"{who}: {predicted}", "right" if predicted == truth else "wrong")
                    for who, predicted in (("student", student), ("teacher", other))
                ],
            }

    return images


def curves(bench: Bench) -> Iterator[Chart]:
    """Yield for each student the validation accuracy in the last stage, the mean over a method's runs."""
    for student in dict.fromkeys(student for student, _ in bench.models):
        series = []
        for number, method in enumerate(bench.methods):
            at: dict[int, list[float]] = defaultdict(list)
            for result in bench.results((student, method)):
                rows = MetricsLog(result.folder).rows()
                for row in rows:
                    if row["stage"] == rows[-1]["stage"]:
                        at[row["step"]].append(row["val_accuracy"])
            means = [(step, 100 * float(np.mean(values))) for step, values in sorted(at.items())]
            points = [(float(step), mean, f"{method}, step {step}: {mean:.1f}%") for step, mean in means]
            if points:
                series.append(Series(method, number, points))
        if series:
            x = axis("steps of the last stage", [0.0, *(x for s in series for x, _, _ in s.points)], low=0)
            y = axis("validation accuracy, %", [y for s in series for _, y, _ in s.points])
            yield Chart(f"Training of {student}", x, y, series)


OWN = {"method", "seed", "data.path", "data.target", "data.split_seed", "student.name"}  # what the table itself shows


def benchmark_page(folder: Path, progress: Progress, selection: Selection = "training") -> str:
    """Return the HTML of a benchmark's report.

    Args:
        folder: of the benchmark; if its images aren't at hand, there are no thumbnails.
        selection: the rule that selects a draw.

    Raises:
        ConfigError: there are no runs that the rule goes by.
        RunError: nothing is done yet.
    """
    work = WorkList(folder)
    found, notes = gather([folder], selection)
    bench = Bench(work, found)
    for job in filter(work.spoilt, work.shown()):
        progress(f"{work.folder_of(job)}: its predictions can't be read; `vl2v benchmark` does the job again", 1, 1, "")
    if not bench.models:
        raise RunError(f"{folder}: no student is trained yet; `vl2v benchmark status {folder}` says why")
    table = as_table(bench.found, reference=bench.reference, selection=selection, notes=[*notes, *leakage(found)])
    content = {
        "eyebrow": "Report of a benchmark",
        "title": f"{', '.join(dict.fromkeys(dataset for dataset, _ in bench.cells))}: {_counted(bench)}",
        "lead": _lead_words(bench),
        "tiles": list(_tiles(bench)),
        "sections": SECTIONS,
        "table": table,
        "reference": bench.reference,
        "leads": list(_leads(bench)),
        "charts": list(costs(bench)),
        "domains": by_domain(bench),
        "classes": list(by_class(bench)),
        "confidence": confidence(bench),
        "disagreements": list(disagreements(bench, progress)),
        "curves": list(curves(bench)),
        "runs": [_run(result) for result in bench.found],
        "settings": _settings(bench),
    }
    return page("benchmark.html", content)


SECTIONS = [
    ("table", "Table"),
    ("leads", "Leads"),
    ("price", "Price"),
    ("domains", "Domains"),
    ("classes", "Classes"),
    ("confidence", "Confidence"),
    ("disagreements", "Disagreements"),
    ("curves", "Curves"),
    ("runs", "Runs"),
    ("settings", "Settings"),
]


def _counted(bench: Bench) -> str:
    methods, cells = len(bench.methods), len(bench.cells)
    return f"{methods} method{'s' * (methods > 1)}, {cells} unseen domain{'s' * (cells > 1)}"


def _lead_words(bench: Bench) -> str:
    shown = bench.work.shown()
    done = sum(bench.work.done(job) for job in shown)
    teacher = without_paths(resolve(shown[0].settings).teacher.spec)
    students = ", ".join(dict.fromkeys(student for student, _ in bench.models))
    seeds = len({result.seed for result in bench.found})
    so_far = "" if done == len(shown) else f"; so far {done} of {len(shown)} jobs are done"
    return f"Students: {students}, taught by {teacher}; {seeds} seed{'s' * (seeds > 1)}{so_far}."


def _tiles(bench: Bench) -> Iterator[dict[str, str]]:
    """Yield the figures that matter most."""
    best = bench.best
    mean = bench.mean(bench.results(best))
    if math.isfinite(mean[0]):
        yield {
            "label": f"most accurate: {bench.named(best)}",
            "who": "student",
            "value": f"{percent(mean[0])}%",
            "note": f"mean of {len(bench.cells)} unseen domains{_error(mean)}",
        }
    ahead = bench.leads(best[0]).get(best[1])
    if ahead is not None:
        value, interval = lead(ahead.mean, ahead.low, ahead.high)
        sure = (
            "beyond chance"
            if ahead.sure
            else "may be chance"
            if ahead.seeds > 1
            else "one seed: without the training's luck"
        )
        yield {"label": f"its lead over {bench.reference}", "who": "", "value": value, "note": f"{interval}; {sure}"}
    teacher, _, _ = bench.mean(bench.teachers)
    if math.isfinite(teacher):
        yield {
            "label": TEACHER,
            "who": "teacher",
            "value": f"{percent(teacher)}%",
            "note": "same images",
        }
    seconds = [result.seconds for result in bench.found if math.isfinite(result.seconds)]
    yield {"label": "runs", "who": "", "value": f"{len(bench.found)}", "note": f"{duration(sum(seconds))} in all"}


def _error(mean: tuple[float, float, int]) -> str:
    return f", ± {percent(mean[1])} over {mean[2]} seeds" if mean[2] > 1 else ""


def _leads(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield how far each method is ahead of the reference, for each student."""
    rows: list[tuple[Model, Lead]] = []
    for student in dict.fromkeys(student for student, _ in bench.models):
        rows += [((student, method), found) for method, found in bench.leads(student).items()]
    bounded = {id(found): (max(found.low, -1.0), min(found.high, 1.0)) for _, found in rows}
    ends = axis("", [0.0, *(end for pair in bounded.values() for end in pair)])
    for model, found in sorted(rows, key=lambda row: -row[1].mean):
        yield {
            "name": bench.named(model),
            "lead": lead(found.mean, found.low, found.high),
            "spans": [
                Span(
                    ends.share(found.mean),
                    ends.share(bounded[id(found)][0]),
                    ends.share(bounded[id(found)][1]),
                    "student",
                )
            ],
            "zero": ends.share(0.0),
            "wins": f"{found.wins} / {found.losses}",
            "runs": found.runs,
            "sure": found.sure,
        }


def _run(result: Result) -> dict[str, Any]:
    """Return a line of the list of runs."""
    figures = [
        percent(value) if math.isfinite(value) else "" for value in (result.accuracy, result.in_split, result.seen)
    ]
    words = (result.dataset, result.target, result.method, result.student, result.seed)
    return {"words": words, "figures": (*figures, f"{result.seconds / 60:.1f}"), "folder": result.folder.name}


def _settings(bench: Bench) -> list[tuple[str, str]]:
    """Return the settings that all runs have in common, and those of each method."""
    by_method: dict[str, list[Tree]] = defaultdict(list)
    for result in bench.found:
        if result.method not in TEACHERS:
            tree = without_paths(
                resolve(bench.jobs[result.folder].settings).model_dump(by_alias=True, exclude_none=True)
            )
            by_method[result.method].append({key: v for key, v in flat(tree).items() if key not in OWN})
    common = _shared([tree for trees in by_method.values() for tree in trees])
    parts = [("all runs", common)]
    for method, trees in by_method.items():
        parts.append((method, {key: v for key, v in _shared(trees).items() if key not in common}))
    return [(name, "\n".join(f"{key} = {json.dumps(v)}" for key, v in part.items())) for name, part in parts if part]


def _shared(trees: Sequence[Tree]) -> Tree:
    """Return what is the same in all."""
    return {key: value for key, value in trees[0].items() if all(tree.get(key) == value for tree in trees)}
