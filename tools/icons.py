"""Icon sets of the npm package @iconify/json: reading, names, rendering."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PERMISSIVE = {"MIT", "Apache-2.0", "CC0-1.0", "ISC", "CC-BY-4.0", "CC-BY-3.0", "BSD-3-Clause", "Unlicense"}

# Words of icon names that tell the drawing style or the user interface, not the thing.
STYLE_WORDS = frozenset(
    """
    outline outlined outlines filled fill solid bold light thin regular duotone twotone two tone linear broken line
    lines linejoin rounded round sharp square circle circled sm md lg xs xl xxl small medium large mini micro big
    alt variant flat color colored monochrome black white glyph icon icons logo baseline sanded stroke rtl ltr bulk
    loop twirl transition remix poly dark skin default o f s l fa ios md android emoji emojione
    """.split()
)


@dataclass(frozen=True)
class Icon:
    """One icon: the set's prefix, its own name, and its SVG."""

    prefix: str
    name: str
    svg: str


def collections(package: Path) -> dict[str, dict]:
    """Return the sets' licences, authors and sizes by prefix."""
    return json.loads((package / "collections.json").read_text(encoding="utf-8"))


def read_set(package: Path, prefix: str, size: int) -> Iterator[Icon]:
    """Yield the visible icons of a set, as SVG of size x size pixels, monochrome ones in black."""
    tree = json.loads((package / "json" / f"{prefix}.json").read_text(encoding="utf-8"))
    for name, icon in tree["icons"].items():
        if icon.get("hidden"):
            continue
        width, height = (icon.get(key, tree.get(key, 16)) for key in ("width", "height"))
        left, top = (icon.get(key, tree.get(key, 0)) for key in ("left", "top"))
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000" '
            f'viewBox="{left} {top} {width} {height}" width="{size}" height="{size}">{icon["body"]}</svg>'
        )
        yield Icon(prefix, name, svg)


def render(svg: str, size: int) -> NDArray[np.uint8]:
    """Return the image [size, size, 3] on white.

    Raises:
        ValueError: the SVG can't be drawn.
    """
    import resvg_py
    from PIL import Image

    data = bytes(resvg_py.svg_to_bytes(svg_string=svg, background="white"))
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size))
    return np.asarray(image)


@cache
def thing(name: str) -> str:
    """Return the thing that an icon's name tells, without words of style: "bell-ring-outline-24" -> "bell ring"."""
    words = [word for word in re.split(r"[-_]+", name) if word and not word.isdigit()]
    plain = [word for word in words if word not in STYLE_WORDS and not re.fullmatch(r"\d+(px|x|k)?|[a-z]", word)]
    return " ".join(plain)
