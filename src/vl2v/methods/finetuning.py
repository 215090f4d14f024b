"""Supervised training: full fine-tuning, from a random or the zero-shot head, linear probes, averages of weights."""

from __future__ import annotations

from functools import partial

from pydantic import Field

from vl2v.config import Section
from vl2v.methods import averaging
from vl2v.methods.averaging import BetaAverage, Interpolation, TailAverage
from vl2v.methods.base import Output, Share, Stage, Targets, Task, Terms, register

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
        return (Stage("finetune", "all", cross_entropy),)


@register("lp")
class LinearProbe(Finetuning):
    """The linear probe: the backbone stays as it was pretrained."""

    title = "linear probe"
    stage_defaults = {"probe": LP_FT_STAGES["probe"]}

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (PROBE,)


@register("lp-ft")
class LpFt(Erm):
    """The linear probe followed by full fine-tuning.

    Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022.
    """

    title = "linear probe, then full fine-tuning"
    stage_defaults = LP_FT_STAGES

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (PROBE, *super().stages)


@register("erm++")
class ErmPlusPlus(Finetuning):
    """The head first, then everything at a constant rate, averaged; then once more on all source images.

    Teterwak et al., "ERM++: An Improved Baseline for Domain Generalization", arXiv 2304.01973, section 3, with the
    public code's 500 steps of the head alone and 100 more before the average begins. Where validation chooses the
    number of steps, it is that of single weights, not of their average. Batch norms stay in eval mode unless
    `student.batch_norm` says otherwise, and the start is whatever `student.weights` are.
    """

    title = "the head first, then constant-rate averaging, then all images"
    retrains = True
    stage_defaults = {"probe": {"steps": 500, "lr": 1e-3}, "finetune": {**FINETUNE, "schedule": "constant"}}

    @property
    def stages(self) -> tuple[Stage, ...]:
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
        return (Stage("finetune", "all", text_cross_entropy),)


MEMBERS = 3


@register("soup")
class Soup(Finetuning):
    """A linear probe, and the mean of the weights of fine-tunings from it, which differ in their draws.

    Wortsman et al., "Model soups", ICML 2022, section 2, the uniform soup. One round of DART (Jain et al., CVPR 2023),
    whose members differ in their augmentation, too.
    """

    title = "mean weights of three fine-tunings"
    stage_defaults = LP_FT_STAGES

    @property
    def stages(self) -> tuple[Stage, ...]:
        members = (
            Stage(f"finetune {k}/{MEMBERS}", "all", cross_entropy, averagers=(partial(averaging.Soup, k, MEMBERS),))
            for k in range(1, MEMBERS + 1)
        )
        return (PROBE, *members)


@register("wise-ft")
class WiseFt(ErmText):
    """The teacher's image tower is fine-tuned under its texts, then interpolated with the zero-shot one.

    Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, equation 1. For white boxes.
    """

    title = "weights between the zero-shot and the fine-tuned"
    tower = True
    version = 2
    stage_defaults = {"finetune": {"steps": 1000, "lr": 1e-5}}

    class Settings(Section):
        """Where it ends."""

        interpolate: Share = Field(default=0.5, description="between the zero-shot weights (0) and the trained (1)")

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        share = (self.settings.interpolate,)
        return (Stage("finetune", "all", text_cross_entropy, averagers=(partial(Interpolation, share),)),)


@register("clipood")
class Clipood(Task):
    """The student is the teacher's image tower, the class embeddings are its frozen classifier.

    Shu et al., "CLIPood: Generalizing CLIP to Out-of-Distributions", ICML 2023, equations 3 and 5.
    """

    title = "fine-tuning with text margins and averaged weights"
    queries = "texts"
    tower = True
    version = 2
    stage_defaults = {"finetune": {"steps": 1000, "lr": 5e-6, "weight_decay": 0.1}}

    class Settings(Section):
        """The margin."""

        margin: float = Field(default=0.3, ge=0, description="between classes, in cosines")

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("finetune", "all", self.training_step, averagers=(BetaAverage,)),)

    def training_step(self, output: Output, targets: Targets) -> Terms:
        """Return the cross-entropy of s (z . T(c) + margin (1 - T(y) . T(c))) over classes c, labelled images only."""
        from torch.nn import functional

        assert targets.texts is not None
        distances = (1 - targets.texts @ targets.texts.T)[targets.labels]
        logits = targets.scale * (output.z @ targets.texts.T + self.settings.margin * distances)
        return {"loss": functional.cross_entropy(logits, targets.labels, ignore_index=-1)}
