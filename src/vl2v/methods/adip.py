"""VL2V-ADiP: Align, Distill, Predict (CVPR 2024, arXiv 2310.08255, section 4)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from vl2v.config import LossConfig, PublishedConfig
from vl2v.methods.base import Loss, Method, Stage, Targets

STAGES = {
    "align": {"steps": 1000, "lr": 1e-3, "optimizer": "adam"},
    "distill": {"steps": 1000, "lr": 5e-4},
}


def adip(loss: LossConfig, published: PublishedConfig) -> Method:
    """Return the method: train P with F frozen, then F with P frozen; the text embeddings classify."""
    cosine = cosine_loss(loss.lambda_)
    return Method("adip", "text", (Stage("align", "projector", cosine), Stage("distill", "backbone", cosine)))


def cosine_loss(lambda_: float) -> Loss:
    """Return L = - lambda mean cos(z, I(x)) - (1 - lambda) mean cos(z, T(y)), in [-1, 1].

    Pictures without a label have no T(y): the second mean is over the others.
    """

    def loss(z: Tensor, targets: Targets) -> Tensor:
        images, texts = targets.answers()
        image_term = functional.cosine_similarity(z, images, dim=-1).mean()
        labelled = targets.labels >= 0
        if not bool(labelled.any()):
            return -image_term
        text_term = functional.cosine_similarity(z[labelled], texts[targets.labels[labelled]], dim=-1).mean()
        return -lambda_ * image_term - (1 - lambda_) * text_term

    return loss
