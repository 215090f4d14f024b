"""What a teacher is queried about: the views of an image, what of them and of the prompts is cached, what is left.

And the orders in which images come when not all are queried. Each is a function of its arguments and the seed alone,
and all but those of `BY_STUDENT` are nested: the first 100 of 1,000 are the 100. So a larger number queries only the
difference.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vl2v.data.auditing import Audit
from vl2v.data.augment import Fit, domainbed_augment, fitted
from vl2v.data.dataset import DomainDataset
from vl2v.data.decoding import decode
from vl2v.embeddings.rows import TeacherFacts
from vl2v.embeddings.schema import CLEAN, image_key, text_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, DataError
from vl2v.session import derive

if TYPE_CHECKING:
    from vl2v.config import RunConfig


LARGEST = 1024  # pixels a side of a clean view that is made square: no teacher takes more
AUGMENTATION = "domainbed-v1"  # changes when `domainbed_augment` would draw another image from the same seed


@dataclass(frozen=True)
class Views:
    """The clean view and `k` augmented ones, the same for every stage, run and machine.

    View 0 is the image file as it is. View v >= 1 is the augmented image number v - 1, drawn from a seed that
    depends on the file's content, so that copies of an image share their embeddings.

    Args:
        k: how many augmented views; 0 queries the clean image only.
        size: side of an augmented view in pixels: the student's input size.
        fit: how an image becomes a square before it is augmented: the student's.
        clean_fit: how the clean image becomes a square before the teacher gets it; "own": it gets the file.
        shrink: augmented views are of large JPEG photos decoded smaller (`data.shrink`).

    Raises:
        ConfigError: a negative `k`, or a `size` below 1.
    """

    k: int = 0
    seed: int = 0
    size: int = 224
    fit: Fit = "stretch"
    clean_fit: Fit | Literal["own"] = "own"
    shrink: bool = False

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ConfigError(f"views = {self.k}: the number of augmented views is 0 or more")
        if self.size < 1:
            raise ConfigError(f"size = {self.size}: a view is at least 1 pixel wide")

    def __len__(self) -> int:
        return 1 + self.k

    def __str__(self) -> str:
        return f"clean, and {self.k} of {self.size} px" if self.k else "clean"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the 1 + k views, as they enter the store's keys."""
        how = ("" if self.fit == "stretch" else f"/{self.fit}") + ("/shrunk" if self.shrink else "")
        augmented = (f"{AUGMENTATION}{how}/{self.size}/seed{self.seed}/k{k}" for k in range(self.k))
        return (clean_view(self.clean_fit), *augmented)

    @property
    def enough(self) -> int:
        """Pixels a side that an image of an augmented view is decoded with, see `decode`; 0: all."""
        return enough_for(self.size) if self.shrink else 0

    def pixels(self, image: Image.Image, sha256: bytes, view: int) -> NDArray[np.uint8]:
        """Return augmented view `view` (1..k) of a decoded image: uint8 [size, size, 3].

        Args:
            image: RGB, from `vl2v.data.decoding.decode` with `enough`.
            view: which one; view 0 is the file itself and has no pixels of its own.
        """
        if not 1 <= view <= self.k:
            raise IndexError(f"view {view} of {self.k} augmented ones")
        return domainbed_augment(image, self.size, derive(self.seed, "view", sha256.hex(), view - 1), self.fit)

    def encoded(self, data: bytes, sha256: bytes, views: tuple[int, ...]) -> list[bytes]:
        """Return what the teacher is sent for some views of one image file: its own bytes, or a PNG.

        Raises:
            vl2v.errors.DataError: the file cannot be decoded (where its own bytes don't do).
        """
        image = decode(data, enough=self.enough) if any(views) else None
        encoded = []
        for view in views:
            if view:
                assert image is not None
                encoded.append(_png(self.pixels(image, sha256, view)))
            elif self.clean_fit == "own":
                encoded.append(data)
            else:
                whole = decode(data) if image is None or self.enough else image
                encoded.append(_png(_square(whole, self.clean_fit)))
        return encoded


def enough_for(size: int) -> int:
    """Return how many pixels a side of a photo are enough for augmented views of a size."""
    return 2 * size


def clean_view(fit: Fit | Literal["own"]) -> str:
    """Return the name of the clean view, as it enters the store's keys."""
    return CLEAN if fit == "own" else f"{CLEAN}/{fit}"


def clean_images(config: RunConfig) -> Views:
    """Return the clean view alone, as the teacher gets it."""
    return Views(clean_fit=config.teacher.fit)


def fixed_views(config: RunConfig, image_size: int) -> Views:
    """Return the views that the teacher is queried about, for a student of this input size in pixels."""
    wanted = config.teacher
    if not wanted.views:
        return clean_images(config)
    return Views(wanted.views, wanted.view_seed, image_size, config.data.fit, wanted.fit, config.data.shrink)


def _square(image: Image.Image, fit: Fit | Literal["own"]) -> NDArray[np.uint8]:
    """Return an image as a square of the side it has by then (the longer one if it is stretched), at most `LARGEST`."""
    assert fit != "own"
    square = fitted(image, fit)
    side = min(max(square.size), LARGEST)
    return np.array(square.resize((side, side), Image.Resampling.BICUBIC))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)  # larger files, several times faster to write
    return buffer.getvalue()


