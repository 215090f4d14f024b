"""A method's stage on images, before its first step, on made-up batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vl2v.config import StageConfig, TrainConfig
from vl2v.embeddings.session import TeacherTargets
from vl2v.methods import Stage, Targets
from vl2v.methods.base import find_method
from vl2v.runs.measure import MadeUpBatches
from vl2v.students.backbone import pretrained_backbone
from vl2v.students.student import Student, new_projector
from vl2v.training.batches import Batches
from vl2v.training.learner import StageWork, Validation
from vl2v.training.loop import Trainer
from vl2v.training.stage import StageRun

DIM, CLASSES, DOMAINS, EACH = 16, 3, 3, 4


@dataclass(frozen=True)
class PartlyLabelled:
    """Batches whose last domain has no labels."""

    made: MadeUpBatches

    def between(self, start: int, stop: int) -> Iterator[tuple[Tensor, Targets]]:
        for x, targets in self.made.between(start, stop):
            labels = targets.labels.clone()
            labels[-EACH:] = -1
            yield x, replace(targets, labels=labels)


def begun(method: str, folder: Path) -> tuple[StageRun, Batches]:
    """Return a method's stage on images before its first step, and its batches."""
    kind = find_method(method)
    task = kind().with_chosen(dict.fromkeys(kind().automatic, 0.5))
    stage: Stage = next(stage for stage in task.stages if stage.trains != "projector")
    torch.manual_seed(0)
    backbone, spec = pretrained_backbone("test_efficientnet", "none", image_size=32)
    projector: torch.nn.Module = new_projector(256, CLASSES if kind.head == "linear" else DIM, 0)
    if kind.head == "stacked":
        projector = torch.nn.Sequential(new_projector(256, DIM, 0), new_projector(DIM, CLASSES, 1))
    student = Student(backbone, projector, spec, "linear" if kind.head == "stacked" else kind.head)
    trainer = Trainer(folder, TrainConfig(accelerator="cpu", precision="fp32"), 0, alone=True)
    trainer.prepare(student)
    like = TeacherTargets(torch.zeros(0).long().numpy(), scale=10.0)
    made = MadeUpBatches((32, 32, 3), DOMAINS, EACH, CLASSES, DIM, kind.anchors, like)
    batches = PartlyLabelled(made) if kind.queries == "images" else made
    settings = StageConfig(steps=1, lr=1e-3, batch_per_domain=EACH)
    auxiliary = stage.auxiliary(student, DIM) if stage.auxiliary else None
    nothing = Validation(list, torch.zeros(0), None, 1.0)
    run = StageRun(trainer, StageWork(stage, settings, batches, nothing), student, 0, auxiliary, last=True)
    run.train_mode()  # batch norms in eval mode
    return run, batches
