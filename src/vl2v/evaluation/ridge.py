"""How much of a student's target should be the teacher's image embedding, and how much its class embedding.

A teacher that knows the domains is worth following beyond them; one that doesn't is better corrected by the labels.
It is found before anything is trained, by leaving out each source domain in turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LAMBDAS = tuple(round(0.1 * number, 1) for number in range(11))
RIDGES = (0.03, 0.1, 0.3, 1.0)  # times the mean variance of a feature
FOLDS = 5  # where there is one domain only
ROUNDING = 1e-4  # of the features' squares; less than that of a variance is no variance: that of one image, say


class Taught(NamedTuple):
    """Images that a projector is fitted to.

    Attributes:
        features: F(x) [n, p].
        images: I(x) [n, d], unit rows.
        texts: T [C, d], unit rows.
        labels: [n] classes, -1 for an image without a label.
        groups: [n], for example domains; see `held_out`. Images without labels are a group of their own.
        guesses: [n] for images without a label the class whose text stands for theirs; None: I(x) does.
    """

    features: NDArray[np.float32]
    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    guesses: NDArray[np.int64] | None = None


class Moments(NamedTuple):
    """Means over the images of one group: of the features x, the targets t, x^T x and x^T t."""

    x: NDArray[np.float64]
    t: NDArray[np.float64]
    xx: NDArray[np.float64]
    xt: NDArray[np.float64]


def lambda_accuracies(taught: Taught) -> dict[float, float]:
    """Return how accurate a student would be on groups it didn't learn from (0 to 1, their mean), by lambda.

    The student is a linear projector in closed form: ridge regression of lambda I(x) + (1 - lambda) T(y) on the frozen
    features, each group weighted alike, the class by the nearest text. It is linear in its targets, so that one
    solution serves all lambdas. Of several ridges the best one counts.
    """
    means, _ = _left_out(taught)
    best = means[means.max(1).argmax()]
    return dict(zip(LAMBDAS, best.tolist(), strict=True))


class Fit(NamedTuple):
    """A projector x -> W x + b in closed form: W [d, p], b [d], and the lambda of its targets.

    `accuracy` is on groups left out, their mean, 0 to 1.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    lambda_: float
    accuracy: float


def fitted(taught: Taught) -> Fit:
    """Return the ridge regression of lambda I(x) + (1 - lambda) T(y) on the features, each group weighted alike.

    Ridge and lambda are those that are best for groups left out, of equals the lambda nearest to a half and the largest
    ridge; for the rest see `lambda_accuracies`.
    """
    means, moments = _left_out(taught)
    equals = np.argwhere(means == means.max()).tolist()
    index, number = min(equals, key=lambda found: (round(abs(LAMBDAS[found[1]] - 0.5), 6), -found[0]))
    lam, mean = LAMBDAS[number], _mean(moments)
    halves = np.split(_solved(mean, RIDGES[index]), 2, axis=1), np.split(mean.t, 2)  # of the images, of the texts
    weight, target = (lam * of_image.T + (1 - lam) * of_text.T for of_image, of_text in halves)
    return Fit(weight, target - weight @ mean.x, lam, float(means.max()))


def fitted_head(
    features: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.int64], classes: int
) -> Fit:
    """Return a linear head in closed form: the ridge regression of one-hot labels, each group weighted alike.

    The ridge, and whether the classes' frequencies are left out of the bias, is what is best for groups left out.

    Args:
        features: F(x) [n, p].
        labels: [n] classes.
        groups: [n], for example domains; see `held_out`.
        classes: C.
    """
    groups = held_out(groups)
    wanted = np.eye(classes, dtype=np.float32)[labels]
    names = np.unique(groups)
    moments = [moments_of(features[groups == name], wanted[groups == name]) for name in names]
    right = np.zeros((len(names), 2, len(RIDGES)))
    for number, name in enumerate(names):
        mean, here = _mean(moments[:number] + moments[number + 1 :]), groups == name
        for index, ridge in enumerate(RIDGES):
            scores = (features[here] - mean.x) @ _solved(mean, ridge)
            right[number, :, index] = [((scores + bias).argmax(1) == labels[here]).mean() for bias in (mean.t, 0)]
    means, mean = right.mean(0), _mean(moments)
    without, index = np.argwhere(means == means.max())[-1]  # of equals the largest ridge, without frequencies
    weight = _solved(mean, RIDGES[index]).T
    return Fit(weight, (0 if without else mean.t) - weight @ mean.x, 0.0, float(means.max()))


