"""The run folder: everything about a run, nothing outside it."""

from __future__ import annotations

import csv
import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vl2v.config import DataConfig, RunConfig, deciding, validate
from vl2v.errors import RunError, VL2VWarning, writing
from vl2v.io import locked as locked_file
from vl2v.io import write_text
from vl2v.privacy import HIDDEN, without_secrets
from vl2v.runs.settings import REMOVED, from_earlier
from vl2v.table import Table
from vl2v.tree import Tree, read_toml

if TYPE_CHECKING:
    from vl2v.embeddings.fetch import Refusal
    from vl2v.evaluation.metrics import Evaluation
    from vl2v.students.classifier import Classifier

IMAGES = "pictures.sha256"  # a digest of those that a run learns from

CHOSEN = "chosen.json"  # numbers for settings that are "auto"
PLAN = "plan.json"  # what was chosen for a run, and its forecast
VERSION = "version.txt"  # of the method and the loop that train it

ADAPTING = "adapting.json"  # what `vl2v adapt` was asked for
MOVED = {"data.path", "data.unlabelled"}  # settings by which a run finds its images, wherever they lie

# What a run leaves that stopped before it trained anything; `asked.json` lists the images that it selected.
_FIRST_FILES = ("config.toml", IMAGES, "asked.json", "refused.csv", CHOSEN, PLAN, VERSION)
_BEFORE_TRAINING = tuple(f"{file}{part}" for file in _FIRST_FILES for part in ("", ".new"))

# What a benchmark saves in the folder of a job that failed, which may have been before there was a run.
_OF_ATTEMPTS = ("failed.json", "log.txt", "spent.json")


class Run:
    """A finished or interrupted run.

    Files: `config.toml`, `metrics.jsonl`, `checkpoints/` until it has ended, `student/`, `evaluation.json`.

    Examples:
        >>> run = Run("runs/a")
        >>> run.config.data.target, run.finished
        (['paint'], True)
    """

    def __init__(self, folder: Path | str) -> None:
        """Open a run folder.

        Raises:
            RunError: it isn't one.
        """
        self.folder = Path(folder)
        if not (self.folder / "config.toml").is_file():
            raise RunError(f"{self.folder}: not a run folder (no config.toml); `vl2v distill --out` makes one")
        tree = _clean(self.folder / "config.toml")
        gone = [
            f"teacher.{key}" for key, default in REMOVED.items() if tree.get("teacher", {}).get(key, default) != default
        ]
        if gone and not self.finished:
            raise RunError(f"{self.folder}: was begun with {', '.join(gone)}, which is gone; choose another --out")
        self.config: RunConfig = validate(from_earlier(tree))

    @classmethod
    def of(cls, run: Run | Path | str) -> Run:
        """Return a run, or the run of a folder."""
        return run if isinstance(run, Run) else cls(run)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {', '.join(f'{name} {value}' for name, value in self._facts())})"

    def _repr_html_(self) -> str:
        html = Table(["run", str(self.folder)], self._facts(), left=["run", str(self.folder)]).render("html")
        return html + (self.evaluation._repr_html_() if self.evaluation is not None else "")

    def _facts(self) -> list[tuple[str, str]]:
        """Return what a person wants to know of it first."""
        config = self.config
        state = "yes" if self.finished else "no: the same `vl2v distill` command again resumes it"
        return [
            ("method", config.method),
            ("student", config.student.name),
            ("teacher", without_secrets(config.teacher.spec)),
            ("target", ", ".join(config.data.target) or "none"),
            ("finished", state),
        ]

    @property
    def finished(self) -> bool:
        """Whether there is a student to use."""
        return (self.folder / "student" / "student.json").is_file()

    @cached_property
    def classifier(self) -> Classifier:
        """The student, ready to predict.

        Raises:
            RunError: the run isn't finished.
            StudentError: the student's files are corrupt.
        """
        if not self.finished:
            raise RunError(f"{self.folder}: no student yet; give the same `vl2v distill` command again to finish it")
        from vl2v.students.classifier import Classifier

        return Classifier.load(self.folder / "student")

    def save_refused(self, refusals: Sequence[Refusal]) -> None:
        """Write the images that the teacher refused, and its reasons, as `refused.csv`."""
        if refusals:
            table = io.StringIO()
            csv.writer(table).writerows([("path", "reason"), *((r.path, r.reason) for r in refusals)])
            write_text(self.folder / "refused.csv", table.getvalue())

    @property
    def evaluation(self) -> Evaluation | None:
        """The evaluation that ended the run; None before.

        Raises:
            RunError: the file is corrupt.
        """
        from vl2v.evaluation.metrics import Evaluation

        path = self.folder / "evaluation.json"
        try:
            return Evaluation.from_json(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}: corrupt ({error}); delete it, `vl2v distill` then writes it again") from None

    def save_evaluation(self, evaluation: Evaluation) -> None:
        """Write `evaluation.json`."""
        write_text(self.folder / "evaluation.json", json.dumps(evaluation.to_json(), indent=2))


