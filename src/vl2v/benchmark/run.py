"""A whole benchmark: the list of jobs, the teacher's answers once, and an engine that does what is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vl2v.benchmark.engine import Engine, Local
from vl2v.benchmark.grid import Grid
from vl2v.benchmark.jobs import TEACHERS, Job
from vl2v.benchmark.search import searching
from vl2v.benchmark.work import Tell
from vl2v.benchmark.worklist import Corruptions, WorkList
from vl2v.config import TOWER, merge
from vl2v.errors import ConfigError, RunError
from vl2v.io import read_json, write_text
from vl2v.methods import find_method
from vl2v.progress import Progress, silent
from vl2v.runs.cluster import Cluster
from vl2v.runs.query import embed
from vl2v.runs.settings import has_tower, resolve
from vl2v.teachers import is_white_box

if TYPE_CHECKING:
    from vl2v.data import DomainDataset


@dataclass(frozen=True)
class Benchmark:
    """A benchmark folder and the jobs of it that were asked for."""

    work: WorkList
    jobs: list[Job]

    @property
    def missing(self) -> list[Job]:
        """The jobs without a result."""
        return [job for job in self.jobs if not self.work.done(job)]


def plan(grid: Grid, out: Path, corruptions: Corruptions | None = None) -> Benchmark:
    """Put a grid's jobs on the list of a folder, new or not.

    A grid whose draws go by results is planned and run in rounds (`Grid.rounds`).

    Args:
        grid: of jobs.
        out: the folder.
        corruptions: what finished students are also measured on; nothing is trained again for it.

    Raises:
        VL2VError: of the part that can't be had: a dataset, a target, a method, a setting.
    """
    work = WorkList(out)
    jobs = list(grid.jobs(searching(work, grid) if grid.search == "optuna" else None))
    with work.lock():
        _same_data(grid, out)
    added = work.add(jobs)
    work.show(grid.variant, added)
    work.ask_for(corruptions)
    return Benchmark(work, added)


def run(
    benchmark: Benchmark,
    *,
    engine: Engine | None = None,
    budget: float = 0,
    progress: Progress = silent,
    tell: Tell = lambda event: None,
) -> None:
    """Ask the teacher what isn't known, then do the jobs that are missing; failed ones are tried again.

    Args:
        benchmark: from `plan`.
        engine: where; by default as many processes as the machine has GPUs, or processors.
        budget: what a rented teacher may have been paid in all, ever, by the benchmark's store.
        progress: called as the work goes on.
        tell: told what becomes of the jobs.

    Raises:
        StudentError: a student that isn't known, or whose weights can't be had; the teacher isn't asked then.
        ConfigError: one that a black box can't teach, or an engine that can't start a job.
        VL2VError: the teacher can't be asked.
    """
    missing = benchmark.missing
    if not missing:
        return
    _check_students(missing)
    engine = engine or Local()
    cluster = engine if isinstance(engine, Cluster) else None
    if cluster is not None:
        cluster.check()
    _ask(benchmark.work, missing, budget, cluster, progress)
    engine.run(benchmark.work, missing, budget, tell)


def _check_students(jobs: Sequence[Job]) -> None:
    """Make each student once, as its run will; refuse those that a black box can't teach."""
    from vl2v.runs.features import new_backbone
    from vl2v.runs.session import queries_online

    trained = [job for job in jobs if find_method(job.method).stage_defaults]
    kinds = {json.dumps([job.method, job.settings["student"]], sort_keys=True, default=str): job for job in trained}
    configs = [resolve(job.settings) for job in kinds.values()]
    white = cache(is_white_box)
    for config in configs:
        tower, spec = has_tower(config, find_method(config.method)), config.teacher.spec
        if tower and not white(spec):
            raise ConfigError(
                f"method {config.method}: {spec} is a black box, and the student would be its image tower; leave the "
                "method, or the student, out"
            )
        if queries_online(config) and not white(spec):
            raise ConfigError(
                f"method {config.method}: {spec} is a black box, and teacher.online would ask it at every step; set "
                "teacher.online=false"
            )
    small = [config for config in configs if config.student.name != TOWER]
    for config in {config.student.model_dump_json(): config for config in small}.values():
        new_backbone(config)


def _ask(work: WorkList, jobs: Sequence[Job], budget: float, cluster: Cluster | None, progress: Progress) -> None:
    """Ask about each dataset once, before the work is shared out; a domain that no job may ask about is left out."""
    seen: dict[str, tuple[dict[str, Any], set[str]]] = {}
    for job in jobs:
        method = find_method(job.method)
        config = resolve(job.settings)
        if method.queries != "images" or config.teacher.select is not None:
            continue
        unseen = set() if job.method in TEACHERS else set(config.data.target)
        student = TOWER if has_tower(config, method) else config.student.name
        of_size = student if config.teacher.views else ""  # views are of the student's input size
        online = config.teacher.online and job.method not in TEACHERS  # which is measured on its plain answers
        key = json.dumps([str(config.data.path), config.teacher.spec, of_size, online])
        session = {"method": "adip", "student": {"name": student}, "teacher": {"online": online}}
        tree = merge(job.settings, session)
        tree, before = seen.get(key, (tree, unseen))
        seen[key] = tree, before & unseen
    for tree, unseen in seen.values():
        settings = merge(tree, {"data": {"target": sorted(unseen)}})
        for name in ("stages", "loss"):
            settings.pop(name, None)  # of the job's method
        embed(settings, store=work.folder / "store", budget=budget, cluster=cluster, progress=progress)


def _same_data(grid: Grid, out: Path) -> None:
    """Keep what each dataset lists; other images or labels under the same name would mix two benchmarks.

    Raises:
        RunError: a dataset has changed.
    """
    file = out / "datasets.json"
    known: dict[str, Any] = read_json(file, {})
    for each in known.values():
        each.setdefault("images", each.get("pictures"))  # as earlier versions called it
    found = {name: {"images": len(data), "listing": _listing(data)} for name, data in grid.datasets.items()}
    for name, dataset in grid.datasets.items():
        before = known.get(name, found[name])
        if before["images"] != len(dataset):
            raise RunError(
                f"{out}: {name} had {before['images']:,} images when this benchmark began and has "
                f"{len(dataset):,} now; choose another --out"
            )
        if before["listing"] != found[name]["listing"]:
            raise RunError(
                f"{out}: {name} has as many images as when this benchmark began, but other names, classes or "
                "domains; choose another --out"
            )
    if not found.keys() <= known.keys():
        write_text(file, json.dumps(known | found, indent=2))


def _listing(dataset: DomainDataset) -> str:
    """Return a digest of the images' paths, classes and domains; the files aren't read."""
    names = json.dumps([dataset.paths, dataset.classes, dataset.domains]).encode()
    return hashlib.sha256(names + dataset.labels.tobytes() + dataset.domain_ids.tobytes()).hexdigest()
