"""The one treatment of every image."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vl2v.data import decoding
from vl2v.data.decoding import FEWER_BITS, NO_ALPHA, NO_END, ImageError, decode, decode_with_remark


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


def bomb(width: int = 30000, height: int = 30000) -> bytes:
    """Return a small PNG that says it is huge."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    pack = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    return b"\x89PNG\r\n\x1a\n" + b"".join(pack(*chunk) for chunk in chunks)


PHOTO = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
BAD = {
    "empty file": b"",
    "not an image": b"these are words",
    "truncated or corrupt": PHOTO[: len(PHOTO) // 2],
    "too large": bomb(),
}


@pytest.mark.parametrize("reason", BAD)
def test_what_cannot_be_decoded_says_why(reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode(BAD[reason])


@pytest.mark.parametrize("kind", ["PPM", "TGA", "PCX", "JPEG2000", "AVIF", "ICO"])
def test_formats_outside_the_list_are_refused(kind: str) -> None:
    with pytest.raises(ImageError, match=r"not an image|another format|a JPEG 2000 image|an AVIF image"):
        decode(encoded(Image.new("RGB", (16, 16)), kind))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P", "1"])
def test_tiffs_of_8_bits_are_read(mode: str, compression: str | None) -> None:
    if compression == "jpeg" and mode not in ("RGB", "L"):
        pytest.skip("not a TIFF that is written")
    image = Image.new("RGB", (40, 24), "white")
    image.paste("black", (0, 0, 16, 24))
    found = np.asarray(decode(encoded(image.convert(mode), "TIFF", compression=compression)), int)
    assert found.shape == (24, 40, 3) and found[:, :12].max() < 40 and found[:, 20:].min() > 215


def tiff_of_16_bits(values: NDArray[np.uint16], order: str) -> bytes:
    """Return an uncompressed TIFF of [h, w, 3]."""
    height, width, channels = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    bits, start = 8, 8 + 2 * channels
    directory = start + len(pixels)
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, start), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(pixels))]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", directory)
    tags = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value))
        for tag, kind, count, value in entries
    )
    depths = struct.pack(f"{order}{channels}H", *[16] * channels)
    return head + depths + pixels + struct.pack(f"{order}H", len(entries)) + tags + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_tiffs_of_16_bits_are_read_by_the_bits_in_use(bits: int, order: str) -> None:
    values = np.linspace(0, 2**bits - 1, 4 * 6 * 3).reshape(4, 6, 3).astype(np.uint16)
    found, remark = decode_with_remark(tiff_of_16_bits(values, order))
    assert (np.asarray(found) == values >> (bits - 8)).all()
    assert bool(remark) == (bits < 16)


def test_grey_tiffs_of_16_bits_are_read_by_the_bits_in_use() -> None:
    values = np.linspace(0, 4095, 48).reshape(6, 8).astype(np.uint16)
    for compression in (None, "tiff_lzw"):
        found, remark = decode_with_remark(encoded(Image.fromarray(values), "TIFF", compression=compression))
        assert (np.asarray(found)[..., 0] == values >> 4).all() and remark.startswith(FEWER_BITS)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_tiffs_without_a_known_white_are_refused(kind: type) -> None:
    values = np.linspace(-1, 1, 48).reshape(6, 8) if kind == np.float32 else np.arange(48).reshape(6, 8) * 10**5
    with pytest.raises(ImageError, match="save it as 8 bits"):
        decode(encoded(Image.fromarray(values.astype(kind)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiffs_orientation_is_applied_once(orientation: int) -> None:
    image = Image.fromarray(np.arange(24 * 3, dtype=np.uint8).reshape(4, 6, 3))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(image, "PNG", exif=exif_of(orientation)))))
    data = encoded(image, "TIFF", tiffinfo={274: orientation})
    assert (np.asarray(decode(data)) == np.asarray(upright)).all()


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return exif.tobytes()


def test_of_several_pages_the_first_is_taken() -> None:
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert decode(data).getpixel((2, 2)) == (255, 0, 0)


def test_the_same_bytes_give_the_same_pixels(tmp_path: Path) -> None:
    assert (np.asarray(decode(PHOTO)) == np.asarray(Image.open(io.BytesIO(PHOTO)))).all()


