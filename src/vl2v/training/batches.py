"""Batches for a stage: augmented images decoded by worker processes, or cached features."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing import ProcessError
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vl2v.data.augment import Fit, domainbed_augment, evaluation_view
from vl2v.data.dataset import DomainDataset
from vl2v.data.decoding import ImageError, decode
from vl2v.embeddings.plan import Views
from vl2v.embeddings.session import TeacherTargets
from vl2v.errors import RunError, VL2VError, VL2VWarning
from vl2v.io import retried
from vl2v.methods import Targets
from vl2v.session import derive
from vl2v.system import raise_dropped_signal, release_signals, signals_held

T = TypeVar("T")
Indices = NDArray[np.int64]
Rendering = tuple[Views, Sequence[bytes], int]
"""(views, contents by dataset index, v): view v (1 to K) of each image."""

BROKEN = (RuntimeError, OSError, EOFError, ProcessError)  # how a connection to a worker that is gone breaks off


def read_image(dataset: DomainDataset, index: int, enough: int = 0) -> Image.Image:
    """Return a decoded image that could be read before; see `read_again`, and for `enough` `decode`."""
    return read_again(dataset, index, partial(decode, enough=enough))


def read_again(dataset: DomainDataset, index: int, made: Callable[[bytes], T]) -> T:
    """Return what is made of an image file that could be read before; a few more attempts if it can't be now.

    Raises:
        RunError: it still can't be.
    """
    try:
        return retried(lambda: made(dataset.read(index)), OSError, ImageError)
    except (OSError, ImageError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RunError(
            f"{dataset.file(index)}: can't be read any more ({why}); put it back, "
            "then give the same command again: it resumes where it stopped"
        ) from None


def loaded(
    items: Dataset[Any], numbers: Sequence[int], *, workers: int, ahead: int | None = None, pinned: bool = False
) -> Iterator[Any]:
    """Yield `items[number]` in order, made by `workers` processes, `ahead` items each.

    Where these can't go on (too little shared memory, killed for want of memory), this process makes the rest.
    Pinned tensors are copied to a GPU while it computes.

    Raises:
        VL2VError: as an item does; never as a worker's traceback.
    """
    made, guarded = 0, _Guarded(items)
    while made < len(numbers):
        left = numbers[made:]
        loader = DataLoader(
            guarded,
            batch_size=None,
            sampler=left,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            collate_fn=_as_it_is,
            pin_memory=pinned,
            worker_init_fn=_listening,
        )
        batches: Iterator[Any] = iter(())
        try:
            batches = _started(loader)
            for item in batches:
                if isinstance(item, VL2VError):
                    raise item
                made += 1
                raise_dropped_signal()
                yield item
        except BROKEN as error:
            if not workers:
                raise
            getattr(batches, "_shutdown_workers", list)()  # else each later fork complains of it, in a traceback
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]  # EOFError has no words
            warnings.warn(
                f"data.workers = {workers}: decoding in other processes fails, as it does with a small /dev/shm or too "
                f"little memory ({reason}); decoding continues in this one, more slowly: data.workers=0 avoids this",
                VL2VWarning,
                stacklevel=2,
            )
            workers = 0


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return a loader's iterator, without PyTorch's handler of SIGCHLD: it would raise anywhere in the main thread."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if main and hasattr(signal, "SIGCHLD") else None
    with signals_held():  # in the midst of a fork Python drops what they raise
        items = iter(loader)
    if before is not None and signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before)
    return items


class _Guarded(Dataset[Any]):
    """Items, or the error instead of one: a worker's exception would come with its traceback."""

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __getitem__(self, number: int) -> Any:
        try:
            item = self.items[number]
        except VL2VError as error:
            return error
        if get_worker_info() is not None:  # here a lack of shared memory is an error; in the queue's thread it is lost
            for part in item if isinstance(item, tuple) else (item,):
                if isinstance(part, Tensor):
                    part.share_memory_()
        return item


