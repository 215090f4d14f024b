"""What a page says: the texts of its tables, and what it refers to."""

from __future__ import annotations

from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from vl2v.runs.folder import Run

NASTY = {"ball": '<script>alert("x")', "box": "<b>box & co", "cone": "{{ cone }}"}


@dataclass(frozen=True)
class Written:
    """The folder of a run or a benchmark, its report in it, and the store beside a run."""

    folder: Path

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    @property
    def html(self) -> str:
        return self.page.read_text(encoding="utf-8")

    @property
    def store(self) -> Path:
        return self.folder.with_name("store")

    @property
    def run(self) -> Run:
        return Run(self.folder)


class Page(HTMLParser):
    """The tables of a page by the label of the region that they are in, what it refers to, and its words.

    Attributes:
        tables: label -> rows of cells.
        links: (tag, attribute, value) of everything that a browser could fetch.
        words: the text.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.links: list[tuple[str, str, str]] = []
        self.words = ""
        self._label, self._cell, self._raw = "", False, False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        names = ("src", "href", "srcset", "action", "poster", "data", "xlink:href")
        self.links += [(tag, name, value) for name, value in given.items() if name in names]
        if given.get("role") == "region":
            self._label = given["aria-label"]
        if tag == "tr":
            self.tables.setdefault(self._label, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._label][-1].append("")
            self._cell = True
        self._raw = tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False
        self._raw = False

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.words += data
        if self._cell:
            self.tables[self._label][-1][-1] += data

    def rows(self, label: str) -> list[dict[str, str]]:
        """Return a table's rows as head -> text."""
        head, *rows = self.tables[label]
        return [dict(zip(head, row, strict=True)) for row in rows]
