"""What a request is made of, how many items fit into one, and how an attempt at it may come to nothing."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vl2v.errors import DataError
from vl2v.teachers.paid.images import SentImage, prepare
from vl2v.teachers.paid.limits import Limits
from vl2v.teachers.paid.teacher import Kind
from vl2v.teachers.protocol import EncodedImage

HEAD = 512  # bytes of a request beside its items, and of each item beside its text or image, at most
FRAME = 128
STALE = 4  # signs that a vendor has tied something useless to an Idempotency-Key


class TryAgain(Exception):
    """An attempt that came to nothing.

    Args:
        reason: in words.
        after: seconds for which the vendor wants no request.
        counted: whether it stays on the bill.
        stale: how much it speaks for another Idempotency-Key, of `STALE`.
    """

    def __init__(self, reason: str, after: float | None = None, *, counted: bool = False, stale: int = 0) -> None:
        super().__init__(reason)
        self.after = after
        self.counted = counted
        self.stale = stale


class Rejected(Exception):
    """A request that the vendor won't take as it is: one of its items may be at fault."""


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
        batch: its items.
        body: of the request.
        digest: of the body, by which a later run recognises it.
        key: a vendor that honours it bills the attempts at one request once.
        counted: whether an attempt with this key is on the bill already.
        stale: see `TryAgain`.
        known: whether the model's name in the response needs no proof.
    """

    kind: Kind
    batch: list[Item] = field(repr=False)
    body: bytes = field(repr=False)
    digest: str
    key: str
    counted: bool
    stale: int = 0
    known: bool = False

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
