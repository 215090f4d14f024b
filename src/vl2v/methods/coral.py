"""Deep CORAL: features with the same mean and covariance in every source domain.

Sun and Saenko, "Deep CORAL", ECCV 2016 workshops, equation 1; means and pairs of domains as DomainBed has them.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from pydantic import Field

from vl2v.config import Section
from vl2v.methods.base import Output, Stage, Targets, Terms
from vl2v.methods.erm import Finetuning, cross_entropy
from vl2v.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("coral")
class Coral(Finetuning):
    """ERM with CORAL's penalty."""

    title = "fine-tuning with domains' features made alike"

    class Settings(Section):
        """The penalty's weight."""

        coral_weight: float = Field(default=1.0, ge=0, description="of the penalty")

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("finetune", "all", self.training_step, pairs=True),)

    def training_step(self, output: Output, targets: Targets) -> Terms:
        """Return L = cross-entropy + weight * the mean over pairs of domains of `discrepancy`."""
        label = cross_entropy(output, targets)["loss"]
        total = label
        pairs = list(combinations([output.features[group] for group in targets.of_each_domain()], 2))
        for one, other in pairs:
            total = total + self.settings.coral_weight / len(pairs) * discrepancy(one, other)
        return {"loss": total, "label": label.detach(), "penalty": (total - label).detach()}


def discrepancy(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean squares of the differences of means and of covariances of features [n, p] and [m, p]."""
    means = (one.mean(0) - other.mean(0)).square().mean()
    return means + (one.T.cov() - other.T.cov()).square().mean()
