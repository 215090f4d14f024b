"""Which method on these images? A small tournament, every domain left out once, in the time that there is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from vl2v.benchmark.engine import Engine, Local
from vl2v.benchmark.grid import STUDENTS, Grid
from vl2v.benchmark.jobs import ZERO_SHOT
from vl2v.benchmark.results import Result, mean_and_error, of, of_same_images, results
from vl2v.benchmark.run import plan, run
from vl2v.benchmark.table import runs_of
from vl2v.config import Tree, flat, merge
from vl2v.errors import ConfigError, DataError
from vl2v.evaluation.compare import Lead, lead
from vl2v.methods import find_method
from vl2v.progress import Progress, silent
from vl2v.runs.settings import applicable
from vl2v.teachers import is_white_box
from vl2v.training.log import MetricsLog

CANDIDATES = ("lp-ft", "erm", "kd", "adip", "adip-plus")
FEWEST_STEPS, MOST_STEPS = 20, 2000
TRIAL_STEPS = 10
EVALUATIONS = 10  # of a stage, where its settings don't say otherwise
BATCH = 16  # images of each source domain
FINALISTS = 2


@dataclass(frozen=True)
class Advice:
    """What a tournament says.

    Attributes:
        method: to be used.
        runner_up: the best other one.
        accuracy: of the method on domains left out, the mean.
        ahead: its lead over the runner-up.
        over_teacher: and over the zero-shot teacher.
        table: the last round's results.
        steps: of each run of the last round.
        command: that trains the student on all domains.
        failed: candidates that couldn't be trained, and why.
    """

    method: str
    runner_up: str
    accuracy: float
    ahead: Lead
    over_teacher: Lead | None
    table: list[Result]
    steps: int
    command: str
    failed: dict[str, str] = field(default_factory=dict)

    def verdict(self) -> str:
        """Return the recommendation in words."""
        points = 100 * self.ahead.mean
        interval = f"[{100 * self.ahead.low:+.1f}, {100 * self.ahead.high:+.1f}]"
        if self.ahead.sure:
            lines = [
                f"Use {self.method}: {points:.1f} points ahead of {self.runner_up} {interval} on domains left out."
            ]
        else:
            lines = [
                f"{self.method} and {self.runner_up} can't be separated here ({points:+.1f} points, {interval}); "
                f"{self.method} is a fair choice, and more minutes may separate them."
            ]
        teacher = self.over_teacher
        if teacher is not None and teacher.high < 0:
            lines.append(f"The zero-shot teacher itself is {-100 * teacher.mean:.1f} points better: train for longer.")
        lines.append(
            f"On an unseen domain expect about {100 * self.accuracy:.0f}%, after {self.steps} steps; more help."
        )
        lines += [f"{method} didn't compete: {why}" for method, why in self.failed.items()]
        return "\n".join([*lines, f"Then: {self.command}"])


def recommend(
    data: Path,
    teacher: str,
    out: Path,
    *,
    minutes: float,
    methods: Sequence[str] = CANDIDATES,
    student: str = "lite0",
    settings: Tree | None = None,
    engine: Engine | None = None,
    budget: float = 0,
    progress: Progress = silent,
    notify: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Advice:
    """Hold a tournament: half of the time all candidates, with one seed, then the best two with two others.

    Every domain is left out in turn. How many steps a run has follows from the time that a trial run takes.

    Args:
        data: images of at least three domains.
        teacher: as for `distill`.
        out: a benchmark folder; an interrupted tournament is resumed.
        minutes: that it may take, roughly; queries to the teacher come on top.
        methods: that compete, two or more; one that can't be trained drops out, and so does the zero-shot teacher,
            which is measured anyway.
        student: that is to be trained.
        settings: of every run.
        engine: where the runs run.
        budget: lifetime spending limit of the folder's store for a paid teacher.
        progress: called with the progress.
        notify: called with what becomes of the runs.

    Raises:
        DataError: fewer than three domains with labels.
        ConfigError: fewer than two candidates, or fewer than two that can be trained.
    """
    methods = [
        method for method in dict.fromkeys(methods) if find_method(method).stage_defaults
    ]  # the teacher isn't one
    if len(methods) < FINALISTS:
        raise ConfigError(f"--methods: a tournament takes {FINALISTS} or more, for example {','.join(CANDIDATES)}")
    whole = merge(_quick(), settings or {}, {"teacher": {"spec": teacher}})
    name = data.resolve().name
    grid = Grid({name: str(data)}, [], methods, [student], 1, settings=whole, batch=BATCH)
    domains = grid.datasets[name].labelled_domains
    if len(domains) < 3:
        raise DataError(
            f"{data}: {len(domains)} domain(s); a tournament leaves one out and learns from at least two others. "
            "Sort the images into domain/class/ folders, by source or style"
        )
    engine = engine or Local()
    reasons: dict[str, str] = {}
    towers = [method for method in methods if find_method(method).tower]
    if towers and not is_white_box(teacher):
        reasons = dict.fromkeys(towers, f"it starts from the teacher's weights, and {teacher} is a black box")

    def hold(methods: Sequence[str], steps: int, seeds: range) -> list[Result]:
        part = replace(grid, methods=methods, first_seed=seeds.start, seeds=len(seeds), steps=steps)
        bench = plan(part, out)
        run(bench, engine=engine, budget=budget, progress=progress, notify=notify)
        names = {bench.work.folder_of(job) for job in bench.jobs}
        for job in bench.missing:
            reasons.setdefault(job.method, bench.work.failure(job) or "another process has its runs")
        found = [one for one in results(bench.work) if one.folder in names and one.method not in reasons]
        return of_same_images(found)[0]

    def enough(methods: Sequence[str], wanted: int) -> list[str]:
        left = [method for method in methods if method not in reasons]
        if len(left) < wanted:
            raise ConfigError("; ".join(f"{method}: {why}" for method, why in reasons.items()))
        return left

    tried = [method for method in dict.fromkeys(["erm", *methods]) if method not in reasons]
    trials = (hold([method], TRIAL_STEPS, range(1)) for method in tried)
    trial = next(filter(None, trials), [])  # of the first that can be trained
    left = enough(methods, FINALISTS)
    paces = _paces(trial)
    half = 60 * minutes / 2
    first = _steps(half, paces, len(left) * len(domains), engine)
    opening = hold([ZERO_SHOT, *left], first, range(1))
    ranked = sorted(enough(left, FINALISTS), key=lambda method: -mean_and_error(of(opening, method=method))[0])
    last = max(first, _steps(half, paces, FINALISTS * 2 * len(domains), engine))
    final = hold([ZERO_SHOT, *ranked[:FINALISTS]], last, range(1, 3))  # by others than chose the finalists
    best, second = sorted(
        enough(ranked[:FINALISTS], FINALISTS), key=lambda method: -mean_and_error(of(final, method=method))[0]
    )
    runs = {method: runs_of(of(final, method=method)) for method in (best, second, ZERO_SHOT)}
    ahead = lead(runs[best], runs[second])
    assert ahead is not None
    *_, stage = find_method(best).stage_defaults
    sizes = {"stages": {stage: {"steps": max(1000, last), "batch_per_domain": BATCH}}}
    command = _command(data, STUDENTS.get(student, student), best, merge(whole, sizes), out / "store")
    accuracy = mean_and_error(of(final, method=best))[0]
    failed = {method: why for method, why in reasons.items() if method in methods}
    return Advice(best, second, accuracy, ahead, lead(runs[best], runs[ZERO_SHOT]), final, last, command, failed)


def _command(data: Path, student: str, method: str, settings: Tree, store: Path) -> str:
    """Return the command that trains a student with a tournament's settings on all domains."""
    own = applicable(settings, find_method(method))
    spec = own["teacher"]["spec"]
    words = ["vl2v", "distill", "--data", str(data), "--teacher", spec, "--student", student, "--method", method]
    said = ("teacher.spec", "student.name", "method", "data.path", "data.target")
    for key, value in flat(own).items():
        if key not in said:
            words += ["--set", f"{key}={json.dumps(value, default=str, ensure_ascii=False)}"]
    return shlex.join([*words, "--store", str(store), "--out", f"runs/{method}"])


