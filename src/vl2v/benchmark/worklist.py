"""The jobs of a benchmark, each named by what decides its result; the work list of a folder, and how each stands."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from vl2v.config import deciding
from vl2v.errors import RunError
from vl2v.io import locked, read_json, write_text
from vl2v.methods import METHODS, version_of
from vl2v.runs.predictions import FILE, Predictions
from vl2v.runs.settings import resolve
from vl2v.tree import Tree

Selection = Literal["training", "leave-one-out", "oracle"]
ZERO_SHOT, ADAPTED = "zero-shot", "adapted-teacher"
TEACHERS = (ZERO_SHOT, ADAPTED)  # the methods that are the teacher itself


class Cell(NamedTuple):
    """What is repeated with other hyperparameters; see `Job`."""

    dataset: str
    target: str
    method: str
    student: str
    seed: int


@dataclass(frozen=True)
class Job:
    """One student to be trained, or one teacher to be measured.

    Attributes:
        dataset: the name that it was given.
        method: as in `vl2v methods`.
        seed: decides every draw, the split too.
        draw: which draw of hyperparameters; 0 is the defaults.
        held: another domain left out, to select by (leave-one-domain-out validation); "" for the job that counts.
        version: of the code that trains it (`version_of`).
    """

    dataset: str
    target: str
    method: str
    student: str
    seed: int
    draw: int
    held: str
    settings: Tree = field(hash=False)
    version: str

    @property
    def cell(self) -> Cell:
        """What it is one draw of."""
        return Cell(self.dataset, self.target, self.method, self.student, self.seed)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Job:
        """Return the job that `row` made a row of; its name isn't worked out anew: 500 are listed in a moment."""
        job = cls(**{key: value for key, value in row.items() if key != "name"})
        job.__dict__["name"] = row["name"]
        return job

    @property
    def row(self) -> dict[str, Any]:
        """What is saved of it, or sent."""
        return {"name": self.name, **asdict(self)}

    @property
    def of_today(self) -> bool:
        """Whether today's code would train it so."""
        return self.method in METHODS and self.version == version_of(self.method)

    @cached_property
    def name(self) -> str:
        """Its folder: words for people, and a digest of everything that decides the result."""
        decides = deciding(resolve(self.settings).model_dump(mode="json", by_alias=True))
        decides |= {"data.path": self.dataset, "data.exclude": None, "version": self.version}  # wherever these lie
        words = [self.dataset, self.target, self.held and f"without-{self.held}", self.student, self.method]
        return "-".join([*(slug(word) for word in words if word), f"seed{self.seed}", digest(decides)])


def digest(tree: object) -> str:
    """Return a short name of everything in a tree of settings."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:10]


def slug(text: str) -> str:
    """Return text as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in text)


@dataclass(frozen=True)
class Corruptions:
    """What finished students are also measured on: the unseen domain's images, corrupted.

    Attributes:
        kinds: of `vl2v.data.corruptions`.
        severity: 1 to 5.
    """

    kinds: tuple[str, ...]
    severity: int

    def __str__(self) -> str:
        return f"{', '.join(self.kinds)}, severity {self.severity}"

    def measured(self, folder: Path) -> dict[str, float]:
        """Return the accuracy (0 to 1) of a job's student under each corruption that it was measured on."""
        done = read_json(self._file(folder), {})
        return {kind: done[kind] for kind in self.kinds if kind in done}

    def unmeasured(self, folder: Path) -> list[str]:
        """Return the corruptions that a job's student has still to be measured on."""
        done = self.measured(folder)
        return [kind for kind in self.kinds if kind not in done]

    def save(self, folder: Path, accuracies: dict[str, float]) -> None:
        """Save accuracies in a job's folder, beside those under other corruptions."""
        from vl2v.data.corruptions import CORRUPTIONS

        done = Corruptions(CORRUPTIONS, self.severity).measured(folder)
        write_text(self._file(folder), json.dumps({**done, **accuracies}))

    def _file(self, folder: Path) -> Path:
        return folder / f"corrupted-{self.severity}.json"


