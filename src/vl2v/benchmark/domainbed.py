"""Results of DomainBed's own program (Gulrajani and Lopez-Paz, ICLR 2021), to stand in the same table."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vl2v.benchmark.results import Result
from vl2v.benchmark.worklist import Selection
from vl2v.errors import DataError

DOMAINS = {
    "PACS": ("art_painting", "cartoon", "photo", "sketch"),
    "VLCS": ("Caltech101", "LabelMe", "SUN09", "VOC2007"),
    "OfficeHome": ("Art", "Clipart", "Product", "Real World"),
    "TerraIncognita": ("location_100", "location_38", "location_43", "location_46"),
    "DomainNet": ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
}


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

    @property
    def row(self) -> tuple[str, str, str]:
        """Dataset, algorithm and student: what a rule selects for."""
        return self.run[0], self.run[1], self.student

    def seen(self) -> float:
        """Return the mean accuracy on the source domains' validation splits."""
        outside = [
            key for key in self.accuracies if "_out_" in key and int(key[3 : key.index("_")]) not in self.targets
        ]
        return float(np.mean([self.accuracies[key] for key in outside]))

    def result(self) -> Result:
        """Return the figures of a run with a single target."""
        (target,), (dataset, algorithm, seed, _) = self.targets, self.run
        names = DOMAINS.get(dataset)
        domain = names[target] if names else f"env{target}"
        inside = self.accuracies[f"env{target}_in_acc"]
        outside = self.accuracies.get(f"env{target}_out_acc")
        whole = inside if outside is None else (1 - self.holdout) * inside + self.holdout * outside
        method = f"{algorithm} (DomainBed)"
        figures = (whole, inside, self.seen(), math.nan)
        return Result(dataset, domain, method, self.student, seed, *figures, self.file, theirs=True)


def read_domainbed(path: Path, selection: Selection = "training") -> tuple[list[Result], list[str]]:
    """Return results of DomainBed's own program (its `results.jsonl` files), and notes on them.

    Of a cell's runs and steps its rule of that name selects one: "training", the best mean accuracy on the source
    domains' validation splits; "leave-one-out", the best mean on each source domain in turn, of runs that left it out
    as well (lines with two test environments), else, where there are none, the rule before; "oracle", of the runs'
    last steps the best accuracy on the target's validation split. Of equals, as there: the run with the highest
    hparams_seed, and within it the first line ("leave-one-out": the first step).

    Args:
        path: a results.jsonl, or a folder with some in it.

    Raises:
        DataError: no such file, or a line that isn't DomainBed's.
    """
    files = sorted(path.rglob("results.jsonl")) if path.is_dir() else [path]
    lines = [line for file in files for line in _lines(file)]
    alone = [line for line in lines if len(line.targets) == 1]
    if not alone:
        raise DataError(f"{path}: no results.jsonl with results of a single test environment in it")
    notes = []
    selectable = _selectable(alone, lines, selection)
    ruled = {line.row for _, line in selectable}
    if others := [line for line in alone if line.row not in ruled]:
        selectable += _selectable(others, lines, "training")
        notes.append(
            f"{path}: no runs to select {', '.join(dict.fromkeys(line.run[1] for line in others))} by leaving another "
            "domain out; its rows are selected by source validation."
        )
    if selection != "leave-one-out" and len(lines) > len(alone):
        notes.append(f"{path}: {len(lines) - len(alone):,} lines with several test environments aren't in the table.")
    best: dict[Hashable, tuple[tuple[float, int], Result]] = {}
    for merit, line in selectable:
        result = line.result()
        key = result.dataset, result.target, result.method, result.student, result.seed
        *_, hparams_seed = line.run
        if key not in best or (merit, hparams_seed) > best[key][0]:
            best[key] = (merit, hparams_seed), result
    return [result for _, result in best.values()], notes


def _selectable(alone: Sequence[_Line], lines: Sequence[_Line], selection: Selection) -> list[tuple[float, _Line]]:
    """Return the lines that the rule may select, with what it selects by."""
    if selection == "training":
        return [(line.seen(), line) for line in alone]
    if selection == "oracle":
        last = {(line.run, line.targets, line.student): line for line in sorted(alone, key=lambda line: line.step)}
        return [(line.accuracies[f"env{line.targets[0]}_out_acc"], line) for line in last.values()]
    held: dict[Hashable, dict[int, float]] = defaultdict(dict)
    for line in lines:
        if len(line.targets) == 2:
            for target, other in (line.targets, line.targets[::-1]):
                held[line.run, line.student, line.step, target][other] = line.accuracies[f"env{other}_in_acc"]
    found = []
    for line in sorted(alone, key=lambda line: line.step):
        scores = held[line.run, line.student, line.step, line.targets[0]]
        if scores and len(scores) == sum(key.endswith("_in_acc") for key in line.accuracies) - 1:
            found.append((float(np.mean(list(scores.values()))), line))
    return found


def _lines(file: Path) -> Iterator[_Line]:
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not DomainBed's results ({error})") from None
    for number, row in enumerate(rows, 1):
        try:
            args = row["args"]
            line = _Line(
                (args["dataset"], args["algorithm"], int(args.get("trial_seed", 0)), int(args.get("hparams_seed", 0))),
                tuple(int(target) for target in args["test_envs"]),
                int(row["step"]),
                {key: float(value) for key, value in row.items() if key.endswith("_acc")},
                float(args.get("holdout_fraction", 0.2)),
                _student(row.get("hparams")),
                file,
            )
            if len(line.targets) == 1:
                line.result()
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{file}, line {number}: not DomainBed's results ({error!r})") from None
        yield line


def _student(args: object) -> str:
    """Return the student that a run's hparams name."""
    if not isinstance(args, dict) or "resnet18" not in args:
        return "?"
    if args.get("vit"):
        return "dinov2" if args.get("dinov2") else "vit"
    return "resnet18" if args["resnet18"] else "resnet50"
