"""`vl2v vendor`: sell embeddings of a local teacher."""

from pathlib import Path
from typing import Annotated

import typer

from vl2v.cli import Commands, say
from vl2v.table import Table

app = typer.Typer(
    cls=Commands, help="Sell a local teacher's embeddings of texts and images over HTTP.", no_args_is_help=True
)

keys_app = typer.Typer(cls=Commands, help="Manage the clients' keys.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

KeyFile = Annotated[Path, typer.Option(help="File with the clients' hashed keys (TOML).")]
LedgerFile = Annotated[Path, typer.Option(help="Ledger of sales, a SQLite file.")]


@app.command("serve")
def serve(
    teacher: Annotated[str, typer.Option(help="Teacher: open_clip:MODEL/PRETRAINED, hf:REPO or tiny.")],
    keys: KeyFile = Path("keys.toml"),
    ledger: LedgerFile = Path("sold.sqlite"),
    name: Annotated[str | None, typer.Option(help="Model name that clients use; default: the teacher's.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    allow_url_host: Annotated[
        list[str] | None, typer.Option(help="HOST or HOST:PORT that images may be fetched from; default: none.")
    ] = None,
) -> None:
    """Serve clients that have a key, until stopped; SIGHUP reloads the keys."""
    from vl2v.vendor.serve import serve as run

    def announce(address: str) -> None:
        say(f"{teacher} at {address}/v1, sales in {ledger}", err=True)

    run(teacher, keys, ledger, name=name, host=host, port=port, allow_url_hosts=allow_url_host or [], announce=announce)


@keys_app.command("add")
@app.command("key", hidden=True)
def add(
    name: Annotated[str, typer.Argument(help="Name of the client in the ledger.")],
    keys: KeyFile = Path("keys.toml"),
    rate: Annotated[int | None, typer.Option(help="Requests per minute; default: no limit.")] = None,
    quota: Annotated[int | None, typer.Option(help="Texts and images in total; default: no limit.")] = None,
    price: Annotated[int, typer.Option(help="Price of a text or an image, in millionths of the currency.")] = 0,
    price_image: Annotated[int | None, typer.Option(help="Price of an image, if different.")] = None,
    price_text: Annotated[int | None, typer.Option(help="Price of a text, if different.")] = None,
) -> None:
    """Create a client's key and print it, this once; the file stores only its hash."""
    from vl2v.vendor.keys import add_key

    prices = {"price": price, "price_image": price_image, "price_text": price_text}
    typer.echo(add_key(keys, name, rate=rate, quota=quota, **prices))  # type: ignore[arg-type]


@keys_app.command("list")
def list_keys(
    keys: KeyFile = Path("keys.toml"),
    ledger: LedgerFile = Path("sold.sqlite"),
) -> None:
    """List the clients with limits, prices in millionths and purchases."""
    from vl2v.vendor.keys import read_keys
    from vl2v.vendor.meter import sums

    found = read_keys(keys).keys
    bought = sums(ledger) if ledger.exists() else {}
    heads = ["name", "rate", "quota", "an image", "a text", "requests", "images", "texts", "sum", "revoked"]
    rows = []
    for key in found:
        had = bought.pop(key.name, {})
        limits = ["-" if limit is None else str(limit) for limit in (key.rate, key.quota)]
        prices = [str(key.price_of("image")), str(key.price_of("text"))]
        revoked = "-" if key.revoked is None else f"{key.revoked:%Y-%m-%d}"
        rows.append((key.name, *limits, *prices, *_sums(had), revoked))
    rows += [(name, "-", "-", "-", "-", *_sums(had), "no key") for name, had in bought.items()]
    Table(heads, rows, left=("name", "revoked")).print()
    if not ledger.exists():
        say(f"{ledger}: no ledger yet, so nothing is counted; choose another with --ledger", err=True)


@keys_app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="Client's name.")],
    keys: KeyFile = Path("keys.toml"),
) -> None:
    """Revoke a client's key; a running server reads the file again on SIGHUP."""
    from vl2v.vendor.keys import revoke_key

    revoke_key(keys, name)
    say(f"{name}: revoked in {keys}; a running server reloads it on SIGHUP (kill -HUP PID)", err=True)


def _sums(had: dict[str, tuple[int, int, int]]) -> tuple[str, ...]:
    """Return requests, images, texts and money of a client."""
    none = (0, 0, 0)
    images, texts = had.get("image", none), had.get("text", none)
    return str(images[0] + texts[0]), str(images[1]), str(texts[1]), f"{(images[2] + texts[2]) / 10**6:.6f}"
