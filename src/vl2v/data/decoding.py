"""From an image file's bytes to pixels: one treatment, everywhere."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from vl2v.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 64_000_000  # below Pillow's own limit, so that its warning is an error here

NO_END = "a JPEG without its end mark"
NO_ALPHA = "an alpha channel of zeros only, ignored"
FEWER_BITS = "16 bits a channel, fewer of them in use"
REPAIRED = (NO_ALPHA, FEWER_BITS)
"""How the remarks begin on files whose pixels were others in earlier versions (all white, all black)."""

_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
CONVERT = "a file in another format"
NOT_WHOLE = "not an image:"
_STARTS = rb"(\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8|RIFF.{4}WEBP|BM)"
_OTHERS = (
    (re.compile(rb".{4}ftyp.{0,32}avi[fs]", re.DOTALL), "an AVIF image"),
    (re.compile(rb".{4}ftyp(hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL), "a HEIC photo"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "a JPEG XL image"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "a JPEG 2000 image"),
    (re.compile(rb"%PDF-"), "a PDF"),
    (
        re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|svg|head|!--)", re.IGNORECASE),
        "a web page or SVG, not an image",
    ),
    *(
        (re.compile(start, re.DOTALL), f"{CONVERT} ({what})")
        for start, what in (
            (rb"8BPS", "Photoshop"),
            (rb"\0\0\x01\0[\x01-\x20]\0", "an icon"),
            (rb"P[1-7][\s#]", "PPM"),
            (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
            (rb"DDS ", "DDS"),
            (rb"v/1\x01", "OpenEXR"),
            (rb".{128}DICM", "DICOM"),
            (rb"\x93NUMPY", "NumPy"),
            (rb"\x89HDF|CDF[\x01\x02\x05]", "HDF5 or NetCDF"),
            (rb"II\*\0.{4}CR|.{4}ftypcrx|FUJIFILMCCD-RAW|IIU\0|IIRO", "a camera's raw file"),
            (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI |\0\0\x01\xba|FLV\x01", "a video"),
        )
    ),
    *(
        (re.compile(start, re.DOTALL | re.IGNORECASE), f"{NOT_WHOLE} {what}")
        for start, what in (
            (rb"PK\x03\x04|PK\x05\x06|\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "an archive; unpack it"),
            (rb"\0\x05\x16[\0\x07]", "a Mac's resource fork; delete it"),
            (rb"\x89PNG(\n\x1a\n|\r\r\n)", "a PNG that was copied as text; copy it again as binary"),
            (rb"data:image|[A-Za-z0-9+/\r\n]{64,}=*\s*\Z", "Base64 text; decode it"),
            (rb"(\xef\xbb\xbf|\s){1,64}" + _STARTS, "a text mark or blanks before its first byte; remove them"),
            (rb"(\xef\xbb\xbf)?\s*[{\[]", "JSON, perhaps a server's error; download it again"),
            (rb"\0+\Z", "zeros only, as of a copy that broke off; copy it again"),
            (rb"[\t\n\r -~]+\Z", "a text, perhaps a server's error; download it again"),
        )
    ),
)  # fmt: skip
"""How files begin that people take for images: what they are."""
_LFS = b"version https://git-lfs.github.com/spec/"
_DEEP = re.compile("RGBA?;16[BLN]")
_SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_DEPTHS = (8, 10, 12, 14, 16)
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


class ImageError(DataError):
    """An image that can't be decoded; the text is the reason."""


def decode(data: bytes, *, most_bytes: int | None = None, enough: int = 0) -> Image.Image:
    """Return the image as 8-bit RGB, without metadata; see `decode_with_remark`.

    Args:
        most_bytes: of memory that decoding may need, by `decoding_bytes`; None: any.
        enough: pixels a side; a JPEG that still has as many at half, a quarter or an eighth of its size is decoded at
            the smallest such, several times quicker. 0: whole.

    Raises:
        ImageError: empty, not one of JPEG, PNG, WEBP, BMP, GIF and TIFF, truncated, corrupt, over 64 megapixels, of 32
            bits a channel, or over `most_bytes`.
    """
    return decode_with_remark(data, most_bytes=most_bytes, enough=enough)[0]


