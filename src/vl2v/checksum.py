"""A checksum of arrays: what a disk has changed since it was written isn't read as if it were whole."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray


def checksum(arrays: Mapping[str, NDArray[Any]], told: str) -> str:
    """Return the CRC-32 of contiguous arrays, their names, and what is told beside them."""
    crc = zlib.crc32(told.encode())
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name].data, zlib.crc32(name.encode(), crc))
    return str(crc)
