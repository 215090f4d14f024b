"""The teacher adapted, in closed form, to labelled images whose embeddings are stored: no further query, no training.

A Gaussian discriminant on I(x) (class means, one covariance, shrunk; Wang et al., "A Hard-to-Beat Baseline for
Training-Free CLIP-Based Adaptation", ICLR 2024, arXiv 2402.04087) is blended with the zero-shot classifier. How much of
it there is, and how far the covariance is shrunk, is what is best for source domains left out; where that isn't better
than the class embeddings alone by more than a standard error, the teacher stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vl2v.evaluation.ridge import ROUNDING, held_out

SHRINKAGES = (0.01, 0.03, 0.1, 0.3, 1.0)  # 1: nothing is left of the covariance but its size
BLENDS = tuple(round(0.1 * number, 1) for number in range(10))  # never 1: classes without images have a text only

Floats = NDArray[np.float64]


class Embedded(NamedTuple):
    """Labelled images that the teacher was queried about.

    Attributes:
        images: I(x) [n, d], unit rows.
        texts: T [C, d], unit rows, C > 1.
        labels: [n] classes; not every class needs an image.
        groups: [n] domains; see `vl2v.evaluation.ridge.held_out`.
        scale: the teacher's logit scale s.
    """

    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    scale: float

    def of(self, chosen: NDArray[np.bool_]) -> Embedded:
        """Return some of the images [n]."""
        return self._replace(images=self.images[chosen], labels=self.labels[chosen], groups=self.groups[chosen])


class AdaptedTeacher(NamedTuple):
    """Logits I(x) . W^T + b of C classes, instead of s I(x) . T^T.

    Attributes:
        weight: W [C, d].
        bias: b [C].
        blend: the discriminant's share, 0 (the zero-shot teacher) to 0.9.
        shrinkage: of its covariance, towards a multiple of the identity.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    blend: float
    shrinkage: float

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [n, C] of images I(x) [n, d]."""
        return np.asarray(images @ self.weight.T + self.bias, np.float32)


def adapted(embedded: Embedded) -> AdaptedTeacher:
    """Return the teacher that is best for groups left out, each group weighted alike.

    A class without images keeps its text: the discriminant knows nothing of it. The blended logits are scaled to be
    calibrated on the groups left out. With blend 0 they are exactly s I(x) . T^T.

    Examples:
        >>> import numpy as np
        >>> from vl2v.evaluation.adapted import Embedded, adapted
        >>> rng = np.random.default_rng(0)
        >>> labels, groups = np.arange(120) % 2, np.arange(120) // 40
        >>> images = np.eye(8)[labels] + 0.1 * rng.normal(size=(120, 8))
        >>> images /= np.linalg.norm(images, axis=1, keepdims=True)
        >>> texts = np.eye(8)[[1, 0]]  # they name the two classes the wrong way round
        >>> found = adapted(Embedded(images, texts, labels, groups, 20.0))
        >>> bool((found.logits(images).argmax(1) == labels).all())
        True
    """
    import torch

    from vl2v.evaluation.metrics import fit_temperature

    groups = held_out(embedded.groups)
    moments = _moments(embedded, groups)
    several = len(moments) > 1  # one image alone isn't enough
    shrinkage, blend = _best(_left_out(embedded, groups, moments)) if several else (SHRINKAGES[-1], 0.0)
    if blend == 0:
        same = (embedded.scale * embedded.texts).astype(np.float32)
        return AdaptedTeacher(same, np.zeros(len(same), np.float32), blend, shrinkage)
    logits = np.empty((len(groups), len(embedded.texts)))
    for here, others in _turns(groups, moments):
        weight, bias = _blended(embedded.texts, others, shrinkage, blend)
        logits[here] = embedded.images[here] @ weight.T + bias
    factor = 1 / fit_temperature(torch.from_numpy(logits), torch.from_numpy(embedded.labels))
    weight, bias = _blended(embedded.texts, list(moments.values()), shrinkage, blend)
    return AdaptedTeacher((factor * weight).astype(np.float32), (factor * bias).astype(np.float32), blend, shrinkage)


def left_out_predictions(embedded: Embedded) -> NDArray[np.int64]:
    """Return what the adapted teacher predicts about each group [n] when it is adapted to the other groups alone.

    Nothing is chosen on the group that is predicted: what `adapted` chooses is chosen on the others.
    """
    groups = held_out(embedded.groups)
    predictions = np.empty(len(groups), np.int64)
    for group in np.unique(groups):
        here = groups == group
        predictions[here] = adapted(embedded.of(~here)).logits(embedded.images[here]).argmax(1)
    return predictions


class _Moments(NamedTuple):
    """Means over the images of one group: classes' shares [C], the sums of their I(x) [C, d], and I^T I [d, d]."""

    shares: Floats
    sums: Floats
    squares: Floats


