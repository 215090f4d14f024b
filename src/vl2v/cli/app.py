"""All commands, in the order in which a person meets them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from vl2v import cli
from vl2v.cli import benchmark, data, learn, predict, store, teacher, vendor
from vl2v.cli.export import bench_device, export, push
from vl2v.cli.learn import adapt, demo
from vl2v.cli.predict import report
from vl2v.cli.serve import monitor, serve
from vl2v.cli.store import bill
from vl2v.table import visible


@contextmanager
def _visible() -> Iterator[None]:
    """Write out what can't be seen in the words that a usage error repeats."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):  # of typer
            error.message = visible(error.message)  # type: ignore[attr-defined]
        raise


class _Commands(cli.Commands):
    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _visible():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _visible():
            return super().invoke(ctx)


app = typer.Typer(
    name="vl2v",
    cls=_Commands,
    help="Small image classifiers, taught by a vision-language model, that work on domains they never saw.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from vl2v import __version__

        typer.echo(f"vl2v {__version__}")
        raise typer.Exit


@app.callback()
def root(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show progress in output that isn't a terminal, too."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Show results and errors only: no progress, no notes."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Small image classifiers, taught by a vision-language model, that work on domains they never saw."""
    if verbose and quiet:
        raise typer.BadParameter("choose one of --verbose and --quiet")
    cli.LEVEL = 1 if verbose else -1 if quiet else 0


app.add_typer(data.app, name="data")
app.add_typer(teacher.app, name="teacher")
app.command("embed")(learn.embed)
app.command("bill")(bill)
app.add_typer(store.app, name="store")
app.command("distill")(learn.distill)
app.command("adapt")(adapt)
app.command("evaluate")(predict.evaluate)
app.command("export")(export)
app.command("push")(push)
app.command("bench-device")(bench_device)
app.command("serve")(serve)
app.command("monitor")(monitor)
app.command("predict")(predict.predict)
app.command("report")(report)
app.add_typer(predict.classes, name="classes")
app.add_typer(benchmark.app, name="benchmark")
app.command("recommend")(benchmark.recommend)
app.add_typer(vendor.app, name="vendor")
app.command("methods")(learn.methods)
app.command("config")(learn.config)
app.command("demo")(demo)
