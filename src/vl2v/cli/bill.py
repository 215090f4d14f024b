"""`vl2v bill`: who queried which teacher, when, and at what cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vl2v.cli.show import say

if TYPE_CHECKING:
    from vl2v.embeddings.ledger import Entry


def bill(
    run: Annotated[Path | None, typer.Argument(help="Run folder; limits the bill to its queries.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print every query as CSV.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print every query as JSON.")] = False,
    store: Annotated[Path | None, typer.Option(help="Embedding store; default: one shared by all runs.")] = None,
) -> None:
    """Show who queried which teacher, when, and at what cost; queries of free teachers are listed, too."""
    from vl2v.embeddings.bill import free_queries, read_bill
    from vl2v.embeddings.ledger import Entry
    from vl2v.session import default_store

    store = store or default_store()
    entries = read_bill(store, run)
    if run is None:
        entries = sorted([*free_queries(store), *entries], key=lambda entry: entry.at)
    if csv:
        import csv as as_csv
        import sys

        as_csv.writer(sys.stdout).writerows([Entry.columns(), *(entry.row() for entry in entries)])
    elif json:
        import json as as_json

        rows_of = [dict(zip(entry.columns(), entry.row(), strict=True)) for entry in entries]
        typer.echo(as_json.dumps(rows_of, indent=2))
    else:
        _show(entries)


def _show(entries: "list[Entry]") -> None:
    from vl2v.embeddings.bill import totals
    from vl2v.table import Table
    from vl2v.teachers.paid.teacher import money

    if not entries:
        say("no paid queries")
        return
    lines, rows = totals(entries), []
    for line in lines:
        counts = (f"{number:,}" for number in (line.queries, line.count, line.tokens))
        rows.append([*line.group, *counts, money(line.micro, line.currency) if line.currency else "free"])
    heads = ("teacher", "queried by", "day", "what", "outcome", "requests", "inputs", "tokens", "price")
    Table(heads, rows, title="queries to teachers", left=heads[:5]).print()
    for currency in sorted({line.currency for line in lines if line.currency}):
        say(f"total: {money(sum(line.micro for line in lines if line.currency == currency), currency)}")
