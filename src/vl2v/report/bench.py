"""The finished jobs of a benchmark, as its report shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vl2v.benchmark.jobs import TEACHERS, ZERO_SHOT, Job
from vl2v.benchmark.results import Result, mean_and_error, of
from vl2v.benchmark.table import reference_of, runs_of
from vl2v.benchmark.worklist import WorkList, predictions_in
from vl2v.errors import RunError
from vl2v.evaluation.compare import Lead, leads
from vl2v.runs.predictions import Predictions

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
