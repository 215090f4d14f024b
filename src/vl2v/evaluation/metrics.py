"""Metrics of one set of images, and what is fitted on validation: the temperature and the threshold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Metrics:
    """How well a classifier does on some images; shares are between 0 and 1.

    Attributes:
        images: how many.
        accuracy: share predicted correctly.
        balanced_accuracy: mean over the classes that occur of the share predicted correctly.
        ece: expected calibration error, 15 equal bins (Guo et al., ICML 2017).
        known: share whose probability reaches the threshold, so that it isn't answered "unknown".
    """

    images: int
    accuracy: float
    balanced_accuracy: float
    ece: float
    known: float


def measure(logits: Tensor, labels: Tensor, threshold: float = 0.0) -> Metrics:
    """Return the metrics of calibrated logits [n, C] against labels [n]; n > 0."""
    sure, best = logits.softmax(-1).max(-1)
    right = (best == labels).double()
    of_classes = [right[labels == label].mean() for label in labels.unique()]
    return Metrics(
        images=len(labels),
        accuracy=right.mean().item(),
        balanced_accuracy=torch.stack(of_classes).mean().item(),
        ece=calibration_error(sure.double(), right),
        known=(sure >= threshold).double().mean().item(),
    )


def calibration_error(sure: Tensor, right: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error (Guo et al., ICML 2017, equation 3), in equal bins.

    Args:
        sure: the probability of each best class [n].
        right: 1 where it is right, else 0 [n].
        bins: how many; a probability on an edge is of the bin above.
    """
    number = (sure * bins).floor().long().clamp(max=bins)
    gaps = torch.zeros(bins + 1, dtype=torch.float64).index_add_(0, number, (right - sure).double())
    return gaps.abs().sum().item() / len(sure)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that minimises the cross-entropy of logits / temperature (Guo et al., ICML 2017).

    Of n images that are all answered correctly there is no such temperature, and probabilities would be 1: their
    labels are smoothed by 1 / (n + 2) then, as Platt does (1999, section 2.2).

    Args:
        logits: [n, C].
        labels: classes [n], or probabilities [n, C], which are matched as they are.
    """
    inverse = torch.zeros((), dtype=torch.float64, requires_grad=True)  # its logarithm: stays positive
    optimizer = torch.optim.LBFGS([inverse], max_iter=100, line_search_fn="strong_wolfe")
    logits = logits.double()
    labels = labels.double() if labels.ndim == 2 else labels
    perfect = labels.ndim == 1 and bool((logits.argmax(-1) == labels).all())
    smoothed = 1 / (len(labels) + 2) if perfect else 0.0

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(logits * inverse.clamp(-7, 7).exp(), labels, label_smoothing=smoothed)
        loss.backward()
        return loss

    optimizer.step(closure)
    return (-inverse.detach().clamp(-7, 7)).exp().item()


def unknown_threshold(logits: Tensor, labels: Tensor, keep: float = 0.95) -> float:
    """Return the probability that a share `keep` of the correctly answered images reaches."""
    best = logits.softmax(-1).amax(-1)[logits.argmax(-1) == labels]
    return best.quantile(1 - keep).item() if len(best) else 0.0
