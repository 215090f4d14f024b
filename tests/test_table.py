"""One table in every form: what stands in a cell is shown, never read."""

from __future__ import annotations

import csv
import html
import json

import pytest

from vl2v.table import Format, Table

NASTY = [
    "[bold]art[/bold]",
    "a|b",
    "*x* _y_ `z`",
    "<b>&amp;",
    "[name](http://a)",
    "two\nlines",
    "\x1b[31mred",
    "50%_#~",
]
TABLE = Table(["domain", "accuracy %"], [[name, "81.5 ± 0.3"] for name in NASTY], bold=[1], notes=NASTY[:2])


def test_the_terminal_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    TABLE.print()
    shown = capsys.readouterr().out
    assert all(name in shown for name in NASTY[:5]) and r"two\nlines" in shown and r"\x1b[31mred" in shown
    assert "\x1b" not in shown and len({len(line) for line in shown.splitlines()[: len(NASTY)]}) == 1


def test_long_cells_are_written_in_full_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Table(["domain", "example"], [["art", "x" * 500]]).print()
    assert "x" * 500 in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b", r"a\|b"),
        ("*x* _y_ `z`", r"\*x\* \_y\_ \`z\`"),
        ("art_painting", "art_painting"),
        ("<b>&amp;", r"\<b>\&amp;"),
        ("[name](http://a)", r"[name]\(http://a)"),
        ("+1.2 [+0.3, +2.0]", "+1.2 [+0.3, +2.0]"),
        ("two\nlines", r"two\\nlines"),
    ],
)
def test_markdown_escapes_what_is_markup(name: str, shown: str) -> None:
    table = Table(["domain", "n"], [[name, "1"], ["b", "2"]], bold=[1])
    assert table.render("md").splitlines() == [
        "| domain | n |",
        "| --- | ---: |",
        f"| {shown} | 1 |",
        "| **b** | **2** |",
    ]


def test_latex_rows_are_closed_whatever_they_hold() -> None:
    lines = Table(["a", "b"], [["x", "1"], ["[y]", "*"], ["%_&", "± 2"]], notes=["a\nb"]).render("latex").splitlines()
    assert lines[0] == r"\begin{tabular}{lr}" and lines[-2:] == [r"\end{tabular}", r"% a\nb"]
    assert lines[5:7] == [r"{}[y] & {}* \\", r"\%\_\& & $\pm$ 2 \\"]


def test_html_holds_no_tag_of_a_name() -> None:
    page = TABLE.render("html")
    assert html.escape("<b>&amp;") in page and "<b>" not in page and page.count('class="sure"') == 1


@pytest.mark.parametrize("form", ["csv", "json"])
def test_programs_get_the_cells_themselves(form: Format) -> None:
    text = TABLE.render(form)
    rows = list(csv.reader(text.splitlines(keepends=True)))[1:] if form == "csv" else json.loads(text)["rows"]
    assert [row[0] for row in rows] == NASTY