def _moments(embedded: Embedded, groups: NDArray[np.int64]) -> dict[int, _Moments]:
    """Return the moments of each group."""
    found = {}
    for group in np.unique(groups).tolist():
        here = groups == group
        images, labels = embedded.images[here].astype(float), embedded.labels[here]
        shares = np.bincount(labels, minlength=len(embedded.texts)) / len(labels)
        sums = np.zeros((len(shares), images.shape[1]))
        np.add.at(sums, labels, images / len(labels))
        found[group] = _Moments(shares, sums, images.T @ images / len(labels))
    return found


def _turns(
    groups: NDArray[np.int64], moments: dict[int, _Moments]
) -> Iterator[tuple[NDArray[np.bool_], list[_Moments]]]:
    """Yield for each group its images [n] and the moments of the others."""
    for group in moments:
        yield groups == group, [found for other, found in moments.items() if other != group]


def _discriminant(moments: Sequence[_Moments], shrinkages: Sequence[float]) -> Iterator[tuple[Floats, Floats]]:
    """Yield for each shrinkage the discriminant's weight [C, d] and bias [C]; zeros for a class without images.

    w = S^-1 m and b = - m^T S^-1 m / 2, of class means m and their common covariance S. Both are centred over the
    classes that have images, so that a class without any isn't put at an advantage.
    """
    shares, sums, squares = (np.mean(part, 0) for part in zip(*moments, strict=True))
    there = shares > 0
    means = sums[there] / shares[there, None]
    covariance = squares - (means * shares[there, None]).T @ means
    width = len(covariance)
    size = max(np.trace(covariance) / width, ROUNDING * np.trace(squares) / width)
    values, vectors = np.linalg.eigh(covariance)
    rotated = means @ vectors
    for shrinkage in shrinkages:
        solved = rotated / ((1 - shrinkage) * values.clip(0) + shrinkage * size)
        weight, bias = np.zeros(sums.shape), np.zeros(len(sums))
        weight[there] = (solved - solved.mean(0)) @ vectors.T
        offset = -(solved * rotated).sum(1) / 2
        bias[there] = offset - offset.mean()
        yield _unit(weight, bias, sums.sum(0), squares)


def _unit(weight: Floats, bias: Floats, mean: Floats, squares: Floats) -> tuple[Floats, Floats]:
    """Return a linear classifier [C, d], [C] whose logits have a root mean square of 1 over images of these moments."""
    square = ((weight @ squares) * weight).sum() + 2 * bias @ (weight @ mean) + bias @ bias
    size = math.sqrt(max(square / len(bias), np.finfo(float).tiny))
    return weight / size, bias / size


def _zero_shot(texts: NDArray[np.float32], moments: Sequence[_Moments]) -> Floats:
    """Return the class embeddings, centred, as a classifier whose logits have a root mean square of 1."""
    _, sums, squares = (np.mean(part, 0) for part in zip(*moments, strict=True))
    centred = texts - texts.mean(0, dtype=float)
    return _unit(centred, np.zeros(len(texts)), sums.sum(0), squares)[0]


def _blended(
    texts: NDArray[np.float32], moments: Sequence[_Moments], shrinkage: float, blend: float
) -> tuple[Floats, Floats]:
    """Return weight [C, d] and bias [C] of the blend; logits of both parts are of one size."""
    ((weight, bias),) = _discriminant(moments, [shrinkage])
    return (1 - blend) * _zero_shot(texts, moments) + blend * weight, blend * bias


def _left_out(embedded: Embedded, groups: NDArray[np.int64], moments: dict[int, _Moments]) -> list[NDArray[np.bool_]]:
    """Return for each group which of its n images are predicted rightly, by shrinkage and blend [s, b, n]."""
    found = []
    for here, others in _turns(groups, moments):
        images, labels = embedded.images[here], embedded.labels[here]
        right = np.zeros((len(SHRINKAGES), len(BLENDS), len(labels)), np.bool_)
        zero_shot = images @ _zero_shot(embedded.texts, others).T
        for number, (weight, bias) in enumerate(_discriminant(others, SHRINKAGES)):
            discriminant = images @ weight.T + bias
            for index, blend in enumerate(BLENDS):
                right[number, index] = ((1 - blend) * zero_shot + blend * discriminant).argmax(1) == labels
        found.append(right)
    return found


def _best(left_out: Sequence[NDArray[np.bool_]]) -> tuple[float, float]:
    """Return shrinkage and blend with the best mean accuracy; blend 0 where its lead may be chance.

    Of equals the one with the smallest blend counts.
    """
    accuracies = np.mean([right.mean(2) for right in left_out], 0)
    blends = accuracies.max(0)
    index = int(blends.argmax())
    number = int(accuracies[:, index].argmax())
    leads = [right[number, index].astype(float) - right[number, 0] for right in left_out]
    error = math.sqrt(sum(lead.var() / len(lead) for lead in leads)) / len(leads)
    if blends[index] - accuracies[number, 0] <= error:
        index = 0
    return SHRINKAGES[number], BLENDS[index]
