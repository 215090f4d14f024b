"""How well a teacher's images and texts fit together, what it takes for what, and what images alone would tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vl2v.evaluation.compare import Right, Share

Vectors = NDArray[np.float32]
Indices = NDArray[np.int64]

RIDGE = 1.0  # on unit features; 0.3 to 3 do about as well on PACS and IconDG


@dataclass(frozen=True)
class Alignment:
    """Cosines between images and texts, means over images.

    Attributes:
        own: with the text of the image's class.
        other: with the nearest text of another class.
        gap: between the mean image and the mean text, a length (Liang et al., Mind the Gap, NeurIPS 2022).
    """

    own: float
    other: float
    gap: float

    @property
    def margin(self) -> float:
        """How much nearer the own class's text is than the best other."""
        return self.own - self.other


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were taken for another: class indices, how many, and the index of one of them."""

    label: int
    predicted: int
    count: int
    example: int


def align(images: Vectors, texts: Vectors, labels: Indices) -> Alignment:
    """Return how near images are to their class's text, and to others.

    Args:
        images: [n, d], unit rows, n > 0.
        texts: [C, d], unit rows, C > 1.
        labels: [n].
    """
    cosines = images @ texts.T
    rows = np.arange(len(labels))
    own = cosines[rows, labels]
    others = cosines.copy()
    others[rows, labels] = -np.inf
    gap = np.linalg.norm(images.mean(0) - texts.mean(0))
    return Alignment(float(own.mean()), float(others.max(1).mean()), float(gap))


def confusions(labels: Indices, predictions: Indices) -> list[Confusion]:
    """Return what was taken for what, the most frequent first.

    Args:
        labels: [n] classes.
        predictions: [n] predicted classes.
    """
    wrong = np.flatnonzero(labels != predictions)
    pairs, first, counts = np.unique(
        np.stack([labels[wrong], predictions[wrong]], 1), axis=0, return_index=True, return_counts=True
    )
    found = [
        Confusion(int(label), int(predicted), int(count), int(wrong[index]))
        for (label, predicted), index, count in zip(pairs, first, counts, strict=True)
    ]
    return sorted(found, key=lambda pair: -pair.count)


def accuracy_by_group(names: tuple[str, ...], ids: Indices, right: Right) -> tuple[Share, ...]:
    """Return the accuracy of each group of images that has any.

    Args:
        ids: [n] group of each image.
        right: [n].
    """
    return tuple(
        Share(name, int((ids == number).sum()), int(right[ids == number].sum()))
        for number, name in enumerate(names)
        if (ids == number).any()
    )


def probe(features: Vectors, labels: Indices, groups: Indices) -> Indices:
    """Return what a linear classifier on features predicts for each group [n], learnt from the other groups.

    Ridge regression onto the classes in closed form, on centred unit features. Where there is one group only, all
    predictions are -1.

    Args:
        features: [n, p].
        labels: [n] classes.
        groups: [n], for example domains.
    """
    predictions = np.full(len(labels), -1, np.int64)
    wanted = np.eye(labels.max() + 1)[labels]
    for group in np.unique(groups):
        held_out = groups == group
        if held_out.all():
            break
        learnt = ~held_out
        centre = features[learnt].mean(0)
        known, new = _unit(features[learnt] - centre), _unit(features[held_out] - centre)
        kernel = known @ known.T + RIDGE * np.eye(len(known))
        weights = np.linalg.solve(kernel, wanted[learnt] - wanted[learnt].mean(0))
        predictions[held_out] = (new @ known.T @ weights).argmax(1)
    return predictions


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = rows.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return unit
