"""VL2V-ADiP and VL2V-SD (CVPR 2024, arXiv 2310.08255, section 4), our ADiP-plus, and the teacher without a student."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from vl2v.config import Section
from vl2v.methods.averaging import Interpolation
from vl2v.methods.base import Output, Share, Stage, Targets, Task, Temperature, Terms, number, register


@register("zero-shot")
class ZeroShot(Task):
    """A row of the benchmark; no student is trained."""

    title = "the teacher itself, without a student"


@register("adapted-teacher")
class AdaptedTeacher(Task):
    """A row of the benchmark: `vl2v.evaluation.adapted`, on the source domains' training images."""

    title = "the same, adapted to the labelled source images"
    class_term = True


ALIGN = {"steps": 1000, "lr": 1e-3, "optimizer": "adam"}


Lambda = Annotated[
    Share | Literal["auto"],
    Field(
        alias="lambda",
        description="the image target's share; auto: as is best for domains left out, on frozen features",
    ),
]


class AdipSettings(Section):
    """Settings of the two cosines."""

    lambda_: Lambda = 0.5


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
        return self.align, Stage("distill", "backbone", self.cosines)

    @property
    def align(self) -> Stage:
        return align(self.settings.lambda_)

    def cosines(self, output: Output, targets: Targets) -> Terms:
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


INTERPOLATE = (0.5, 0.75, 1.0)  # from the pretrained backbone to the distilled one


@register("adip-plus")
class AdipPlus(Task):
    """ADiP with one more term, a lambda that fits the teacher, a choice of how far to go, and P fitted at the end.

    The cosines of ADiP draw an image's embedding to its own target and its own class's text; nothing says how near
    the other classes' texts are to be. The added term does, by Hinton's divergence (arXiv 1503.02531) under the text
    classifier. Lambda is chosen before anything is trained, by domains left out (`vl2v.evaluation.ridge`): a teacher
    that knows the domains is followed further than one that doesn't. And what Align preserved of the pretrained
    features isn't all given up: the backbone ends where source validation is best, halfway, three quarters of the way
    or all the way from the pretrained one to the distilled one (as WiSE-FT does between zero-shot and fine-tuned
    weights, Wortsman et al., CVPR 2022). Distill has moved the features away from those that P was fitted to: so P is
    fitted once more, in closed form. Ours; see docs/trials.md.
    """

    title = "ADiP plus a term between classes; fits lambda to its teacher"
    version = 4
    refits = True
    class_term = True
    stage_defaults = Adip.stage_defaults

    class Settings(AdipSettings):
        """Settings of ADiP, and of the added term."""

        lambda_: Lambda = "auto"
        temperature: Temperature = "auto"
        class_weight: float = Field(default=0.5, ge=0, description="of the term between classes")

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
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


@register("sd")
class Sd(Adip):
    """The student is the teacher's image tower, the teacher its frozen original."""

    title = "VL2V-SD: self-distillation of a white box"
    tower = True
    version = 2
    stage_defaults = {"distill": {"steps": 1000, "lr": 1e-5}}

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("distill", "all", self.cosines),)
