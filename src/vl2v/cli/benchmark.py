"""`vl2v benchmark`, `vl2v recommend`: many students under the same conditions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vl2v.cli import Commands, progress_bars, say
from vl2v.cli.options import Budget, ConfigFile, Preset, Set, TeacherSpec
from vl2v.errors import ConfigError, RunError
from vl2v.table import FORMATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vl2v.benchmark.run import Benchmark
    from vl2v.benchmark.worklist import Corruptions
    from vl2v.session import Progress

app = typer.Typer(
    cls=Commands, help="Compare methods under one protocol, on any number of machines.", invoke_without_command=True
)
Folder = Annotated[Path, typer.Argument(help="A benchmark folder.")]

Engine = Annotated[
    str, typer.Option(help="Where jobs run: local, local:N (processes), ray or ray:N (processors per job).")
]

RULES = ("training", "leave-one-out", "oracle")
Selection = Annotated[str, typer.Option(help="Model selection: training, leave-one-out or oracle.")]


@app.callback()
def benchmark(
    context: typer.Context,
    data: Annotated[list[str] | None, typer.Option(help="NAME=PATH of a dataset; may be repeated.")] = None,
    teacher: TeacherSpec = None,
    students: Annotated[
        str, typer.Option(help="timm models separated by commas, or lite0, resnet50, vit_small, deit_small.")
    ] = "lite0",
    methods: Annotated[str, typer.Option(help="Methods separated by commas, or all.")] = "all",
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="Unseen domains separated by commas; default: each in turn. Repeat the option for a domain whose name "
            "has a comma in it."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds; each has its own split.")] = 3,
    first_seed: Annotated[
        int, typer.Option(min=0, help="First seed, to use seeds that no decision has been based on.")
    ] = 0,
    draws: Annotated[
        int, typer.Option(min=1, help="Hyperparameter draws per method; the first one is the defaults.")
    ] = 1,
    search: Annotated[
        str, typer.Option(help="How further draws are made: random, or optuna (guided by results).")
    ] = "random",
    selection: Selection = "training",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each method's last stage; default: the method's own.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images per source domain in a batch of that stage.")] = None,
    corruptions: Annotated[
        str | None,
        typer.Option(help="Also evaluate on corrupted images of the unseen domain: all, benchmark, or names."),
    ] = None,
    severity: Annotated[int, typer.Option(help="Severity of the corruptions, 1 to 5.")] = 3,
    engine: Engine = "local",
    out: Annotated[Path, typer.Option(help="Benchmark folder; jobs already finished in it are skipped.")] = Path(
        "bench"
    ),
    budget: Budget = 0,
    preset: Preset = "default",
    config: ConfigFile = None,
    pairs: Set = None,
) -> None:
    """Train every method on every dataset with each domain left out in turn, and print the table."""
    if context.invoked_subcommand is not None:
        return
    from vl2v.benchmark.engine import engine_named
    from vl2v.benchmark.grid import Grid, methods_for, split_names
    from vl2v.benchmark.run import plan, run

    where = engine_named(engine)
    settings, spec = _taught(teacher, config, pairs)
    grid = Grid(
        data=_datasets(data or []),
        targets=[] if targets == ["all"] else targets or [],
        methods=methods_for(split_names(methods), spec),
        students=split_names(students),
        seeds=seeds,
        draws=draws,
        search=one_of(search, ("random", "optuna"), "--search"),
        selection=one_of(selection, RULES, "--selection"),
        settings=settings,
        preset=preset,
        steps=steps,
        batch=batch,
        first_seed=first_seed,
    )
    shift, done = _corruptions(corruptions, severity), 0
    for part in grid.rounds:
        bench = plan(part, out, shift)
        missing = len(bench.missing)
        if missing:
            with progress_bars() as progress, watching(bench, progress, budget) as notify:
                run(bench, engine=where, budget=budget, progress=progress, notify=notify)
        left = len(bench.missing) if missing else 0
        done += missing - left
    bench.work.show(grid.variant, bench.jobs)  # another command may have given other settings meanwhile
    failed = [job for job in bench.jobs if bench.work.failure(job)]
    say(f"{len(bench.jobs)} jobs: {len(bench.jobs) - done - left} were finished before, {left} are missing", err=True)
    for job in failed:
        say(f"{job.name}: {bench.work.failure(job)}; see {bench.work.folder_of(job) / 'log.txt'}", err=True)
    _print_table([out], "md", "accuracy", selection, None)
    if left or any(map(bench.work.spoilt, bench.jobs)):
        raise typer.Exit(2)


@app.command()
def status(folder: Folder) -> None:
    """Show which jobs are done, running, waiting or failed, and why."""
    from vl2v.benchmark.work import under_way
    from vl2v.benchmark.worklist import WorkList

    work = WorkList(folder)
    everything, wanted = work.jobs(), {job.name for job in work.shown()}
    running = [job for job in everything if not work.done(job) and under_way(work, job)]
    jobs = [job for job in everything if job.name in wanted or job in running]
    done = [job for job in jobs if work.done(job)]
    failed = [(job, why) for job in jobs if job not in running and (why := work.failure(job)) is not None]
    left = len(jobs) - len(done) - len(running) - len(failed)
    say(f"{len(jobs)} jobs: {len(done)} done, {len(running)} running, {len(failed)} failed, {left} waiting")
    if len(everything) > len(jobs):
        others = len(everything) - len(jobs)
        say(f"{others} more jobs have other settings or another version of the code; they are not waiting to run")
    if done:
        mean = sum(work.seconds(job) for job in done) / len(done)
        say(f"{mean:.0f} s per job so far")
    for job in running:
        say(f"running: {job.name}")
    for job in filter(work.spoilt, jobs):
        say(f"will run again, because its predictions can't be read: {job.name}")
    for job, why in failed:
        say(f"failed: {job.name}: {why}; see {work.folder_of(job) / 'log.txt'}")


@app.command()
def table(
    folders: Annotated[list[Path], typer.Argument(help="Benchmark folders; several make one table.")],
    form: Annotated[str, typer.Option("--format", help="md, latex, html, csv or json.")] = "md",
    metric: Annotated[
        str,
        typer.Option(help="accuracy (all target images), in_split (DomainBed's 80%) or corrupted (see --corruptions)."),
    ] = "accuracy",
    selection: Selection = "training",
    reference: Annotated[str | None, typer.Option(help="Method to compare the others with.")] = None,
    domainbed: Annotated[
        list[Path] | None, typer.Option(help="results.jsonl of DomainBed, or a folder of them, to add to the table.")
    ] = None,
) -> None:
    """Print the results so far."""
    _print_table(folders, form, metric, selection, reference, domainbed or [])


def recommend(
    data: Annotated[Path, typer.Option(help="Images in folders domain/class/image, with at least three domains.")],
    teacher: TeacherSpec = None,
    minutes: Annotated[float, typer.Option(min=1, help="Approximate time limit.")] = 30,
    methods: Annotated[
        str, typer.Option(help="Methods to compare, separated by commas.")
    ] = "lp-ft,erm,kd,adip,adip-plus",
    students: Annotated[
        str, typer.Option("--students", "--student", help="Students to compare, separated by commas.")
    ] = "lite0",
    out: Annotated[Path, typer.Option(help="Folder for the tournament's runs.")] = Path("runs/recommend"),
    engine: Engine = "local",
    budget: Budget = 0,
    config: ConfigFile = None,
    pairs: Set = None,
) -> None:
    """Run a small tournament of methods and students on your own images and recommend one."""
    from vl2v.benchmark.engine import engine_named
    from vl2v.benchmark.grid import methods_for, split_names
    from vl2v.benchmark.recommend import recommend as hold
    from vl2v.benchmark.table import as_table

    settings, spec = _taught(teacher, config, pairs)
    with progress_bars() as progress:

        def notify(event: dict[str, Any]) -> None:
            if event["event"] == "progress":
                progress(event["job"], event["done"], event["total"], event["what"])

        advice = hold(
            data,
            spec,
            out,
            minutes=minutes,
            methods=methods_for(split_names(methods), spec),
            students=split_names(students),
            settings=settings,
            engine=engine_named(engine),
            budget=budget,
            progress=progress,
            notify=notify,
        )
    typer.echo(as_table(advice.table, reference=advice.reference, published=False).render("md"))
    typer.echo()
    say(advice.verdict())


def _print_table(
    folders: Sequence[Path],
    form: str,
    metric: str,
    selection: str,
    reference: str | None,
    domainbed: Sequence[Path] = (),
) -> None:
    from vl2v.benchmark.domainbed import read_domainbed
    from vl2v.benchmark.results import gather, leakage
    from vl2v.benchmark.table import as_table
    from vl2v.benchmark.worklist import WorkList

    rule = one_of(selection, RULES, "--selection")
    kind = one_of(form, FORMATS, "--format")
    measure = one_of(metric, ("accuracy", "in_split", "corrupted"), "--metric")
    found, notes = gather(folders, rule)
    works = [WorkList(folder) for folder in folders]
    for folder, work in zip(folders, works, strict=True):
        shown = work.shown()
        for job in filter(work.spoilt, shown):
            say(f"{work.folder_of(job)}: its predictions can't be read; `vl2v benchmark` runs the job again", err=True)
        others = len(work.jobs()) - len(shown)
        if others:
            say(
                f"{others} jobs in {folder} have other settings or another version of the code and aren't shown",
                err=True,
            )
    for path in domainbed:
        imported, more = read_domainbed(path, rule)
        found += imported
        notes += more
    if reference is not None and reference not in {result.method for result in found}:
        raise ConfigError(f"--reference {reference}: not in this table")
    if not found:
        raise RunError(f"{folders[0]}: no finished job yet; `vl2v benchmark status {folders[0]}` shows why")
    kinds = {work.corruptions for work in works}
    if measure == "corrupted" and len(kinds) > 1:
        raise ConfigError(f"--metric corrupted: {' and '.join(map(str, folders))} differ in corruptions or severity")
    if measure == "corrupted" and all(math.isnan(getattr(result, measure)) for result in found):
        raise RunError(
            f"{folders[0]}: nothing was measured under the corruptions requested last; repeat the `vl2v benchmark` "
            "command with --corruptions (earlier measurements are reused)"
        )
    if measure == "corrupted":
        notes += [f"Corruptions: {kind}." for kind in kinds]
    notes += leakage(found)
    typer.echo(as_table(found, reference=reference, metric=measure, selection=rule, notes=notes).render(kind))


def _datasets(given: list[str]) -> dict[str, str]:

    found: dict[str, str] = {}
    for item in given:
        name, equals, path = item.partition("=")
        if not equals or "/" in name:  # a path that has one in it
            name, path = Path(item).resolve().name, item
        if name in found:
            raise ConfigError(f"--data: {found[name]} and {path} are both called {name}; name them, as in A=PATH")
        found[name] = path
    if not found:
        raise ConfigError("--data: give at least one dataset, for example --data PACS=PATH")
    return found


_VARIED = ("method", "seed", "student.name", "data.path", "data.target", "data.split_seed")


def _taught(teacher: str | None, file: Path | None, pairs: list[str] | None) -> tuple[dict[str, Any], str]:
    """Return the settings of every run, and the teacher that they name."""
    from vl2v.config import validate
    from vl2v.runs.settings import settings_of
    from vl2v.tree import assignments, flat, merge, read_toml

    changed, written = flat(assignments(pairs or [])), flat(read_toml(file) if file else {})
    for key in _VARIED:
        if key in changed:
            raise ConfigError(f"--set {key}: the runs of a benchmark differ in it; use the options in --help")
        if key in written:
            raise ConfigError(
                f"{file}: {key}: the runs of a benchmark differ in it; keep only what all methods share in the file "
                "(`vl2v config` prints the settings of one method, which don't suit the others)"
            )
    given = settings_of(file, pairs or (), teacher=teacher)
    data = given.get("data", {})
    data = {"path": ".", **data} if isinstance(data, dict) else data
    spec = validate({**given, "data": data, "stages": {}}).teacher.spec  # which stages there are depends on the method
    return merge(given, {"teacher": {"spec": spec}}), spec


def _corruptions(kinds: str | None, severity: int) -> Corruptions | None:
    from vl2v.benchmark.worklist import Corruptions
    from vl2v.data.corruptions import check, kinds_named

    if kinds is None:
        return None
    found = kinds_named(kinds)
    check(found[0], severity)
    return Corruptions(found, severity)


def one_of(value: str, allowed: tuple[str, ...], option: str) -> Any:
    """Return the value of an option if it is an allowed one.

    Raises:
        ConfigError: it isn't.
    """

    if value not in allowed:
        raise ConfigError(f"{option} {value}: choose one of {', '.join(allowed)}")
    return value


@contextmanager
def watching(bench: Benchmark, progress: Progress, budget: float = 0) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a callback for events of jobs, which shows a bar for all jobs and one for each that runs."""
    total, start = len(bench.jobs), time.monotonic()
    before = total - len(bench.missing)
    counts = {"done": 0, "failed": 0}
    running: dict[str, str] = {}

    def overall() -> None:
        finished = counts["done"] + counts["failed"]
        words = [f"{len(running)} running"]
        if counts["failed"]:
            words.append(f"{counts['failed']} failed")
        if finished:
            left = (time.monotonic() - start) / finished * (total - before - finished)
            words.append(f"about {left / 60:.0f} min left")
        if bill := _bill(bench, budget):
            words.append(f"bill so far: {bill}")
        progress("jobs", before + counts["done"], total, ", ".join(words))

    def notify(event: dict[str, Any]) -> None:
        name, kind = event["job"], event["event"]
        if kind == "progress":
            running[name] = event["what"]
            progress(name, event["done"], event["total"], f"{event['what']} {event['words']}")
            return
        if kind == "started":
            running[name] = ""
        else:
            counts[kind] += 1
            running.pop(name, None)
            progress(name, 1, 1, kind)
        overall()

    overall()
    yield notify


def _bill(bench: Benchmark, budget: float) -> str:
    """Return what the benchmark's store has paid, and what is left of the budget; "" where nothing was paid."""
    from vl2v.embeddings.bill import read_bill, totals
    from vl2v.teachers.paid.teacher import micro_of, money

    lines = totals(read_bill(bench.work.folder / "store"))
    paid = {
        one: sum(line.micro for line in lines if line.currency == one)
        for one in sorted({line.currency for line in lines})
    }
    words = [money(micro, currency) for currency, micro in paid.items()]
    if budget and len(paid) == 1:
        ((currency, micro),) = paid.items()
        words.append(f"{money(max(0, micro_of(budget) - micro), currency)} left of the budget")
    return ", ".join(words)
