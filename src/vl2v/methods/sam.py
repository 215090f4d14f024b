"""Sharpness-aware minimisation, and its gradient matching for domain generalisation.

SAM: Foret et al., ICLR 2021, algorithm 1. SAGM: Wang et al., "Sharpness-Aware Gradient Matching for Domain
Generalization", CVPR 2023, algorithm 1.
"""

from __future__ import annotations

from pydantic import Field

from vl2v.config import Section
from vl2v.methods.base import Ascent, Stage
from vl2v.methods.erm import Finetuning, cross_entropy
from vl2v.methods.registry import register


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
    def ascent(self) -> Ascent:
        """The step up the slope."""
        return Ascent(self.settings.sam_rho)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("finetune", "all", cross_entropy, ascent=self.ascent),)


@register("sagm")
class Sagm(Sam):
    """ERM with the mean of g(w) and g(w + rho g / |g| - alpha g), alpha = 0.001 as published."""

    title = "sharpness-aware gradient matching"

    @property
    def ascent(self) -> Ascent:
        """The step up the slope."""
        return Ascent(self.settings.sam_rho, alpha=1e-3, first=0.5)
