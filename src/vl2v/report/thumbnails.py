"""Small images that travel inside a page, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 88  # of a thumbnail, in pixels; they are shown at about that size


def data_uri(image: Image.Image, quality: int = 70) -> str:
    """Return an image as a WebP data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnail(image: Image.Image, side: int = SIDE) -> str:
    """Return an image, fitted into a square of `side` pixels, as a data URI."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_uri(small)


def sprite(pixels: Sequence[NDArray[np.uint8]], side: int, columns: int) -> str:
    """Return images [s, s, 3] as one sheet of squares, row by row, as a data URI."""
    rows = -(-len(pixels) // columns)
    sheet = Image.new("RGB", (columns * side, max(rows, 1) * side))
    for place, image in enumerate(pixels):
        small = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (place % columns * side, place // columns * side))
    return data_uri(sheet, quality=60)
