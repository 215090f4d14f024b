"""Keys, from the environment or from a file that nobody else can read."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from vl2v.errors import ConfigError


def read_secret(variable: str) -> str:
    """Return the key that an environment variable holds, or that the file holds which `VARIABLE_FILE` names; else "".

    Raises:
        ConfigError: the file can't be read, others can read it, or it holds anything but one key.
    """
    key, file = os.environ.get(variable), os.environ.get(f"{variable}_FILE")
    if key or not file:
        return _one_line((key or "").encode("utf-8", "surrogateescape"), variable)
    try:
        if stat.S_IMODE(Path(file).stat().st_mode) & 0o077:
            raise ConfigError(f"{variable}_FILE: others can read {file}; chmod 600 it")
        return _one_line(Path(file).read_bytes(), f"{variable}_FILE: {file}")
    except OSError as error:
        raise ConfigError(f"{variable}_FILE: {file} can't be read ({error.strerror})") from None


def _one_line(content: bytes, where: str) -> str:
    """Return the key in a file's bytes, whatever editor wrote them; the key itself is never repeated.

    Raises:
        ConfigError: there are several lines, or characters that no header may have.
    """
    encoding = "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        key = content.decode(encoding).strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: isn't text; it should hold the key alone, on one line") from None
    lines = len([line for line in key.splitlines() if line.strip()])
    if lines > 1:
        raise ConfigError(f"{where}: has {lines} lines; it should hold the key alone, on one line")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{where}: has spaces or characters that no key has; it should hold the key alone")
    return key
