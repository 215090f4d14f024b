"""The loop that all methods share: one stage after another, on Lightning Fabric.

Nothing in it depends on how far a process got: batches, learning rates and draws are functions of the seed and
the step, and everything else is in the checkpoint. A run that is killed ends with the weights of one that wasn't.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch

from vl2v.config import TrainConfig
from vl2v.methods import Averager, Stage
from vl2v.methods.averaging import Scores
from vl2v.session import Progress, derive, silent
from vl2v.students.convolutions import quick_convolutions
from vl2v.students.student import Student
from vl2v.system import reuse_freed_memory
from vl2v.training.device import Device, OneDevice, launched_fabric, refuse_scalars
from vl2v.training.learner import Checkpoint, StageWork, load, load_checkpoint, under
from vl2v.training.log import MetricsLog
from vl2v.training.stage import StageRun


class Trainer:
    """Runs stages one after another, and resumes where a killed run stopped.

    Args:
        folder: the run folder; checkpoints and metrics are in it.
        batch_norm: "eval" keeps batch-norm layers in eval mode while training.
        average: makes the averager over the steps of a stage that has none of its own, or None; called with the
            stage, and whether it is the last.
        progress: called after every step.
        alone: train in this process, even if it is one of several of a run.

    Attributes:
        checkpoint: the one that the first of several processes found; a process alone finds its own.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        seed: int,
        *,
        batch_norm: Literal["eval", "train"] = "eval",
        average: Callable[[Stage, bool], Averager | None] = lambda stage, last: None,
        progress: Progress = silent,
        alone: bool = False,
    ) -> None:
        self.folder = folder
        self.config = config
        self.seed = seed
        self.batch_norm = batch_norm
        self.average = average
        self.progress = progress
        self.checkpoint: Checkpoint | None = None
        self.fabric: Device = OneDevice(config) if alone else launched_fabric(config)
        if self.fabric.device.type == "cpu":
            reuse_freed_memory()
        self.log = MetricsLog(folder, tensorboard=config.tensorboard and self.fabric.is_global_zero)

    @property
    def part(self) -> tuple[int, int]:
        """(k, of n): which part of each batch is this process's."""
        return self.fabric.global_rank, self.fabric.world_size

    def prepare(self, student: Student) -> None:
        """Put the student to the device, in the layout and with the gradients that are quick there.

        Raises:
            ConfigError: it can't be sharded, and is to be.
        """
        refuse_scalars(self.fabric, student)
        student.to(self.fabric.device)
        student.to(memory_format=torch.channels_last)
        if self.config.compile:
            student.backbone.compile()
        elif self.fabric.device.type == "cpu":
            quick_convolutions(student.backbone, student.spec.image_size)

    def fit(
        self,
        student: Student,
        stages: Sequence[tuple[Stage, Callable[[], StageWork]]],
        ended: Callable[[int], None] | None = None,
        dim: int = 0,
    ) -> Scores:
        """Train the student in place through all stages.

        Args:
            student: as it starts; its weights are replaced by the checkpoint's where there is one.
            stages: each, and what makes the stage's work when its turn comes (cached features are computed
                from the weights that the student has by then).
            ended: called with the number of each stage once its checkpoint is written.
            dim: d of the teacher's space; 0 without a teacher.

        Returns:
            Validation scores of the weights it ends with.

        Raises:
            RunError: a loss that isn't finite, a full disk, checkpoints that are all corrupt.
        """
        checkpoint, self.checkpoint = self.checkpoint, None
        if self.fabric.world_size == 1:
            checkpoint = load_checkpoint(self.folder / "checkpoints")
        names = [stage.name for stage, _ in stages]
        torch.manual_seed(derive(self.seed, "auxiliary"))
        auxiliaries = [stage.auxiliary(student, dim) if stage.auxiliary else None for stage, _ in stages]
        first = 0
        if checkpoint is not None:
            for corrupt in checkpoint.passed_over:
                self.progress(corrupt, 1, 1, "")
            first = checkpoint.state["stage"]
            load(student, under("model/", checkpoint.tensors))
        if self.fabric.is_global_zero:
            step = checkpoint.state["step"] if checkpoint is not None else 0
            self.log.rewind(names[:first], names[first] if first < len(names) else "", step)
        self.prepare(student)
        for number in range(first, len(stages)):
            last = number == len(stages) - 1
            run = StageRun(self, stages[number][1](), student, number, auxiliaries[number], last=last)
            if checkpoint is not None:
                run.restore(checkpoint)
            checkpoint = run.train()
            if ended is not None and self.fabric.is_global_zero:
                ended(number)
        assert checkpoint is not None
        return Scores(*checkpoint.state["scores"])
