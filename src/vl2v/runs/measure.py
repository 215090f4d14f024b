"""What a run's parts cost on this machine: its student's steps, reading images, the teacher's queries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vl2v.config import RunConfig, StageConfig
from vl2v.data.augment import domainbed_augment, evaluation_view
from vl2v.embeddings.plan import enough_for
from vl2v.embeddings.session import TeacherTargets
from vl2v.errors import StudentError
from vl2v.io import temporary_directory
from vl2v.methods import Stage, Targets, Task
from vl2v.runs.datasets import Sources
from vl2v.runs.features import CACHED
from vl2v.runs.query import queries_online
from vl2v.runs.settings import has_tower, refits, retrains
from vl2v.runs.start import new_backbone, new_student
from vl2v.runs.teaching import Teaching
from vl2v.students.backbone import image_size_of, output_width
from vl2v.students.student import Student, evaluating
from vl2v.system import processors, resident_bytes
from vl2v.teachers import online_teacher, tower_of
from vl2v.teachers.protocol import Teacher
from vl2v.training.batches import batch_targets, read_image
from vl2v.training.learner import SLACK, WEIGHT, StageWork, Validation, activation_bytes, images_at_once
from vl2v.training.loop import Trainer
from vl2v.training.stage import StageRun


@dataclass(frozen=True)
class MadeUpBatches:
    """Batches of random pixels, or features, with random targets: as heavy as real ones, from no file.

    Attributes:
        shape: of an image's input, (s, s, 3) or (p,).
        groups: domains in a batch.
        classes: C.
        dim: d of the teacher's space; 0: no teacher is queried.
        anchors: whether there are class embeddings for each domain.
        like: has the online teacher, if there is one, and the scale.
        cached: whether the input is activations of the lower blocks, not pixels.
    """

    shape: tuple[int, ...]
    groups: int
    per_domain: int
    classes: int
    dim: int
    anchors: bool
    like: TeacherTargets
    cached: bool = False

    def between(self, start: int, stop: int) -> Iterator[tuple[Tensor, Targets]]:
        """Yield batches of groups x per_domain images."""
        rng = np.random.default_rng(0)
        n = self.groups * self.per_domain
        table = TeacherTargets(
            rng.integers(self.classes, size=n),
            _unit(rng, n, 1, self.dim).astype(np.float16) if self.dim else None,
            _unit(rng, self.classes, self.dim) if self.dim else None,
            self.like.scale,
            domains=np.repeat(np.arange(self.groups), self.per_domain),
            anchors=_unit(rng, self.classes, self.groups, self.dim) if self.anchors else None,
        )
        for _ in range(start, stop):
            pixels = torch.from_numpy(rng.integers(256, size=(n, *self.shape), dtype=np.uint8))
            targets = batch_targets(table, np.arange(n), np.zeros(n, np.int64))
            if self.like.online is not None and pixels.ndim == 4 and not self.cached:
                targets = replace(targets, images=self.like.online(pixels))
            if self.cached:
                pixels = pixels.half() / 128
            yield pixels if pixels.ndim == 4 or self.cached else pixels.float(), targets


def _unit(rng: np.random.Generator, *shape: int) -> Any:
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def seconds_a_step(
    trainer: Trainer, student: Student, stage: Stage, settings: StageConfig, batches: MadeUpBatches, steps: int
) -> float:
    """Return how long a step takes: the median of some, after one that warms up. The student's weights change."""
    nothing = Validation(list, torch.zeros(0), None, 1.0)
    auxiliary = stage.auxiliary(student, batches.dim) if stage.auxiliary else None
    run = StageRun(trainer, StageWork(stage, settings, batches, nothing), student, 0, auxiliary, last=True)
    return float(np.median(run.timed(steps + 1)[1:]))


def seconds_an_image(student: Student, example: Tensor | None = None) -> float:
    """Return how long the forward pass of an image takes, in batches; of `example` [1, ...], by default of pixels."""
    size = student.spec.image_size
    one = torch.zeros(1, size, size, 3, dtype=torch.uint8) if example is None else example
    images = one.expand(SAMPLE, *one.shape[1:]).contiguous()
    with evaluating(student):
        student.features(images[:2])
        start = time.perf_counter()
        student.features(images).cpu()
        return (time.perf_counter() - start) / SAMPLE


