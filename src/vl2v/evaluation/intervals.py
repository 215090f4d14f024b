"""How sure a share, or the difference of two shares on the same images, can be: 95% intervals."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

# Logarithms of Student's t at 0.975: with 1, 2, ... 10, 15, 30 and any number of degrees of freedom.
_FREE = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 30, np.inf])
_LOG_T = np.log(
    [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.1314, 2.0423, 1.9600]
)

Right = NDArray[np.bool_]
"""[n] whether each image was answered correctly."""


@dataclass(frozen=True)
class Share:
    """How many of some images were answered correctly, with Wilson's 95% interval.

    Attributes:
        name: of the images: a class, a domain, "all".
        images: how many.
        correct: how many of them were answered correctly.
    """

    name: str
    images: int
    correct: int

    @property
    def accuracy(self) -> float:
        """The share, 0 to 1."""
        return self.correct / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (JASA 1927)."""
        return wilson(self.correct, self.images)


@dataclass(frozen=True)
class Difference:
    """How much more accurate one of two is on the same images, with an interval; -1 to 1."""

    mean: float
    low: float
    high: float


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a share; (0, 1) of nothing.

    Args:
        correct: successes.
        total: trials.
        confidence: of the interval, two-sided.
    """
    if not total:
        return 0.0, 1.0
    z = _z(confidence)
    share = correct / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_difference(one: Right, other: Right, *, judged: int = 1) -> Difference:
    """Return how much more accurate `one` is than `other` on the same images.

    Agresti and Min (Statistics in Medicine 2005): Wald's interval with half an image added to each of the four
    outcomes, which holds its level for few images, too.

    Args:
        one: [n], n > 0.
        other: [n].
        judged: how many such differences are compared at once; all their intervals hold at once (Bonferroni).
    """
    return paired_interval(int((one & ~other).sum()), int((other & ~one).sum()), len(one), judged=judged)


def paired_interval(gained: float, lost: float, count: float, *, judged: int = 1) -> Difference:
    """Return `paired_difference` of counts: what only the one has right, only the other, and all."""
    more = (gained - lost) / (count + 2)
    half = _z(1 - 0.05 / judged) * (((gained + lost + 1) / (count + 2) - more**2) / (count + 2)) ** 0.5
    return Difference((gained - lost) / count, max(more - half, -1.0), min(more + half, 1.0))


def student_t(freedom: float) -> float:
    """Return the 0.975 quantile of Student's t, to 2%.

    Args:
        freedom: degrees of freedom, 1 or more, not only whole ones; infinite: the normal distribution's.
    """
    return exp(np.interp(1 / freedom, 1 / _FREE[::-1], _LOG_T[::-1]))


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
