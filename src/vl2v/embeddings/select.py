"""Which images are most worth asking about, when not all can be: orders of images, the first ones first.

Every order is a function of its arguments and the seed alone, and all but `uncertain_order` are nested: the first 100
of 1,000 are the 100. So raising the number asks only for the difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vl2v.seeds import derive

Indices = NDArray[np.int64]


def random_order(count: int, seed: int) -> Indices:
    """Return a permutation of `count` images."""
    return np.random.default_rng(derive(seed, "select", "random")).permutation(count)


def balanced_order(labels: Sequence[int] | Indices, domains: Sequence[int] | Indices, seed: int) -> Indices:
    """Return an order that takes from every class of every domain in turn, at random within each.

    Args:
        labels: class of each image [n], -1 for none.
        domains: domain of each image [n].
        seed: of the draws.
    """
    order = random_order(len(labels), seed)
    cells = np.stack([np.asarray(labels), np.asarray(domains)], 1)[order]
    _, cell = np.unique(cells, axis=0, return_inverse=True)
    turn = np.empty(len(order), np.int64)  # how many of its cell come before an image
    for number in range(cell.max(initial=-1) + 1):
        members = np.flatnonzero(cell == number)
        turn[members] = np.arange(len(members))
    return order[np.lexsort((np.arange(len(order)), turn))]


def k_center_order(features: NDArray[np.float32], count: int) -> Indices:
    """Return the first `count` images of the greedy k-center order: each is the farthest from all before it.

    Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach (arXiv 1708.00489),
    algorithm 1, by cosine distance, from the image that is nearest to the mean.

    Args:
        features: [n, p], for example the pretrained student's.
        count: how many, at most n.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    chosen = np.empty(count, np.int64)
    nearest = np.full(len(unit), -np.inf, np.float32)  # largest cosine to what is chosen
    following = int(np.argmax(unit @ unit.mean(0))) if len(unit) else 0
    for place in range(count):
        chosen[place] = following
        np.maximum(nearest, unit @ unit[following], out=nearest)
        nearest[following] = np.inf
        following = int(np.argmin(nearest))
    return chosen


def uncertain_order(logits: NDArray[np.float32]) -> Indices:
    """Return the images by the margin between the two best classes, the smallest first.

    Args:
        logits: [n, C], of a first student.
    """
    best = np.partition(logits, -2, axis=1)[:, -2:]
    return np.argsort(best[:, 1] - best[:, 0], kind="stable")