SAMPLE = 16  # images that are read to see how long it takes
LONGEST = 3.0  # seconds that a measured step may take; larger batches are measured in part
AVERAGED = 5  # evaluations of an averager that chooses
AHEAD = 4  # batches that a worker decodes ahead
WRITTEN = 3e8  # bytes of a checkpoint a second
BESIDE = 5e8  # bytes, for all that isn't a step: passes without gradients, fits in closed form, the export
STARTING = 20.0  # seconds, for all that isn't measured: most of them are for the export that `vl2v distill` keeps


@dataclass(frozen=True)
class Rates:
    """What things take at one image size, in seconds.

    Attributes:
        image: of training, an image.
        overhead: a step besides its images.
        feature: the forward pass of an image.
        read: an image that is augmented for training, in one process.
        clean: one that is evaluated.
        validation: of the source domains' validation images.
        groups: domains in a batch.
        threads: that a step computes with.
        workers: decoding processes.
        viewed: an image that is augmented for the cache of activations, in one process.
    """

    image: float
    overhead: float
    feature: float
    read: float
    clean: float
    validation: float
    groups: int
    threads: int
    workers: int
    viewed: float = 0.0

    def step(self, per_domain: int) -> float:
        """Return the seconds of a step: reading and computing share the processors, where both use them."""
        n = per_domain * self.groups
        computing, reading = self.overhead + n * self.image, n * self.read
        if not self.workers:
            return computing + reading
        shared = (computing * self.threads + reading) / processors()
        return max(computing, reading / self.workers, shared)


