"""`vl2v serve` and `vl2v monitor`: a student behind HTTP, and how far its traffic is from what it learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="An export (.onnx), a run folder, or hf:USER/REPO[@REVISION] with an export."
    ),
]


def serve(
    source: Source,
    teacher: Annotated[str | None, typer.Option(help="The run's own, to ask about pictures and new classes.")] = None,
    budget: Annotated[
        float, typer.Option(help="What a paid teacher may have cost in all, ever, by this store; in its currency.")
    ] = 0,
    store: Annotated[Path | None, typer.Option(help="Folder of the embedding store.")] = None,
    log: Annotated[Path | None, typer.Option(help="A file that embeddings of live traffic are added to.")] = None,
    origin: Annotated[list[str] | None, typer.Option(help="A page elsewhere that may ask; may be repeated.")] = None,
    name: Annotated[str, typer.Option(help="Of the model, for clients.")] = "student",
    host: Annotated[str, typer.Option(help="To listen on; another one needs VL2V_SERVE_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="To listen on.")] = 8080,
) -> None:
    """Answer over HTTP, with a page to drop pictures on, until stopped; a run without an export is exported first."""
    from vl2v.errors import StudentError
    from vl2v.serving.serve import serve as run

    try:
        file = _found(source)
    except StudentError:
        file = _export(Path(source), store)
    typer.echo(f"{file} at http://{host}:{port}", err=True)
    run(
        file,
        teacher=teacher,
        budget=budget,
        store=store,
        log=log,
        origins=origin or (),
        name=name,
        host=host,
        port=port,
    )


def monitor(
    log: Annotated[Path, typer.Argument(help="What `vl2v serve --log` wrote.")],
    source: Annotated[str, typer.Option("--run", help="What was served: an export, its run folder, or hf:USER/REPO.")],
    last: Annotated[int, typer.Option(min=1, help="How many of the latest pictures to look at.")] = 1000,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell how far live traffic is from the training domains, and whether more of it is unknown than expected."""
    import json as as_json
    from collections import Counter
    from dataclasses import asdict

    from vl2v.runtime import load
    from vl2v.serving.watch import monitor as look

    traffic, drift = look(log, load(_found(source)), last=last)
    if traffic.broken:
        typer.echo(f"{traffic.broken} broken lines left out", err=True)
    if json:
        typer.echo(as_json.dumps({**asdict(drift), "verdict": drift.verdict()}))
        return
    if drift.distance is not None:
        typer.echo(f"distance {drift.distance:.2f} from the training domains (1: as these from one another)")
    typer.echo(
        f"unknown {100 * drift.unknown:.1f}%, expected {100 * drift.expected:.1f}%, of {drift.pictures} pictures"
    )
    answers = Counter(traffic.labels).most_common(5)
    typer.echo("answers: " + ", ".join(f"{label} {100 * count / drift.pictures:.0f}%" for label, count in answers))
    typer.echo(drift.verdict())


def _found(source: str) -> Path:
    """Return the .onnx file that is meant.

    Raises:
        StudentError: a folder without an export.
        HubError: it can't be had from the hub.
    """
    from vl2v.runtime import NAMES, export_in

    if not source.startswith("hf:"):
        return export_in(Path(source))
    from vl2v.students.hub import fetch_export

    return fetch_export(source, NAMES)


def _export(run: Path, store: Path | None) -> Path:
    """Export a run, in the open form where there is one, and return the file."""
    from vl2v.cli.show import progress
    from vl2v.export import export_student
    from vl2v.runs import Run

    opened, file = Run(run), run / "student.onnx"
    form = "closed" if opened.classifier.texts is None else "open"
    with progress() as report:
        parity = export_student(opened, file, form=form, store=store, report=report)
    typer.echo(f"{file}: {parity.summary()}", err=True)
    return file
