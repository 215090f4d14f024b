"""A name can be anything, and is shown as it is: markup, emoji codes, control sequences, letters a code page lacks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vl2v.cli import progress_bars, say
from vl2v.table import Table, visible

MARKUP = (
    "[/n]",
    "on/off [/n]",
    "[bold]x",
    "[red]",
    "a [link=https://example.com]b[/link]",
    ":dog:",
    "[",
    "\\[b]",
    "{x}",
)
RULING = {
    "a\nb": r"a\nb",
    "a\rb": r"a\rb",
    "\x1b[2Jgone": r"\x1b[2Jgone",
    "\x9b2J": r"\x9b2J",
    "tab\tbed": r"tab\tbed",
    "\udcff.png": r"\udcff.png",
    "abc\u202egnp.exe": r"abc\u202egnp.exe",
    "line\u2028end": r"line\u2028end",
    "\x85": r"\x85",
}


@pytest.mark.parametrize("name", ["plain", "h\u00f6he", "\u65e5\u672c", "a b", *MARKUP])
def test_what_can_be_seen_is_shown_as_it_is(name: str) -> None:
    assert visible(name) == name


@pytest.mark.parametrize(("name", "text"), RULING.items())
def test_what_can_not_be_seen_is_written_out(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(name)
    say(name, err=True)
    assert capsys.readouterr() == (text + "\n", text + "\n")


@pytest.mark.parametrize("name", [*MARKUP, *RULING])
def test_tables_show_names_in_every_part(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Table([f"head {name}"], [[f"cell {name}"]], notes=[f"note {name}"], title=f"title {name} {'-' * 60}").print()
    printed = capsys.readouterr().out
    assert all(f"{part} {visible(name)}" in printed for part in ("head", "cell", "note"))
    assert f"title {visible(name)}" in " ".join(printed.split())


@pytest.mark.parametrize("name", [*MARKUP, *RULING])
def test_progress_shows_names(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bars() as progress:
        progress(f"querying {name}", 1, 2, f"about {name}")
    printed = capsys.readouterr().err
    assert f"querying {visible(name)}" in printed and f"about {visible(name)}" in printed


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "utf-8"])
def test_no_code_page_ends_a_command(encoding: str, tmp_path: Path) -> None:
    classes = ("on/off [/n]", "\u65e5\u672c", "caf\u00e9 \u2603")
    rows = ["path,class,domain"]
    for number in range(6):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append(f'{number}.png,"{classes[number % 3]}",d\u00f6main {number % 2} \u2192')
    rows.append("lost \u65e5.png,b,c")
    (tmp_path / "m.csv").write_text("\n".join(rows), encoding="utf-8")

    def typed(*words: str) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "120"}
        command = [sys.executable, "-m", "vl2v", "data", "inspect", *words]
        return subprocess.run(command, env=environment, capture_output=True, check=False)

    done = typed(str(tmp_path / "m.csv"))
    assert done.returncode == 0, done.stderr
    expected = "\u65e5\u672c" if encoding == "utf-8" else r"\u65e5\u672c"
    assert expected in done.stdout.decode(encoding) and "on/off [/n]" in done.stdout.decode(encoding)
    failed = typed(str(tmp_path / "m.csv"), "--target", "\u65e5\x1b[2J\n")
    assert failed.returncode == 2 and b"Traceback" not in failed.stderr
    assert rb"\x1b[2J" in failed.stderr and failed.stderr.splitlines()[-1].startswith(b"error: ")


@pytest.mark.skipif(os.name != "posix", reason="a terminal of POSIX")
def test_lines_stand_whole_above_the_bars_that_are_being_drawn() -> None:
    program = """
import sys
from tqdm import tqdm
from vl2v.cli import progress_bars, say
before = sys.stderr
with progress_bars() as progress:
    progress("measuring", 0, 2, "")
    say("plan: 460 steps")
    progress("chosen: 0.5", 1, 1, "")
    progress("measuring", 2, 2, "")
    for _ in tqdm(range(3), mininterval=0):
        pass
assert sys.stderr is before
"""
    import termios

    terminal, end = os.openpty()
    termios.tcsetwinsize(end, (24, 80))
    environment = {name: value for name, value in os.environ.items() if name not in ("TQDM_DISABLE", "COLUMNS")}
    environment["TERM"] = "xterm"
    with subprocess.Popen([sys.executable, "-c", program], stdout=end, stderr=end, env=environment) as process:
        os.close(end)
        written = b""
        try:
            while part := os.read(terminal, 65536):
                written += part
        except OSError:  # how Linux ends a terminal that nobody writes to any more
            pass
        assert process.wait() == 0
    os.close(terminal)
    lines = [re.split(r"\x1b\[[0-9;?]*[A-Za-z]|\r", line)[-1] for line in written.decode().split("\r\n")]
    assert "plan: 460 steps" in lines and "chosen: 0.5" in lines
    assert "3 of 3" in written.decode() and "3/3" not in written.decode(), "a download is a remark on our bar"
    assert b"chosen: 0.5 \xe2" not in written, "what isn't a task has no bar"
