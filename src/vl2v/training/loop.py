"""The loop that all methods share: one stage after another, on Lightning Fabric.

Nothing in it depends on how far a process got: batches, learning rates and draws are functions of the seed and
the step, and everything else is in the checkpoint. A run that is killed ends with the weights of one that wasn't.

Its metrics are one JSON object a line; other trackers can have them, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from vl2v.config import TrainConfig
from vl2v.errors import ConfigError, RunError, need_extra, writing
from vl2v.io import write_text
from vl2v.methods import Averager, Stage
from vl2v.methods.averaging import Scores
from vl2v.session import Progress, derive, silent
from vl2v.students.convolutions import quick_convolutions
from vl2v.students.student import Student
from vl2v.system import reuse_freed_memory
from vl2v.training.device import Device, OneDevice, launched_fabric, refuse_scalars
from vl2v.training.learner import Checkpoint, StageWork, load, load_checkpoint, under
from vl2v.training.stage import StageRun

Row = dict[str, Any]
OnMetrics = Callable[[Row], None]
Log = Callable[[dict[str, float], int], None]
Opened = tuple[Log, Callable[[], None]]  # what logs values at a step, and what ends it


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
        student.to(memory_format=student.layout)
        if self.config.compile:
            student.backbone.compile()
        elif self.fabric.device.type == "cpu" and student.layout is torch.channels_last:
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


def _tensorboard(folder: Path) -> Opened:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log, writer.close


def _wandb(folder: Path) -> Opened:
    run = need_extra("wandb", "wandb").init(project="vl2v", name=folder.resolve().name, dir=str(folder))
    # steps begin anew with each stage, and its own have to rise
    return (lambda values, step: run.log({**values, "step": step})), run.finish


def _mlflow(folder: Path) -> Opened:
    mlflow = need_extra("mlflow", "mlflow")
    mlflow.set_experiment("vl2v")
    mlflow.start_run(run_name=folder.resolve().name)
    return (lambda values, step: mlflow.log_metrics(values, step=step)), mlflow.end_run


def _trackio(folder: Path) -> Opened:
    run = need_extra("trackio", "trackio").init(project="vl2v", name=folder.resolve().name)
    return (lambda values, step: run.log({**values, "step": step})), run.finish


TRACKERS: dict[str, Callable[[Path], Opened]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
    "tensorboard": _tensorboard,
}


def send(row: Row, log: Log) -> None:
    """Send a row's measures under the names of its stage."""
    log({f"{row['stage']}/{key}": value for key, value in row.items() if isinstance(value, float)}, row["step"])


@contextmanager
def tracking(name: str, folder: Path) -> Iterator[OnMetrics]:
    """Yield what sends rows of metrics to a tool; it is opened with the first row and closed after the block.

    Args:
        name: of `TRACKERS`.
        folder: of the run; its name is the run's name there.

    Raises:
        ConfigError: no such tool.
        MissingExtra: it isn't installed.
    """
    if name not in TRACKERS:
        raise ConfigError(f"--log {name}: choose one of {', '.join(TRACKERS)}")
    need_extra(name, name)
    opened: list[Opened] = []

    def on_metrics(row: Row) -> None:
        if not opened:
            opened.append(TRACKERS[name](folder))
        send(row, opened[0][0])

    try:
        yield on_metrics
    finally:
        for _, close in opened:
            close()


class MetricsLog:
    """Rows of numbers, each with its `stage` and `step`, in `metrics.jsonl`.

    Args:
        tensorboard: write event files to `tensorboard/`, too.

    Attributes:
        on_metrics: is called with every row, too.

    Raises:
        MissingExtra: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self.path = folder / "metrics.jsonl"
        self.tensorboard = tensorboard
        self.on_metrics: OnMetrics | None = None
        if tensorboard:
            need_extra("tensorboard", "tensorboard")

    @cached_property
    def _tensorboard(self) -> Log:
        """Made with the first row: a folder that holds anything before is no new run's."""
        return TRACKERS["tensorboard"](self.path.parent)[0]

    def rewind(self, done: list[str], stage: str, step: int) -> None:
        """Drop the rows that came after the checkpoint at `step` of `stage`; `done` stages are before it."""
        if not self.path.is_file():
            return
        earlier = [
            row for row in self.rows() if row["stage"] in done or (row["stage"], row["step"] <= step) == (stage, True)
        ]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in earlier))

    def write(self, row: Row) -> None:
        """Append a row.

        Raises:
            RunError: the disk is full, or the folder can't be written to.
        """
        with writing(self.path, RunError), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.tensorboard:
            send(row, self._tensorboard)
        if self.on_metrics is not None:
            self.on_metrics(row)

    def best_step(self, stage: str) -> int:
        """Return the step of a stage whose weights validate best, as the loop prefers them."""
        rows = [row for row in self.rows() if row["stage"] == stage]
        best = max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"], -row["step"]))
        return int(best["step"])

    def rows(self) -> list[Row]:
        """Return all rows; a last line that was cut off by a crash is left out."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows
