"""The command line: parses, calls, prints; no logic of its own. Heavy imports happen inside the commands."""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Any


def at_home(word: str) -> str:
    """Return an argument with the home folder instead of "~" in `--option=~/path`, which no shell expands."""
    option, equals, value = word.partition("=")
    return f"{option}={os.path.expanduser(value)}" if equals and option.startswith("--") else word


def main() -> None:
    """Run the command line; exit code 2 for the person's mistake, 1 for ours."""
    if "OMP_WAIT_POLICY" not in os.environ:  # before PyTorch: else its threads wait for one another at full load
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from vl2v.cli.app import app
    from vl2v.cli.show import note
    from vl2v.errors import FULL, VL2VError, VL2VWarning, remedy
    from vl2v.system import Stopped, Terminated, signals_raised
    from vl2v.table import visible

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a code page may lack a name's letters
            stream.reconfigure(errors="backslashreplace")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of libraries that download weights
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **about: Any) -> None:
        if issubclass(category, VL2VWarning):
            note(str(message))
        else:
            others(message, category, *where, **about)

    warnings.showwarning = show
    try:
        with signals_raised():
            app([at_home(word) for word in sys.argv[1:]])
    except VL2VError as error:
        sys.stderr.write(f"error: {visible(str(error))}\n")
        sys.exit(2)
    except OSError as error:  # of the person's disk: full, read-only, gone; without a file it is a fault of ours
        if error.filename is None and error.errno not in FULL:
            raise
        what = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror)
        sys.stderr.write(f"error: {visible(what)}; {remedy(error)}\n")
        sys.exit(2)
    except SystemExit as error:
        cause = getattr(error.__context__, "__cause__", None)  # typer ends with 130, and without a word
        ctrl_c = isinstance(cause, KeyboardInterrupt) and not isinstance(cause, Stopped)
        if ctrl_c or (isinstance(error, Terminated) and not error.reported):
            sys.stderr.write("interrupted; the same command resumes where it stopped\n")
        raise


__all__ = ["main"]