def _listening(worker: int) -> None:
    """Hear signals again, and open the socket by which a worker hands its tensors on.

    Without a temporary folder that is an error here; in the queue's thread it would be lost, and its batch waited for
    without end. A Ctrl-C may have the main process hang up while it takes a tensor: the thread that hands them on
    would print a traceback.
    """
    if os.name == "posix":
        from multiprocessing.reduction import DupFd

        release_signals()
        usual, hung_up = sys.excepthook, (ConnectionError, EOFError)
        sys.excepthook = lambda kind, *rest: None if issubclass(kind, hung_up) else usual(kind, *rest)

        with open(os.devnull, "rb") as nothing:
            DupFd(nothing.fileno())


def _as_it_is(item: Any) -> Any:
    return item


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


class Batches(Protocol):
    """Where a stage's batches come from."""

    def between(self, start: int, stop: int) -> Iterator[tuple[Tensor, Targets]]:
        """Yield batches `start` to `stop` (excluded): the student's input and what to learn from it."""
        ...


@dataclass(frozen=True)
class Renderer:
    """What the student sees of an image in training.

    With K fixed views (`views.k` > 0) it is one of the queried images, else a fresh
    augmentation, drawn from the seed, the image and how often it was drawn before; either of an image decoded with
    `enough` pixels a side (see `decode`).
    """

    dataset: DomainDataset
    contents: Sequence[bytes]
    views: Views
    size: int
    seed: int
    fit: Fit = "stretch"
    enough: int = 0

    def render(self, index: int, turn: int) -> tuple[NDArray[np.uint8], int]:
        """Return pixels [s, s, 3] and the view (0: the clean image's embedding is the target)."""
        image = read_image(self.dataset, index, self.enough)
        if self.views.k:
            view = 1 + derive(self.seed, "which view", index, turn) % self.views.k
            return self.views.pixels(image, self.contents[index], view), view
        return domainbed_augment(image, self.size, derive(self.seed, "augment", index, turn), self.fit), 0


class _Rendered(Dataset[tuple[Tensor, Indices, Indices]]):
    """Whole batches by number, for DataLoader workers."""

    def __init__(self, sampler: DomainBalancedSampler, renderer: Renderer) -> None:
        self.sampler = sampler
        self.renderer = renderer

    def __getitem__(self, number: int) -> tuple[Tensor, Indices, Indices]:
        images, turns = self.sampler.batch(number)
        drawn = [self.renderer.render(int(p), int(t)) for p, t in zip(images, turns, strict=True)]
        pixels = torch.from_numpy(np.stack([pixels for pixels, _ in drawn]))
        return pixels, images, np.array([view for _, view in drawn])


@dataclass(frozen=True)
class PixelBatches:
    """Augmented images, decoded and rendered ahead by `workers` processes; `pinned` for a GPU."""

    sampler: DomainBalancedSampler
    renderer: Renderer
    targets: TeacherTargets
    workers: int
    pinned: bool = False

    def between(self, start: int, stop: int) -> Iterator[tuple[Tensor, Targets]]:
        """Yield (pixels [n, s, s, 3] uint8, targets)."""
        rendered, numbers = _Rendered(self.sampler, self.renderer), range(start, stop)
        for pixels, indices, views in loaded(rendered, numbers, workers=self.workers, ahead=4, pinned=self.pinned):
            taught = batch_targets(self.targets, indices, views)
            if self.targets.online is not None:
                taught = replace(taught, images=self.targets.online(pixels))
            yield pixels, taught


@dataclass(frozen=True)
class FeatureBatches:
    """Features F(x), or activations of the lower blocks, computed once: what is frozen needs no image.

    Attributes:
        features: [n, V, ...], of V views of each image: the clean one alone, or fixed ones.
        rows: which row of them an image has, by dataset index.
        views: the teacher's view (0: clean) that each of the V learns from, [V].
    """

    sampler: DomainBalancedSampler
    features: Tensor
    targets: TeacherTargets
    rows: Indices
    views: Indices
    seed: int

    def between(self, start: int, stop: int) -> Iterator[tuple[Tensor, Targets]]:
        """Yield (features [n, p] or activations [n, ...], targets)."""
        choices = self.features.shape[1]
        for number in range(start, stop):
            images, turns = self.sampler.batch(number)
            which = np.zeros_like(images)
            if choices > 1:
                draws = zip(images, turns, strict=True)
                which = np.array([derive(self.seed, "which view", int(p), int(t)) % choices for p, t in draws])
            taught = batch_targets(self.targets, images, self.views[which])
            yield self.features[torch.from_numpy(self.rows[images]), torch.from_numpy(which)], taught


