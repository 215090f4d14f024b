"""`vl2v embed`, `vl2v distill`, `vl2v config`: from images and a teacher to a student."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vl2v.cli import note, progress_bars, run_log, say
from vl2v.cli.options import (
    Budget,
    Classes,
    ConfigFile,
    Data,
    ImageSize,
    Method,
    Preset,
    Seed,
    Select,
    SelectFrom,
    Set,
    Store,
    Strategy,
    Student,
    Target,
    TeacherSpec,
    Unlabelled,
    Views,
)
from vl2v.errors import DataError, MissingExtra, VL2VError
from vl2v.table import Table

if TYPE_CHECKING:
    from vl2v.runs.folder import Run
    from vl2v.session import Progress


def embed(
    data: Data = None,
    teacher: TeacherSpec = None,
    student: Student = None,
    target: Target = None,
    classes: Classes = None,
    unlabelled: Unlabelled = None,
    method: Method = None,
    seed: Seed = None,
    image_size: ImageSize = None,
    views: Views = None,
    budget: Budget = 0,
    select: Select = None,
    strategy: Strategy = None,
    select_from: SelectFrom = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be queried and what it would cost, then stop.")
    ] = False,
    advise: Annotated[
        bool, typer.Option("--advise", help="Show how accuracy grows with the embeddings queried so far.")
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            help="Where images are embedded: local, ray or ray:N (processors per task). Paid teachers: local."
        ),
    ] = "local",
    preset: Preset = "default",
    config: ConfigFile = None,
    pairs: Set = None,
    store: Store = None,
) -> None:
    """Query the teacher about every image once and store the embeddings.

    Use the options of the `vl2v distill` command that will follow: some of them decide what is queried.
    """
    from vl2v.runs.cluster import cluster_named
    from vl2v.runs.query import embed as run_embed
    from vl2v.runs.settings import settings_of

    cluster = cluster_named(engine)

    settings = settings_of(
        config,
        pairs or (),
        data=data,
        target=target,
        classes=classes,
        unlabelled=unlabelled or None,
        teacher=teacher,
        views=views,
        select=_number(select),
        strategy=strategy,
        select_from=select_from,
        student=student,
        image_size=image_size,
        method=method,
        seed=seed,
    )
    if advise:
        from vl2v.runs.query import advise as advice  # brings torch

        with progress_bars() as progress:
            found = advice(settings, preset=preset, store=store, progress=progress)
        found.table().print()
        return
    with progress_bars() as progress:
        queried = run_embed(
            settings, preset=preset, store=store, budget=budget, dry_run=dry_run, cluster=cluster, progress=progress
        )
    plan = queried.plan
    if dry_run:
        say(*queried.summary().split("\n"))
        return
    bill = f"; bill so far: {queried.bill}" if queried.bill else ""
    views_of = f" (views of each image: {plan.views})" if plan.views.k else ""
    say(f"{plan.queries:,} queries{views_of}, {plan.cached + plan.cached_texts:,} cached{bill}")
    for refusal in queried.refused:
        say(f"{refusal.path}: refused by the teacher: {refusal.reason}", err=True)
    if queried.refused:
        say(f"{len(queried.refused)} images refused; the student learns them from their class's text alone", err=True)


def _number(text: str | None) -> int | str | None:
    return int(text) if text and text.isdecimal() else text


def distill(
    data: Data = None,
    teacher: TeacherSpec = None,
    student: Student = None,
    target: Target = None,
    classes: Classes = None,
    unlabelled: Unlabelled = None,
    method: Method = None,
    out: Annotated[Path, typer.Option(help="Run folder; an interrupted run is resumed.")] = Path("runs/student"),
    seed: Seed = None,
    image_size: ImageSize = None,
    views: Views = None,
    budget: Budget = 0,
    select: Select = None,
    strategy: Strategy = None,
    select_from: SelectFrom = None,
    online_teacher: Annotated[
        bool | None,
        typer.Option("--online-teacher", help="Query the teacher about every augmented batch (local teachers only)."),
    ] = None,
    quick: Annotated[
        bool | None,
        typer.Option(
            "--quick/--no-quick",
            help="Train the upper blocks only, on cached activations of the lower ones (a plan that is very "
            "short of time does so by itself).",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Plan the run to take this long; without a GPU 20, unless steps or image size are set."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    log: Annotated[
        str | None, typer.Option(help="Also send metrics to wandb, mlflow, trackio or tensorboard (extras).")
    ] = None,
    preset: Preset = "default",
    config: ConfigFile = None,
    pairs: Set = None,
    store: Store = None,
) -> None:
    """Train a student, evaluate it on every domain and save everything in a run folder."""
    with progress_bars() as progress:
        progress("starting", 0, 1, "")
        from vl2v.runs.plan import plan_run
        from vl2v.runs.settings import settings_of
        from vl2v.runs.train import distill as train
        from vl2v.system import rank

        progress("starting", 1, 1, "")
    settings = settings_of(
        config,
        pairs or (),
        data=data,
        target=target,
        classes=classes,
        unlabelled=unlabelled or None,
        teacher=teacher,
        views=views,
        online_teacher=online_teacher,
        quick=None if quick is None else "auto" if quick else "off",
        select=_number(select),
        strategy=strategy,
        select_from=select_from,
        student=student,
        image_size=image_size,
        method=method,
        seed=seed,
    )
    common: dict[str, Any] = {"preset": preset, "store": store, "budget": budget}
    common["minutes"] = "auto" if minutes is None else minutes
    if dry_run:
        with progress_bars() as progress:
            plan = plan_run(settings, **common, progress=progress)
        say(*plan.summary())
        return
    with ExitStack() as stack:
        progress = stack.enter_context(run_log(out, stack.enter_context(progress_bars())))
        if log is not None and not rank():
            from vl2v.training.loop import tracking

            common["on_metrics"] = stack.enter_context(tracking(log, out))
        run = train(settings, out, on_plan=lambda plan: say(*plan.summary()), **common, progress=progress)
        if rank():
            return
        lacking = _keep_export(run, store, progress)
    if lacking:
        note(lacking)
    assert run.evaluation is not None
    if run.evaluation.rows:
        run.evaluation.table().print()
    else:
        say(*run.evaluation.notes)
    say(f"student saved in {run.folder}; try: vl2v predict {run.folder} IMAGE")


def _keep_export(run: Run, store: Path | None, progress: Progress) -> str:
    """Keep an export beside a student, for `vl2v predict`; return why there is none, "" where there is."""
    from vl2v.export.student import keep_export

    try:
        exported = keep_export(run, store, progress)
    except VL2VError as error:
        return f"no export beside the student, so `vl2v predict` will start slowly: {error}"
    return "" if exported else "with `pip install 'vl2v[export]'`, `vl2v predict` starts ten times faster"


def methods() -> None:
    """List the training methods by what they need."""
    from vl2v.config import RunConfig
    from vl2v.methods import METHODS

    needs = {
        "images": "a teacher",
        "texts": "class prompts embedded by a teacher",
        "nothing": "labels only",
        "weights": "a teacher whose weights are at hand",
    }
    width = max(map(len, METHODS))
    for need, words in needs.items():
        say(f"{words}:")
        for name, task in METHODS.items():
            if need == ("weights" if task.tower else task.queries):
                say(f"  {name:{width}}  {task.title}")
    say(f"default: {RunConfig.model_fields['method'].default}")


def config(
    method: Annotated[str | None, typer.Option(help="Method whose defaults to show; the preset's by default.")] = None,
    preset: Annotated[str, typer.Option(help="Preset: default or paper.")] = "default",
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the settings instead.")] = False,
) -> None:
    """Print every setting with its default, as TOML for --config."""
    from vl2v.runs.settings import resolve

    config = resolve({"data": {"path": "PATH"}} | ({"method": method} if method else {}), preset)
    if schema:
        import json

        from vl2v.config import json_schema
        from vl2v.methods import find_method

        typer.echo(json.dumps(json_schema(find_method(config.method).Settings), indent=2))
        return
    typer.echo(config.to_toml())


def adapt(
    run: Annotated[Path, typer.Argument(help="The run folder of the student.")],
    images: Annotated[
        Path | None, typer.Option(help="A folder of images from the new domain; they need no labels.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option("--from", help="In place of --images, the folder of `vl2v serve --log-images`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The new run's folder; by default RUN-adapted.")] = None,
    select: Annotated[int, typer.Option(min=1, help="How many of them to query the teacher about.")] = 200,
    strategy: Annotated[str, typer.Option(help="How images are selected: kcenter, uncertainty or random.")] = "kcenter",
    closed_form: Annotated[
        bool, typer.Option("--closed-form", help="Fit the last layer alone, in seconds; the backbone stays.")
    ] = False,
    budget: Budget = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be queried and what it would cost, then stop.")
    ] = False,
    pairs: Set = None,
    store: Store = None,
) -> None:
    """Train a student further on images of a new domain without labels; print the accuracy before and after."""
    from vl2v.cli.benchmark import one_of
    from vl2v.runs.adapting import adapt as adapted
    from vl2v.tree import assignments

    out = out or run.resolve().with_name(f"{run.resolve().name}-adapted")
    which = one_of(strategy, ("kcenter", "uncertainty", "random"), "--strategy")
    with progress_bars() as progress:
        found = adapted(
            run,
            images,
            out,
            log=log,
            select=select,
            strategy=which,
            closed_form=closed_form,
            settings=assignments(pairs or []),
            store=store,
            budget=budget,
            dry_run=dry_run,
            progress=progress,
        )
    if found.run is None:
        say(*found.queries.summary().split("\n"))
        return
    with progress_bars() as progress:
        lacking = _keep_export(found.run, store, progress)
    if lacking:
        note(lacking)
    for refusal in found.queries.refused:
        say(f"{refusal.path}: refused by the teacher: {refusal.reason}", err=True)
    assert found.run.evaluation is not None
    if found.run.evaluation.rows:
        found.table().print()
    else:
        say(*found.run.evaluation.notes)
    bill = f"; the bill so far: {found.queries.bill}" if found.queries.bill else ""
    say(f"{found.queries.plan.queries:,} queries{bill}; the student is in {found.run.folder}")


NEW_CLASSES = ("dog", "heart", "pizza")  # that people can add in the page

_NEXT = """
With your own images, in folders domain/class/image:
  vl2v data inspect PATH
  vl2v distill --data PATH --teacher open_clip:ViT-B-16/openai --target DOMAIN --out runs/mine
  vl2v predict runs/mine IMAGE"""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for runs and figures.")] = Path("runs/demo"),
    target: Annotated[str, typer.Option(help="Drawing style to leave out of training.")] = "outline",
) -> None:
    """Train three students on the embedded sample with one drawing style left out, and compare them."""
    from vl2v.benchmark.demo import OURS, accuracy_bars, prediction_grid, run_demo

    with progress_bars() as progress:
        found = run_demo(out, target=target, progress=progress)
        page = demo_page(found.runs[OURS], out, progress)
    results = found.results()
    rows = [
        [name, *("-" if share is None else f"{100 * share:.1f}" for share in row.values())]
        for name, row in results.items()
    ]
    title = f"accuracy %: classify icons of a style never seen in training ({target})"
    Table(["", "styles seen (validation)", "unseen style"], rows, title=title).print()
    accuracy_bars(results, out / "accuracy.png")
    prediction_grid(found.runs, target, out / "predictions.png")
    say(f"figures: {out / 'accuracy.png'}, {out / 'predictions.png'}; students: {', '.join(map(str, found.folders))}")
    say(*found.conclusion(target), page)
    typer.echo(_NEXT)


def demo_page(run: Run, out: Path, progress: Progress) -> str:
    """Write a run's page, unless it is there, and return how to open it, or why there is none."""
    from vl2v.export.student import export_student
    from vl2v.runs.predict import class_embeddings

    page, store = out / "page", out / "store"
    try:
        if not page.exists():
            others = class_embeddings(run, NEW_CLASSES, store=store)
            export_student(run, page, "web", form="open", int8=False, others=others, store=store, progress=progress)
    except (DataError, MissingExtra) as error:
        return f"no page for the browser: {error}"
    return f"page: python -m http.server --directory {page} 8000, then open http://localhost:8000"
