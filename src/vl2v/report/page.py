"""A page: a template filled in, complete in one file, with small images inside it."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from vl2v.data.decoding import decode
from vl2v.errors import DataError, RunError
from vl2v.io import write_text
from vl2v.report import charts
from vl2v.runs.folder import Run
from vl2v.runs.mistakes import Mistakes
from vl2v.session import Progress, Session, silent

if TYPE_CHECKING:
    from vl2v.benchmark.worklist import Selection

SIDE = 88  # of a thumbnail, in pixels; they are shown at about that size
WIDEST = 1.0  # width of an interval of differences, from -1 to 1, from which on it says nothing


def page(template: str, content: Mapping[str, Any]) -> str:
    """Return the HTML of a template with its content; whatever is put in is escaped."""
    from vl2v import __version__

    script = _ours("script.js")
    environment = Environment(
        loader=PackageLoader("vl2v.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        width=charts.WIDTH,
        height=charts.HEIGHT,
        left=charts.LEFT,
        right=charts.RIGHT,
        top=charts.TOP,
        bottom=charts.BOTTOM,
        number=charts.number,
        version=__version__,
        day=time.strftime("%d %B %Y").lstrip("0"),
        style=_ours("style.css"),
        script=script,
        digest=_digest(script),
    )
    return environment.get_template(template).render(**content)


def _ours(name: str) -> Markup:
    """Return a file of this package as it is: it goes into <style> and <script>, where nothing is escaped."""
    return Markup((files("vl2v.report") / "templates" / name).read_text(encoding="utf-8"))


def _digest(script: str) -> str:
    """Return the hash by which a browser recognises the page's own script, and runs no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def percent(share: float, digits: int = 1) -> str:
    """Return a share as a number of percent."""
    return f"{100 * share:.{digits}f}"


def interval(share: float, low: float, high: float) -> tuple[str, str]:
    """Return a share in percent, and its interval."""
    return percent(share), f"{percent(low)} to {percent(high)}"


def lead(mean: float, low: float, high: float) -> tuple[str, str]:
    """Return a difference of shares in points, and its interval: bounded by what is possible, if it says anything."""
    low, high = max(low, -1.0), min(high, 1.0)
    narrow = math.isfinite(low) and math.isfinite(high) and high - low < WIDEST
    return (
        f"{100 * mean:+.1f}",
        f"{100 * low:+.1f} to {100 * high:+.1f}" if narrow else "too few runs to tell",
    )


def duration(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def data_uri(image: Image.Image, quality: int = 70) -> str:
    """Return an image as a WebP data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnail(image: Image.Image, side: int = SIDE) -> str:
    """Return an image, fitted into a square of `side` pixels, as a data URI."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_uri(small)


def sprite(pixels: Sequence[NDArray[np.uint8]], side: int, columns: int) -> str:
    """Return images [s, s, 3] as one sheet of squares, row by row, as a data URI."""
    rows = -(-len(pixels) // columns)
    sheet = Image.new("RGB", (columns * side, max(rows, 1) * side))
    for number, image in enumerate(pixels):
        small = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (number % columns * side, number // columns * side))
    return data_uri(sheet, quality=60)


MOST = 300  # images shown


def mistakes_page(found: Mistakes) -> str:
    """Return the HTML of a page with the most suspect images, by the class that they are labelled with."""
    dataset, names = found.dataset, found.dataset.classes
    shown = defaultdict(list)
    for one in found.suspects[:MOST]:
        try:
            image = thumbnail(decode(dataset.read(one.image)))
        except (OSError, DataError):  # gone since it was checked
            continue
        path = dataset.paths[one.image]
        lines = [(f"{names[one.suggested]}?", "bad"), (percent(one.of_suggested, 0), ""), (path, "")]
        shown[names[one.label]].append({"image": image, "alt": path, "lines": lines})
    share = f"{percent(len(found.suspects) / found.checked)} of those checked"
    tiles = [
        {
            "who": "",
            "label": "suspect labels",
            "value": f"{len(found.suspects):,}",
            "note": share,
        },
        {"who": "", "label": "checked", "value": f"{found.checked:,}", "note": "labelled images with an embedding"},
        {"who": "", "label": "not checked", "value": f"{found.unknown:,}", "note": "without an embedding"},
    ]
    content = {
        "title": f"Labels to check in {dataset.root.name}",
        "eyebrow": "vl2v data mistakes",
        "lead": f"{found.teacher} and a linear student that never saw the image agree that its label is wrong.",
        "tiles": tiles,
        "sections": [(f"c{number}", name) for number, name in enumerate(shown)],
        "groups": [(f"c{number}", name, images) for number, (name, images) in enumerate(shown.items())],
        "more": max(0, len(found.suspects) - MOST),
    }
    return page("mistakes.html", content)


def write_report(
    folder: Path | str,
    out: Path | str | None = None,
    *,
    store: Path | str | None = None,
    selection: Selection = "training",
    progress: Progress = silent,
) -> Path:
    """Write the report of a finished run, or of a benchmark, and return where it is.

    Args:
        folder: of the run or the benchmark.
        out: the file; by default `report.html` in the folder.
        store: the folder of the embedding store; by default the one that all runs share, or the benchmark's own.
        selection: of a benchmark with several draws, the rule that selects one; see `vl2v benchmark`.
        progress: called with the progress.

    Raises:
        ConfigError: a benchmark without the runs that the rule goes by.
        RunError: neither a run folder nor a benchmark's, or nothing in it is finished.
        DataError: the run's images aren't where they were.

    Examples:
        >>> print(write_report("runs/a", "report.html"))
        report.html
    """
    folder = Path(folder)
    if (folder / "jobs.jsonl").is_file():
        from vl2v.report.benchmark import benchmark_page

        text = benchmark_page(folder, progress, selection)
    elif (folder / "config.toml").is_file():
        from vl2v.report.run import run_page

        text = run_page(Run(folder), Session.of(store, progress=progress))
    else:
        raise RunError(f"{folder}: neither a run folder (no config.toml) nor a benchmark's (no jobs.jsonl)")
    path = Path(out) if out else folder / "report.html"
    write_text(path, text)
    return path
