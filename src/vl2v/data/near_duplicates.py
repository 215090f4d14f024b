"""Near-copies: images that look the same, though their files differ (another size, format or compression)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LIKE = 0.99  # correlation of the grey values of near-copies
COLOURS = 32  # of 255: what the mean colours of near-copies may differ by
_GREY, _CELLS = slice(0, 256), slice(256, 256 + 48)
_FLAT = 2.0  # standard deviation of the grey values, of 255
_COLOURLESS = 8  # what a grey image's channels differ by at most, after compression
_TABLES = 8
_CHUNK = 4096
_PLANES = np.random.default_rng(0).standard_normal((256, 16 * _TABLES)).astype(np.float32)
_LUMA = np.array([0.299, 0.587, 0.114])


def signature_of(image: Image.Image) -> bytes:
    """Return the perceptual signature that near-copies share; b"" for an image of one colour only.

    That is 16 x 16 mean grey values, then the mean colours of 4 x 4 cells: 304 bytes.
    """
    grey = np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BILINEAR))
    if grey.std() < _FLAT:
        return b""
    return grey.tobytes() + image.resize((4, 4), Image.Resampling.BILINEAR).tobytes()


def lookalikes(signatures: Sequence[bytes], among: Sequence[bytes]) -> NDArray[np.int64]:
    """Return, for each signature, the first of others that is a near-copy, or -1: [n] indices in `among`.

    Near-copies are alike in their 16 x 16 grey values (correlation 0.99) and in their colours. Of PACS images that are
    saved again as JPEG of quality 10 to 90, scaled, squeezed or made grey, 99.8% or more are found; of its 50 million
    pairs of images 9 count, all of one class and domain. An image that was cropped by 5% at each side isn't found.
    """
    index = _Index([*among, *signatures])
    for number in range(len(among)):
        index.add(number)
    return np.array([index.first(len(among) + number, default=-1) for number in range(len(signatures))], np.int64)


def near_copies(signatures: Sequence[bytes]) -> NDArray[np.int64]:
    """Return, for each image, the one that stands for it: the first that is a near-copy, or itself: [n].

    Likeness is not handed on from image to image: each is a near-copy of the one that stands for it.
    """
    index = _Index(signatures)
    stands = np.arange(len(signatures))
    for number in range(len(signatures)):
        stands[number] = index.first(number, default=number)
        if stands[number] == number:
            index.add(number)
    return stands


class _Index:
    """Signatures found by likeness: those on the same side of 16 random planes, in one of eight tables."""

    def __init__(self, signatures: Sequence[bytes]) -> None:
        self._signatures = signatures
        self._keys = _sides(signatures)
        self._tables: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(_TABLES)]
        self._there: set[bytes] = {b""}

    def add(self, number: int) -> None:
        """Index a signature; of equal ones only the first is found."""
        if self._signatures[number] in self._there:
            return
        self._there.add(self._signatures[number])
        for table, key in zip(self._tables, self._keys[number].tolist(), strict=True):
            table[key].append(number)

    def first(self, number: int, default: int) -> int:
        """Return the lowest number of the near-copies that were added."""
        signature = self._signatures[number]
        if not signature:
            return default
        keys = self._keys[number].tolist()
        found = sorted({other for table, key in zip(self._tables, keys, strict=True) for other in table.get(key, ())})
        if not found:
            return default
        grey = _normalised([self._signatures[other] for other in found]) @ _normalised([signature])[0]
        alike = (found[i] for i in np.flatnonzero(grey >= LIKE) if _same_colours(signature, self._signatures[found[i]]))
        return next(alike, default)


def _sides(signatures: Sequence[bytes]) -> NDArray[np.uint16]:
    """Return on which sides of the planes signatures are: [n, tables]."""
    keys = np.zeros((len(signatures), _TABLES), np.uint16)
    for start in range(0, len(signatures), _CHUNK):
        sides = _normalised(signatures[start : start + _CHUNK]) @ _PLANES > 0
        keys[start : start + _CHUNK] = np.packbits(sides, axis=1).view(np.uint16)
    return keys


def _normalised(signatures: Sequence[bytes]) -> NDArray[np.float32]:
    """Return grey values [n, 256] with mean 0 and norm 1; rows of zeros for images of one colour."""
    raw = b"".join(signature[_GREY] or bytes(256) for signature in signatures)
    grey = np.frombuffer(raw, np.uint8).reshape(-1, 256).astype(np.float32)
    grey -= grey.mean(1, keepdims=True)
    return np.asarray(grey / np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-6))


def _same_colours(one: bytes, other: bytes) -> bool:
    """Whether cells have about the same mean colours; of a grey and a coloured image, the same brightness."""
    a, b = (np.frombuffer(signature[_CELLS], np.uint8).reshape(-1, 3).astype(np.float64) for signature in (one, other))
    if (np.ptp(a, 1).max() <= _COLOURLESS) != (np.ptp(b, 1).max() <= _COLOURLESS):
        a, b = a @ _LUMA, b @ _LUMA
    return bool(np.abs(a - b).max() <= COLOURS)
