"""SWAD: dense averaging of weights over the valley of the validation loss.

Cha et al., "SWAD: Domain Generalization by Seeking Flat Minima", NeurIPS 2021, algorithm 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vl2v.methods.averaging import Averager, Scores, Weights


@dataclass
class Segment:
    """The mean of the weights of `count` consecutive steps, and the validation loss at their end."""

    mean: Weights
    count: int
    loss: float = float("inf")

    def add(self, weights: Mapping[str, Tensor], count: int = 1) -> None:
        """Take `count` steps' mean weights into the mean."""
        self.count += count
        for key, value in self.mean.items():
            value.lerp_(weights[key].detach().to(value), count / self.count)


class Swad(Averager):
    """Average every step's weights from the start to the end of the valley.

    The valley starts with the first of `n_converge` evaluations in a row of which the first is the lowest,
    and ends when none of `n_tolerance` evaluations in a row is under (1 + tolerance_ratio) times the mean
    loss of those that started it. The validation loss must be positive (cross-entropy).

    Args:
        n_converge: evaluations that start the valley (paper: N_s).
        n_tolerance: evaluations that end it (N_e).
        tolerance_ratio: r - 1 in the paper's notation.
        overlapping: the authors' oddity: segments reach back to the first step, not the last evaluation.
        restarts: steps after whose evaluation overlapping segments start anew.
    """

    def __init__(
        self,
        n_converge: int = 3,
        n_tolerance: int = 6,
        tolerance_ratio: float = 0.3,
        overlapping: bool = False,
        restarts: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.n_converge = n_converge
        self.n_tolerance = n_tolerance
        self.tolerance_ratio = tolerance_ratio
        self.overlapping = overlapping
        self.restarts = restarts
        self.steps = 0
        self.running: Segment | None = None
        self.pending: deque[Segment] = deque()
        self.valley: Segment | None = None
        self.threshold = float("inf")
        self.ended = False

    def step(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights after one optimiser step."""
        if self.ended:
            return
        self.steps += 1
        if self.running is None:
            self.running = Segment({key: torch.zeros_like(value) for key, value in weights.items()}, 0)
        self.running.add(weights)

    def evaluate(self, loss: float) -> None:
        """Close the segment of the steps since the last evaluation with the validation loss after them."""
        if self.ended or self.running is None:
            return
        mean = {key: value.clone() for key, value in self.running.mean.items()}
        self.pending.append(Segment(mean, self.running.count, loss))
        if not self.overlapping or self.steps in self.restarts:
            self.running = None
        if self.valley is None:
            self._look_for_start()
        else:
            self._absorb()

    def finish(self, trained: Weights, start: Weights, score: Callable[[Weights], Scores]) -> Weights:
        """Return the average; the trained weights before any evaluation."""
        average = self.average()
        return trained if average is None else average

    def average(self) -> Weights | None:
        """Return the averaged weights so far; without a valley the last segment's; None before any."""
        if self.valley is None:
            return self.pending[-1].mean if self.pending else None
        total = Segment({key: value.clone() for key, value in self.valley.mean.items()}, self.valley.count)
        rest = list(self.pending)
        while rest and min(segment.loss for segment in rest) <= self.threshold:
            segment = rest.pop(0)
            total.add(segment.mean, segment.count)
        return total.mean

    def _look_for_start(self) -> None:
        if len(self.pending) < self.n_converge:
            return
        losses = [segment.loss for segment in self.pending]
        first = self.pending.popleft()
        if losses[0] == min(losses):
            self.valley = first
            self.threshold = sum(losses) / len(losses) * (1 + self.tolerance_ratio)

    def _absorb(self) -> None:
        assert self.valley is not None
        while len(self.pending) >= self.n_tolerance:
            window = list(self.pending)[: self.n_tolerance]
            if min(segment.loss for segment in window) > self.threshold:
                self.ended = True
                self.pending.clear()
                return
            segment = self.pending.popleft()
            self.valley.add(segment.mean, segment.count)

    def state(self) -> tuple[dict[str, Any], Weights]:
        """Return (plain numbers, tensors) from which `restore` continues."""
        segments = {"running": self.running, "valley": self.valley}
        segments |= {f"pending{i}": segment for i, segment in enumerate(self.pending)}
        there = {name: segment for name, segment in segments.items() if segment is not None}
        numbers = {name: [segment.count, segment.loss] for name, segment in there.items()}
        tensors = {f"{name}/{key}": value for name, seg in there.items() for key, value in seg.mean.items()}
        return {"segments": numbers, "threshold": self.threshold, "ended": self.ended, "steps": self.steps}, tensors

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        segments = {}
        for name, (count, loss) in numbers["segments"].items():
            prefix = f"{name}/"
            mean = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            segments[name] = Segment(mean, count, loss)
        self.running = segments.pop("running", None)
        self.valley = segments.pop("valley", None)
        self.pending = deque(segments[f"pending{i}"] for i in range(len(segments)))
        self.threshold = numbers["threshold"]
        self.ended = numbers["ended"]
        self.steps = numbers.get("steps", 0)  # not in checkpoints of earlier versions
