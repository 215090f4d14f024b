"""Deep CORAL: features with the same mean and covariance in every source domain.

Sun and Saenko, "Deep CORAL", ECCV 2016 workshops, equation 1; means and pairs of domains as DomainBed has them.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from vl2v.config import LossConfig
from vl2v.methods.base import Loss, Method, Output, Stage, Targets
from vl2v.methods.erm import FINETUNE, cross_entropy

if TYPE_CHECKING:
    from torch import Tensor

STAGES = {"finetune": FINETUNE}


def coral(loss: LossConfig) -> Method:
    """Return ERM with CORAL's penalty."""
    stage = Stage("finetune", "all", coral_loss(loss.coral_weight), pairs=True)
    return Method("coral", "linear", (stage,), asks="nothing")


def coral_loss(weight: float) -> Loss:
    """Return L = cross-entropy + weight * the mean over pairs of domains of `discrepancy`."""

    def loss(output: Output, targets: Targets) -> Tensor:
        total = cross_entropy(output, targets)
        pairs = list(combinations([output.features[group] for group in targets.of_each_domain()], 2))
        for one, other in pairs:
            total = total + weight / len(pairs) * discrepancy(one, other)
        return total

    return loss


def discrepancy(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean squares of the differences of means and of covariances of features [n, p] and [m, p]."""
    means = (one.mean(0) - other.mean(0)).square().mean()
    return means + (one.T.cov() - other.T.cov()).square().mean()
