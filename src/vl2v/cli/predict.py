"""`vl2v evaluate`, `vl2v predict`, `vl2v classes`: what to do with a finished run."""

from pathlib import Path
from typing import Annotated

import typer

from vl2v.cli.show import say
from vl2v.table import visible

RunFolder = Annotated[Path, typer.Argument(help="A run folder.")]
Student = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or hf:USER/REPO[@REVISION].")]
classes = typer.Typer(help="The classes of a student.", no_args_is_help=True)


def evaluate(
    run: Student,
    data: Annotated[Path | None, typer.Option(help="Images; by default the run's own.")] = None,
    store: Annotated[Path | None, typer.Option(help="Folder of the embedding store.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a student on every domain, the unseen ones marked, beside the zero-shot teacher."""
    import json as as_json

    from vl2v.cli.show import progress_bars
    from vl2v.runs.evaluate import evaluate as measure

    with progress_bars() as progress:
        evaluation = measure(run, data, store=store, progress=progress)
    if json:
        typer.echo(as_json.dumps(evaluation.to_json(), indent=2))
    else:
        evaluation.table().print()


def predict(
    run: Student,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Name what is in images: class and probability, or "unknown"."""
    import json as as_json

    from vl2v.runs import predict_files

    failed = 0
    for path, answer in predict_files(run, images):
        if isinstance(answer, str):
            failed += 1
            say(f"{path}: set aside: {answer}", err=True)
        elif json:
            row = {"path": str(path), "label": answer.label, "probability": answer.probability}
            typer.echo(as_json.dumps({**row, "probabilities": answer.probabilities}))
        else:
            typer.echo("\t".join(map(visible, (str(path), answer.label, f"{answer.probability:.3f}"))))
    if failed:
        say(f"{failed} files set aside", err=True)
        raise typer.Exit(2)


@classes.command("list")
def list_classes(run: Student) -> None:
    """Print the classes of a student."""
    from vl2v.runs import classes_of

    say(*classes_of(run))


@classes.command("add")
def add_class(
    run: RunFolder,
    name: Annotated[str, typer.Argument(help="The new class.")],
    store: Annotated[Path | None, typer.Option(help="Folder of the embedding store.")] = None,
    budget: Annotated[
        float, typer.Option(help="What a paid teacher may have cost in all, ever, by this store; in its currency.")
    ] = 0,
) -> None:
    """Add a class by its name alone: its text's embedding joins the classifier, nothing is trained."""
    from vl2v.runs import add_class as add

    classifier = add(run, name, store=store, budget=budget)
    say(f"{name} added; {run} knows {len(classifier.classes)} classes now")
