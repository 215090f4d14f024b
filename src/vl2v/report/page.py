"""A page: a template filled in, complete in one file."""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vl2v.report import charts

TOLD = 1.0  # width of an interval of differences, from -1 to 1, from which on it tells nothing


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
    """Return the hash by which a browser knows the page's own script, and runs no other."""
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
    told = math.isfinite(low) and math.isfinite(high) and high - low < TOLD
    return f"{100 * mean:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}" if told else "can't be told from so few runs"


def duration(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
