"""From a picture file's bytes to pixels: one treatment, everywhere."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vl2v.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 64_000_000  # below Pillow's own limit, so that its warning is an error here

_STRIP = 2**20  # pixels that are converted at once
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # a pixel in memory; 4 in all other modes

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(DataError):
    """A picture that can't be decoded; the text is the reason."""


def decode(data: bytes, *, most_bytes: int | None = None) -> Image.Image:
    """Return the picture as 8-bit RGB, without metadata.

    EXIF orientation is applied; CMYK is converted; of 16 bits the upper 8 are taken; palettes are resolved;
    transparency is laid on white; of an animation the first frame is taken.

    Args:
        data: the file.
        most_bytes: of memory that decoding may need, by `decoding_bytes`; None: any.

    Raises:
        PictureError: empty, not one of JPEG, PNG, WEBP, BMP and GIF, truncated, corrupt, over 64 megapixels, or over
            `most_bytes`.
    """
    if not data:
        raise PictureError("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(f"too large ({image.width}x{image.height} pixels)")
            needed = _needed(image)
            if most_bytes is not None and needed > most_bytes:
                size = f"{image.width}x{image.height} pixels need {needed // 10**6} MB"
                raise PictureError(f"too large ({size} while decoding, of {most_bytes // 10**6} MB)")
            image.load()
            method = _turn(image)
            picture = _rgb(image)
        del image  # its pixels are not needed beside those of the turned one
        if method is not None:
            picture = picture.transpose(method)
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError("not a picture (JPEG, PNG, WEBP, BMP or GIF)") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError("too large (a decompression bomb?)") from None
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them stumble over
        raise PictureError(f"truncated or corrupt ({' '.join(str(error).split())})") from None
    picture.info = {}  # an orientation left in it would be applied twice
    return picture


def picture_size(data: bytes) -> tuple[int, int]:
    """Return width and height, as the file's header has them.

    Raises:
        PictureError: not a picture.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Exception:  # Pillow's readers raise whatever a broken file makes them stumble over
        raise PictureError("not a picture (JPEG, PNG, WEBP, BMP or GIF)") from None


def decoding_bytes(data: bytes) -> int:
    """Return about how many bytes of memory decoding takes at its height, by the file's header.

    Raises:
        PictureError: not an image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _needed(image)
    except Exception:  # Pillow's readers raise whatever a broken file makes them stumble over
        raise PictureError("not a picture (JPEG, PNG, WEBP, BMP or GIF)") from None


def _needed(image: Image.Image) -> int:
    own = _BYTES.get(image.mode, 4)
    each = own if _is_plain(image) else own + 4
    if (image.format != "PNG" or "exif" in image.info) and _turn(image) is not None:  # else it would be decoded
        each = max(each, 8)  # upright beside as it was
    if "progressive" in image.info:
        each += 2 * len(image.getbands())  # all coefficients
    if image.format == "WEBP":
        each += 16  # two canvases, the first frame's own pixels, and its bytes
    return image.width * image.height * each


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what makes an image upright; None: it is."""
    orientation = None
    with suppress(Exception):  # broken metadata say nothing about the pixels
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _is_plain(image: Image.Image) -> bool:
    return image.mode == "RGB" and "transparency" not in image.info


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB, converted strip by strip: what a conversion needs on the way is bounded."""
    if _is_plain(image):
        return image
    whole, rows = Image.new("RGB", image.size), max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        whole.paste(_strip_as_rgb(strip), (0, top))
    return whole


def _strip_as_rgb(strip: Image.Image) -> Image.Image:
    if strip.mode.startswith("I"):
        return Image.fromarray((np.asarray(strip) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if strip.has_transparency_data:
        layer = strip.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return strip.convert("RGB")