@dataclass(frozen=True)
class Plan:
    """The queries of a dataset and its class prompts; the same content is queried once, whatever its name.

    Attributes:
        sha256: of each image's file, 32 bytes each.
        contents: what each image's embeddings are stored under, 32 bytes each; see `Audit.contents`.
        views: which views of an image are queried.
        distinct: how many different contents the images have.
        cached: how many of the `distinct * len(views)` image queries are cached.
        pending: (dataset index, view) of the others, an image's views next to each other.
        texts: how many different texts there are.
        cached_texts: how many of them are cached.
        pending_texts: the others.
    """

    dataset: DomainDataset
    sha256: tuple[bytes, ...]
    contents: tuple[bytes, ...]
    views: Views
    distinct: int
    cached: int
    pending: tuple[tuple[int, int], ...]
    texts: int
    cached_texts: int
    pending_texts: tuple[str, ...]

    @property
    def images(self) -> int:
        """How many images the dataset has, copies included."""
        return len(self.sha256)

    @property
    def queries(self) -> int:
        """How many queries are pending: images' views and texts."""
        return len(self.pending) + len(self.pending_texts)

    @property
    def keys(self) -> list[bytes]:
        """The store's keys of the pending image queries."""
        names = self.views.names
        return [image_key(self.contents[index], names[view]) for index, view in self.pending]

    def left(self, store: EmbeddingStore, teacher: TeacherFacts) -> Plan:
        """Return the plan without the image queries that a store has cached by now."""
        return replace(self, pending=tuple(self.pending[i] for i in _missing(store, teacher, self.keys)))

    def summary(self) -> str:
        """Return two lines for people: the images, and the texts."""
        copies = self.images - self.distinct
        return (
            f"images: {self.images:,}"
            + (f" ({copies:,} of them copies)" if copies else "")
            + (f" in {len(self.views)} views ({self.views})" if self.views.k else "")
            + f": {self.distinct * len(self.views):,} queries, {self.cached:,} cached, {len(self.pending):,} pending\n"
            f"texts: {self.texts:,} queries, {self.cached_texts:,} cached, {len(self.pending_texts):,} pending"
        )


def plan(
    store: EmbeddingStore | None,
    teacher: TeacherFacts,
    dataset: DomainDataset,
    audit: Audit,
    texts: Sequence[str],
    views: Views,
) -> Plan:
    """Compare what training needs with what is cached; query nothing.

    Args:
        store: None where there is no store yet: nothing is cached then.
        dataset: the images, the unreadable ones set aside.
        audit: of this very dataset: the contents' hashes.
        texts: all prompts of all classes; repeated ones count once.

    Raises:
        DataError: the audit found an image unreadable that is still in the dataset.
        StoreError: the store cannot be read.
    """
    if len(audit.sha256) != len(dataset):
        raise ValueError(f"an audit of {len(audit.sha256)} images for a dataset of {len(dataset)}")
    if audit.problems:
        index, reason = next(iter(sorted(audit.problems.items())))
        raise DataError(f"{dataset.paths[index]}: {reason} ({len(audit.problems)} such images): set them aside first")
    if store is not None:
        store.recognise(teacher)
    hashes = audit.contents
    first = {sha256: index for index, sha256 in reversed(list(enumerate(hashes)))}
    queries = [(index, view) for index in sorted(first.values()) for view in range(len(views))]
    names = views.names
    missing = _missing(store, teacher, [image_key(hashes[index], names[view]) for index, view in queries])
    wanted = list(dict.fromkeys(texts))
    texts_missing = _missing(store, teacher, [text_key(text) for text in wanted])
    return Plan(
        dataset=dataset,
        sha256=audit.sha256,
        contents=hashes,
        views=views,
        distinct=len(first),
        cached=len(queries) - len(missing),
        pending=tuple(queries[i] for i in missing),
        texts=len(wanted),
        cached_texts=len(wanted) - len(texts_missing),
        pending_texts=tuple(wanted[i] for i in texts_missing),
    )


def _missing(store: EmbeddingStore | None, teacher: TeacherFacts, keys: Sequence[bytes]) -> list[int]:
    if store is None:
        return list(range(len(keys)))
    return [int(i) for i in np.flatnonzero(~store.cached(teacher.fingerprint, keys))]


Indices = NDArray[np.int64]


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


def k_center_order(features: NDArray[np.float32], count: int, known: NDArray[np.float32] | None = None) -> Indices:
    """Return the first `count` images of the greedy k-center order: each is the farthest from all before it.

    Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach (arXiv 1708.00489),
    algorithm 1, by cosine distance, from the image that is nearest to the mean.

    Args:
        features: [n, p], for example the pretrained student's.
        known: [m, p], of images that come before all of them: the first is the farthest from these.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    chosen = np.empty(count, np.int64)
    nearest = np.full(len(unit), -np.inf, np.float32)  # largest cosine to what is chosen
    following = int(np.argmax(unit @ unit.mean(0))) if len(unit) else 0
    if known is not None and len(unit):
        for start in range(0, len(known), 256):
            block = known[start : start + 256]
            block = block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)
            np.maximum(nearest, (unit @ block.T).max(1), out=nearest)
        following = int(np.argmin(nearest)) if len(known) else following
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
"""Strategies that go by a first student, trained on those queried before: the order of the others by its logits."""
