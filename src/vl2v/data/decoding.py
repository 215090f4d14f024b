"""From a picture file's bytes to pixels: one treatment, everywhere."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vl2v.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 64_000_000


class PictureError(DataError):
    """A picture that can't be decoded; the text is the reason."""


def decode(data: bytes) -> Image.Image:
    """Return the picture as 8-bit RGB.

    EXIF orientation is applied; CMYK is converted; of 16 bits the upper 8 are taken; palettes are resolved;
    transparency is laid on white; of an animation the first frame is taken.

    Raises:
        PictureError: empty, not one of JPEG, PNG, WEBP, BMP and GIF, truncated, corrupt, or over 64 megapixels.
    """
    if not data:
        raise PictureError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # of odd metadata
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise PictureError(f"too large ({image.width}x{image.height} pixels)")
                image.load()
                return _rgb(ImageOps.exif_transpose(image))
        except UnidentifiedImageError:
            raise PictureError("not a picture (JPEG, PNG, WEBP, BMP or GIF)") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise PictureError("too large (a decompression bomb?)") from None
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError) as error:
            raise PictureError(f"truncated or corrupt ({error})") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
