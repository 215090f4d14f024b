"""Metrics of a run: one JSON object a line, and TensorBoard if wanted."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

from vl2v.errors import RunError, need_extra, writing
from vl2v.io import write_text
from vl2v.training.trackers import TRACKERS, Log, OnMetrics, Row, send


class MetricsLog:
    """Rows of numbers, each with its `stage` and `step`, in `metrics.jsonl`.

    Args:
        folder: the run folder.
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