def _left_out(taught: Taught) -> tuple[NDArray[np.float64], list[Moments]]:
    """Return the accuracy on groups left out, the mean over them, by ridge and lambda [r, l]; and groups' moments."""
    features, images, texts, labels, groups, guesses = taught
    there = labels >= 0
    others = images if guesses is None else texts[guesses]
    ids = np.full(len(labels), -1)
    ids[there] = held_out(groups[there])
    names = np.unique(ids[there])
    targets = np.hstack([images, np.where(there[:, None], texts[labels], others)])
    moments = [moments_of(features[ids == name], targets[ids == name]) for name in names]
    more = [] if there.all() else [moments_of(features[~there], targets[~there])]
    right = [
        accuracies(moments[:number] + moments[number + 1 :] + more, features[ids == name], texts, labels[ids == name])
        for number, name in enumerate(names)
    ]
    return np.mean(right, 0), moments + more


def held_out(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what is left out in turn [n]: each group; of one group alone every fifth image."""
    return groups if len(np.unique(groups)) > 1 else np.arange(len(groups)) % FOLDS


def best_lambda(accuracies: dict[float, float], images: int) -> float:
    """Return the lambda nearest to a half whose accuracy is within a standard error of the best.

    The difference may be chance then, and images and labels together teach more surely than either alone. (The rule
    of one standard error: Breiman et al., Classification and Regression Trees, 1984.)

    Args:
        accuracies: of each lambda, 0 to 1.
    """
    best = max(accuracies.values())
    good = [lam for lam in accuracies if accuracies[lam] >= best - math.sqrt(best * (1 - best) / images)]
    return min(good, key=lambda lam: (round(abs(lam - 0.5), 6), -accuracies[lam]))


def moments_of(features: NDArray[np.float32], targets: NDArray[np.float32]) -> Moments:
    """Return the means over the images of one group: features [n, p], targets [I(x), T(y)] [n, 2 d]."""
    x, t = features, targets
    return Moments(x.mean(0, dtype=float), t.mean(0, dtype=float), (x.T @ x) / len(x), (x.T @ t) / len(x))


def accuracies(
    learnt: Sequence[Moments], features: NDArray[np.float32], texts: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the accuracy on new images of a projector fitted to groups, by ridge and lambda [r, l].

    Args:
        learnt: of each group, all of which count alike.
        features: of the new images [m, p].
        texts: T [C, d].
        labels: [m] classes.
    """
    mean = _mean(learnt)
    bias = _scores(mean.t, texts)
    right = np.zeros((len(RIDGES), len(LAMBDAS)))
    for index, ridge in enumerate(RIDGES):
        of_image, of_text = np.split((features - mean.x) @ _solved(mean, ridge, texts) + bias, 2, axis=1)
        right[index] = [((lam * of_image + (1 - lam) * of_text).argmax(1) == labels).mean() for lam in LAMBDAS]
    return right


def _mean(groups: Sequence[Moments]) -> Moments:
    """Return the moments of groups that all count alike."""
    return Moments(*(np.mean(part, 0) for part in zip(*groups, strict=True)))


def _scores(targets: NDArray[np.float64], texts: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the scores of the classes [..., 2 C] of targets of both kinds [..., 2 d]."""
    of_image, of_text = np.split(targets, 2, axis=-1)
    return np.concatenate([of_image @ texts.T, of_text @ texts.T], axis=-1)


def _solved(mean: Moments, ridge: float, texts: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
    """Return the weights [p, 2 d] of both targets' regression on centred features; with texts, of scores [p, 2 C]."""
    crossed = mean.xt - np.outer(mean.x, mean.t)
    if texts is not None:
        crossed = _scores(crossed, texts)
    variance = mean.xx - np.outer(mean.x, mean.x)
    size = max(np.trace(variance) / len(variance), ROUNDING * np.mean(mean.x**2), np.finfo(np.float32).tiny)
    penalty = ridge * size * np.eye(len(variance))
    weights: NDArray[np.float64] = np.linalg.solve(variance + penalty, crossed)
    return weights
