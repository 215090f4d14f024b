"""Which weights a stage ends with: averages over its steps, interpolations and soups, behind one class."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

Weights = dict[str, "Tensor"]


@dataclass(frozen=True)
class Scores:
    """How well a student does on the source domains' validation images."""

    accuracy: float
    loss: float

    def better_than(self, other: Scores | None) -> bool:
        """Whether these are to be preferred; the cross-entropy decides between equal accuracies."""
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


class Averager:
    """Makes the weights that a stage ends with; new for each stage, its state is part of checkpoints.

    The weights that `begin` and `step` see are the live ones, on the device, maybe a process's part of them. Those
    that `finish` gets and `hands_on` are whole.

    Attributes:
        over_steps: whether it averages over the steps, so that SWAD does not.
        from_start: whether `finish` needs the weights that the stage starts from.
        hands_on: weights for the averagers of the next stage, once it has finished.
    """

    over_steps: ClassVar[bool] = False
    from_start: ClassVar[bool] = False
    hands_on: Weights

    def __init__(self) -> None:
        self.hands_on = {}

    def begin(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Take the weights before the first of so many steps."""

    def step(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights after an optimiser step."""

    def evaluate(self, loss: float) -> None:
        """Take the validation loss of the weights after the last step."""

    def finish(self, trained: Weights, start: Weights, score: Callable[[Weights], Scores]) -> Weights:
        """Return the weights to end with: here the trained ones.

        Args:
            trained: chosen by source validation, or the last; what the averager before this one returned.
            start: that the stage started from, if `from_start`.
            score: evaluates weights on the source domains' validation images.
        """
        return trained

    def state(self) -> tuple[dict[str, Any], Weights]:
        """Return (plain numbers, tensors) from which `restore` continues."""
        return {}, {}

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""

    def take_over(self, weights: Weights) -> None:
        """Take what the stage before hands on."""


class BetaAverage(Averager):
    """Average the weights of all steps t of T; w(t) = x^(b - 1) (1 - x)^(b - 1) with x = (t + 0.5) / (T + 1), b = 0.5.

    The first weights, those that the stage starts from, and the last count most. Shu et al., CLIPood, ICML 2023,
    section 3.3.
    """

    over_steps = True
    BETA = 0.5

    def begin(self, weights: Mapping[str, Tensor], steps: int) -> None:
        self.steps = steps
        self.taken = 0
        self.mean = {key: value.detach().clone() for key, value in weights.items()}
        self.total = self._weight(0)

    def _weight(self, step: int) -> float:
        x = (step + 0.5) / (self.steps + 1)
        return float((x * (1 - x)) ** (self.BETA - 1))

    def step(self, weights: Mapping[str, Tensor]) -> None:
        self.taken += 1
        weight = self._weight(self.taken)
        self.total += weight
        for key, value in self.mean.items():
            value.lerp_(weights[key].detach(), weight / self.total)

    def finish(self, trained: Weights, start: Weights, score: Callable[[Weights], Scores]) -> Weights:
        return self.mean

    def state(self) -> tuple[dict[str, Any], Weights]:
        return {"taken": self.taken, "total": self.total}, self.mean

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.taken, self.total = numbers["taken"], numbers["total"]
        self.mean = dict(tensors)


class TailAverage(Averager):
    """Average the weights of all steps but the first ones alike, at a constant learning rate.

    Arpit et al., "Ensemble of Averages", NeurIPS 2022, section 3; in ERM++ (Teterwak et al., arXiv 2304.01973).

    Args:
        after: steps that don't count; half of the stage's, if it has fewer than twice as many.
    """

    over_steps = True

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after
        self.taken = 0
        self.mean: Weights = {}

    def begin(self, weights: Mapping[str, Tensor], steps: int) -> None:
        self.after = min(self.after, steps // 2)

    def step(self, weights: Mapping[str, Tensor]) -> None:
        self.taken += 1
        count = self.taken - self.after
        if count == 1:
            self.mean = {key: value.detach().clone() for key, value in weights.items()}
        elif count > 1:
            for key, value in self.mean.items():
                value.lerp_(weights[key].detach(), 1 / count)

    def finish(self, trained: Weights, start: Weights, score: Callable[[Weights], Scores]) -> Weights:
        return self.mean or trained

    def state(self) -> tuple[dict[str, Any], Weights]:
        return {"taken": self.taken}, self.mean

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.taken, self.mean = numbers["taken"], dict(tensors)


class Interpolation(Averager):
    """End at start + t (trained - start); of several t at the one with the best source validation.

    Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, equation 1.

    Args:
        shares: the candidates for t; the first of equals is taken.
    """

    from_start = True

    def __init__(self, shares: Sequence[float]) -> None:
        super().__init__()
        self.shares = shares

    def finish(self, trained: Weights, start: Weights, score: Callable[[Weights], Scores]) -> Weights:
        best: tuple[Scores | None, Weights] = (None, trained)
        for share in self.shares:
            weights = {key: start[key].lerp(value.to(start[key]), share) for key, value in trained.items()}
            if len(self.shares) == 1:
                return weights
            if (scores := score(weights)).better_than(best[0]):
                best = scores, weights
        return best[1]


class Soup(Averager):
    """The uniform soup of several stages: all start from the same weights, the last ends with the mean of all.

    Wortsman et al., "Model soups", ICML 2022, section 2.

    Args:
        member: number of the stage among them, from 1.
        members: how many there are.
    """

    from_start = True

    def __init__(self, member: int, members: int) -> None:
        super().__init__()
        self.member = member
        self.members = members
        self.mean: Weights = {}

    def take_over(self, weights: Weights) -> None:
        self.mean = weights

    def finish(self, trained: Weights, start: Weights, score: Callable[[Weights], Scores]) -> Weights:
        if self.member > 1:
            share = 1 / self.member
            trained = {key: self.mean[key].to(value).lerp(value, share) for key, value in trained.items()}
        if self.member == self.members:
            return trained
        self.hands_on = trained
        return start


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
        if self.ended:
            return
        self.steps += 1
        if self.running is None:
            import torch

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
        segments = {"running": self.running, "valley": self.valley}
        segments |= {f"pending{i}": segment for i, segment in enumerate(self.pending)}
        there = {name: segment for name, segment in segments.items() if segment is not None}
        numbers = {name: [segment.count, segment.loss] for name, segment in there.items()}
        tensors = {f"{name}/{key}": value for name, seg in there.items() for key, value in seg.mean.items()}
        return {"segments": numbers, "threshold": self.threshold, "ended": self.ended, "steps": self.steps}, tensors

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
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
