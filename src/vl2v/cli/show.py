"""What commands print: progress bars and tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vl2v.benchmark.table import Table
    from vl2v.evaluation import Evaluation
    from vl2v.runs import Advice
    from vl2v.runs.report import Report


@contextmanager
def progress() -> Iterator[Report]:
    """Show a progress bar for each thing that is reported, with what is left, on standard error.

    Of several processes of a run only the first one shows any.
    """
    from vl2v.devices import rank
    from vl2v.runs.report import silent

    if rank():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from stamina.instrumentation import set_on_retry_hooks

    set_on_retry_hooks([])  # the bill tells of retries; lines of a log would tear the bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def report(what: str, done: int, total: int, words: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, words="")
            bars.update(tasks[what], completed=done, total=total, words=words)

        yield report


def print_advice(advice: Advice) -> None:
    """Print the curve of accuracy against queries and what it says about more of them."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="a first student's accuracy % on the source domains' validation images")
    for name in ("images asked about", "accuracy", "standard error"):
        table.add_column(name, justify="right")
    for point in advice.points:
        table.add_row(f"{point.images:,}", f"{100 * point.accuracy:.1f}", f"{100 * point.error:.1f}")
    console = Console()
    console.print(table)
    console.print(advice.verdict(), highlight=False)


def print_table(table: Table) -> None:
    """Print a table, its first column to the left, and its notes."""
    from rich.console import Console
    from rich.table import Table as Rich

    drawn = Rich()
    for place, head in enumerate(table.heads):
        drawn.add_column(head, justify="right" if place else "left")
    for number, row in enumerate(table.rows):
        drawn.add_row(*row, style="bold" if number in table.bold else None)
    console = Console()
    console.print(drawn)
    for note in table.notes:
        console.print(note, highlight=False)


def print_evaluation(evaluation: Evaluation) -> None:
    """Print every model's accuracy by domain; unseen domains are marked with a star."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="accuracy %, * unseen in training")
    for name in ("", "domain", "images", "accuracy", "balanced", "ECE", "known"):
        table.add_column(name, justify="left" if name in ("", "domain") else "right")
    for who in evaluation.models():
        for row in evaluation.of(who):
            m = row.metrics
            shares = (f"{100 * share:.1f}" for share in (m.accuracy, m.balanced_accuracy, m.ece, m.known))
            mark = " *" if row.role == "unseen" else ""
            table.add_row(who, row.domain + mark, str(m.images), *shares)
        table.add_section()
    console = Console()
    console.print(table)
    worst = evaluation.worst()
    if worst is not None:
        console.print(f"worst domain: {worst.domain}, {100 * worst.metrics.accuracy:.1f}%")
    for note in evaluation.notes:
        console.print(note)
