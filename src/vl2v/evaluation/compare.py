"""Two methods on the same splits and seeds: how much better one is, and whether that could be chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Logarithms of Student's t at 0.975: with 1, 2, ... 10, 15, 30 and any number of degrees of freedom.
_FREE = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 30, np.inf])

_LOG_T = np.log(
    [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.1314, 2.0423, 1.9600]
)

Right = NDArray[np.bool_]
"""[n] whether each image was predicted correctly."""


@dataclass(frozen=True)
class Share:
    """How many of some images were predicted correctly, with Wilson's 95% interval.

    Attributes:
        name: of the images: a class, a domain, "all".
        correct: how many of them were predicted correctly.
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


def paired_difference(one: Right, other: Right, *, comparisons: int = 1) -> Difference:
    """Return how much more accurate `one` is than `other` on the same images.

    Agresti and Min (Statistics in Medicine 2005): Wald's interval with half an image added to each of the four
    outcomes, which holds its level for few images, too.

    Args:
        one: [n], n > 0.
        other: [n].
        comparisons: how many such differences are compared at once; all their intervals hold at once (Bonferroni).
    """
    return paired_interval(int((one & ~other).sum()), int((other & ~one).sum()), len(one), comparisons=comparisons)


def paired_interval(gained: float, lost: float, count: float, *, comparisons: int = 1) -> Difference:
    """Return `paired_difference` of counts: what only the one has right, only the other, and all."""
    more = (gained - lost) / (count + 2)
    half = _z(1 - 0.05 / comparisons) * (((gained + lost + 1) / (count + 2) - more**2) / (count + 2)) ** 0.5
    return Difference((gained - lost) / count, max(more - half, -1.0), min(more + half, 1.0))


def student_t(freedom: float) -> float:
    """Return the 0.975 quantile of Student's t, to 2%.

    Args:
        freedom: degrees of freedom, 1 or more, not only whole ones; infinite: the normal distribution's.
    """
    return exp(np.interp(1 / freedom, 1 / _FREE[::-1], _LOG_T[::-1]))


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


class Marks(NamedTuple):
    """What a run got right of a target.

    Attributes:
        images: indices in the dataset [n], each once; those that were predicted.
        right: whether each was predicted correctly [n].
    """

    images: NDArray[np.int64]
    right: NDArray[np.bool_]


Runs = Mapping[tuple[str, str], Mapping[int, Marks]]
"""(Dataset, target) -> seed -> what was right."""

_NORMAL = student_t(np.inf)

# Of benchmarks/intervals.py, so that every row there holds the truth in 93 to 97% of the rounds:
_SHRINK = 0.86  # the other parts' share of the square, where luck common to all targets is estimated as well
_OF_TWO_SEEDS, _OF_MORE = (22.0, 0.55), (13.5, 0.3)  # that luck's factor, and standard errors added to its estimate
_LEAST = 0.01  # of what images explain of a seed's mean: the least luck that is assumed


@dataclass(frozen=True)
class Lead:
    """How much more accurate one method is than another, the mean over each dataset's targets, then over datasets.

    From -1 to 1.

    Attributes:
        mean: the difference.
        low: and
        high: its 95% interval.
        wins: runs (a target and a seed) in which it is the better one.
        losses: those in which it is the worse one.
        runs: those that both have.
        seeds: of the target that has the fewest.
    """

    mean: float
    low: float
    high: float
    wins: int
    losses: int
    runs: int
    seeds: int

    @property
    def sure(self) -> bool:
        """Whether one is ahead beyond chance: the interval leaves zero out, of at least two seeds."""
        return self.seeds > 1 and (self.low > 0 or self.high < 0)


