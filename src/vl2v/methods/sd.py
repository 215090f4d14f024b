"""VL2V-SD: self-distillation of a white box (CVPR 2024, arXiv 2310.08255, section 4)."""

from __future__ import annotations

from vl2v.methods.adip import Adip
from vl2v.methods.base import Stage
from vl2v.methods.registry import register


@register("sd")
class Sd(Adip):
    """The student is the teacher's image tower, the teacher its frozen original."""

    title = "VL2V-SD: self-distillation of a white box"
    tower = True
    version = 2
    stage_defaults = {"distill": {"steps": 1000, "lr": 1e-5}}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage of ADiP's loss that trains everything."""
        return (Stage("distill", "all", self.cosines),)
