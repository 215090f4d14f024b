"""`vl2v store`: the folder that keeps every answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vl2v.cli.show import say

app = typer.Typer(help="Look after stores of answers.", no_args_is_help=True)


@app.callback()
def store() -> None:
    """Look after stores of answers."""


@app.command()
def merge(
    shards: Annotated[list[Path], typer.Argument(help="Folders of stores; they are left as they are.")],
    into: Annotated[Path, typer.Option(help="Folder of the store that gets their answers and bills.")],
) -> None:
    """Put stores that were filled apart together; giving the command again changes nothing."""
    from vl2v.embeddings import merge as put_together

    for shard in shards:
        merged = put_together(shard, into)
        say(f"{shard}: {merged.answers:,} answers and {merged.queries:,} paid queries are new in {into}")
