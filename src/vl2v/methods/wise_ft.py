"""WiSE-FT: the weights halfway between the zero-shot model and the fine-tuned one.

Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, equation 1. For white boxes.
"""

from __future__ import annotations

from vl2v.config import LossConfig
from vl2v.methods.base import Method, Stage
from vl2v.methods.erm import text_cross_entropy

STAGES = {"finetune": {"steps": 1000, "lr": 1e-5}}


def wise_ft(loss: LossConfig) -> Method:
    """Return the method: the teacher's image tower is fine-tuned under its texts, then interpolated."""
    stage = Stage("finetune", "all", text_cross_entropy, interpolate=(loss.interpolate,))
    return Method("wise-ft", "text", (stage,), asks="texts", tower=True)
