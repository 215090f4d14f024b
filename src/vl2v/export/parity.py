"""Whether an export predicts what its student does, on real images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vl2v.data.dataset import one_form
from vl2v.deploy.prediction import BATCH
from vl2v.deploy.runtime import Exported
from vl2v.errors import StudentError
from vl2v.evaluation.compare import paired_interval
from vl2v.runs.datasets import Sources
from vl2v.session import derive
from vl2v.students.classifier import Classifier
from vl2v.training.batches import read_again, read_image

TOLERANCE = 1e-4  # of the largest logit, in fp32
POINTS = 0.005  # that int8 may lose
AGREED = 0.98  # of the classes in int8 that should be those in fp32; fewer where more layers in fp32 don't help
MOST = 10_000  # times as many images, that are used, at most
CALIBRATION = 200  # images that int8's ranges are taken from
ODD = 200  # images that preprocessing inside a file is checked on
INSIDE = 1e-3  # that probabilities may differ by there
CHECKED = 500  # validation images of each domain that are compared, at most

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Parity:
    """How an export compares with the student that it was made from, on the source domains' validation images.

    Attributes:
        difference: the largest, of logits, as a share of the largest logit.
        same: share of images with the same prediction.
        accuracy: domain -> (student's, export's), 0 to 1.
        images: domain -> how many that is of.
        changed: domain -> how many of these only the student has right, and how many only the export.
        kept: layers that int8 was not used for, because accuracy fell.
        gain: of int8: how many times as quick as fp32 it is on this machine, one image at a time.
        unrun: why the figures are of the network before it was converted, where the file can't be run here.
        refused: of a file in fp32: why it isn't in int8, where that was wanted first.
        inside: of a file that resizes images itself: odd images that it was checked on, and the largest difference of a
            probability from the same file without that.
    """

    difference: float
    same: float
    accuracy: dict[str, tuple[float, float]]
    images: dict[str, int]
    changed: dict[str, tuple[int, int]]
    kept: tuple[str, ...] = ()
    gain: float | None = None
    unrun: str = ""
    refused: str = ""
    inside: tuple[int, float] | None = None

    @property
    def exact(self) -> bool:
        """Whether it is the same but for rounding, as it has to be in fp32."""
        return self.difference <= TOLERANCE and self.same == 1

    @property
    def agrees(self) -> bool:
        """Whether `AGREED` of the classes are the student's, or all but one."""
        images = sum(self.images.values())
        return round((1 - self.same) * images) <= max(1, (1 - AGREED) * images)

    @property
    def lost(self) -> float:
        """How much accuracy falls on the domain where it falls most; negative where it rises everywhere."""
        return max(before - after for before, after in self.accuracy.values())

    @property
    def worse(self) -> bool:
        """Whether more than `POINTS` of accuracy are lost beyond chance: on all images, or on those of a domain."""
        every = [self._all, *((*self.changed[name], self.images[name]) for name in self.changed)]
        comparisons = len(every) if len(self.changed) > 1 else 1
        return any(loss_interval(*counts, comparisons=comparisons)[0] > POINTS for counts in every)

    @property
    def wanted(self) -> int:
        """How many more images would tell whether `POINTS` are lost, if they went on as these; 0: these tell."""
        lost, gained, count = self._all
        low, high = loss_interval(lost, gained, count)
        if low > POINTS or high <= POINTS:
            return 0
        times = 1.0
        while low <= POINTS < high and times < MOST:
            times *= 1.1
            low, high = loss_interval(lost * times, gained * times, count * times)
        return math.ceil((times - 1) * count)

    @property
    def _all(self) -> tuple[int, int, int]:
        lost, gained = (sum(changed[side] for changed in self.changed.values()) for side in (0, 1))
        return lost, gained, sum(self.images.values())

    @property
    def mean(self) -> float:
        """The export's accuracy, the mean over the domains."""
        return sum(after for _, after in self.accuracy.values()) / len(self.accuracy)

    def summary(self) -> str:
        """Return a few words for people; of each domain, too, how many images the difference comes from."""
        domains = ", ".join(
            f"{name} {100 * a:.1f} -> {100 * b:.1f} ({_images(self.images[name], b - a)})"
            for name, (a, b) in self.accuracy.items()
        )
        kept = f"; not in int8: {', '.join(self.kept)}" if self.kept else ""
        gain = "" if self.gain is None else f"; {self.gain:.1f} times as quick as fp32 here"
        if self.gain is not None and self.gain < 1:
            gain += ": this machine is better off with fp32"
        sizes = ""
        if self.inside is not None:
            count, apart = self.inside
            sizes = f"; takes images of any size ({count} odd ones: same classes, probabilities within {apart:.1e})"
        words = f"{100 * self.same:.1f}% same predictions, accuracy % {domains}{kept}{self._changes()}{gain}{sizes}"
        if self.refused:
            words += f"; in fp32, because {self.refused}"
        if self.unrun:
            words += f"; only its description was checked, not its predictions: {self.unrun}"
        return words

    def _changes(self) -> str:
        """Return how sure the accuracy of an export that isn't exact is."""
        if self.exact or self.worse or not self.changed:
            return ""
        low, high = loss_interval(*self._all)
        interval = f"95% interval {-100 * high:+.1f} to {-100 * low:+.1f} points"
        if not self.wanted:
            return f"; keeps its accuracy ({interval})"
        more = float(f"{self.wanted:.2g}")
        return (
            f"; {interval}: about {more:,.0f} more validation images would tell whether it loses {100 * POINTS} points"
        )


