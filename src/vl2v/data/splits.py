"""Splits exactly as DomainBed makes them, and leaving domains out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vl2v.data.dataset import UNLABELLED, DomainDataset
from vl2v.errors import DataError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Dataset indices, sorted.

    Attributes:
        train: the source domains' images to learn from.
        val: the source domains' images to choose by.
        target: the unseen domains' images with labels.
        unlabelled: images without labels, the unseen domains' not among them.
    """

    train: Indices
    val: Indices
    target: Indices
    unlabelled: Indices


def seed_hash(*parts: object) -> int:
    """Return DomainBed's seed of anything: the MD5 of its tuple's text, modulo 2^31."""
    return int(hashlib.md5(str(parts).encode(), usedforsecurity=False).hexdigest(), 16) % 2**31


def domainbed_split(count: int, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Return (training, validation) indices in a domain of `count` images: the first share of a shuffle validates."""
    order = list(range(count))
    np.random.RandomState(seed).shuffle(order)
    held_out = int(count * fraction)
    return np.array(order[held_out:], np.int64), np.array(order[:held_out], np.int64)


def in_split(dataset: DomainDataset, domain: str, fraction: float, trial_seed: int) -> Indices:
    """Return the images of a target that DomainBed measures: all but the share that its oracle selects by."""
    images = dataset.labelled(domain)
    seed = seed_hash(trial_seed, dataset.domain_index(domain))
    return np.sort(images[domainbed_split(len(images), fraction, seed)[0]])


def leave_out(dataset: DomainDataset, target: Sequence[str], *, fraction: float = 0.2, trial_seed: int = 0) -> Split:
    """Split the source domains into training and validation; the target domains stay apart whole.

    A manifest's split column decides for the images that have one ("test" images of source domains are used for
    nothing); the others of a domain are split as DomainBed does.

    Raises:
        DataError: an unknown target, no source domain left, only one class, a source domain too small to split.
    """
    unseen = {dataset.domain_index(name) for name in target}
    if UNLABELLED in target:
        raise DataError(f"target {UNLABELLED!r}: images without labels can't be a target")
    if len(dataset.classes) < 2:
        raise DataError(f"{dataset.root}: only one class ({', '.join(dataset.classes)}); a classifier needs two")
    train, val = [], []
    labelled = dataset.labels >= 0
    present = set(np.unique(dataset.domain_ids[labelled]).tolist())
    for name in target:
        if dataset.domain_index(name) not in present:
            raise DataError(f"{dataset.root}: target {name} has no images with labels; choose another")
    for domain in sorted(present - unseen):
        images = np.flatnonzero((dataset.domain_ids == domain) & labelled)
        more, held_out = _split_domain(dataset, images, fraction, seed_hash(trial_seed, domain))
        if not len(more) or not len(held_out):
            wanting = "training" if len(held_out) else "validation"
            usable = "1 usable image and none of it" if len(images) == 1 else f"{len(images)} usable images and none"
            raise DataError(
                f"{dataset.root}: domain {dataset.domains[domain]} has {usable} for {wanting}; "
                "add images, or fix the manifest's split column"
            )
        train.append(more)
        val.append(held_out)
    if not train:
        raise DataError(f"{dataset.root}: every domain is a target, so none is left to train on; keep one as a source")
    learnt = set(dataset.labels[np.concatenate(train)].tolist())
    if len(learnt) < 2:
        raise DataError(f"{dataset.root}: only one class in the source domains; a classifier needs two")
    kept_apart = np.isin(dataset.domain_ids, list(unseen))
    return Split(
        np.sort(np.concatenate(train)),
        np.sort(np.concatenate(val)),
        np.flatnonzero(kept_apart & labelled),
        np.flatnonzero(~kept_apart & ~labelled),  # a target's images teach nothing, without labels either
    )


def hold_out(dataset: DomainDataset, *, fraction: float = 0.2, trial_seed: int = 0) -> Split:
    """Split images none of which has a label: a share of them, drawn as DomainBed does, validates.

    Raises:
        DataError: too few images.
    """
    train, val = domainbed_split(len(dataset), fraction, seed_hash(trial_seed, 0))
    if not len(train) or not len(val):
        raise DataError(f"{dataset.root}: {len(dataset)} usable images, too few to hold some out; add more")
    nothing = np.zeros(0, np.int64)
    return Split(nothing, np.sort(val), nothing, np.sort(train))


def _split_domain(dataset: DomainDataset, images: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    said = np.array([dataset.splits[i] if dataset.splits else None for i in images], dtype=object)
    free = images[said == None]  # noqa: E711
    train, val = domainbed_split(len(free), fraction if not (said == "val").any() else 0.0, seed)
    return (np.concatenate([free[train], images[said == "train"]]), np.concatenate([free[val], images[said == "val"]]))
