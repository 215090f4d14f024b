"""Writing a report: one HTML file of a run folder or of a benchmark folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vl2v.errors import RunError
from vl2v.io import write_text
from vl2v.runs.folder import Run
from vl2v.session import Progress, Session, silent

if TYPE_CHECKING:
    from vl2v.benchmark.jobs import Selection


def write_report(
    folder: Path | str,
    out: Path | str | None = None,
    *,
    store: Path | str | None = None,
    selection: Selection = "training",
    progress: Progress = silent,
) -> Path:
    """Write the report of a finished run, or of a benchmark, and return where it is.

    Args:
        folder: of the run or the benchmark.
        out: the file; by default `report.html` in the folder.
        store: the folder of the embedding store; by default the one that all runs share, or the benchmark's own.
        selection: of a benchmark with several draws, the rule that selects one; see `vl2v benchmark`.
        progress: called with the progress.

    Raises:
        ConfigError: a benchmark without the runs that the rule goes by.
        RunError: neither a run folder nor a benchmark's, or nothing in it is finished.
        DataError: the run's images aren't where they were.

    Examples:
        >>> print(write_report("runs/a", "report.html"))
        report.html
    """
    folder = Path(folder)
    if (folder / "jobs.jsonl").is_file():
        from vl2v.report.benchmark import benchmark_page

        text = benchmark_page(folder, progress, selection)
    elif (folder / "config.toml").is_file():
        from vl2v.report.run import run_page

        text = run_page(Run(folder), Session.of(store, progress=progress))
    else:
        raise RunError(f"{folder}: neither a run folder (no config.toml) nor a benchmark's (no jobs.jsonl)")
    path = Path(out) if out else folder / "report.html"
    write_text(path, text)
    return path
