"""`vl2v demo`: what vl2v does, in minutes, with what comes with it."""

from pathlib import Path
from typing import Annotated

import typer

from vl2v.cli.show import say

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
    results = found.results()
    rows = [
        [name, *("-" if share is None else f"{100 * share:.1f}" for share in row.values())]
        for name, row in results.items()
    ]
    title = f"accuracy %: classify icons of a style never seen in training ({target})"
    Table(["", "styles seen (validation)", "unseen style"], rows, title=title).print()
    accuracy_bars(results, out / "accuracy.png")
    prediction_grid(found.runs, target, out / "answers.png")
    say(f"figures: {out / 'accuracy.png'}, {out / 'answers.png'}; students: {', '.join(map(str, found.folders))}")
    say(*found.conclusion(target))
    typer.echo(_NEXT)