def decode_with_remark(data: bytes, *, most_bytes: int | None = None, enough: int = 0) -> tuple[Image.Image, str]:
    """Return the image as 8-bit RGB, without metadata, and what is odd about its file ("" if nothing is).

    EXIF orientation is applied; CMYK is converted; of 16 bits the upper 8 of those in use are taken; palettes are
    resolved; transparency is laid on white, but an alpha channel of zeros only is ignored; of an animation the first
    frame is taken, of a TIFF the first page; a JPEG that lacks nothing but its end mark is taken as whole.

    Raises:
        ImageError: as `decode` does.
    """
    if not data:
        raise ImageError("empty file")
    if data.startswith(_LFS):
        raise ImageError("a Git LFS pointer, not the image")
    try:
        return _decoded(data, most_bytes, enough)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(_what_else(data)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError("too large (a decompression bomb?)") from None
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them stumble over
        whole = _without_end_mark(data, most_bytes, enough) if data.startswith(_JPEG) else None
        if whole is None:
            raise ImageError(f"truncated or corrupt ({' '.join(str(error).split())})") from None
        return whole, NO_END


def _what_else(data: bytes) -> str:
    """Return what a file is that holds none of the formats."""
    kind = next((kind for start, kind in _OTHERS if start.match(data)), "")
    return kind or "not an image (JPEG, PNG, WEBP, BMP, GIF or TIFF)"


def open_image(data: bytes) -> Image.Image:
    """Return an image file opened by Pillow, not decoded yet; a PNG with large texts or profiles without these.

    Raises:
        UnidentifiedImageError: not one of `FORMATS`.
        Exception: whatever Pillow's readers raise over a broken file.
    """
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except ValueError:  # "Decompressed data too large": of the metadata; the pixels are bounded by themselves
        return Image.open(io.BytesIO(_without_texts(data)), formats=FORMATS)


def _without_texts(data: bytes) -> bytes:
    """Return a PNG without its texts and its colour profile; what isn't a PNG as it is."""
    if not data.startswith(_PNG):
        return data
    parts, start = [_PNG], len(_PNG)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] not in _TEXTS:
            parts.append(data[start:end])
        start = end
    return b"".join(parts)


def _decoded(data: bytes, most_bytes: int | None, enough: int) -> tuple[Image.Image, str]:
    try:
        return _loaded(data, most_bytes, enough)
    except ValueError:  # by texts behind the pixels, see `open_image`
        bare = _without_texts(data)
        if len(bare) == len(data):
            raise
        return _loaded(bare, most_bytes, enough)


def _loaded(data: bytes, most_bytes: int | None, enough: int) -> tuple[Image.Image, str]:
    with open_image(data) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ImageError(f"too large ({opened.width}x{opened.height} pixels)")
        needed = _needed(opened)
        if most_bytes is not None and needed > most_bytes:
            size = f"{opened.width}x{opened.height} pixels need {needed // 10**6} MB"
            raise ImageError(f"too large ({size} while decoding, of {most_bytes // 10**6} MB)")
        if enough:
            opened.draft(None, (enough, enough))
        deep = _is_deep(opened)
        opened.load()
        method = _turn(opened)
        image, remark = _rgb(opened, _lower_bytes(opened, data) if deep else None)
    del opened  # its pixels are not needed beside those of the turned one
    if method is not None:
        image = image.transpose(method)
    image.info = {}  # an orientation left in it would be applied twice
    return image, remark


def _without_end_mark(data: bytes, most_bytes: int | None, enough: int) -> Image.Image | None:
    """Return a JPEG that lacks nothing but its end mark; None if it lacks more.

    Where pixels are missing, they are decoded from whatever follows: two different tails give two different images.
    """
    body = data.rstrip(b"\0")
    if body.endswith(b"\xff"):  # half of the mark, or a byte of pixels that is written as FF 00
        body = body[:-1] if len(body) == len(data) else body + b"\0"
    found = []
    for fill in (b"\x55" * 256, b"\xaa" * 256):
        tail = fill + b"".join(bytes((0xFF, 0xD0 + number)) + fill for number in range(8))  # restart marks
        try:
            found.append(_decoded(body + tail + b"\xff\xd9", most_bytes, enough)[0])
        except Exception:  # as in `decode`
            return None
    first, second = found
    return first if first.tobytes() == second.tobytes() else None


def image_size(data: bytes) -> tuple[int, int]:
    """Return width and height, as the file's header has them.

    Raises:
        ImageError: not an image.
    """
    try:
        with open_image(data) as image:
            return image.size
    except Exception:  # Pillow's readers raise whatever a broken file makes them stumble over
        raise ImageError("not an image (JPEG, PNG, WEBP, BMP, GIF or TIFF)") from None


def decoding_bytes(data: bytes) -> int:
    """Return about how many bytes of memory decoding takes at its height, by the file's header.

    Raises:
        ImageError: not an image.
    """
    try:
        with open_image(data) as image:
            return _needed(image)
    except Exception:  # Pillow's readers raise whatever a broken file makes them stumble over
        raise ImageError("not an image (JPEG, PNG, WEBP, BMP, GIF or TIFF)") from None


