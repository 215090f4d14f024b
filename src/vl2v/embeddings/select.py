"""Which training images a teacher is queried about, when not all are: orders of images, the first ones first.

Every order is a function of its arguments and the seed alone, and all but those of `BY_STUDENT` are nested: the first
100 of 1,000 are the 100. So a larger number queries only the difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vl2v.embeddings.session import TeacherSession, TeacherTargets
from vl2v.io import locked, read_json, write_text
from vl2v.session import derive

Indices = NDArray[np.int64]
Rows = NDArray[np.float32]
FeaturesOf = Callable[[Indices], Rows]
"""The untrained student's F(x) [n, p] of images (dataset indices, sorted)."""
Classify = Callable[[TeacherTargets, Rows], Rows]
"""The logits [n, C] of features [n, p], by a first student of these targets."""


def random_order(count: int, seed: int) -> Indices:
    """Return a permutation of `count` images."""
    return np.random.default_rng(derive(seed, "select", "random")).permutation(count)


def balanced_order(labels: Sequence[int] | Indices, domains: Sequence[int] | Indices, seed: int) -> Indices:
    """Return an order that takes from every class of every domain in turn, at random within each.

    Args:
        labels: class of each image [n], -1 for none.
        domains: domain of each image [n].
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
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    chosen = np.empty(count, np.int64)
    nearest = np.full(len(unit), -np.inf, np.float32)  # largest cosine to what is chosen
    following = int(np.argmax(unit @ unit.mean(0))) if len(unit) else 0
    for i in range(count):
        chosen[i] = following
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


def nearest_order(logits: NDArray[np.float32]) -> Indices:
    """Return the images by how near the best class is, the nearest first: of a pool, what is of none comes last.

    Args:
        logits: [n, C], cosines of a first student's embeddings and the class embeddings, or a multiple of them.
    """
    return np.argsort(-logits.max(1), kind="stable")


BY_STUDENT = {"uncertainty": uncertain_order, "nearest": nearest_order}
"""Strategies that go by a first student, trained on half of the images: the order of the others by its logits."""


def select_images(
    session: TeacherSession, training: Indices, features: FeaturesOf, classify: Classify, run: Path | None = None
) -> Indices | None:
    """Return the training images to query (dataset indices, sorted); None: every image.

    The selection is made once and saved: in the store's folder for runs alike, and as `asked.json` in the run folder,
    so that a run that is resumed learns from the very images that it began with.

    Args:
        training: the images to select from (dataset indices, sorted).
        features: for the strategies that depend on images.
        classify: for the strategies that go by a first student (`BY_STUDENT`).
    """
    wanted = session.config.teacher.select
    if wanted is None:
        return None
    saved = [] if run is None else [run / "asked.json"]
    with ExitStack() as held:
        if wanted != "known":
            shared = session.store.path / "chosen" / f"{_digest(session, training)}.json"
            saved.append(shared)
            held.enter_context(locked(shared.with_suffix(".lock")))
        found = next((file for file in saved if file.is_file()), None)
        contents = session.contents(session.same(training))
        if found is None:
            chosen = set(session.contents(session.same(_select(session, training, features, classify))))
        else:
            chosen = set(read_json(found))
        for file in saved:
            if not file.is_file():
                write_text(file, json.dumps(sorted(chosen)))
    return training[[index for index, content in enumerate(contents) if content in chosen]]


def _select(session: TeacherSession, training: Indices, features: FeaturesOf, classify: Classify) -> Indices:
    config = session.config
    if config.teacher.select == "known":
        return training[session.cached(training)]
    _, first = np.unique(session.same(training), return_index=True)
    images = training[np.sort(first)]  # of copies, one
    count = min(int(config.teacher.select or 0), len(images))
    match config.teacher.strategy:
        case "random":
            return images[random_order(len(images), config.seed)[:count]]
        case "balanced":
            labels, domains = session.dataset.labels[images], session.dataset.domain_ids[images]
            return images[balanced_order(labels, domains, config.seed)[:count]]
    rows = features(training)[np.searchsorted(training, images)]  # of all: Align needs them anyway
    if config.teacher.strategy == "kcenter":
        return images[k_center_order(rows, count)]
    return _by_student(session, images, rows, classify, count)


def _by_student(session: TeacherSession, images: Indices, rows: Rows, classify: Classify, count: int) -> Indices:
    """Return half of the images by k-center, then those that come first by a student trained on these."""
    half = k_center_order(rows, count // 2)
    session.query(images[half])
    rest = np.setdiff1d(np.arange(len(images)), half)
    logits = classify(session.targets(images[half]), rows[rest])
    more = rest[BY_STUDENT[session.config.teacher.strategy](logits)[: count - len(half)]]
    return np.concatenate([images[half], images[more]])


def _digest(session: TeacherSession, training: Indices) -> str:
    """Return a digest of everything that decides the selection."""
    config = session.config
    decides = hashlib.sha256()
    decides.update(config.teacher.model_dump_json(include={"select", "strategy"}).encode())
    decides.update(config.student.model_dump_json().encode())
    decides.update(f"{config.seed} {session.teacher.fingerprint}".encode())
    decides.update("".join(session.contents(session.same(training))).encode())
    decides.update(session.dataset.labels[training].tobytes() + session.dataset.domain_ids[training].tobytes())
    return decides.hexdigest()[:32]
