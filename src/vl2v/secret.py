"""Keys, from the environment or from a file that nobody else can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vl2v.errors import ConfigError


def read_secret(variable: str) -> str:
    """Return the key that an environment variable holds, or that the file holds which `VARIABLE_FILE` names; else "".

    Raises:
        ConfigError: the file can't be read, or others can read it.
    """
    key, file = os.environ.get(variable), os.environ.get(f"{variable}_FILE")
    if key or not file:
        return (key or "").strip()
    try:
        if stat.S_IMODE(Path(file).stat().st_mode) & 0o077:
            raise ConfigError(f"{variable}_FILE: others can read {file}; chmod 600 it")
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{variable}_FILE: {file} can't be read ({error.strerror})") from None
