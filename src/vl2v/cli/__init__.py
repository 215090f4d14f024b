"""The command line: parses, calls, prints; no logic of its own. Heavy imports happen inside the commands.

Here is where it starts, and what all commands print with: lines, progress bars, the log of a run.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from typer.core import TyperGroup

from vl2v.errors import FULL, VL2VError, VL2VWarning, remedy
from vl2v.privacy import without_secrets
from vl2v.table import visible

if TYPE_CHECKING:
    from vl2v.session import Progress

LEVEL = 0  # -1: --quiet, 1: --verbose
RESUMED = ("embed", "distill", "adapt", "benchmark", "recommend", "demo", "download", "check")
EVERY = 30  # seconds between two lines on a task


def at_home(word: str) -> str:
    """Return an argument with the home folder instead of "~" in `--option=~/path`, which no shell expands."""
    option, equals, value = word.partition("=")
    return f"{option}={os.path.expanduser(value)}" if equals and option.startswith("--") else word


def main() -> None:
    """Run the command line; exit code 2 for the person's mistake, 1 for ours."""
    if "OMP_WAIT_POLICY" not in os.environ:  # before PyTorch: else its threads wait for one another at full load
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from vl2v.cli.app import app
    from vl2v.system import Stopped, Terminated, signals_raised

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
            resumes = "; the same command resumes where it stopped" * any(word in RESUMED for word in sys.argv[1:])
            sys.stderr.write(f"interrupted{resumes}\n")
        raise


class Commands(TyperGroup):
    """Commands whose list has the first sentence of each in full; Typer cuts it off after half a line."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.help:
            command.short_help = " ".join(command.help.split("\n\n")[0].split())
        return command


def say(*lines: str, err: bool = False) -> None:
    """Print lines on standard output or standard error, with control characters in names written out."""
    for line in lines:  # not typer.echo, which would write into bars that are being drawn
        print(visible(line), file=sys.stderr if err else sys.stdout, flush=True)


def note(line: str) -> None:
    """Print a line on standard error unless --quiet was given."""
    if LEVEL >= 0:
        say(f"note: {line}", err=True)


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Yield a progress callback that shows a bar per task, with the time left, on standard error.

    Where that isn't a terminal, remarks are printed as lines, and with --verbose the start and end of every task, and
    how far it is every half minute.
    Of several processes of a run only the first one shows any.
    """
    from vl2v.session import silent
    from vl2v.system import rank

    if rank() or LEVEL < 0:
        yield silent
        return
    logging.getLogger("stamina").setLevel(logging.ERROR)  # the bill has the retries; lines would tear the bars
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[remark]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(task: str, done: int, total: int, remark: str) -> None:
            if task not in tasks and done == total == 1:  # a remark in the form of a task
                say(" ".join(filter(None, (task, remark))), err=True)
                return
            if task not in tasks:
                tasks[task] = bars.add_task(visible(task), total=total or None, remark="")
            bars.update(tasks[task], completed=done, total=total or None, remark=visible(remark))

        def remark(text: str) -> None:
            for task in [*tasks.values()][-1:]:
                bars.update(task, remark=text)

        if hasattr(sys.stderr, "rich_proxied_file"):  # put there by rich, and taken away again
            sys.stderr = _Downloads(sys.stderr, remark)
        yield progress


_LIBRARY_BAR = re.compile(r"(\S+)/(\S+) \[")  # of tqdm


class _Downloads(io.TextIOBase):
    """Standard error while bars are drawn: of a bar of another library, how far it is stands behind our last one.

    Args:
        below: what takes whole lines.
        remark: called with how far it is.
    """

    def __init__(self, below: TextIO, remark: Callable[[str], None]) -> None:
        self.below = below
        self.rich_proxied_file = getattr(below, "rich_proxied_file", below)  # where rich itself writes
        self.remark = remark
        self.in_bar = False

    def write(self, text: str) -> int:
        """Write a text, or show how far a bar is."""
        self.in_bar = text.startswith("\r") or (self.in_bar and not text.strip())
        if not self.in_bar:
            return self.below.write(text)
        if found := _LIBRARY_BAR.search(text):
            self.remark(f"{found[1]} of {found[2]}")
        return len(text)

    def flush(self) -> None:
        """Flush what takes whole lines."""
        self.below.flush()

    def fileno(self) -> int:
        """Return the terminal's number."""
        return self.below.fileno()

    def isatty(self) -> bool:
        """Return True: bars are drawn in a terminal."""
        return True


def _lines() -> Progress:
    """Return a progress callback that prints lines."""
    begun: set[str] = set()
    last = time.monotonic()

    def progress(task: str, done: int, total: int, remark: str) -> None:
        nonlocal last
        first, ended = task not in begun, bool(total) and done >= total
        begun.add(task)
        if first and ended and total == 1:  # a remark in the form of a task
            say(" ".join(filter(None, (task, remark))), err=True)
        elif LEVEL > 0 and (first or ended or time.monotonic() - last > EVERY):
            last = time.monotonic()
            say(" ".join(filter(None, (task, f"{done}/{total}", remark))), err=True)

    return progress


@contextmanager
def run_log(folder: Path, progress: Progress) -> Iterator[Progress]:
    """Yield the callback, which now also appends to `log.txt` of a run folder: each task's start and end, and errors.

    Nothing is written before the folder is this run's.
    """
    from vl2v.system import rank

    if rank():
        yield progress
        return
    begun: set[str] = set()
    waiting: list[str] = []

    def write(line: str) -> None:
        waiting.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {visible(line)}\n")
        if begun and (folder / "config.toml").is_file():
            with suppress(OSError), (folder / "log.txt").open("a", encoding="utf-8") as file:
                file.writelines(waiting)
            waiting.clear()

    def logged(task: str, done: int, total: int, remark: str) -> None:
        progress(task, done, total, remark)
        if task not in begun or (total and done >= total):
            begun.add(task)
            write(" ".join(filter(None, (task, f"{done}/{total}", remark))))

    write("vl2v " + without_secrets(" ".join(sys.argv[1:])))
    try:
        yield logged
    except BaseException as error:
        write(f"stopped: {without_secrets(' '.join(f'{type(error).__name__}: {error}'.split()))}")
        raise
    write("finished")
