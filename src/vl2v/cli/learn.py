"""`vl2v embed`, `vl2v distill`, `vl2v config`: from images and a teacher to a student."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vl2v.cli.show import say

if TYPE_CHECKING:
    from vl2v.progress import Progress
    from vl2v.runs import Run

Data = Annotated[Path | None, typer.Option(help="Images: domain/class/image, class/image, or a manifest.")]
TeacherSpec = Annotated[
    str | None, typer.Option(help="open_clip:MODEL/PRETRAINED, hf:REPO, jina:MODEL, recorded:FOLDER, tiny and more.")
]
Target = Annotated[list[str] | None, typer.Option(help="A domain to be kept unseen; may be repeated.")]
Unlabelled = Annotated[
    list[Path] | None, typer.Option(help="A folder of images without labels to learn from, too; may be repeated.")
]
Views = Annotated[int | None, typer.Option(help="Fixed augmented views of each image to ask about, too.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings in TOML.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value on top, e.g. stages.distill.lr=1e-3.")]
Budget = Annotated[
    float, typer.Option(help="What a paid teacher may have cost in all, ever, by this store; in its currency.")
]
Select = Annotated[str | None, typer.Option(help="How many training images to ask about, or 'known': no more.")]
Strategy = Annotated[str | None, typer.Option(help="random, balanced, kcenter or uncertainty.")]
Method = Annotated[str | None, typer.Option(help="How it learns: adip by default; see `vl2v methods`.")]
Student = Annotated[str | None, typer.Option(help="A timm model.")]
Seed = Annotated[int | None, typer.Option(help="Decides every draw.")]
ImageSize = Annotated[int | None, typer.Option(help="The student's pixels a side.")]
Preset = Annotated[str, typer.Option(help="default, or paper: as published, oddities included.")]
Store = Annotated[Path | None, typer.Option(help="Folder of the embedding store; by default one for all runs.")]


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
    unlabelled: Unlabelled = None,
    method: Method = None,
    seed: Seed = None,
    image_size: ImageSize = None,
    views: Views = None,
    budget: Budget = 0,
    select: Select = None,
    strategy: Strategy = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be asked, and its price.")] = False,
    advise: Annotated[bool, typer.Option("--advise", help="Tell what the answers so far brought.")] = False,
    engine: Annotated[str, typer.Option(help="local, ray, or ray:N processors a task; paid teachers: here.")] = "local",
    preset: Preset = "default",
    config: ConfigFile = None,
    pairs: Set = None,
    store: Store = None,
) -> None:
    """Ask the teacher about every image once, and keep its answers.

    Give it the options of the `vl2v distill` that will follow: what is asked depends on some of them.
    """
    from vl2v.cli.show import print_advice, progress_bars
    from vl2v.runs import embed as ask
    from vl2v.runs.cluster import cluster_named

    cluster = cluster_named(engine)

    options = {
        "data.path": data,
        "data.target": target,
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
        from vl2v.runs import advise as advice  # brings torch

        with progress_bars() as progress:
            found = advice(settings, preset=preset, store=store, progress=progress)
        print_advice(found)
        return
    with progress_bars() as progress:
        asked = ask(
            settings, preset=preset, store=store, budget=budget, dry_run=dry_run, cluster=cluster, progress=progress
        )
    plan = asked.plan
    if dry_run:
        say(*asked.summary().split("\n"))
        return
    bill = f"; the bill so far: {asked.bill}" if asked.bill else ""
    views_of = f" (views of an image: {plan.views})" if plan.views.k else ""
    say(f"asked {plan.queries:,} questions{views_of}, {plan.known + plan.cached_texts:,} were known{bill}")
    for refusal in asked.refused:
        say(f"{refusal.path}: refused by the teacher: {refusal.reason}", err=True)
    if asked.refused:
        say(f"{len(asked.refused)} images refused; they will learn from their class's text alone", err=True)


def _number(text: str | None) -> int | str | None:
    return int(text) if text and text.isdecimal() else text


def distill(
    data: Data = None,
    teacher: TeacherSpec = None,
    student: Student = None,
    target: Target = None,
    unlabelled: Unlabelled = None,
    method: Method = None,
    out: Annotated[Path, typer.Option(help="The run folder; an interrupted run is gone on with.")] = Path(
        "runs/student"
    ),
    seed: Seed = None,
    image_size: ImageSize = None,
    views: Views = None,
    budget: Budget = 0,
    select: Select = None,
    strategy: Strategy = None,
    online_teacher: Annotated[
        bool | None, typer.Option("--online-teacher", help="Ask anew about every augmented batch (white boxes).")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Fit into so many; without a GPU 20, unless steps or image size are given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan.")] = False,
    preset: Preset = "default",
    config: ConfigFile = None,
    pairs: Set = None,
    store: Store = None,
) -> None:
    """Train a student, evaluate it on every domain, and keep everything in a run folder."""
    from vl2v.cli.show import progress_bars
    from vl2v.runs import distill as train
    from vl2v.runs import plan_run
    from vl2v.system import rank

    options = {
        "data.path": data,
        "data.target": target,
        "data.unlabelled": unlabelled or None,
        "teacher.spec": teacher,
        "teacher.views": views,
        "teacher.online": online_teacher,
        "teacher.select": _number(select),
        "teacher.strategy": strategy,
        "student.name": student,
        "student.image_size": image_size,
        "method": method,
        "seed": seed,
    }
    with progress_bars() as progress:
        settings = settings_of(config, pairs, options)
        common: dict[str, Any] = {"preset": preset, "store": store, "budget": budget, "progress": progress}
        common["minutes"] = "auto" if minutes is None else minutes
        if dry_run:
            plan = plan_run(settings, **common)
        else:
            run = train(settings, out, on_plan=lambda plan: say(*plan.summary()), **common)
            if rank():
                return
            note = _keep_export(run, store, progress)
    if dry_run:
        say(*plan.summary())
        return
    if note:
        say(note, err=True)
    assert run.evaluation is not None
    run.evaluation.table().print()
    say(f"the student is in {run.folder}; try: vl2v predict {run.folder} IMAGE")


def _keep_export(run: "Run", store: Path | None, progress: "Progress") -> str:
    """Keep an export beside a student, for `vl2v predict`; return why there is none, "" where there is."""
    from vl2v.errors import VL2VError
    from vl2v.export import keep_export

    try:
        kept = keep_export(run, store, progress)
    except VL2VError as error:
        return f"note: no export is kept beside the student, so that `vl2v predict` starts slowly: {error}"
    return "" if kept else "note: `pip install 'vl2v[export]'` makes `vl2v predict` start ten times as quickly"


def methods() -> None:
    """List the methods, each in a line."""
    from vl2v.methods import METHODS

    needs = {"images": "a teacher", "texts": "the teacher's texts", "nothing": "labels only"}
    for name, task in METHODS.items():
        white = ", and its weights" if task.tower else ""
        say(f"{name:9} {task.title} ({needs[task.queries]}{white})")


def config(
    method: Annotated[str, typer.Option(help="Whose defaults to show.")] = "adip",
    preset: Annotated[str, typer.Option(help="default or paper.")] = "default",
) -> None:
    """Print every setting with its default, as TOML to edit and give with --config."""
    from vl2v.runs.settings import resolve

    typer.echo(resolve({"method": method, "data": {"path": "PATH"}}, preset).to_toml())
