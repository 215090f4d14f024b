"""`vl2v push`: a student for others, on the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from vl2v.cli.show import say


def push(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    repo: Annotated[str, typer.Argument(help="USER/REPO; made if it isn't there.")],
    private: Annotated[bool, typer.Option("--private", help="For you alone; a public repository is refused.")] = False,
    license_: Annotated[str, typer.Option("--license", help="The hub's identifier, for example mit.")] = "other",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be sent, and the card.")] = False,
) -> None:
    """Share a student: weights, description, exports and a model card; no image, no path, no key."""
    from vl2v.export import parcel
    from vl2v.export import push as send
    from vl2v.export.hub import check_licence
    from vl2v.runs import Run

    if dry_run:
        check_licence(license_)
        files = parcel(Run(run), repo, licence=license_)
        for name, data in files.items():
            say(f"{name}: {len(data):,} bytes", err=True)
        typer.echo(files["README.md"].decode())
        return
    reference = send(Run(run), repo, private=private, licence=license_)
    say(f"{reference}; try: vl2v predict hf:{repo} IMAGE")
