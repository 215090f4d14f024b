"""The report of a benchmark: which method is ahead and by how much, at what price, where, and how surely."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from vl2v.benchmark.jobs import Job, WorkList
from vl2v.benchmark.results import Result, mean_and_error, of, result_of, results
from vl2v.benchmark.table import as_table, runs_of
from vl2v.config import Tree
from vl2v.data import decode, leave_out, open_dataset
from vl2v.errors import DataError, RunError
from vl2v.evaluation.compare import Lead, leads
from vl2v.report.charts import Chart, Heat, Series, Span, axis, calibration, heat, log_axis
from vl2v.report.page import duration, lead, page, percent
from vl2v.report.thumbnails import thumbnail
from vl2v.runs import Report, silent
from vl2v.runs.evaluate import TEACHER
from vl2v.runs.predictions import Predictions
from vl2v.runs.settings import resolve, without_places
from vl2v.runs.sources import usable
from vl2v.training.log import MetricsLog

ZERO_SHOT = "zero-shot"
SHOWN = 5  # pictures of each kind of disagreement
ACROSS = 30  # classes beside one another
FEW = 20  # answers below which a bin of a reliability curve says nothing
OWN = {"method", "seed", "data.path", "data.target", "data.split_seed", "student.name"}  # what the table itself tells

Model = tuple[str, str]
"""A student and a method."""
Answers = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Probabilities [n], and whether each answer is right."""


@dataclass(frozen=True)
class _Bench:
    """The finished jobs of a benchmark folder that its table shows."""

    work: WorkList
    found: list[Result]

    @cached_property
    def jobs(self) -> dict[Path, Job]:
        return {self.work.place(job): job for job in self.work.jobs()}

    @cached_property
    def kept(self) -> dict[Path, Predictions]:
        return {result.folder: Predictions.load(result.folder) for result in self.found}

    @cached_property
    def models(self) -> list[Model]:
        """What is compared, students first, without the teacher."""
        trained = (result for result in self.found if result.method != ZERO_SHOT)
        return sorted(dict.fromkeys((result.student, result.method) for result in trained), key=lambda model: model[0])

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for _, method in self.models))

    @property
    def cells(self) -> list[tuple[str, str]]:
        return sorted({(result.dataset, result.target) for result in self.found})

    @property
    def reference(self) -> str:
        return "erm" if "erm" in self.methods else self.methods[0]

    def results(self, model: Model) -> list[Result]:
        return of(self.found, student=model[0], method=model[1])

    @property
    def teachers(self) -> list[Result]:
        return of(self.found, method=ZERO_SHOT)

    def mean(self, found: Sequence[Result]) -> tuple[float, float, int]:
        """Return mean, standard error and seeds as `mean_and_error` does; NaN where an unseen domain is missing."""
        whole = {(result.dataset, result.target) for result in found} == set(self.cells)
        return mean_and_error(found if whole else [])

    def named(self, model: Model) -> str:
        """Return a model's name, with its student where there are several."""
        return model[1] if len({student for student, _ in self.models}) == 1 else f"{model[1]}, {model[0]}"

    def place(self, cell: tuple[str, str]) -> str:
        """Return an unseen domain's name, with its dataset where there are several."""
        return cell[1] if len({dataset for dataset, _ in self.cells}) == 1 else f"{cell[0]}: {cell[1]}"

    def of_target(self, result: Result) -> dict[str, NDArray[Any]]:
        """Return the answers about the unseen domain's pictures."""
        kept = self.kept[result.folder]
        mine = kept["domain"] == kept.domains.index(result.target)
        return {name: kept[name][mine] for name in ("index", "label", "answer", "probability", "teacher")}


