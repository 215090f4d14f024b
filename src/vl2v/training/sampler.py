"""Which images are in which batch: balanced over domains, a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vl2v.seeds import derive

Indices = NDArray[np.int64]


class DomainBalancedSampler:
    """Batches with the same number of images of each domain, each domain shuffled anew every time through.

    Any batch can be drawn at any time, so that a resumed run continues with the very draws of the run that
    was interrupted.

    Args:
        groups: the dataset indices of each domain; none of them empty.
        per_domain: images of each domain in a batch.
        seed: decides every draw.
        part: (k, of n): only the k-th n-th of each domain's images in a batch, for one of several devices.
    """

    def __init__(self, groups: Sequence[Indices], per_domain: int, seed: int, part: tuple[int, int] = (0, 1)) -> None:
        self.groups = groups
        self.per_domain = per_domain
        self.seed = seed
        self.part = part
        self._order = lru_cache(maxsize=4 * len(groups))(self._shuffled)

    def batch(self, number: int) -> tuple[Indices, Indices]:
        """Return the images [n] of batch `number`, and how often each was drawn before, [n]."""
        images, rounds = [], []
        k, parts = self.part
        own = self.per_domain // parts
        for which, group in enumerate(self.groups):
            indices = np.arange(own) + number * self.per_domain + k * own
            turns, offsets = np.divmod(indices, len(group))
            images += [self._order(which, turn)[offset] for turn, offset in zip(turns, offsets, strict=True)]
            rounds.append(turns)
        return np.array(images), np.concatenate(rounds)

    def _shuffled(self, which: int, turn: int) -> Indices:
        generator = np.random.default_rng(derive(self.seed, "order", which, int(turn)))
        return generator.permutation(self.groups[which])
