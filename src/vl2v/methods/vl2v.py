"""VL2V-ADiP with one more term, a lambda that fits the teacher, a choice of how far to go, and P fitted at the end.

The cosines of ADiP draw a picture's embedding to its own answer and its own class's text; nothing tells how near the
other classes' texts are to be. The added term does, by Hinton's divergence (arXiv 1503.02531) under the text
classifier. Lambda is chosen before anything is trained, by domains left out (`vl2v.evaluation.ridge`): a teacher that
knows the domains is followed further than one that doesn't. And what Align had kept of the pretrained features is not
all given up: the backbone ends where source validation is best, halfway, three quarters of the way or all the way from
the pretrained one to the distilled one (as WiSE-FT does between zero-shot and fine-tuned weights, Wortsman et al., CVPR
2022). Distill has moved the features away from those that P was fitted to: so P is fitted once more, in closed form.
Ours; see docs/findings.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.config import LossConfig
from vl2v.methods.adip import STAGES as STAGES
from vl2v.methods.adip import align, cosine_loss
from vl2v.methods.base import Loss, Method, Output, Stage, Targets

if TYPE_CHECKING:
    from torch import Tensor

DEFAULTS = {"loss": {"temperature": "auto", "lambda": "auto"}}
WAYS = (0.5, 0.75, 1.0)  # from the pretrained backbone to the distilled one


def vl2v(loss: LossConfig) -> Method:
    """Return the method: Align as ADiP does, Distill with the added term, Align again; the text embeddings classify."""
    both = classwise_loss(cosine_loss(loss.image_share), loss.class_weight, loss.tau)
    distill = Stage("distill", "backbone", both, interpolate=WAYS, settings=("lambda", "class_weight", "temperature"))
    return Method("vl2v", "text", (align(loss), distill), aligns_again=True)


def classwise_loss(cosine: Loss, weight: float, temperature: float) -> Loss:
    """Return L = cosine + weight tau^2 / s mean KL(softmax(s I(x) . T^T / tau) || softmax(s z . T^T / tau)).

    Divided by the logit scale s, its gradient is of the cosines' size. A picture that wasn't asked about adds nothing.
    """

    def loss(output: Output, targets: Targets) -> Tensor:
        from torch.nn import functional

        images, texts = targets.answers()
        sharpness = targets.scale / temperature
        teacher = (sharpness * images @ texts.T).softmax(-1)
        student = (sharpness * output.z @ texts.T).log_softmax(-1)
        divergence = functional.kl_div(student, teacher, reduction="none").sum(-1)
        added = weight * temperature**2 / targets.scale * (targets.asked * divergence).mean()
        return cosine(output, targets) + added

    return loss
