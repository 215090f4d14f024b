"""Two methods on the same splits and seeds: how much better one is, and whether that could be chance."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
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


Runs = Mapping[Hashable, Mapping[int, Marks]]
"""Target -> seed -> what was right."""

_AT_ONCE = 2**15  # entries of a table of draws: it stays in a processor's cache
_ABSENT = 2  # no difference: the picture isn't among a seed's

# The quantiles of Poisson(1) that 65,536 equally likely numbers stand for.
_POISSON_1 = np.searchsorted(
    np.cumsum([math.exp(-1) / math.factorial(k) for k in range(10)]), (np.arange(2**16) + 0.5) / 2**16
).astype(np.float32)


@dataclass(frozen=True)
class Lead:
    """How much more accurate one method is than another, the mean over targets; -1 to 1.

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
    anew with replacement, each target for itself. Deviations are stretched by sqrt(k / (k - 1)) for the k seeds, of
    which a bootstrap of so few would make too little; with a single seed only the pictures are drawn, and the
    training's luck is not in it.

    Args:
        one: what it got right.
        other: what the other one did.
        rounds: draws.
        seed: of the draws.
    """
    drawn, means, fewest = [], [], []
    signs: list[float] = []
    for number, target in enumerate(sorted(one.keys() & other.keys(), key=str)):
        both = sorted(one[target].keys() & other[target].keys())
        paired = [_paired(one[target][s], other[target][s]) for s in both]
        paired = [pair for pair in paired if len(pair.pictures)]
        if not paired:
            continue
        differences = [pair.difference.mean() for pair in paired]
        signs += differences
        means.append(np.mean(differences))
        drawn.append(_draws(paired, rounds, np.random.default_rng([seed, number])))
        fewest.append(len(paired))
    if not means:
        return None
    mean = float(np.mean(means))
    count = min(fewest)
    stretch = (count / (count - 1)) ** 0.5 if count > 1 else 1.0
    low, high = mean + stretch * (np.quantile(np.mean(drawn, 0), [0.025, 0.975]) - mean)
    wins, losses = sum(sign > 0 for sign in signs), sum(sign < 0 for sign in signs)
    return Lead(mean, float(low), float(high), wins, losses, len(signs), count)


class _Pair(NamedTuple):
    """Pictures [n] that two runs answered, and 1, 0 or -1 [n]: whether the one was right where the other wasn't."""

    pictures: NDArray[np.int64]
    difference: NDArray[np.int8]


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

    Those of Poisson(1), of which there may be very many, are taken from a table.
    """
    more = int((counts > 1).sum())
    several = rng.poisson(counts[:more], (rounds, more)).astype(np.float32)
    once = _POISSON_1[rng.integers(2**16, size=(rounds, len(counts) - more), dtype=np.uint16)]
    return np.concatenate([several, once], 1)


def _kinds(seeds: Sequence[_Pair]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the kinds of pictures there are [seeds, kinds], and how many there are of each [kinds], most first.

    A kind is each seed's difference; NaN where a picture isn't among that seed's.
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
    found = table[examples[order]].T
    return np.where(found == _ABSENT, np.nan, found), counts[order]


def leads(methods: Mapping[str, Runs], reference: str) -> dict[str, Lead]:
    """Return the lead of every other method over one of them."""
    compared = {name: lead(runs, methods[reference]) for name, runs in methods.items() if name != reference}
    return {name: found for name, found in compared.items() if found is not None}


def _surely_ahead(one: Runs, other: Runs) -> bool:
    found = lead(one, other)
    return found is not None and found.sure and found.low > 0


def best_is_sure(methods: Mapping[str, Runs], names: Sequence[str]) -> str | None:
    """Return the method that is surely ahead of every other one of `names`; None if there is none."""
    for name in names:
        others = [other for other in names if other != name]
        if others and all(_surely_ahead(methods[name], methods[other]) for other in others):
            return name
    return None
