"""What a run will do and how long that takes on this machine, decided before anything starts.

A few real steps of the run's own student are measured, on made-up images. A run that has to fit in some minutes gives
up in this order, and never what the user has set: image size (down to 128 px), images of each domain in a batch (down
to half), steps (down to `FEWEST`), smaller images, on a CPU the training of the lower blocks (`train.quick`), still
fewer steps; last, how often it is evaluated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vl2v.config import RunConfig, StageConfig, deciding
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, StudentError
from vl2v.io import read_json, write_text
from vl2v.methods import task_of
from vl2v.runs.datasets import Images
from vl2v.runs.folder import MOVED, PLAN
from vl2v.runs.measure import Bench, Rates
from vl2v.runs.settings import has_tower, recipe, resolve
from vl2v.runs.stages import check_trainable
from vl2v.runs.teaching import Teaching, teaching_of
from vl2v.session import Progress, Session, default_store, silent
from vl2v.system import best_device, peak_bytes, world_size
from vl2v.tree import Tree, flat, merge, nested

Minutes = float | Literal["auto"] | None
"""What a run has to fit in. "auto": `WITHOUT_GPU`, where there is no GPU and neither steps, image size nor preset are
given. None: nothing."""

WITHOUT_GPU = 20.0
QUICK: Tree = {"train.quick": "auto"}
ONCE = 0.25  # of the time, at most, for the lower blocks' activations
FEWEST = 300  # steps; images become smaller before there are fewer
SIZES = (192, 160, 128, 96, 64)
ENOUGH = 128  # pixels a side; batches and steps become smaller before the images do
MOMENTS = 200  # images of 224 px, of each domain: what is trained on fewer isn't measured
VALIDATING = 0.1  # of a stage's time, at most


@dataclass(frozen=True)
class RunPlan:
    """A run before it starts.

    Attributes:
        config: its settings, with what was chosen.
        chosen: the settings that were chosen, by dotted name.
        minutes: that it has to fit in; None: it isn't limited.
        seconds: forecast, by part of the run.
        image_size: of the student, in pixels.
        domains: groups of images in a batch.
        memory: forecast peak, in bytes.
        teaching: the queries, and what they cost.
        device: what it computes on, in words.
        full: what the recipe would take without a limit, in words; "" if it is the recipe.
    """

    config: RunConfig
    chosen: Tree
    request: Tree
    minutes: float | None
    seconds: dict[str, float]
    image_size: int
    domains: int
    memory: int
    teaching: Teaching
    device: str
    full: str

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    def summary(self) -> list[str]:
        """Return lines for people: what will be done, and what more time would bring."""
        steps = ", ".join(_steps(stage, self.domains) for stage in _trained(self.config).values())
        lines = [
            f"plan: {self.config.student.name} at {self.image_size} px, {steps or 'features computed once'}",
            f"  about {duration(self.total)} on {self.device}, peak memory {self.memory / 1e9:.1f} GB",
            f"  {self.teaching}",
        ]
        if self.chosen.get("train.quick"):
            lines.append("  of the upper blocks alone, since there is little time (--no-quick: of all)")
        if self.minutes is not None and self.total > 60 * self.minutes * 1.1:
            lines.append(f"  that is more than {self.minutes:g} min: what can't be shortened takes longer")
        if too_few(self.config, self.chosen):
            lines.append(f"  so few steps teach little: {FEWEST} want more minutes or an idle machine")
        if self.full:
            lines += [f"  {self.full}", "  give --minutes N for another length, or settings of your own"]
        return lines

    def beside(self, progress: Progress) -> Progress:
        """Return progress that says how long a part will take before that can be seen from its steps."""

        def show(task: str, done: int, total: int, remark: str) -> None:
            early = done < 2 and task in self.seconds
            progress(task, done, total, f"about {duration(self.seconds[task])} in all {remark}" if early else remark)

        return show

    def save(self, folder: Path) -> None:
        """Write `plan.json`, by which the same command finds the same settings again."""
        made = {"request": self.request, "chosen": self.chosen, "seconds": self.seconds, "memory": self.memory}
        write_text(folder / PLAN, json.dumps(made, indent=2))


def duration(seconds: float) -> str:
    """Return a length of time in a few words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def saved_plan(folder: Path, config: RunConfig, minutes: Minutes, settings: Mapping[str, Any]) -> RunConfig | None:
    """Return a run's settings as they were planned when it began; None: it hasn't begun, or was planned otherwise.

    Args:
        settings: as the user gives them; a plan that chose another value isn't theirs.
    """
    if not (folder / "config.toml").is_file():
        return None
    if not (made := read_json(folder / PLAN)):
        return config if any((folder / name).exists() for name in ("checkpoints", "student", "metrics.jsonl")) else None
    given = {name: value for name, value in flat(settings).items() if value is not None}
    others = any(given.get(name, value) != value for name, value in made["chosen"].items())
    earlier = made["request"]  # with the paths, of an earlier version
    if others or _request(earlier["minutes"], earlier["settings"]) != request_of(config, minutes):
        return None
    return planned(config, made["chosen"])


