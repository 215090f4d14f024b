"""`vl2v demo`: what vl2v does, in minutes, with what comes with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vl2v.cli.show import say

if TYPE_CHECKING:
    from vl2v.runs.folder import Run
    from vl2v.session import Progress

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
    from vl2v.benchmark.demo import accuracy_bars, prediction_grid, run_demo
    from vl2v.cli.show import progress_bars
    from vl2v.table import Table

    with progress_bars() as progress:
        found = run_demo(out, target=target, progress=progress)
        page = demo_page(found.runs["adip"], out, progress)
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


def demo_page(run: "Run", out: Path, progress: "Progress") -> str:
    """Write a run's page, unless it is there, and return how to open it, or why there is none."""
    from vl2v.errors import DataError, MissingExtra
    from vl2v.export.student import export_student
    from vl2v.runs.predict import class_embeddings

    page, store = out / "page", out / "store"
    try:
        if not page.exists():
            others = class_embeddings(run, NEW_CLASSES, store=store)
            export_student(run, page, "web", form="open", others=others, store=store, progress=progress)
    except (DataError, MissingExtra) as error:
        return f"no page for the browser: {error}"
    return f"page: python -m http.server --directory {page} 8000, then open http://localhost:8000"
