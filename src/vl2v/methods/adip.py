"""VL2V-ADiP: Align, Distill, Predict (CVPR 2024, arXiv 2310.08255, section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.config import LossConfig
from vl2v.methods.base import Loss, Method, Output, Stage, Targets

if TYPE_CHECKING:
    from torch import Tensor

STAGES = {
    "align": {"steps": 1000, "lr": 1e-3, "optimizer": "adam"},
    "distill": {"steps": 1000, "lr": 1e-3},
}


def adip(loss: LossConfig) -> Method:
    """Return the method: train P with F frozen, then F with P frozen; the text embeddings classify."""
    distill = Stage("distill", "backbone", cosine_loss(loss.image_share), settings=("lambda",))
    return Method("adip", "text", (align(loss), distill))


def align(loss: LossConfig) -> Stage:
    """Return the first stage: P learns with F frozen."""
    return Stage("align", "projector", cosine_loss(loss.image_share), settings=("lambda",))


def cosine_loss(lambda_: float) -> Loss:
    """Return L = - mean(lambda cos(z, I(x)) + (1 - lambda) cos(z, T(y))), in [-1, 1].

    A picture without a label has no T(y), one that wasn't asked about no I(x): what it has counts in full then.
    """

    def loss(output: Output, targets: Targets) -> Tensor:
        from torch.nn import functional

        z, (images, texts) = output.z, targets.answers()
        of_image, of_label = targets.weights(lambda_)
        image_term = functional.cosine_similarity(z, images, dim=-1)
        text_term = functional.cosine_similarity(z, texts[targets.labels], dim=-1)
        return -(of_image * image_term + of_label * text_term).mean()

    return loss
