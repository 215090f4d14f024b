"""What accuracy costs: minutes, size, queries."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open

from vl2v.benchmark.jobs import TEACHERS, Job
from vl2v.benchmark.results import mean_and_error, result_of
from vl2v.config import deciding
from vl2v.data.splits import leave_out
from vl2v.errors import DataError
from vl2v.io import read_json
from vl2v.report.bench import Bench, Model
from vl2v.report.charts import Chart, Series, axis, log_axis
from vl2v.runs.datasets import open_data
from vl2v.runs.settings import resolve


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
            found[job.student, job.method][str(resolve(job.settings).teacher.select)].append(job)
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
    return json.dumps({**decides, "teacher.select": None, "teacher.strategy": None}, sort_keys=True)


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
