"""Every file read, hashed and decoded once, before anything is queried or trained.

Near-copies are found by it, too: images that look the same, though their files differ (another size, format or
compression).
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vl2v import io
from vl2v.data.dataset import DomainDataset
from vl2v.data.decoding import REPAIRED, ImageError, decode_with_remark
from vl2v.errors import DataError
from vl2v.session import Progress, silent
from vl2v.sqlite import BUSY_SECONDS, closed_on_error, journal

LIKE = 0.99  # correlation of the grey values of near-copies
COLOURS = 32  # of 255: what the mean colours of near-copies may differ by
_GREY, _CELLS = slice(0, 256), slice(256, 256 + 48)
_FLAT = 2.0  # standard deviation of the grey values, of 255
_COLOURLESS = 8  # what a grey image's channels differ by at most, after compression
_TABLES = 8
_AT_ONCE = 4096
_PLANES = np.random.default_rng(0).standard_normal((256, 16 * _TABLES)).astype(np.float32)
_LUMA = np.array([0.299, 0.587, 0.114])


def signature_of(image: Image.Image) -> bytes:
    """Return the perceptual signature that near-copies share; b"" for an image of one colour only.

    That is 16 x 16 mean grey values, then the mean colours of 4 x 4 cells: 304 bytes.
    """
    grey = np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BILINEAR))
    if grey.std() < _FLAT:
        return b""
    return grey.tobytes() + image.resize((4, 4), Image.Resampling.BILINEAR).tobytes()


def lookalikes(signatures: Sequence[bytes], among: Sequence[bytes]) -> NDArray[np.int64]:
    """Return, for each signature, the first of others that is a near-copy, or -1: [n] indices in `among`.

    Near-copies are alike in their 16 x 16 grey values (correlation 0.99) and in their colours. Of PACS images that are
    saved again as JPEG of quality 10 to 90, scaled, squeezed or made grey, 99.8% or more are found; of its 50 million
    pairs of images 9 count, all of one class and domain. An image that was cropped by 5% at each side isn't found.
    """
    index = _Index([*among, *signatures])
    for number in range(len(among)):
        index.add(number)
    return np.array([index.first(len(among) + number, default=-1) for number in range(len(signatures))], np.int64)


def near_copies(signatures: Sequence[bytes]) -> NDArray[np.int64]:
    """Return, for each image, the one that stands for it: the first that is a near-copy, or itself: [n].

    Likeness is not handed on from image to image: each is a near-copy of the one that stands for it.
    """
    index = _Index(signatures)
    stands = np.arange(len(signatures))
    for number in range(len(signatures)):
        stands[number] = index.first(number, default=number)
        if stands[number] == number:
            index.add(number)
    return stands


class _Index:
    """Signatures found by likeness: those on the same side of 16 random planes, in one of eight tables."""

    def __init__(self, signatures: Sequence[bytes]) -> None:
        self._signatures = signatures
        self._keys = _sides(signatures)
        self._tables: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(_TABLES)]
        self._there: set[bytes] = {b""}

    def add(self, number: int) -> None:
        """Index a signature; of equal ones only the first is found."""
        if self._signatures[number] in self._there:
            return
        self._there.add(self._signatures[number])
        for table, key in zip(self._tables, self._keys[number].tolist(), strict=True):
            table[key].append(number)

    def first(self, number: int, default: int) -> int:
        """Return the lowest number of the near-copies that were added."""
        signature = self._signatures[number]
        if not signature:
            return default
        keys = self._keys[number].tolist()
        found = sorted({other for table, key in zip(self._tables, keys, strict=True) for other in table.get(key, ())})
        if not found:
            return default
        grey = _normalised([signature, *(self._signatures[other] for other in found)])
        likely = (found[i] for i in np.flatnonzero(grey[1:] @ grey[0] >= LIKE))
        return next((other for other in likely if _same_colours(signature, self._signatures[other])), default)


def _sides(signatures: Sequence[bytes]) -> NDArray[np.uint16]:
    """Return on which sides of the planes signatures are: [n, tables]."""
    keys = np.zeros((len(signatures), _TABLES), np.uint16)
    for start in range(0, len(signatures), _AT_ONCE):
        sides = _normalised(signatures[start : start + _AT_ONCE]) @ _PLANES > 0
        keys[start : start + _AT_ONCE] = np.packbits(sides, axis=1).view(np.uint16)
    return keys


def _normalised(signatures: Sequence[bytes]) -> NDArray[np.float32]:
    """Return grey values [n, 256] with mean 0 and norm 1; rows of zeros for images of one colour."""
    raw = b"".join(signature[_GREY] or bytes(256) for signature in signatures)
    grey = np.frombuffer(raw, np.uint8).reshape(-1, 256).astype(np.float32)
    grey -= grey.mean(1, keepdims=True)
    return np.asarray(grey / np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-6))


def _same_colours(one: bytes, other: bytes) -> bool:
    """Whether cells have about the same mean colours; of a grey and a coloured image, the same brightness."""
    a, b = (np.frombuffer(signature[_CELLS], np.uint8).reshape(-1, 3).astype(np.float64) for signature in (one, other))
    if (np.ptp(a, 1).max() <= _COLOURLESS) != (np.ptp(b, 1).max() <= _COLOURLESS):
        a, b = a @ _LUMA, b @ _LUMA
    return bool(np.abs(a - b).max() <= COLOURS)


_PASSING = frozenset(
    f"can't be read ({os.strerror(number)})" for number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)
)
"""What is wrong with files while a network disk is away."""

_CHUNK = 256
_MAX_BYTES = 512 * 1024**2
_TABLE = "files_3"  # another number when files are read or decoded otherwise than before


class _Key(NamedTuple):
    """A file as it lies on the disk; the size and time of a copy that was put in its stead may be the same."""

    path: str
    size: int
    changed: int
    """In ns since 1970, which a program can set."""
    noted: int
    """In ns since 1970, when the system last noted a change of anything."""
    node: int


class _Verdict(NamedTuple):
    sha256: bytes
    problem: str
    remark: str
    signature: bytes


@dataclass(frozen=True)
class Audit:
    """What the files of a dataset hold.

    Attributes:
        sha256: [n] of each file's bytes, 32 bytes; empty where it can't be read.
        problems: dataset index -> why the image can't be used.
        remarks: dataset index -> what is odd about a file that can be used.
        signatures: [n] perceptual signatures, see `signature_of`; b"" of one colour only, or of a file that wasn't
            decoded; empty if none was.
    """

    sha256: tuple[bytes, ...]
    problems: dict[int, str]
    remarks: dict[int, str] = field(default_factory=dict)
    signatures: tuple[bytes, ...] = ()

    @cached_property
    def contents(self) -> tuple[bytes, ...]:
        """[n] by which embeddings are stored, 32 bytes.

        That is `sha256`, but for files of which earlier versions made other pixels: what is stored under their SHA-256
        is of an image that was all black or all white.
        """
        repaired = {i for i, remark in self.remarks.items() if remark.startswith(REPAIRED)}
        return tuple(
            hashlib.sha256(b"repaired\0" + digest).digest() if i in repaired else digest
            for i, digest in enumerate(self.sha256)
        )

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Audit:
        """Return the audit of `dataset.subset(indices)`."""
        chosen = [int(i) for i in indices]
        problems, remarks = (
            {index: found[i] for index, i in enumerate(chosen) if i in found} for found in (self.problems, self.remarks)
        )
        signatures = tuple(self.signatures[i] for i in chosen) if self.signatures else ()
        return Audit(tuple(self.sha256[i] for i in chosen), problems, remarks, signatures)

    def with_parts(self, indices: Sequence[int] | NDArray[np.int64], found: Audit) -> Audit:
        """Return the audit with what was found of some images, `dataset.subset(indices)`, filled in."""
        chosen = [int(i) for i in indices]
        sha256, signatures = list(self.sha256), list(self.signatures or (b"",) * len(self.sha256))
        for index, i in enumerate(chosen):
            sha256[i] = found.sha256[index]
            signatures[i] = found.signatures[index] if found.signatures else b""
        problems, remarks = (
            {**before, **{chosen[index]: words for index, words in now.items()}}
            for before, now in ((self.problems, found.problems), (self.remarks, found.remarks))
        )
        return Audit(tuple(sha256), problems, remarks, tuple(signatures))


def audit(
    dataset: DomainDataset,
    *,
    cache: Path | None = None,
    workers: int = 2,
    progress: Progress = silent,
    trust: bool = False,
) -> Audit:
    """Read, hash and decode every file once.

    Killed, it resumes where it was; several processes can share a cache.

    Args:
        trust: don't read files whose SHA-256 is in a manifest: enough to plan, not to train.
        cache: a SQLite file that remembers files by path, size, times and inode, so that the next time is quick.
        workers: threads; reading, hashing and decoding run beside one another.
        progress: called with the files that are read.

    Raises:
        DataError: the cache can't be written.
    """
    listed = dataset.sha256
    if listed is not None and trust:
        unlisted = np.flatnonzero(~listed.any(1))
        rest = (
            audit(dataset.subset(unlisted), cache=cache, workers=workers, progress=progress) if len(unlisted) else None
        )
        return _listed(listed, unlisted, rest)
    keys = [_key(dataset.file(i)) for i in range(len(dataset))]
    try:
        found = _verdicts(keys, cache, workers, progress)
    except sqlite3.Error as error:
        if cache is None or isinstance(error, sqlite3.OperationalError):  # locked, full, not to be written
            raise _no_cache(cache, error) from None
        _put_aside(cache)  # broken; all that was in it can be found out again
        found = _verdicts(keys, cache, workers, progress)
    verdicts = [found[key] for key in keys]
    problems = {i: verdict.problem for i, verdict in enumerate(verdicts) if verdict.problem}
    remarks = {i: verdict.remark for i, verdict in enumerate(verdicts) if verdict.remark}
    if listed is not None:
        for i in np.flatnonzero(listed.any(1)):
            if int(i) not in problems and verdicts[i].sha256 != listed[i].tobytes():
                problems[int(i)] = "not the file that the manifest means (another sha256)"
    signatures = tuple(verdict.signature for verdict in verdicts)
    return Audit(tuple(verdict.sha256 for verdict in verdicts), problems, remarks, signatures)


def _listed(listed: NDArray[np.uint8], unlisted: NDArray[np.int64], rest: Audit | None) -> Audit:
    """Return an audit with the manifest's hashes, and what was found of files for which it has none."""
    raw = listed.tobytes()
    found = Audit(tuple(raw[start : start + 32] for start in range(0, len(raw), 32)), {})
    return found if rest is None else found.with_parts(unlisted, rest)


