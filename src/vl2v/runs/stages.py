"""A stage's batches and validation, made from everything that a run has."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from vl2v.config import RunConfig
from vl2v.embeddings.plan import Views, enough_for
from vl2v.embeddings.session import TeacherTargets
from vl2v.errors import ConfigError, DataError
from vl2v.methods import Stage, Task, task_of
from vl2v.names import listed
from vl2v.runs.datasets import Sources
from vl2v.runs.features import (
    CACHED,
    Features,
    Indices,
    SharedCache,
    backbone_name,
    cached_activations,
    rows_of,
    stage_name,
)
from vl2v.runs.folder import Run
from vl2v.runs.settings import retrains
from vl2v.session import derive
from vl2v.students.student import Student
from vl2v.training.batches import (
    DomainBalancedSampler,
    FeatureBatches,
    PixelBatches,
    Renderer,
    Rendering,
    clean_pixels,
    viewed_pixels,
)
from vl2v.training.device import lacks_compiler, own_part, put_together
from vl2v.training.learner import StageWork, Validation
from vl2v.training.loop import Trainer

ACTIVATIONS = "activations"  # folder of a run that trains the upper blocks only, until it ends
SHARED = 2**15  # images, or views of them, whose activations other runs find, too: in a cache that nobody clears


@dataclass(frozen=True)
class RunStages:
    """Makes a stage's batches and validation from everything a run has."""

    run: Run
    student: Student
    sources: Sources
    targets: TeacherTargets
    views: Views
    trainer: Trainer
    features: Features
    probabilities: Tensor | None = None
    steps: int | None = None  # of the last stage, where validation has chosen them
    start: str = field(init=False, default="")  # of `train.quick`: the backbone's name before a checkpoint is loaded

    def __post_init__(self) -> None:
        if self.run.config.train.quick != "off":
            object.__setattr__(self, "start", backbone_name(self.student, self.trainer.fabric.precision, ""))

    def of(self, stage: Stage) -> StageWork:
        """Return what a stage needs to run."""
        config = self.run.config
        cached = stage.trains == "projector" and not config.published.align_through_backbone
        settings = config.stages[stage.key]
        if config.train.steps == "auto" and stage.trains != "projector":
            every = settings.eval_every or max(1, min(100, settings.steps // 10))
            settings = settings.model_copy(update={"schedule": "constant", "eval_every": every})
        if self.steps is not None and stage.name == task_of(config).stages[-1].name:
            settings = settings.model_copy(update={"steps": self.steps})
        targets = self.targets
        groups = self.sources.groups(targets.queried(self.sources.split.unlabelled))
        seed, part = derive(config.seed, stage.name), self.trainer.part
        sampler = DomainBalancedSampler(groups, settings.batch_per_domain, seed, part)
        if cached:
            return StageWork(stage, settings, self._feature_batches(sampler), self._validation(cached=True))
        if config.train.quick != "off":
            return StageWork(stage, settings, self._activation_batches(sampler), self._quick_validation())
        return StageWork(stage, settings, self._pixel_batches(sampler, targets), self._validation(cached=False))

    def share(self, shared_cache: SharedCache, stage: Stage, held: ExitStack) -> Callable[[int], None] | None:
        """Start after a first stage that another run went through; else return what saves ours for others.

        Until then the stage is locked: others wait for it. A resumed run waits for none.

        Args:
            shared_cache: where first stages are.
            held: as long as the stage is.
        """
        folder, targets, split = self.run.folder, self.targets, self.sources.split
        learnt = hashlib.sha256(b"".join(self.sources.audit.contents))
        for table in (targets.labels, targets.images, targets.texts, split.train, split.val):
            learnt.update(b"" if table is None else np.ascontiguousarray(table).tobytes())
        for group in self.sources.groups(targets.queried(split.unlabelled)):
            learnt.update(hashlib.sha256(group.tobytes()).digest())
        name = stage_name(self.run.config, stage, self.student, f"{learnt.hexdigest()} {targets.scale}")
        if name is None or targets.online is not None:
            return None
        if not (folder / "checkpoints").exists():
            held.enter_context(shared_cache.alone(name))
            if shared_cache.take_stage(name, folder):
                held.close()
                return None

        def ended(number: int) -> None:
            if number == 0:
                shared_cache.put_stage(name, folder)
                held.close()

        return ended

    def _pixel_batches(self, sampler: DomainBalancedSampler, targets: TeacherTargets) -> PixelBatches:
        spec = self.student.spec
        data = self.run.config.data
        renderer = Renderer(
            self.sources.dataset,
            self.sources.audit.sha256,
            self.views,
            spec.image_size,
            sampler.seed,
            spec.fit,
            enough_for(spec.image_size) if data.shrink else 0,
        )
        pinned = self.trainer.fabric.device.type == "cuda"
        return PixelBatches(sampler, renderer, targets, data.processes, pinned)

    def _feature_batches(self, sampler: DomainBalancedSampler) -> FeatureBatches:
        """Pass the images (with K views: each view of each) through the frozen backbone once."""
        images = np.unique(np.concatenate(sampler.groups))
        contents = self.sources.audit.sha256
        views: list[Rendering | None] = [(self.views, contents, 1 + k) for k in range(self.views.k)] or [None]
        table = torch.stack([self.features.of(images, view) for view in views], 1)
        numbers = np.arange(len(views)) + (1 if self.views.k else 0)
        return FeatureBatches(
            sampler, table, self.targets, rows_of(images, self.sources.dataset), numbers, sampler.seed
        )

    def _activation_batches(self, sampler: DomainBalancedSampler) -> FeatureBatches:
        """Pass fixed views of the images, the teacher's if it has any, through the backbone's lower blocks once."""
        config, spec = self.run.config, self.student.spec
        images, contents = np.unique(np.concatenate(sampler.groups)), self.sources.audit.sha256
        own = Views(
            config.train.quick_views,
            derive(config.seed, "quick views"),
            spec.image_size,
            spec.fit,
            shrink=config.data.shrink,
        )
        views = self.views if self.views.k else own
        numbers = np.arange(views.k) + 1 if self.views.k else np.zeros(views.k, np.int64)
        pixels = partial(viewed_pixels, self.sources.dataset, images, views, contents, workers=config.data.processes)
        table = self._cached_activations("training", images, views.names[1:], pixels)
        table = table.view(len(images), views.k, *table.shape[1:])
        return FeatureBatches(
            sampler, table, self.targets, rows_of(images, self.sources.dataset), numbers, sampler.seed
        )

    def _cached_activations(
        self, name: str, images: Indices, views: Sequence[str], pixels: Callable[[], Iterable[Tensor]]
    ) -> Tensor:
        """Return the activations of images in some views, image by image; shared with other runs where they are few."""
        fabric, rows, shared = self.trainer.fabric, len(images) * len(views), self.features.shared_cache
        make = partial(cached_activations, self.student, pixels, fabric, rows=rows, progress=self.trainer.progress)
        if shared is None or rows > SHARED:
            return make(file=self.trainer.folder / ACTIVATIONS / f"{name}.f16")
        assert self.student.split is not None
        contents = hashlib.sha256(b"".join(self.sources.audit.contents[image] for image in images)).hexdigest()
        about = " ".join([self.student.split.cut, *views, contents])
        key = hashlib.sha256(f"{self.start} {about}".encode()).hexdigest()[:24]
        with shared.alone(key):
            return make(file=shared.folder / ACTIVATIONS / f"{key}.f16")

    def _quick_validation(self) -> Validation:
        images, spec = self.sources.split.val, self.student.spec
        pixels = partial(
            clean_pixels,
            self.sources.dataset,
            images,
            spec.image_size,
            workers=self.run.config.data.processes,
            fit=spec.fit,
        )
        table = self._cached_activations("validation", images, ["clean"], pixels)
        return self._scored(images, lambda: table.split(64))

    def _validation(self, *, cached: bool) -> Validation:
        images = self.sources.split.val
        batches: Callable[[], Iterable[Tensor]]
        together = None
        if cached:
            features = self.features.of(images)
            batches = lambda: [features]  # noqa: E731
        else:
            size, workers = self.student.spec.image_size, self.run.config.data.processes
            own = own_part(self.trainer.fabric, images)
            pixels = partial(clean_pixels, self.sources.dataset, own, size, workers=workers, fit=self.student.spec.fit)
            held = cache(lambda: [x.clone() for x in pixels()])  # out of the loader's shared memory
            batches = held if len(own) * size**2 * 3 <= CACHED else pixels
            together = partial(put_together, self.trainer.fabric, total=len(images))
        return self._scored(images, batches, together)

    def _scored(
        self,
        images: Indices,
        batches: Callable[[], Iterable[Tensor]],
        together: Callable[[Tensor], Tensor] | None = None,
    ) -> Validation:
        texts = self.targets.texts if self.student.head == "text" else None
        labels = torch.from_numpy(self.sources.dataset.labels[images])
        return Validation(
            batches,
            labels if self.probabilities is None else self.probabilities,
            None if texts is None else torch.from_numpy(texts),
            self.targets.scale,
            together,
        )


def check_classes(task: Task, sources: Sources) -> list[str]:
    """Return a line about classes of which the split leaves no image to train on; refuse what can't be learnt at all.

    Raises:
        DataError: a head of the student's own could never predict such a class.
    """
    if not sources.labelled:
        return []
    missing = sources.others
    if missing and task.head != "text":
        raise DataError(
            f"{sources.dataset.root}: no source domain has images of {', '.join(missing[:5])}, so that {task.name} "
            "can't learn it; take adip, which knows a class by its text, or move its images out of the data"
        )
    names = sources.dataset.classes
    learnt = set(sources.dataset.labels[sources.split.train].tolist())
    unlearnt = [name for i, name in enumerate(names) if i not in learnt]
    if not unlearnt:
        return []
    found = f"the split puts every image of {listed(unlearnt)} into validation, and leaves none to train on"
    if task.head == "text":
        return [f"{found}: the student knows it by its text alone"]
    return [
        f"{found}: {task.name} could never predict it; add images, set another data.split_seed, or take adip, which "
        "knows a class by its text"
    ]


def check_trainable(config: RunConfig, devices: int, device: str = "cpu") -> None:
    """Refuse what trains nothing, or can't be trained on so many devices of a kind, before images are read.

    Raises:
        ConfigError: it can't.
    """
    task = task_of(config)
    if not task.stage_defaults:
        raise ConfigError(f"method {config.method}: trains no student; it is a row of `vl2v benchmark`")
    if retrains(config, task):
        if config.train.swad:
            raise ConfigError("train.swad: doesn't go with training once more; set train.retrain='off'")
        if devices > 1:
            raise ConfigError("train.retrain: a run on several devices isn't trained once more; set it to 'off'")
    if config.train.compile:
        why = "cached activations (train.quick) aren't compiled; leave one of the two out" * (
            config.train.quick != "off"
        )
        why = why or "a run on several devices isn't compiled" * (devices > 1) or lacks_compiler(device)
        if why:
            raise ConfigError(f"train.compile: {why}")
    if devices == 1:
        return
    if config.train.head == "start":
        raise ConfigError("train.head = 'start': is fitted on one device; start it without torchrun")
    if config.train.quick != "off":
        raise ConfigError(f"train.quick = {config.train.quick!r}: trains on one device; start it without torchrun")
    for stage in task.stages:
        per_domain = config.stages[stage.key].batch_per_domain
        if stage.pairs:
            raise ConfigError(f"method {config.method}: its loss is of a whole batch at once; train it on one device")
        if per_domain % devices:
            raise ConfigError(
                f"stages.{stage.key}.batch_per_domain = {per_domain}: {devices} devices can't have equal parts of it; "
                f"use {-(-per_domain // devices) * devices}"
            )
        if config.student.batch_norm == "train" and stage.trains != "projector":
            raise ConfigError(
                "student.batch_norm = 'train': its statistics are of a whole batch; use 'eval', or one device"
            )
