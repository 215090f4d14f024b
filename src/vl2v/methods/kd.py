"""Knowledge distillation on logits (Hinton, Vinyals and Dean, arXiv 1503.02531, section 2), and on labels alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vl2v.config import Section
from vl2v.methods.base import Output, Share, Stage, Targets, Task, Temperature, Terms, number
from vl2v.methods.registry import register


class KdSettings(Section):
    """Settings of the distillation of logits."""

    temperature: Temperature | Literal["auto"] = Field(
        default=2.0, description="of the softened logits; auto: the teacher's have 3/4 of a blind guess's entropy"
    )
    kd_weight: Share = Field(default=0.5, description="share of the teacher's term")


@register("kd")
class Kd(Task):
    """A linear head learns labels and the teacher's distribution over classes."""

    title = "distillation of logits"
    head = "linear"
    class_term = True
    stage_defaults = {"distill": {"steps": 1000, "lr": 3e-4}}

    class Settings(KdSettings):
        """Settings of KD."""

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("distill", "all", self.training_step),)

    def training_step(self, output: Output, targets: Targets) -> Terms:
        """See `kd_loss`."""
        temperature = number(self.settings.temperature, "temperature")
        return kd_loss(output, targets, temperature, self.settings.kd_weight)


@register("pseudo-labels")
class PseudoLabels(Task):
    """A linear head learns labels; of an image without one, the class that the teacher names, however unsure it is.

    As tools for labelling images by a foundation model do (Lee, "Pseudo-Label", ICML 2013 workshop, with another
    model's predictions): what the soft targets of `kd` and `adip` are to be held against.
    """

    title = "labels, the teacher's most likely class where there is none"
    head = "linear"
    class_term = True
    stage_defaults = {"finetune": {"steps": 1000, "lr": 3e-4}}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("finetune", "all", self.training_step),)

    def training_step(self, output: Output, targets: Targets) -> Terms:
        """Return the cross-entropy; an image without a label that wasn't queried adds nothing."""
        from torch.nn import functional

        named = targets.logits().argmax(-1).where(targets.queried > 0, -1)
        labels = targets.labels.where(targets.labels >= 0, named)
        losses = functional.cross_entropy(output.projected, labels, ignore_index=-1, reduction="none")
        return {"loss": losses.mean()}


def kd_loss(output: Output, targets: Targets, temperature: float, weight: float) -> Terms:
    """Return L = weight tau^2 KL(softmax(t / tau) || softmax(v / tau)) + (1 - weight) CE(v, y).

    v are the student's logits and t the teacher's, s I(x) . T^T unless it was adapted. An image without a
    label, or one that wasn't queried, has one of the terms only, which counts in full then.

    Args:
        output: of the student.
        targets: labels and embeddings.
        temperature: tau.
        weight: the teacher's share.
    """
    from torch.nn import functional

    logits = output.projected
    teacher = (targets.logits() / temperature).softmax(-1)
    student = functional.log_softmax(logits / temperature, dim=-1)
    divergence = functional.kl_div(student, teacher, reduction="none").sum(-1)
    cross_entropy = functional.cross_entropy(logits, targets.labels, ignore_index=-1, reduction="none")
    of_image, of_label = targets.weights(weight)
    soft, hard = of_image * temperature**2 * divergence, of_label * cross_entropy
    return {"loss": (soft + hard).mean(), "soft": soft.detach().mean(), "label": hard.detach().mean()}
