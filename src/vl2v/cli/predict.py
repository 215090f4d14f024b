"""`vl2v evaluate`, `vl2v predict`, `vl2v classes`: a finished run put to use."""

from pathlib import Path
from typing import Annotated

import typer

from vl2v.cli import Commands, progress_bars, say
from vl2v.cli.benchmark import RULES, Selection, one_of
from vl2v.cli.options import Budget, Store
from vl2v.table import visible

RunFolder = Annotated[Path, typer.Argument(help="Run folder.")]
Student = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or hf:USER/REPO[@REVISION].")]
classes = typer.Typer(cls=Commands, help="List a student's classes, and add new ones.", no_args_is_help=True)


def evaluate(
    run: Student,
    data: Annotated[Path | None, typer.Option(help="Images; default: the run's own.")] = None,
    store: Store = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate a student and the zero-shot teacher on every domain; unseen domains are marked."""
    import json as as_json

    from vl2v.runs.evaluate import evaluate as measure

    with progress_bars() as progress:
        evaluation = measure(run, data, store=store, progress=progress)
    if json:
        typer.echo(as_json.dumps(evaluation.to_json(), indent=2))
    elif evaluation.rows:
        evaluation.table().print()
    else:
        say(*evaluation.notes)


def predict(
    run: Student,
    images: Annotated[list[Path], typer.Argument(help="Images or folders of images.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Classify images: class and probability, or "unknown"."""
    import json as as_json

    from vl2v.runs.predict import predict_files

    failed = 0
    for path, found in predict_files(run, images):
        if isinstance(found, str):
            failed += 1
            say(f"{path}: skipped: {found}", err=True)
        elif json:
            row = {"path": str(path), "label": found.label, "probability": found.probability}
            typer.echo(as_json.dumps({**row, "probabilities": found.probabilities}))
        else:
            typer.echo("\t".join(map(visible, (str(path), found.label, f"{found.probability:.3f}"))))
    if failed:
        say(f"{failed} {'file' if failed == 1 else 'files'} skipped", err=True)
        raise typer.Exit(2)


@classes.command("list")
def list_classes(run: Student) -> None:
    """Print a student's classes."""
    from vl2v.runs.predict import classes_of

    say(*classes_of(run))


@classes.command("add")
def add_class(
    run: RunFolder,
    name: Annotated[str, typer.Argument(help="Name of the new class.")],
    store: Store = None,
    budget: Budget = 0,
) -> None:
    """Add a class by name: the embedding of its prompts joins the classifier, without training."""
    from vl2v.runs.predict import add_class as add

    classifier = add(run, name, store=store, budget=budget)
    say(f"{name} added; {run} now has {len(classifier.classes)} classes")


def report(
    folder: Annotated[Path, typer.Argument(help="Run folder or benchmark folder.")],
    out: Annotated[Path | None, typer.Option(help="Output file; default: report.html in the folder.")] = None,
    store: Store = None,
    selection: Selection = "training",
) -> None:
    """Write a self-contained HTML report: results, mistakes, confidence, curves, settings."""
    from vl2v.report.page import write_report

    rule = one_of(selection, RULES, "--selection")
    with progress_bars() as progress:
        path = write_report(folder, out, store=store, selection=rule, progress=progress)
    say(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
