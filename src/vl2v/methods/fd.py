"""Distillation of features: the whole student learns the teacher's embedding of each image.

FD: hints of Romero et al. ("FitNets", ICLR 2015, equation 3) at the last layer, with a cosine for the distance.
SimKD: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, equation 2. The classifier
of a vision-language model is its class embeddings.
"""

from __future__ import annotations

from vl2v.methods.base import Output, Stage, Targets, Task, Terms
from vl2v.methods.registry import register

STAGES = {"distill": {"steps": 1000, "lr": 1e-3}}


@register("fd")
class Fd(Task):
    """Backbone and projector are trained together, labels aren't used, the class embeddings classify."""

    title = "distillation of features"
    stage_defaults = STAGES

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("distill", "all", cosine_distance),)


@register("simkd")
class SimKd(Task):
    """As FD, with a squared distance of embeddings that aren't normalised."""

    title = "distillation of features under the teacher's classifier"
    stage_defaults = STAGES

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("distill", "all", squared_distance),)


def cosine_distance(output: Output, targets: Targets) -> Terms:
    """Return L = mean(1 - cos(z, I(x))); an image that wasn't queried adds nothing."""
    images, _ = targets.embeddings()
    return {"loss": (targets.queried - (output.z * images).sum(-1)).mean()}


def squared_distance(output: Output, targets: Targets) -> Terms:
    """Return L = mean ||P(F(x)) - I(x)||^2, P's output not normalised; an image that wasn't queried adds nothing."""
    images, _ = targets.embeddings()
    return {"loss": (targets.queried * (output.projected - images).square().sum(-1)).mean()}
