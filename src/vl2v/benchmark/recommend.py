"""Which method, and which student? A small tournament, every domain left out once, in the time that there is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from vl2v.benchmark.engine import Engine, Local
from vl2v.benchmark.grid import STUDENTS, Grid
from vl2v.benchmark.results import Result, mean_and_error, of, of_same_images, results
from vl2v.benchmark.run import plan, run
from vl2v.benchmark.table import runs_of
from vl2v.benchmark.worklist import ZERO_SHOT
from vl2v.config import TOWER
from vl2v.errors import ConfigError, DataError
from vl2v.evaluation.compare import Lead, lead
from vl2v.methods import find_method
from vl2v.runs.settings import applicable
from vl2v.session import Progress, silent
from vl2v.students.backbone import licence_of
from vl2v.teachers import is_white_box
from vl2v.training.loop import MetricsLog
from vl2v.tree import Tree, flat, merge

CANDIDATES = ("lp-ft", "erm", "kd", "adip", "adip-plus")
FEWEST_STEPS, MOST_STEPS = 20, 2000
TRIAL_STEPS = 10
EVALUATIONS = 10  # of a stage, where its settings don't say otherwise
BATCH = 16  # images of each source domain
FINALISTS = 2

Candidate = tuple[str, str]  # (method, student)


@dataclass(frozen=True)
class Advice:
    """The outcome of a tournament.

    Attributes:
        student: to be used, as tables call it.
        runner_up: the best other one, in words.
        licences: of the weights that the finalists' students start from.
        accuracy: of the method on domains left out, the mean.
        ahead: its lead over the runner-up.
        over_teacher: and over the zero-shot teacher.
        steps: of each run of the last round.
        command: that trains the student on all domains.
        failed: candidates that couldn't be trained, and why.
    """

    method: str
    student: str
    runner_up: str
    reference: str
    licences: dict[str, str]
    accuracy: float
    ahead: Lead
    over_teacher: Lead | None
    table: list[Result]
    steps: int
    command: str
    failed: dict[str, str] = field(default_factory=dict)

    def verdict(self) -> str:
        """Return the recommendation in words."""
        points, best = 100 * self.ahead.mean, f"{self.method} on {self.student}"
        interval = f"[{100 * self.ahead.low:+.1f}, {100 * self.ahead.high:+.1f}]"
        if self.ahead.sure:
            lines = [f"Use {best}: {points:.1f} points ahead of {self.runner_up} {interval} on domains left out."]
        else:
            lines = [
                f"{best} and {self.runner_up} can't be separated here ({points:+.1f} points, {interval}); "
                f"{best} is a fair choice, and more minutes may separate them."
            ]
        lines += [f"Licence of the weights that {one} starts from: {words}." for one, words in self.licences.items()]
        teacher = self.over_teacher
        if teacher is not None and teacher.high < 0:
            lines.append(f"The zero-shot teacher itself is {-100 * teacher.mean:.1f} points better: train for longer.")
        lines.append(
            f"On an unseen domain expect about {100 * self.accuracy:.0f}%, after {self.steps} steps; more help."
        )
        lines += [f"{one} didn't compete: {why}" for one, why in self.failed.items()]
        return "\n".join([*lines, f"Then: {self.command}"])


def recommend(
    data: Path,
    teacher: str,
    out: Path,
    *,
    minutes: float,
    methods: Sequence[str] = CANDIDATES,
    students: str | Sequence[str] = "lite0",
    settings: Tree | None = None,
    engine: Engine | None = None,
    budget: float = 0,
    progress: Progress = silent,
    notify: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Advice:
    """Hold a tournament: half of the time all candidates, with one seed, then the best two with two others.

    Every domain is left out in turn. How many steps a run has, the same for all students, follows from the time that
    trial runs take.

    Args:
        data: images of at least three domains.
        teacher: as for `distill`.
        out: a benchmark folder; an interrupted tournament is resumed.
        minutes: that it may take, roughly; queries to the teacher come on top.
        methods: that compete; one that can't be trained drops out, and so does the zero-shot teacher, which is
            measured anyway.
        students: that compete; of methods and students together two or more.
        budget: lifetime spending limit of the folder's store for a paid teacher.
        notify: called with what becomes of the runs.

    Raises:
        DataError: fewer than three domains with labels.
        ConfigError: fewer than two candidates, or fewer than two that can be trained.
    """
    methods = [
        method for method in dict.fromkeys(methods) if find_method(method).stage_defaults
    ]  # the teacher isn't one
    students = [students] if isinstance(students, str) else list(dict.fromkeys(students))
    if len(methods) * len(students) < FINALISTS or not methods:
        raise ConfigError(f"--methods: name {FINALISTS} or more to compare, for example {','.join(CANDIDATES)}")
    seconds = {"steps": 400, "batch_per_domain": 64}  # of a first stage
    own = {"stages": {"align": seconds, "probe": seconds}, "train": {"head": "auto"}}
    whole = merge(own, settings or {}, {"teacher": {"spec": teacher}})
    name = data.resolve().name
    grid = Grid({name: str(data)}, [], methods, students, 1, settings=whole, batch=BATCH)
    domains = grid.datasets[name].labelled_domains
    if len(domains) < 3:
        raise DataError(
            f"{data}: three or more labelled domains are needed, to leave each out in turn and learn from the others; "
            f"it has {len(domains)}. Sort the images into domain/class/ folders, by source or style"
        )
    engine = engine or Local()
    reasons: dict[Candidate, str] = {}
    candidates = list(dict.fromkeys((m, grid.student_of(m, s)) for s in students for m in methods))
    if not is_white_box(teacher):
        why = f"it starts from the teacher's weights, and {teacher} is a black box"
        reasons = {one: why for one in candidates if find_method(one[0]).tower}

    def hold(those: Sequence[Candidate], steps: int, seeds: range) -> list[Result]:
        names, work = set(), None
        for student in dict.fromkeys(student for _, student in those):
            own = [method for method, other in those if other == student]
            part = replace(grid, methods=own, first_seed=seeds.start, seeds=len(seeds), steps=steps)
            bench = plan(replace(part, students=students[:1] if student == TOWER else [student]), out)
            run(bench, engine=engine, budget=budget, progress=progress, notify=notify)
            names |= {bench.work.folder_of(job) for job in bench.jobs}
            for job in bench.missing:
                failed = bench.work.failure(job) or "another process is training its runs"
                reasons.setdefault((job.method, job.student), failed)
            work = bench.work
        found = [] if work is None else [one for one in results(work) if one.folder in names]
        return of_same_images([one for one in found if (one.method, one.student) not in reasons])[0]

    def of_one(found: Sequence[Result], one: Candidate) -> list[Result]:
        return of(found, method=one[0]) if one[0] == ZERO_SHOT else of(found, method=one[0], student=one[1])

    def enough(those: Sequence[Candidate], wanted: int) -> list[Candidate]:
        left = [one for one in those if one not in reasons]
        if len(left) < wanted:
            raise ConfigError("; ".join(f"{_words(one, students)}: {why}" for one, why in reasons.items()))
        return left

    paces = []
    for student in dict.fromkeys(student for _, student in candidates):
        tried = [("erm", student), *(one for one in candidates if one[1] == student)]
        trials = (hold([one], TRIAL_STEPS, range(1)) for one in dict.fromkeys(tried) if one not in reasons)
        if trial := next(filter(None, trials), []):  # of the first that can be trained
            paces.append(_paces(trial))
    left = enough(candidates, FINALISTS)
    teacher_itself = (ZERO_SHOT, left[0][1])
    pace = (mean(step for step, _ in paces), mean(evaluation for _, evaluation in paces))
    half = 60 * minutes / 2
    first = steps_in(half, pace, len(left) * len(domains), engine)
    opening = hold([teacher_itself, *left], first, range(1))
    ranked = sorted(enough(left, FINALISTS), key=lambda one: -mean_and_error(of_one(opening, one))[0])
    last = max(first, steps_in(half, pace, FINALISTS * 2 * len(domains), engine))
    final = hold([teacher_itself, *ranked[:FINALISTS]], last, range(1, 3))  # by others than chose the finalists
    best, second = sorted(enough(ranked[:FINALISTS], FINALISTS), key=lambda one: -mean_and_error(of_one(final, one))[0])
    runs = {one: runs_of(of_one(final, one)) for one in (best, second, teacher_itself)}
    ahead = lead(runs[best], runs[second])
    assert ahead is not None
    method, student = best
    *_, stage = find_method(method).stage_defaults
    sizes = {"stages": {stage: {"steps": max(1000, last), "batch_per_domain": BATCH}}}
    name = STUDENTS.get(student, student)
    return Advice(
        method=method,
        student=student,
        runner_up=_words(second, students),
        reference=second[0],
        licences={one: licence_of(STUDENTS.get(one, one)) for one in dict.fromkeys((student, second[1]))},
        accuracy=mean_and_error(of_one(final, best))[0],
        ahead=ahead,
        over_teacher=lead(runs[best], runs[teacher_itself]),
        table=final,
        steps=last,
        command=_command(data, name, method, merge(whole, sizes), out / "store"),
        failed={_words(one, students): why for one, why in reasons.items() if one in candidates},
    )


def _words(one: Candidate, students: Sequence[str]) -> str:
    """Return what a candidate is called: by its method, and by its student where there are several."""
    return one[0] if len(students) == 1 else f"{one[0]} on {one[1]}"


def _command(data: Path, student: str, method: str, settings: Tree, store: Path) -> str:
    """Return the command that trains a student with a tournament's settings on all domains."""
    own = applicable(settings, find_method(method))
    spec = own["teacher"]["spec"]
    words = ["vl2v", "distill", "--data", str(data), "--teacher", spec, "--student", student, "--method", method]
    options = ("teacher.spec", "student.name", "method", "data.path", "data.target")
    for key, value in flat(own).items():
        if key not in options:
            words += ["--set", f"{key}={json.dumps(value, default=str, ensure_ascii=False)}"]
    return shlex.join([*words, "--store", str(store), "--out", f"runs/{method}"])


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


def steps_in(seconds: float, paces: tuple[float, float], runs: int, engine: Engine) -> int:
    """Return the steps of each run, so that all end in time."""
    step, evaluation = paces
    each = 0.8 * seconds * min(engine.processes, runs) / runs  # the rest is starting, aligning, the last evaluation
    wanted = (each - EVALUATIONS * evaluation) / step
    rounded = int(wanted) if wanted < 100 else int(wanted) // 50 * 50
    return min(max(rounded, FEWEST_STEPS), MOST_STEPS)
