"""What a teacher is: images or texts in, unit vectors out. Nobody downstream can tell which one it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vl2v.data.augment import Fit

if TYPE_CHECKING:
    from torch import Tensor, nn

# Part of every fingerprint: raised when our own handling of images, texts or responses changes an embedding.
EMBEDDING_VERSION = 1

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class EncodedImage:
    """An image file's own bytes (an augmented view: a PNG), and its path in the dataset."""

    name: str
    data: bytes


@runtime_checkable
class Teacher(Protocol):
    """A frozen vision-language model.

    Attributes:
        name: its spec, for example "open_clip:ViT-B-32/laion2b_s34b_b79k".
        fingerprint: changes when the embeddings could: weights, preprocessing, precision, version.
        dim: d.
        logit_scale: s; None where it isn't known.
    """

    name: str
    fingerprint: str
    dim: int
    logit_scale: float | None

    def embed_images(self, images: Sequence[EncodedImage]) -> Vectors:
        """Return I(x) [n, d], unit rows, in order."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Return the texts' embeddings [n, d], unit rows, in order."""
        ...


@dataclass(frozen=True)
class BackboneSpec:
    """What rebuilds a backbone, or a teacher's image tower, without its weights, and how images are put to it.

    Attributes:
        image_size: pixels a side.
        mean, std: of each channel, 0 to 1.
        fit: how images become squares, for a student; see `vl2v.data.augment.fitted`.
    """

    build: dict[str, Any]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "stretch"


class WhiteBox(Teacher, Protocol):
    """A teacher whose weights are at hand."""

    def image_tower(self) -> tuple[nn.Module, BackboneSpec]:
        """Return a copy of the image encoder, normalised pixels [n, 3, s, s] -> [n, d], and what rebuilds it."""
        ...

    def embed_pixels(
        self, pixels: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> Tensor:
        """Return I(x) [n, d], unit rows, of uint8 pixels [n, 3, h, w]; with its own mean and std, or those given."""
        ...


def gives_weights(teacher: Teacher) -> TypeGuard[WhiteBox]:
    """Return whether a teacher is a white box; sends no query, which a paid teacher's `dim` may cost."""
    return hasattr(type(teacher), "image_tower")
