"""What a request is made of: images as a vendor takes them, items, and how many of them fit into one."""

from __future__ import annotations

import base64
import io
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from PIL import ExifTags, Image

from vl2v.data.decoding import decode, open_image
from vl2v.errors import DataError
from vl2v.teachers.paid.failures import STALE, TryAgain
from vl2v.teachers.paid.limits import Limits
from vl2v.teachers.paid.teacher import Kind
from vl2v.teachers.protocol import EncodedImage

HEAD = 512  # bytes of a request beside its items, and of each item beside its text or image, at most
FRAME = 128
IMAGE_VERSION = 1  # part of the fingerprint: changes when an image would be sent otherwise than before
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


@dataclass(frozen=True)
class Item:
    """A text or an image as it is sent: its position in the round, and the tokens that it has at most."""

    position: int
    thing: SentImage | str
    tokens: int

    @property
    def bytes(self) -> int:
        """Of a request, at most."""
        size = len(json.dumps(self.thing)) if isinstance(self.thing, str) else 4 * (len(self.thing.data) // 3 + 1)
        return size + FRAME


@dataclass
class Sent:
    """A request, over all its attempts.

    Attributes:
        kind: of its items.
        digest: of the body, by which a later run recognises it.
        key: a vendor that honours it bills the attempts at one request once.
        counted: whether an attempt with this key is on the bill already.
        stale: see `TryAgain`.
        canary: whether it proves a model's name, so that the name in its response needs no proof.
    """

    kind: Kind
    batch: list[Item] = field(repr=False)
    body: bytes = field(repr=False)
    digest: str
    key: str
    counted: bool
    stale: int = 0
    canary: bool = False

    def failed(self, attempt: TryAgain) -> None:
        """Note it; a response that is useless again and again may be what the vendor has cached for the key."""
        self.counted |= attempt.counted
        self.stale += attempt.stale
        if self.stale >= STALE:
            self.key, self.counted, self.stale = str(uuid.uuid4()), False, 0


def batched(limits: Limits, kind: Kind, items: Iterable[EncodedImage | str]) -> Iterator[list[Item]]:
    """Yield requests within the vendor's limits of items, bytes and tokens."""
    batch: list[Item] = []
    size, tokens = HEAD, 0
    for position, thing in enumerate(items):
        item = item_of(limits, position, thing)
        size, tokens = size + item.bytes, tokens + item.tokens
        if len(batch) == limits.items(kind) or size > limits.request_bytes or tokens > limits.most_tokens:
            if batch:
                yield batch
            batch, size, tokens = [], HEAD + item.bytes, item.tokens
        batch.append(item)
    if batch:
        yield batch


def item_of(limits: Limits, position: int, thing: EncodedImage | str) -> Item:
    """Return a text or an image as it is sent.

    Raises:
        DataError: an image that can't be read.
    """
    if isinstance(thing, str):
        return Item(position, thing, limits.tokens("text", (len(thing.encode()), 1)))
    try:
        image = prepare(thing.data, limits.formats, limits.image_bytes, limits.image_pixels, limits.image_sides)
    except DataError as error:
        raise DataError(f"{thing.name}: {error}") from None
    return Item(position, image, limits.tokens("image", (image.width, image.height)))


def prepare(
    data: bytes, formats: tuple[str, ...], max_bytes: int, max_pixels: int, sides: tuple[int, int] | None = None
) -> SentImage:
    """Return an image as a vendor takes it.

    The file's own bytes, if they are of a format that it takes, not too large, and they can be read in one way only:
    8-bit grey or RGB, upright, not animated, without transparency. Else the image as `decode` sees it: PNG, or
    JPEG where that is too large, scaled to the limits.

    Args:
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
