"""RISE: distillation of logits, with the student's embedding drawn to the class's text.

Huang et al., "A Sentence Speaks a Thousand Images: Domain Generalization through Distilling CLIP with Language
Guidance", ICCV 2023, sections 3.2 to 3.4; the head's start as in its public code, and the weights that it has for PACS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.config import LossConfig
from vl2v.methods.base import Loss, Method, Output, Stage, Targets
from vl2v.methods.kd import kd_loss

if TYPE_CHECKING:
    from torch import Tensor

STAGES = {"distill": {"steps": 1000, "lr": 3e-4}}
DEFAULTS = {"loss": {"temperature": 3.0, "kd_weight": 0.9}}

DISTANCES = 0.5  # weight of both distances
RELATIVE = 10.0  # and of the relative one within


def rise(loss: LossConfig) -> Method:
    """Return the method: a linear head, at first the class texts, on the projector's embedding; all is trained."""
    stage = Stage("distill", "all", rise_loss(kd_loss(loss.tau, loss.kd_weight)), settings=("temperature", "kd_weight"))
    return Method("rise", "stacked", (stage,), anchors=True)


def rise_loss(distillation: Loss) -> Loss:
    """Return L = distillation + 1/2 (absolute + 10 relative).

    absolute = mean(1 - cos(e, T(y))), e the embedding under the head; relative = the mean square of the differences
    between the softmax over source domains of cos(e, A(y)) and that of cos(T(y), A(y)), A(y) being the class's text
    in each source domain's words. Both over the labelled pictures.
    """

    def loss(output: Output, targets: Targets) -> Tensor:
        total = distillation(output, targets)
        labelled = targets.labels >= 0
        if not labelled.any():
            return total
        absolute, relative = distances(output, targets, labelled)
        return total + DISTANCES * (absolute + RELATIVE * relative)

    return loss


def distances(output: Output, targets: Targets, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """Return the absolute and the relative distance, see `rise_loss`."""
    from torch.nn import functional

    assert output.embedding is not None and targets.texts is not None and targets.anchors is not None
    labels = targets.labels[labelled]
    own = functional.normalize(output.embedding[labelled], dim=-1)
    texts, anchors = targets.texts[labels], targets.anchors[labels]
    absolute = (1 - (own * texts).sum(-1)).mean()
    of_student, of_teacher = ((anchors @ rows[:, :, None]).squeeze(-1).softmax(-1) for rows in (own, texts))
    return absolute, functional.mse_loss(of_student, of_teacher)
