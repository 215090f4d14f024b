"""Whether images are the very same that a run began with."""

from __future__ import annotations

from vl2v.config import RunConfig
from vl2v.errors import RunError
from vl2v.io import write_text
from vl2v.runs.datasets import Images, Sources, open_sources
from vl2v.runs.folder import IMAGES, Run
from vl2v.runs.predictions import Predictions, content
from vl2v.session import Session


def save_images(run: Run, sources: Sources) -> None:
    """Save which images a run learns from, so that it is resumed on these alone, wherever they lie then.

    Raises:
        RunError: it has begun to learn from others.
    """
    if have_changed(run, sources):
        if (run.folder / "checkpoints").exists():
            raise RunError(
                f"{run.folder}: images in {sources.dataset.root} have changed since this run began to learn from "
                "them, or some can't be read now; put them back, or delete the folder to begin again"
            )
        for made in ("asked.json", "chosen.json"):  # made from the former images
            (run.folder / made).unlink(missing_ok=True)
    write_text(run.folder / IMAGES, content(sources.dataset, sources.audit))


def have_changed(run: Run, sources: Sources) -> bool:
    """Whether a run began with other images than these."""
    saved = run.folder / IMAGES
    # the digest of earlier versions had the names of the target's classes in it
    now = {content(dataset, sources.audit) for dataset in (sources.dataset, sources.with_others)}
    return saved.is_file() and saved.read_text(encoding="utf-8") not in now


def same_images(run: Run, config: RunConfig, session: Session) -> bool:
    """Return whether images are, byte for byte, a run's: what it learns from, once it is evaluated all of them.

    Args:
        run: begun with images at another path.
        config: the run's, with the path where the images are to be now.
        session: its store caches audits.
    """
    if (predictions := predictions_of(run)) is not None:
        return predictions.content == content(*Images(config.data, session).all)
    return (run.folder / IMAGES).is_file() and not have_changed(run, open_sources(config, session))


def predictions_of(run: Run) -> Predictions | None:
    """Return a run's predictions of when it was evaluated; None if it wasn't, or if that can't be read."""
    try:
        return Predictions.load(run.folder) if run.evaluation is not None else None
    except RunError:
        return None
