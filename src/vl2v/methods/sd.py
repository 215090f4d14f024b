"""VL2V-SD: self-distillation of a white box (CVPR 2024, arXiv 2310.08255, section 4)."""

from __future__ import annotations

from vl2v.config import LossConfig
from vl2v.methods.adip import cosine_loss
from vl2v.methods.base import Method, Stage

STAGES = {"distill": {"steps": 1000, "lr": 1e-5}}


def sd(loss: LossConfig) -> Method:
    """Return the method: the student is the teacher's image tower, the teacher its frozen original."""
    stage = Stage("distill", "all", cosine_loss(loss.image_share), settings=("lambda",))
    return Method("sd", "text", (stage,), tower=True)
