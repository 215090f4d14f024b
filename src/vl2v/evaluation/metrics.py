"""Metrics of one set of images, and what is fitted on validation: the temperature and the threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vl2v.table import Table


@dataclass(frozen=True)
class Metrics:
    """How well a classifier does on some images; shares are between 0 and 1.

    Attributes:
        images: how many.
        accuracy: share predicted correctly.
        balanced_accuracy: mean over the classes that occur of the share predicted correctly.
        ece: expected calibration error, 15 equal bins (Guo et al., ICML 2017).
        known: share whose probability reaches the threshold, so that the prediction isn't "unknown".
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


def calibration_error(sure: Tensor, right: Tensor) -> float:
    """Return the expected calibration error (Guo et al., ICML 2017, equation 3), in 15 equal bins.

    A probability on an edge is of the bin above.

    Args:
        sure: the probability of each best class [n].
        right: 1 where it is right, else 0 [n].
    """
    number = (sure * BINS).floor().long().clamp(max=BINS)
    gaps = torch.zeros(BINS + 1, dtype=torch.float64).index_add_(0, number, (right - sure).double())
    return gaps.abs().sum().item() / len(sure)


MOST = 7.0  # the logarithm of a temperature, either way
HALVINGS = 40


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that minimises the cross-entropy of logits / temperature (Guo et al., ICML 2017).

    Of n images that are all predicted correctly there is no such temperature, and probabilities would be 1: their
    labels are smoothed by 1 / (n + 2) then, as Platt does (1999, section 2.2).

    Args:
        logits: [n, C].
        labels: classes [n], or probabilities [n, C], which are matched as they are.
    """
    logits, classes = logits.double(), logits.shape[-1]
    wanted = labels.double() if labels.ndim == 2 else functional.one_hot(labels, classes).double()
    if labels.ndim == 1 and bool((logits.argmax(-1) == labels).all()):
        smoothed = 1 / (len(labels) + 2)
        wanted = (1 - smoothed) * wanted + smoothed / classes

    def slope(inverse: float) -> float:
        return float((((logits * inverse).softmax(-1) - wanted) * logits).sum(-1).mean())

    # Convex in 1 / temperature: its slope is halved into. (LBFGS would import PyTorch's compiler, for seven seconds.)
    start = slope(1.0)
    if start == 0:  # all logits alike, say
        return 1.0
    if math.isnan(start):
        return start
    low, high = -MOST, MOST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def unknown_threshold(logits: Tensor, labels: Tensor) -> float:
    """Return the probability that 95% of the correctly predicted images reach."""
    best = logits.softmax(-1).amax(-1)[logits.argmax(-1) == labels]
    return best.quantile(1 - 0.95).item() if len(best) else 0.0


BINS = 15
SOFTNESS = 0.75  # what a temperature of 4 gives seven classes and a logit scale of 20: chosen there (docs/trials.md)
SAMPLE = 4096  # images; more change nothing
COLDEST, HOTTEST = 1e-4, 10.0  # times the logit scale


def softness(logits: NDArray[np.floating[Any]], temperature: float) -> float:
    """Return the entropy of softmax(logits / temperature) over that of a blind guess, the mean of images; 0 to 1.

    Args:
        logits: [n, C], C > 1.
        temperature: tau.
    """
    scaled = logits / temperature
    scaled = scaled - scaled.max(1, keepdims=True)
    total = np.exp(scaled).sum(1)
    entropy = np.log(total) - (np.exp(scaled) * scaled).sum(1) / total
    return float(entropy.mean() / np.log(logits.shape[1]))


def soft_temperature(logits: NDArray[np.float32], scale: float) -> float:
    """Return the temperature, to two digits, at which a teacher's logits have the softness that students learn from.

    A temperature's effect depends on the number of classes and on the logit scale: at 4, one teacher's probabilities
    of 7 classes have a softness of 0.77, another's of 54 classes 0.95, which is nearly uniform.

    Args:
        logits: [n, C]; of one class only, the temperature is 1.
        scale: the teacher's logit scale s, of the cosines.
    """
    if logits.shape[1] < 2:
        return 1.0
    logits = logits[:: -(-len(logits) // SAMPLE)]
    low, high = COLDEST * scale, HOTTEST * scale
    for _ in range(20):  # to a millionth of the range of its logarithm
        middle = (low * high) ** 0.5
        low, high = (middle, high) if softness(logits, middle) < SOFTNESS else (low, middle)
    return float(f"{high:.2g}")


Role = Literal["seen", "unseen"]
ROLES: tuple[Role, ...] = ("unseen", "seen")


@dataclass(frozen=True)
class Row:
    """One line of an evaluation: a model on a domain.

    `role` is "seen" for a source domain, where only its validation images count, and "unseen" otherwise.
    """

    who: str
    domain: str
    role: Role
    metrics: Metrics


@dataclass(frozen=True, repr=False)
class Evaluation:
    """All rows, notes on them (leakage, images set aside), and the classes that competed.

    Examples:
        >>> metrics = Metrics(images=40, accuracy=0.85, balanced_accuracy=0.84, ece=0.03, known=0.9)
        >>> evaluation = Evaluation((Row("student", "sketch", "unseen", metrics),))
        >>> evaluation
        Evaluation(student: 85.0% unseen)
        >>> evaluation.mean(role="unseen")
        0.85
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        means = {who: {role: self.mean(who, role) for role in ROLES} for who in self.models()}
        words = (
            f"{who}: " + ", ".join(f"{100 * mean:.1f}% {role}" for role, mean in found.items() if mean is not None)
            for who, found in means.items()
        )
        return f"Evaluation({'; '.join(words) or 'no rows'})"

    def _repr_html_(self) -> str:
        return self.table().render("html")

    def of(self, who: str = "student", role: Role | None = None) -> list[Row]:
        """Return one model's rows, all or those of a role."""
        return [row for row in self.rows if row.who == who and role in (None, row.role)]

    def mean(self, who: str = "student", role: Role | None = None) -> float | None:
        """Return the mean accuracy over domains; None where there is no row."""
        rows = self.of(who, role)
        return sum(row.metrics.accuracy for row in rows) / len(rows) if rows else None

    def worst(self, who: str = "student") -> Row | None:
        """Return the row of the domain with the lowest accuracy."""
        return min(self.of(who), key=lambda row: row.metrics.accuracy, default=None)

    def models(self) -> list[str]:
        """Return who was measured, in order."""
        return list(dict.fromkeys(row.who for row in self.rows))

    def table(self) -> Table:
        """Return every model's figures by domain; unseen domains are marked with a star."""
        cells, sections = [], []
        for who in self.models():
            for row in self.of(who):
                m = row.metrics
                shares = (f"{100 * share:.1f}" for share in (m.accuracy, m.balanced_accuracy, m.ece, m.known))
                mark = " *" if row.role == "unseen" else ""
                cells.append([who, row.domain + mark, str(m.images), *shares])
            sections.append(len(cells) - 1)
        heads = ("", "domain", "images", "accuracy", "balanced", "ECE", "known")
        worst = self.worst()
        notes = [] if worst is None else [f"worst domain: {worst.domain}, {100 * worst.metrics.accuracy:.1f}%"]
        title = "accuracy %, * unseen in training"
        return Table(heads, cells, (), [*notes, *self.notes], title, left=heads[:2], sections=sections)

    def to_json(self) -> dict[str, Any]:
        """Return plain types only."""
        worst = self.worst()
        return {
            "rows": [{"who": r.who, "domain": r.domain, "role": r.role, **asdict(r.metrics)} for r in self.rows],
            "worst_domain": worst.domain if worst else None,
            "notes": list(self.notes),
            "classes": list(self.classes),
        }

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Evaluation:
        """Return what `to_json` wrote."""
        former = {"pictures": "images"}  # as earlier versions called it
        rows: Sequence[dict[str, Any]] = [{former.get(k, k): v for k, v in row.items()} for row in tree["rows"]]
        heads = ("who", "domain", "role")
        made = [
            Row(**{k: row[k] for k in heads}, metrics=Metrics(**{k: v for k, v in row.items() if k not in heads}))
            for row in rows
        ]
        return cls(tuple(made), tuple(tree["notes"]), tuple(tree["classes"]))
