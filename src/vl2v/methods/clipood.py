"""CLIPood: fine-tuning of a white box with margins from its texts, and a beta moving average of its weights.

Shu et al., "CLIPood: Generalizing CLIP to Out-of-Distributions", ICML 2023, equations 3 and 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.config import LossConfig
from vl2v.methods.base import Loss, Method, Output, Stage, Targets

if TYPE_CHECKING:
    from torch import Tensor

STAGES = {"finetune": {"steps": 1000, "lr": 5e-6, "weight_decay": 0.1}}


def clipood(loss: LossConfig) -> Method:
    """Return the method: the student is the teacher's image tower, the texts are its frozen classifier."""
    stage = Stage("finetune", "all", margin_softmax(loss.margin), average="beta")
    return Method("clipood", "text", (stage,), asks="texts", tower=True)


def margin_softmax(margin: float) -> Loss:
    """Return the cross-entropy of s (z . T(c) + margin (1 - T(y) . T(c))) over classes c, labelled pictures only."""

    def loss(output: Output, targets: Targets) -> Tensor:
        from torch.nn import functional

        assert targets.texts is not None
        distances = (1 - targets.texts @ targets.texts.T)[targets.labels]
        logits = targets.scale * (output.z @ targets.texts.T + margin * distances)
        return functional.cross_entropy(logits, targets.labels, ignore_index=-1)

    return loss
