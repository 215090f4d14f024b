"""A checksum of arrays: what a disk has changed since it was written isn't read as if it were whole."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray


def checksum(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the CRC-32 of contiguous arrays and their names, whatever their order."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name].data, zlib.crc32(name.encode(), crc))
    return str(crc)
