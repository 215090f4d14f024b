"""Build IconDG, the sample benchmark: everyday things (classes) in several drawing styles (domains).

    python tools/build_icondg.py PACKAGE [--table tools/icondg.toml] [--sheets FOLDER] [--output ARCHIVE]

PACKAGE is the unpacked npm package @iconify/json (2.2.535). The table says which icons belong to a class. The same
package and table give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
import tomllib
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent))
from icons import PERMISSIVE, STYLE_WORDS, Icon, collections, read_set, render

SIZE = 96
HASH = 16
ALIKE = 0.78
TABLE = Path(__file__).with_name("icondg.toml")
OUTPUT = Path(__file__).parents[1] / "src/vl2v/assets/icondg.zip"

Cell = tuple[str, str]
"""(domain, class)"""


@dataclass(frozen=True)
class RenderedIcon:
    """A rendered icon, [96, 96, 3] on white."""

    icon: Icon
    pixels: NDArray[np.uint8]

    @property
    def key(self) -> str:
        """The icon's address, as Iconify writes it."""
        return f"{self.icon.prefix}:{self.icon.name}"

    @property
    def file(self) -> str:
        """The file's name in the archive."""
        return f"{self.icon.prefix}--{self.icon.name}.png"


def main() -> None:
    """Build the archive, and contact sheets where they are wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--sheets", type=Path, help="a folder for one image a class, to look the labels over")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    table = tomllib.loads(args.table.read_text(encoding="utf-8"))
    cells = candidates(args.package, table)
    cells = distinct(cells, table["seed_order"], table["most"])
    report(cells, table)
    if args.sheets is not None:
        sheets(cells, table, args.sheets)
    short = {name for (_, name), images in cells.items() if len(images) < table["least"]}
    cells = {cell: images for cell, images in cells.items() if cell[1] not in short}
    write(cells, collections(args.package), args.output)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB; dropped: {', '.join(sorted(short)) or 'none'}")


# --- which icons ---------------------------------------------------------------------------------------------------


def candidates(package: Path, table: dict[str, Any]) -> dict[Cell, list[RenderedIcon]]:
    """Return the images that the table's words find, plainest names first, sets taking turns."""
    licences = collections(package)
    rules = {(d, c): Rule(table, d, c) for d in table["domains"] for c in table["classes"]}
    found: dict[Cell, dict[str, list[RenderedIcon]]] = {cell: defaultdict(list) for cell in rules}
    for domain, style in table["domains"].items():
        for prefix in style["sets"]:
            if licences[prefix]["license"]["spdx"] not in PERMISSIVE:
                raise SystemExit(f"{prefix}: licence {licences[prefix]['license']['spdx']}")
            names = re.compile(style.get("names", {}).get(prefix, ".*"))
            for icon in read_set(package, prefix, SIZE):
                if not names.fullmatch(icon.name):
                    continue
                for name in table["classes"]:
                    if rules[domain, name].takes(icon):
                        found[domain, name][prefix].append(RenderedIcon(icon, render(icon.svg, SIZE)))
    return {cell: list(turns(by_set.values())) for cell, by_set in found.items()}


class Rule:
    """Which icons belong to a class in a domain."""

    def __init__(self, table: dict[str, Any], domain: str, name: str) -> None:
        kind, style = table["classes"][name], table["domains"][domain]
        keep = set(_words(kind.get("keep", "")) + _words(kind["match"]))
        never = [word for text in (table["not"], style.get("not", "")) for word in _words(text) if word not in keep]
        self.match = _any(_words(kind["match"]))
        self.never = _any(never + _words(kind.get("not", "")))
        self.also = _full(kind.get("also", {}).get(domain, ()))
        only = kind.get("only", {}).get(domain)
        self.only = None if only is None else _full(only)
        self.dropped = _full(kind.get("never", ()))
        self.longest = int(table["words"])

    def takes(self, icon: Icon) -> bool:
        """Tell whether an icon's name makes it one of the class."""
        key = f"{icon.prefix}:{icon.name}"
        if self.dropped.fullmatch(key):
            return False
        if self.only is not None:
            return bool(self.only.fullmatch(key))
        words = icon.name.replace("-", " ").replace("_", " ")
        return bool(self.also.fullmatch(key)) or bool(
            plainness(icon) <= self.longest and self.match.search(words) and not self.never.search(words)
        )


def plainness(icon: Icon) -> int:
    """Return how many words of a name tell of things."""
    return sum(not word.isdigit() and word not in STYLE_WORDS for word in re.split("[-_]", icon.name))


def turns(groups: Iterable[list[RenderedIcon]]) -> Iterator[RenderedIcon]:
    """Yield from the groups in turn, each group's plainest names first."""
    queues = [sorted(group, key=lambda p: (plainness(p.icon), p.icon.name)) for group in groups]
    for turn in range(max(map(len, queues), default=0)):
        yield from (queue[turn] for queue in queues if turn < len(queue))


def _words(text: str) -> list[str]:
    """Split "a|b(c|d)|e" at its outermost bars."""
    return [word.strip() for word in re.split(r"\|(?![^()]*\))", text) if word.strip()]


def _any(words: list[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(words)})\b" if words else r"(?!)")


def _full(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or r"(?!)")


# --- near-duplicates -----------------------------------------------------------------------------------------------


