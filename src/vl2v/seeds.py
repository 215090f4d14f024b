"""One seed, derived by purpose, so that no draw depends on workers, order or resumption."""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: object) -> int:
    """Return a 63-bit seed for one purpose, for example `derive(0, "augment", epoch, image)`."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
