"""What a student predicts of one image."""

from __future__ import annotations

from dataclasses import dataclass

from vl2v.names import UNKNOWN


@dataclass(frozen=True)
class Prediction:
    """One image's answer.

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