def _needed(image: Image.Image) -> int:
    own = _BYTES.get(image.mode, 4)
    each = own if _is_plain(image) else own + 4
    if _is_deep(image):
        each = 12  # its upper and its lower bytes, and what they become
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


def _is_deep(image: Image.Image) -> bool:
    """Whether a colour image that isn't loaded yet has 16 bits a channel, of which Pillow drops the lower 8."""
    return any(_DEEP.fullmatch(_raw_mode(tile.args)) for tile in getattr(image, "tile", ()))


def _raw_mode(args: Any) -> str:
    """Return how a tile's bytes lie, from what its decoder is given."""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _swapped(args: Any) -> Any:
    mode = _raw_mode(args)
    mode = mode[:-1] + _SWAPPED[mode[-1]]
    return (mode, *args[1:]) if isinstance(args, tuple) else mode


def _lower_bytes(image: Image.Image, data: bytes) -> Image.Image | None:
    """Return the lower 8 bits of a colour image of 16, if it uses fewer than 15 of them; else None.

    Read with their bytes swapped, Pillow drops the upper ones.
    """
    if max(high for _, high in _extrema(image)[:3]) >= 64:
        return None
    with Image.open(io.BytesIO(data), formats=("PNG", "TIFF")) as swapped:
        swapped.tile = [tile._replace(args=_swapped(tile.args)) for tile in swapped.tile]
        swapped.load()
        return swapped


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    return [cast("tuple[int, int]", band.getextrema()) for band in image.split()]


def _rgb(image: Image.Image, lower: Image.Image | None) -> tuple[Image.Image, str]:
    """Return an image as RGB, converted strip by strip: what a conversion needs on the way is bounded.

    Args:
        lower: the lower 8 bits of its 16, if they count.
    """
    if _is_plain(image) and lower is None:
        return image, ""
    if image.mode in ("I", "F"):
        least, most = cast("tuple[float, float]", image.getextrema())
        if image.mode == "F" or least < 0 or most > 65535:
            raise ImageError("not 8 or 16 bits a channel, but 32 or a sign; save it as 8 bits")
    depths = [16]
    if lower is not None or image.mode.startswith("I"):
        highest = np.max([_values(*strips).max((0, 1)) for strips in _strips(image, lower)], 0)
        depths = [_depth(int(highest[:3].max())), *map(_depth, highest[3:].tolist())]  # alpha has bits of its own
    hides = lower is None and _hides_everything(image)
    whole, top = Image.new("RGB", image.size), 0
    for strip, low in _strips(image, lower):
        whole.paste(_strip_as_rgb(strip, low, depths, hides), (0, top))
        top += strip.height
    return whole, f"{FEWER_BITS} ({depths[0]})" if depths[0] < 16 else NO_ALPHA if hides else ""


def _strips(image: Image.Image, lower: Image.Image | None) -> Iterator[tuple[Image.Image, Image.Image | None]]:
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield image.crop(box), None if lower is None else lower.crop(box)


def _hides_everything(image: Image.Image) -> bool:
    """Whether an image has an alpha channel of zeros only before something to be seen: programs leave it unused."""
    if image.mode not in ("RGBA", "LA"):
        return False
    *colours, alpha = _extrema(image)
    return alpha == (0, 0) and any(low != high for low, high in colours)


def _values(strip: Image.Image, low: Image.Image | None) -> NDArray[np.int64]:
    values = np.asarray(strip).astype(np.int64)
    return values[..., None] if low is None else values << 8 | np.asarray(low)


def _strip_as_rgb(strip: Image.Image, low: Image.Image | None, depths: list[int], hides: bool) -> Image.Image:
    if low is not None or strip.mode.startswith("I"):
        values = _values(strip, low)
        shifts = np.array([depths[0]] * min(values.shape[2], 3) + depths[1:]) - 8
        strip = Image.fromarray(
            (values >> shifts).clip(0, 255).astype(np.uint8).reshape(values.shape if low else values.shape[:2])
        )
    if hides:
        return strip.convert("RGBA").convert("RGB")
    if strip.has_transparency_data:
        layer = strip.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return strip.convert("RGB")


def _depth(most: int) -> int:
    """Return the fewest bits, of those that cameras and scanners give, that hold a value; 16 if it is 0."""
    return next((bits for bits in _DEPTHS if most < 1 << bits), 16) if most > 0 else 16
