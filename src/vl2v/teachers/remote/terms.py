"""A vendor's terms: its prices and limits, from a dated table that the person can override."""

from __future__ import annotations

import math
import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vl2v.config import merge, read_toml
from vl2v.errors import TeacherError
from vl2v.teachers.rented import MICRO, Kind

MILLION = 1_000_000


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Price(_Table):
    """Prices in units of the currency: of a million tokens, or of one item."""

    text_tokens: float = Field(default=0, ge=0)
    image_tokens: float = Field(default=0, ge=0)
    text: float = Field(default=0, ge=0)
    image: float = Field(default=0, ge=0)

    def micro(self, kind: Kind, count: int, tokens: int) -> int:
        """Return what so many items of so many tokens cost, in millionths, rounded up."""
        an_item, a_million = (self.image, self.image_tokens) if kind == "image" else (self.text, self.text_tokens)
        exact = count * an_item * MICRO + tokens * a_million * MICRO / MILLION
        return math.ceil(round(exact, 6))


class Terms(_Table):
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

    def tokens(self, kind: Kind, size: tuple[int, int]) -> int:
        """Return the tokens of a picture of (width, height), or of a text of (bytes, 1), at most."""
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
        """Return how many items a request may have; no more pictures than a minute may."""
        if kind == "text":
            return self.texts_a_request
        return min(self.images_a_request, self.items_a_minute or self.images_a_request)

    @property
    def most_tokens(self) -> float:
        """How many tokens a request may have; no more than a minute may."""
        return min(self.tokens_a_request or math.inf, self.tokens_a_minute or math.inf)


def find_terms(kind: str, model: str, url: str | None) -> Terms:
    """Return the terms of a model: the package's table, the person's laid over it.

    Args:
        kind: of teacher, for example "jina".
        model: its name.
        url: another base URL than the vendor's own, where the person's table may have "URL#MODEL".

    Raises:
        TeacherError: a table that can't be read, or with unknown or wrong entries.
    """
    named = os.environ.get("VL2V_VENDORS")
    file = Path(named) if named else platformdirs.user_config_path("vl2v", appauthor=False) / "vendors.toml"
    shipped = tomllib.loads((resources.files(__package__) / "vendors.toml").read_text(encoding="utf-8"))
    own = read_toml(file) if named or file.is_file() else {}
    vendor: dict[str, Any] = merge(shipped, own)[kind]
    about = _of_model(vendor.pop("models", {}), model, url)
    mine = own.get(kind, {})
    if "price" in _of_model(mine.get("models", {}), model, url) or ("price" in mine and "price" not in about):
        about = {**about, "unverified": ""}
    try:
        return Terms.model_validate({**vendor, **about})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise TeacherError(f"{file}: {kind}.{key}: {first['msg'].lower()}") from None


def _of_model(models: dict[str, Any], model: str, url: str | None) -> dict[str, Any]:
    about: dict[str, Any] = models.get(f"{url}#{model}", models.get(model, {}))
    return about