def marked() -> Image.Image:
    """Return an image without symmetry."""
    return Image.fromarray(np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3) * 2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows_and_is_applied_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(marked(), "PNG", exif=exif)
    found = decode(data)
    theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (np.asarray(found) == np.asarray(theirs)).all()
    assert ImageOps.exif_transpose(found).size == found.size and not found.info


def test_broken_metadata_dont_cost_the_image() -> None:
    data = encoded(marked(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data).size == (5, 7)


def test_a_phones_double_image_is_its_first() -> None:
    data = encoded(Image.new("RGB", (16, 16), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))])
    assert decode(data).getpixel((8, 8))[0] > 200  # type: ignore[index]


@pytest.mark.parametrize(
    ("mode", "kind"), [("1", "PNG"), ("L", "JPEG"), ("L", "BMP"), ("RGB", "BMP"), ("RGBA", "WEBP"), ("P", "GIF")]
)
def test_every_mode_ends_as_rgb(mode: str, kind: str) -> None:
    found = decode(encoded(Image.new("RGB", (9, 9), "white").convert(mode), kind))
    assert found.mode == "RGB" and found.getpixel((4, 4)) == (255, 255, 255)


def test_half_transparent_is_half_white() -> None:
    assert decode(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG")).getpixel((0, 0)) == (127, 127, 127)
    assert decode(encoded(Image.new("RGB", (2, 2), "red"), "PNG", transparency=(255, 0, 0))).getpixel((0, 0)) == (
        255,
        255,
        255,
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_broken_bytes_give_an_image_or_a_reason(kind: str) -> None:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[274] = 3
    options = {"exif": exif.tobytes()} if kind in ("JPEG", "PNG", "WEBP") else {}
    whole = np.frombuffer(encoded(Image.effect_noise((24, 24), 90).convert("RGB"), kind, **options), np.uint8)
    for _ in range(150):
        broken = whole[: rng.integers(1, len(whole) + 1)].copy()
        places = rng.integers(0, min(len(broken), 400), 4)
        broken[places] = rng.integers(0, 256, 4)
        try:
            assert decode(broken.tobytes()).mode == "RGB"
        except ImageError as reason:
            assert "\n" not in str(reason)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_half_a_file_is_never_an_image(kind: str) -> None:
    whole = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), kind)
    with pytest.raises(ImageError):
        decode(whole[: len(whole) // 2])


@pytest.mark.parametrize("size", [(8001, 8001), (12000, 8000), (13300, 13300)])
def test_large_claims_are_refused_before_decoding(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match="too large"):
            decode(bomb(*size))


def test_the_process_keeps_its_warnings() -> None:
    before = list(warnings.filters)
    decode(PHOTO)
    assert list(warnings.filters) == before


def large(mode: str, kind: str, **options: object) -> bytes:
    return encoded(Image.new(mode, (3000, 2000), 1 if mode in ("L", "I;16") else None), kind, **options)


TURNED = Image.Exif()
TURNED[274] = 6
LARGE = {
    "16-bit grey": large("I;16", "PNG"),
    "transparent": large("RGBA", "PNG"),
    "grey and alpha": large("LA", "PNG"),
    "palette": encoded(Image.new("P", (3000, 2000)), "PNG", transparency=0),
    "grey": large("L", "JPEG"),
    "CMYK": large("CMYK", "JPEG"),
    "progressive": large("RGB", "JPEG", progressive=True),
    "turned": large("RGB", "JPEG", exif=TURNED.tobytes()),
    "WebP": large("RGB", "WEBP"),
    "transparent WebP": large("RGBA", "WEBP", lossless=True),
}
PEAK = """
import resource, sys
from vl2v.data.decoding import decode, decoding_bytes
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
data = sys.stdin.buffer.read()
needed, before = decoding_bytes(data), peak()
assert peak() - before < 2**20 * 8
decode(data)
print(needed, peak() - before)
"""


@pytest.mark.parametrize("kind", LARGE)
def test_decoding_needs_no_more_memory_than_its_header_tells(kind: str) -> None:
    found = subprocess.run([sys.executable, "-c", PEAK], input=LARGE[kind], capture_output=True, check=True)
    needed, used = map(int, found.stdout.split())
    assert used < needed + 16 * 2**20, "beside it: a strip, and what libraries need themselves"
    assert decode(LARGE[kind], most_bytes=needed).width in (3000, 2000)
    with pytest.raises(ImageError, match=r"too large \(3000x2000 pixels need \d+ MB while decoding, of \d+ MB\)"):
        decode(LARGE[kind], most_bytes=needed - 1)


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "LA", "P", "L", "1"])
def test_strips_give_the_pixels_that_a_conversion_of_the_whole_gives(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (50, 30, 4), dtype=np.uint8), "RGBA")
    made = Image.fromarray(rng.integers(0, 2**16, (50, 30), dtype=np.uint16)) if mode == "I;16" else image.convert(mode)
    data = encoded(made, "PNG")
    whole = decode(data).tobytes()
    monkeypatch.setattr(decoding, "_STRIP", 7 * 30)
    assert decode(data).tobytes() == whole


