"""What a benchmark compares, on what: the jobs of every method, dataset, target, student and seed.

And draws of hyperparameters: from DomainBed's ranges, at random or where Optuna expects more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vl2v.benchmark.worklist import Cell, Job, Selection, digest
from vl2v.config import TOWER, DataConfig, RunConfig, deciding, validate
from vl2v.errors import ConfigError, need_extra
from vl2v.methods import METHODS, find_method, version_of
from vl2v.runs.settings import applicable, foreign, paper_student, recipe
from vl2v.session import derive
from vl2v.teachers import is_white_box
from vl2v.tree import Tree, flat, merge, nested

if TYPE_CHECKING:
    from vl2v.data.dataset import DomainDataset


STARTUP = 4  # results, before which Optuna's suggestions are random as well
RATES = dict.fromkeys(("adip", "adip-plus", "fd", "simkd", "lp"), 1) | dict.fromkeys(("sd", "wise-ft", "clipood"), -1)
"""How many powers of ten above DomainBed's range a method's learning rates are, so that its own is among them."""


@dataclass(frozen=True)
class Range:
    """Where a hyperparameter is drawn from: u uniformly from `low` to `high`, the value base^(u + shift), or u.

    Attributes:
        low: of u.
        high: of u.
        base: None: the value is u itself.
        shift: see above.
        whole: the value is rounded down to a whole number.
    """

    low: float
    high: float
    base: int | None = None
    shift: int = 0
    whole: bool = False

    def value(self, u: float) -> float:
        """Return the value at u."""
        value = u if self.base is None else self.base ** (u + self.shift)
        return int(value) if self.whole else float(value)

    def position(self, value: float) -> float:
        """Return u of a value; of one out of the range (a weight decay of 0), the nearest end."""
        if self.base is None:
            return min(max(value, self.low), self.high)
        inside = value + 1e-6 if self.whole else value  # what rounding down leaves where it is
        u = math.log(inside, self.base) - self.shift if inside > 0 else -math.inf
        return min(max(u, self.low), self.high)


_OWN = {
    "coral": ("coral_weight", Range(-1, 1, 10)),
    "mixup": ("mixup_alpha", Range(-1, 1, 10)),
    "miro": ("miro_weight", Range(-2, 0, 10)),
    "adip": ("lambda", Range(0.1, 0.9)),
    "sd": ("lambda", Range(0.1, 0.9)),
    "kd": ("temperature", Range(1, 5)),
    "rise": ("kd_weight", Range(0.1, 0.9)),
    "scmd": ("temperature", Range(2, 5)),
    "wise-ft": ("interpolate", Range(0.2, 0.8)),
}


def ranges(method: str) -> dict[str, Range]:
    """Return a method's hyperparameters, as dotted settings."""
    *_, last = METHODS[method].stage_defaults
    found = {
        f"stages.{last}.lr": Range(-5, -3.5, 10, shift=RATES.get(method, 0)),
        f"stages.{last}.weight_decay": Range(-6, -2, 10, shift=int(method == "clipood")),
        f"stages.{last}.batch_per_domain": Range(3, 5.5, 2, whole=True),
    }
    if method in _OWN:
        name, own = _OWN[method]
        found[f"loss.{name}"] = own
    return found


def drawn(method: str, seed: int, draw: int) -> Tree:
    """Return random hyperparameters from DomainBed's ranges (Gulrajani and Lopez-Paz, ICLR 2021, appendix D.2).

    Those are the ranges that DomainBed has for Adam; AdamW, the house's optimiser, takes weight decay in another way,
    and 1e-2 is little there. ResNets' dropout isn't drawn, and DomainNet's batch is as the others'.

    Of the last stage: learning rate 10^U(-5, -3.5), weight decay 10^U(-6, -2), images a domain 2^U(3, 5.5). Of a
    method of its own: CORAL's weight and Mixup's alpha 10^U(-1, 1). Not in DomainBed: lambda U(0.1, 0.9), MIRO's weight
    10^U(-2, 0), KD's temperature U(1, 5), RISE's share of distillation U(0.1, 0.9), roughly what its authors searched,
    SCMD's temperature U(2, 5), WiSE-FT's interpolation U(0.2, 0.8). The losses of adip, adip-plus, fd and simkd, and
    lp's frozen features, want larger steps: ten times the range; white boxes smaller ones, a tenth. CLIPood's weight
    decay is ten times the range.
    """
    rng = np.random.default_rng(derive(seed, "draw", method, draw))
    found = ranges(method).items()
    return nested({name: span.value(rng.uniform(span.low, span.high)) for name, span in found})


