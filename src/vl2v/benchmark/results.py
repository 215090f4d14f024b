"""The figures of finished jobs, selected as DomainBed does."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vl2v.benchmark.worklist import TEACHERS, Cell, Job, Selection, WorkList, predictions_in
from vl2v.errors import ConfigError
from vl2v.evaluation.compare import Marks, target_weights
from vl2v.io import read_json


@dataclass(frozen=True)
class Result:
    """What a student of a method makes of an unseen domain; accuracies from 0 to 1.

    Attributes:
        dataset: the name that it was given.
        method: and
        seed: of the run and the split.
        accuracy: on all images of the target.
        in_split: on the 80% of it that DomainBed measures.
        seen: on the source domains' validation images, the mean over domains.
        folder: the run folder, or the file that the figures were read from.
        marks: which images of the target were predicted, and which of them correctly; None if unknown.
        corrupted: on the target's images corrupted, the mean over the corruptions wanted; NaN where not measured.
        inside: as `marks`, of the 80% that DomainBed measures.
        content: a digest of the dataset that `marks` point to; "" of a run without.
        theirs: whether DomainBed's own program made it; its standard errors divide by the number of seeds.
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
    inside: Marks | None = None
    content: str = ""
    theirs: bool = False

    @property
    def cell(self) -> Cell:
        """What it is a result of."""
        return Cell(self.dataset, self.target, self.method, self.student, self.seed)


def results(work: WorkList, selection: Selection = "training") -> list[Result]:
    """Return one result a dataset, target, method, student and seed: of the draw that the rule selects.

    Rules (Gulrajani and Lopez-Paz, ICLR 2021, section 3): "training", the accuracy on the source domains' validation
    images, the mean over domains; "leave-one-out", the mean accuracy on each source domain in turn of students that
    didn't see it, either;
    "oracle", the accuracy on the 20% of the target that isn't measured, which nobody has who deploys. Of equals the
    last draw, as in its code.

    Args:
        work: the list; unfinished jobs, and those of other settings than the last, are left out. A draw that can't be
            selected by yet is unfinished, too, and so is a job whose predictions can't be read (`WorkList.spoilt`).

    Raises:
        ConfigError: there are draws, and none has the runs that the rule goes by.
    """
    found: list[Result] = []
    cells = by_cell(work.shown()).values()
    several = [jobs for draws in cells if len(draws) > 1 for jobs in draws.values()]
    if selection == "leave-one-out" and several and all(len(jobs) == 1 for jobs in several):
        raise ConfigError(
            f"{work.folder}: there are draws, and no runs that leave another domain out to select one by; give the "
            "`vl2v benchmark` command again with --selection leave-one-out"
        )
    for draws in cells:
        finished = {draw: jobs for draw, jobs in draws.items() if "" in jobs and work.trained(jobs[""])}
        if len(draws) > 1 and selection == "leave-one-out":
            selectable = {draw: jobs for draw, jobs in finished.items() if len(jobs) > 1}
            finished = {draw: jobs for draw, jobs in selectable.items() if all(map(work.trained, jobs.values()))}
        merits = {draw: merit(work, jobs, selection) if len(finished) > 1 else 0 for draw, jobs in finished.items()}
        merits = {draw: worth for draw, worth in merits.items() if worth != -math.inf}
        if (
            merits
            and (result := result_of(work, finished[max(merits, key=lambda draw: (merits[draw], draw))][""]))
            is not None
        ):
            found.append(result)
    return found


def gather(folders: Sequence[Path], selection: Selection = "training") -> tuple[list[Result], list[str]]:
    """Return the results of benchmark folders that are to stand in one table, and notes on them.

    The zero-shot teacher stands once, beside the first student. Runs on other files than the most of their target
    have no `marks`: their predictions can't be compared image by image.

    Args:
        selection: the rule, see `results`.

    Raises:
        ConfigError: folders whose images or settings differ, or that have the same cell.
        RunError: not a benchmark folder.
    """
    found: list[Result] = []
    notes: list[str] = []
    identities: dict[str, Any] = {}
    for folder in folders:
        work = WorkList(folder)
        own = results(work, selection)
        for name, about in work.identity().items():
            if identities.setdefault(name, about) != about:
                raise ConfigError(f"{folder}: {name} has other images or settings here than in another of the folders")
        measured = {result.cell for result in found if result.method not in TEACHERS}
        if twice := measured & {result.cell for result in own}:
            raise ConfigError(
                f"{folder}: {', '.join(map(str, min(twice)))}: is in another of the folders, too; leave one of them out"
            )
        found += own
        if selection != "leave-one-out":  # only this rule leaves out what is trained
            continue
        trained = {
            job.cell for job in work.shown() if job.method not in TEACHERS and not job.held and work.trained(job)
        }
        if waiting := trained - {result.cell for result in own}:
            notes.append(
                f"{folder.name}: {len(waiting)} more have students, and no draw that this rule can select yet: "
                f"{', '.join(map(str, min(waiting)))}, for example."
            )
    found, changed = of_same_images(found)
    return _one_teacher(found), notes + changed


def _one_teacher(found: Sequence[Result]) -> list[Result]:
    """Return results with one row for the zero-shot teacher, whichever students were given with it."""
    student = next((result.student for result in found if result.method not in TEACHERS), None)
    one: dict[Cell, Result] = {}
    for result in found:
        if result.method in TEACHERS and student is not None:
            result = replace(result, student=student)
        one.setdefault(result.cell, result)
    return list(one.values())


