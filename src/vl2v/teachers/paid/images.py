"""What a vendor is sent of an image: its file's own bytes where they will do, else a copy that fits."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import ExifTags, Image

from vl2v.data.decoding import decode, open_image

VERSION = 1  # part of the fingerprint: changes when an image would be sent otherwise than before
QUALITY = 95
_PLAIN = {"JPEG": ("RGB", "L"), "PNG": ("RGB", "L"), "WEBP": ("RGB",), "GIF": ()}


@dataclass(frozen=True)
class SentImage:
    """An image as it is sent."""

    data: bytes
    mime: str
    width: int
    height: int

    @property
    def base64(self) -> str:
        """The bytes in base64."""
        return base64.b64encode(self.data).decode()

    @property
    def uri(self) -> str:
        """The bytes as a data URI."""
        return f"data:{self.mime};base64,{self.base64}"


def prepare(
    data: bytes, formats: tuple[str, ...], max_bytes: int, max_pixels: int, sides: tuple[int, int] | None = None
) -> SentImage:
    """Return an image as a vendor takes it.

    The file's own bytes, if they are of a format that it takes, not too large, and they can be read in one way only:
    8-bit grey or RGB, upright, not animated, without transparency. Else the image as `decode` sees it: PNG, or
    JPEG where that is too large, scaled to the limits.

    Args:
        data: an image file.
        formats: Pillow's names of what the vendor takes.
        max_bytes: of an image.
        max_pixels: width x height.
        sides: the shortest and the longest side that it takes, in pixels.

    Raises:
        ImageError: not an image, or corrupt.
    """
    least, most = sides or (1, max_pixels)
    with open_image(data) as opened:
        width, height = opened.size
        fits = len(data) <= max_bytes and width * height <= max_pixels
        fits = fits and least <= min(width, height) and max(width, height) <= most
        if fits and opened.format in formats and _plain(opened):
            return SentImage(data, f"image/{opened.format.lower()}", width, height)
    image = decode(data)
    while True:
        scale = min(1, (max_pixels / (image.width * image.height)) ** 0.5, most / max(image.size))
        scale = max(scale, least / min(image.size))
        if scale != 1:
            width, height = (min(most, max(least, int(side * scale))) for side in image.size)
            image = image.resize((width, height))
        for name, options in (("PNG", {"compress_level": 1}), ("JPEG", {"quality": QUALITY})):
            buffer = io.BytesIO()
            image.save(buffer, name, **options)
            if name in formats and buffer.tell() <= max_bytes:
                return SentImage(buffer.getvalue(), f"image/{name.lower()}", image.width, image.height)
        max_pixels = image.width * image.height // 2


def _plain(image: Image.Image) -> bool:
    return (
        image.mode in _PLAIN.get(image.format or "", ())
        and "transparency" not in image.info
        and getattr(image, "n_frames", 1) == 1
        and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    )