def suggested(method: str, seed: int, draw: int, results: Sequence[tuple[RunConfig, float]]) -> Tree:
    """Return hyperparameters from the same ranges where Optuna's sampler (TPE) expects the best, by the results so far.

    Args:
        seed: of the run; the sampler's follows from it and the draw.
        results: runs, and what each is worth (more is better), in order.

    Raises:
        MissingExtra: Optuna isn't installed.
    """
    optuna = need_extra("optuna", "optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=derive(seed, "suggest", method, draw) % 2**32, n_startup_trials=STARTUP)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    found = ranges(method)
    distributions = {name: optuna.distributions.FloatDistribution(r.low, r.high) for name, r in found.items()}
    for config, worth in results:
        values = _values(method, config)
        if "auto" in values.values():
            continue  # it has no position in a range
        positions = {name: found[name].position(value) for name, value in values.items()}
        study.add_trial(optuna.trial.create_trial(params=positions, distributions=distributions, value=worth))
    return nested({name: found[name].value(u) for name, u in study.ask(distributions).params.items()})


def repeated(method: str, config: RunConfig) -> Tree:
    """Return the hyperparameters of a run, as `drawn` and `suggested` do."""
    return nested(_values(method, config))


def _values(method: str, config: RunConfig) -> dict[str, Any]:
    values = flat(config.model_dump(by_alias=True))
    return {name: values[name] for name in ranges(method)}


Search = Literal["random", "optuna"]
STUDENTS = {
    "lite0": "tf_efficientnet_lite0",
    "resnet50": "resnet50",
    "vit_small": "vit_small_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
}
_SHORT = {full: short for short, full in STUDENTS.items()}
Draw = Callable[[Cell, int], Tree]
"""Makes the hyperparameters of a cell and the number of a draw."""


@dataclass(frozen=True)
class Grid:
    """What is to be compared, on what.

    Attributes:
        data: dataset name -> path.
        targets: unseen domains; empty: every domain of each dataset in turn. One that a dataset doesn't have as a whole
            is several, with commas between.
        students: timm models, or short names of some (`STUDENTS`), which is how they are called then. A method that
            starts from the teacher's tower has that as its only student, "teacher"; the zero-shot row stands once.
        draws: hyperparameter draws of each, the first being the defaults.
        search: how the others are drawn; "optuna" goes by the results of those before.
        selection: how a draw is selected; "leave-one-out" trains more students.
        preset: that they change, "default" or "paper".
        steps: of each method's last stage; None: as the method has it.
        batch: images of each source domain in a batch of the last stage.
        first_seed: the others follow it; seeds that nobody has seen yet confirm what earlier ones only suggest.
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
    preset: str = "default"
    steps: int | None = None
    batch: int | None = None
    first_seed: int = 0

    @property
    def variant(self) -> str:
        """A digest of the settings that all its jobs have in common, without those that change no result."""
        settings = {**deciding(self.settings), "data.exclude": None}  # what it leaves out, is in the dataset's listing
        return digest([settings, self.steps, self.batch, self.search, self.preset])

    @cached_property
    def datasets(self) -> dict[str, DomainDataset]:
        """The images of each dataset.

        Raises:
            DataError: one that can't be read.
        """
        from vl2v.runs.datasets import open_data

        return {name: open_data(self._data_of(name)) for name in self.data}

    @property
    def rounds(self) -> list[Grid]:
        """The grids to be planned and done one after another: where draws go by results, a draw each."""
        if self.search == "random":
            return [self]
        return [replace(self, draws=draws) for draws in range(1, self.draws + 1)]

    def jobs(self, draw: Draw | None = None) -> Iterator[Job]:
        """Yield the jobs; those that share most come one after another.

        Where the teacher is queried about some images only (`teacher.select`), its own row is left out: what it would
        be measured on would depend on which students had queried before.

        Args:
            draw: makes hyperparameters of a cell and the number of a draw; by default random ones.

        Raises:
            ConfigError: a method, or a setting, that doesn't exist; domains too few for the rule.
            DataError: a dataset that can't be read or learnt from, or a target that it doesn't have.
        """
        _check_stages(self.settings.get("stages", {}))
        _check_settings(self.settings, self.methods)
        some = isinstance(self.settings.get("teacher", {}).get("select"), int)
        methods = [method for method in self.methods if METHODS[method].stage_defaults or not some]
        for dataset, images in self.datasets.items():
            domains = images.labelled_domains
            named = [[name] if name in images.domains else split_names(name) for name in self.targets]
            targets = list(dict.fromkeys([target for names in named for target in names] or domains))
            self._check_targets(dataset, targets)
            for seed in range(self.first_seed, self.first_seed + self.seeds):
                for target in targets:
                    cells = dict.fromkeys(
                        Cell(dataset, target, method, self.student_of(method, student), seed)
                        for student in self.students
                        for method in methods
                    )
                    for cell in cells:
                        yield from self._cell(cell, domains, draw or (lambda one, k: drawn(one.method, one.seed, k)))

    def student_of(self, method: str, student: str) -> str:
        """Return what a method trains instead of a student."""
        if METHODS[method].tower:
            return TOWER
        name = student if METHODS[method].stage_defaults else self.students[0]
        return _SHORT.get(name, name)

    def _cell(self, cell: Cell, domains: Sequence[str], draw_of: Draw) -> Iterator[Job]:
        trains = bool(METHODS[cell.method].stage_defaults)
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
        student = STUDENTS.get(cell.student, cell.student)
        student = paper_student(student) if self.preset == "paper" else student
        path, target = self.data[cell.dataset], [cell.target, *([held] if held else [])]
        own: Tree = {
            "method": cell.method,
            "seed": cell.seed,
            "data": {"path": path, "target": target, "split_seed": cell.seed},
            "student": {"name": student},
        }
        task = METHODS[cell.method]
        measured: Tree = {"published": {"target_in_split": False}}  # tables have both figures
        fair: Tree = {} if self.preset == "paper" else {"train": {"head": "auto"}}  # the same rule for all
        shared = merge(recipe(self.preset, task.stage_defaults, student), measured, fair, self.settings)
        return merge(applicable(shared, task), own)

    def _sized(self, cell: Cell, settings: Tree) -> Tree:
        """Return settings with the steps and the batch that were given, whatever was drawn."""
        stages = METHODS[cell.method].stage_defaults
        if not stages:
            return settings
        *_, last = stages
        sizes = {"steps": self.steps, "batch_per_domain": self.batch}
        return merge(settings, {"stages": {last: {key: value for key, value in sizes.items() if value}}})

    def _data_of(self, dataset: str) -> DataConfig:
        """Return the settings of a dataset."""
        return validate(merge({"data": self.settings.get("data", {})}, {"data": {"path": self.data[dataset]}})).data

    def _check_targets(self, dataset: str, targets: Sequence[str]) -> None:
        """Check that students can learn from each one's others, before a teacher is paid.

        Raises:
            DataError: no such domain, or what is left can't be learnt from.
        """
        from vl2v.data.dataset import leave_out

        images, holdout = self.datasets[dataset], self._data_of(dataset).holdout
        trains = any(METHODS[method].stage_defaults for method in self.methods)
        for target in targets:
            images.domain_index(target)
            if trains or len(images.labelled_domains) > 1:
                leave_out(images, [target], fraction=holdout)


def split_names(text: str) -> list[str]:
    """Return names with commas between, without the spaces around them."""
    return [name.strip() for name in text.split(",")]


def methods_for(names: Sequence[str], teacher: str) -> list[str]:
    """Return method names; "all" stands for every one that the teacher allows.

    Raises:
        ConfigError: an unknown one, or one that needs the weights of a teacher that is a black box.
        TeacherError: the teacher is of no kind that exists.
    """
    towers = {name for name, entry in METHODS.items() if entry.tower}
    white = not {"all", *towers}.isdisjoint(names) and is_white_box(teacher)  # else it makes no difference
    found: list[str] = []
    for name in names:
        if name == "all":
            found += [one for one in METHODS if white or one not in towers]
            continue
        find_method(name)
        if name in towers and not white:
            raise ConfigError(f"method {name}: needs the teacher's weights, and {teacher} is a black box; leave it out")
        found.append(name)
    return list(dict.fromkeys(found))


def _check_stages(given: object) -> None:
    """Refuse settings of a stage that no method has."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"stages = {given!r}: must be a table of stages, for example stages.distill.lr=1e-3")
    stages = dict.fromkeys(name for entry in METHODS.values() for name in entry.stage_defaults)
    if unknown := given.keys() - stages.keys():
        raise ConfigError(f"stages.{min(unknown)}: no method has such a stage; choose one of {', '.join(stages)}")
    for name, stage in given.items():
        if not isinstance(stage, Mapping):
            raise ConfigError(f"stages.{name} = {stage!r}: must be a table, for example stages.{name}.lr=1e-3")


def _check_settings(settings: Tree, methods: Sequence[str]) -> None:
    """Refuse settings that none of the methods has; each method takes those that it has."""
    reasons = {method: foreign(settings, METHODS[method]) for method in methods}
    trained = [method for method in methods if METHODS[method].stage_defaults]
    if trained and (unused := set.intersection(*map(set, reasons.values()))):
        name = min(unused)
        raise ConfigError(f"{name}: {reasons[trained[0]][name]}; no other method of this benchmark has it, either")
