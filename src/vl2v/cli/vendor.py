"""`vl2v vendor`: rent out one's own VLM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Rent out a teacher: embeddings of texts and pictures over HTTP.", no_args_is_help=True)

KeyFile = Annotated[Path, typer.Option(help="The clients' keys, hashed, in TOML.")]


@app.command("serve")
def serve(
    teacher: Annotated[str, typer.Option(help="open_clip:MODEL/PRETRAINED, hf:REPO, tiny.")],
    keys: KeyFile = Path("keys.toml"),
    ledger: Annotated[Path, typer.Option(help="What was sold, a SQLite file.")] = Path("sold.sqlite"),
    name: Annotated[str | None, typer.Option(help="What clients call the model; default: as here.")] = None,
    host: Annotated[str, typer.Option(help="To listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="To listen on; 0: a free one.")] = 8000,
    allow_url_host: Annotated[
        list[str] | None, typer.Option(help="HOST or HOST:PORT that pictures are fetched from; default: none.")
    ] = None,
) -> None:
    """Answer clients that have a key, until stopped."""
    from vl2v.vendor.serve import serve as run

    def told(address: str) -> None:
        typer.echo(f"{teacher} at {address}/v1, sales in {ledger}", err=True)

    run(teacher, keys, ledger, name=name, host=host, port=port, allow_url_hosts=allow_url_host or [], told=told)


@app.command("key")
def key(
    name: Annotated[str, typer.Argument(help="The client, as the ledger will have it.")],
    keys: KeyFile = Path("keys.toml"),
    rate: Annotated[int | None, typer.Option(help="Requests a minute; default: no limit.")] = None,
    quota: Annotated[int | None, typer.Option(help="Questions in all; default: no limit.")] = None,
    price: Annotated[int, typer.Option(help="Of a question, in millionths of the currency.")] = 0,
) -> None:
    """Make a new client's key and print it, this once; the file has only its hash."""
    from vl2v.vendor.keys import add_key

    typer.echo(add_key(keys, name, rate=rate, quota=quota, price=price))
