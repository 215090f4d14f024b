"""A run's metrics in other tools: each gets a row as it is written, under names such as `distill/loss`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vl2v.errors import ConfigError, need_extra

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