def of_same_images(found: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """Return results, those on other files than the most of their target without marks, and a line about these."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for result in found:
        counts[result.dataset, result.target][result.content] += 1
    usual = {target: contents.most_common(1)[0][0] for target, contents in counts.items()}
    same = [result.content == usual[result.dataset, result.target] for result in found]
    others = [result.folder.name for result, one in zip(found, same, strict=True) if not one]
    if not others:
        return list(found), []
    marked = [r if one else replace(r, marks=None, inside=None) for r, one in zip(found, same, strict=True)]
    return marked, [
        f"{len(others)} run(s) had other files than the rest under the same names ({others[0]}, for example): one has "
        "changed since, or couldn't be read then. They have no lead; delete their folders to have them trained again."
    ]


def by_cell(jobs: Iterable[Job]) -> dict[Cell, dict[int, dict[str, Job]]]:
    """Return jobs as cell -> draw -> domain that is left out besides -> job."""
    cells: dict[Cell, dict[int, dict[str, Job]]] = defaultdict(lambda: defaultdict(dict))
    for job in jobs:
        cells[job.cell][job.draw][job.held] = job
    return cells


def merit(work: WorkList, jobs: dict[str, Job], selection: Selection) -> float:
    """Return what a draw is selected by, -inf where there is nothing to select it by; its jobs are finished."""
    predictions = predictions_in(work.folder_of(jobs[""]))
    if predictions is None:
        return -math.inf
    right, target = predictions.right, predictions.in_domain(jobs[""].target)
    if selection == "training":
        return _of_each_domain(right[~target], predictions["domain"][~target])
    if selection == "oracle":
        rest = target & ~predictions["in_split"]
        if not rest.any():
            raise ConfigError(
                f"--selection oracle: nothing is left of {jobs[''].target} to select by; published.target_in_split "
                "leaves its other 20% out"
            )
        return float(right[rest].mean())
    scores = []
    for held, job in jobs.items():
        if held:
            predictions = predictions_in(work.folder_of(job))
            if predictions is None:
                return -math.inf
            scores.append(float(predictions.right[predictions.in_domain(held)].mean()))
    return float(np.mean(scores)) if scores else -np.inf


def result_of(work: WorkList, job: Job) -> Result | None:
    """Return the figures of a finished job; None where its predictions can't be read."""
    folder, predictions = work.folder_of(job), predictions_in(work.folder_of(job))
    if predictions is None:
        return None
    right, target = predictions.right, predictions.in_domain(job.target)
    inside = target & predictions["in_split"]
    whole, part = (float(right[rows].mean()) if rows.any() else math.nan for rows in (target, inside))
    marks, marks_inside = (Marks(predictions["index"][rows], right[rows]) for rows in (target, inside))
    seen = _of_each_domain(right[~target], predictions["domain"][~target])
    corrupted = _corrupted(work, job)
    seconds = work.seconds(job)
    return Result(*job.cell, whole, part, seen, seconds, folder, marks, corrupted, marks_inside, predictions.content)


def _of_each_domain(right: NDArray[np.bool_], domains: NDArray[np.int64]) -> float:
    """Return the accuracy in each domain, the mean; NaN of no image."""
    counts = np.bincount(domains)
    there = counts > 0
    return float(np.mean(np.bincount(domains, right)[there] / counts[there])) if len(right) else math.nan


def _corrupted(work: WorkList, job: Job) -> float:
    wanted = work.corruptions
    if wanted is None or work.unmeasured(job):
        return math.nan
    accuracies = wanted.measured(work.folder_of(job)).values()
    return float(np.mean(list(accuracies))) if accuracies else math.nan


def mean_and_error(found: Iterable[Result], metric: str = "accuracy") -> tuple[float, float, int]:
    """Return mean, standard error over seeds and the number of seeds, of the average over all cells.

    That is DomainBed's: over each dataset's targets, then over datasets. Only seeds that have every cell (dataset and
    target) count; where a metric wasn't measured, it is NaN. The error is of the sample's standard deviation; of
    DomainBed's own results it is as they print it, of the population's (a single seed has 0 there, and NaN here).
    """
    by_seed: dict[int, dict[tuple[str, str], float]] = defaultdict(dict)
    found = list(found)
    ddof = 0 if found and all(result.theirs for result in found) else 1
    for result in found:
        value = getattr(result, metric)
        if not math.isnan(value):
            by_seed[result.seed][result.dataset, result.target] = value
    cells = sorted({cell for scores in by_seed.values() for cell in scores})
    whole = [[scores[cell] for cell in cells] for scores in by_seed.values() if len(scores) == len(cells)]
    if not whole:
        return float("nan"), float("nan"), 0
    means = np.array(whole) @ target_weights(cells)
    error = float(np.std(means, ddof=ddof) / len(means) ** 0.5) if len(means) > 1 else float("nan")
    return float(np.mean(means)), error, len(means)


def leakage(found: Iterable[Result]) -> list[str]:
    """Return a line for each unseen domain of which source domains have images, too, as its runs noticed."""
    noted: dict[tuple[str, str], list[str]] = {}
    for result in found:
        cell = result.dataset, result.target
        if result.method not in TEACHERS and cell not in noted:
            notes = read_json(result.folder / "evaluation.json", {"notes": []})["notes"]
            noted[cell] = [note for note in notes if note.startswith("leakage")]
    return [f"{dataset} {target}: {note}" for (dataset, target), notes in noted.items() for note in notes]


def of(found: Sequence[Result], **wanted: object) -> list[Result]:
    """Return the results whose attributes have the wanted values."""
    return [result for result in found if all(getattr(result, name) == value for name, value in wanted.items())]