def lead(one: Runs, other: Runs, *, seed: int | None = None) -> Lead | None:
    """Return how far `one` is ahead of `other` on the images that both predicted; None where there are none.

    The interval is for other images of the same targets and other seeds. Its variance has three parts, each times the
    square of a quantile of its own (as in Howe's and Graybill and Wang's intervals of sums of mean squares, JASA 1980):

    - images: how the differences vary over a target's images, and over images and seeds together. There are many;
      the normal quantile.
    - luck of a target's seeds: what the variance of its seeds' means has beyond those. Pooled over targets; Student's
      t with Satterthwaite's degrees of freedom, of targets that count alike the k - 1 of each together.
    - luck of a seed that all targets share: covariances between targets. Of few seeds they are as much noise as
      signal, so it counts with the geometric mean of their sum and of the standard error that the sum has without such
      luck, times a factor that was fitted to simulations (benchmarks/intervals.py; docs/findings.md has its table).

    Three seeds that happen to lie close together look as if no luck were shared. So where all luck is shared, or half
    of a large one (four points), the interval of three seeds holds the truth in 90 to 93%, of five in 93 to 95%.
    Without any luck it is 96.5% already, so that wider intervals are no remedy; more seeds are.

    With a single seed everywhere, only images are in it, and the luck of the training isn't. Where some targets have a
    single seed, its luck is taken to be as large as the others'.

    Args:
        one: a method's runs.
        other: another's.
        seed: of nothing, and ignored: earlier versions drew a bootstrap, and programs still pass its seed.
    """
    pairs = paired_runs(one, other)
    if not pairs:
        return None
    means = {target: np.array([pair.difference.mean() for pair in paired.values()]) for target, paired in pairs.items()}
    mean = float(target_weights([*pairs]) @ [values.mean() for values in means.values()])
    half = _half_width(pairs)
    signs = np.concatenate([*means.values()])
    wins, losses = int((signs > 0).sum()), int((signs < 0).sum())
    fewest = min(len(paired) for paired in pairs.values())
    return Lead(mean, max(-1.0, mean - half), min(1.0, mean + half), wins, losses, len(signs), fewest)


