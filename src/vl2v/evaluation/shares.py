"""How much of what a student is taught should be the teacher's answer, and how much its class's text.

A teacher that knows the domains is worth following beyond them; one that doesn't is better corrected by the labels.
Which it is can be told before anything is trained, by leaving out each source domain in turn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SHARES = tuple(round(0.1 * number, 1) for number in range(11))
RIDGES = (0.03, 0.1, 0.3, 1.0)  # times the mean variance of a feature
FOLDS = 5  # where there is one domain only


class Moments(NamedTuple):
    """Means over the pictures of one group: of the features x, the targets t, x^T x and x^T t."""

    x: NDArray[np.float64]
    t: NDArray[np.float64]
    xx: NDArray[np.float64]
    xt: NDArray[np.float64]


def image_shares(
    features: NDArray[np.float32],
    images: NDArray[np.float32],
    texts: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
) -> dict[float, float]:
    """Return how accurate a student would be on groups it didn't learn from (0 to 1, their mean), by lambda.

    The student is a linear projector in closed form: ridge regression of lambda I(x) + (1 - lambda) T(y) on the frozen
    features, each group weighted alike, the class by the nearest text. It is linear in its targets, so that one
    solution serves all lambdas. Of several ridges the best one counts.

    Args:
        features: F(x) [n, p].
        images: I(x) [n, d], unit rows.
        texts: T [C, d], unit rows.
        labels: [n] classes.
        groups: [n], for example domains; of one group alone, every fifth picture is left out in turn.
    """
    if len(np.unique(groups)) == 1:
        groups = np.arange(len(labels)) % FOLDS
    features = features / features.std()
    targets = np.hstack([images, texts[labels]])
    names = np.unique(groups)
    moments = [_moments(features[groups == name], targets[groups == name]) for name in names]
    right = np.zeros((len(names), len(RIDGES), len(SHARES)))
    for number, name in enumerate(names):
        learnt = Moments(*(np.mean(part, 0) for part in zip(*(moments[:number] + moments[number + 1 :]), strict=True)))
        here = groups == name
        for place, ridge in enumerate(RIDGES):
            of_image, of_text = np.split(_predicted(features[here], learnt, ridge), 2, axis=1)
            scores = [(share * of_image + (1 - share) * of_text) @ texts.T for share in SHARES]
            right[number, place] = [(score.argmax(1) == labels[here]).mean() for score in scores]
    means = right.mean(0)
    best = means[means.max(1).argmax()]
    return dict(zip(SHARES, best.tolist(), strict=True))


def best_share(accuracies: dict[float, float]) -> float:
    """Return the lambda with the highest accuracy; of equals the one nearest to a half."""
    return max(accuracies, key=lambda share: (accuracies[share], -abs(share - 0.5)))


def _moments(x: NDArray[np.float32], t: NDArray[np.float32]) -> Moments:
    count = len(x)
    return Moments(x.mean(0, dtype=float), t.mean(0, dtype=float), (x.T @ x).astype(float) / count, x.T @ t / count)


def _predicted(x: NDArray[np.float32], learnt: Moments, ridge: float) -> NDArray[np.float64]:
    """Return the regression's targets for new features [n, 2 d]."""
    variance = learnt.xx - np.outer(learnt.x, learnt.x)
    variance += ridge * np.trace(variance) / len(variance) * np.eye(len(variance))
    weights = np.linalg.solve(variance, learnt.xt - np.outer(learnt.x, learnt.t))
    predicted: NDArray[np.float64] = (x - learnt.x) @ weights + learnt.t
    return predicted
