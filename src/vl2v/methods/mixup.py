"""Mixup between domains (Zhang et al., ICLR 2018; between domains as DomainBed has it)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from vl2v.config import Section
from vl2v.methods.base import Blend, Output, Stage, Targets, Terms
from vl2v.methods.erm import Finetuning
from vl2v.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("mixup")
class Mixup(Finetuning):
    """ERM on mixtures of two images, each of another source domain."""

    title = "fine-tuning on mixtures of domains"
    version = 3

    class Settings(Section):
        """How images are mixed."""

        mixup_alpha: float = Field(default=0.2, gt=0, description="of the beta distribution of shares")

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        blend = between_domains(self.settings.mixup_alpha)
        return (Stage("finetune", "all", mixed_cross_entropy, blend=blend, pairs=True),)


def between_domains(alpha: float) -> Blend:
    """Return what mixes each image with one of the next domain, domains in random order: b x1 + (1 - b) x2.

    b is drawn from Beta(alpha, alpha), once a pair of domains. With a single domain its own images are mixed.
    """

    def blend(pixels: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
        import torch

        groups = [group[torch.randperm(len(group))] for group in targets.of_each_domain()]
        order = torch.randperm(len(groups)).tolist()
        partner = torch.arange(len(pixels), device=pixels.device)
        share = torch.ones(len(pixels), device=pixels.device)
        for one, other in zip(order, [*order[1:], order[0]], strict=True):
            size = len(groups[one])
            others = groups[other].roll(1) if one == other else groups[other]
            partner[groups[one]] = others.repeat(-(-size // len(others)))[:size]
            share[groups[one]] = float(torch.distributions.Beta(alpha, alpha).sample())
        of_each = share.view(-1, 1, 1, 1)
        mixed = of_each * pixels.float() + (1 - of_each) * pixels[partner].float()
        return mixed, replace(targets, partners=targets.labels[partner], share=share)

    return blend


def mixed_cross_entropy(output: Output, targets: Targets) -> Terms:
    """Return b CE(v, y1) + (1 - b) CE(v, y2), the mean over the batch."""
    from torch.nn import functional

    assert targets.partners is not None and targets.share is not None
    own, others = (
        functional.cross_entropy(output.projected, labels, reduction="none")
        for labels in (targets.labels, targets.partners)
    )
    return {"loss": (targets.share * own + (1 - targets.share) * others).mean()}