def _clean(file: Path, *, write: bool = False) -> Tree:
    """Return a run's settings without a password that an earlier version wrote; `write`: take it out of the file."""
    tree = read_toml(file)
    teacher = tree.get("teacher")
    spec = teacher.get("spec") if isinstance(teacher, dict) else None
    if isinstance(spec, str) and (clean := without_secrets(spec).replace(HIDDEN, "")) != spec:
        tree["teacher"] = {**tree["teacher"], "spec": clean}
        if write:
            write_text(file, file.read_text(encoding="utf-8").replace(spec, clean))
        else:
            warnings.warn(
                f"{file}: has a password or key in teacher.spec; take it out, or give the run's `vl2v distill` command "
                "without it, which does",
                VL2VWarning,
                stacklevel=3,
            )
    return tree


def check_folder(folder: Path) -> list[Path]:
    """Return what a run folder holds of a training; what was written before one began doesn't count.

    Raises:
        RunError: the folder holds something else.
    """
    ours = {"run.lock", ADAPTING, f"{ADAPTING}.new", *_BEFORE_TRAINING, *_OF_ATTEMPTS}
    others = [entry for entry in folder.iterdir() if entry.name not in ours] if folder.is_dir() else []
    if others and not (folder / "config.toml").is_file():
        raise RunError(f"{folder}: not empty, and not a run folder; choose another --out")
    return others


def changed_settings(before: RunConfig, now: RunConfig) -> list[str]:
    """Return the names of the settings that decide what is trained, and differ."""
    old, new = (deciding(settings.model_dump(by_alias=True)) for settings in (before, now))
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def open_run(folder: Path, config: RunConfig, same_images: Callable[[Run], bool]) -> Run:
    """Return the run of a folder, new or to be resumed.

    A run that failed before it trained anything makes way for one with other settings: a mistake is being mended.

    Args:
        same_images: returns whether a run's images are those at the paths of the settings, which aren't the run's.

    Raises:
        RunError: the folder holds a run of another configuration, holds something else, or can't be written to.
    """
    path, others = folder / "config.toml", check_folder(folder)
    if path.is_file():
        _clean(path, write=True)
        run = Run(folder)
        changed = changed_settings(run.config, config)
        if not changed:
            return run
        if MOVED.issuperset(changed) and same_images(run):
            follow(folder, config.data)
            return Run(folder)
        if others:
            raise RunError(f"{folder}: holds a run with other settings ({', '.join(changed)}); choose another --out")
        for name in _BEFORE_TRAINING:
            (folder / name).unlink(missing_ok=True)
    write_text(path, config.to_toml())
    return Run(folder)


def save_version(run: Run, version: str) -> None:
    """Save which version of its method trains a run, so that no other one resumes it.

    Args:
        version: of its method, as this vl2v trains it.

    Raises:
        RunError: it was begun by another version, or by one that didn't say which.
    """
    file = run.folder / VERSION
    if (run.folder / "checkpoints").exists():
        begun = file.read_text(encoding="utf-8").strip() if file.is_file() else "an earlier one"
        if begun != version:
            raise RunError(
                f"{run.folder}: its training was begun by another version of vl2v (of {run.config.method}: {begun}, "
                f"now {version}), which trains differently: delete {run.folder / 'checkpoints'} to train it again with "
                "this one, choose another --out, or finish it with that version"
            )
    write_text(file, version + "\n")


def follow(folder: Path, data: DataConfig) -> None:
    """Let a run, if there is one, find its images where they are now; the caller has made sure that they are the same.

    Args:
        data: its settings, with the paths of now.

    Raises:
        RunError: the folder can't be written to.
    """
    if (folder / "config.toml").is_file() and (config := Run(folder).config).data != data:
        write_text(folder / "config.toml", config.model_copy(update={"data": data}).to_toml())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder, so that two processes don't train in it at once.

    Raises:
        RunError: another process holds it, or it can't be written to.
    """
    from filelock import Timeout

    with ExitStack() as held:
        with writing(folder, RunError):
            try:
                held.enter_context(locked_file(folder / "run.lock", wait=False))
            except Timeout:
                raise RunError(f"{folder}: another process is training in it") from None
        yield


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder, which may not be there yet; what writes nothing into it leaves none.

    Raises:
        RunError: it holds something else, another process holds it, or it can't be written to.
    """
    there = folder.exists()
    check_folder(folder)
    try:
        with locked(folder):
            yield
    finally:
        if not there and folder.is_dir() and [entry.name for entry in folder.iterdir()] in ([], ["run.lock"]):
            shutil.rmtree(folder, ignore_errors=True)
