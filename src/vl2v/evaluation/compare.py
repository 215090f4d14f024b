"""Two methods on the same splits and seeds: how much better one is, and whether that could be chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Marks(NamedTuple):
    """What a run got right of a target.

    Attributes:
        pictures: indices in the dataset [n], each once; those that were answered.
        right: whether each was answered correctly [n].
    """

    pictures: NDArray[np.int64]
    right: NDArray[np.bool_]


Runs = Mapping[tuple[str, str], Mapping[int, Marks]]
"""(Dataset, target) -> seed -> what was right."""

# Student's t at 0.975 with 1, 2, ... degrees of freedom, as a multiple of the normal distribution's.
_WIDER = np.array([12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]) / 1.96

_AT_ONCE = 2**16  # entries of a table of draws: it stays in a processor's cache
_FEW = 16  # as many pictures of a kind are quicker drawn one at a time
_ABSENT = 2  # no difference: the picture isn't among a seed's

# Of 65,536 equally likely numbers those from the k-th of these on stand for more than k, as Poisson(1) has it.
_POISSON_1 = np.round(2**16 * np.cumsum([math.exp(-1) / math.factorial(k) for k in range(8)])).astype(np.uint16)


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


def lead(one: Runs, other: Runs, *, rounds: int = 2000, seed: int = 0) -> Lead | None:
    """Return how far `one` is ahead of `other` on the pictures that both answered; None where there are none.

    Paired bootstrap: the targets are given; of each its seeds, and its pictures, the same for all seeds, are drawn
    anew with replacement, each target for itself. Of few seeds k a bootstrap makes too little: deviations are stretched
    by sqrt(k / (k - 1)), and by Student's t over the normal quantile, as if all luck were the training's and every
    target's alike; the degrees of freedom are Satterthwaite's, for targets that count alike the k - 1 of each
    together. With a single seed only the pictures are drawn, and the training's luck is not in it.

    Args:
        one: what it got right.
        other: what the other one did.
        rounds: draws.
        seed: of the draws.
    """
    pairs = _pairs(one, other)
    if not pairs:
        return None
    mean, weights = _mean(pairs), target_weights([*pairs])
    seeds = np.array([len(paired) for paired in pairs.values()])
    drawn = [_draws(paired, rounds, np.random.default_rng([seed, n])) for n, paired in enumerate(pairs.values())]
    low, high = mean + _stretch(seeds, weights) * (np.quantile(weights @ drawn, [0.025, 0.975]) - mean)
    signs = [pair.difference.mean() for paired in pairs.values() for pair in paired]
    wins, losses = sum(sign > 0 for sign in signs), sum(sign < 0 for sign in signs)
    return Lead(mean, float(low), float(high), wins, losses, len(signs), int(seeds.min()))


def target_weights(targets: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Return what each (dataset, target) counts in a mean: datasets alike, and each one's targets alike."""
    of_dataset = Counter(dataset for dataset, _ in targets)
    return np.array([1 / (len(of_dataset) * of_dataset[dataset]) for dataset, _ in targets])