def png16(values: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits a channel: grey [h, w], or RGB, or with alpha [h, w, 3 or 4]."""
    height, width, *rest = values.shape
    kind = {(): 0, (3,): 2, (4,): 6}[tuple(rest)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_of_16_bits_the_upper_8_in_use_are_taken(bits: int, channels: tuple[int, ...]) -> None:
    wanted = np.random.default_rng(bits).integers(0, 256, (9, 7, *channels))
    wanted[0, 0] = 255  # each channel, alpha too, uses all of its bits
    if channels == (4,):
        wanted[..., 3] = 255
    low = np.random.default_rng(1).integers(0, 256, wanted.shape) >> (16 - bits)
    values = ((wanted << 8) >> (16 - bits)) | low & ((1 << (bits - 8)) - 1)
    image, remark = decode_with_remark(png16(values.astype(np.uint16)))
    expected = wanted[..., :3] if channels else np.repeat(wanted[..., None], 3, 2)
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert remark == ("" if bits == 16 else f"{FEWER_BITS} ({bits})")


def test_a_black_image_of_16_bits_stays_black() -> None:
    image, remark = decode_with_remark(png16(np.zeros((4, 4), np.uint16)))
    assert not np.asarray(image).any() and not remark


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_alpha_channel_that_hides_everything_is_ignored(form: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 4), dtype=np.uint8)
    for alpha, seen in ((0, pixels[..., :3]), (255, pixels[..., :3])):
        pixels[..., 3] = alpha
        Image.fromarray(pixels).save(buffer := io.BytesIO(), form, lossless=True, exact=True)
        image, remark = decode_with_remark(buffer.getvalue())
        np.testing.assert_array_equal(np.asarray(image), seen)
        assert remark == ("" if alpha else NO_ALPHA)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(buffer := io.BytesIO(), form)
    assert np.asarray(decode(buffer.getvalue())).min() == 255  # nothing is hidden: it is white, as before


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_jpeg_that_lacks_its_end_mark_only_is_whole(how: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer := io.BytesIO(), "JPEG", **how)
    data = buffer.getvalue()
    for cut in (data[:-2], data[:-1]):
        image, remark = decode_with_remark(cut)
        assert image == decode(data) and remark == NO_END
    for lost in (50, 500, len(data) // 2):
        with pytest.raises(ImageError, match="truncated"):
            decode(data[:-lost])


def test_a_pointer_to_a_large_file_is_named() -> None:
    with pytest.raises(ImageError, match="a Git LFS pointer, not the image"):
        decode(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("enough", "size"), [(0, (400, 300)), (100, (200, 150)), (60, (100, 75)), (400, (400, 300))])
def test_a_jpeg_may_be_decoded_smaller(enough: int, size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    smooth = np.add.outer(np.linspace(0, 100, 300), np.linspace(0, 150, 400))[..., None].repeat(3, -1).astype(np.uint8)
    data = encoded(Image.fromarray(smooth), "JPEG", quality=95, exif=exif.tobytes())
    found, whole = decode(data, enough=enough), decode(data)
    assert found.size == (size if orientation == 1 else size[::-1])
    shrunk = np.asarray(whole.resize(found.size, Image.Resampling.BOX), np.int64)
    assert np.abs(np.asarray(found, np.int64) - shrunk).mean() < 1
    assert decode(encoded(whole, "PNG"), enough=enough).size == whole.size
    assert decode(data[:-2], enough=enough).size == found.size  # without its end mark
