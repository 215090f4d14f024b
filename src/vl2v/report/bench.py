"""The finished jobs of a benchmark, as its report shows them, and what accuracy costs: minutes, size, queries."""

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

from vl2v.benchmark.results import Result, mean_and_error, of, result_of
from vl2v.benchmark.table import reference_of, runs_of
from vl2v.benchmark.worklist import TEACHERS, ZERO_SHOT, Job, WorkList, predictions_in
from vl2v.config import deciding
from vl2v.data import leave_out
from vl2v.errors import DataError, RunError
from vl2v.evaluation.compare import Lead, leads
from vl2v.io import read_json
from vl2v.report.charts import Chart, Series, axis, log_axis
from vl2v.runs.datasets import open_data
from vl2v.runs.predictions import Predictions
from vl2v.runs.settings import resolve

Model = tuple[str, str]
"""A student and a method."""


@dataclass(frozen=True)
class Bench:
    """The finished jobs of a benchmark folder that its table shows."""

    work: WorkList
    found: list[Result]

    @cached_property
    def jobs(self) -> dict[Path, Job]:
        """The jobs by run folder."""
        return {self.work.folder_of(job): job for job in self.work.jobs()}

    @cached_property
    def predictions(self) -> dict[Path, Predictions]:
        """Every prediction of each run, by its folder.

        Raises:
            RunError: there are some that can't be read; the next `vl2v benchmark` does their jobs again.
        """
        found = {result.folder: predictions_in(result.folder) for result in self.found}
        if lost := [folder for folder, predictions in found.items() if predictions is None]:
            raise RunError(
                f"{lost[0]}: its predictions can't be read; give the `vl2v benchmark` command again, then this"
            )
        return {folder: predictions for folder, predictions in found.items() if predictions is not None}

    @cached_property
    def models(self) -> list[Model]:
        """What is compared, students first, without the teacher."""
        trained = (result for result in self.found if result.method not in TEACHERS)
        return sorted(dict.fromkeys((result.student, result.method) for result in trained), key=lambda model: model[0])

    @property
    def methods(self) -> list[str]:
        """Those of the models."""
        return list(dict.fromkeys(method for _, method in self.models))

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Datasets with their unseen domains."""
        return sorted({(result.dataset, result.target) for result in self.found})

    @property
    def reference(self) -> str:
        """The method that leads are measured from."""
        return reference_of(self.found)

    def results(self, model: Model) -> list[Result]:
        """Return a model's runs."""
        return of(self.found, student=model[0], method=model[1])

    @property
    def teachers(self) -> list[Result]:
        """The zero-shot teacher's results."""
        return of(self.found, method=ZERO_SHOT)

    def mean(self, found: Sequence[Result]) -> tuple[float, float, int]:
        """Return mean, standard error and seeds as `mean_and_error` does; NaN where an unseen domain is missing."""
        whole = {(result.dataset, result.target) for result in found} == set(self.cells)
        return mean_and_error(found if whole else [])

    def leads(self, student: str) -> dict[str, Lead]:
        """Return each method's lead over the reference, of methods that have every unseen domain."""
        whole = [m for m in self.models if m[0] == student and math.isfinite(self.mean(self.results(m))[0])]
        marked = {method: runs_of(self.results((student, method))) for _, method in whole}
        runs = {method: found for method, found in marked.items() if len(found) == len(self.cells)}
        return leads(runs, self.reference) if self.reference in runs else {}

    def named(self, model: Model) -> str:
        """Return a model's name, with its student where there are several."""
        return model[1] if len({student for student, _ in self.models}) == 1 else f"{model[1]}, {model[0]}"

    def target_name(self, cell: tuple[str, str]) -> str:
        """Return an unseen domain's name, with its dataset where there are several."""
        return cell[1] if len({dataset for dataset, _ in self.cells}) == 1 else f"{cell[0]}: {cell[1]}"

    def of_target(self, result: Result) -> dict[str, NDArray[Any]]:
        """Return the predictions of the unseen domain's images."""
        predictions = self.predictions[result.folder]
        mine = predictions.in_domain(result.target)
        return {name: predictions[name][mine] for name in ("index", "label", "answer", "probability", "teacher")}

    @property
    def best(self) -> Model:
        """The model with the highest mean over all unseen domains; where none has them all, the first."""
        means = {model: self.mean(self.results(model))[0] for model in self.models}
        return max(means, key=lambda model: means[model] if math.isfinite(means[model]) else -1.0)


