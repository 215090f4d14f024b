"""Full fine-tuning with something more for unseen domains: mixtures, a penalty, or a sharpness-aware step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

from pydantic import Field

from vl2v.config import Section
from vl2v.methods.base import Blend, Output, SecondPass, Stage, Targets, Terms, register
from vl2v.methods.finetuning import Finetuning, cross_entropy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vl2v.students.student import Student


@register("mixup")
class Mixup(Finetuning):
    """ERM on mixtures of two images, each of another source domain.

    Zhang et al., ICLR 2018; between domains as DomainBed has it.
    """

    title = "fine-tuning on mixtures of domains"
    version = 3

    class Settings(Section):
        """How images are mixed."""

        mixup_alpha: float = Field(default=0.2, gt=0, description="of the beta distribution of shares")

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
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


@register("coral")
class Coral(Finetuning):
    """ERM with CORAL's penalty: features with the same mean and covariance in every source domain.

    Sun and Saenko, "Deep CORAL", ECCV 2016 workshops, equation 1; means and pairs of domains as DomainBed has them.
    """

    title = "fine-tuning with domains' features made alike"

    class Settings(Section):
        """The penalty's weight."""

        coral_weight: float = Field(default=1.0, ge=0, description="of the penalty")

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("finetune", "all", self.training_step, pairs=True),)

    def training_step(self, output: Output, targets: Targets) -> Terms:
        """Return L = cross-entropy + weight * the mean over pairs of domains of `discrepancy`."""
        label = cross_entropy(output, targets)["loss"]
        total = label
        pairs = list(combinations([output.features[group] for group in targets.of_each_domain()], 2))
        for one, other in pairs:
            total = total + self.settings.coral_weight / len(pairs) * discrepancy(one, other)
        return {"loss": total, "label": label.detach(), "penalty": (total - label).detach()}


def discrepancy(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean squares of the differences of means and of covariances of features [n, p] and [m, p]."""
    means = (one.mean(0) - other.mean(0)).square().mean()
    return means + (one.T.cov() - other.T.cov()).square().mean()


QUICKER = 10.0  # the variances' learning rate, as in the authors' code


@register("miro")
class Miro(Finetuning):
    """ERM with MIRO's penalty, which keeps the mutual information with the pretrained features.

    Cha et al., "Domain Generalization by Mutual-Information Regularization with Pre-trained Models", ECCV 2022,
    equation 5. Here on the last features F(x); the authors take intermediate ones, too.
    """

    title = "fine-tuning that stays near the pretrained features"
    version = 2

    class Settings(Section):
        """The penalty's weight."""

        miro_weight: float = Field(default=0.1, ge=0, description="of the penalty")

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("finetune", "all", self.training_step, auxiliary=oracle, auxiliary_rate=QUICKER),)

    def training_step(self, output: Output, targets: Targets) -> Terms:
        """Return L = cross-entropy + weight / 2 mean(log v + (F(x) - F0(x))^2 / v)."""
        assert output.auxiliary is not None
        penalty = (self.settings.miro_weight / 2 * output.auxiliary).mean()
        return {"loss": cross_entropy(output, targets)["loss"] + penalty, "penalty": penalty.detach()}


def oracle(student: Student, dim: int) -> nn.Module:
    """Return what finds log v + (F(x) - F0(x))^2 / v, [n, p], of images.

    F0 is the student's backbone as it starts; v, a variance for each feature, is trained along from 0.1.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pretrained = deepcopy(student).requires_grad_(False)
            self.raw = nn.Parameter(torch.full((student.width,), 0.1).expm1().log())  # softplus(raw) = 0.1

        def train(self, mode: bool = True) -> Oracle:
            super().train(mode)
            self.pretrained.eval()
            return self

        def forward(self, x: Tensor, output: Output) -> Tensor:
            with torch.no_grad():
                known: Tensor = self.pretrained.features(x)
            variance = functional.softplus(self.raw) + 1e-5
            return variance.log() + (output.features - known).square() / variance

    return Oracle()


@register("sam")
class Sam(Finetuning):
    """ERM with the gradient taken rho up the slope: g(w + rho g / |g|) (Foret et al., ICLR 2021, algorithm 1)."""

    title = "sharpness-aware fine-tuning"
    version = 2

    class Settings(Section):
        """The step up."""

        sam_rho: float = Field(default=0.05, gt=0, description="how far the step up goes")

    settings: Settings

    @property
    def second_pass(self) -> SecondPass:
        return partial(climb, rho=self.settings.sam_rho)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("finetune", "all", cross_entropy, second_pass=self.second_pass),)


@register("sagm")
class Sagm(Sam):
    """ERM with the mean of g(w) and g(w + rho g / |g| - alpha g), alpha = 0.001 as published.

    Wang et al., "Sharpness-Aware Gradient Matching for Domain Generalization", CVPR 2023, algorithm 1.
    """

    title = "sharpness-aware gradient matching"

    @property
    def second_pass(self) -> SecondPass:
        return partial(climb, rho=self.settings.sam_rho, alpha=1e-3, first=0.5)


def climb(
    weights: Mapping[str, Tensor],
    again: Callable[[], None],
    whole: Callable[[Tensor], Tensor],
    *,
    rho: float,
    alpha: float = 0.0,
    first: float = 0.0,
) -> None:
    """Replace the gradient g(w) by first g(w) + (1 - first) g(w + (rho / |g| - alpha) g).

    Batch-norm statistics stay those of the first pass.

    Args:
        weights: see `SecondPass`; so are
        again: and
        whole.
        rho: the length of the step up, in the space of the weights.
        alpha: of SAGM's gradient matching.
        first: weight of the gradient before the step up.
    """
    import torch

    trained = [weight for weight in weights.values() if weight.grad is not None]
    before = {key: weight.detach().clone() for key, weight in weights.items()}
    gradients = [weight.grad.clone() for weight in trained if weight.grad is not None]
    length = whole(torch.stack([gradient.norm() for gradient in gradients]).norm())
    with torch.no_grad():
        for weight, gradient in zip(trained, gradients, strict=True):
            weight.add_(gradient * (rho / (length + 1e-12) - alpha))
    again()
    with torch.no_grad():
        for key, weight in weights.items():
            weight.copy_(before[key])
        for weight, gradient in zip(trained, gradients, strict=True):
            assert weight.grad is not None
            weight.grad.lerp_(gradient, first)
