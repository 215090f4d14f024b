"""The images of a server's log, linked into a folder beside a run: the server goes on deleting old ones."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from vl2v.errors import DataError, RunError
from vl2v.io import NEW, read_json
from vl2v.runs.folder import ADAPTING, Run, check_folder

ADAPTED = "adapted from"  # begins a note of the evaluation of an adapted run
OURS = ".linked"  # an empty file in such a folder


def linked(log: Path, out: Path, *, dry_run: bool = False) -> Path:
    """Return a folder beside a run with the images that a server's log has now, or had when the run was begun.

    Args:
        dry_run: link nothing: where there is no such folder of the run yet, return the log.

    Raises:
        DataError: there are none.
        RunError: the run learns from another log, or is finished, and the log has others by now or its images are
            gone; somebody else's folder is there.
    """
    folder, begun, trained = out.with_name(f"{out.name}-images"), read_json(out / ADAPTING), check_folder(out)
    if begun is None and trained:
        raise RunError(f"{out}: holds a student, but not which images it was adapted to; choose another --out")
    if begun is not None and (other := begun.get("--from", str(log.resolve()))) != str(log.resolve()):
        raise RunError(f"{out}: adapts to the images of {other or 'a folder'}; choose another --out")
    if folder.exists() and begun is not None:
        since = {image.name for image in _images_in(log)} - {image.name for image in folder.iterdir()}
        if since and (out / "config.toml").is_file() and ended(Run(out)):
            raise RunError(
                f"{out}: adapted to earlier images of {log}, which has {len(since)} others by now; choose another --out"
            )
        return folder
    if folder.exists() and not (folder / OURS).is_file():
        raise RunError(f"{folder}: is there already, and isn't of {out}; choose another --out")
    if trained:
        raise RunError(f"{out}: the images that it adapts to, in {folder}, are gone; choose another --out")
    if not log.is_dir():
        raise DataError(f"{log}: no such folder; `vl2v serve --log-images FOLDER` saves images in one")
    return log if dry_run else _linked_anew(log, folder)


def ended(run: Run) -> bool:
    """Whether an adapted run has its evaluation, with its parent's rows."""
    return run.evaluation is not None and any(note.startswith(ADAPTED) for note in run.evaluation.notes)


def _linked_anew(log: Path, folder: Path) -> Path:
    unfinished = folder.with_name(f"{folder.name}{NEW}")
    for former in (unfinished, folder):
        shutil.rmtree(former, ignore_errors=True)
    unfinished.mkdir(parents=True, mode=0o700)
    for image in _images_in(log):
        with suppress(FileNotFoundError):  # the server has just deleted it
            _link(image, unfinished / image.name)
    if not any(unfinished.iterdir()):
        unfinished.rmdir()
        raise DataError(f"{log}: no images in it yet")
    (unfinished / OURS).touch()
    unfinished.replace(folder)
    return folder


def _images_in(log: Path) -> list[Path]:
    """Return the images that a server has saved in a folder; none where there is no folder."""
    if not log.is_dir():
        return []
    return sorted(image for image in log.iterdir() if image.suffix != NEW and image.is_file())


def _link(image: Path, target: Path) -> None:
    try:
        target.hardlink_to(image)
    except FileNotFoundError:
        raise
    except OSError:  # on another disk
        shutil.copyfile(image, target)