def request_of(config: RunConfig, minutes: Minutes) -> Tree:
    """Return what a plan is made for; where the images lie changes nothing."""
    given = deciding(config.model_dump(mode="json", by_alias=True))
    return _request(minutes, {name: value for name, value in given.items() if value is not None})


def _request(minutes: Minutes, settings: Tree) -> Tree:
    """Return a request with how many folders of images without labels there are in place of the paths."""
    named = settings.get("data.unlabelled", 0)
    count = {"data.unlabelled": 1 if isinstance(named, str) else named if isinstance(named, int) else len(named)}
    return {"minutes": minutes, "settings": {k: v for k, v in settings.items() if k not in MOVED} | count}


def planned(config: RunConfig, chosen: Mapping[str, Any]) -> RunConfig:
    """Return settings with what was chosen."""
    return RunConfig.model_validate(merge(config.model_dump(by_alias=True), nested(chosen)))


def plan_run(
    settings: Mapping[str, Any],
    *,
    preset: str = "default",
    store: Path | str | None = None,
    budget: float = 0,
    minutes: Minutes = "auto",
    images: Images | None = None,
    progress: Progress = silent,
) -> RunPlan:
    """Measure a few steps and return what `distill` would do; nothing is trained, and no teacher queried for good.

    Args:
        settings: as for `distill`; so are `preset` and `store`.
        images: of the settings, where somebody has opened them already.
        progress: called with the progress of reading images.

    Raises:
        VL2VError: as `distill` does, before it trains.
    """
    config = resolve(settings, preset)
    store = Path(store) if store else default_store()
    task = task_of(config)
    session = Session(store, budget, progress)
    images = images or Images(config.data, session)
    sources = images.sources
    with EmbeddingStore(store) as embeddings:
        queries, teacher, dim = teaching_of(config, task, sources, embeddings, budget, progress)
    progress("measuring", 0, 1, "")
    task = task.with_chosen(dict.fromkeys(task.automatic, 0.5))  # any number costs the same

    def bench_of(config: RunConfig) -> Bench:
        return Bench(config, task, sources, len(images.listed), queries, teacher, dim)

    bench = bench_of(config)
    limit = limit_of(settings, preset, minutes, config)
    chosen: Tree = {}
    full = ""
    if limit is not None:
        left, given = 60 * limit - queries.seconds, _given(settings, preset, config)
        chosen = fitting(bench, left, given)
        full = _longer(bench, queries.seconds, limit) if chosen else ""
        if too_few(config, chosen) and can_be_quick(settings, preset, config):
            bench, chosen = quicker(bench, bench_of, chosen, left, given)
    fitted = planned(config, chosen)
    rates = bench.rates(bench.size_of(fitted), fitted)
    seconds = {"teacher": queries.seconds, **bench.seconds(fitted, rates)}
    progress("measuring", 1, 1, "")
    return RunPlan(
        config=fitted,
        chosen=chosen,
        request=request_of(config, minutes),
        minutes=limit,
        seconds=seconds,
        image_size=bench.size_of(fitted),
        domains=bench.domains,
        memory=max(bench.memory(fitted), peak_bytes()),  # measuring took some, too
        teaching=queries,
        device=bench.device,
        full=full,
    )


