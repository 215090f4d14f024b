"""Feature distillation: the whole student learns the teacher's embedding of each picture.

Hints of Romero et al. ("FitNets", ICLR 2015, equation 3) at the last layer, with a cosine for the distance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.config import LossConfig
from vl2v.methods.base import Method, Output, Stage, Targets

if TYPE_CHECKING:
    from torch import Tensor

STAGES = {"distill": {"steps": 1000, "lr": 1e-3}}


def fd(loss: LossConfig) -> Method:
    """Return the method: backbone and projector are trained together, labels aren't used, texts classify."""
    return Method("fd", "text", (Stage("distill", "all", cosine_distance, settings=()),))


def cosine_distance(output: Output, targets: Targets) -> Tensor:
    """Return L = mean(1 - cos(z, I(x))); a picture that wasn't asked about adds nothing."""
    images, _ = targets.answers()
    return (targets.asked - (output.z * images).sum(-1)).mean()
