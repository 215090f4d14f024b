"""MIRO: fine-tuning that keeps the mutual information with the pretrained features.

Cha et al., "Domain Generalization by Mutual-Information Regularization with Pre-trained Models", ECCV 2022,
equation 5. Here on the last features F(x); the authors take intermediate ones, too.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from vl2v.config import Section
from vl2v.methods.base import Output, Stage
from vl2v.methods.erm import Finetuning, cross_entropy
from vl2v.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vl2v.students.student import Student

QUICKER = 10.0  # the variances' learning rate, as in the authors' code


@register("miro")
class Miro(Finetuning):
    """ERM with MIRO's penalty."""

    title = "fine-tuning that stays near the pretrained features"
    version = 2

    class Settings(Section):
        """The penalty's weight."""

        miro_weight: float = Field(default=0.1, ge=0, description="of the penalty")

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything, and the penalty's variances."""
        penalty = partial(oracle, weight=self.settings.miro_weight)
        return (Stage("finetune", "all", cross_entropy, regularizer=penalty, regularizer_rate=QUICKER),)


def oracle(student: Student, weight: float) -> nn.Module:
    """Return the penalty of a student: weight / 2 mean(log v + (F(x) - F0(x))^2 / v).

    F0 is the student's backbone as it starts; v, a variance for each feature, is trained along from 0.1.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pretrained = deepcopy(student).requires_grad_(False)
            self.raw = nn.Parameter(torch.full((student.width,), 0.1).expm1().log())  # softplus(raw) = 0.1

        def train(self, mode: bool = True) -> Oracle:
            super().train(mode)
            self.pretrained.eval()
            return self

        def forward(self, x: Tensor, output: Output) -> Tensor:
            with torch.no_grad():
                known: Tensor = self.pretrained.features(x)
            variance = functional.softplus(self.raw) + 1e-5
            return weight / 2 * (variance.log() + (output.features - known).square() / variance).mean()

    return Oracle()
