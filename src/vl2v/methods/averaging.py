"""Which weights a stage ends with: averages over its steps, interpolations and soups, behind one class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        """Start the mean with the weights before the first step."""
        self.steps = steps
        self.taken = 0
        self.mean = {key: value.detach().clone() for key, value in weights.items()}
        self.total = self._weight(0)

    def _weight(self, step: int) -> float:
        x = (step + 0.5) / (self.steps + 1)
        return float((x * (1 - x)) ** (self.BETA - 1))

    def step(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights after an optimiser step into the mean."""
        self.taken += 1
        weight = self._weight(self.taken)
        self.total += weight
        for key, value in self.mean.items():
            value.lerp_(weights[key].detach(), weight / self.total)

    def finish(self, trained: Weights, start: Weights, score: Callable[[Weights], Scores]) -> Weights:
        """Return the mean."""
        return self.mean

    def state(self) -> tuple[dict[str, Any], Weights]:
        """Return steps and total weight, and the mean."""
        return {"taken": self.taken, "total": self.total}, self.mean

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
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
        """Take the length of the stage."""
        self.after = min(self.after, steps // 2)

    def step(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights after an optimiser step into the mean."""
        self.taken += 1
        count = self.taken - self.after
        if count == 1:
            self.mean = {key: value.detach().clone() for key, value in weights.items()}
        elif count > 1:
            for key, value in self.mean.items():
                value.lerp_(weights[key].detach(), 1 / count)

    def finish(self, trained: Weights, start: Weights, score: Callable[[Weights], Scores]) -> Weights:
        """Return the mean."""
        return self.mean or trained

    def state(self) -> tuple[dict[str, Any], Weights]:
        """Return the number of steps, and the mean."""
        return {"taken": self.taken}, self.mean

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
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
        """Return the interpolated weights."""
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
        """Take the mean of the members before."""
        self.mean = weights

    def finish(self, trained: Weights, start: Weights, score: Callable[[Weights], Scores]) -> Weights:
        """Return the mean, or before the last member the weights that the next one starts from."""
        if self.member > 1:
            share = 1 / self.member
            trained = {key: self.mean[key].to(value).lerp(value, share) for key, value in trained.items()}
        if self.member == self.members:
            return trained
        self.hands_on = trained
        return start
