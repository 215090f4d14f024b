"""The fixed views of an image that a teacher is asked about: the clean file, and K augmented images of it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vl2v.errors import ConfigError
from vl2v.seeds import derive

CLEAN = "clean"
AUGMENTATION = "domainbed-v1"  # changes when `domainbed_augment` would draw another image from the same seed


@dataclass(frozen=True)
class Views:
    """The clean view and `k` augmented ones, the same for every stage, run and machine.

    View 0 is the image file as it is. View v >= 1 is the augmented image number v - 1, drawn from a seed that
    depends on the file's content, so that copies of an image share their answers.

    Args:
        k: how many augmented views; 0 asks about the clean image only.
        seed: draws another set of views.
        size: side of an augmented view in pixels: the student's input size.

    Raises:
        ConfigError: a negative `k`, or a `size` below 1.
    """

    k: int = 0
    seed: int = 0
    size: int = 224

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
        return (CLEAN, *(f"{AUGMENTATION}/{self.size}/seed{self.seed}/k{k}" for k in range(self.k)))

    def pixels(self, image: Image.Image, sha256: bytes, view: int) -> NDArray[np.uint8]:
        """Return augmented view `view` (1..k) of a decoded image: uint8 [size, size, 3].

        Args:
            image: RGB, from `vl2v.data.decoding.decode`.
            sha256: of the image file's bytes.
            view: which one; view 0 is the file itself and has no pixels of its own.
        """
        from vl2v.data.augment import domainbed_augment

        if not 1 <= view <= self.k:
            raise IndexError(f"view {view} of {self.k} augmented ones")
        return domainbed_augment(image, self.size, derive(self.seed, "view", sha256.hex(), view - 1))

    def encoded(self, data: bytes, sha256: bytes, views: tuple[int, ...]) -> list[bytes]:
        """Return what the teacher is sent for some views of one image file: its own bytes, or a PNG.

        Raises:
            vl2v.errors.DataError: the file cannot be decoded (augmented views only).
        """
        from vl2v.data.decoding import decode

        image = decode(data) if any(views) else None
        return [data if image is None or view == 0 else _png(self.pixels(image, sha256, view)) for view in views]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)  # larger files, several times faster to write
    return buffer.getvalue()