@dataclass(frozen=True)
class Domain:
    """Validation images of a source domain: pixels [n, s, s, 3], labels [n], the student's logits [n, C]."""

    name: str
    pixels: Pixels
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]


def source_domains(classifier: Classifier, sources: Sources) -> Iterator[Domain]:
    """Yield the validation images of each source domain, with the student's predictions.

    Of images that have no label, the student's own prediction stands for it.
    """
    dataset = sources.dataset.of_classes(
        [one_form(name) for name in classifier.classes]
    )  # labels as the student has them
    val = sources.split.val
    for name in sources.names or sources.dataset.domains:
        images = val[dataset.domain_ids[val] == dataset.domain_index(name)][:CHECKED]
        pixels = _pixels(sources, images, classifier)
        logits = np.concatenate([classifier.logits(torch.from_numpy(part)).numpy() for part in parts(pixels)])
        labels = dataset.labels[images]
        yield Domain(name, pixels, np.where(labels < 0, logits.argmax(1), labels), logits)


def calibration_pixels(sources: Sources, classifier: Classifier) -> Pixels:
    """Return training images of all source domains, drawn evenly."""
    rng = np.random.default_rng(derive(0, "calibration"))
    train = sources.split.train if sources.labelled else sources.training
    domains = sources.dataset.domain_ids[train]
    each = -(-CALIBRATION // len(np.unique(domains)))
    drawn = [rng.permutation(train[domains == domain])[:each] for domain in np.unique(domains)]
    return _pixels(sources, np.concatenate(drawn), classifier)


def compare(exported: Exported, domains: Sequence[Domain], kept: tuple[str, ...] = ()) -> Parity:
    """Return how an export compares with its student.

    Raises:
        StudentError: the export gives NaN or infinity.
    """
    found = [np.concatenate([exported.logits(part) for part in parts(domain.pixels)]) for domain in domains]
    wanted = np.concatenate([domain.logits for domain in domains])
    said = np.concatenate(found)
    accuracy = {
        domain.name: (_accuracy(domain.logits, domain.labels), _accuracy(logits, domain.labels))
        for domain, logits in zip(domains, found, strict=True)
    }
    difference = float(np.abs(wanted - said).max() / np.abs(wanted).max())
    images = {domain.name: len(domain.labels) for domain in domains}
    changed = {
        domain.name: _changed(domain.logits.argmax(1) == domain.labels, logits.argmax(1) == domain.labels)
        for domain, logits in zip(domains, found, strict=True)
    }
    same = float((wanted.argmax(1) == said.argmax(1)).mean())
    return Parity(difference, same, accuracy, images, changed, kept)


def odd_images(sources: Sources, count: int = ODD) -> Iterator[Pixels]:
    """Yield validation images of the source domains, uint8 [h, w, 3]: as they are, and made odd in eight ways."""
    rng = np.random.default_rng(derive(0, "odd images"))
    every = rng.permutation(sources.split.val)
    for number in range(count):
        yield odd(read_image(sources.dataset, int(every[number % len(every)])), number, rng)


def odd(image: Image.Image, number: int, rng: np.random.Generator) -> Pixels:
    """Return an image [h, w, 3] as it is, or of an odd size, grey, tiny, large, or very wide or tall."""
    width, height = image.size
    match number % 9:
        case 1:
            image = image.resize((max(1, width // 2 * 2 - 1), max(1, height // 3 * 2 + 1)))
        case 2:
            image = image.convert("L").convert("RGB")
        case 3:
            image = image.resize((int(rng.integers(1, 9)), int(rng.integers(1, 9))))
        case 4:
            image = image.crop((0, height // 2, width, height // 2 + max(1, height // 20)))
        case 5:
            image = image.crop((width // 2, 0, width // 2 + max(1, width // 20), height))
        case 6:
            image = image.resize((4 * min(width, 400) + 1, 3 * min(height, 400) + 2))
        case 7:
            image = image.crop((0, 0, max(1, width // 2 - 1), height))
        case 8:
            image = image.resize((int(rng.integers(20, 200)), int(rng.integers(20, 200))))
    return np.asarray(image)


def check_inside(made: Exported, plain: Exported, images: Iterable[Pixels]) -> tuple[int, float]:
    """Return how many images two exports of one network were compared on, and the largest difference of a probability.

    Args:
        images: each uint8 [h, w, 3].

    Raises:
        StudentError: another class of any image, or a difference of more than 1e-3.
    """
    pairs = [(made.image_probabilities(image), plain.image_probabilities(image)) for image in images]
    apart = max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)
    other = sum(int(ours.argmax() != theirs.argmax()) for ours, theirs in pairs)
    if other or apart > INSIDE:
        raise StudentError(
            f"with preprocessing inside, {other} of {len(pairs)} images are of another class, and probabilities differ "
            f"by up to {apart:.1e}; export with --preprocess outside"
        )
    return len(pairs), apart


def loss_interval(lost: float, gained: float, count: float, *, comparisons: int = 1) -> tuple[float, float]:
    """Return the interval of how much accuracy is lost, of counts of paired images."""
    found = paired_interval(gained, lost, count, comparisons=comparisons)
    return -found.high, -found.low


def parts(pixels: Pixels) -> Iterator[Pixels]:
    """Yield batches."""
    for start in range(0, len(pixels), BATCH):
        yield pixels[start : start + BATCH]


def _images(images: int, gained: float) -> str:
    """Return how many images an accuracy is of, and how many of them a difference of it is."""
    apart = round(abs(gained) * images)
    return f"{images} images" + (f", {apart} {'more' if gained > 0 else 'fewer'} right" if apart else "")


def _changed(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[int, int]:
    """Return how many images were right before only, and after only."""
    return int((before & ~after).sum()), int((after & ~before).sum())


def _accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return float((logits.argmax(1) == labels).mean())


def _pixels(sources: Sources, images: NDArray[np.int64], classifier: Classifier) -> Pixels:
    return np.stack([read_again(sources.dataset, int(i), classifier.view) for i in images])
