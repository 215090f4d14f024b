"""RISE: distillation of logits, with the student's embedding drawn to the class's text.

Huang et al., "A Sentence Speaks a Thousand Images: Domain Generalization through Distilling CLIP with Language
Guidance", ICCV 2023, sections 3.2 to 3.4; the head's start as in its public code, and the weights that it has for PACS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vl2v.methods.base import Output, Share, Stage, Targets, Task, Temperature, Terms, number
from vl2v.methods.kd import KdSettings, kd_loss
from vl2v.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor

DISTANCES = 0.5  # weight of both distances
RELATIVE = 10.0  # and of the relative one within


@register("rise")
class Rise(Task):
    """A linear head, at first the class embeddings, on the projector's embedding; all is trained."""

    title = "distillation of logits, drawn to the class texts"
    version = 2
    head = "stacked"
    class_term = True
    anchors = True
    stage_defaults = {"distill": {"steps": 1000, "lr": 3e-4}}

    class Settings(KdSettings):
        """Settings of the distillation, with RISE's defaults."""

        temperature: Temperature | Literal["auto"] = Field(
            default=3.0, description="of the softened logits; auto: the teacher's have 3/4 of a blind guess's entropy"
        )
        kd_weight: Share = Field(default=0.9, description="share of the teacher's term")

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("distill", "all", self.training_step),)

    def training_step(self, output: Output, targets: Targets) -> Terms:
        """Return L = distillation + 1/2 (absolute + 10 relative).

        absolute = mean(1 - cos(e, T(y))), e the embedding under the head; relative = the mean square of the
        differences between the softmax over source domains of cos(e, A(y)) and that of cos(T(y), A(y)), A(y) being the
        class's text in each source domain's words. Both over the labelled images.
        """
        temperature = number(self.settings.temperature, "temperature")
        terms = kd_loss(output, targets, temperature, self.settings.kd_weight)
        labelled = targets.labels >= 0
        if not labelled.any():
            return terms
        absolute, relative = distances(output, targets, labelled)
        loss = terms["loss"] + DISTANCES * (absolute + RELATIVE * relative)
        return {**terms, "loss": loss, "absolute": absolute.detach(), "relative": relative.detach()}


def distances(output: Output, targets: Targets, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """Return the absolute and the relative distance, see `Rise.training_step`."""
    from torch.nn import functional

    assert output.embedding is not None and targets.texts is not None and targets.anchors is not None
    labels = targets.labels[labelled]
    own = functional.normalize(output.embedding[labelled], dim=-1)
    texts, anchors = targets.texts[labels], targets.anchors[labels]
    absolute = (1 - (own * texts).sum(-1)).mean()
    of_student, of_teacher = ((anchors @ rows[:, :, None]).squeeze(-1).softmax(-1) for rows in (own, texts))
    return absolute, functional.mse_loss(of_student, of_teacher)
