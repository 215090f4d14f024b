"""`vl2v export`, `vl2v bench-device`: a student as a file, and how fast it runs."""

import re
from pathlib import Path
from typing import Annotated

import typer

from vl2v.cli import progress_bars, say
from vl2v.cli.options import Store
from vl2v.errors import ConfigError


def export(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folder; several with --target-latency or --target-size.")
    ],
    kind: Annotated[
        str, typer.Option("--format", help="Format: onnx, openvino, torchscript, executorch, litert, coreml or web.")
    ] = "onnx",
    int8: Annotated[
        bool | None,
        typer.Option(
            "--int8/--no-int8",
            help="Quantise: smaller and faster; refused if accuracy falls. By default a page is quantised where that "
            "keeps its predictions, and with a target both are tried.",
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Allow classes to be added to the file later.")] = False,
    image_size: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Image size in pixels; default: the student's. With a target, repeat it to try several."
        ),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(help="inside (default of onnx): images of any size in, probabilities out; or outside: pixels."),
    ] = None,
    layout: Annotated[
        str, typer.Option(help="Layout: file, or triton, a folder of a model repository (--out models/NAME).")
    ] = "file",
    add_class: Annotated[
        list[str] | None, typer.Option(help="A class that people can add in a page (web, with --open); several.")
    ] = None,
    runtime: Annotated[
        Path | None, typer.Option(help="For web: a folder with onnxruntime-web; by default it is downloaded once.")
    ] = None,
    target_latency: Annotated[
        str | None, typer.Option(help="Maximum latency for one image on this machine, such as 10ms.")
    ] = None,
    target_size: Annotated[str | None, typer.Option(help="Maximum file size, such as 5MB.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output file; default: student.onnx in the run folder.")] = None,
    store: Store = None,
) -> None:
    """Export a student to a file that runs without vl2v, after checking it on real images."""
    from vl2v.deploy.runtime import size_of
    from vl2v.export.choose import Target, TargetMissed, choose_export
    from vl2v.export.formats import default_name
    from vl2v.export.network import model_file, write_config
    from vl2v.export.student import export_student
    from vl2v.runs.folder import Run
    from vl2v.runs.predict import class_embeddings

    target = Target(
        _amount("--target-latency", target_latency, {"ms": 1e-3, "s": 1}),
        _amount("--target-size", target_size, {"KB": 1e3, "MB": 1e6}),
    )
    form, sizes = "open" if open_ else "closed", image_size or []
    if any(limit is not None for limit in target):
        try:
            with progress_bars() as progress:
                choice = choose_export(
                    [Run(run) for run in runs],
                    target,
                    kind,
                    out=out,
                    form=form,
                    int8=int8,
                    image_sizes=sizes,
                    preprocess=preprocess,
                    store=store,
                    progress=progress,
                )
        except TargetMissed as missed:
            missed.curve.table().print()
            missed.curve.save(out.parent if out else runs[0])
            raise
        choice.curve.table().print()
        choice.curve.save(choice.path.parent)
        say(f"{choice.path}: {choice.best.name}; table in choice.csv, plot in choice.png, beside it")
        return
    if add_class and not (kind == "web" and open_):
        raise ConfigError(
            "--add-class: for --format web with --open; `vl2v classes add` adds one to the student itself"
        )
    if len(runs) > 1 or len(sizes) > 1:
        raise ConfigError("several runs or sizes: add --target-latency or --target-size to choose between them")
    run, size = Run(runs[0]), sizes[0] if sizes else None
    if layout == "triton":
        if kind != "onnx" or preprocess == "inside":
            raise ConfigError("--layout triton: takes batches of pixels, so only --format onnx --preprocess outside")
        folder, preprocess = out or run.folder / "models" / "student", "outside"
        out = model_file(folder)
    elif layout != "file":
        raise ConfigError(f"--layout {layout}: choose file or triton")
    with progress_bars() as progress:
        path = out or run.folder / default_name(kind, int8=bool(int8))
        made = export_student(
            run,
            path,
            kind,
            form=form,
            int8=int8,
            image_size=size,
            preprocess=preprocess,
            store=store,
            progress=progress,
            runtime=runtime,
            others=class_embeddings(run, add_class, store=store) if add_class else None,
        )
    if layout == "triton":
        write_config(folder)
    say(f"{path}: {size_of(path) / 1e6:.1f} MB; {made.summary()}")


def bench_device(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    against: Annotated[
        str | None,
        typer.Option(help="Teacher to compare with: teacher (the run's own) or a spec as for `vl2v distill`."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Image size in pixels; default: the student's.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: one per processor.")] = None,
    store: Store = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure speed, size and memory of a student in every format; save table and plot in the run folder."""
    import json as as_json

    from vl2v.export.device import bench_device as measure
    from vl2v.runs.folder import Run

    with progress_bars() as progress:
        found = measure(
            Run(run), against=against, image_size=image_size, threads=threads, store=store, progress=progress
        )
    found.save(run)
    if json:
        typer.echo(as_json.dumps(found.to_json(), indent=2))
    else:
        found.table().print()
        say(f"saved as {run / 'device.md'}, {run / 'device.json'} and {run / 'device.png'}")


def _amount(option: str, text: str | None, units: dict[str, float]) -> float | None:
    """Return an amount with a unit as a number."""

    if text is None:
        return None
    found = re.fullmatch(r"(\d+\.?\d*)\s*([a-zA-Z]+)", text)
    if found is None or found[2] not in units or not float(found[1]):
        raise ConfigError(f"{option} {text}: write a number and its unit, {' or '.join(units)}")
    return float(found[1]) * units[found[2]]


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
    store: Store = None,
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
