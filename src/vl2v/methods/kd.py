"""Knowledge distillation on logits (Hinton, Vinyals and Dean, arXiv 1503.02531, section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.config import LossConfig
from vl2v.methods.base import Loss, Method, Output, Stage, Targets

if TYPE_CHECKING:
    from torch import Tensor

STAGES = {"distill": {"steps": 1000, "lr": 3e-4}}


def kd(loss: LossConfig) -> Method:
    """Return the method: a linear head learns labels and the teacher's zero-shot distribution."""
    term = kd_loss(loss.tau, loss.kd_weight, probabilities=loss.kd_probabilities)
    distill = Stage("distill", "all", term, settings=("temperature", "kd_weight", "kd_probabilities"))
    return Method("kd", "linear", (distill,))


def kd_loss(temperature: float, weight: float, *, probabilities: bool = False) -> Loss:
    """Return L = weight tau^2 KL(softmax(t / tau) || softmax(v / tau)) + (1 - weight) CE(v, y).

    v are the student's logits and t = s I(x) . T^T the teacher's. A picture without a label, or one that wasn't
    asked about, has one of the terms only, which counts in full then.

    Args:
        temperature: tau.
        weight: the teacher's share.
        probabilities: the authors' oddity: the student's probabilities stand where the divergence takes
            log-probabilities.
    """

    def loss(output: Output, targets: Targets) -> Tensor:
        from torch.nn import functional

        logits, (images, texts) = output.projected, targets.answers()
        teacher = (targets.scale * images @ texts.T / temperature).softmax(-1)
        soft = functional.softmax if probabilities else functional.log_softmax
        divergence = functional.kl_div(soft(logits / temperature, dim=-1), teacher, reduction="none").sum(-1)
        hard_term = functional.cross_entropy(logits, targets.labels, ignore_index=-1, reduction="none")
        of_image, of_label = targets.weights(weight)
        return (of_image * temperature**2 * divergence + of_label * hard_term).mean()

    return loss
