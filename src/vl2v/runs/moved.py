"""Whether pictures at another path are the very same that a run began with."""

from __future__ import annotations

from pathlib import Path

from vl2v.config import RunConfig
from vl2v.errors import RunError
from vl2v.runs.folder import PICTURES, Run, write_text
from vl2v.runs.predictions import Predictions, content
from vl2v.runs.report import Report
from vl2v.runs.sources import Sources, open_data, open_sources, usable


def keep_pictures(run: Run, sources: Sources) -> None:
    """Keep what a run learns from, so that it can be gone on with when the pictures have moved."""
    if not (run.folder / PICTURES).is_file():
        write_text(run.folder / PICTURES, content(sources.dataset, sources.audit))


def same_pictures(run: Run, config: RunConfig, store: Path, report: Report) -> bool:
    """Return whether pictures are, byte for byte, a run's: what it learns from, once it is evaluated all of them.

    Args:
        run: begun with pictures at another path.
        config: the run's, with the path where the pictures are to be now.
        store: keeps what is known of files.
        report: told how far it is.
    """
    if (answers := answers_of(run)) is not None:
        dataset = open_data(config.data)
        return answers.content == content(*usable(dataset, store, report))
    kept = run.folder / PICTURES
    if not kept.is_file():
        return False
    sources = open_sources(config, store, report)
    return kept.read_text(encoding="utf-8") == content(sources.dataset, sources.audit)


def answers_of(run: Run) -> Predictions | None:
    """Return what a run answered when it was evaluated; None if it wasn't, or if that can't be read."""
    try:
        return Predictions.load(run.folder) if run.evaluation is not None else None
    except RunError:
        return None
