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
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vl2v.embeddings.plan import BY_STUDENT, Views, k_center_order, random_order
from vl2v.embeddings.store import EmbeddingStore
from vl2v.evaluation.ridge import Taught, fitted
from vl2v.runs.datasets import open_sources
from vl2v.runs.features import Features
from vl2v.runs.query import open_session
from vl2v.runs.settings import resolve
from vl2v.runs.start import new_backbone
from vl2v.session import Session, silent
from vl2v.students.student import Student
from vl2v.teachers import the_teacher
from vl2v.training.device import OneDevice
from vl2v.tree import assignments, merge

STRATEGIES = ("random", "kcenter", "uncertainty", "nearest")
Indices = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--exclude", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="*", default=[25, 50, 100, 200])
    parser.add_argument("--set", action="append", default=[], dest="pairs")
    given = parser.parse_args()
    taught = everything(given)
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


def everything(given: argparse.Namespace) -> Taught:
    """Return features, embeddings, classes and domains of all images."""
    tree = {
        "data": {"path": given.data, **({"exclude": given.exclude} if given.exclude else {})},
        "teacher": {"spec": given.teacher},
        "student": {"image_size": given.size},
    }
    config = resolve(merge(tree, assignments(given.pairs)))
    with tempfile.TemporaryDirectory() as folder, EmbeddingStore(Path(folder)) as store:
        sources = open_sources(config, Session(Path(folder)))
        session = open_session(config, store, the_teacher(config.teacher), None, sources, Views(), silent)
        session.query()
        targets = session.targets()
    indices = sources.training
    assert targets.images is not None and targets.texts is not None
    backbone, spec = new_backbone(config)
    new = Student(backbone, nn.Identity(), spec)
    features = Features(new, sources.dataset, OneDevice(config.train), config.data.processes, silent).of(indices)
    images = targets.images[indices, 0].astype(np.float32)
    domains = sources.dataset.domain_ids[indices]
    return Taught(features.numpy(), images, targets.texts, targets.labels[indices], domains)


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