def set_aside(dataset: DomainDataset, found: Audit) -> DomainDataset:
    """Return the dataset without the images that can't be used; they are listed in `excluded`.

    Raises:
        DataError: nothing is left of a domain.
    """
    left = dataset.without(found.problems)
    for domain in np.setdiff1d(dataset.domain_ids, left.domain_ids):
        images = np.flatnonzero(dataset.domain_ids == domain)
        raise DataError(
            f"{dataset.root}: none of the {len(images)} images of domain {dataset.domains[domain]} can be used "
            f"({dataset.paths[images[0]]}: {found.problems[int(images[0])]}); replace them, or delete the folder"
        )
    return left


def _key(path: Path) -> _Key:
    try:
        stat = os.stat(path)
    except OSError:
        return _Key(str(path.absolute()), -1, -1, -1, -1)
    return _Key(str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino % 2**63)


def _read_all(keys: Sequence[_Key], workers: int) -> dict[_Key, _Verdict]:
    # The warnings' filters belong to the whole process: changed here, once, and not in the threads.
    with warnings.catch_warnings(), ThreadPoolExecutor(max(1, workers)) as pool:
        warnings.simplefilter("ignore")
        found = dict(zip(keys, pool.map(_read, keys), strict=True))
        for wait in io.WAITS:
            failed = [key for key in keys if found[key].problem in _PASSING]
            if not failed:
                break
            time.sleep(wait)
            found |= dict(zip(failed, pool.map(_read, failed), strict=True))
        return found


