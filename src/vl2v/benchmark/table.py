"""A benchmark's results as a table: for people, papers and programs."""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vl2v.benchmark.results import Result, mean_and_error, of
from vl2v.benchmark.worklist import TEACHERS, ZERO_SHOT
from vl2v.config import TOWER
from vl2v.evaluation.compare import Lead, Marks, best_is_sure, leads
from vl2v.methods import METHODS
from vl2v.table import Table

Metric = Literal["accuracy", "in_split", "corrupted"]


def as_table(
    found: Sequence[Result],
    *,
    reference: str | None = None,
    metric: Metric = "accuracy",
    selection: str = "training",
    published: bool = True,
    notes: Sequence[str] = (),
) -> Table:
    """Return accuracy % on unseen domains: a row a student and method, a column a target, mean and standard error.

    A row is bold where the method is surely ahead of all others that trained its student (`best_is_sure`), and these
    have every target; those without predictions image by image aren't in it.

    Args:
        reference: the method that leads are counted from; by default `reference_of` them.
        metric: on all images of the target, on DomainBed's 80% of them, or on all of them corrupted (leads are of
            uncorrupted images, and left out then).
        selection: the rule that chose the draws, for the notes.
        published: add a column with the figures of the method's authors.
    """
    cells = sorted({(result.dataset, result.target) for result in found})
    several = len({dataset for dataset, _ in cells}) > 1
    compared = metric != "corrupted"
    figure = _published({dataset for dataset, _ in cells})
    figures = {(result.student, result.method): figure(result.student, result.method) for result in found}
    shown = published and compared and any(figures.values())
    heads = ["student", "method", *(f"{dataset} {target}" if several else target for dataset, target in cells)]
    base = reference or reference_of(found)
    heads += ["mean", *([f"against {base}, 95%", "wins/losses"] if compared else []), "seen", "s a run"]
    heads += ["published"] if shown else []
    rows: list[list[str]] = []
    bold: list[int] = []
    partial = False
    for student in dict.fromkeys(result.student for result in found):
        mine = of(found, student=student)
        methods = list(dict.fromkeys(result.method for result in mine))
        runs = {method: runs_of(of(mine, method=method), metric) for method in methods}
        covered = {method: _targets(of(mine, method=method), metric) for method in methods}
        whole = [method for method in methods if covered[method] == len(cells)]
        opponent = of(found if base in TEACHERS else mine, method=base)
        held_against = runs_of(opponent, metric)
        marked = {method: runs[method] for method in whole if len(runs[method]) == len(cells)}
        fair = compared and len(held_against) == len(cells)
        ahead = leads({**marked, base: held_against}, base) if fair else {}
        rivals = [method for method in methods if runs[method] and method not in TEACHERS]
        sure = best_is_sure(marked, rivals) if compared and {*rivals} <= {*marked} else None
        for method in methods:
            own = of(mine, method=method)
            row = [student if method not in TEACHERS else "", method]
            row += [_cell(of(own, dataset=dataset, target=target), metric) for dataset, target in cells]
            complete = method in whole
            partial |= 0 < covered[method] < len(cells)
            row += [_cell(own, metric) if complete else ""]
            row += _lead(ahead.get(method)) if compared else ()
            row += [f"{100 * mean_and_error(own, 'seen')[0]:.1f}" if method not in TEACHERS else ""]
            times = [result.seconds for result in own if math.isfinite(result.seconds)]
            row += [f"{sorted(times)[len(times) // 2]:.0f}" if times and method not in TEACHERS else ""]
            if shown:
                row.append(figures[student, method])
            if method == sure:
                bold.append(len(rows))
            rows.append(row)
    notes = [_note(metric, selection, found), *notes, *_missing(found)]
    if any(result.theirs for result in found):
        notes.append("± of rows from DomainBed as its program prints it: over n seeds, not n - 1.")
    if bold:
        notes.append(
            "Bold: ahead of every other method that trained its student here, the whole 95% interval above zero."
        )
    if partial:
        notes.append(
            "No mean, and no lead, where a target is missing, and no bold beside it. A mean is over the seeds that "
            "have every target, a lead over all runs that both methods have."
        )
    if shown:
        notes.append(
            "Published, with CLIP ViT-B/16 as the teacher, on the whole datasets: black, a ViT-B/16 that starts from "
            "ImageNet; white, the teacher's own tower; resnet50, from ImageNet (scmd's teacher: ViT-B/32). Not "
            "comparable with the rest."
        )
    return Table(heads, rows, tuple(bold), notes, left=("student", "method"))


def reference_of(found: Sequence[Result]) -> str:
    """Return the method that leads are counted from: "erm", or the first, of small students if there are any."""
    trained = [result for result in found if result.method not in TEACHERS]
    methods = [result.method for result in sorted(trained, key=lambda result: result.student == TOWER)]
    return "erm" if "erm" in methods or not methods else methods[0]


