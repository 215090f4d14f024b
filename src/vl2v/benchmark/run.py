"""A whole benchmark: the list of jobs, the teacher queried once, and an engine that does what is missing."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vl2v.benchmark.engine import Engine, Local, engine_named
from vl2v.benchmark.grid import Draw, Grid, methods_for, repeated, suggested
from vl2v.benchmark.results import by_cell, merit
from vl2v.benchmark.work import Notify
from vl2v.benchmark.worklist import TEACHERS, Cell, Corruptions, Job, WorkList
from vl2v.config import TOWER
from vl2v.errors import ConfigError, RunError, need_extra
from vl2v.io import read_json, write_text
from vl2v.methods import find_method
from vl2v.runs.cluster import Cluster
from vl2v.runs.query import embed
from vl2v.runs.settings import applicable, has_tower, resolve
from vl2v.session import Progress, silent
from vl2v.teachers import is_white_box
from vl2v.tree import Tree, merge

if TYPE_CHECKING:
    from vl2v.benchmark.table import Metric
    from vl2v.data.dataset import DomainDataset
    from vl2v.table import Table


@dataclass(frozen=True, repr=False)
class Benchmark:
    """A benchmark folder and the jobs of it that were wanted."""

    work: WorkList
    jobs: list[Job]

    def table(self, metric: Metric = "accuracy") -> Table:
        """Return the results so far, with 95% intervals of the leads."""
        from vl2v.benchmark.results import gather, leakage
        from vl2v.benchmark.table import as_table

        found, notes = gather([self.work.folder])
        return as_table(found, metric=metric, notes=[*notes, *leakage(found)])

    def __repr__(self) -> str:
        done = len(self.jobs) - len(self.missing)
        return f"Benchmark({str(self.work.folder)!r}, {done} of {len(self.jobs)} jobs done)"

    def _repr_html_(self) -> str:
        return self.table().render("html")

    @property
    def missing(self) -> list[Job]:
        """The jobs without a result."""
        return [job for job in self.jobs if not self.work.done(job)]


def benchmark(
    data: Path | str | Mapping[str, Path | str],
    teacher: str = "tiny",
    *,
    methods: Sequence[str] = ("erm", "kd", "adip"),
    students: Sequence[str] = ("lite0",),
    targets: Sequence[str] = (),
    seeds: int = 3,
    steps: int | None = None,
    batch: int | None = None,
    settings: Mapping[str, Any] | None = None,
    out: Path | str = "bench",
    engine: str = "local",
    budget: float = 0,
    progress: Progress = silent,
) -> Benchmark:
    """Train every method with every domain left out in turn, and return the results; only what is missing is done.

    Args:
        data: a folder of images, or several by name.
        teacher: its spec.
        methods: names, see `vl2v methods`; "all" for every one.
        students: timm models, or short names of some: lite0, resnet50, vit_small, deit_small, vit_base.
        targets: domains; by default each in turn.
        seeds: how many; each has its own split.
        steps: of each method's last stage; by default its own.
        batch: images of each source domain in a batch of it.
        settings: of every run; each method takes those that it has.
        out: the benchmark's folder.
        engine: "local", "local:N" processes, "ray" or "ray:N" processors a job.
        budget: lifetime spending limit of the benchmark's store for a paid teacher, in the vendor's currency.
        progress: called with the progress.

    Raises:
        VL2VError: of the part that can't be had: a dataset, a target, a method, a setting, an engine. A job that fails
            raises nothing: it stays among `Benchmark.missing`, and `vl2v benchmark status` names the reason.

    Examples:
        >>> import vl2v
        >>> bench = vl2v.benchmark(
        ...     "images", "recorded:vendor", methods=["zero-shot"], targets=["paint"], seeds=1, engine="local:1"
        ... )
        >>> bench
        Benchmark('bench', 1 of 1 jobs done)
        >>> print(bench.table().render("csv"))  # doctest: +ELLIPSIS
        student,method,...
    """
    named = data if isinstance(data, Mapping) else {Path(data).resolve().name: data}
    tree = merge(settings or {}, {"teacher": {"spec": teacher}})
    names = {name: str(path) for name, path in named.items()}
    grid = Grid(names, targets, methods_for(methods, teacher), students, seeds, settings=tree, steps=steps, batch=batch)
    made = plan(grid, Path(out))

    def notify(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            progress(event["job"], event["done"], event["total"], event["what"])

    run(made, engine=engine_named(engine), budget=budget, progress=progress, notify=notify)
    return made


def plan(grid: Grid, out: Path, corruptions: Corruptions | None = None) -> Benchmark:
    """Put a grid's jobs on the list of a folder, new or not.

    A grid whose draws go by results is planned and run in rounds (`Grid.rounds`).

    Args:
        corruptions: what finished students are also measured on; nothing is trained again for it.

    Raises:
        VL2VError: of the part that can't be had: a dataset, a target, a method, a setting.
    """
    work = WorkList(out)
    jobs = list(grid.jobs(_searching(work, grid) if grid.search == "optuna" else None))
    with work.lock():
        _same_data(grid, out)
    added = work.add(jobs)
    work.show(grid.variant, added)
    work.request_corruptions(corruptions)
    return Benchmark(work, added)


def run(
    benchmark: Benchmark,
    *,
    engine: Engine | None = None,
    budget: float = 0,
    progress: Progress = silent,
    notify: Notify = lambda event: None,
) -> None:
    """Query the teacher for what isn't cached, then do the jobs that are missing; failed ones are tried again.

    Args:
        benchmark: from `plan`.
        engine: where; by default as many processes as the machine has GPUs, or processors.
        budget: lifetime spending limit of the benchmark's store for a paid teacher.
        notify: called with what becomes of the jobs.

    Raises:
        StudentError: a student that timm doesn't have, or whose weights can't be had; the teacher isn't queried then.
        ConfigError: one that a black box can't teach, or an engine that can't start a job.
        VL2VError: the teacher can't be queried.
    """
    missing = benchmark.missing
    if not missing:
        return
    _check_students(missing)
    engine = engine or Local()
    cluster = engine if isinstance(engine, Cluster) else None
    if cluster is not None:
        cluster.check()
    _query(benchmark.work, missing, budget, cluster, progress)
    engine.run(benchmark.work, missing, budget, notify)


def _searching(work: WorkList, grid: Grid) -> Draw:
    """Return what makes a grid's draws: one that is on the list already stays as it is, a new one is suggested.

    A draw is worth what the selection rule goes by: unless that is the oracle, the unseen domain decides nothing.

    Raises:
        MissingExtra: Optuna isn't installed.
    """
    need_extra("optuna", "optuna")  # before anything is trained
    cells = by_cell(work.shown(grid.variant)) if work.file.is_file() else {}

    def draw(cell: Cell, number: int) -> Tree:
        draws = cells.get(cell, {})
        if number in draws:
            return repeated(cell.method, resolve(next(iter(draws[number].values())).settings))
        results = []
        for jobs in (draws[number] for number in sorted(draws)):
            done = {held: job for held, job in jobs.items() if work.trained(job)}
            worth = merit(work, done, grid.selection) if "" in done else -math.inf
            if math.isfinite(worth):
                results.append((resolve(done[""].settings), worth))
        return suggested(cell.method, cell.seed, number, results)

    return draw


def _check_students(jobs: Sequence[Job]) -> None:
    """Make each student once, as its run will; refuse those that a black box can't teach."""
    from vl2v.runs.query import queries_online
    from vl2v.runs.start import new_backbone

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
                f"method {config.method}: {spec} is a black box, and teacher.online would query it at every step; set "
                "teacher.online=false"
            )
    small = [config for config in configs if config.student.name != TOWER]
    for config in {config.student.model_dump_json(): config for config in small}.values():
        new_backbone(config)