class _Clean(Dataset[Tensor]):
    """Images as they are evaluated, or one fixed view of each, in chunks."""

    def __init__(
        self,
        dataset: DomainDataset,
        indices: Indices,
        size: int,
        chunk: int,
        view: Rendering | None,
        fit: Fit,
    ) -> None:
        self.dataset = dataset
        self.chunks = [indices[start : start + chunk] for start in range(0, len(indices), chunk)]
        self.size = size
        self.view = view
        self.fit = fit

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> Tensor:
        return torch.from_numpy(np.stack([self._pixels(int(index)) for index in self.chunks[number]]))

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        if self.view is None:
            return evaluation_view(read_image(self.dataset, index), self.size, self.fit)
        views, contents, number = self.view
        return views.pixels(read_image(self.dataset, index, views.enough), contents[index], number)


def clean_pixels(
    dataset: DomainDataset,
    images: Indices,
    size: int,
    *,
    workers: int,
    chunk: int = 64,
    view: Rendering | None = None,
    fit: Fit = "stretch",
) -> Iterator[Tensor]:
    """Yield uint8 pixels [n, s, s, 3] of images in order, in chunks, without augmentation.

    Args:
        size: s.
        chunk: n, but for the last.
        view: a fixed view instead of the clean image.
        fit: how the clean image becomes a square.
    """
    chunks = _Clean(dataset, images, size, chunk, view, fit)
    yield from loaded(chunks, range(len(chunks)), workers=min(workers, len(chunks)))


class _Viewed(Dataset[Tensor]):
    """All fixed views of some images, each image decoded once."""

    def __init__(
        self, dataset: DomainDataset, chunks: Sequence[Indices], views: Views, contents: Sequence[bytes]
    ) -> None:
        self.dataset = dataset
        self.chunks = chunks
        self.views = views
        self.contents = contents

    def __getitem__(self, number: int) -> Tensor:
        made = []
        for index in self.chunks[number].tolist():
            image = read_image(self.dataset, index, self.views.enough)
            made += [self.views.pixels(image, self.contents[index], 1 + k) for k in range(self.views.k)]
        return torch.from_numpy(np.stack(made))


def viewed_pixels(
    dataset: DomainDataset, images: Indices, views: Views, contents: Sequence[bytes], *, workers: int
) -> Iterator[Tensor]:
    """Yield uint8 pixels [n x K, s, s, 3] of the K fixed views of images, image by image.

    Args:
        contents: SHA-256 by dataset index.
    """
    each = max(1, 64 // views.k)
    chunks = [images[start : start + each] for start in range(0, len(images), each)]
    viewed = _Viewed(dataset, chunks, views, contents)
    yield from loaded(viewed, range(len(chunks)), workers=min(workers, len(chunks)))


def batch_targets(targets: TeacherTargets, indices: Indices, views: Indices) -> Targets:
    """Return what a batch learns from: images [n] (dataset indices) seen in views [n] (0 is the clean one)."""
    images = None if targets.images is None else torch.from_numpy(targets.images[indices, views]).float()
    texts, anchors = (None if x is None else torch.from_numpy(x) for x in (targets.texts, targets.anchors))
    domains = None if targets.domains is None else torch.from_numpy(targets.domains[indices])
    adapted = None if targets.adapted is None else torch.from_numpy(targets.adapted)
    labels = torch.from_numpy(targets.labels[indices])
    return Targets(labels, images, texts, targets.scale, domains, anchors, adapted=adapted)