def _read(key: _Key) -> _Verdict:
    if key.size > _MAX_BYTES:
        return _Verdict(b"", f"too large ({key.size / 1024**2:.0f} MB)", "", b"")
    try:
        data = Path(key.path).read_bytes()
    except OSError as error:
        return _Verdict(b"", f"can't be read ({error.strerror})", "", b"")
    sha256 = hashlib.sha256(data).digest()
    try:
        image, remark = decode_with_remark(data)
    except ImageError as error:
        return _Verdict(sha256, str(error), "", b"")
    return _Verdict(sha256, "", remark, signature_of(image))


def _verdicts(keys: Sequence[_Key], cache: Path | None, workers: int, progress: Progress) -> dict[_Key, _Verdict]:
    with closing(_open(cache)) as db:
        found = _cached(db, keys)
        todo = [key for key in keys if key not in found]
        for start in range(0, len(todo), _CHUNK):
            fresh = _read_all(todo[start : start + _CHUNK], workers)
            found |= fresh
            _save(db, fresh)
            progress("reading images", len(keys) - len(todo) + start + len(fresh), len(keys), "")
    return found


def _no_cache(cache: Path | None, error: Exception) -> DataError:
    return DataError(
        f"{cache}: the audit of the images can't be saved ({getattr(error, 'strerror', None) or error}); "
        "free some space, make the folder writable, or choose another"
    )


def _put_aside(cache: Path) -> None:
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.replace(f"{cache}{end}", f"{cache}.broken{end}")


def _open(cache: Path | None) -> sqlite3.Connection:
    try:
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_cache(cache, error) from None
    db = sqlite3.connect(cache or ":memory:", timeout=BUSY_SECONDS)
    with closed_on_error(db):
        if cache is not None:
            journal(db, cache)
        db.execute(
            f"CREATE TABLE IF NOT EXISTS {_TABLE}"
            " (path TEXT PRIMARY KEY, size INTEGER, changed INTEGER, noted INTEGER, node INTEGER,"
            " sha256 BLOB, problem TEXT, remark TEXT, look BLOB) WITHOUT ROWID"
        )
    return db


def _cached(db: sqlite3.Connection, keys: Sequence[_Key]) -> dict[_Key, _Verdict]:
    cached = {}
    wanted = set(keys)
    for start in range(0, len(keys), 500):
        paths = [key.path for key in keys[start : start + 500]]
        marks = ",".join("?" * len(paths))
        for row in db.execute(f"SELECT * FROM {_TABLE} WHERE path IN ({marks})", paths):
            if (key := _Key(*row[:5])) in wanted:
                cached[key] = _Verdict(*row[5:])
    return cached


def _save(db: sqlite3.Connection, found: dict[_Key, _Verdict]) -> None:
    """Save what can't change while the file doesn't; that a file can't be read may be over in a moment."""
    rows = [(*key, *verdict) for key, verdict in found.items() if verdict.sha256]
    with db:
        db.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES ({','.join('?' * 9)})", rows)
