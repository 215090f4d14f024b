"""What a stage costs on this machine, in seconds and bytes of memory: real steps on made-up images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vl2v.config import StageConfig
from vl2v.embeddings.targets import TeacherTargets
from vl2v.methods import Stage, Targets
from vl2v.students.student import Student, evaluating
from vl2v.training.batches import batch_targets
from vl2v.training.loop import Trainer
from vl2v.training.stage import StageRun, StageWork, Validation


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
    regularizer = stage.regularizer(student) if stage.regularizer else None
    run = StageRun(trainer, StageWork(stage, settings, batches, nothing), student, 0, regularizer, last=True)
    return float(np.median(run.timed(steps + 1)[1:]))


def seconds_an_image(student: Student, example: Tensor | None = None, count: int = 16) -> float:
    """Return how long the forward pass of an image takes, in batches; of `example` [1, ...], by default of pixels."""
    size = student.spec.image_size
    one = torch.zeros(1, size, size, 3, dtype=torch.uint8) if example is None else example
    images = one.expand(count, *one.shape[1:]).contiguous()
    with evaluating(student):
        student.features(images[:2])
        start = time.perf_counter()
        student.features(images).cpu()
        return (time.perf_counter() - start) / count
