"""`vl2v serve` and `vl2v monitor`: a student behind HTTP, and how far its traffic has drifted."""

from pathlib import Path
from typing import Annotated

import typer

from vl2v.cli import progress_bars, say
from vl2v.cli.options import Budget, Store
from vl2v.errors import StudentError

Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="Export (.onnx), run folder, or hf:USER/REPO[@REVISION] with an export."),
]


def serve(
    source: Source,
    teacher: Annotated[
        str | None, typer.Option(help="The run's own teacher, to query about images and new classes.")
    ] = None,
    budget: Budget = 0,
    store: Store = None,
    log: Annotated[Path | None, typer.Option(help="File to append embeddings of live traffic to.")] = None,
    log_images: Annotated[
        Path | None,
        typer.Option(help="Folder to save predicted images in, for `vl2v adapt --from`; by default none is saved."),
    ] = None,
    log_images_mb: Annotated[
        int, typer.Option(min=1, help="Largest size of that folder in MB; the oldest images make way.")
    ] = 1024,
    origin: Annotated[
        list[str] | None, typer.Option(help="Origin of a web page that may send requests; may be repeated.")
    ] = None,
    name: Annotated[str, typer.Option(help="Model name that clients use.")] = "student",
    host: Annotated[
        str, typer.Option(help="Address to listen on; other than localhost needs VL2V_SERVE_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8080,
) -> None:
    """Serve a student over HTTP, with a web page to drop images on; a run without an export is exported first."""
    from vl2v.deploy.runtime import exports_in
    from vl2v.serving.serve import serve as run
    from vl2v.serving.serve import to_serve

    path = _here(source)
    try:
        exports_in(path)
    except StudentError:
        _export(path, store)
    (file, _), *others = to_serve(path, open_form=teacher is not None)
    for other, kind in others:
        say(f"{other} ({kind}) isn't served", err=True)
    run(
        file,
        teacher=teacher,
        budget=budget,
        store=store,
        log=log,
        log_images=log_images,
        log_images_mb=log_images_mb,
        origins=origin or (),
        name=name,
        host=host,
        port=port,
        announce=lambda line: say(line, err=True),
    )


def monitor(
    log: Annotated[Path, typer.Argument(help="Traffic log written by `vl2v serve --log`.")],
    source: Annotated[str, typer.Option("--run", help="Student that was served: export, run folder, or hf:USER/REPO.")],
    last: Annotated[int, typer.Option(min=1, help="Number of latest images to use.")] = 1000,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how far live traffic is from the training domains, and whether more is unknown than expected."""
    import json as as_json
    from collections import Counter
    from dataclasses import asdict

    from vl2v.deploy.runtime import exports_in, load
    from vl2v.serving.traffic_log import monitor as monitor_log
    from vl2v.serving.traffic_log import owner

    student = owner(log, [load(file) for file in exports_in(_here(source))])
    traffic, drift = monitor_log(log, student, last=last)
    if traffic.broken:
        say(f"{traffic.broken} broken lines skipped", err=True)
    first, latest = traffic.span or (None, None)
    if json:
        typer.echo(as_json.dumps({**asdict(drift), "first": first, "last": latest, "verdict": drift.verdict()}))
        return
    if first:
        say(f"images of {first} to {latest}")
    if drift.distance is not None:
        say(f"distance {drift.distance:.2f} from the training domains (above 1: more than chance)")
    say(f"unknown {100 * drift.unknown:.1f}%, expected {100 * drift.expected:.1f}%, of {drift.images} images")
    common = Counter(traffic.labels).most_common(5)
    say("predictions: " + ", ".join(f"{label} {100 * count / drift.images:.0f}%" for label, count in common))
    say(drift.verdict())


def _here(source: str) -> Path:
    """Return the export or run folder that is meant.

    Raises:
        HubError: it can't be had from the hub.
    """
    if not source.startswith("hf:"):
        return Path(source)
    from vl2v.deploy.runtime import NAMES
    from vl2v.students.stored import fetch_export

    return fetch_export(source, NAMES)


def _export(run: Path, store: Path | None) -> None:
    """Export a run, in the open form where there is one."""
    from vl2v.export.student import export_student
    from vl2v.runs.folder import Run

    opened, file = Run(run), run / "student.onnx"
    form = "closed" if opened.classifier.texts is None else "open"
    with progress_bars() as progress:
        parity = export_student(opened, file, form=form, store=store, progress=progress)
    say(f"{file}: {parity.summary()}", err=True)
