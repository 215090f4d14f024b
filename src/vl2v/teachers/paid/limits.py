"""A vendor's prices and limits, from a dated table that the person can override; and its rate limits, respected."""

from __future__ import annotations

import asyncio
import difflib
import math
import os
import re
import time
import tomllib
from collections import deque
from collections.abc import Awaitable, Callable
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vl2v.config import expected
from vl2v.errors import TeacherError, did_you_mean
from vl2v.privacy import HIDDEN, canonical_url
from vl2v.teachers.paid.teacher import MICRO, Kind
from vl2v.tree import merge, read_toml

MILLION = 1_000_000
MINUTE = 60.0


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Price(_Table):
    """Prices in units of the currency: of a million tokens, or of one item."""

    text_tokens: float = Field(default=0, ge=0, allow_inf_nan=False)
    image_tokens: float = Field(default=0, ge=0, allow_inf_nan=False)
    text: float = Field(default=0, ge=0, allow_inf_nan=False)
    image: float = Field(default=0, ge=0, allow_inf_nan=False)

    def micro(self, kind: Kind, count: int, tokens: int) -> int:
        """Return what so many items of so many tokens cost, in millionths, rounded up."""
        an_item, a_million = (self.image, self.image_tokens) if kind == "image" else (self.text, self.text_tokens)
        exact = count * an_item * MICRO + tokens * a_million * MICRO / MILLION
        return math.ceil(round(exact, 6))


