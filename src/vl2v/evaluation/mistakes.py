"""Labels that teacher and student agree to be wrong, from embeddings that are stored already.

The student is a linear one in closed form that never saw the image: ridge regression onto the classes, fitted to the
other folds. Where both give another class than the label, the image is suspected; the less probable the label is to
them together, the earlier it is listed. (Ranking labels by a model's probability out of fold: Northcutt, Jiang, Chuang,
Confident Learning, JAIR 2021; here two classifiers that err differently have to agree.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
RIDGE = 1.0  # on centred unit embeddings; as for `vl2v.evaluation.alignment.probe`
TEMPERATURES = np.geomspace(1, 300, 40)  # that cosines or a regression's scores are multiplied by

Floats = NDArray[np.float64]


class Suspect(NamedTuple):
    """An image whose label is probably wrong.

    Attributes:
        image: its index.
        label: the class that it has.
        suggested: the class that teacher and student together give.
        probability: of `label`, 0 to 1.
        of_suggested: the probability of `suggested`.
    """

    image: int
    label: int
    suggested: int
    probability: float
    of_suggested: float


def suspects(
    images: NDArray[np.float32], texts: NDArray[np.float32], labels: NDArray[np.int64], contents: Sequence[bytes]
) -> list[Suspect]:
    """Return the images whose label teacher and student agree to be wrong, the most suspect first.

    Args:
        images: I(x) [n, d], unit rows.
        texts: T [C, d], unit rows.
        labels: [n] classes.
        contents: [n] SHA-256 of each image, which decides its fold: copies of an image are in the same.

    Examples:
        >>> import hashlib
        >>> import numpy as np
        >>> from vl2v.evaluation.mistakes import suspects
        >>> rng = np.random.default_rng(0)
        >>> labels = np.arange(60) % 2
        >>> images = np.eye(8)[labels] + 0.1 * rng.normal(size=(60, 8))
        >>> images /= np.linalg.norm(images, axis=1, keepdims=True)
        >>> labels[7] = 0
        >>> contents = [hashlib.sha256(bytes([number])).digest() for number in range(60)]
        >>> [(one.image, one.suggested) for one in suspects(images, np.eye(8)[:2], labels, contents)]
        [(7, 1)]
    """
    teacher, student = _judges(images, texts, labels, contents)
    together = _together(teacher, student)
    doubted = np.flatnonzero((teacher.argmax(1) != labels) & (student.argmax(1) != labels))
    suggested = together.argmax(1)
    doubted = doubted[suggested[doubted] != labels[doubted]]
    order = doubted[np.argsort(together[doubted, labels[doubted]], kind="stable")]
    return [
        Suspect(i, int(labels[i]), int(suggested[i]), float(together[i, labels[i]]), float(together[i, suggested[i]]))
        for i in order.tolist()
    ]


def probabilities(
    images: NDArray[np.float32], texts: NDArray[np.float32], labels: NDArray[np.int64], contents: Sequence[bytes]
) -> Floats:
    """Return the classes' probabilities [n, C] by teacher and student together; see `suspects`."""
    return _together(*_judges(images, texts, labels, contents))


def _together(teacher: Floats, student: Floats) -> Floats:
    """Return the geometric mean of two classifiers' probabilities [n, C]."""
    return _softmax((np.log(teacher + 1e-9) + np.log(student + 1e-9)) / 2)


def _judges(
    images: NDArray[np.float32], texts: NDArray[np.float32], labels: NDArray[np.int64], contents: Sequence[bytes]
) -> tuple[Floats, Floats]:
    """Return the probabilities [n, C] of the zero-shot teacher, and of the student that never saw the image."""
    teacher = _probabilities(images.astype(float) @ texts.T, labels)
    scores, learnt = _left_out(images, labels, len(texts), contents)
    return teacher, np.where(learnt[:, None], _probabilities(scores, labels), teacher)


def _left_out(
    images: NDArray[np.float32], labels: NDArray[np.int64], classes: int, contents: Sequence[bytes]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return each image's scores [n, C] by a student of the other folds, and whether that saw its class at all [n]."""
    folds = np.array([content[0] % FOLDS for content in contents], np.int64)
    scores, learnt = np.zeros((len(labels), classes)), np.zeros(len(labels), bool)
    for fold in np.unique(folds):
        here = folds == fold
        known, wanted = images[~here].astype(float), np.eye(classes)[labels[~here]]
        if not len(known):
            continue
        centre, mean = known.mean(0), wanted.mean(0)
        known -= centre
        weights = np.linalg.solve(known.T @ known + RIDGE * np.eye(known.shape[1]), known.T @ (wanted - mean))
        scores[here] = (images[here] - centre) @ weights + mean
        learnt[here] = np.isin(labels[here], labels[~here])
    return scores, learnt


def _probabilities(scores: Floats, labels: NDArray[np.int64]) -> Floats:
    """Return scores [n, C] as probabilities, at the temperature at which the labels are most probable."""
    rows = np.arange(len(labels))
    return min(
        (_softmax(factor * scores) for factor in TEMPERATURES),
        key=lambda found: -float(np.log(found[rows, labels] + 1e-12).mean()),
    )


def _softmax(logits: Floats) -> Floats:
    powers: Floats = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))