def outline_hash(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return a difference hash of what is drawn: where it gets brighter and darker, to the right and downwards.

    The drawing is cropped, so that size and margins don't count; the paper, where nothing changes, sets no bits.
    """
    image = Image.fromarray(pixels).convert("L")
    box = Image.eval(image, lambda value: 255 if value < 245 else 0).getbbox()
    small = np.asarray(image.crop(box).resize((HASH + 1, HASH + 1), Image.Resampling.BOX), np.int16)
    across, down = np.diff(small, axis=1)[:-1], np.diff(small, axis=0)[:, :-1]
    return np.stack([across > 12, across < -12, down > 12, down < -12]).reshape(-1)


def distinct(cells: dict[Cell, list[RenderedIcon]], order: list[str], most: int) -> dict[Cell, list[RenderedIcon]]:
    """Return the cells without near-duplicates, anywhere: of two alike the domain first in order keeps its own."""
    hashes = np.zeros((sum(min(len(p), most) for p in cells.values()), 4 * HASH * HASH), np.float32)
    count = 0
    chosen: dict[Cell, list[RenderedIcon]] = {}
    for cell in sorted(cells, key=lambda cell: (order.index(cell[0]), cell[1])):
        chosen[cell] = []
        for image in cells[cell]:
            bits = outline_hash(image.pixels).astype(np.float32)
            common = hashes[:count] @ bits
            either = hashes[:count].sum(axis=1) + bits.sum() - common
            if len(chosen[cell]) == most or bits.sum() == 0 or np.any(common > ALIKE * either):
                continue
            hashes[count] = bits
            count += 1
            chosen[cell].append(image)
    return chosen


# --- what comes out ------------------------------------------------------------------------------------------------


def write(cells: dict[Cell, list[RenderedIcon]], sets: dict[str, dict[str, Any]], output: Path) -> None:
    """Write the archive: PNGs stored as they are, attribution and licences beside them."""
    files: dict[str, bytes] = {}
    rows: list[tuple[str, ...]] = []
    for (domain, name), images in cells.items():
        for image in images:
            path = f"{domain}/{name}/{image.file}"
            of = sets[image.icon.prefix]
            author, licence = of["author"], of["license"]
            files[path] = png(image.pixels)
            rows.append((path, of["name"], image.icon.name, author["name"], licence["spdx"], author.get("url", "")))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(
        [("file", "set", "icon", "author", "licence", "url"), *sorted(rows)]
    )
    files["ATTRIBUTION.csv"] = table.getvalue().encode()
    used = sorted({image.icon.prefix for images in cells.values() for image in images})
    files["LICENSES.md"] = licences(used, sets).encode()
    output.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(files):
            member = zipfile.ZipInfo(path, (2026, 1, 1, 0, 0, 0))
            member.external_attr = 0o100644 << 16
            member.create_system = 3
            archive.writestr(member, files[path])


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return the smallest lossless PNG: grey where it is grey, a palette where 256 colours do."""
    image = Image.fromarray(pixels)
    if np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 0], pixels[..., 2]):
        image = image.convert("L")
    else:
        colours, indices = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
        if len(colours) <= 256:
            image = Image.fromarray(indices.reshape(pixels.shape[:2]).astype(np.uint8), mode="P")
            image.putpalette(colours.astype(np.uint8).tobytes())
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()


def licences(prefixes: list[str], sets: dict[str, dict[str, Any]]) -> str:
    """Return the page that names every set, its designers and its licence."""
    lines = [
        "# IconDG: licences",
        "",
        "The images are icons of open sets, drawn at 96 x 96 pixels on white, otherwise unchanged. Each stays",
        "under its set's licence; ATTRIBUTION.csv tells the set, the icon, the author and the licence of every file.",
        "The SVGs come from the npm package @iconify/json.",
        "",
        "| set | author | licence |",
        "|---|---|---|",
    ]
    for prefix in prefixes:
        of = sets[prefix]
        author, licence = of["author"], of["license"]
        name, title = _link(of["name"], author), _link(licence["title"], licence)
        lines.append(f"| {name} | {author['name']} | {title} |")
    return "\n".join([*lines, ""])


def _link(text: str, of: dict[str, Any]) -> str:
    return f"[{text}]({of['url']})" if "url" in of else text


def report(cells: dict[Cell, list[RenderedIcon]], table: dict[str, Any]) -> None:
    """Print how many images each class has in each domain."""
    domains = list(table["domains"])
    print(f"{'':14}", *(f"{domain:>11}" for domain in domains))
    for name in table["classes"]:
        counts = [len(cells[domain, name]) for domain in domains]
        print(f"{name:14}", *(f"{n:11}" for n in counts), "  too few" * (min(counts) < table["least"]))
    total = Counter({domain: sum(len(p) for (d, _), p in cells.items() if d == domain) for domain in domains})
    print(f"{'':14}", *(f"{total[domain]:11}" for domain in domains), f"  = {total.total()}")


def sheets(cells: dict[Cell, list[RenderedIcon]], table: dict[str, Any], folder: Path) -> None:
    """Draw one sheet a class, its domains under one another with the icons' names."""
    folder.mkdir(parents=True, exist_ok=True)
    across, tile = 15, SIZE + 14
    for name in sorted({name for (_, name), images in cells.items() if images}):
        rows = [cells[d, name][i : i + across] for d in table["domains"] for i in range(0, len(cells[d, name]), across)]
        sheet = Image.new("RGB", (across * tile, len(rows) * tile), "white")
        draw = ImageDraw.Draw(sheet)
        for y, row in enumerate(rows):
            for x, image in enumerate(row):
                sheet.paste(Image.fromarray(image.pixels), (x * tile, y * tile))
                draw.text((x * tile, y * tile + SIZE), image.key[-18:], "red", font_size=9)
        sheet.save(folder / f"{name}.png")


if __name__ == "__main__":
    main()
