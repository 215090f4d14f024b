"""What a request is made of, and what a response claims beside the vectors: tokens and prices, and the model's name.

Reserved is the most that the table and this session's responses make possible. A figure above that is believed where
it can be true: of the first response of a kind, which is sent alone, and of items somewhat larger than estimated.
Gateways have several names for one model, and a vendor may change the model under its name.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import math
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from PIL import ExifTags, Image

from vl2v.data.decoding import decode, open_image
from vl2v.errors import DataError, TeacherError
from vl2v.teachers.paid.limits import Limits, Price
from vl2v.teachers.paid.line import STALE, Rejected, TryAgain
from vl2v.teachers.paid.teacher import CANARY_IMAGE, CANARY_TEXT, MICRO, SAME, Kind, Query
from vl2v.teachers.protocol import EncodedImage, Vectors

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


FIRST = 1000  # times what was reserved that the first response of a kind may cost
LATER = 10  # and another one
AN_ITEM = MICRO // 10  # and what an item may cost of which no price is known
HUGE = 10**12  # what is more is taken for this
MOST = 8  # names that a model may have
Canary = Callable[[Kind, Item], Awaitable[None]]
KINDS: tuple[Kind, ...] = ("text", "image")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counted:
    """What counts of a response's price.

    Attributes:
        tokens: None: as reserved.
        micro: None: as reserved.
        doubt: what is odd about the vendor's figures; "" where nothing is.
        said: the price by the vendor's figures, where it can't be true; the session has to end then.
    """

    tokens: int | None = None
    micro: int | None = None
    doubt: str = ""
    said: int | None = None


@dataclass
class Usage:
    """The most that an item of each kind has cost so far."""

    _tokens: dict[Kind, float] = field(default_factory=dict)
    _micro: dict[Kind, int] = field(default_factory=dict)

    def at_most(self, kind: Kind, tokens: Sequence[int], price: Price) -> tuple[int, int]:
        """Return the tokens and the price, in millionths, that items of so many tokens each may take."""
        count = len(tokens)
        most = max(sum(tokens), math.ceil(self._tokens.get(kind, 0) * count))
        return most, max(price.micro(kind, count, most), self._micro.get(kind, 0) * count)

    def count(
        self, query: Query, tokens: Sequence[Any], micro: Any, price: Price, *, first: bool, sized: bool = True
    ) -> Counted:
        """Return what counts of a response, and learn from it.

        Args:
            tokens: the vendor's counts, to be summed up; none if it gives none.
            micro: what it says that it cost; None if it doesn't.
            first: whether it is the first response of its kind in this session.
            sized: whether the table knows how many tokens an item has.
        """
        counts = [whole(each) for each in tokens]
        odd = [each for each, number in zip([*tokens, micro], [*counts, whole(micro)], strict=True) if number is None]
        odd = [each for each in odd if each is not None]
        sums = None if None in counts or not counts else sum(each for each in counts if each is not None)
        by_token = price.micro(query.kind, 0, MICRO) > 0
        if sums is not None and sums < query.count and by_token:
            odd, sums = [*odd, sums], None
        doubt = f"says {str(odd[0])[:40]!r} of its usage" if odd else ""
        said = whole(micro)
        if micro is None and sums is not None:
            said = min(price.micro(query.kind, query.count, sums), HUGE)
        if said is None:
            return Counted(sums, None, doubt)
        if said > query.micro:
            limit = (FIRST if first or (by_token and not sized) else LATER) * query.micro
            if said > limit and not (first and not query.micro and said <= AN_ITEM * query.count):
                return Counted(None, None, doubt or "says more than it can have cost", said)
            doubt = doubt or ("costs more than the table says" if query.micro else "")
        if sums is not None:
            self._tokens[query.kind] = max(self._tokens.get(query.kind, 0), sums / query.count)
        if micro is not None:
            self._micro[query.kind] = max(self._micro.get(query.kind, 0), -(-said // query.count))
        return Counted(sums, said, doubt)


def whole(number: Any) -> int | None:
    """Return a vendor's figure if it is a whole number, not negative; at most `HUGE`."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
        return None
    return min(int(number), HUGE) if number == int(number) else None


class Names:
    """The names of one model, each but the first proved by the canaries' embeddings under it."""

    def __init__(self, teacher: str, limits: Limits) -> None:
        self._teacher = teacher
        self._proved: list[str] = []
        self._proving = asyncio.Lock()
        self._canaries: dict[tuple[Kind, str], Vectors] = {}  # by the response's model name
        self._canary = cache(lambda kind: item_of(limits, 0, _CANARIES[kind]))

    def observe(self, kind: Kind, batch: Sequence[Item], said: str, vectors: Vectors) -> None:
        """Remember an embedding, if it is a canary's."""
        if len(batch) == 1 and batch[0].thing == self._canary(kind).thing:
            self._canaries[kind, said] = vectors[0]

    async def prove(self, said: str, query: Canary) -> None:
        """Find out whether a name is of the same model as those proved.

        Args:
            said: the name; "" where a response has none.
            query: queries a canary; `observe` gets the embedding.

        Raises:
            TeacherError: under this name a canary is embedded differently, or not at all.
        """
        if said in self._proved or not said:
            return
        async with self._proving:
            if said in self._proved:
                return
            if self._proved:
                changed = f"{self._teacher}: the model changed from {self._proved[0]!r} to {said!r} during the session"
                if len(self._proved) == MOST:
                    raise TeacherError(f"{changed}: too many names for one model")
                for kind in KINDS:
                    await self._compare(kind, said, changed, query)
                if len(self._proved) == 1:
                    words = "%s: names its model %r and %r; it is one model: a known text and image are embedded alike"
                    _log.warning(words, self._teacher, self._proved[0], said)
            self._proved.append(said)

    async def _compare(self, kind: Kind, said: str, changed: str, query: Canary) -> None:
        """Query until a canary was embedded under the new name and under a proved one."""
        for _ in range(2 * MOST):
            before = [vector for (of, name), vector in self._canaries.items() if of == kind and name in self._proved]
            new = self._canaries.get((kind, said))
            if before and new is not None:
                cosine = float(before[0] @ new)
                if cosine < SAME:
                    raise TeacherError(f"{changed}: it embeds a known {kind} differently (cosine {cosine:.3f})")
                return
            try:
                await query(kind, self._canary(kind))
            except (TryAgain, Rejected) as error:
                raise TeacherError(f"{changed}: and a known {kind} isn't embedded ({error})") from None
        raise TeacherError(f"{changed}: and nothing shows whether it is the same one")


_CANARIES: dict[Kind, EncodedImage | str] = {"text": CANARY_TEXT, "image": EncodedImage("canary", CANARY_IMAGE)}
