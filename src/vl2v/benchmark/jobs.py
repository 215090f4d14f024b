"""The work list of a benchmark: one job for every student that is to be trained, named by what decides its result."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

from vl2v.benchmark.draws import drawn
from vl2v.config import DataConfig, LossConfig, PublishedConfig, Tree, merge, validate
from vl2v.data.corruptions import CORRUPTIONS
from vl2v.errors import ConfigError, RunError
from vl2v.methods import METHODS, find_method, version_of
from vl2v.runs.folder import write_text
from vl2v.runs.settings import resolve

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from vl2v.data import DomainDataset

Selection = Literal["training", "leave-one-out", "oracle"]
Search = Literal["random", "optuna"]
FIRST = "1.1"  # a version that names of jobs leave out
WHITE_BOXES = ("open_clip", "hf", "tiny")
STUDENTS = {
    "lite0": "tf_efficientnet_lite0",
    "resnet50": "resnet50",
    "vit_small": "vit_small_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
}


class Cell(NamedTuple):
    """What is repeated with other hyperparameters; see `Job`."""

    dataset: str
    target: str
    method: str
    student: str
    seed: int


Draw = Callable[[Cell, int], Tree]
"""Makes the hyperparameters of a cell and the number of a draw."""


@dataclass(frozen=True)
class Job:
    """One student to be trained, or one teacher to be measured.

    Attributes:
        dataset: the name that it was given.
        target: the unseen domain.
        method: as in `vl2v methods`.
        student: a timm model.
        seed: decides every draw, the split too.
        draw: which draw of hyperparameters; 0 is the defaults.
        held: another domain left out, to select by (leave-one-domain-out validation); "" for the job that counts.
        settings: of the run.
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
    version: str = FIRST

    @property
    def cell(self) -> Cell:
        """What it is one draw of."""
        return Cell(self.dataset, self.target, self.method, self.student, self.seed)

    @property
    def of_today(self) -> bool:
        """Whether today's code would train it so."""
        return self.method in METHODS and self.version == version_of(self.method)

    @cached_property
    def name(self) -> str:
        """Its folder: words for people, and a digest of everything that decides the result."""
        config = resolve(self.settings).model_dump(mode="json", by_alias=True)
        config["data"] |= {"path": self.dataset, "workers": 0}
        if self.version != FIRST:  # folders are older than versions
            config["version"] = self.version
        words = [self.dataset, self.target, self.held and f"without-{self.held}", self.student, self.method]
        return "-".join([*(_word(word) for word in words if word), f"seed{self.seed}", _digest(config)])


