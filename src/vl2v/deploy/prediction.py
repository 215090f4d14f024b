"""What a student predicts of one image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vl2v.data.augment import Fit as Fit
from vl2v.data.augment import evaluation_view
from vl2v.data.decoding import decode
from vl2v.errors import DataError, StudentError
from vl2v.names import UNKNOWN, new_class_name
from vl2v.table import Table

BATCH = 64
SHOWN = 3  # of the most likely classes, where a prediction is printed


@dataclass(frozen=True, repr=False)
class Prediction:
    """What a student makes of one image.

    Attributes:
        label: the class, or "unknown" where even the best one is less likely than the threshold.
        best: the most likely class.
        probability: of the most likely class.
        probabilities: of every class.

    Examples:
        >>> prediction(["cat", "dog"], [0.2, 0.8], threshold=0.5)
        Prediction(dog 0.800, cat 0.200)
        >>> prediction(["cat", "dog"], [0.4, 0.6], threshold=0.7).label
        'unknown'
    """

    label: str
    best: str
    probability: float
    probabilities: dict[str, float]

    def __repr__(self) -> str:
        words = ", ".join(f"{name} {probability:.3f}" for name, probability in self._top())
        return f"Prediction({words})" if self.label == self.best else f"Prediction({self.label}; {words})"

    def _repr_html_(self) -> str:
        rows = [(name, f"{100 * probability:.1f}") for name, probability in self._top()]
        return Table(["class", "probability %"], rows, bold=[0], title=self.label).render("html")

    def _top(self) -> list[tuple[str, float]]:
        """Return the most likely classes, with their probabilities."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])[:SHOWN]


def prediction(classes: list[str], probabilities: list[float], threshold: float) -> Prediction:
    """Return the prediction that follows from each class's probability."""
    best = max(range(len(classes)), key=probabilities.__getitem__)
    name, probability = classes[best], probabilities[best]
    label = name if probability >= threshold else UNKNOWN
    return Prediction(label, name, probability, dict(zip(classes, probabilities, strict=True)))


class Predictor(ABC):
    """A student that predicts, in torch or exported.

    Attributes:
        classes: C names.
    """

    classes: list[str]

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Pixels a side that the network takes."""

    @property
    @abstractmethod
    def fit(self) -> Fit:
        """How images become squares; see `vl2v.data.augment.fitted`."""

    @abstractmethod
    def _predict(self, pixels: NDArray[np.uint8]) -> list[Prediction]:
        """Return one prediction an image of pixels [n, s, s, 3]."""

    @abstractmethod
    def _class_embeddings(self) -> NDArray[np.float32]:
        """Return the classes' text embeddings [C, d], unit rows.

        Raises:
            StudentError: it has none: its classes are part of the network.
        """

    @abstractmethod
    def _set_class_embeddings(self, embeddings: NDArray[np.float32]) -> None:
        """Classify by these text embeddings [C, d] from now on."""

    def view(self, image: bytes) -> NDArray[np.uint8]:
        """Return an image file's pixels [s, s, 3], as the network wants them.

        Raises:
            ImageError: it can't be decoded.
        """
        return evaluation_view(decode(image), self.image_size, self.fit)

    def predict(self, images: Sequence[bytes | Path | str]) -> list[Prediction]:
        """Return one prediction an image (a file's bytes or its path), in order.

        Raises:
            ImageError: an image that can't be decoded.
            DataError: a file that can't be read.
        """
        return self.predict_views([self.view(_bytes(image)) for image in images])

    def predict_views(self, views: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Return one prediction an image that `view` returned, in order."""
        chunks = [np.stack(views[start : start + BATCH]) for start in range(0, len(views), BATCH)]
        return [made for chunk in chunks for made in self._predict(chunk)]

    def check_new(self, name: str) -> str:
        """Return the name under which a class of this name can join the others.

        Raises:
            StudentError: as `vl2v.names.new_class_name` does.
        """
        return new_class_name(name, self.classes)

    def add_class(self, name: str, embedding: NDArray[np.float32], /) -> None:
        """Add a class by its text embedding [d], a unit vector: no training.

        Raises:
            StudentError: the classes are part of the network, a name that can't be a new class's, or another dimension.
        """
        embeddings = self._class_embeddings()
        name = self.check_new(name)
        if embedding.shape != embeddings.shape[1:]:
            raise StudentError(
                f"class {name!r}: embedding of {embedding.shape[0]} numbers, the student has {embeddings.shape[1]}"
            )
        self._set_class_embeddings(np.vstack([embeddings, embedding.astype(np.float32)]))
        self.classes.append(name)

    def remove_class(self, name: str) -> None:
        """Remove a class.

        Raises:
            StudentError: the classes are part of the network, no such class, or the last one.
        """
        embeddings = self._class_embeddings()
        if name not in self.classes:
            raise StudentError(f"no class {name!r}")
        if len(self.classes) == 1:
            raise StudentError(f"class {name!r} is the only one left, and a student needs one")
        index = self.classes.index(name)
        self._set_class_embeddings(np.delete(embeddings, index, 0))
        del self.classes[index]


def _bytes(image: bytes | Path | str) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise DataError(f"{image}: can't be read ({error.strerror})") from None
