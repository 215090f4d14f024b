"""`vl2v push`: share a student on the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from vl2v.cli.show import say


def push(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    repo: Annotated[str, typer.Argument(help="USER/REPO; created if it doesn't exist.")],
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository; an existing public one is refused.")
    ] = False,
    license_: Annotated[
        str, typer.Option("--license", help="Licence, as the hub names it, for example mit.")
    ] = "other",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the files and the model card, upload nothing.")
    ] = False,
    store: Annotated[Path | None, typer.Option(help="Embedding store; default: one shared by all runs.")] = None,
) -> None:
    """Share a student on the Hugging Face hub: weights, exports and a model card; no images, paths or keys."""
    from vl2v.export.hub import check_licence, parcel
    from vl2v.export.hub import push as send
    from vl2v.runs.folder import Run

    if dry_run:
        check_licence(license_)
        files = parcel(Run(run), repo, licence=license_, store=store)
        for name, data in files.items():
            say(f"{name}: {len(data):,} bytes", err=True)
        typer.echo(files["README.md"].decode())
        return
    reference = send(Run(run), repo, private=private, licence=license_, store=store)
    say(f"{reference}; try: vl2v predict hf:{repo} IMAGE")