def _quick() -> Tree:
    """Return first stages that take seconds."""
    first = {"steps": 400, "batch_per_domain": 64}
    return {"stages": {"align": first, "probe": first}}


def _paces(trial: Sequence[Result]) -> tuple[float, float]:
    """Return how long a step of the last stage takes, and an evaluation, with all processes at work.

    Medians: the first step waits for the images' processes to start.
    """
    steps, evaluations = [], []
    for found in trial:
        done, rows = 0, MetricsLog(found.folder).rows()
        for row in rows:
            if row["stage"] == rows[-1]["stage"]:
                steps.append((row["seconds"] - row["evaluation_seconds"]) / (row["step"] - done))
                evaluations.append(row["evaluation_seconds"])
                done = row["step"]
    return median(steps), median(evaluations)


def _steps(seconds: float, paces: tuple[float, float], runs: int, engine: Engine) -> int:
    """Return the steps of each run, so that all end in time."""
    step, evaluation = paces
    each = 0.8 * seconds * min(engine.processes, runs) / runs  # the rest is starting, aligning, the last evaluation
    wanted = (each - EVALUATIONS * evaluation) / step
    rounded = int(wanted) if wanted < 100 else int(wanted) // 50 * 50
    return min(max(rounded, FEWEST_STEPS), MOST_STEPS)
