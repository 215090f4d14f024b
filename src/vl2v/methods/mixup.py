"""Mixup between domains (Zhang et al., ICLR 2018; between domains as DomainBed has it)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vl2v.config import LossConfig
from vl2v.methods.base import Blend, Method, Output, Stage, Targets
from vl2v.methods.erm import FINETUNE

if TYPE_CHECKING:
    from torch import Tensor

STAGES = {"finetune": FINETUNE}


def mixup(loss: LossConfig) -> Method:
    """Return ERM on mixtures of two pictures, each of another source domain."""
    stage = Stage("finetune", "all", mixed_cross_entropy, blend=between_domains(loss.mixup_alpha), pairs=True)
    return Method("mixup", "linear", (stage,), asks="nothing")


def between_domains(alpha: float) -> Blend:
    """Return what mixes each picture with one of the next domain, domains in random order: b x1 + (1 - b) x2.

    b is drawn from Beta(alpha, alpha), once a pair of domains. With a single domain its own pictures are mixed.
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


def mixed_cross_entropy(output: Output, targets: Targets) -> Tensor:
    """Return b CE(v, y1) + (1 - b) CE(v, y2), the mean over the batch."""
    from torch.nn import functional

    assert targets.partners is not None and targets.share is not None
    own, others = (
        functional.cross_entropy(output.projected, labels, reduction="none")
        for labels in (targets.labels, targets.partners)
    )
    return (targets.share * own + (1 - targets.share) * others).mean()
