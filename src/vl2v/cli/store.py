"""`vl2v store`: inspect and maintain embedding stores."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vl2v.cli import Commands, say
from vl2v.cli.options import Store
from vl2v.errors import ConfigError, StoreError
from vl2v.table import Table

if TYPE_CHECKING:
    from vl2v.embeddings.ledger import Entry

app = typer.Typer(cls=Commands, help="Inspect and maintain embedding stores.", no_args_is_help=True)


@app.callback()
def store() -> None:
    """Inspect and maintain embedding stores."""


def _folder(path: Path | None) -> Path:
    from vl2v.session import default_store

    return path or default_store()


@app.command("ls")
def list_teachers(store: Store = None) -> None:
    """List the teachers in a store and how many embeddings it has of each."""
    from vl2v.embeddings.maintain import summaries
    from vl2v.embeddings.store import EmbeddingStore

    with EmbeddingStore(_folder(store), read_only=True) as opened:
        found = summaries(opened)
    rows = [
        [one.teacher.name, one.teacher.fingerprint, str(one.teacher.dim), f"{one.images:,}", f"{one.texts:,}",
         "yes" if one.paid else "no"]
        for one in found
    ]  # fmt: skip
    heads = ["teacher", "fingerprint", "dim", "images", "texts", "paid"]
    Table(heads, rows, left=("teacher", "fingerprint", "paid")).print()


@app.command()
def info(store: Store = None) -> None:
    """Show a store's size, and check that no embedding is lost or damaged."""
    from vl2v.embeddings.maintain import summaries
    from vl2v.embeddings.store import EmbeddingStore

    with EmbeddingStore(_folder(store), read_only=True) as opened:
        found = summaries(opened)
        count = sum(one.images + one.texts for one in found)
        size = opened.file.stat().st_size / 1e6
        typer.echo(f"{opened.path}: {count:,} embeddings of {len(found)} teachers, {size:,.1f} MB")
        for one in found:
            opened.check(one.teacher.fingerprint)
    typer.echo("every embedding is there and undamaged")


@app.command()
def repair(store: Store = None) -> None:
    """Drop damaged embeddings and rebuild the index; `vl2v embed` queries the dropped ones again."""
    from vl2v.embeddings.store import EmbeddingStore

    folder = _folder(store)
    EmbeddingStore(folder, read_only=True).close()  # no new store where there is none
    with EmbeddingStore(folder) as opened:
        typer.echo(f"{folder}: dropped {opened.repair():,} damaged embeddings")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="File to write: .npz or .parquet.")],
    teacher: Annotated[str | None, typer.Option(help="Name or fingerprint; needed if there are several.")] = None,
    data: Annotated[Path | None, typer.Option(help="Images whose SHA-256 is written beside their embeddings.")] = None,
    store: Store = None,
) -> None:
    """Write a teacher's embeddings as unit vectors, with their keys and the teacher's facts."""
    from vl2v.embeddings.maintain import export as write
    from vl2v.embeddings.store import EmbeddingStore

    hashes: tuple[bytes, ...] = ()
    if data is not None:
        from vl2v.data.auditing import audit
        from vl2v.data.layouts import open_dataset

        hashes = tuple(one for one in audit(open_dataset(data)).contents if len(one) == 32)
    with EmbeddingStore(_folder(store), read_only=True) as opened:
        count = write(opened, file, teacher, hashes)
    typer.echo(f"{file}: {count:,} embeddings")


@app.command("rm")
def remove(
    teacher: Annotated[str, typer.Argument(help="Name or fingerprint, see `vl2v store ls`.")],
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation.")] = False,
    paid_too: Annotated[bool, typer.Option("--paid-too", help="Delete embeddings that were paid for.")] = False,
    store: Store = None,
) -> None:
    """Delete all embeddings of a teacher; the ledger keeps its bill."""
    from vl2v.embeddings import maintain
    from vl2v.embeddings.store import EmbeddingStore

    folder = _folder(store)
    with EmbeddingStore(folder, read_only=True) as opened:
        maintain.find_teacher(opened, teacher)
    with EmbeddingStore(folder) as opened:
        if not yes:
            typer.confirm(f"Delete all embeddings of {teacher} from {folder}?", abort=True, err=True)
        gone = maintain.remove(opened, teacher, paid_too=paid_too)
    typer.echo(f"{folder}: deleted {gone.images + gone.texts:,} embeddings of {gone.teacher.name}")


@app.command()
def gc(store: Store = None) -> None:
    """Give the space of deleted embeddings back to the disk; no embedding is dropped."""
    from vl2v.embeddings.maintain import collect
    from vl2v.embeddings.store import EmbeddingStore

    folder = _folder(store)
    EmbeddingStore(folder, read_only=True).close()
    with EmbeddingStore(folder) as opened:
        typer.echo(f"{folder}: freed {max(0, collect(opened)) / 1e6:,.1f} MB")


@app.command()
def merge(
    shards: Annotated[list[Path], typer.Argument(help="Stores to copy from; they are not changed.")],
    into: Annotated[Path, typer.Option(help="Store to copy embeddings and bills into.")],
) -> None:
    """Merge stores that were filled separately; merging again changes nothing."""
    from vl2v.embeddings.maintain import merge as put_together

    for shard in shards:
        merged = put_together(shard, into)
        typer.echo(f"{shard}: {merged.embeddings:,} embeddings and {merged.queries:,} paid queries are new in {into}")


def bill(
    run: Annotated[Path | None, typer.Argument(help="Run folder; limits the bill to its queries.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print every query as CSV.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print every query as JSON.")] = False,
    store: Store = None,
) -> None:
    """Show who queried which teacher, when, and at what cost; queries of free teachers are listed, too."""
    from vl2v.embeddings.bill import free_queries, read_bill
    from vl2v.embeddings.ledger import Entry
    from vl2v.session import default_store

    if csv and json:
        raise ConfigError("choose one of --csv and --json")
    if store is not None and not store.is_dir():
        raise StoreError(f"{store}: there is no embedding store here: `vl2v embed` makes one")
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
    from vl2v.teachers.paid.teacher import money

    if not entries:
        say("no paid queries")
        return
    lines, rows = totals(entries), []
    for line in lines:
        counts = (f"{number:,}" for number in (line.queries, line.count, line.tokens))
        rows.append([*line.group, *counts, money(line.micro, line.currency) if line.currency else "free"])
    heads = ("teacher", "queried by", "day", "what", "outcome", "requests", "inputs", "tokens", "price")
    shown = [n for n, head in enumerate(heads) if head != "queried by" or any(row[n] for row in rows)]
    cells = [[row[n] for n in shown] for row in rows]
    Table([heads[n] for n in shown], cells, title="queries to teachers", left=heads[:5]).print()
    for currency in sorted({line.currency for line in lines if line.currency}):
        say(f"total: {money(sum(line.micro for line in lines if line.currency == currency), currency)}")
