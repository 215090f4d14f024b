"""A command as it is typed, without the seconds that a process of its own takes to import everything."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from vl2v.cli import main


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


def typed(capture: pytest.CaptureFixture[str], *words: str | Path) -> Said:
    """Return what `vl2v WORDS` says to somebody whose window has 200 columns."""
    capture.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", ["vl2v", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    return Said(code if isinstance(code, int) else int(code is not None), *capture.readouterr())
