"""Distillation of logits, and of features: methods that learn from labels and from the teacher's embeddings."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from vl2v.config import Section
from vl2v.methods.averaging import TailAverage
from vl2v.methods.base import Output, Share, Stage, Targets, Task, Temperature, Terms, number, register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vl2v.students.student import Student


class KdSettings(Section):
    """Settings of the distillation of logits."""

    temperature: Temperature = 2.0
    kd_weight: Share = Field(default=0.5, description="share of the teacher's term")


@register("kd")
class Kd(Task):
    """A linear head learns labels and the teacher's distribution over classes.

    Hinton, Vinyals and Dean, arXiv 1503.02531, section 2.
    """

    title = "distillation of logits"
    head = "linear"
    class_term = True
    stage_defaults = {"distill": {"steps": 1000, "lr": 3e-4}}

    class Settings(KdSettings):
        """Settings of KD."""

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("distill", "all", self.training_step),)

    def training_step(self, output: Output, targets: Targets) -> Terms:
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


STAGES = {"distill": {"steps": 1000, "lr": 1e-3}}


@register("fd")
class Fd(Task):
    """Backbone and projector are trained together, labels aren't used, the class embeddings classify.

    Hints of Romero et al. ("FitNets", ICLR 2015, equation 3) at the last layer, with a cosine for the distance.
    """

    title = "distillation of features"
    stage_defaults = STAGES

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("distill", "all", cosine_distance),)


@register("simkd")
class SimKd(Task):
    """As FD, with a squared distance of embeddings that aren't normalised.

    Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, equation 2. The classifier of a
    vision-language model is its class embeddings.
    """

    title = "distillation of features under the teacher's classifier"
    stage_defaults = STAGES

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("distill", "all", squared_distance),)


def cosine_distance(output: Output, targets: Targets) -> Terms:
    """Return L = mean(1 - cos(z, I(x))); an image that wasn't queried adds nothing."""
    images, _ = targets.embeddings()
    return {"loss": (targets.queried - (output.z * images).sum(-1)).mean()}


def squared_distance(output: Output, targets: Targets) -> Terms:
    """Return L = mean ||P(F(x)) - I(x)||^2, P's output not normalised; an image that wasn't queried adds nothing."""
    images, _ = targets.embeddings()
    return {"loss": (targets.queried * (output.projected - images).square().sum(-1)).mean()}


DISTANCES = 0.5  # weight of both distances
RELATIVE = 10.0  # and of the relative one within


@register("rise")
class Rise(Task):
    """A linear head, at first the class embeddings, on the projector's embedding; all is trained.

    Huang et al., "A Sentence Speaks a Thousand Images: Domain Generalization through Distilling CLIP with Language
    Guidance", ICCV 2023, sections 3.2 to 3.4; the head's start as in its public code, and its weights for PACS.
    """

    title = "distillation of logits, drawn to the class texts"
    version = 2
    head = "stacked"
    class_term = True
    anchors = True
    stage_defaults = {"distill": {"steps": 1000, "lr": 3e-4}}

    class Settings(KdSettings):
        """Settings of the distillation, with RISE's defaults."""

        temperature: Temperature = 3.0
        kd_weight: Share = Field(default=0.9, description="share of the teacher's term")

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
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


HARDEST, UNTIL = 0.2, 0.75  # of a batch, and for how much of the steps
EACH = 0.5  # weight of either divergence
SCALE, LARGEST = 1 / 0.07, 100.0  # of the cosines, at first and at most


@register("scmd")
class Scmd(Task):
    """A linear head learns labels and the teacher's distribution, of the hardest images of a batch at first.

    Leng, Li and Wang, "Choosing Wisely and Learning Deeply: Selective Cross-Modality Distillation via CLIP for Domain
    Generalization", TMLR 2024, section 3, with the public code's settings and its average of the weights, from those
    of step 299 on. The scale of the cosines learns as fast as the rest, which in theirs has half of its rate.
    """

    title = "distillation of logits, of the hardest fifth of a batch"
    head = "linear"
    class_term = True
    stage_defaults = {"distill": {"steps": 1000, "lr": 3e-4, "schedule": "constant"}}

    class Settings(Section):
        """Settings of the divergences."""

        temperature: Temperature = 3.0

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        average = partial(TailAverage, 298)
        return (Stage("distill", "all", self.training_step, auxiliary=cosines, averagers=(average,), pairs=True),)

    def training_step(self, output: Output, targets: Targets) -> Terms:
        """Return the mean of CE(v, y) + 1/2 tau^2 (KL(t || v) + KL(t || s e . T^T)) over the chosen images.

        t, v and s e . T^T are softened by tau; e is the unit embedding of a projector of its own, s its scale. Chosen
        are all images after three quarters of the steps, until then the fifth whose cross-entropy is largest (one
        without a label: that of the class that the teacher names). Without a label, or an embedding of the teacher, an
        image has what is left of the terms.
        """
        from torch.nn import functional

        assert output.auxiliary is not None
        tau = number(self.settings.temperature, "temperature")
        _, texts = targets.embeddings()
        labels = targets.labels.where(targets.labels >= 0, targets.logits().argmax(-1))
        losses = functional.cross_entropy(output.projected, labels, reduction="none")
        count = len(labels) if targets.done > UNTIL else max(1, int(HARDEST * len(labels)))
        chosen = losses.topk(count).indices
        label = (losses[chosen] * (targets.labels[chosen] >= 0)).mean()
        teacher = (targets.logits()[chosen] / tau).softmax(-1)
        weight = EACH * tau**2 * targets.queried[chosen]
        soft, modal = (
            (weight * functional.kl_div((v[chosen] / tau).log_softmax(-1), teacher, reduction="none").sum(-1)).mean()
            for v in (output.projected, output.auxiliary @ texts.T)
        )
        terms = {"label": label.detach(), "soft": soft.detach(), "modal": modal.detach()}
        return {"loss": label + soft + modal, **terms}


def cosines(student: Student, dim: int) -> nn.Module:
    """Return a projector of a student's features, whose embeddings [n, d] have the length of the cosines' scale."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Cosines(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.projector = nn.Linear(student.width, dim, bias=False)
            self.log_scale = nn.Parameter(torch.tensor([math.log(SCALE)]))

        def forward(self, x: Tensor, output: Output) -> Tensor:
            with torch.no_grad():
                self.log_scale.clamp_(0, math.log(LARGEST))
            return self.log_scale.exp() * functional.normalize(self.projector(output.features), dim=-1)

    return Cosines()
