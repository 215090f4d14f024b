"""The figures of finished jobs, selected as DomainBed does, and figures that come from elsewhere."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vl2v.benchmark.jobs import ZERO_SHOT, Cell, Job, Selection
from vl2v.benchmark.worklist import WorkList
from vl2v.errors import ConfigError, DataError, RunError
from vl2v.evaluation.compare import Marks, target_weights
from vl2v.runs.predictions import Predictions

DOMAINBED = {
    "PACS": ("art_painting", "cartoon", "photo", "sketch"),
    "VLCS": ("Caltech101", "LabelMe", "SUN09", "VOC2007"),
    "OfficeHome": ("Art", "Clipart", "Product", "Real World"),
    "TerraIncognita": ("location_100", "location_38", "location_43", "location_46"),
    "DomainNet": ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
}
_NEEDED = ("index", "domain", "label", "answer", "in_split")


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
        seen: on the source domains' validation pictures, the mean over domains.
        seconds: that the training took.
        folder: the run folder, or the file that the figures were read from.
        marks: which pictures of the target were answered, and which of them correctly; None where that isn't known.
        corrupted: on the target's pictures corrupted, the mean over the corruptions asked for; NaN where not measured.
        inside: as `marks`, of the 80% that DomainBed measures.
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

    @property
    def cell(self) -> Cell:
        """What it is a result of."""
        return Cell(self.dataset, self.target, self.method, self.student, self.seed)


def results(work: WorkList, selection: Selection = "training") -> list[Result]:
    """Return one result a dataset, target, method, student and seed: of the draw that the rule selects.

    Rules (Gulrajani and Lopez-Paz, ICLR 2021, section 3): "training", the accuracy on the source domains' validation
    pictures, the mean over domains; "leave-one-out", the mean accuracy on each source domain in turn of students that
    didn't see it, either;
    "oracle", the accuracy on the 20% of the target that isn't measured, which nobody has who deploys.

    Args:
        work: the list; unfinished jobs, and those of other settings than the last, are left out. A draw that can't be
            judged yet is unfinished, too, and so is a job whose answers can't be read (`WorkList.spoilt`).
        selection: the rule.

    Raises:
        ConfigError: there are draws, and none has the runs that the rule goes by.
    """
    found: list[Result] = []
    teachers: set[Cell] = set()
    for cell, draws in by_cell(work.shown()).items():
        if cell.method == ZERO_SHOT and cell._replace(student="") in teachers:
            continue  # one row, whichever students were asked for when it was measured
        finished = {draw: jobs for draw, jobs in draws.items() if "" in jobs and work.trained(jobs[""])}
        if len(draws) > 1 and selection == "leave-one-out":
            if all(len(jobs) == 1 for jobs in draws.values()):
                raise ConfigError(
                    f"{work.folder}: {cell.method} has {len(draws)} draws, and no runs that leave another domain out "
                    "to select one by; give the `vl2v benchmark` command again with --selection leave-one-out"
                )
            finished = {draw: jobs for draw, jobs in finished.items() if all(map(work.trained, jobs.values()))}
        merits = {draw: merit(work, jobs, selection) if len(finished) > 1 else 0 for draw, jobs in finished.items()}
        merits = {draw: worth for draw, worth in merits.items() if worth != -math.inf}
        if merits and (result := result_of(work, finished[max(merits, key=merits.__getitem__)][""])) is not None:
            found.append(result)
            if cell.method == ZERO_SHOT:
                teachers.add(cell._replace(student=""))
    return found


def answers_of(work: WorkList, job: Job, only: Collection[str] = _NEEDED) -> Predictions | None:
    """Return a finished job's answers; None, and the job isn't finished any more, where they can't be read.

    Args:
        work: the list that it is on.
        job: the job.
        only: the columns, by default those that figures are made of; () are all.
    """
    try:
        return Predictions.load(work.place(job), only)
    except RunError:
        work.set_aside(job)
        return None


def by_cell(jobs: Iterable[Job]) -> dict[Cell, dict[int, dict[str, Job]]]:
    """Return jobs as cell -> draw -> domain that is left out besides -> job."""
    cells: dict[Cell, dict[int, dict[str, Job]]] = defaultdict(lambda: defaultdict(dict))
    for job in jobs:
        cells[job.cell][job.draw][job.held] = job
    return cells


def merit(work: WorkList, jobs: dict[str, Job], selection: Selection) -> float:
    """Return what a draw is selected by, -inf where there is nothing to judge it by; its jobs are finished."""
    kept = answers_of(work, jobs[""])
    if kept is None:
        return -math.inf
    right, target = kept["label"] == kept["answer"], kept["domain"] == kept.domains.index(jobs[""].target)
    if selection == "training":
        return _of_each_domain(right[~target], kept["domain"][~target])
    if selection == "oracle":
        rest = target & ~kept["in_split"]
        if not rest.any():
            raise ConfigError(
                f"--selection oracle: nothing is left of {jobs[''].target} to select by; published.target_in_split "
                "leaves its other 20% out"
            )
        return float(right[rest].mean())
    scores = []
    for held, job in jobs.items():
        if held:
            kept = answers_of(work, job)
            if kept is None:
                return -math.inf
            scores.append(float((kept["label"] == kept["answer"])[kept["domain"] == kept.domains.index(held)].mean()))
    return float(np.mean(scores)) if scores else -np.inf


def result_of(work: WorkList, job: Job) -> Result | None:
    """Return the figures of a finished job; None where its answers can't be read."""
    place, kept = work.place(job), answers_of(work, job)
    if kept is None:
        return None
    right, target = kept["label"] == kept["answer"], kept["domain"] == kept.domains.index(job.target)
    inside = target & kept["in_split"]
    whole, part = (float(right[rows].mean()) if rows.any() else math.nan for rows in (target, inside))
    marks, marks_inside = (Marks(kept["index"][rows], right[rows]) for rows in (target, inside))
    seen = _of_each_domain(right[~target], kept["domain"][~target])
    corrupted = _corrupted(work, job)
    return Result(*job.cell, whole, part, seen, work.seconds(job), place, marks, corrupted, marks_inside)