def benchmark_page(folder: Path, report: Report) -> str:
    """Return the HTML of a benchmark's report.

    Args:
        folder: of the benchmark; if its pictures aren't at hand, there are no thumbnails.
        report: told how far it is.

    Raises:
        RunError: nothing is done yet.
    """
    work = WorkList(folder)
    bench = _Bench(work, results(work))
    if not bench.models:
        raise RunError(f"{folder}: no student is trained yet; `vl2v benchmark status {folder}` tells why")
    table = as_table(bench.found, reference=bench.reference)
    content = {
        "eyebrow": "Report of a benchmark",
        "title": f"{', '.join(dict.fromkeys(dataset for dataset, _ in bench.cells))}: {_counted(bench)}",
        "lead": _lead_words(bench),
        "tiles": list(_tiles(bench)),
        "sections": SECTIONS,
        "table": table,
        "reference": bench.reference,
        "leads": list(_leads(bench)),
        "charts": list(_costs(bench)),
        "domains": _by_domain(bench),
        "classes": list(_by_class(bench)),
        "confidence": _confidence(bench),
        "disagreements": list(_disagreements(bench, report)),
        "curves": list(_curves(bench)),
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


def _counted(bench: _Bench) -> str:
    methods, cells = len(bench.methods), len(bench.cells)
    return f"{methods} method{'s' * (methods > 1)}, {cells} unseen domain{'s' * (cells > 1)}"


def _lead_words(bench: _Bench) -> str:
    shown = bench.work.shown()
    done = sum(bench.work.done(job) for job in shown)
    teacher = without_places(resolve(shown[0].settings).teacher.spec)
    students = ", ".join(dict.fromkeys(student for student, _ in bench.models))
    seeds = len({result.seed for result in bench.found})
    so_far = "" if done == len(shown) else f"; so far {done} of {len(shown)} jobs are done"
    return f"Students: {students}, taught by {teacher}; {seeds} seed{'s' * (seeds > 1)}{so_far}."


def _tiles(bench: _Bench) -> Iterator[dict[str, str]]:
    """Yield the figures that matter most."""
    best = _best(bench)
    mean = bench.mean(bench.results(best))
    if math.isfinite(mean[0]):
        yield {
            "label": f"most accurate: {bench.named(best)}",
            "who": "student",
            "value": f"{percent(mean[0])}%",
            "note": f"mean of {len(bench.cells)} unseen domains{_error(mean)}",
        }
    ahead = leads(_runs(bench, best[0]), bench.reference).get(best[1])
    if ahead is not None:
        value, interval = lead(ahead.mean, ahead.low, ahead.high)
        sure = "beyond chance" if ahead.sure else "may be chance" if ahead.seeds > 1 else "one seed only"
        yield {"label": f"its lead over {bench.reference}", "who": "", "value": value, "note": f"{interval}; {sure}"}
    teacher, _, _ = bench.mean(bench.teachers)
    if math.isfinite(teacher):
        yield {
            "label": TEACHER,
            "who": "teacher",
            "value": f"{percent(teacher)}%",
            "note": "same pictures",
        }
    seconds = [result.seconds for result in bench.found if math.isfinite(result.seconds)]
    yield {"label": "runs", "who": "", "value": f"{len(bench.found)}", "note": f"{duration(sum(seconds))} in all"}


def _best(bench: _Bench) -> Model:
    """Return the model with the highest mean over all unseen domains; where none has them all, the first."""
    means = {model: bench.mean(bench.results(model))[0] for model in bench.models}
    return max(means, key=lambda model: means[model] if math.isfinite(means[model]) else -1.0)


def _error(mean: tuple[float, float, int]) -> str:
    return f", ± {percent(mean[1])} over {mean[2]} seeds" if mean[2] > 1 else ""


def _runs(bench: _Bench, student: str) -> dict[str, Any]:
    mine = [model for model in bench.models if model[0] == student]
    return {method: runs_of(bench.results((student, method))) for _, method in mine}


def _leads(bench: _Bench) -> Iterator[dict[str, Any]]:
    """Yield how far each method is ahead of the reference, for each student."""
    rows: list[tuple[Model, Lead]] = []
    for student in dict.fromkeys(student for student, _ in bench.models):
        runs = _runs(bench, student)
        if bench.reference in runs:
            rows += [((student, method), found) for method, found in leads(runs, bench.reference).items()]
    ends = axis("", [0.0, *(end for _, found in rows for end in (found.low, found.high))])
    for model, found in sorted(rows, key=lambda row: -row[1].mean):
        yield {
            "name": bench.named(model),
            "lead": lead(found.mean, found.low, found.high),
            "spans": [Span(ends.share(found.mean), ends.share(found.low), ends.share(found.high), "student")],
            "zero": ends.share(0.0),
            "wins": f"{found.wins} / {found.losses}",
            "runs": found.runs,
            "sure": found.sure,
        }


def _costs(bench: _Bench) -> Iterator[Chart]:
    """Yield accuracy against minutes, against the student's size, and against questions, where runs differ in them."""
    means = {model: bench.mean(bench.results(model)) for model in bench.models}
    minutes = {model: float(np.median([r.seconds for r in bench.results(model)])) / 60 for model in bench.models}
    yield _scatter(bench, "Accuracy against minutes", "minutes a run (median)", minutes, means)
    sizes = {model: _parameters(bench.results(model)[0].folder) / 1e6 for model in bench.models}
    if len({student for student, _ in bench.models}) > 1:
        yield _scatter(bench, "Accuracy against size", "million parameters", sizes, means, log=True)
    yield from _queries(bench)


def _scatter(
    bench: _Bench,
    title: str,
    label: str,
    at: Mapping[Model, float],
    means: Mapping[Model, tuple[float, float, int]],
    *,
    log: bool = False,
) -> Chart:
    """Return a chart with a dot a model, coloured by method, and its standard error."""
    series = []
    ends: list[float] = []
    for number, method in enumerate(bench.methods):
        points, ranges = [], []
        for model in bench.models:
            mean, error, _ = (100 * value for value in means[model])
            if model[1] == method and math.isfinite(mean):
                spread = error if math.isfinite(error) else 0.0
                points.append((at[model], mean, f"{bench.named(model)}: {at[model]:.3g} {label}, {mean:.1f}%"))
                ranges.append((mean - spread, mean + spread))
                ends += ranges[-1]
        series.append(Series(method, number, points, ranges, kind="dots"))
    x = log_axis(label, list(at.values())) if log else axis(label, [0.0, *at.values()], low=0)
    return Chart(title, x, axis("accuracy on unseen domains, %", ends), series)


def _parameters(folder: Path) -> int:
    """Return how many weights a run's student has, from the head of its file."""
    with safe_open(folder / "student" / "student.safetensors", "numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(math.prod(shape) for name, shape in shapes.items() if name != "texts" and not name.endswith(buffers))


def _queries(bench: _Bench) -> Iterator[Chart]:
    """Yield accuracy against questions, of jobs that differ from those shown only in how many were asked."""
    shown = {_family(bench.jobs[result.folder]) for result in bench.found if result.method != ZERO_SHOT}
    found: dict[Model, dict[str, list[Job]]] = defaultdict(lambda: defaultdict(list))
    for job in bench.work.jobs():
        if bench.work.done(job) and not job.draw and not job.held and _family(job) in shown:
            found[job.student, job.method][str(resolve(job.settings).teacher.select)].append(job)
    series: list[Series] = []
    ends: list[float] = []
    for number, (model, groups) in enumerate(found.items()):
        if len(groups) < 2:
            continue
        rows = []
        for jobs in groups.values():
            mean, error, seeds = mean_and_error(result_of(bench.work, job) for job in jobs)
            count = float(np.mean([_asked(job, bench.work.place(job)) for job in jobs]))
            if math.isfinite(count):
                rows.append((count, 100 * mean, 100 * error if seeds > 1 else 0.0))
        rows.sort()
        name = bench.named(model)
        points = [(count, mean, f"{name}: {count:,.0f} pictures asked about, {mean:.1f}%") for count, mean, _ in rows]
        ranges = [(mean - error, mean + error) for _, mean, error in rows]
        ends += [end for pair in ranges for end in pair]
        series.append(Series(name, number, points, ranges))
    if series:
        counts = [point[0] for line in series for point in line.points]
        x = axis("pictures that the teacher was asked about", [0.0, *counts], low=0)
        yield Chart("Accuracy against questions", x, axis("accuracy on unseen domains, %", ends), series)


def _family(job: Job) -> str:
    """Return everything that decides a job's result but how many pictures the teacher was asked about."""
    tree = resolve(job.settings).model_dump(mode="json", by_alias=True)
    tree["data"]["workers"] = tree["teacher"]["select"] = tree["teacher"]["strategy"] = None
    return json.dumps(tree, sort_keys=True)


def _asked(job: Job, place: Path) -> float:
    """Return about how many pictures the teacher was asked for a job: those it chose, or all it trained on.

    NaN where that can't be told, since the pictures aren't at hand.
    """
    chosen = place / "asked.json"
    if chosen.is_file():
        return len(json.loads(chosen.read_text(encoding="utf-8")))
    data = resolve(job.settings).data
    try:
        dataset = open_dataset(data.path, layout=data.layout, exclude=data.exclude)
    except DataError:
        return math.nan
    return len(leave_out(dataset, data.target, fraction=data.holdout, trial_seed=data.split_seed).train)


def _by_domain(bench: _Bench) -> Heat:
    """Return the mean accuracy of each model on each unseen domain."""
    rows = [(TEACHER, bench.teachers)] if bench.teachers else []
    rows += [(bench.named(model), bench.results(model)) for model in bench.models]
    shares = [
        [mean_and_error(of(found, dataset=dataset, target=target))[0] for dataset, target in bench.cells]
        for _, found in rows
    ]
    return heat("", [name for name, _ in rows], [bench.place(cell) for cell in bench.cells], np.array(shares))


def _by_class(bench: _Bench) -> Iterator[tuple[str, Heat]]:
    """Yield for each dataset how often each class of the unseen domains is recognised, the mean over runs.

    The hardest classes come first, at most `ACROSS` in a table.
    """
    for dataset in dict.fromkeys(result.dataset for result in bench.found):
        rows = [(TEACHER, of(bench.teachers, dataset=dataset))]
        rows += [(bench.named(model), of(bench.results(model), dataset=dataset)) for model in bench.models]
        rows = [(name, found) for name, found in rows if found]
        classes = bench.kept[rows[0][1][0].folder].classes
        shares = np.stack([_recalls(bench, found, len(classes)) for _, found in rows])
        order = np.argsort(shares.mean(0))  # classes without a picture, NaN, come last
        parts = np.array_split(order, math.ceil(len(order) / ACROSS))
        for number, part in enumerate(parts, 1):
            words = dataset if len(parts) == 1 else f"{dataset}, part {number} of {len(parts)}"
            names = [classes[place] for place in part]
            yield words, heat("", [name for name, _ in rows], names, shares[:, part], low=0, high=1)


def _recalls(bench: _Bench, found: Sequence[Result], classes: int) -> NDArray[np.float64]:
    """Return the share of each class's pictures that was answered correctly, the mean over runs that have any."""
    seen, right = np.zeros((2, len(found), classes))
    for number, result in enumerate(found):
        rows = bench.of_target(result)
        seen[number] = np.bincount(rows["label"], minlength=classes)
        right[number] = np.bincount(rows["label"], weights=rows["label"] == rows["answer"], minlength=classes)
    runs = np.maximum((seen > 0).sum(0), 1)
    return np.where(seen.any(0), (right / np.maximum(seen, 1)).sum(0) / runs, np.nan)


def _confidence(bench: _Bench) -> dict[str, Any]:
    """Return each model's calibration error, and its reliability on unseen domains, of all runs together."""
    rows, series = [], []
    for number, model in enumerate(bench.models):
        unseen: list[Answers] = []
        seen: list[Answers] = []
        for result in bench.results(model):
            kept = bench.kept[result.folder]
            right, target = kept["label"] == kept["answer"], kept["domain"] == kept.domains.index(result.target)
            for mine, into in ((target, unseen), (~target, seen)):
                if mine.any():
                    into.append((kept["probability"][mine], right[mine]))
        errors = [percent(float(np.mean([calibration(*part).ece for part in group]))) for group in (unseen, seen)]
        rows.append((bench.named(model), *errors))
        probability, right = (np.concatenate(parts) for parts in zip(*unseen, strict=True))
        found = calibration(probability, right)
        line = [
            (100 * sure, 100 * hit, f"{bench.named(model)}: {count:,} answers around {sure:.0%}, {hit:.0%} right")
            for count, sure, hit in zip(found.counts, found.confidence, found.accuracy, strict=True)
            if count >= FEW
        ]
        series.append(Series(bench.named(model), number, line))
    diagonal = Series("", "soft", [(0, 0, ""), (100, 100, "")], dashed=True)
    x, y = (axis(words, [0, 100], low=0, high=100) for words in ("probability, %", "share that is right, %"))
    return {"rows": rows, "chart": Chart("Reliability on unseen domains", x, y, [diagonal, *series])}


def _disagreements(bench: _Bench, report: Report) -> Iterator[dict[str, Any]]:
    """Yield for each unseen domain how often the best model and the teacher are right, and where only one is."""
    best = _best(bench)
    teachers = {(r.dataset, r.target): bench.of_target(r) for r in bench.teachers}
    for number, cell in enumerate(bench.cells):
        report("disagreements", number + 1, len(bench.cells), bench.place(cell))
        mine = [r for r in bench.results(best) if (r.dataset, r.target) == cell]
        if not mine or cell not in teachers:
            continue
        result = min(mine, key=lambda result: result.seed)
        rows, known = bench.of_target(result), teachers[cell]
        said = dict(zip(known["index"].tolist(), known["answer"].tolist(), strict=True))
        teacher = np.array([said.get(index, -1) for index in rows["index"].tolist()])
        student, other = rows["answer"] == rows["label"], teacher == rows["label"]
        asked = teacher >= 0
        groups = {
            "only the student is right": student & ~other & asked,
            "only the teacher is right": other & ~student,
        }
        images = _reader(bench, bench.jobs[result.folder])
        yield {
            "name": bench.place(cell),
            "counts": [int((student & other).sum()), *(int(group.sum()) for group in groups.values())],
            "wrong": int((asked & ~student & ~other).sum()),
            "run": result.folder.name,
            "pictures": {words: list(images(group, rows, teacher)) for words, group in groups.items()}
            if images
            else {},
        }


def _reader(bench: _Bench, job: Job) -> Any:
    """Return what makes thumbnails of some of a target's pictures; None where they aren't at hand."""
    data = resolve(job.settings).data
    try:
        dataset = open_dataset(data.path, layout=data.layout, exclude=data.exclude)
        dataset, _ = usable(dataset, bench.work.folder / "store" / "audit.sqlite", silent)
    except DataError:
        return None
    classes = bench.kept[bench.work.place(job)].classes

    def pictures(group: NDArray[np.bool_], rows: dict[str, NDArray[Any]], teacher: NDArray[np.int64]) -> Iterator[Any]:
        places = np.flatnonzero(group)
        for place in places[np.argsort(-rows["probability"][places], kind="stable")][:SHOWN]:
            truth, student, other = (classes[i] for i in (rows["label"][place], rows["answer"][place], teacher[place]))
            yield {
                "image": thumbnail(decode(dataset.read(int(rows["index"][place])))),
                "alt": f"{truth}: the student says {student}, the teacher {other}",
                "lines": [
                    (f"{who}: {said}", "right" if said == truth else "wrong")
                    for who, said in (("student", student), ("teacher", other))
                ],
            }

    return pictures


def _curves(bench: _Bench) -> Iterator[Chart]:
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


def _run(result: Result) -> dict[str, Any]:
    """Return a line of the list of runs."""
    figures = [
        percent(value) if math.isfinite(value) else "" for value in (result.accuracy, result.in_split, result.seen)
    ]
    words = (result.dataset, result.target, result.method, result.student, result.seed)
    return {"words": words, "figures": (*figures, f"{result.seconds / 60:.1f}"), "folder": result.folder.name}


def _settings(bench: _Bench) -> list[tuple[str, str]]:
    """Return the settings that all runs have in common, and those of each method."""
    by_method: dict[str, list[Tree]] = defaultdict(list)
    for result in bench.found:
        if result.method != ZERO_SHOT:
            tree = without_places(
                resolve(bench.jobs[result.folder].settings).model_dump(by_alias=True, exclude_none=True)
            )
            by_method[result.method].append({key: v for key, v in _flat(tree) if key not in OWN})
    common = _shared([tree for trees in by_method.values() for tree in trees])
    parts = [("all runs", common)]
    for method, trees in by_method.items():
        parts.append((method, {key: v for key, v in _shared(trees).items() if key not in common}))
    return [(name, "\n".join(f"{key} = {json.dumps(v)}" for key, v in part.items())) for name, part in parts if part]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shared(trees: Sequence[Tree]) -> Tree:
    """Return what is the same in all."""
    return {key: value for key, value in trees[0].items() if all(tree.get(key) == value for tree in trees)}
