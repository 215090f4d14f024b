"""The figures of finished jobs, selected as DomainBed does, and figures that come from elsewhere."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vl2v.benchmark.jobs import Cell, Job, Selection, WorkList
from vl2v.errors import DataError
from vl2v.evaluation.compare import Marks
from vl2v.runs.predictions import Predictions

DOMAINBED = {
    "PACS": ("art_painting", "cartoon", "photo", "sketch"),
    "VLCS": ("Caltech101", "LabelMe", "SUN09", "VOC2007"),
    "OfficeHome": ("Art", "Clipart", "Product", "Real World"),
    "TerraIncognita": ("location_100", "location_38", "location_43", "location_46"),
    "DomainNet": ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
}


@dataclass(frozen=True)
class Result:
    """What a student of a method makes of an unseen domain; accuracies from 0 to 1.

    Attributes:
        dataset: the name that it was given.
        target: the unseen domain.
        method: and
        student: as in the job.
        seed: of the run and the split.
        accuracy: on all pictures of the target.
        in_split: on the 80% of it that DomainBed measures.
        seen: on the source domains' validation pictures.
        seconds: that the training took.
        folder: the run folder, or the file that the figures were read from.
        marks: which pictures of the target were answered, and which of them correctly; None where that isn't known.
        corrupted: on the target's pictures corrupted, the mean over the corruptions asked for; NaN where not measured.
    """

    dataset: str
    target: str
    method: str
    student: str
    seed: int
    accuracy: float
    in_split: float
    seen: float
    seconds: float
    folder: Path
    marks: Marks | None = None
    corrupted: float = math.nan


def results(work: WorkList, selection: Selection = "training") -> list[Result]:
    """Return one result a dataset, target, method, student and seed: of the draw that the rule selects.

    Rules (Gulrajani and Lopez-Paz, ICLR 2021, section 3): "training", the accuracy on the source domains' validation
    pictures; "leave-one-out", the mean accuracy on each source domain in turn of students that didn't see it, either;
    "oracle", the accuracy on the 20% of the target that isn't measured, which nobody has who deploys.

    Args:
        work: the list; unfinished jobs, and those of other settings than the last, are left out.
        selection: the rule.
    """
    found = []
    for draws in by_cell(job for job in work.shown() if work.trained(job)).values():
        whole = {draw: jobs for draw, jobs in draws.items() if "" in jobs}
        if whole:
            best = max(whole, key=lambda draw: merit(work, whole[draw], selection)) if len(whole) > 1 else min(whole)
            found.append(result_of(work, whole[best][""]))
    return found


def by_cell(jobs: Iterable[Job]) -> dict[Cell, dict[int, dict[str, Job]]]:
    """Return jobs as cell -> draw -> domain that is left out besides -> job."""
    cells: dict[Cell, dict[int, dict[str, Job]]] = defaultdict(lambda: defaultdict(dict))
    for job in jobs:
        cells[job.cell][job.draw][job.held] = job
    return cells


def merit(work: WorkList, jobs: dict[str, Job], selection: Selection) -> float:
    """Return what a draw is selected by; its jobs are finished."""
    kept = Predictions.load(work.place(jobs[""]))
    right, target = kept["label"] == kept["answer"], kept["domain"] == kept.domains.index(jobs[""].target)
    if selection == "training":
        return float(right[~target].mean())
    if selection == "oracle":
        return float(right[target & ~kept["in_split"]].mean())
    scores = []
    for held, job in jobs.items():
        if held:
            kept = Predictions.load(work.place(job))
            scores.append(float((kept["label"] == kept["answer"])[kept["domain"] == kept.domains.index(held)].mean()))
    return float(np.mean(scores)) if scores else -np.inf


def result_of(work: WorkList, job: Job) -> Result:
    """Return the figures of a finished job."""
    place = work.place(job)
    kept = Predictions.load(place)
    right, target = kept["label"] == kept["answer"], kept["domain"] == kept.domains.index(job.target)
    inside, outside = target & kept["in_split"], ~target
    whole, part, seen = (float(right[rows].mean()) if rows.any() else math.nan for rows in (target, inside, outside))
    marks = Marks(kept["index"][target], right[target])
    return Result(*job.cell, whole, part, seen, work.seconds(job), place, marks, _corrupted(work, job))


def _corrupted(work: WorkList, job: Job) -> float:
    wanted = work.corruptions
    if wanted is None or work.unmeasured(job):
        return math.nan
    accuracies = wanted.measured(work.place(job)).values()
    return float(np.mean(list(accuracies))) if accuracies else math.nan


def read_domainbed(path: Path) -> list[Result]:
    """Return results of DomainBed's own program: its `results.jsonl` files, selected by source validation.

    Of each run the step with the best mean accuracy on the source domains' validation splits counts, and of each
    cell's hyperparameter draws the run with the best such step.

    Args:
        path: a results.jsonl, or a folder with some in it.

    Raises:
        DataError: no such file, or a line that isn't DomainBed's.
    """
    files = sorted(path.rglob("results.jsonl")) if path.is_dir() else [path]
    best: dict[tuple[str, str, str, int], tuple[float, Result]] = {}
    for file in files:
        try:
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: not DomainBed's results ({error})") from None
        for number, line in enumerate(lines, 1):
            try:
                merit, result = _domainbed_line(line, file)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise DataError(f"{file}, line {number}: not DomainBed's results ({error!r})") from None
            key = result.dataset, result.target, result.method, result.seed
            if key not in best or merit > best[key][0]:
                best[key] = merit, result
    if not best:
        raise DataError(f"{path}: no results.jsonl with results in it")
    return [result for _, result in best.values()]


def _domainbed_line(line: dict[str, object], file: Path) -> tuple[float, Result]:
    arguments = line["args"]
    assert isinstance(arguments, dict)
    dataset, (target, *more) = arguments["dataset"], arguments["test_envs"]
    if more:
        raise ValueError("several test environments")
    names = DOMAINBED.get(dataset)
    domain = names[target] if names else f"env{target}"
    accuracies = {key: value for key, value in line.items() if key.endswith("_acc") and isinstance(value, float | int)}
    inside, outside = accuracies[f"env{target}_in_acc"], accuracies.get(f"env{target}_out_acc")
    merit = float(
        np.mean([value for key, value in accuracies.items() if "_out_" in key and not key.startswith(f"env{target}_")])
    )
    holdout = float(arguments.get("holdout_fraction", 0.2))
    whole = inside if outside is None else (1 - holdout) * inside + holdout * outside
    method = f"{arguments['algorithm']} (DomainBed)"
    told = line.get("hparams")
    student = ("resnet18" if told["resnet18"] else "resnet50") if isinstance(told, dict) and "resnet18" in told else "?"
    seed = int(arguments.get("trial_seed", 0))
    result = Result(dataset, domain, method, student, seed, whole, inside, merit, float("nan"), file)
    return merit, result


def mean_and_error(found: Iterable[Result], metric: str = "accuracy") -> tuple[float, float, int]:
    """Return mean, standard error over seeds and the number of seeds, of accuracies averaged over cells first.

    Only seeds that have every cell (dataset and target) count; where a metric wasn't measured, it is NaN.
    """
    by_seed: dict[int, dict[tuple[str, str], float]] = defaultdict(dict)
    for result in found:
        value = getattr(result, metric)
        if not math.isnan(value):
            by_seed[result.seed][result.dataset, result.target] = value
    cells = {cell for scores in by_seed.values() for cell in scores}
    means = [float(np.mean(list(scores.values()))) for scores in by_seed.values() if scores.keys() == cells]
    if not means:
        return float("nan"), float("nan"), 0
    error = float(np.std(means, ddof=1) / len(means) ** 0.5) if len(means) > 1 else float("nan")
    return float(np.mean(means)), error, len(means)


def of(found: Sequence[Result], **wanted: object) -> list[Result]:
    """Return the results whose attributes have the wanted values."""
    return [result for result in found if all(getattr(result, name) == value for name, value in wanted.items())]
