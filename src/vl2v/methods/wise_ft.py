"""WiSE-FT: the weights halfway between the zero-shot model and the fine-tuned one.

Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, equation 1. For white boxes.
"""

from __future__ import annotations

from functools import partial

from pydantic import Field

from vl2v.config import Section
from vl2v.methods.averaging import Interpolation
from vl2v.methods.base import Share, Stage
from vl2v.methods.erm import ErmText, text_cross_entropy
from vl2v.methods.registry import register


@register("wise-ft")
class WiseFt(ErmText):
    """The teacher's image tower is fine-tuned under its texts, then interpolated."""

    title = "weights between the zero-shot and the fine-tuned"
    tower = True
    version = 2
    stage_defaults = {"finetune": {"steps": 1000, "lr": 1e-5}}

    class Settings(Section):
        """Where it ends."""

        interpolate: Share = Field(default=0.5, description="between the zero-shot weights (0) and the trained (1)")

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything, interpolated."""
        share = (self.settings.interpolate,)
        return (Stage("finetune", "all", text_cross_entropy, averagers=(partial(Interpolation, share),)),)