class WorkList:
    """The jobs of a benchmark folder, as they were given, and how each stands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "jobs.jsonl"
        self._jobs = folder / "jobs"

    def lock(self) -> AbstractContextManager[None]:
        """Return what is to be held while a list of the folder is changed: two commands may work on one."""
        return locked(self.folder / "lists.lock")

    def add(self, jobs: Iterable[Job]) -> list[Job]:
        """Add jobs that aren't in the list yet; return all that were given."""
        given = list(jobs)
        with self.lock():
            listed = {job.name for job in self.jobs()} if self.file.is_file() else set()
            new = {job.name: job for job in given if job.name not in listed}
            lines = "".join(json.dumps(job.row, default=str) + "\n" for job in new.values())
            with self.file.open("a+b") as file:
                if _torn(file):
                    lines = "\n" + lines
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        return given

    def jobs(self) -> list[Job]:
        """Return all jobs, each once, in order.

        Raises:
            RunError: not a benchmark folder.
        """
        if not self.file.is_file():
            raise RunError(f"{self.folder}: not a benchmark folder (no jobs.jsonl); `vl2v benchmark --out` makes one")
        made: dict[str, Job] = {}
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # cut off by a crash: it is added again
            made.setdefault(row["name"], Job.of_row(row))
        return list(made.values())

    def show(self, variant: str, jobs: Iterable[Job]) -> None:
        """Let tables show jobs, and those that were given before with the same settings (`Grid.variant`)."""
        with self.lock():
            before = self._shown()
            names_before = before["jobs"].get(variant, [])
            names = list(dict.fromkeys([*names_before, *(job.name for job in jobs)]))
            now = {"variant": variant, "jobs": {**before["jobs"], variant: names}}
            if now != before:
                write_text(self.folder / "shown.json", json.dumps(now))

    def shown(self, variant: str | None = None) -> list[Job]:
        """Return the jobs that tables show: those of the settings that were given last, and of today's code."""
        saved = self._shown()
        names = set(saved["jobs"].get(saved["variant"] if variant is None else variant, []))
        wanted = [job for job in self.jobs() if job.name in names or not saved["jobs"]]
        return [job for job in wanted if job.of_today]

    def _shown(self) -> dict[str, Any]:
        saved: dict[str, Any] = read_json(self.folder / "shown.json", {"variant": "", "jobs": {}})
        return saved

    def identity(self) -> dict[str, Any]:
        """Return what decides, besides its name, whether a dataset's results may stand beside another folder's."""
        datasets, variant = read_json(self.folder / "datasets.json", {}), self._shown()["variant"]
        return {name: [listing, variant] for name, listing in datasets.items()}

    def folder_of(self, job: Job) -> Path:
        """Return the job's run folder."""
        return self._jobs / job.name

    @cached_property
    def corruptions(self) -> Corruptions | None:
        """What students are measured on besides, as it was wanted last."""
        saved = read_json(self.folder / "corruptions.json")
        return None if saved is None else Corruptions(tuple(saved["kinds"]), saved["severity"])

    def request_corruptions(self, corruptions: Corruptions | None) -> None:
        """Have students measured on these corruptions, or on none."""
        file = self.folder / "corruptions.json"
        with self.lock():
            if corruptions is None:
                file.unlink(missing_ok=True)
            else:
                write_text(file, json.dumps(asdict(corruptions)))
        self.__dict__["corruptions"] = corruptions

    def trained(self, job: Job) -> bool:
        """Whether there is a result on uncorrupted images that can be read."""
        return self._ended(job) and has_predictions(self.folder_of(job))

    def spoilt(self, job: Job) -> bool:
        """Whether there was a result that can't be read any more; the job is to be done again."""
        return self._ended(job) and not self.trained(job)

    def _ended(self, job: Job) -> bool:
        return (self.folder_of(job) / "seconds.json").is_file()

    def unmeasured(self, job: Job) -> list[str]:
        """Return the corruptions that a job's student has still to be measured on."""
        if self.corruptions is None or job.held or job.method in TEACHERS:
            return []
        return self.corruptions.unmeasured(self.folder_of(job))

    def corrupted(self, job: Job) -> Path:
        """Return the folder of the unseen domain's corrupted images."""
        return self.folder / "corrupted" / f"{slug(job.dataset)}-{slug(job.target)}-{digest([job.dataset, job.target])}"

    def done(self, job: Job) -> bool:
        """Whether there is all of a result."""
        return self.trained(job) and not self.unmeasured(job)

    def failure(self, job: Job) -> str | None:
        """Return why the job failed when it was last tried; None if it didn't."""
        failed = read_json(self.folder_of(job) / "failed.json")
        return None if failed is None or self.done(job) else str(failed["error"])

    def seconds(self, job: Job) -> float:
        """Return how long a finished job took."""
        return float(read_json(self.folder_of(job) / "seconds.json", math.nan))


def predictions_in(folder: Path) -> Predictions | None:
    """Return the predictions in a job's folder; None where they can't be read."""
    try:
        return Predictions.load(folder)
    except RunError:
        return None


def has_predictions(folder: Path) -> bool:
    """Whether the predictions in a job's folder can be read; a file that is as it was isn't read again."""
    try:
        found = (folder / FILE).stat()
    except OSError:
        return False
    return _can_be_read(folder, found.st_mtime_ns, found.st_size)


@cache
def _can_be_read(folder: Path, changed: int, size: int) -> bool:
    return predictions_in(folder) is not None


def _torn(file: BinaryIO) -> bool:
    """Whether a file's last line doesn't end, since a process was killed while it wrote it."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"
