"""`vl2v embed`, `vl2v distill`, `vl2v config`: from images and a teacher to a student."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vl2v.cli.show import say

if TYPE_CHECKING:
    from vl2v.runs.folder import Run
    from vl2v.session import Progress

Data = Annotated[Path | None, typer.Option(help="Images: folders domain/class/image or class/image, or a manifest.")]
TeacherSpec = Annotated[
    str | None,
    typer.Option(help="Teacher: open_clip:MODEL/PRETRAINED, hf:REPO, jina:MODEL, recorded:FOLDER, tiny and more."),
]
Target = Annotated[list[str] | None, typer.Option(help="Domain to keep unseen; may be repeated.")]
Views = Annotated[int | None, typer.Option(help="Number of fixed augmented views of each image to query.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting, such as stages.distill.lr=1e-3; may be repeated.")
]
Classes = Annotated[
    str | None,
    typer.Option(help="Class names of images without labels, separated by commas, or a .txt file with one a line."),
]
Unlabelled = Annotated[
    list[Path] | None,
    typer.Option(
        help="Folder of unlabelled images to learn from as well, or a CSV or Parquet file with a path column; may be "
        "repeated."
    ),
]
Budget = Annotated[
    float, typer.Option(help="Lifetime spending limit of this store for the paid teacher, in the vendor's currency.")
]
Select = Annotated[
    str | None, typer.Option(help="Number of training images to query, or 'known' for cached embeddings only.")
]
Strategy = Annotated[
    str | None, typer.Option(help="How images are selected: random, balanced, kcenter, uncertainty or nearest.")
]
Method = Annotated[str | None, typer.Option(help="Training method, adip by default; see `vl2v methods`.")]
Student = Annotated[str | None, typer.Option(help="Student: a timm model.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every random draw.")]
ImageSize = Annotated[int | None, typer.Option(help="Student's image size in pixels.")]
Preset = Annotated[str, typer.Option(help="Preset: default, or paper (as published, oddities included).")]
Store = Annotated[Path | None, typer.Option(help="Embedding store; default: one shared by all runs.")]


def settings_of(file: Path | None, pairs: list[str] | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return the file's settings, under the options that were given, under `--set`."""
    from vl2v.config import assignments, merge, nested, read_toml
    from vl2v.runs.settings import from_earlier

    given = nested({key: value for key, value in options.items() if value is not None})
    return merge(from_earlier(read_toml(file)) if file else {}, given, assignments(pairs or []))


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
    from vl2v.cli.show import print_advice, progress_bars
    from vl2v.runs.cluster import cluster_named
    from vl2v.runs.query import embed as run_embed

    cluster = cluster_named(engine)

    options = {
        "data.path": data,
        "data.target": target,
        "data.classes": classes,
        "data.unlabelled": unlabelled or None,
        "teacher.spec": teacher,
        "teacher.views": views,
        "teacher.select": _number(select),
        "teacher.strategy": strategy,
        "student.name": student,
        "student.image_size": image_size,
        "method": method,
        "seed": seed,
    }
    settings = settings_of(config, pairs, options)
    if advise:
        from vl2v.runs.query_curve import advise as advice  # brings torch

        with progress_bars() as progress:
            found = advice(settings, preset=preset, store=store, progress=progress)
        print_advice(found)
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
    online_teacher: Annotated[
        bool | None,
        typer.Option("--online-teacher", help="Query the teacher about every augmented batch (local teachers only)."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Train the upper blocks only, on cached activations of the lower ones.")
    ] = False,
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
    from vl2v.cli.show import note, progress_bars, run_log
    from vl2v.runs.plan import plan_run
    from vl2v.runs.train import distill as train
    from vl2v.system import rank

    options = {
        "data.path": data,
        "data.target": target,
        "data.classes": classes,
        "data.unlabelled": unlabelled or None,
        "teacher.spec": teacher,
        "teacher.views": views,
        "teacher.online": online_teacher,
        "train.quick": "auto" if quick else None,
        "teacher.select": _number(select),
        "teacher.strategy": strategy,
        "student.name": student,
        "student.image_size": image_size,
        "method": method,
        "seed": seed,
    }
    settings = settings_of(config, pairs, options)
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
            from vl2v.training.trackers import tracking

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


def _keep_export(run: "Run", store: Path | None, progress: "Progress") -> str:
    """Keep an export beside a student, for `vl2v predict`; return why there is none, "" where there is."""
    from vl2v.errors import VL2VError
    from vl2v.export.beside import keep_export

    try:
        exported = keep_export(run, store, progress)
    except VL2VError as error:
        return f"no export beside the student, so `vl2v predict` will start slowly: {error}"
    return "" if exported else "with `pip install 'vl2v[export]'`, `vl2v predict` starts ten times faster"


def methods() -> None:
    """List the training methods."""
    from vl2v.methods import METHODS

    needs = {"images": "a teacher", "texts": "the teacher's texts", "nothing": "labels only"}
    for name, task in METHODS.items():
        white = ", and its weights" if task.tower else ""
        say(f"{name:9} {task.title} ({needs[task.queries]}{white})")


def config(
    method: Annotated[str, typer.Option(help="Method whose defaults to show.")] = "adip",
    preset: Annotated[str, typer.Option(help="Preset: default or paper.")] = "default",
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the settings instead.")] = False,
) -> None:
    """Print every setting with its default, as TOML for --config."""
    if schema:
        import json

        from vl2v.config import json_schema
        from vl2v.methods import find_method

        typer.echo(json.dumps(json_schema(find_method(method).Settings), indent=2))
        return
    from vl2v.runs.settings import resolve

    typer.echo(resolve({"method": method, "data": {"path": "PATH"}}, preset).to_toml())