class Limits(_Table):
    """Everything that a vendor demands and limits; see vendors.toml."""

    url: str = ""
    currency: str = "USD"
    formats: tuple[str, ...]
    images_a_request: int = Field(ge=1)
    texts_a_request: int = Field(ge=1)
    image_bytes: int = Field(ge=1000)
    request_bytes: int = Field(ge=1000)
    image_pixels: int = Field(ge=1)
    tokens_a_request: int | None = Field(default=None, ge=1)
    requests_a_minute: int | None = Field(default=None, ge=1)
    items_a_minute: int | None = Field(default=None, ge=1)
    tokens_a_minute: int | None = Field(default=None, ge=1)
    in_flight: int = Field(ge=1)
    dim: int | None = Field(default=None, ge=1)
    tokens_an_image: int = Field(default=0, ge=0)
    tile: int | None = Field(default=None, ge=1)
    pixels_a_token: int | None = Field(default=None, ge=1)
    charged_pixels: tuple[int, int] | None = None
    price: Price | None = None
    unverified: str = ""
    image_sides: tuple[int, int] | None = None
    text_words: int | None = Field(default=None, ge=1)
    text_tokens: int | None = Field(default=None, ge=1)

    def too_long(self, text: str) -> str | None:
        """Return why the vendor wouldn't take a whole text; None: nothing speaks against it.

        Its tokens can't be counted here, but they are no fewer than the words.
        """
        words = len(text.split())
        for most, unit in ((self.text_words, "words"), (self.text_tokens, "tokens")):
            if most is not None and words > most:
                return f"{words} words, the vendor takes {most:,} {unit}"
        return None

    def tokens(self, kind: Kind, size: tuple[int, int]) -> int:
        """Return the tokens of an image of (width, height), or of a text of (bytes, 1), at most."""
        if kind == "text":
            return size[0] + 8
        width, height = size if all(size) else (math.isqrt(self.image_pixels),) * 2
        if self.tile is not None:
            return self.tokens_an_image * -(-width // self.tile) * -(-height // self.tile)
        if self.pixels_a_token is None:
            return self.tokens_an_image
        least, most = self.charged_pixels or (0, self.image_pixels)
        return math.ceil(min(max(width * height, least), most) / self.pixels_a_token)

    def items(self, kind: Kind) -> int:
        """Return how many items a request may have; no more images than a minute may."""
        if kind == "text":
            return self.texts_a_request
        return min(self.images_a_request, self.items_a_minute or self.images_a_request)

    @property
    def most_tokens(self) -> float:
        """How many tokens a request may have; no more than a minute may."""
        return min(self.tokens_a_request or math.inf, self.tokens_a_minute or math.inf)


class RateLimit:
    """At most so many requests, items and tokens in any 60 seconds; for one event loop.

    Args:
        limits: requests, items and tokens a minute; None: no limit.
    """

    def __init__(
        self,
        *limits: int | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._sleep = sleep
        self._sent: deque[tuple[float, tuple[int, ...]]] = deque()
        self._not_before = 0.0

    async def wait(self, *counts: int) -> None:
        """Wait until so many requests, items and tokens may leave, and count them."""
        while (delay := self._delay(counts)) > 0:
            await self._sleep(delay)
        self._sent.append((self._clock(), counts))

    def hold(self, seconds: float) -> None:
        """Let nothing leave for a while: the vendor said so."""
        self._not_before = max(self._not_before, self._clock() + seconds)

    def _delay(self, counts: tuple[int, ...]) -> float:
        now = self._clock()
        while self._sent and self._sent[0][0] <= now - MINUTE:
            self._sent.popleft()
        delay = self._not_before - now
        for which, limit in enumerate(self.limits):
            if limit is None:
                continue
            over = sum(sent[which] for _, sent in self._sent) + counts[which] - limit
            for at, sent in self._sent:  # what has to be a minute old before there is room
                if over <= 0:
                    break
                over -= sent[which]
                delay = max(delay, at + MINUTE - now)
        return delay


def find_limits(kind: str, model: str, url: str | None) -> Limits:
    """Return the terms of a model: the package's table, the person's laid over it.

    Args:
        url: another base URL than the vendor's own, where the person's table may have "URL#MODEL".

    Raises:
        TeacherError: a table that can't be read, or with unknown or wrong entries.
    """
    named = os.environ.get("VL2V_VENDORS")
    file = Path(named) if named else platformdirs.user_config_path("vl2v", appauthor=False) / "vendors.toml"
    own = read_toml(file) if named or file.is_file() else {}
    _refuse_typos(own, kind, model, url, file)
    vendor, about = _levels(_shipped()[kind], model, url)
    my_vendor, mine = _levels(own.get(kind, {}), model, url)
    price = vendor.get("price")
    for prices in (my_vendor.get("price"), about.get("price"), mine.get("price")):
        price = _priced(price, prices)
    found = merge(vendor, my_vendor, about, mine)
    if price is not None:
        found["price"] = price
    if "price" in mine or ("price" in my_vendor and "price" not in about):
        found["unverified"] = ""
    try:
        return Limits.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = [*Limits.model_fields, *Price.model_fields]
        hint = "; ".join(filter(None, ("unknown", did_you_mean(str(first["loc"][-1]), known))))
        words = hint if first["type"] == "extra_forbidden" else expected(first)
        raise TeacherError(f"{file}: {kind}.{key}: {words}") from None


@lru_cache(maxsize=1024)
def canonical_spec(spec: str) -> str:
    """Return the one spelling of a paid teacher's spec; that of any other as it is.

    >>> canonical_spec("jina:https://API.jina.ai:443/v1/#jina-clip-v2?dimensions=064")
    'jina:jina-clip-v2?dimensions=64'
    """
    kind, url, model, dimensions = parts_of(spec)
    if kind not in _shipped() or not model:
        return spec
    try:
        url = canonical_url(url.replace(HIDDEN, "")) if url else ""
    except ValueError:
        return spec
    own = _shipped()[kind].get("url")
    address = "" if not url or (own and url == canonical_url(own)) else f"{url}#"
    return f"{kind}:{address}{model}" + (f"?dimensions={dimensions}" if dimensions else "")


def parts_of(spec: str) -> tuple[str, str, str, int | None]:
    """Return (kind, URL or "", model, dimensions) of "KIND:URL#MODEL?dimensions=N"."""
    kind, _, rest = spec.partition(":")
    address, _, query = rest.partition("?")
    url, _, model = address.rpartition("#")
    option, _, value = query.partition("=")
    dimensions = int(value) if option == "dimensions" and value.isdecimal() else None
    return kind, url, model, dimensions


@cache
def _shipped() -> dict[str, Any]:
    return tomllib.loads((resources.files(__package__) / "vendors.toml").read_text(encoding="utf-8"))


def _levels(vendor: dict[str, Any], model: str, url: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a table says of a vendor, and of one of its models."""
    models: dict[str, Any] = vendor.get("models", {})
    here = {_spelt(name): about for name, about in models.items()}
    about = here.get(_spelt(f"{url}#{model}"), here.get(model, {}))
    return {name: value for name, value in vendor.items() if name != "models"}, about


def _spelt(name: str) -> str:
    """Return the one spelling of a model's key in a table: MODEL, or URL#MODEL."""
    url, hash_, model = name.rpartition("#")
    try:
        return f"{canonical_url(url)}#{model}" if hash_ else name
    except ValueError:
        return name


def _priced(price: Any, own: Any) -> Any:
    """Return prices replaced by one's own: images, or texts, are charged by the item or by tokens."""
    if not isinstance(price, dict) or not isinstance(own, dict):
        return price if own is None else own
    named = [kind for kind in get_args(Kind) if kind in own or f"{kind}_tokens" in own]
    return {name: value for name, value in price.items() if name.removesuffix("_tokens") not in named} | own


def _refuse_typos(own: dict[str, Any], kind: str, model: str, url: str | None, file: Path) -> None:
    """Refuse a person's table with an entry that would be passed over in silence.

    Raises:
        TeacherError: an unknown vendor, or a model whose name seems to be misspelt.
    """
    for vendor, table in own.items():
        if vendor not in _shipped():
            hint = did_you_mean(vendor, _shipped(), f"choose one of {', '.join(_shipped())}")
            raise TeacherError(f"{file}: {vendor}: unknown vendor; {hint}")
        if not isinstance(table, dict) or not isinstance(table.get("models", {}), dict):
            raise TeacherError(f"{file}: {vendor}: not a table")
    models = own.get(kind, {}).get("models", {})
    wanted = {model, _spelt(f"{url}#{model}")} if url else {model}
    if wanted & {_spelt(name) for name in models}:
        return
    for name, about in models.items():
        if not isinstance(about, dict):
            raise TeacherError(f"{file}: {kind}.models.{name!r}: not a table")
        if name in _shipped()[kind].get("models", {}):
            continue
        near = difflib.get_close_matches(_spelt(name), wanted, n=1, cutoff=0.85)
        if near and _letters(near[0]) != _letters(name):  # other digits: another version, or another machine
            raise TeacherError(f'{file}: {kind}.models."{name}": no model in use; did you mean "{near[0]}"?')


def _letters(name: str) -> str:
    return re.sub(r"\d+", "0", name)