@dataclass(frozen=True)
class Grid:
    """What is to be compared, on what.

    Attributes:
        data: dataset name -> path.
        targets: unseen domains; empty: every domain of each dataset in turn.
        methods: names.
        students: timm models, or short names of some (`STUDENTS`).
        seeds: how many.
        draws: hyperparameter draws of each, the first being the defaults.
        search: how the others are drawn; "optuna" goes by the results of those before.
        selection: how a draw is selected; "leave-one-out" trains more students.
        settings: of every run.
        steps: of each method's last stage; None: as the method has it.
        batch: pictures of each source domain in a batch of the last stage.
        first_seed: the others follow it; seeds that nobody has looked at tell what earlier ones only suggest.
    """

    data: Mapping[str, str]
    targets: Sequence[str]
    methods: Sequence[str]
    students: Sequence[str]
    seeds: int
    draws: int = 1
    search: Search = "random"
    selection: Selection = "training"
    settings: Tree = field(default_factory=dict)
    steps: int | None = None
    batch: int | None = None
    first_seed: int = 0

    @property
    def variant(self) -> str:
        """A digest of the settings that all its jobs have in common."""
        settings = {**self.settings, "data": {**self.settings.get("data", {}), "workers": 0}}
        how = [] if self.search == "random" else [self.search]
        return _digest([settings, self.steps, self.batch, *how])

    @cached_property
    def datasets(self) -> dict[str, DomainDataset]:
        """The pictures of each dataset.

        Raises:
            DataError: one that can't be read.
        """
        from vl2v.data import open_dataset

        told = {name: self._told(name) for name in self.data}
        return {name: open_dataset(data.path, layout=data.layout, exclude=data.exclude) for name, data in told.items()}

    @property
    def rounds(self) -> list[Grid]:
        """The grids to be planned and done one after another: where draws go by results, a draw each."""
        if self.search == "random":
            return [self]
        return [replace(self, draws=draws) for draws in range(1, self.draws + 1)]

    def jobs(self, draw: Draw | None = None) -> Iterator[Job]:
        """Yield the jobs; those that share most come one after another.

        Where the teacher is asked about some pictures only (`teacher.select`), its own row is left out: what it would
        be measured on would depend on which students had asked before.

        Args:
            draw: makes hyperparameters of a cell and the number of a draw; by default random ones.

        Raises:
            ConfigError: a method, or a setting, that isn't known; domains too few for the rule.
            DataError: a dataset that can't be read or learnt from, or a target that it doesn't have.
        """
        _check_stages(self.settings.get("stages", {}))
        some = isinstance(self.settings.get("teacher", {}).get("select"), int)
        methods = [method for method in self.methods if METHODS[method].stages or not some]
        for dataset, pictures in self.datasets.items():
            domains = pictures.labelled_domains
            targets = self.targets or domains
            self._check_targets(dataset, targets)
            for seed in range(self.first_seed, self.first_seed + self.seeds):
                for target in targets:
                    for student in self.students:
                        for method in methods:
                            cell = Cell(dataset, target, method, student, seed)
                            yield from self._cell(cell, domains, draw or _random)

    def _cell(self, cell: Cell, domains: Sequence[str], draw_of: Draw) -> Iterator[Job]:
        trains = bool(METHODS[cell.method].stages)
        draws = self.draws if trains else 1
        several = trains and (self.draws > 1 or self.search == "optuna")  # whose rounds have one draw at first
        others = [domain for domain in domains if domain != cell.target]
        held_out = others if self.selection == "leave-one-out" and several else []
        if len(held_out) == 1:
            raise ConfigError(
                f"--selection leave-one-out: {cell.dataset} has {len(domains)} domains, and would leave none to learn "
                "from; it takes three or more"
            )
        for draw in range(draws):
            hyperparameters = draw_of(cell, draw) if draw else {}
            for held in ("", *held_out):
                settings = self._sized(cell, merge(self._of(cell, held), hyperparameters))
                yield Job(*cell, draw, held, settings, version_of(cell.method))

    def _of(self, cell: Cell, held: str) -> Tree:
        """Return the settings of a job, without its draw."""
        path, target = self.data[cell.dataset], [cell.target, *([held] if held else [])]
        own: Tree = {
            "method": cell.method,
            "seed": cell.seed,
            "data": {"path": path, "target": target, "split_seed": cell.seed},
            "student": {"name": STUDENTS.get(cell.student, cell.student)},
        }
        stages = METHODS[cell.method].stages
        if not stages:
            return merge(_without_stages(self.settings), own)
        return merge(_only_stages(self.settings, stages), own)

    def _sized(self, cell: Cell, settings: Tree) -> Tree:
        """Return settings with the steps and the batch that were asked for, whatever was drawn."""
        stages = METHODS[cell.method].stages
        if not stages:
            return settings
        *_, last = stages
        sizes = {"steps": self.steps, "batch_per_domain": self.batch}
        return merge(settings, {"stages": {last: {key: value for key, value in sizes.items() if value}}})

    def _told(self, dataset: str) -> DataConfig:
        """Return the settings of a dataset."""
        return validate(merge({"data": self.settings.get("data", {})}, {"data": {"path": self.data[dataset]}})).data

    def _check_targets(self, dataset: str, targets: Sequence[str]) -> None:
        """Look whether students can learn from each one's others, before a teacher is paid.

        Raises:
            DataError: no such domain, or what is left can't be learnt from.
        """
        from vl2v.data import leave_out

        pictures, holdout = self.datasets[dataset], self._told(dataset).holdout
        trains = any(METHODS[method].stages for method in self.methods)
        for target in targets:
            pictures.domain_index(target)
            if trains or len(pictures.labelled_domains) > 1:
                leave_out(pictures, [target], fraction=holdout)


def methods_for(names: Sequence[str], teacher: str) -> list[str]:
    """Return method names; "all" stands for every one that the teacher allows.

    Raises:
        ConfigError: an unknown one, or one that needs the weights of a teacher that is a black box.
    """
    kind = teacher.partition(":")[0]
    towers = {name for name, entry in METHODS.items() if entry.make(LossConfig(), PublishedConfig()).tower}
    found: list[str] = []
    for name in names:
        if name == "all":
            found += [known for known in METHODS if kind in WHITE_BOXES or known not in towers]
            continue
        find_method(name)
        if name in towers and kind not in WHITE_BOXES:
            raise ConfigError(f"method {name}: needs the teacher's weights, and {teacher} is a black box; leave it out")
        found.append(name)
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Corruptions:
    """What finished students are also measured on: the unseen domain's pictures, corrupted.

    Attributes:
        kinds: of `vl2v.data.corruptions`.
        severity: 1 to 5.
    """

    kinds: tuple[str, ...]
    severity: int

    def measured(self, place: Path) -> dict[str, float]:
        """Return the accuracy (0 to 1) of a job's student under each corruption that it was measured on."""
        file = self._file(place)
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return {kind: known[kind] for kind in self.kinds if kind in known}

    def unmeasured(self, place: Path) -> list[str]:
        """Return the corruptions that a job's student has still to be measured on."""
        known = self.measured(place)
        return [kind for kind in self.kinds if kind not in known]

    def keep(self, place: Path, accuracies: dict[str, float]) -> None:
        """Keep accuracies in a job's folder, beside those under other corruptions."""
        known = Corruptions(CORRUPTIONS, self.severity).measured(place)
        write_text(self._file(place), json.dumps({**known, **accuracies}))

    def _file(self, place: Path) -> Path:
        return place / f"corrupted-{self.severity}.json"


