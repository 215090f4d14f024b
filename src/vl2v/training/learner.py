"""What a stage trains, with which optimiser, on which batches, and what validates it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vl2v.config import StageConfig
from vl2v.methods import Output, Stage
from vl2v.methods.averaging import Scores
from vl2v.students.student import Student, as_logits, evaluating
from vl2v.training.batches import Batches
from vl2v.training.device import Adam, AdamW


class Learner(nn.Module):
    """A student, with the auxiliary module of its stage if there is one.

    In training mode it returns what the loss needs, in eval mode the student's own output.

    Args:
        auxiliary: see `Stage.auxiliary`.
    """

    def __init__(self, student: Student, auxiliary: nn.Module | None = None) -> None:
        super().__init__()
        self.student = student
        self.auxiliary = auxiliary

    def forward(self, x: Tensor, *, features_only: bool = False) -> Tensor | Output:
        """Return the output of pixels [n, s, s, 3] or features [n, p]; or the features alone."""
        if features_only:
            return self.student.features(x)
        if not self.training:
            out: Tensor = self.student(x)
            return out
        features = x.float() if x.ndim == 2 else self.student.features(x)
        output = self._output(features)
        return output if self.auxiliary is None else output._replace(auxiliary=self.auxiliary(x, output))

    def _output(self, features: Tensor) -> Output:
        projector = self.student.projector
        with torch.autocast(features.device.type, enabled=False):
            if isinstance(projector, nn.Sequential):
                embedding = projector[0](features)
                return Output(features, projector[1](embedding), embedding)
            return Output(features, projector(features))


@dataclass(frozen=True)
class Validation:
    """The source domains' validation images.

    Attributes:
        batches: called anew for each evaluation; yields the student's input, pixels or cached features.
        labels: of all of them, in order: classes [n], or probabilities [n, C].
        texts: T [C, d] for students with a text head.
        together: of several processes that each see a part: makes all outputs of this one's.
    """

    batches: Callable[[], Iterable[Tensor]]
    labels: Tensor
    texts: Tensor | None
    scale: float
    together: Callable[[Tensor], Tensor] | None = None

    def score(self, student: nn.Module) -> Scores:
        """Return accuracy (0 to 1) and mean cross-entropy."""
        with evaluating(student):
            outputs = torch.cat([student(x).float().cpu() for x in self.batches()])
        if self.together is not None:
            outputs = self.together(outputs)
        logits = as_logits(outputs, self.texts, self.scale)
        loss = nn.functional.cross_entropy(logits, self.labels)
        labels = self.labels if self.labels.ndim == 1 else self.labels.argmax(-1)
        return Scores((logits.argmax(-1) == labels).double().mean().item(), loss.item())


@dataclass(frozen=True)
class StageWork:
    """A stage with all that it needs to run."""

    stage: Stage
    settings: StageConfig
    batches: Batches
    validation: Validation


def learning_rate(settings: StageConfig, step: int) -> float:
    """Return the learning rate of a step (from 0): linear warm-up, then constant or a cosine to zero."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


def set_trainable(student: Student, trains: str) -> None:
    """Let what a stage trains have gradients, and nothing else (`Stage.trains`)."""
    student.backbone.requires_grad_(trains != "projector")
    if student.split is not None and trains != "projector":
        student.freeze_below_cut()
    student.projector.requires_grad_(trains != "backbone")


def new_optimizer(groups: list[dict[str, Any]], settings: StageConfig) -> torch.optim.Optimizer:
    """Return the optimiser of groups of weights; each group's learning rate is `rate` times the settings'."""
    kinds = {"adam": Adam, "adamw": AdamW}
    kind: type[Adam] = kinds[settings.optimizer]
    return kind(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
