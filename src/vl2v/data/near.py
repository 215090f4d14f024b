"""Near-duplicates: pictures that look the same, though their files differ (another size, format or compression)."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vl2v.data.audit import Audit
from vl2v.data.dataset import DomainDataset
from vl2v.data.decoding import decode
from vl2v.errors import DataError
from vl2v.sqlite import BUSY_SECONDS

MOST = 7  # bits: two hashes that differ by no more have one of their eight parts in common
SIDE, KEPT = 64, 16
_TABLE = "looks_1"  # another number when `picture_hash` changes
_CHUNK = 256
_COSINES = np.cos(np.pi / SIDE * np.outer(np.arange(KEPT), np.arange(SIDE) + 0.5)).astype(np.float32)


def picture_hash(image: Image.Image) -> int:
    """Return 256 bits that change little when a picture is scaled or compressed.

    The perceptual hash: which of the 16 x 16 lowest frequencies (DCT of 64 x 64 grey values) are above their median.
    Of PACS pictures saved again as JPEG of quality 60, 99% differ by 6 bits or fewer, of pictures scaled to 80% by 4;
    of 1.1 million pairs of different pictures none by 20 or fewer. 64 bits told line drawings apart badly.
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float32)
    waves = (_COSINES @ grey @ _COSINES.T).ravel()
    waves[0] = np.median(waves)  # the mean brightness says nothing
    return int.from_bytes(np.packbits(waves > waves[0]).tobytes(), "big")


def near_duplicates(
    dataset: DomainDataset,
    audit: Audit,
    distance: int = MOST,
    *,
    cache: Path | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.int64]:
    """Return, for each picture, the one that stands for it: the first that looks the same, or itself: [n].

    Every picture is within `distance` of the one that stands for it; likeness is not handed on from picture to picture.

    Args:
        dataset: whose pictures.
        audit: of it.
        distance: bits that two hashes may differ by, 0 to 7.
        cache: a SQLite file that remembers hashes by content; the audit's own will do.
        workers: threads that decode.
        progress: called with (pictures done, pictures in all).

    Raises:
        DataError: a distance beyond 7, or a cache that can't be written.
    """
    if not 0 <= distance <= MOST:
        raise DataError(f"near-duplicates: distance {distance}; it is 0 to {MOST} bits")
    hashes = _hashes(dataset, audit, cache, workers, progress)
    parts: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(8)]  # -> those that stand for others
    stands = np.arange(len(dataset))
    for index, look in enumerate(hashes):
        alike = (
            other
            for table, part in zip(parts, _parts(look), strict=True)
            for other in table[part]
            if (look ^ hashes[other]).bit_count() <= distance
        )
        stands[index] = min(alike, default=index)
        if stands[index] == index:
            for table, part in zip(parts, _parts(look), strict=True):
                table[part].append(index)
    return stands


def _parts(look: int) -> Iterator[int]:
    return ((look >> shift) & 0xFFFFFFFF for shift in range(0, 256, 32))


def _hashes(
    dataset: DomainDataset,
    audit: Audit,
    cache: Path | None,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> list[int]:
    contents = audit.sha256
    try:
        with closing(sqlite3.connect(cache or ":memory:", timeout=BUSY_SECONDS)) as db:
            db.execute(f"CREATE TABLE IF NOT EXISTS {_TABLE} (sha256 BLOB PRIMARY KEY, look BLOB) WITHOUT ROWID")
            known = dict(db.execute(f"SELECT sha256, look FROM {_TABLE}"))
            first = {content: index for index, content in reversed(list(enumerate(contents))) if content not in known}
            todo = sorted(first.values())
            with ThreadPoolExecutor(max(1, workers)) as pool:
                for start in range(0, len(todo), _CHUNK):
                    chunk = todo[start : start + _CHUNK]
                    looks = pool.map(lambda index: picture_hash(decode(dataset.read(index))), chunk)
                    found = {contents[i]: look.to_bytes(32, "big") for i, look in zip(chunk, looks, strict=True)}
                    with db:
                        db.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?)", found.items())
                    known |= found
                    if progress is not None:
                        progress(start + len(chunk), len(todo))
    except sqlite3.Error as error:
        raise DataError(f"{cache}: can't keep what pictures look like ({error}); make room, or delete it") from None
    return [int.from_bytes(known[content], "big") for content in contents]