class WorkList:
    """The jobs of a benchmark folder, as they were asked for, and how each stands.

    Args:
        folder: of the benchmark.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "jobs.jsonl"

    def lock(self) -> BaseFileLock:
        """Return what is to be held while a list of the folder is changed: two commands may work on one."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "lists.lock")

    def add(self, jobs: Iterable[Job]) -> list[Job]:
        """Add jobs that aren't in the list yet; return all that were given."""
        given = list(jobs)
        with self.lock():
            known = {job.name for job in self.jobs()} if self.file.is_file() else set()
            new = {job.name: job for job in given if job.name not in known}
            lines = "".join(json.dumps({"name": name, **asdict(job)}, default=str) + "\n" for name, job in new.items())
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
            name = row.pop("name")
            job = Job(**row)
            job.__dict__["name"] = name  # not worked out anew: 500 jobs are listed in a moment
            made.setdefault(name, job)
        return list(made.values())

    def show(self, variant: str, jobs: Iterable[Job]) -> None:
        """Let tables show jobs, and those that were asked for before with the same settings (`Grid.variant`)."""
        with self.lock():
            before = self._shown()
            known = before["jobs"].get(variant, [])
            names = list(dict.fromkeys([*known, *(job.name for job in jobs)]))
            now = {"variant": variant, "jobs": {**before["jobs"], variant: names}}
            if now != before:
                write_text(self.folder / "shown.json", json.dumps(now))

    def shown(self, variant: str | None = None) -> list[Job]:
        """Return the jobs that tables show: those of the settings that were asked for last, and of today's code.

        Args:
            variant: other settings than the last.
        """
        told = self._shown()
        names = set(told["jobs"].get(told["variant"] if variant is None else variant, []))
        asked = [job for job in self.jobs() if job.name in names or not told["jobs"]]
        return [job for job in asked if job.of_today]

    def _shown(self) -> dict[str, Any]:
        file = self.folder / "shown.json"
        told: dict[str, Any] = {"variant": "", "jobs": {}}
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else told

    def place(self, job: Job) -> Path:
        """Return the job's run folder."""
        return self.folder / "jobs" / job.name

    @cached_property
    def corruptions(self) -> Corruptions | None:
        """What students are measured on besides, as it was asked for last."""
        file = self.folder / "corruptions.json"
        if not file.is_file():
            return None
        told = json.loads(file.read_text(encoding="utf-8"))
        return Corruptions(tuple(told["kinds"]), told["severity"])

    def ask_for(self, corruptions: Corruptions | None) -> None:
        """Have students measured on these corruptions, or on none."""
        file = self.folder / "corruptions.json"
        with self.lock():
            if corruptions is None:
                file.unlink(missing_ok=True)
            else:
                write_text(file, json.dumps(asdict(corruptions)))
        self.__dict__["corruptions"] = corruptions

    def trained(self, job: Job) -> bool:
        """Whether there is a result on uncorrupted pictures."""
        return (self.place(job) / "seconds.json").is_file()

    def unmeasured(self, job: Job) -> list[str]:
        """Return the corruptions that a job's student has still to be measured on."""
        if self.corruptions is None or job.held or job.method == "zero-shot":
            return []
        return self.corruptions.unmeasured(self.place(job))

    def corrupted(self, job: Job) -> Path:
        """Return the folder of the unseen domain's corrupted pictures."""
        return self.folder / "corrupted" / f"{_word(job.dataset)}-{_word(job.target)}"

    def done(self, job: Job) -> bool:
        """Whether there is all of a result."""
        return self.trained(job) and not self.unmeasured(job)

    def failure(self, job: Job) -> str | None:
        """Return why the job failed when it was last tried; None if it didn't."""
        file = self.place(job) / "failed.json"
        if self.done(job) or not file.is_file():
            return None
        return str(json.loads(file.read_text(encoding="utf-8"))["error"])

    def seconds(self, job: Job) -> float:
        """Return how long a finished job took."""
        file = self.place(job) / "seconds.json"
        return float(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else math.nan


def _random(cell: Cell, draw: int) -> Tree:
    return drawn(cell.method, cell.seed, draw)


def _torn(file: BinaryIO) -> bool:
    """Whether a file's last line doesn't end, since a process was killed while it wrote it."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _digest(tree: object) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:10]


def _word(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in text)


def _without_stages(settings: Tree) -> Tree:
    return {key: value for key, value in settings.items() if key != "stages"}


def _check_stages(given: object) -> None:
    """Refuse settings of a stage that no method has.

    Raises:
        ConfigError: there is one.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"stages = {given!r}: a table of stages, for example stages.distill.lr=1e-3")
    known = dict.fromkeys(name for entry in METHODS.values() for name in entry.stages)
    if unknown := given.keys() - known.keys():
        raise ConfigError(f"stages.{min(unknown)}: no method has such a stage; there are {', '.join(known)}")


def _only_stages(settings: Tree, stages: Mapping[str, Any]) -> Tree:
    """Return settings of all methods with only those stages that this one has."""
    given = settings.get("stages", {})
    return {**_without_stages(settings), "stages": {name: given[name] for name in stages if name in given}}