def target_weights(targets: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Return what each (dataset, target) counts in a mean: datasets alike, and each one's targets alike."""
    of_dataset = Counter(dataset for dataset, _ in targets)
    return np.array([1 / (len(of_dataset) * of_dataset[dataset]) for dataset, _ in targets])


class _Pair(NamedTuple):
    """Images [n] that two runs predicted, and 1, 0 or -1 [n]: whether the one was right where the other wasn't."""

    images: NDArray[np.int64]
    difference: NDArray[np.int8]


_Pairs = Mapping[tuple[str, str], Mapping[int, _Pair]]


def paired_runs(one: Runs, other: Runs) -> _Pairs:
    """Return the targets of which both predicted the same images, in order, each with its seeds."""
    found = {}
    for target in sorted(one.keys() & other.keys()):
        seeds = sorted(one[target].keys() & other[target].keys())
        paired = {seed: _paired(one[target][seed], other[target][seed]) for seed in seeds}
        found[target] = {seed: pair for seed, pair in paired.items() if len(pair.images)}
    return {target: paired for target, paired in found.items() if paired}


def _paired(one: Marks, other: Marks) -> _Pair:
    if np.array_equal(one.images, other.images):  # nearly always, and quick
        return _Pair(one.images, one.right.astype(np.int8) - other.right)
    images, mine, theirs = np.intersect1d(one.images, other.images, assume_unique=True, return_indices=True)
    return _Pair(images, one.right[mine].astype(np.int8) - other.right[theirs])


class _Spread(NamedTuple):
    """How a target's differences vary.

    Attributes:
        images: variance of the target's mean over other images, the same for all seeds.
        residual: that of a seed's mean over other images, beyond what all seeds share; 0 of a single seed, whose
            `images` has all.
        between: variance of the seeds' means; 0 of a single seed.
    """

    seeds: int
    images: float
    residual: float
    between: float


def spread_of(pairs: Sequence[_Pair]) -> _Spread:
    """Return how a target's differences vary: a two-way table of images and seeds, in which cells may be missing."""
    seeds = len(pairs)
    images = pairs[0].images
    if any(not np.array_equal(images, pair.images) for pair in pairs):
        images = np.unique(np.concatenate([pair.images for pair in pairs]))
    order = np.argsort(images, kind="stable")
    count = len(images)
    shares, sums, squares, counts = np.zeros(count), np.zeros(count), np.zeros(count), np.zeros(count, np.int64)
    means = np.array([pair.difference.mean() for pair in pairs])
    for pair, mean in zip(pairs, means, strict=True):
        rows = order[np.searchsorted(images, pair.images, sorter=order)]
        off = pair.difference - mean
        shares[rows] += off / (seeds * len(off))
        sums[rows] += off
        squares[rows] += off**2
        counts[rows] += 1
    smooth = 0.5 / (seeds * (count + 2) ** 2)  # half of Agresti and Min's: a quarter of an image more of each outcome
    chance = (shares**2).sum() * (count / (count + 2)) ** 2 + smooth
    if seeds == 1:
        return _Spread(1, float(chance), 0.0, 0.0)
    free = max((counts - 1).sum() * (1 - 1 / count), 1)
    within = (squares - sums**2 / counts).sum() / free
    sizes = np.array([len(pair.difference) for pair in pairs])
    common = chance - within * (1 / sizes).sum() / seeds**2
    return _Spread(seeds, max(common, smooth), within * float((1 / sizes).mean()), float(means.var(ddof=1)))


def _half_width(pairs: _Pairs) -> float:
    """Return half of the interval's width, see `lead`."""
    weights = target_weights([*pairs])
    spreads = [spread_of([*paired.values()]) for paired in pairs.values()]
    seeds, images, residual, between = (np.array(column) for column in zip(*spreads, strict=True))
    several = seeds > 1
    chance = weights**2 @ images + weights**2 @ (residual / seeds)
    if not several.any():
        return _NORMAL * float(np.sqrt(chance))
    freedom = np.maximum(seeds - 1, 0)
    luck = np.where(several, between - residual, 0)
    luck[~several] = (freedom @ luck) / freedom.sum()
    counts = weights**2 / seeds
    parts = counts[several] * (residual + max(luck.mean(), 0))[several]
    free = parts.sum() ** 2 / (parts**2 / freedom[several]).sum() if parts.sum() else freedom.sum()
    luck_part = max(counts @ luck, _LEAST * (counts @ residual))
    square = _NORMAL**2 * chance + student_t(free) ** 2 * luck_part
    covariance, error, shared = _common(pairs, weights)
    if error > 0:  # of one target it isn't known
        factor, more = _OF_TWO_SEEDS if shared < 2.5 else _OF_MORE
        likely = factor * np.sqrt(error * max(covariance + more * error, 0.0))
        square = _SHRINK * square + max(likely, _NORMAL**2 * covariance)  # of many seeds it is known exactly
    return float(np.sqrt(square))


def _common(pairs: _Pairs, weights: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return what luck that targets share seems to add to the mean's variance.

    Returns:
        The sum of the targets' covariances over seeds, its standard error without such luck, and the mean number of
        seeds that two targets share; zeros where no two share several.
    """
    all_seeds = sorted({seed for paired in pairs.values() for seed in paired})
    means = np.full((len(pairs), len(all_seeds)), np.nan)
    for row, paired in zip(means, pairs.values(), strict=True):
        for seed, pair in paired.items():
            row[all_seeds.index(seed)] = pair.difference.mean()
    there = ~np.isnan(means)
    total, square, counts = 0.0, 0.0, []
    for one in range(len(means)):
        for other in range(one):
            both = there[one] & there[other]
            if (shared := int(both.sum())) < 2:
                continue
            of_one, between, of_other = np.cov(means[one, both], means[other, both])[[0, 0, 1], [0, 1, 1]]
            share = 2 * weights[one] * weights[other] * shared / (there[one].sum() * there[other].sum())
            total += share * between
            square += share**2 * of_one * of_other / (shared - 1)
            counts.append(shared)
    return float(total), float(np.sqrt(square)), float(np.mean(counts)) if counts else 0.0


def leads(methods: Mapping[str, Runs], reference: str) -> dict[str, Lead]:
    """Return the lead of every other method over one of them."""
    compared = {name: lead(runs, methods[reference]) for name, runs in methods.items() if name != reference}
    return {name: found for name, found in compared.items() if found is not None}


def best_is_sure(methods: Mapping[str, Runs], names: Sequence[str]) -> str | None:
    """Return the method that is surely ahead of every other one of `names`; None if there is none."""
    for name in names:
        others = [methods[other] for other in names if other != name]
        if others and all(_is_surely_ahead(methods[name], other) for other in others):
            return name
    return None


def _is_surely_ahead(one: Runs, other: Runs) -> bool:
    found = lead(one, other)
    return found is not None and found.sure and found.low > 0
