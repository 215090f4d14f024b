"""What a student says about one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

UNKNOWN = "unknown"

NO_CLASS = f"{UNKNOWN!r} is the answer where no class is likely enough, so no class can be called that"


def why_not_new(name: str, classes: Sequence[str]) -> str | None:
    """Return why a class of this name can't join others; None: it can."""
    if name in classes:
        return f"class {name!r} is there already"
    return f"{NO_CLASS}; choose another name" if name.strip() == UNKNOWN else None


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
