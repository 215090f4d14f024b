"""ADiP with one more term, a lambda that fits the teacher, a choice of how far to go, and P fitted at the end.

The cosines of ADiP draw an image's embedding to its own target and its own class's text; nothing tells how near the
other classes' texts are to be. The added term does, by Hinton's divergence (arXiv 1503.02531) under the text
classifier. Lambda is chosen before anything is trained, by domains left out (`vl2v.evaluation.ridge`): a teacher that
knows the domains is followed further than one that doesn't. And what Align preserved of the pretrained features isn't
all given up: the backbone ends where source validation is best, halfway, three quarters of the way or all the way from
the pretrained one to the distilled one (as WiSE-FT does between zero-shot and fine-tuned weights, Wortsman et al., CVPR
2022). Distill has moved the features away from those that P was fitted to: so P is fitted once more, in closed form.
Ours; see docs/trials.md.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field

from vl2v.methods.adip import Adip, AdipSettings, align, cosine_loss
from vl2v.methods.averaging import Interpolation
from vl2v.methods.base import Output, Share, Stage, Targets, Task, Temperature, Terms, number
from vl2v.methods.registry import register

INTERPOLATE = (0.5, 0.75, 1.0)  # from the pretrained backbone to the distilled one


@register("adip-plus")
class AdipPlus(Task):
    """Align as ADiP does, Distill with the added term, fit P again; the class embeddings classify."""

    title = "ADiP that fits its teacher, and learns how it tells classes apart"
    version = 4
    refits = True
    class_term = True
    stage_defaults = Adip.stage_defaults

    class Settings(AdipSettings):
        """Settings of ADiP, and of the added term."""

        lambda_: Share | Literal["auto"] = Field(
            default="auto",
            alias="lambda",
            description="the image target's share; auto: as is best for domains left out, on frozen features",
        )
        temperature: Temperature | Literal["auto"] = Field(
            default="auto",
            description="of the softened logits; auto: the teacher's have 3/4 of a blind guess's entropy",
        )
        class_weight: float = Field(default=0.5, ge=0, description="of the term between classes")

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Align, and Distill with the added term."""
        interpolation = partial(Interpolation, INTERPOLATE)
        distill = Stage("distill", "backbone", self.classwise, averagers=(interpolation,))
        return align(self.settings.lambda_), distill

    def classwise(self, output: Output, targets: Targets) -> Terms:
        """Return ADiP's loss + weight tau^2 / s mean KL(softmax(t / tau) || softmax(s z . T^T / tau)).

        t are the teacher's logits, s I(x) . T^T unless it was adapted.

        Divided by the logit scale s, its gradient is of the cosines' size. An image that wasn't queried adds nothing.
        """
        from torch.nn import functional

        temperature = number(self.settings.temperature, "temperature")
        terms = cosine_loss(output, targets, number(self.settings.lambda_, "lambda"))
        _, texts = targets.embeddings()
        teacher = (targets.logits() / temperature).softmax(-1)
        student = (targets.scale / temperature * output.z @ texts.T).log_softmax(-1)
        divergence = functional.kl_div(student, teacher, reduction="none").sum(-1)
        weight = self.settings.class_weight * temperature**2 / targets.scale
        added = weight * (targets.queried * divergence).mean()
        return {**terms, "loss": terms["loss"] + added, "classes": added.detach()}