def limit_of(settings: Mapping[str, Any], preset: str, minutes: Minutes, config: RunConfig) -> float | None:
    """Return the minutes that a run has to fit in; None: it isn't limited."""
    if minutes is not None and minutes != "auto" and not minutes > 0:
        raise ConfigError(f"--minutes {minutes:g}: must be more than 0")
    if minutes != "auto":
        return minutes
    given = flat(settings)
    own = preset != "default" or "student.image_size" in given or any(name.endswith(".steps") for name in given)
    return WITHOUT_GPU if _alone_on_a_cpu(config) and not own else None


def _alone_on_a_cpu(config: RunConfig) -> bool:
    on_cpu = config.train.accelerator == "cpu" or (config.train.accelerator == "auto" and best_device() == "cpu")
    return on_cpu and world_size() == 1


def too_few(config: RunConfig, chosen: Mapping[str, Any]) -> bool:
    """Return whether a plan has chosen so few steps that they teach little."""
    stages = _trained(planned(config, chosen))
    return any(stage.steps < FEWEST for key, stage in stages.items() if _name(key) in chosen)


def can_be_quick(settings: Mapping[str, Any], preset: str, config: RunConfig) -> bool:
    """Return whether a plan may train the upper blocks alone: on a CPU, if the user and the other settings let it."""
    given = "train.quick" in _given(settings, preset, config)
    if given or has_tower(config, task_of(config)) or not _alone_on_a_cpu(config):
        return False
    try:
        check_trainable(resolve(merge(settings, nested(QUICK)), preset), 1)
    except ConfigError:
        return False
    return True


def quicker(
    bench: Bench, bench_of: Callable[[RunConfig], Bench], chosen: Tree, limit: float, given: set[str]
) -> tuple[Bench, Tree]:
    """Return a bench on which the upper blocks alone are trained, and what it takes to fit in a limit, in seconds.

    As before, if the backbone can't be cut, if so many images take too long to pass through the lower blocks once, or
    if a student would not see more images.
    """
    kept = QUICK | {name: value for name, value in chosen.items() if name == "student.image_size"}
    quick = bench_of(planned(bench.config, kept))
    quick.base = bench.base  # of a process that has measured nothing yet
    try:
        rates = quick.rates(quick.size_of(quick.config), quick.config)
    except StudentError:
        return bench, chosen
    if quick.seconds(quick.config, rates)["lower blocks"] > ONCE * limit:
        return bench, chosen
    found = kept | fitting(quick, limit, given | set(kept))
    more = _images(planned(quick.config, found)) > _images(planned(bench.config, chosen))
    return (quick, found) if more else (bench, chosen)


def takes_moments(config: RunConfig) -> bool:
    """Return whether a run is over before it could be measured."""
    if config.train.head == "only":  # it isn't trained, but the teacher may be paid
        return False
    return _images(config) * ((config.student.image_size or 224) / 224) ** 2 < MOMENTS


def _images(config: RunConfig) -> int:
    """Return how many images of each domain a student is trained on, repeated ones counted again."""
    return sum(stage.steps * stage.batch_per_domain * stage.accumulate for stage in _trained(config).values())


def _given(settings: Mapping[str, Any], preset: str, config: RunConfig) -> set[str]:
    """Return the names of the settings that a plan doesn't touch."""
    given = {name for name, value in flat(settings).items() if value is not None}
    given |= set(flat(recipe(preset, config.stages, config.student.name)))
    if config.teacher.views or has_tower(config, task_of(config)):
        given.add("student.image_size")  # views are of the student's size, and a tower has one
    return given


def _trained(config: RunConfig) -> dict[str, StageConfig]:
    """Return the settings of the stages that train on images, not on features computed once; by stage."""
    if config.train.head == "only":
        return {}
    keys = {stage.key for stage in task_of(config).stages if stage.trains != "projector"}
    return {key: config.stages[key] for key in config.stages if key in keys}


