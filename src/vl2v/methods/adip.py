"""VL2V-ADiP: Align, Distill, Predict (CVPR 2024, arXiv 2310.08255, section 4)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from vl2v.config import Section
from vl2v.methods.base import Output, Share, Stage, Targets, Task, Terms, number
from vl2v.methods.registry import register

ALIGN = {"steps": 1000, "lr": 1e-3, "optimizer": "adam"}


class AdipSettings(Section):
    """Settings of the two cosines."""

    lambda_: Share | Literal["auto"] = Field(
        default=0.5,
        alias="lambda",
        description="the image target's share; auto: as is best for domains left out, on frozen features",
    )


@register("adip")
class Adip(Task):
    """Train P with F frozen, then F with P frozen; the class embeddings classify."""

    title = "VL2V-ADiP: align, distill, predict by texts"
    stage_defaults = {"align": ALIGN, "distill": {"steps": 1000, "lr": 1e-3}}

    class Settings(AdipSettings):
        """Settings of ADiP."""

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Align and Distill, with one loss."""
        return self.align, Stage("distill", "backbone", self.cosines)

    @property
    def align(self) -> Stage:
        """P learns with F frozen."""
        return align(self.settings.lambda_)

    def cosines(self, output: Output, targets: Targets) -> Terms:
        """See `cosine_loss`."""
        return cosine_loss(output, targets, number(self.settings.lambda_, "lambda"))


def align(lambda_: float | Literal["auto"]) -> Stage:
    """Return the first stage of ADiP and of what builds on it: the projector learns, the backbone is frozen."""

    def step(output: Output, targets: Targets) -> Terms:
        return cosine_loss(output, targets, number(lambda_, "lambda"))

    decides: dict[str, Any] = {"lambda": lambda_}
    return Stage("align", "projector", step, id="align/1", decides=decides)


def cosine_loss(output: Output, targets: Targets, lambda_: float) -> Terms:
    """Return L = - mean(lambda cos(z, I(x)) + (1 - lambda) cos(z, T(y))), in [-1, 1].

    An image without a label has no T(y), one that wasn't queried no I(x): what it has counts in full then. The terms
    `image` and `text` are the two sums' parts of L.
    """
    from torch.nn import functional

    z, (images, texts) = output.z, targets.embeddings()
    of_image, of_label = targets.weights(lambda_)
    image_term = of_image * functional.cosine_similarity(z, images, dim=-1)
    text_term = of_label * functional.cosine_similarity(z, texts[targets.labels], dim=-1)
    loss = -(image_term + text_term).mean()
    return {"loss": loss, "image": -image_term.detach().mean(), "text": -text_term.detach().mean()}
