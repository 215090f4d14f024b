"""Sharpness-aware minimisation, and its gradient matching for domain generalisation.

SAM: Foret et al., ICLR 2021, algorithm 1. SAGM: Wang et al., "Sharpness-Aware Gradient Matching for Domain
Generalization", CVPR 2023, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from vl2v.config import Section
from vl2v.methods.base import SecondPass, Stage
from vl2v.methods.erm import Finetuning, cross_entropy
from vl2v.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("sam")
class Sam(Finetuning):
    """ERM with the gradient taken rho up the slope: g(w + rho g / |g|)."""

    title = "sharpness-aware fine-tuning"
    version = 2

    class Settings(Section):
        """The step up."""

        sam_rho: float = Field(default=0.05, gt=0, description="how far the step up goes")

    settings: Settings

    @property
    def second_pass(self) -> SecondPass:
        """The gradient after the step up the slope."""
        return partial(climb, rho=self.settings.sam_rho)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("finetune", "all", cross_entropy, second_pass=self.second_pass),)


@register("sagm")
class Sagm(Sam):
    """ERM with the mean of g(w) and g(w + rho g / |g| - alpha g), alpha = 0.001 as published."""

    title = "sharpness-aware gradient matching"

    @property
    def second_pass(self) -> SecondPass:
        """The mean of the gradients before and after the step up the slope."""
        return partial(climb, rho=self.settings.sam_rho, alpha=1e-3, first=0.5)


def climb(
    weights: Mapping[str, Tensor],
    again: Callable[[], None],
    whole: Callable[[Tensor], Tensor],
    *,
    rho: float,
    alpha: float = 0.0,
    first: float = 0.0,
) -> None:
    """Replace the gradient g(w) by first g(w) + (1 - first) g(w + (rho / |g| - alpha) g).

    Batch-norm statistics stay those of the first pass.

    Args:
        weights: see `SecondPass`; so are
        again: and
        whole.
        rho: the length of the step up, in the space of the weights.
        alpha: of SAGM's gradient matching.
        first: weight of the gradient before the step up.
    """
    import torch

    trained = [weight for weight in weights.values() if weight.grad is not None]
    before = {key: weight.detach().clone() for key, weight in weights.items()}
    gradients = [weight.grad.clone() for weight in trained if weight.grad is not None]
    length = whole(torch.stack([gradient.norm() for gradient in gradients]).norm())
    with torch.no_grad():
        for weight, gradient in zip(trained, gradients, strict=True):
            weight.add_(gradient * (rho / (length + 1e-12) - alpha))
    again()
    with torch.no_grad():
        for key, weight in weights.items():
            weight.copy_(before[key])
        for weight, gradient in zip(trained, gradients, strict=True):
            assert weight.grad is not None
            weight.grad.lerp_(gradient, first)
