"""What a student says about one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

UNKNOWN = "unknown"


def why_not_new(name: str, classes: Sequence[str]) -> str | None:
    """Return why a class of this name can't join others; None: it can."""
    if name in classes:
        return f"class {name!r} is there already"
    if name.strip() == UNKNOWN:
        return f"{UNKNOWN!r} is the answer where none is likely enough; choose another name for the class"
    return None


@dataclass(frozen=True)
class Prediction:
    """One picture's answer.

    Attributes:
        label: the class, or "unknown" where even the best one is less likely than the threshold.
        best: the most likely class.
        probability: of the most likely class.
        probabilities: of every class.
    """

    label: str
    best: str
    probability: float
    probabilities: dict[str, float]


def prediction(classes: list[str], probabilities: list[float], threshold: float) -> Prediction:
    """Return the answer that follows from each class's probability."""
    best = max(range(len(classes)), key=probabilities.__getitem__)
    name, probability = classes[best], probabilities[best]
    label = name if probability >= threshold else UNKNOWN
    return Prediction(label, name, probability, dict(zip(classes, probabilities, strict=True)))