def _of_each_domain(right: NDArray[np.bool_], domains: NDArray[np.int64]) -> float:
    """Return the accuracy in each domain, the mean; NaN of no picture."""
    counts = np.bincount(domains)
    there = counts > 0
    return float(np.mean(np.bincount(domains, right)[there] / counts[there])) if len(right) else math.nan


def _corrupted(work: WorkList, job: Job) -> float:
    wanted = work.corruptions
    if wanted is None or work.unmeasured(job):
        return math.nan
    accuracies = wanted.measured(work.place(job)).values()
    return float(np.mean(list(accuracies))) if accuracies else math.nan


@dataclass(frozen=True)
class _Line:
    """A line of DomainBed's results.jsonl: the accuracies of a run at a step; `run` is everything but `targets`."""

    run: tuple[str, str, int, int]
    targets: tuple[int, ...]
    step: int
    accuracies: dict[str, float]
    holdout: float
    student: str
    file: Path

    def seen(self) -> float:
        """Return the mean accuracy on the source domains' validation splits."""
        outside = [
            key for key in self.accuracies if "_out_" in key and int(key[3 : key.index("_")]) not in self.targets
        ]
        return float(np.mean([self.accuracies[key] for key in outside]))

    def result(self) -> Result:
        """Return the figures of a run with a single target."""
        (target,), (dataset, algorithm, seed, _) = self.targets, self.run
        names = DOMAINBED.get(dataset)
        domain = names[target] if names else f"env{target}"
        inside = self.accuracies[f"env{target}_in_acc"]
        outside = self.accuracies.get(f"env{target}_out_acc")
        whole = inside if outside is None else (1 - self.holdout) * inside + self.holdout * outside
        method = f"{algorithm} (DomainBed)"
        return Result(dataset, domain, method, self.student, seed, whole, inside, self.seen(), math.nan, self.file)


def read_domainbed(path: Path, selection: Selection = "training") -> tuple[list[Result], list[str]]:
    """Return results of DomainBed's own program (its `results.jsonl` files), and what is to be said about them.

    Of a cell's runs and steps its rule of that name selects one: "training", the best mean accuracy on the source
    domains' validation splits; "leave-one-out", the best mean on each source domain in turn, of runs that left it out
    as well (lines with two test environments), else, where there are none, the rule before; "oracle", of the runs'
    last steps the best accuracy on the target's validation split.

    Args:
        path: a results.jsonl, or a folder with some in it.
        selection: the rule.

    Raises:
        DataError: no such file, or a line that isn't DomainBed's.
    """
    files = sorted(path.rglob("results.jsonl")) if path.is_dir() else [path]
    lines = [line for file in files for line in _domainbed_lines(file)]
    alone = [line for line in lines if len(line.targets) == 1]
    if not alone:
        raise DataError(f"{path}: no results.jsonl with results of a single test environment in it")
    notes = []
    judged = _judged(alone, lines, selection)
    if not judged:
        judged = _judged(alone, lines, "training")
        notes.append(
            f"{path}: no runs to select by leaving another domain out; its rows are selected by source validation."
        )
    elif selection != "leave-one-out" and len(lines) > len(alone):
        notes.append(f"{path}: {len(lines) - len(alone):,} lines with several test environments aren't in the table.")
    best: dict[Hashable, tuple[float, Result]] = {}
    for merit, line in judged:
        result = line.result()
        key = result.dataset, result.target, result.method, result.student, result.seed
        if key not in best or merit > best[key][0]:
            best[key] = merit, result
    return [result for _, result in best.values()], notes


