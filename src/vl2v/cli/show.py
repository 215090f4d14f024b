"""What commands print: lines, progress bars, and the advice on queries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from vl2v.table import Table, visible

if TYPE_CHECKING:
    from vl2v.progress import Progress
    from vl2v.runs import Advice


def say(*lines: str, err: bool = False) -> None:
    """Print lines, on standard output or standard error; no name in them rules the terminal."""
    for line in lines:
        typer.echo(visible(line), err=err)


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Yield a progress callback that shows a bar per task, with the time left, on standard error.

    Of several processes of a run only the first one shows any.
    """
    from vl2v.progress import silent
    from vl2v.system import rank

    if rank():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from stamina.instrumentation import set_on_retry_hooks

    set_on_retry_hooks([])  # the bill tells of retries; lines of a log would tear the bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[remark]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def progress(task: str, done: int, total: int, remark: str) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(visible(task), total=total or None, remark="")
            bars.update(tasks[task], completed=done, total=total or None, remark=visible(remark))

        yield progress


def print_advice(advice: Advice) -> None:
    """Print the curve of accuracy against queries and what it says about more of them."""
    rows = [[f"{p.images:,}", f"{100 * p.accuracy:.1f}", f"{100 * p.error:.1f}"] for p in advice.points]
    title = "a first student's accuracy % on the source domains' validation images"
    heads = ["images queried", "accuracy", "standard error"]
    Table(heads, rows, (), [advice.verdict()], title, left=()).print()