def _stretch(seeds: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    """Return by how much deviations grow, given the seeds of each target and what it counts; see `lead`."""
    fewest = int(seeds.min())
    if fewest == 1:
        return 1.0
    variances = weights**2 / seeds
    freedom = float(variances.sum() ** 2 / (variances**2 / (seeds - 1)).sum())
    whole = int(freedom + 1e-9)
    # Beyond the table, Fisher's expansion of t in 1 / freedom (Abramowitz and Stegun, 26.7.5).
    wider = _WIDER[whole - 1] if whole <= len(_WIDER) else 1 + 1.2104 / freedom + 1.4402 / freedom**2
    return float((fewest / (fewest - 1)) ** 0.5 * wider)


class _Pair(NamedTuple):
    """Pictures [n] that two runs answered, and 1, 0 or -1 [n]: whether the one was right where the other wasn't."""

    pictures: NDArray[np.int64]
    difference: NDArray[np.int8]


def _pairs(one: Runs, other: Runs) -> dict[tuple[str, str], list[_Pair]]:
    """Return the targets of which both answered the same pictures, in order, each with its seeds."""
    found = {}
    for target in sorted(one.keys() & other.keys()):
        seeds = sorted(one[target].keys() & other[target].keys())
        paired = [_paired(one[target][seed], other[target][seed]) for seed in seeds]
        found[target] = [pair for pair in paired if len(pair.pictures)]
    return {target: paired for target, paired in found.items() if paired}


def _mean(pairs: Mapping[tuple[str, str], list[_Pair]]) -> float:
    means = [np.mean([pair.difference.mean() for pair in paired]) for paired in pairs.values()]
    return float(target_weights([*pairs]) @ means)


def _paired(one: Marks, other: Marks) -> _Pair:
    if np.array_equal(one.pictures, other.pictures):  # nearly always, and quick
        return _Pair(one.pictures, one.right.astype(np.int8) - other.right)
    pictures, mine, theirs = np.intersect1d(one.pictures, other.pictures, assume_unique=True, return_indices=True)
    return _Pair(pictures, one.right[mine].astype(np.int8) - other.right[theirs])


def _draws(seeds: Sequence[_Pair], rounds: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a target's means [rounds] over seeds and pictures drawn anew.

    A picture counts Poisson(1) times in a round, the same for all seeds. Pictures on which each seed has the same
    difference are drawn together: n of them count Poisson(n) times, and there are few such kinds.
    """
    kinds, counts = _kinds(seeds)
    absent = np.isnan(kinds)
    differences, there = np.nan_to_num(kinds).astype(np.float32), (~absent).astype(np.float32)
    rows = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=rounds) / len(seeds)
    step = max(1, _AT_ONCE // len(counts))
    found = []
    for first in range(0, rounds, step):
        part = rows[first : first + step]
        times = _poisson(counts, len(part), rng)
        of_each = times @ there.T if absent.any() else times.sum(1, keepdims=True)
        means = times @ differences.T / np.maximum(of_each, 1)  # [part, seeds]
        found.append((part * means).sum(1))
    return np.concatenate(found)


def _poisson(counts: NDArray[np.int64], rounds: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return Poisson(counts [kinds], descending) draws [rounds, kinds].

    Those of Poisson(1), of which there may be very many, are numbers of two bytes, held against a table.
    """
    more = int((counts > 1).sum())
    alone = rounds * (len(counts) - more)
    drawn = rng.bit_generator.random_raw(-(-alone // 4)).view(np.uint16)[:alone].reshape(rounds, -1)
    once = np.zeros(drawn.shape, np.uint8)
    for bound in _POISSON_1:
        once += (drawn >= bound).view(np.uint8)
    times = np.empty((rounds, len(counts)), np.float32)
    times[:, :more] = rng.poisson(counts[:more], (rounds, more))
    times[:, more:] = once
    return times


def _kinds(seeds: Sequence[_Pair]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the kinds of pictures there are [seeds, kinds], and how many there are of each [kinds], most first.

    A kind is each seed's difference; NaN where a picture isn't among that seed's. Each picture of a rare kind is one.
    """
    pictures = seeds[0].pictures
    if any(not np.array_equal(pictures, pair.pictures) for pair in seeds):
        pictures = np.unique(np.concatenate([pair.pictures for pair in seeds]))
    places = np.argsort(pictures)
    table = np.full((len(pictures), len(seeds)), _ABSENT, np.int8)
    for number, pair in enumerate(seeds):
        table[places[np.searchsorted(pictures, pair.pictures, sorter=places)], number] = pair.difference
    words = table.view(f"V{len(seeds)}").ravel()  # quicker to sort than rows
    _, examples, counts = np.unique(words, return_index=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    counts = counts[order]
    columns = np.where(counts > _FEW, 1, counts)
    found = np.repeat(table[examples[order]].T, columns, axis=1)
    return np.where(found == _ABSENT, np.nan, found), np.repeat(counts // columns, columns)


def leads(methods: Mapping[str, Runs], reference: str) -> dict[str, Lead]:
    """Return the lead of every other method over one of them."""
    compared = {name: lead(runs, methods[reference]) for name, runs in methods.items() if name != reference}
    return {name: found for name, found in compared.items() if found is not None}


def best_is_sure(methods: Mapping[str, Runs], names: Sequence[str]) -> str | None:
    """Return the method that is surely ahead of every other one of `names`; None if there is none."""
    for name in names:
        others = [methods[other] for other in names if other != name]
        # The first half takes no draws, and all but one method fail in it.
        if (
            others
            and all(_is_ahead(methods[name], other) for other in others)
            and all(_is_surely_ahead(methods[name], other) for other in others)
        ):
            return name
    return None


def _is_ahead(one: Runs, other: Runs) -> bool:
    pairs = _pairs(one, other)
    return bool(pairs) and _mean(pairs) > 0


def _is_surely_ahead(one: Runs, other: Runs) -> bool:
    found = lead(one, other)
    return found is not None and found.sure and found.low > 0