def _judged(alone: Sequence[_Line], lines: Sequence[_Line], selection: Selection) -> list[tuple[float, _Line]]:
    """Return the lines that the rule may select, with what it judges each by."""
    if selection == "training":
        return [(line.seen(), line) for line in alone]
    if selection == "oracle":
        last = {(line.run, line.targets): line for line in sorted(alone, key=lambda line: line.step)}
        return [(line.accuracies[f"env{line.targets[0]}_out_acc"], line) for line in last.values()]
    held: dict[Hashable, dict[int, float]] = defaultdict(dict)
    for line in lines:
        if len(line.targets) == 2:
            for target, other in (line.targets, line.targets[::-1]):
                held[line.run, line.step, target][other] = line.accuracies[f"env{other}_in_acc"]
    found = []
    for line in alone:
        scores = held[line.run, line.step, line.targets[0]]
        if scores and len(scores) == sum(key.endswith("_in_acc") for key in line.accuracies) - 1:
            found.append((float(np.mean(list(scores.values()))), line))
    return found


def _domainbed_lines(file: Path) -> Iterator[_Line]:
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not DomainBed's results ({error})") from None
    for number, row in enumerate(rows, 1):
        try:
            told = row["args"]
            line = _Line(
                (told["dataset"], told["algorithm"], int(told.get("trial_seed", 0)), int(told.get("hparams_seed", 0))),
                tuple(int(target) for target in told["test_envs"]),
                int(row["step"]),
                {key: float(value) for key, value in row.items() if key.endswith("_acc")},
                float(told.get("holdout_fraction", 0.2)),
                _domainbed_student(row.get("hparams")),
                file,
            )
            if len(line.targets) == 1:
                line.result()
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{file}, line {number}: not DomainBed's results ({error!r})") from None
        yield line


def _domainbed_student(told: object) -> str:
    """Return the student that a run's hparams name."""
    if not isinstance(told, dict) or "resnet18" not in told:
        return "?"
    if told.get("vit"):
        return "dinov2" if told.get("dinov2") else "vit"
    return "resnet18" if told["resnet18"] else "resnet50"


def mean_and_error(found: Iterable[Result], metric: str = "accuracy") -> tuple[float, float, int]:
    """Return mean, standard error over seeds and the number of seeds, of the average over all cells.

    That is DomainBed's: over each dataset's targets, then over datasets. Only seeds that have every cell (dataset and
    target) count; where a metric wasn't measured, it is NaN.
    """
    by_seed: dict[int, dict[tuple[str, str], float]] = defaultdict(dict)
    for result in found:
        value = getattr(result, metric)
        if not math.isnan(value):
            by_seed[result.seed][result.dataset, result.target] = value
    cells = sorted({cell for scores in by_seed.values() for cell in scores})
    whole = [[scores[cell] for cell in cells] for scores in by_seed.values() if len(scores) == len(cells)]
    if not whole:
        return float("nan"), float("nan"), 0
    means = np.array(whole) @ target_weights(cells)
    error = float(np.std(means, ddof=1) / len(means) ** 0.5) if len(means) > 1 else float("nan")
    return float(np.mean(means)), error, len(means)


def leakage(found: Iterable[Result]) -> list[str]:
    """Return a line for each unseen domain of which source domains have pictures, too, as its runs noticed."""
    said: dict[tuple[str, str], list[str]] = {}
    for result in found:
        place, file = (result.dataset, result.target), result.folder / "evaluation.json"
        if result.method != ZERO_SHOT and place not in said and file.is_file():
            told = json.loads(file.read_text(encoding="utf-8"))["notes"]
            said[place] = [note for note in told if note.startswith("leakage")]
    return [f"{dataset} {target}: {note}" for (dataset, target), notes in said.items() for note in notes]


def of(found: Sequence[Result], **wanted: object) -> list[Result]:
    """Return the results whose attributes have the wanted values."""
    return [result for result in found if all(getattr(result, name) == value for name, value in wanted.items())]