def _note(metric: Metric, selection: str, found: Sequence[Result]) -> str:
    where = {
        "accuracy": "all images of the unseen domain",
        "in_split": "DomainBed's 80% of the unseen domain",
        "corrupted": "all images of the unseen domain under corruptions, the mean over these",
    }
    rules = {
        "training": "source validation",
        "leave-one-out": "leave-one-domain-out validation",
        "oracle": "the target's other 20% (oracle: not deployable"
        + (", and these images are among the measured ones)" if metric == "accuracy" else ")"),
    }
    seeds = Counter(result.cell._replace(seed=0) for result in found if result.method != ZERO_SHOT)
    counts = set(seeds.values()) or {1}
    few, many = min(counts), max(counts)
    over = f"{many}" if few == many else f"{few} to {many}"
    spread = f"mean ± standard error over {over} seeds" if many > 1 else "one seed"
    words = f"Accuracy % on {where[metric]}, {spread}; selected by {rules[selection]}."
    several = len({result.dataset for result in found}) > 1
    of_targets = "each dataset's targets, then over datasets (so are means)" if several else "targets"
    missing = "other images alone: the luck of the training is not in it, and no lead counts as sure"
    chance = "other seeds and images" + (", a single seed's luck taken from the other targets'" if few == 1 else "")
    drawn = missing if many == 1 else chance
    leads_are = f" Leads: points, the mean over {of_targets}; the 95% interval is for {drawn}."
    return words + (leads_are if metric != "corrupted" else "")


def _missing(found: Sequence[Result]) -> list[str]:
    """Return a line for each method that has no prediction of images that others were measured on."""
    marked = [
        (result.method, (result.dataset, result.target, result.seed), result.marks.images)
        for result in found
        if result.marks is not None
    ]
    everything: dict[Hashable, NDArray[np.int64]] = {}
    for _, run, images in marked:
        before = everything.setdefault(run, images)
        if not np.array_equal(before, images):
            everything[run] = np.union1d(before, images)
    missing, wanted = Counter[str](), Counter[str]()
    for method, run, images in marked:
        missing[method] += len(everything[run]) - len(images)
        wanted[method] += len(everything[run])
    return [
        f"{method}: {count:,} of {wanted[method]:,} predictions are missing (refused, or not queried); it is measured "
        "on the rest, and leads are on the images that both have."
        for method, count in missing.items()
        if count
    ]


def runs_of(found: Sequence[Result], metric: Metric = "accuracy") -> dict[tuple[str, str], dict[int, Marks]]:
    """Return results as comparisons want them: (dataset, target) -> seed -> what was right."""
    runs: dict[tuple[str, str], dict[int, Marks]] = {}
    for result in found:
        marks = result.inside if metric == "in_split" else result.marks
        if marks is not None:
            runs.setdefault((result.dataset, result.target), {})[result.seed] = marks
    return runs


def _cell(found: Sequence[Result], metric: Metric) -> str:
    mean, error, seeds = mean_and_error(found, metric)
    if not seeds:
        return ""
    return f"{100 * mean:.1f} ± {100 * error:.1f}" if seeds > 1 else f"{100 * mean:.1f}"


def _lead(found: Lead | None) -> tuple[str, str]:
    """Return the lead with its interval, and wins and losses."""
    if found is None:
        return "", ""
    interval = f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return interval, f"{found.wins}/{found.losses}"


def _targets(found: Sequence[Result], metric: Metric = "accuracy") -> int:
    """Return of how many targets there are figures."""
    return len({(result.dataset, result.target) for result in found if math.isfinite(getattr(result, metric))})


def _published(datasets: set[str]) -> Callable[[str, str], str]:
    """Return what makes the published figure of (student, method) on one of the paper's datasets, or on all five.

    White box: of methods that start from the teacher's own weights; "" where nothing was published.
    """
    from vl2v.data.catalogue import plain

    tree = tomllib.loads((files("vl2v.benchmark") / "published.toml").read_text(encoding="utf-8"))
    columns = {plain(name): name for name in tree["black"]["adip"]}
    names = {plain(name) for name in datasets}
    whole = names == columns.keys() - {"mean"}
    column = "mean" if whole else columns.get(next(iter(names))) if len(names) == 1 else None

    def figure(student: str, method: str) -> str:
        entry = METHODS.get(method)
        starts_there = entry is not None and (not entry.stage_defaults or entry.tower)
        box = "white" if student == TOWER or starts_there else "resnet50" if student == "resnet50" else "black"
        found = tree[box].get(method, {}).get(column)
        return "" if found is None else f"{found:.1f} {box}"

    return figure
