"""One table for the terminal, Markdown, LaTeX, HTML, CSV and JSON."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Format = Literal["md", "latex", "html", "csv", "json"]
FORMATS: tuple[Format, ...] = ("md", "latex", "html", "csv", "json")


@dataclass(frozen=True)
class Table:
    """Rows of plain text under heads. Cells are never read as markup, whichever form they are rendered to.

    Attributes:
        heads: one a column.
        rows: of as many cells.
        bold: numbers of the rows that stand out.
        notes: sentences under the table.
        title: over it.
        left: heads of the columns that hold words, aligned left; by default the first. The others hold figures.
        sections: numbers of the rows that a line follows, in the terminal.

    Examples:
        >>> print(Table(["domain", "accuracy %"], [["a|b", "81.5"]]).render("md"))
        | domain | accuracy % |
        | --- | ---: |
        | a\\|b | 81.5 |
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: Collection[int] = ()
    notes: Sequence[str] = ()
    title: str = ""
    left: Collection[str] | None = None
    sections: Collection[int] = ()

    def render(self, form: Format) -> str:
        """Return the table as Markdown, LaTeX (booktabs), HTML, CSV (heads and rows alone) or JSON."""
        forms = {"md": self._markdown, "latex": self._latex, "html": self._html, "csv": self._csv, "json": self._json}
        return forms[form]()

    def print(self) -> None:
        """Print the table and its notes; a terminal folds long words, never figures, and a file has all in full."""
        from rich.console import Console
        from rich.table import Table as Rich
        from rich.text import Text

        drawn = Rich(title=Text(visible(self.title)) if self.title else None)
        for head, words in zip(self.heads, self._words, strict=True):
            form: dict[str, Any] = {"justify": "left"} if words else {"justify": "right", "no_wrap": True}
            drawn.add_column(Text(visible(head)), overflow="fold", **form)
        for number, row in enumerate(self.rows):
            cells = (Text(visible(cell)) for cell in row)
            drawn.add_row(*cells, style="bold" if number in self.bold else None, end_section=number in self.sections)
        console = Console()
        if not console.is_terminal:
            whole = console.measure(drawn, options=console.options.update(width=10_000)).maximum
            console = Console(width=max(console.width, whole))
        console.print(drawn)
        for note in self.notes:
            console.print(Text(visible(note)))

    @property
    def _words(self) -> list[bool]:
        """Whether each column is aligned left."""
        left = self.heads[:1] if self.left is None else self.left
        return [head in left for head in self.heads]

    def _markdown(self) -> str:
        heads, *rows = [[markdown(cell) for cell in row] for row in (self.heads, *self.rows)]
        rows = [[f"**{cell}**" if cell and i in self.bold else cell for cell in row] for i, row in enumerate(rows)]
        rule = ["---" if words else "---:" for words in self._words]
        lines = [f"| {' | '.join(row)} |" for row in (heads, rule, *rows)]
        title = [f"**{markdown(self.title)}**", ""] if self.title else []
        notes = ["", *map(markdown, self.notes)] if self.notes else []
        return "\n".join([*title, *lines, *notes])

    def _latex(self) -> str:
        def line(cells: Sequence[str], *, bold: bool = False) -> str:
            escaped = [_latex(cell) for cell in cells]
            return " & ".join(rf"\textbf{{{cell}}}" if bold and cell else cell for cell in escaped) + r" \\"

        body = [line(row, bold=i in self.bold) for i, row in enumerate(self.rows)]
        columns = "".join("l" if words else "r" for words in self._words)
        head = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(self.heads), r"\midrule"]
        title = [f"% {visible(self.title)}"] if self.title else []
        notes = [f"% {visible(note)}" for note in self.notes]
        return "\n".join([*title, *head, *body, r"\bottomrule", r"\end{tabular}", *notes])

    def _html(self) -> str:
        def cells(row: Sequence[str], tag: str) -> str:
            return "".join(f"<{tag}>{html.escape(visible(cell))}</{tag}>" for cell in row)

        rows = [
            f'<tr class="sure">{cells(row, "td")}</tr>' if i in self.bold else f"<tr>{cells(row, 'td')}</tr>"
            for i, row in enumerate(self.rows)
        ]
        title = f"<caption>{html.escape(visible(self.title))}</caption>" if self.title else ""
        notes = "".join(f"<p>{html.escape(visible(note))}</p>" for note in self.notes)
        head = f"<thead><tr>{cells(self.heads, 'th')}</tr></thead>"
        return f"<table>{title}{head}<tbody>{''.join(rows)}</tbody></table>{notes}"

    def _csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.heads, *self.rows])
        return out.getvalue().rstrip("\n")

    def _json(self) -> str:
        rows = [list(row) for row in self.rows]
        tree = {"title": self.title, "heads": list(self.heads), "rows": rows, "bold": sorted(self.bold)}
        return json.dumps({**tree, "notes": list(self.notes)}, indent=2)


def visible(text: str) -> str:
    r"""Return text on one line, with what can't be printed (a tab, ESC) as an escape: \t, \x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# What is markup within a line; an underscore inside a word isn't, nor are brackets that no link follows.
_MARKUP = re.compile(r"[\\`*<|~]|(?<=\])[(\[]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
_LATEX = {letter: f"\\{letter}" for letter in "_%&#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


def markdown(text: str) -> str:
    """Return text that Markdown shows as it is, in a line or in a cell of a table."""
    return _MARKUP.sub(r"\\\g<0>", visible(text))


def _latex(text: str) -> str:
    guard = "{}" if text.startswith(("[", "*")) else ""  # else it belongs to the end of the row before
    return guard + "".join(_LATEX.get(letter, letter) for letter in visible(text))
