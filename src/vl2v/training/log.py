"""Metrics of a run: one JSON object a line, and TensorBoard if wanted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from vl2v.errors import ConfigError, RunError, need_extra, writing
from vl2v.io import write_text

Row = dict[str, Any]
OnMetrics = Callable[[Row], None]
Log = Callable[[dict[str, float], int], None]
Opened = tuple[Log, Callable[[], None]]  # what logs values at a step, and what ends it


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
