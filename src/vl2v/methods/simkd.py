"""SimKD: the teacher's classifier is reused, the student learns to hand it the teacher's features.

Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, equation 2. The classifier of a
vision-language model is its class texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.config import LossConfig
from vl2v.methods.base import Method, Output, Stage, Targets

if TYPE_CHECKING:
    from torch import Tensor

STAGES = {"distill": {"steps": 1000, "lr": 1e-3}}


def simkd(loss: LossConfig) -> Method:
    """Return the method: backbone and projector are trained together, labels aren't used, texts classify."""
    return Method("simkd", "text", (Stage("distill", "all", squared_distance, settings=()),))


def squared_distance(output: Output, targets: Targets) -> Tensor:
    """Return L = mean ||P(F(x)) - I(x)||^2, P's output not normalised; a picture not asked about adds nothing."""
    images, _ = targets.answers()
    return (targets.asked * (output.projected - images).square().sum(-1)).mean()
