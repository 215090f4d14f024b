"""`vl2v benchmark`, `vl2v recommend`: many students under the same conditions."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vl2v.cli.learn import Budget, ConfigFile, Preset, Set, TeacherSpec, settings_of
from vl2v.cli.show import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vl2v.benchmark.worklist import Corruptions

app = typer.Typer(help="Compare methods: one protocol, any number of machines.", invoke_without_command=True)

Folder = Annotated[Path, typer.Argument(help="A benchmark folder.")]
Engine = Annotated[str, typer.Option(help="local, local:N processes, ray, or ray:N processors a job.")]
RULES = ("training", "leave-one-out", "oracle")
Selection = Annotated[str, typer.Option(help="How draws are selected: training, leave-one-out or oracle.")]


@app.callback()
def benchmark(
    context: typer.Context,
    data: Annotated[list[str] | None, typer.Option(help="NAME=PATH of a dataset; may be repeated.")] = None,
    teacher: TeacherSpec = None,
    students: Annotated[str, typer.Option(help="timm models, or lite0, resnet50, vit_small, deit_small.")] = "lite0",
    methods: Annotated[str, typer.Option(help="Names, with commas between; all: every one.")] = "all",
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="Unseen domains, with commas between; by default, or with all, each in turn. May be repeated: what "
            "is a domain's name as a whole, commas and all, is that domain."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many; each has its own split.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them, for seeds nobody has looked at yet.")] = 0,
    draws: Annotated[int, typer.Option(min=1, help="Hyperparameter draws: the defaults, and others.")] = 1,
    search: Annotated[str, typer.Option(help="How others are drawn: random, or optuna (by results).")] = "random",
    selection: Selection = "training",
    steps: Annotated[int | None, typer.Option(min=1, help="Of each method's last stage; by default its own.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images of each source domain in a batch of it.")] = None,
    corruptions: Annotated[
        str | None, typer.Option(help="Measure students on the unseen domain corrupted, too: all, benchmark, or names.")
    ] = None,
    severity: Annotated[int, typer.Option(help="Of the corruptions, 1 to 5.")] = 3,
    engine: Engine = "local",
    out: Annotated[Path, typer.Option(help="The benchmark's folder; only what is missing in it is done.")] = Path(
        "bench"
    ),
    budget: Budget = 0,
    preset: Preset = "default",
    config: ConfigFile = None,
    pairs: Set = None,
) -> None:
    """Train every method on every dataset, each domain left out in turn, and print the table."""
    if context.invoked_subcommand is not None:
        return
    from vl2v.benchmark.engine import engine_named
    from vl2v.benchmark.grid import Grid, methods_for, split_names
    from vl2v.benchmark.run import plan, run
    from vl2v.cli.show import progress_bars

    place = engine_named(engine)
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
            from vl2v.cli.live import watching

            with progress_bars() as progress, watching(bench, progress, budget) as tell:
                run(bench, engine=place, budget=budget, progress=progress, tell=tell)
        left = len(bench.missing) if missing else 0
        done += missing - left
    bench.work.show(grid.variant, bench.jobs)  # another command may have asked for other settings meanwhile
    failed = [job for job in bench.jobs if bench.work.failure(job)]
    say(f"{len(bench.jobs)} jobs: {len(bench.jobs) - done - left} had been done, {left} are missing", err=True)
    for job in failed:
        say(f"{job.name}: {bench.work.failure(job)}; see {bench.work.place(job) / 'log.txt'}", err=True)
    _print_table([out], "md", "accuracy", selection, None)
    if left or any(map(bench.work.spoilt, bench.jobs)):
        raise typer.Exit(2)


@app.command()
def status(folder: Folder) -> None:
    """Tell what is done, what is under way, what failed and why."""
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
        say(f"besides, {others} jobs of other settings, or of another version of the code: nothing waits for them")
    if done:
        mean = sum(work.seconds(job) for job in done) / len(done)
        say(f"{mean:.0f} s a job so far")
    for job in running:
        say(f"running: {job.name}")
    for job in filter(work.spoilt, jobs):
        say(f"to be done again, since its answers can't be read: {job.name}")
    for job, why in failed:
        say(f"failed: {job.name}: {why}; see {work.place(job) / 'log.txt'}")


@app.command()
def table(
    folders: Annotated[list[Path], typer.Argument(help="Benchmark folders; of several, one table.")],
    form: Annotated[str, typer.Option("--format", help="md, latex, html, csv or json.")] = "md",
    metric: Annotated[
        str, typer.Option(help="accuracy: all of the target; in_split: DomainBed's 80%; corrupted: see --corruptions.")
    ] = "accuracy",
    selection: Selection = "training",
    reference: Annotated[str | None, typer.Option(help="The method that leads are counted from.")] = None,
    domainbed: Annotated[list[Path] | None, typer.Option(help="A results.jsonl of DomainBed's, or a folder.")] = None,
) -> None:
    """Print the results so far."""
    _print_table(folders, form, metric, selection, reference, domainbed or [])


def recommend(
    data: Annotated[Path, typer.Option(help="Images, in folders domain/class/image; three domains or more.")],
    teacher: TeacherSpec = None,
    minutes: Annotated[float, typer.Option(min=1, help="That it may take, roughly.")] = 30,
    methods: Annotated[str, typer.Option(help="That compete, with commas between.")] = "lp-ft,erm,kd,adip,adip-plus",
    student: Annotated[str, typer.Option(help="The student to be trained.")] = "lite0",
    out: Annotated[Path, typer.Option(help="A folder for the tournament's runs.")] = Path("runs/recommend"),
    engine: Engine = "local",
    budget: Budget = 0,
    config: ConfigFile = None,
    pairs: Set = None,
) -> None:
    """Hold a small tournament of methods on your own images, and say which to use."""
    from vl2v.benchmark.engine import engine_named
    from vl2v.benchmark.grid import methods_for, split_names
    from vl2v.benchmark.recommend import recommend as hold
    from vl2v.benchmark.table import as_table
    from vl2v.cli.show import progress_bars

    settings, spec = _taught(teacher, config, pairs)
    with progress_bars() as progress:

        def tell(event: dict[str, Any]) -> None:
            if event["event"] == "progress":
                progress(event["job"], event["done"], event["total"], event["what"])

        advice = hold(
            data,
            spec,
            out,
            minutes=minutes,
            methods=methods_for(split_names(methods), spec),
            student=student,
            settings=settings,
            engine=engine_named(engine),
            budget=budget,
            progress=progress,
            tell=tell,
        )
    typer.echo(as_table(advice.table, reference=advice.runner_up, published=False).render("md"))
    typer.echo()
    say(advice.verdict())


def _print_table(
    folders: "Sequence[Path]",
    form: str,
    metric: str,
    selection: str,
    reference: str | None,
    domainbed: "Sequence[Path]" = (),
) -> None:
    from vl2v.benchmark.domainbed import read_domainbed
    from vl2v.benchmark.results import gather, leakage
    from vl2v.benchmark.table import as_table
    from vl2v.benchmark.worklist import WorkList
    from vl2v.errors import ConfigError, RunError
    from vl2v.table import FORMATS

    rule = one_of(selection, RULES, "--selection")
    kind = one_of(form, FORMATS, "--format")
    measure = one_of(metric, ("accuracy", "in_split", "corrupted"), "--metric")
    found, notes = gather(folders, rule)
    works = [WorkList(folder) for folder in folders]
    for folder, work in zip(folders, works, strict=True):
        shown = work.shown()
        for job in filter(work.spoilt, shown):
            say(f"{work.place(job)}: its answers can't be read; `vl2v benchmark` does the job again", err=True)
        others = len(work.jobs()) - len(shown)
        if others:
            say(
                f"{others} jobs in {folder} have other settings, or are of another version of the code, and aren't "
                "shown",
                err=True,
            )
    for path in domainbed:
        imported, said = read_domainbed(path, rule)
        found += imported
        notes += said
    if reference is not None and reference not in {result.method for result in found}:
        raise ConfigError(f"--reference {reference}: not in this table")
    if not found:
        raise RunError(f"{folders[0]}: nothing is done yet; `vl2v benchmark status {folders[0]}` tells why")
    kinds = {work.corruptions for work in works}
    if measure == "corrupted" and len(kinds) > 1:
        raise ConfigError(f"--metric corrupted: {' and '.join(map(str, folders))} have other corruptions or severities")
    if measure == "corrupted" and all(math.isnan(getattr(result, measure)) for result in found):
        raise RunError(
            f"{folders[0]}: nothing was measured corrupted, as it was asked for last; give the `vl2v benchmark` "
            "command with --corruptions (what was measured once is still there)"
        )
    if measure == "corrupted":
        notes += [f"Corruptions: {kind}." for kind in kinds]
    notes += leakage(found)
    typer.echo(as_table(found, reference=reference, metric=measure, selection=rule, notes=notes).render(kind))


def _datasets(given: list[str]) -> dict[str, str]:
    from vl2v.errors import ConfigError

    found: dict[str, str] = {}
    for item in given:
        name, equals, path = item.partition("=")
        if not equals or "/" in name:  # a path that has one in it
            name, path = Path(item).resolve().name, item
        if name in found:
            raise ConfigError(f"--data: {found[name]} and {path} are both called {name}; give names, as A=PATH")
        found[name] = path
    if not found:
        raise ConfigError("--data: give at least one dataset, for example --data PACS=PATH")
    return found


_VARIED = ("method", "seed", "student.name", "data.path", "data.target", "data.split_seed")


def _taught(teacher: str | None, file: Path | None, pairs: list[str] | None) -> tuple[dict[str, Any], str]:
    """Return the settings of every run, and the teacher that they name."""
    from vl2v.config import assignments, flat, merge, read_toml, validate
    from vl2v.errors import ConfigError

    changed, written = flat(assignments(pairs or [])), flat(read_toml(file) if file else {})
    for key in _VARIED:
        if key in changed:
            raise ConfigError(f"--set {key}: this is what the runs differ in; see the options of --help")
        if key in written:
            raise ConfigError(
                f"{file}: {key}: this is what the runs differ in; keep in the file only what all methods are to share "
                "(`vl2v config` prints the settings of one method, which don't suit the others)"
            )
    given = settings_of(file, pairs, {"teacher.spec": teacher})
    data = given.get("data", {})
    data = {"path": ".", **data} if isinstance(data, dict) else data
    spec = validate({**given, "data": data, "stages": {}}).teacher.spec  # which stages there are depends on the method
    return merge(given, {"teacher": {"spec": spec}}), spec


def _corruptions(kinds: str | None, severity: int) -> "Corruptions | None":
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
    from vl2v.errors import ConfigError

    if value not in allowed:
        raise ConfigError(f"{option} {value}: there are {', '.join(allowed)}")
    return value