def costs(bench: Bench) -> Iterator[Chart]:
    """Yield accuracy against minutes, against the student's size, and against queries, where runs differ in them."""
    means = {model: bench.mean(bench.results(model)) for model in bench.models}
    minutes = {model: float(np.median([r.seconds for r in bench.results(model)])) / 60 for model in bench.models}
    yield _scatter(bench, "Accuracy against minutes", "minutes a run (median)", minutes, means)
    sizes = {model: _parameters(bench.results(model)[0].folder) / 1e6 for model in bench.models}
    if len({student for student, _ in bench.models}) > 1:
        yield _scatter(bench, "Accuracy against size", "million parameters", sizes, means, log=True)
    yield from _queries(bench)


def _scatter(
    bench: Bench,
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


def _queries(bench: Bench) -> Iterator[Chart]:
    """Yield accuracy against queries, of jobs that differ from those shown only in how many images were queried.

    Points of a line are of the same targets and seeds.
    """
    shown = {_family(bench.jobs[result.folder]) for result in bench.found if result.method not in TEACHERS}
    found: dict[Model, dict[str, list[Job]]] = defaultdict(lambda: defaultdict(list))
    for job in bench.work.jobs():
        if job.of_today and bench.work.done(job) and not job.draw and not job.held and _family(job) in shown:
            teacher = resolve(job.settings).teacher
            found[job.student, job.method][f"{teacher.select} {teacher.select_from}"].append(job)
    series: list[Series] = []
    ends: list[float] = []
    for number, (model, groups) in enumerate(found.items()):
        if len(groups) < 2:
            continue
        everywhere = set.intersection(*({job.cell for job in jobs} for jobs in groups.values()))
        rows = []
        for jobs in groups.values():
            jobs = [job for job in jobs if job.cell in everywhere]
            results = [result for job in jobs if (result := result_of(bench.work, job)) is not None]
            mean, error, seeds = mean_and_error(results)
            count = float(np.mean([_queried(job, bench.work.folder_of(job)) for job in jobs])) if jobs else math.nan
            if results and math.isfinite(count):
                rows.append((count, 100 * mean, 100 * error if seeds > 1 else 0.0))
        rows.sort()
        name = bench.named(model)
        points = [(count, mean, f"{name}: {count:,.0f} images queried, {mean:.1f}%") for count, mean, _ in rows]
        ranges = [(mean - error, mean + error) for _, mean, error in rows]
        ends += [end for pair in ranges for end in pair]
        series.append(Series(name, number, points, ranges))
    if series:
        counts = [point[0] for line in series for point in line.points]
        x = axis("images queried", [0.0, *counts], low=0)
        yield Chart("Accuracy against queries", x, axis("accuracy on unseen domains, %", ends), series)


def _family(job: Job) -> str:
    """Return everything that decides a job's result but how many images are queried."""
    decides = deciding(resolve(job.settings).model_dump(mode="json", by_alias=True))
    return json.dumps(
        {**decides, **dict.fromkeys(("teacher.select", "teacher.strategy", "teacher.select_from"))}, sort_keys=True
    )


def _queried(job: Job, folder: Path) -> float:
    """Return how many images were queried for a job: those it chose, or all it trained on.

    NaN where that can't be counted, since the images aren't at hand.
    """
    if (chosen := read_json(folder / "asked.json")) is not None:
        return len(chosen)
    data = resolve(job.settings).data
    try:
        dataset = open_data(data)
    except DataError:
        return math.nan
    return len(leave_out(dataset, data.target, fraction=data.holdout, trial_seed=data.split_seed).train)