class Bench:
    """Measures a run's parts, each once an image size.

    Args:
        images: how many there are with those of unseen domains.
        teaching: the queries.
        teacher: who is queried, or gives the tower.
        dim: d of the teacher's space.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        sources: Sources,
        images: int,
        teaching: Teaching,
        teacher: Teacher | None,
        dim: int,
    ) -> None:
        self.config = config
        self.task = task
        self.sources = sources
        self.teacher = teacher
        self.dim = dim
        self.teaching = teaching
        pool = sources.split.unlabelled
        labelled = len(sources.groups(pool[:0]))
        self.domains = max(1, labelled + min(teaching.unlabelled, len(sources.groups(pool)) - labelled))
        self.unseen = max(0, images - len(sources.split.val) - len(sources.training))
        self._rates: dict[int, Rates] = {}
        self._students: dict[int, Student] = {}
        self._cached: dict[str, float] = {}
        self._folder = temporary_directory()
        plain = config.train.model_copy(update={"compile": False})  # compiling takes longer than all measurements
        self.trainer = Trainer(
            Path(self._folder.name), plain, config.seed, batch_norm=config.student.batch_norm, alone=True
        )
        self.base = resident_bytes()
        self.quick = config.train.quick != "off"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is trained: nothing, where the last layer alone is fitted."""
        return () if self.config.train.head == "only" else self.task.stages

    @property
    def passes(self) -> int:
        """How many times it is trained (`train.retrain`)."""
        return 2 if self.stages and retrains(self.config, self.task) else 1

    @cached_property
    def tower(self) -> int:
        """The image size of the teacher's own tower; 0: the student isn't that."""
        if not has_tower(self.config, self.task) or self.teacher is None:
            return 0
        return tower_of(self.teacher)[1].image_size

    def size_of(self, config: RunConfig) -> int:
        """Return the student's image size."""
        return self.tower or image_size_of(config.student.name, config.student.image_size)

    def fits(self, size: int) -> bool:
        """Return whether the student takes images of a size."""
        try:
            return output_width(self.config.student.name, size) > 0
        except StudentError:
            return False

    @property
    def device(self) -> str:
        """What the student computes on, in words."""
        device = self.trainer.fabric.device
        if device.type == "cuda":
            return torch.cuda.get_device_name(device)
        if device.type != "cpu":
            return f"this machine ({device.type})"
        threads = torch.get_num_threads()
        return f"this CPU ({threads} core{'s' if threads > 1 else ''})"

    def rates(self, size: int, config: RunConfig) -> Rates:
        """Return what things take at an image size, measured at the first call."""
        if size not in self._rates:
            self._rates[size] = self._measured(size, config)
        return self._rates[size]

    def _measured(self, size: int, config: RunConfig) -> Rates:
        student = self._student(size)
        feature = seconds_an_image(student)
        read, clean = self._reading(size)
        viewed = read
        if self.quick:
            read = 0.0
        image = overhead = 0.0
        stage = next((stage for stage in self.stages if stage.trains != "projector"), None)
        if stage is not None:
            settings = config.stages[stage.key].model_copy(update={"accumulate": 1})
            one = self._step(student, settings, 1, steps=2)
            some = max(1, min(settings.batch_per_domain, int(LONGEST / one)))
            more = self._step(student, settings, some, steps=2) if some > 1 else one
            image = (more - one) / ((some - 1) * self.domains) if some > 1 else one / self.domains
            overhead = max(0.0, one - image * self.domains)
        val = len(self.sources.split.val)
        workers, threads = config.data.processes, torch.get_num_threads()
        again = clean / max(1, workers) if val * size**2 * 3 > CACHED and not self.quick else 0.0
        scored = seconds_an_image(student, self._example(student)) if self.quick else feature
        validation = val * (scored + again)
        return Rates(image, overhead, feature, read, clean, validation, self.domains, threads, workers, viewed)

    def _student(self, size: int) -> Student:
        """Return a student of an image size, on the device; the last one is cached."""
        if size not in self._students:
            self._students.clear()
            config = self.config
            if self.tower:
                assert self.teacher is not None
                base = tower_of(self.teacher, config.student.statistics)
            else:
                sized = config.student.model_copy(update={"image_size": size})
                base = new_backbone(config.model_copy(update={"student": sized}))
                config = config.model_copy(update={"student": sized})
            student = new_student(config, self.task, len(self.sources.dataset.classes), base, self.dim)
            self.trainer.prepare(student)
            if self.quick:
                student.cut(config.train.quick)
            self._students[size] = student
        return self._students[size]

    def _example(self, student: Student) -> Tensor | None:
        """Return the activations of an image, where steps learn from these; None: from pixels."""
        if student.split is None:
            return None
        size = student.spec.image_size
        with evaluating(student):
            return student.activations(torch.zeros(1, size, size, 3, dtype=torch.uint8)).cpu()

    def _step(self, student: Student, settings: StageConfig, per_domain: int, steps: int) -> float:
        stage = next(stage for stage in self.task.stages if stage.trains != "projector")
        example = self._example(student)
        shape = (student.spec.image_size,) * 2 + (3,) if example is None else tuple(example.shape[1:])
        return self._timed(student, stage, settings, per_domain, shape, steps)

    def _timed(
        self, student: Student, stage: Stage, settings: StageConfig, per_domain: int, shape: tuple[int, ...], steps: int
    ) -> float:
        online = queries_online(self.config) and self.teacher is not None and len(shape) == 3
        embed = online_teacher(self.config.teacher, self.teacher) if online and self.teacher is not None else None
        like = TeacherTargets(self.sources.dataset.labels, scale=10.0, online=embed)
        dim = self.dim if self.task.queries != "nothing" else 0
        classes = len(self.sources.dataset.classes)
        cached = self.quick and len(shape) > 1
        batches = MadeUpBatches(shape, self.domains, per_domain, classes, dim, self.task.anchors, like, cached)
        settings = settings.model_copy(update={"batch_per_domain": per_domain})
        return seconds_a_step(self.trainer, student, stage, settings, batches, steps)

    def _reading(self, size: int) -> tuple[float, float]:
        """Return the seconds of reading and augmenting an image, and of reading it as it is."""
        images = self.sources.training
        drawn = images[np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).astype(int)]
        data, augmenting, squeezing = self.config.data, 0.0, 0.0
        for seed, index in enumerate(drawn.tolist()):
            start = time.perf_counter()
            image = read_image(self.sources.dataset, index, enough_for(size) if data.shrink else 0)
            read = time.perf_counter()
            domainbed_augment(image, size, seed, data.fit)
            augmented = time.perf_counter()
            if data.shrink:
                image = read_image(self.sources.dataset, index)
            evaluation_view(image, size, data.fit)
            augmenting += augmented - start
            squeezing += time.perf_counter() - augmented + (0.0 if data.shrink else read - start)
        return augmenting / len(drawn), squeezing / len(drawn)

    def guess(self, size: int) -> Rates:
        """Return about what things take at an image size, by what was measured at the nearest one."""
        if not self._rates:
            self.rates(self.size_of(self.config), self.config)
        nearest = min(self._rates, key=lambda other: abs(other - size))
        share, rates = (size / nearest) ** 2, self._rates[nearest]
        scaled = {name: getattr(rates, name) * share for name in ("image", "feature", "validation")}
        return replace(rates, **scaled)

    def seconds(self, config: RunConfig, rates: Rates) -> dict[str, float]:
        """Return how many seconds each part of a run takes but the teacher's queries."""
        split, workers = self.sources.split, max(1, config.data.processes)
        val, training = len(split.val), len(split.train) + self.teaching.unlabelled
        viewed = rates.feature + rates.clean / workers
        seconds = {"features": self._passed(config) * viewed}
        if self.quick:
            views = config.teacher.views or config.train.quick_views
            once = val * viewed + training * views * (rates.feature + rates.viewed / workers)
            seconds["lower blocks"] = self.passes * once
        for stage in self.stages:
            settings = config.stages[stage.key]
            every = settings.eval_every or max(1, settings.steps // 10)
            if self.on_features(stage):
                spent = self.passes * settings.steps * self.cached_step(stage)
            else:
                validations = -(-settings.steps // every) + sum(AVERAGED for _ in stage.averagers)
                saving = WEIGHT * self.weights / WRITTEN
                spent = settings.steps * settings.accumulate * rates.step(settings.batch_per_domain)
                spent = self.passes * (spent + validations * (rates.validation + saving))
            seconds[stage.key] = seconds.get(stage.key, 0.0) + spent
        last = (2 * val + self.unseen) * viewed + self.unseen * rates.clean
        if refits(config, self.task):
            last += self.passes * (val + training) * viewed
        return {**seconds, "evaluation": last + STARTING}

    def _passed(self, config: RunConfig) -> int:
        """Return how many images, or views, pass through the backbone as it starts; the same ones pass once.

        A stage on features learns from views, if there are any, and each time that the student is trained; lambda, a
        head that starts in closed form and the selection of the images to query want clean images once.
        """
        val, labelled = len(self.sources.split.val), len(self.sources.split.train)
        images, views, passes = 0, 0, 1
        if any(self.on_features(stage) for stage in self.stages):
            images, views, passes = labelled + self.teaching.unlabelled, config.teacher.views, self.passes
        elif self.task.refits:
            images = labelled + self.teaching.unlabelled
        elif config.train.head == "start":
            images = labelled
        found = passes * (val + images * max(1, views)) if images else 0
        selecting = self.teaching.passed
        return found if selecting == images and not views else found + selecting

    def on_features(self, stage: Stage) -> bool:
        """Return whether a stage learns from features that are computed once."""
        return stage.trains == "projector" and not self.config.published.align_through_backbone

    def cached_step(self, stage: Stage) -> float:
        """Return the seconds of a step on features."""
        if stage.key not in self._cached:
            student = next(iter(self._students.values()))
            settings = self.config.stages[stage.key]
            shape = (student.width,)
            self._cached[stage.key] = self._timed(student, stage, settings, settings.batch_per_domain, shape, 5)
        return self._cached[stage.key]

    @cached_property
    def weights(self) -> int:
        """How many weights the student has."""
        return sum(weight.numel() for weight in next(iter(self._students.values())).parameters())

    def memory(self, config: RunConfig) -> int:
        """Return the bytes of memory that this process has at its height."""
        size = self.size_of(config)
        student, most = self._student(size), 0
        for stage in self.stages:
            if not self.on_features(stage):
                per_domain = config.stages[stage.key].batch_per_domain
                example = self._example(student)
                at_once = images_at_once(student, per_domain, self.domains, example)
                ahead = 0 if self.quick else per_domain * self.domains * size**2 * 3 * config.data.processes * AHEAD
                most = max(most, int(at_once * self.domains * activation_bytes(student, example) * SLACK) + ahead)
        beside = int(BESIDE) + min(CACHED, len(self.sources.split.val) * size**2 * 3)
        return self.base + WEIGHT * self.weights + most + beside
