"""`vl2v data`: look at a dataset before anything is asked or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look at pictures before anything is asked or trained.", no_args_is_help=True)

DataPath = Annotated[Path, typer.Argument(help="A dataset: domain/class/image, class/image, or a manifest.")]


@app.command("inspect")
def inspect(
    path: DataPath,
    target: Annotated[list[str] | None, typer.Option(help="A domain to be kept unseen; may be repeated.")] = None,
    layout: Annotated[str, typer.Option(help="auto, domains, classes or manifest.")] = "auto",
    exclude: Annotated[Path | None, typer.Option(help="A list of files to leave out.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count classes by domains; find duplicates, leakage, unreadable files and layout mistakes."""
    import json as as_json

    from rich.console import Console
    from rich.table import Table

    from vl2v.cli.show import progress
    from vl2v.data import audit, open_dataset
    from vl2v.data import inspect as look_at
    from vl2v.runs import default_store

    dataset = open_dataset(path, layout=layout, exclude=exclude)
    with progress() as report:
        tell = lambda done, total: report("reading pictures", done, total, "")  # noqa: E731
        found = audit(dataset, cache=default_store() / "audit.sqlite", progress=tell)
    inspection = look_at(dataset, found, target or [])
    if json:
        typer.echo(as_json.dumps(inspection.to_json(), indent=2))
        return
    table = Table(title=str(path))
    table.add_column("class")
    for domain in dataset.domains:
        table.add_column(domain, justify="right")
    for name in dataset.classes:
        table.add_row(name, *(str(inspection.rows[domain].get(name, 0)) for domain in dataset.domains))
    table.add_section()
    table.add_row("all", *(str(sum(inspection.rows[domain].values())) for domain in dataset.domains))
    console = Console()
    console.print(table)
    for finding in inspection.findings:
        console.print(f"- {finding}", markup=False, highlight=False)
    if not inspection.findings:
        console.print("nothing to mend")


@app.command("sample")
def sample(
    out: Annotated[Path | None, typer.Option(help="Where to put it; by default the cache folder.")] = None,
) -> None:
    """Unpack IconDG, the sample benchmark, and print where it is."""
    from vl2v.data.samples import icondg

    typer.echo(str(icondg(out)))
