"""Plain supervised training: full fine-tuning, with a random or the zero-shot head, linear probe, LP-FT.

LP-FT: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution",
ICLR 2022.
"""

from __future__ import annotations

from functools import partial

from vl2v.methods.averaging import TailAverage
from vl2v.methods.base import Output, Stage, Targets, Task, Terms
from vl2v.methods.registry import register

FINETUNE = {"steps": 1000, "lr": 3e-4}
LP_FT_STAGES = {"probe": {"steps": 1000, "lr": 1e-3}, "finetune": FINETUNE}


def cross_entropy(output: Output, targets: Targets) -> Terms:
    """Return the mean cross-entropy of a linear head's logits over the labelled images."""
    from torch.nn import functional

    return {"loss": functional.cross_entropy(output.projected, targets.labels, ignore_index=-1)}


def text_cross_entropy(output: Output, targets: Targets) -> Terms:
    """Return the mean cross-entropy of the logits s z . T^T over the labelled images."""
    from torch.nn import functional

    assert targets.texts is not None
    logits = targets.scale * output.z @ targets.texts.T
    return {"loss": functional.cross_entropy(logits, targets.labels, ignore_index=-1)}


PROBE = Stage("probe", "projector", cross_entropy, id="probe/1")


class Finetuning(Task):
    """Methods that learn from labels alone, under a linear head of their own."""

    head = "linear"
    queries = "nothing"
    stage_defaults = {"finetune": FINETUNE}


@register("erm")
class Erm(Finetuning):
    """Empirical risk minimisation by full fine-tuning (FFT)."""

    title = "plain full fine-tuning"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("finetune", "all", cross_entropy),)


@register("lp")
class LinearProbe(Finetuning):
    """The linear probe: the backbone stays as it was pretrained."""

    title = "linear probe"
    stage_defaults = {"probe": LP_FT_STAGES["probe"]}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The head alone."""
        return (PROBE,)


@register("lp-ft")
class LpFt(Erm):
    """The linear probe followed by full fine-tuning."""

    title = "linear probe, then full fine-tuning"
    stage_defaults = LP_FT_STAGES

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The head alone, then everything."""
        return (PROBE, *super().stages)


@register("erm++")
class ErmPlusPlus(Finetuning):
    """The head first, then everything at a constant rate, averaged; then once more on all source images.

    Teterwak et al., "ERM++: An Improved Baseline for Domain Generalization", arXiv 2304.01973, section 3, with the
    public code's 500 steps of the head alone and 100 more before the average begins. Where validation chooses the
    number of steps, it is that of single weights, not of their average. Batch norms stay in eval mode unless
    `student.batch_norm` says otherwise, and the start is whatever `student.weights` are.
    """

    title = "the head first, then constant-rate averaging, then all source images"
    retrains = True
    stage_defaults = {"probe": {"steps": 500, "lr": 1e-3}, "finetune": {**FINETUNE, "schedule": "constant"}}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The head alone, then everything."""
        return PROBE, Stage("finetune", "all", cross_entropy, averagers=(partial(TailAverage, 100),))


@register("erm-text")
class ErmText(Task):
    """Full fine-tuning with the class embeddings as a frozen classifier, the zero-shot head.

    From a white box's own image tower (`student.name="teacher"`) it is fine-tuning of CLIP from its zero-shot
    head, the strong baseline.
    """

    title = "full fine-tuning under the class texts (zero-shot head)"
    queries = "texts"
    stage_defaults = {"finetune": FINETUNE}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("finetune", "all", text_cross_entropy),)