def _name(key: str) -> str:
    return f"stages.{key}.steps"


def _steps(settings: StageConfig, domains: int) -> str:
    return f"{settings.steps:,} steps of {settings.batch_per_domain * domains * settings.accumulate} images"


def _rungs(bench: Bench, given: set[str]) -> Iterator[tuple[int, bool, float]]:
    """Yield (image size, whether batches are halved, smallest share of the steps), what costs least accuracy first."""
    own = bench.size_of(bench.config)
    sizes = [own]
    if "student.image_size" not in given:
        sizes += [size for size in SIZES if size < own and bench.fits(size)]
    steps = max((stage.steps for stage in _trained(bench.config).values()), default=FEWEST)
    fewest = min(1.0, FEWEST / steps)
    large = [size for size in sizes if size >= ENOUGH] or sizes[:1]
    yield from ((size, False, 1.0) for size in large)
    yield large[-1], True, 1.0
    yield large[-1], True, fewest
    yield from ((size, True, fewest) for size in sizes if size < large[-1])
    yield sizes[-1], True, 0.0


def fitting(bench: Bench, limit: float, given: set[str]) -> Tree:
    """Return the settings that make a run fit in a limit, in seconds, by dotted name; none, if it does as it is."""
    chosen: Tree = {}
    for size, halved, share in _rungs(bench, given):
        chosen = _at(bench, size, given, halved=halved)
        config = planned(bench.config, chosen)
        if _scale(bench, config, bench.guess(size), limit, given) < 0.8 * share:  # not worth a measurement
            continue
        rates = bench.rates(size, config)
        scale = _scale(bench, config, rates, limit, given)
        if scale >= min(share, 1.0):
            break
    if scale < 1:
        for key, stage in _trained(config).items():
            if _name(key) not in given:
                chosen[_name(key)] = max(10, int(stage.steps * scale) // 10 * 10)
    config = planned(bench.config, chosen)
    for key, stage in _trained(config).items():
        if chosen and f"stages.{key}.eval_every" not in given:
            chosen |= _validations(key, stage, rates.validation, _step(stage, rates))
    return chosen


def _at(bench: Bench, size: int, given: set[str], *, halved: bool) -> Tree:
    chosen: Tree = {} if size == bench.size_of(bench.config) else {"student.image_size": size}
    for key, stage in _trained(bench.config).items():
        if halved and stage.batch_per_domain > 1 and f"stages.{key}.batch_per_domain" not in given:
            chosen[f"stages.{key}.batch_per_domain"] = stage.batch_per_domain // 2
    return chosen


def _scale(bench: Bench, config: RunConfig, rates: Rates, limit: float, given: set[str]) -> float:
    """Return by how much the steps that may change have to be multiplied to fit; at most 1."""
    free = {key: stage for key, stage in _trained(config).items() if _name(key) not in given}
    of_steps = bench.passes * sum(stage.steps * _step(stage, rates) for stage in free.values())
    rest = sum(bench.seconds(config, rates).values()) - of_steps
    return min(1.0, max(0.0, limit - rest) / of_steps) if of_steps else 1.0


def _step(stage: StageConfig, rates: Rates) -> float:
    """Return the seconds of a step, of all its micro-batches."""
    return stage.accumulate * rates.step(stage.batch_per_domain)


def _validations(key: str, stage: StageConfig, validation: float, step: float) -> Tree:
    """Return how often to evaluate, where the default would take more than its share of the time."""
    most = VALIDATING * stage.steps * step / max(validation, 1e-9)
    return {} if most >= 10 else {f"stages.{key}.eval_every": math.ceil(stage.steps / max(2, int(most)))}


def _longer(bench: Bench, queries: float, limit: float) -> str:
    """Return a line on what the settings would do without a limit."""
    config = bench.config
    steps = ", ".join(_steps(stage, bench.domains) for stage in _trained(config).values())
    size = bench.size_of(config)
    whole = duration(queries + sum(bench.seconds(config, bench.guess(size)).values()))
    return f"for {limit:g} min; the full recipe ({size} px, {steps}) takes {whole}"
