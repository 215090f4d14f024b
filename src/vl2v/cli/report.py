"""`vl2v report`: one HTML file about a run or a benchmark."""

from pathlib import Path
from typing import Annotated

import typer

from vl2v.cli.benchmark import RULES, Selection, one_of
from vl2v.cli.show import say


def report(
    folder: Annotated[Path, typer.Argument(help="Run folder or benchmark folder.")],
    out: Annotated[Path | None, typer.Option(help="Output file; default: report.html in the folder.")] = None,
    store: Annotated[Path | None, typer.Option(help="Embedding store; default: one shared by all runs.")] = None,
    selection: Selection = "training",
) -> None:
    """Write a self-contained HTML report: results, mistakes, confidence, curves, settings."""
    from vl2v.cli.show import progress_bars
    from vl2v.report.write import write_report

    rule = one_of(selection, RULES, "--selection")
    with progress_bars() as tell:
        path = write_report(folder, out, store=store, selection=rule, progress=tell)
    say(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
