"""Which images of a pool without labels to query: every strategy, in closed form, on every target and many draws.

    python benchmarks/pools.py ICONS --teacher tiny

For each domain as the unseen one, the labelled images are those of the other domains but the next one in the
alphabet. The pool is half of that next domain's images ("elsewhere"), or half of the unseen domain's own ("there");
k-center takes those that are farthest from the labelled ones (as `--select-from unlabelled` does); accuracy is that
on the unseen domain's other half. The student is a linear projector on frozen features, fitted to the labelled images
and the N of the pool that a strategy takes; "uncertainty" and "nearest" go by the one that is fitted without the
pool. Prints how many points the N images bring, mean and standard error over targets.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from frozen import frozen
from numpy.typing import NDArray

from vl2v.embeddings.plan import BY_STUDENT, k_center_order, random_order
from vl2v.evaluation.ridge import Taught, fitted

STRATEGIES = ("random", "kcenter", "uncertainty", "nearest")
Indices = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="*", default=[25, 50, 100, 200])
    parser.add_argument("--set", action="append", default=[], dest="pairs")
    given = parser.parse_args()
    taught, _ = frozen(given)
    domains, names = taught.groups, np.unique(taught.groups)
    gains: dict[tuple[str, str, int], list[list[float]]] = {}
    for number, unseen in enumerate(names):
        following = names[(number + 1) % len(names)]
        labelled = np.flatnonzero((domains != unseen) & (domains != following))
        for draw in range(given.draws):
            own, test = halves(np.flatnonzero(domains == unseen), draw)
            first, before = student(taught, labelled, own[:0], test)
            for where, pool in (("elsewhere", halves(np.flatnonzero(domains == following), draw)[0]), ("there", own)):
                for strategy in STRATEGIES:
                    order = ordered(strategy, taught, labelled, pool, first, draw)
                    for count in given.counts:
                        _, after = student(taught, labelled, pool[order[:count]], test)
                        of_target = gains.setdefault((where, strategy, count), [[] for _ in names])[number]
                        of_target.append(100 * (after - before))
    print("| pool | strategy |", " | ".join(map(str, given.counts)), "|\n| --- | --- |" + " ---: |" * len(given.counts))
    for where in ("elsewhere", "there"):
        for strategy in STRATEGIES:
            means = [np.mean(gains[where, strategy, count], 1) for count in given.counts]
            cells = [f"{of.mean():+.1f} ± {of.std(ddof=1) / len(of) ** 0.5:.1f}" for of in means]
            print(f"| {where} | {strategy} |", " | ".join(cells), "|")


def halves(images: Indices, draw: int) -> tuple[Indices, Indices]:
    """Return two halves of some images, by a draw."""
    order = images[np.random.default_rng(draw).permutation(len(images))]
    return order[: len(order) // 2], order[len(order) // 2 :]


def student(taught: Taught, labelled: Indices, queried: Indices, test: Indices) -> tuple[NDArray[np.float32], float]:
    """Return the logits on all images of a projector fitted to these images, and its accuracy on the test images."""
    chosen = np.concatenate([labelled, queried])
    labels = taught.labels[chosen].copy()
    labels[len(labelled) :] = -1
    guesses = (taught.images[chosen] @ taught.texts.T).argmax(1)
    part = Taught(taught.features[chosen], taught.images[chosen], taught.texts, labels, taught.groups[chosen], guesses)
    found = fitted(part)
    embeddings = taught.features @ found.weight.T + found.bias
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    logits = (embeddings @ taught.texts.T).astype(np.float32)
    return logits, float((logits[test].argmax(1) == taught.labels[test]).mean())


def ordered(
    strategy: str, taught: Taught, labelled: Indices, pool: Indices, logits: NDArray[np.float32], draw: int
) -> Indices:
    """Return positions in the pool, those that a strategy queries first in front."""
    if strategy == "random":
        return random_order(len(pool), draw)
    if strategy == "kcenter":
        return k_center_order(taught.features[pool], len(pool), taught.features[labelled])
    return BY_STUDENT[strategy](logits[pool])


if __name__ == "__main__":
    main()
