"""Plain supervised training: full fine-tuning, with a random or the zero-shot head, linear probe, LP-FT.

LP-FT: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution",
ICLR 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.config import LossConfig
from vl2v.methods.base import Method, Output, Stage, Targets

if TYPE_CHECKING:
    from torch import Tensor

_PROBE = {"steps": 1000, "lr": 1e-3}
FINETUNE = {"steps": 1000, "lr": 3e-4}
ERM_STAGES = {"finetune": FINETUNE}
LP_STAGES = {"probe": _PROBE}
LP_FT_STAGES = {"probe": _PROBE, "finetune": FINETUNE}


def cross_entropy(output: Output, targets: Targets) -> Tensor:
    """Return the mean cross-entropy of a linear head's logits over the labelled pictures."""
    from torch.nn import functional

    return functional.cross_entropy(output.projected, targets.labels, ignore_index=-1)


def text_cross_entropy(output: Output, targets: Targets) -> Tensor:
    """Return the mean cross-entropy of the logits s z . T^T over the labelled pictures."""
    from torch.nn import functional

    assert targets.texts is not None
    return functional.cross_entropy(targets.scale * output.z @ targets.texts.T, targets.labels, ignore_index=-1)


PROBE = Stage("probe", "projector", cross_entropy, settings=())
_finetune = Stage("finetune", "all", cross_entropy)


def erm(loss: LossConfig) -> Method:
    """Return empirical risk minimisation by full fine-tuning (FFT)."""
    return Method("erm", "linear", (_finetune,), asks="nothing")


def erm_text(loss: LossConfig) -> Method:
    """Return full fine-tuning with the class texts as a frozen classifier, the zero-shot head.

    From a white box's own image tower (`student.name="teacher"`) it is fine-tuning of CLIP from its zero-shot
    head, the strong baseline.
    """
    return Method("erm-text", "text", (Stage("finetune", "all", text_cross_entropy),), asks="texts")


def lp(loss: LossConfig) -> Method:
    """Return the linear probe: the backbone stays as it was pretrained."""
    return Method("lp", "linear", (PROBE,), asks="nothing")


def lp_ft(loss: LossConfig) -> Method:
    """Return the linear probe followed by full fine-tuning."""
    return Method("lp-ft", "linear", (PROBE, _finetune), asks="nothing")