def _query(work: WorkList, jobs: Sequence[Job], budget: float, cluster: Cluster | None, progress: Progress) -> None:
    """Query about each dataset once, before the work is shared out; a domain that no job may query is left out."""
    seen: dict[str, tuple[dict[str, Any], set[str]]] = {}
    for job in jobs:
        method = find_method(job.method)
        config = resolve(job.settings)
        if method.queries != "images" or config.teacher.select is not None:
            continue
        unseen = set() if job.method in TEACHERS else set(config.data.target)
        student = TOWER if has_tower(config, method) else config.student.name
        of_size = student if config.teacher.views else ""  # views are of the student's input size
        online = config.teacher.online and job.method not in TEACHERS  # which is measured on clean images
        key = json.dumps([str(config.data.path), config.teacher.spec, of_size, online])
        session = {"method": "adip", "student": {"name": student}, "teacher": {"online": online}}
        tree = merge(applicable(job.settings, find_method("adip")), session)
        tree, before = seen.get(key, (tree, unseen))
        seen[key] = tree, before & unseen
    for tree, unseen in seen.values():
        settings = merge(tree, {"data": {"target": sorted(unseen)}})
        for name in ("stages", "loss"):
            settings.pop(name, None)  # of the job's method
        embed(settings, store=work.folder / "store", budget=budget, cluster=cluster, progress=progress)


def _same_data(grid: Grid, out: Path) -> None:
    """Save what each dataset lists; other images or labels under the same name would mix two benchmarks.

    Raises:
        RunError: a dataset has changed.
    """
    file = out / "datasets.json"
    saved: dict[str, Any] = read_json(file, {})
    for each in saved.values():
        each.setdefault("images", each.get("pictures"))  # as earlier versions called it
    found = {name: {"images": len(data), "listing": _listing(data)} for name, data in grid.datasets.items()}
    for name, dataset in grid.datasets.items():
        before = saved.get(name, found[name])
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
    if not found.keys() <= saved.keys():
        write_text(file, json.dumps(saved | found, indent=2))


def _listing(dataset: DomainDataset) -> str:
    """Return a digest of the images' paths, classes and domains; the files aren't read."""
    names = json.dumps([dataset.paths, dataset.classes, dataset.domains]).encode()
    return hashlib.sha256(names + dataset.labels.tobytes() + dataset.domain_ids.tobytes()).hexdigest()
