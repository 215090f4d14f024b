"""The one treatment of every picture."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vl2v.data import PictureError, decode


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (20, 10), "white")
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    assert decode(encoded(image, "JPEG", exif=exif.tobytes())).size == (10, 20)


def test_cmyk_is_converted() -> None:
    found = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert found.mode == "RGB"
    red, green, blue = found.getpixel((4, 4))  # type: ignore[misc]
    assert red > 200 and green < 60 and blue < 60


def test_of_16_bits_the_upper_8_are_taken() -> None:
    values = np.array([[0, 256, 32768, 65535]], np.uint16)
    assert np.asarray(decode(encoded(Image.fromarray(values), "PNG")))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    data = encoded(clear.convert(mode) if mode != "P" else clear.quantize(4), "PNG")
    assert decode(data).getpixel((1, 1)) == (255, 255, 255)


def test_a_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert decode(encoded(image, "PNG", transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(image, "PNG")).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, _, blue = decode(data).getpixel((8, 8))  # type: ignore[misc]
    assert red > 200 and blue < 60


def bomb() -> bytes:
    """Return a PNG that says it is 30000 x 30000."""
    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    pack = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    return b"\x89PNG\r\n\x1a\n" + b"".join(pack(*chunk) for chunk in chunks)


PHOTO = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
BAD = {
    "empty file": b"",
    "not a picture": b"these are words",
    "truncated or corrupt": PHOTO[: len(PHOTO) // 2],
    "too large": bomb(),
}


@pytest.mark.parametrize("reason", BAD)
def test_what_cannot_be_decoded_says_why(reason: str) -> None:
    with pytest.raises(PictureError, match=reason):
        decode(BAD[reason])


def test_formats_outside_the_list_are_refused() -> None:
    with pytest.raises(PictureError, match="not a picture"):
        decode(encoded(Image.new("RGB", (4, 4)), "TIFF"))


def test_the_same_bytes_give_the_same_pixels(tmp_path: Path) -> None:
    assert (np.asarray(decode(PHOTO)) == np.asarray(Image.open(io.BytesIO(PHOTO)))).all()
