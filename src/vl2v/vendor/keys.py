"""Who may query: API keys, stored hashed in a TOML file, each with a rate, a quota and prices."""

from __future__ import annotations

import hashlib
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vl2v.config import expected
from vl2v.errors import ConfigError
from vl2v.io import replacing
from vl2v.tree import read_toml


class Key(BaseModel):
    """What one client may do.

    Attributes:
        name: of the client, for the ledger.
        sha256: of the key; the key has 256 random bits, so nothing slower is needed.
        rate: requests a minute; None: no limit.
        quota: texts and images in all, ever; None: no limit.
        price: of a text or an image, in millionths of the currency.
        price_image: of an image, where it differs.
        price_text: of a text, where it differs.
        revoked: since when the key isn't accepted; None: it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    rate: int | None = Field(default=None, ge=1)
    quota: int | None = Field(default=None, ge=0)
    price: int = Field(default=0, ge=0)
    price_image: int | None = Field(default=None, ge=0)
    price_text: int | None = Field(default=None, ge=0)
    revoked: datetime | None = None

    def price_of(self, kind: Literal["image", "text"]) -> int:
        """Return what one costs, in millionths of the currency."""
        own = self.price_image if kind == "image" else self.price_text
        return self.price if own is None else own


class Keys:
    """The keys of a file.

    Args:
        keys: all of them.
    """

    def __init__(self, keys: list[Key]) -> None:
        self.replace(keys)

    def replace(self, keys: list[Key]) -> None:
        """Let these be the keys from now on."""
        self.keys = keys
        valid = {key.sha256: key for key in keys if key.revoked is None}
        self._valid: tuple[dict[str, Key], dict[bytes, Key]] = valid, {}  # by hash; by headers that were accepted

    @property
    def accepted(self) -> int:
        """How many keys aren't revoked."""
        return len(self._valid[0])

    def find(self, given: str) -> Key | None:
        """Return whose key this is, unless it is revoked.

        It is found by its hash, so that the time that takes says nothing about the key.
        """
        return self._valid[0].get(_digest(given))

    def of_header(self, header: bytes) -> Key | None:
        """Return whose key an Authorization header has, likewise."""
        valid, accepted = self._valid
        key = accepted.get(header)
        if key is None:
            scheme, _, given = header.partition(b" ")
            key = valid.get(_digest(given.decode("latin-1").strip())) if scheme.lower() == b"bearer" else None
            if key is not None and len(accepted) < 4 * len(valid):  # a key can be spelt in several ways
                accepted[header] = key
        return key


def read_keys(file: Path) -> Keys:
    """Return the keys of a TOML file with a table `[[key]]` each.

    Raises:
        ConfigError: it can't be read, a table is wrong, or two have one name.
    """
    try:
        if not file.exists():
            raise ConfigError(f"{file}: no such file; `vl2v vendor keys add` makes it")
        tables = read_toml(file).get("key", [])
        keys = [Key.model_validate(table) for table in tables]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{file}: [[key]] {where}: {expected(first)}") from None
    except OSError as error:
        raise ConfigError(f"{file}: can't be read ({error.strerror})") from None
    except (TypeError, AttributeError):
        raise ConfigError(f"{file}: keys are tables [[key]]; `vl2v vendor keys add` writes them") from None
    names = [key.name for key in keys]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{file}: two keys are named {twice!r}; rename one")
    return Keys(keys)


def add_key(
    file: Path,
    name: str,
    *,
    rate: int | None = None,
    quota: int | None = None,
    price: int = 0,
    price_image: int | None = None,
    price_text: int | None = None,
) -> str:
    """Add a new key to a file, made if it is not there, and return the key: it is nowhere else from now on.

    Raises:
        ConfigError: the name is taken, the file is wrong or can't be written.
    """
    if file.exists() and name in [key.name for key in read_keys(file).keys]:
        raise ConfigError(f"{file}: there is a key named {name!r} already; choose another name")
    key = f"vl2v-{secrets.token_urlsafe(32)}"
    prices = {"price": price, "price_image": price_image, "price_text": price_text}
    made = Key(name=name, sha256=_digest(key), rate=rate, quota=quota, **prices)  # type: ignore[arg-type]
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as opened:
            opened.write(_table(made))
    except OSError as error:
        raise ConfigError(f"{file}: can't be written ({error.strerror})") from None
    return key


def revoke_key(file: Path, name: str) -> None:
    """Have a key not be accepted any more; its table stays, so that the ledger's name isn't given to somebody else.

    Raises:
        ConfigError: there is no such key, it is revoked already, or the file is wrong or can't be written.
    """
    keys = read_keys(file).keys
    found = next((key for key in keys if key.name == name), None)
    if found is None:
        raise ConfigError(
            f"{file}: no key is named {name!r}; its keys are {', '.join(key.name for key in keys) or 'none'}"
        )
    if found.revoked is not None:
        raise ConfigError(f"{file}: {name!r} was revoked on {found.revoked:%Y-%m-%d} already")
    now = datetime.now(UTC).replace(microsecond=0)
    tables = [_table(key.model_copy(update={"revoked": now}) if key is found else key) for key in keys]
    with (
        replacing(file, ConfigError) as new,
        os.fdopen(os.open(new, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, 0o600), "w", encoding="utf-8") as opened,
    ):
        opened.write("".join(tables))


def _table(key: Key) -> str:
    return "\n[[key]]\n" + tomli_w.dumps(key.model_dump(exclude_none=True))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
