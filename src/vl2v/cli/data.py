"""`vl2v data`: download a dataset, inspect it, corrupt it, before anything is queried or trained."""

from pathlib import Path
from typing import Annotated

import typer

from vl2v.cli import Commands, progress_bars, say
from vl2v.cli.options import ConfigFile, Set, Store
from vl2v.errors import ConfigError, DataError
from vl2v.table import Table

SHOWN = 20  # suspect labels in the terminal
app = typer.Typer(
    cls=Commands,
    help="Inspect, download and corrupt datasets, before anything is queried or trained.",
    no_args_is_help=True,
)

DataPath = Annotated[Path, typer.Argument(help="Dataset: folders domain/class/image or class/image, or a manifest.")]


@app.command("inspect")
def inspect(
    path: DataPath,
    target: Annotated[list[str] | None, typer.Option(help="Domain to keep unseen; may be repeated.")] = None,
    layout: Annotated[str | None, typer.Option(help="Layout: auto, domains, classes or manifest.")] = None,
    exclude: Annotated[
        Path | None, typer.Option(help="File that lists images to leave out, one path per line.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Also check how this teacher reads the class prompts; no query.")
    ] = None,
    config: ConfigFile = None,
    pairs: Set = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count images by class and domain; find copies, leakage, unreadable files, and classes that can't be learned."""
    import json as as_json

    from vl2v.config import validate
    from vl2v.runs.datasets import inspect_data
    from vl2v.runs.settings import settings_of
    from vl2v.session import default_store

    own = {"data.layout": layout, "data.exclude": exclude}
    settings = settings_of(config, pairs or (), data=path, target=target, teacher=teacher, **own)
    run = validate(settings)
    reader = None
    if "spec" in settings.get("teacher", {}):
        from vl2v.teachers import the_teacher

        reader = the_teacher(run.teacher)
    with progress_bars() as progress:
        inspection = inspect_data(run, default_store(), reader, progress)
    if json:
        typer.echo(as_json.dumps(inspection.to_json(), indent=2))
        return
    domains, classes = list(inspection.rows), list(next(iter(inspection.rows.values()), {}))
    counts = list(inspection.rows.values())
    rows = [[name, *(str(count[name]) for count in counts)] for name in classes]
    rows.append(["all", *(str(sum(count.values())) for count in counts)])
    notes = [f"- {finding}" for finding in inspection.findings] or ["nothing to fix"]
    Table(["class", *domains], rows, (), notes, str(path), sections=[len(rows) - 2]).print()
    say("once a teacher has embedded these, `vl2v data mistakes` lists suspect labels")


@app.command("mistakes")
def mistakes(
    path: DataPath,
    teacher: Annotated[
        str | None, typer.Option(help="A teacher of the store, by name or fingerprint; by default its only one.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The CSV file that lists them all.")] = Path("mistakes.csv"),
    page: Annotated[Path | None, typer.Option(help="An HTML page with their thumbnails.")] = None,
    layout: Annotated[str | None, typer.Option(help="auto, domains, classes or manifest.")] = None,
    config: ConfigFile = None,
    pairs: Set = None,
    store: Store = None,
) -> None:
    """List labels that are probably wrong, by the teacher's stored embeddings; no query.

    A label is listed where the teacher and a linear student that never saw the image agree that it is wrong, the most
    suspect first. Check them by eye: on clean data, most of them are hard images.
    """
    from vl2v.config import validate
    from vl2v.runs.mistakes import find_mistakes
    from vl2v.runs.settings import settings_of
    from vl2v.session import default_store

    run = validate(settings_of(config, pairs or (), data=path, **{"data.layout": layout}))
    with progress_bars() as progress:
        found = find_mistakes(run, store or default_store(), teacher=teacher, progress=progress)
    found.write_csv(out)
    rows = [list(row) for row in found.rows()[:SHOWN]]
    heads = ["image", "class", "domain", "suggested", "p(class)", "p(suggested)"]
    if rows:
        Table(heads, rows, left=("image", "class", "domain", "suggested")).print()
    unknown = f"; {found.unknown:,} have no embedding" if found.unknown else ""
    say(f"{len(found.suspects):,} of {found.checked:,} labels are suspect{unknown}: {out}")
    if page is not None:
        from vl2v.io import write_text
        from vl2v.report.page import mistakes_page

        write_text(page, mistakes_page(found))
        say(f"thumbnails: {page}")


@app.command("sample")
def sample(
    out: Annotated[Path | None, typer.Option(help="Folder to unpack into; default: the cache folder.")] = None,
) -> None:
    """Unpack IconDG, the sample benchmark, and print its folder."""
    from vl2v.data.archives import icondg

    say(str(icondg(out)))


@app.command("list")
def list_datasets() -> None:
    """List the public benchmarks that `vl2v data download` can get."""
    from vl2v.data.catalogue import catalogue

    rows = []
    for found in catalogue().values():
        images = f"{found.total:,}" if found.total else ""
        how = "download" if found.automatic else "by hand"
        rows.append([found.name, images, f"{found.bytes / 1e9:.1f}", how, found.about])
    Table(["name", "images", "GB", "how", "what"], rows, left=("name", "how", "what")).print()


@app.command("download")
def download(
    name: Annotated[str, typer.Argument(help="Benchmark; see `vl2v data list`.")],
    out: Annotated[Path, typer.Option(help="Folder that gets one subfolder per dataset.")] = Path("data"),
    archives: Annotated[
        list[Path] | None, typer.Option("--from", help="Archive that you downloaded yourself; may be repeated.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Confirm that you have read and accept the source's terms.")
    ] = False,
) -> None:
    """Download a public benchmark with resume, unpack it safely and check its counts."""
    from vl2v.data.catalogue import benchmark, obtain

    wanted = benchmark(name)
    say(f"{wanted.title}: {wanted.about}; about {wanted.bytes / 1e9:.1f} GB to download", err=True)
    say(f"source:  {wanted.page}", f"licence: {wanted.licence}", err=True)
    if not accept_licence and not _agreed():
        raise DataError(f"{wanted.title}: read its terms at {wanted.page}, then add --accept-licence")
    with progress_bars() as progress:
        path, notes = obtain(wanted, out, files=archives or [], progress=progress)
    for note in notes:
        say(note, err=True)
    say(str(path))


def _agreed() -> bool:
    import sys

    return sys.stdin.isatty() and typer.confirm("Do you accept the source's terms?", err=True)


@app.command("corrupt")
def corrupt(
    path: DataPath,
    out: Annotated[Path, typer.Option(help="New folder for the corrupted dataset.")],
    types: Annotated[
        str, typer.Option(help="Corruptions: all, benchmark (ImageNet-C without the extra types), or names.")
    ] = "all",
    severities: Annotated[str, typer.Option(help="Severities from 1 to 5, separated by commas.")] = "3",
    domain: Annotated[list[str] | None, typer.Option(help="Domain to corrupt; may be repeated. Default: all.")] = None,
    images: Annotated[int | None, typer.Option(help="Maximum number of images per domain.")] = None,
    size: Annotated[int, typer.Option(help="Shrink images until the shorter side has this many pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    workers: Annotated[int, typer.Option(help="Number of threads.")] = 2,
) -> None:
    """Write corrupted images (ImageNet-C) as a dataset for `vl2v evaluate`, one domain per type and severity."""
    from vl2v.data.corrupted import corrupt_dataset
    from vl2v.data.corruptions import kinds_named
    from vl2v.data.layouts import open_dataset

    try:
        levels = [int(level) for level in severities.split(",")]
    except ValueError:
        raise ConfigError(f"severities {severities!r}: write numbers from 1 to 5, separated by commas") from None
    with progress_bars() as progress:
        written = corrupt_dataset(
            open_dataset(path),
            out,
            kinds=kinds_named(types),
            severities=levels,
            domains=domain or (),
            images=images,
            size=size,
            seed=seed,
            workers=workers,
            progress=progress,
        )
    if written.unreadable:
        say(f"{written.unreadable} unreadable images were left out", err=True)
    say(f"{out}: {written.images} images in each of {len(written.domains)} domains")
