"""The report of a benchmark: which method is ahead and by how much, at what price, where, and how surely."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vl2v.benchmark.results import Result, gather, leakage
from vl2v.benchmark.table import as_table
from vl2v.benchmark.worklist import TEACHERS, Selection, WorkList
from vl2v.errors import RunError
from vl2v.evaluation.compare import Lead
from vl2v.report.bench import Bench, Model, costs
from vl2v.report.charts import Span, axis
from vl2v.report.differences import by_class, by_domain, confidence, curves, disagreements
from vl2v.report.page import duration, lead, page, percent
from vl2v.runs.evaluate import TEACHER
from vl2v.runs.settings import resolve, without_paths
from vl2v.session import Progress
from vl2v.tree import Tree, flat

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
