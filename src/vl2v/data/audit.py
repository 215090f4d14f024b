"""Every file read, hashed and decoded once, before anything is asked or trained; duplicates and mistakes found."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vl2v.data.dataset import UNLABELLED, DomainDataset, Excluded
from vl2v.data.decoding import PictureError, decode
from vl2v.errors import DataError
from vl2v.sqlite import BUSY_SECONDS, journal

Progress = Callable[[int, int], None]
_CHUNK = 256
_MAX_BYTES = 512 * 1024**2
_TABLE = "files_1"  # another number when `decode` judges otherwise than before
_Key = tuple[str, int, int]  # path, size, time of the last change
_Verdict = tuple[bytes, str]  # SHA-256, problem


@dataclass(frozen=True)
class Audit:
    """What the files of a dataset hold.

    Attributes:
        sha256: [n] of each file's bytes, 32 bytes; empty where it can't be read.
        problems: dataset index -> why the picture can't be used.
    """

    sha256: tuple[bytes, ...]
    problems: dict[int, str]

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Audit:
        """Return the audit of `dataset.subset(indices)`."""
        chosen = [int(i) for i in indices]
        problems = {place: self.problems[i] for place, i in enumerate(chosen) if i in self.problems}
        return Audit(tuple(self.sha256[i] for i in chosen), problems)


def audit(
    dataset: DomainDataset,
    *,
    cache: Path | None = None,
    workers: int = 2,
    progress: Progress | None = None,
    trust: bool = False,
) -> Audit:
    """Read, hash and decode every file once.

    Killed, it goes on where it was; several processes can share a cache.

    Args:
        dataset: whose files.
        trust: don't read files whose SHA-256 a manifest tells: enough to plan, not to train.
        cache: a SQLite file that remembers files by path, size and time, so that the next time is quick.
        workers: threads; reading, hashing and decoding run beside one another.
        progress: called with (files done, files in all).

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
    problems = {i: problem for i, (_, problem) in enumerate(verdicts) if problem}
    if listed is not None:
        for i in np.flatnonzero(listed.any(1)):
            if int(i) not in problems and verdicts[i][0] != listed[i].tobytes():
                problems[int(i)] = "not the file that the manifest means (another sha256)"
    return Audit(tuple(sha256 for sha256, _ in verdicts), problems)


def _listed(listed: NDArray[np.uint8], unlisted: NDArray[np.int64], rest: Audit | None) -> Audit:
    """Return an audit with the manifest's hashes, and what was found of files for which it has none."""
    raw = listed.tobytes()
    hashes = [raw[start : start + 32] for start in range(0, len(raw), 32)]
    if rest is None:
        return Audit(tuple(hashes), {})
    for place, i in enumerate(unlisted):
        hashes[i] = rest.sha256[place]
    return Audit(tuple(hashes), {int(unlisted[place]): problem for place, problem in rest.problems.items()})


def set_aside(dataset: DomainDataset, found: Audit) -> DomainDataset:
    """Return the dataset without the pictures that can't be used; they are listed in `excluded`.

    Raises:
        DataError: nothing is left of a domain.
    """
    left = dataset.without(found.problems)
    for domain in np.setdiff1d(dataset.domain_ids, left.domain_ids):
        pictures = np.flatnonzero(dataset.domain_ids == domain)
        raise DataError(
            f"{dataset.root}: none of the {len(pictures)} pictures of domain {dataset.domains[domain]} can be used "
            f"({dataset.paths[pictures[0]]}: {found.problems[int(pictures[0])]}); replace them, or delete the folder"
        )
    return left


def _key(path: Path) -> _Key:
    try:
        stat = os.stat(path)
    except OSError:
        return str(path.absolute()), -1, -1
    return str(path.absolute()), stat.st_size, stat.st_mtime_ns


def _look_at(keys: Sequence[_Key], workers: int) -> dict[_Key, _Verdict]:
    # The warnings' filters belong to the whole process: changed here, once, and not in the threads.
    with warnings.catch_warnings(), ThreadPoolExecutor(max(1, workers)) as pool:
        warnings.simplefilter("ignore")
        return dict(zip(keys, pool.map(_look, keys), strict=True))


def _look(key: _Key) -> _Verdict:
    path, size, _ = key
    if size > _MAX_BYTES:
        return b"", f"too large ({size / 1024**2:.0f} MB)"
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return b"", f"can't be read ({error.strerror})"
    sha256 = hashlib.sha256(data).digest()
    try:
        decode(data)
    except PictureError as error:
        return sha256, str(error)
    return sha256, ""


def _verdicts(
    keys: Sequence[_Key], cache: Path | None, workers: int, progress: Progress | None
) -> dict[_Key, _Verdict]:
    with closing(_open(cache)) as db:
        found = _known(db, keys)
        todo = [key for key in keys if key not in found]
        for start in range(0, len(todo), _CHUNK):
            fresh = _look_at(todo[start : start + _CHUNK], workers)
            found |= fresh
            _remember(db, fresh)
            if progress is not None:
                progress(len(keys) - len(todo) + start + len(fresh), len(keys))
    return found


def _no_cache(cache: Path | None, error: Exception) -> DataError:
    return DataError(
        f"{cache}: what is known of the pictures can't be kept ({error}); "
        "make room, or see that the folder can be written"
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
    try:
        if cache is not None:
            journal(db, cache)
        db.execute(
            f"CREATE TABLE IF NOT EXISTS {_TABLE}"
            " (path TEXT PRIMARY KEY, size INTEGER, time INTEGER, sha256 BLOB, problem TEXT) WITHOUT ROWID"
        )
    except BaseException:
        db.close()
        raise
    return db


def _known(db: sqlite3.Connection, keys: Sequence[_Key]) -> dict[_Key, _Verdict]:
    known = {}
    wanted = set(keys)
    for start in range(0, len(keys), 500):
        paths = [path for path, _, _ in keys[start : start + 500]]
        marks = ",".join("?" * len(paths))
        for path, size, changed, sha256, problem in db.execute(
            f"SELECT * FROM {_TABLE} WHERE path IN ({marks})", paths
        ):
            if (path, size, changed) in wanted:
                known[path, size, changed] = (sha256, problem)
    return known


def _remember(db: sqlite3.Connection, found: dict[_Key, _Verdict]) -> None:
    """Keep what can't change while the file doesn't; that a file can't be read may be over in a moment."""
    rows = [(*key, *verdict) for key, verdict in found.items() if verdict[0]]
    with db:
        db.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?, ?)", rows)


@dataclass(frozen=True)
class Inspection:
    """What there is to be known about a dataset before it is used.

    Attributes:
        rows: domain -> class -> pictures.
        findings: one line each, with what to do.
        excluded: files that are set aside.
    """

    rows: dict[str, dict[str, int]]
    findings: tuple[str, ...]
    excluded: tuple[Excluded, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain types only."""
        return {"rows": self.rows, "findings": list(self.findings), "excluded": [asdict(e) for e in self.excluded]}


def inspect(dataset: DomainDataset, found: Audit, target: Sequence[str] = ()) -> Inspection:
    """Count classes by domains and look for what would spoil a training.

    Args:
        dataset: as opened.
        found: its audit.
        target: domains to be kept unseen; copies of their pictures in other domains are leakage.

    Raises:
        DataError: an unknown target.
    """
    unseen = {dataset.domain_index(name) for name in target}
    good = dataset.without(found.problems)
    rows = {domain: dict.fromkeys(dataset.classes, 0) for domain in dataset.domains}
    for label, domain in zip(good.labels, good.domain_ids, strict=True):
        if label >= 0:
            rows[good.domains[domain]][good.classes[label]] += 1
    labelled = {domain: counts for domain, counts in rows.items() if domain != UNLABELLED}
    findings = [
        *_unusable(good.excluded),
        *_copies(dataset, found, unseen),
        *_gaps(labelled),
        *_unseen_only(labelled, target),
        *_names(dataset),
    ]
    return Inspection(rows, tuple(findings), good.excluded)


_REMEDIES = {
    "not at": "move them to where the others are, or use a manifest",
    "not a picture": "convert them to JPEG or PNG, or delete them",
    "a link": "copy the pictures into the folder",
    "a path": "copy the pictures into the folder",
    "an empty folder": "delete it, or put its pictures in",
    "no such file": "correct the manifest",
    "its name": "rename it",
    "can't be read": "see to its permissions",
    "listed": "",
    "": "replace or delete them",
}


def _unusable(excluded: Sequence[Excluded]) -> Iterator[str]:
    for reason, count in Counter(gone.reason.split(" (")[0] for gone in excluded).most_common():
        first = next(gone.path for gone in excluded if gone.reason.split(" (")[0] == reason)
        remedy = next(text for start, text in _REMEDIES.items() if reason.startswith(start))
        yield f"{count} files set aside: {reason}, first {first}" + (f"; {remedy}" if remedy else "")


def _copies(dataset: DomainDataset, found: Audit, unseen: set[int]) -> Iterator[str]:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(found.sha256):
        if index not in found.problems:
            groups[digest].append(index)
    copies = [group for group in groups.values() if len(group) > 1]
    torn = [group for group in copies if len({int(dataset.labels[i]) for i in group} - {-1}) > 1]
    domains = [{int(dataset.domain_ids[i]) for i in group} for group in copies]
    across = [group for group, its in zip(copies, domains, strict=True) if len(its) > 1]
    leaks = [group for group, its in zip(copies, domains, strict=True) if its & unseen and its - unseen]
    if copies:
        extra = sum(len(group) - 1 for group in copies)
        yield (
            f"{extra} exact copies (the teacher is asked once about each picture, but they weigh more in training), "
            f"first {_both(dataset, copies[0])}; delete one of each"
        )
    if torn:
        yield (
            f"{len(torn)} pictures with two different classes, first {_both(dataset, torn[0])}; delete the wrong copies"
        )
    if leaks:
        yield (
            f"leakage: {len(leaks)} pictures are in a target and a source domain, "
            f"first {_both(dataset, leaks[0])}; delete the source's"
        )
    elif across:
        yield (
            f"{len(across)} pictures are in several domains, which is leakage if one of them is a target, "
            f"first {_both(dataset, across[0])}; delete all but one"
        )


def _both(dataset: DomainDataset, group: Sequence[int]) -> str:
    """Name two copies, of different classes or domains if there are such."""
    kinds = [(int(dataset.labels[i]), int(dataset.domain_ids[i])) for i in group]
    other = next((i for i, kind in zip(group, kinds, strict=True) if kind != kinds[0]), group[1])
    return f"{dataset.paths[group[0]]} and {dataset.paths[other]}"


def _gaps(rows: dict[str, dict[str, int]]) -> Iterator[str]:
    for domain, counts in rows.items():
        missing = [name for name, count in counts.items() if not count]
        if missing and len(missing) < len(counts):
            yield f"domain {domain} has no {_some(missing)}; its accuracy is over the other classes"
        elif missing:
            yield f"domain {domain} has no usable pictures with labels; add some, or delete the folder"
    if len(rows) == 1:
        yield (
            "one domain only: none can be left out to measure how the student does elsewhere; "
            "sort the pictures into domain/class/image"
        )


def _unseen_only(rows: dict[str, dict[str, int]], target: Sequence[str]) -> Iterator[str]:
    sources = [counts for domain, counts in rows.items() if domain not in target]
    missing = [name for name in next(iter(rows.values()), {}) if not any(counts[name] for counts in sources)]
    if target and sources and missing:
        yield f"no source domain has {_some(missing)}; the student will know them by their names alone"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _names(dataset: DomainDataset) -> Iterator[str]:
    if len(dataset.classes) < 2:
        yield f"one class only ({', '.join(dataset.classes)}): a classifier needs two; add pictures of another"
    for names, kind in ((dataset.classes, "classes"), (dataset.domains, "domains")):
        alike: dict[str, list[str]] = defaultdict(list)
        for name in names:
            alike["".join(letter for letter in name.lower() if letter.isalnum()) or name].append(name)
        for group in alike.values():
            if len(group) > 1:
                yield f"{kind} {' and '.join(group)} look like one; rename the folders to the same"
    both = {name.lower() for name in dataset.classes} & {name.lower() for name in dataset.domains}
    if both:
        yield (
            f"{', '.join(sorted(both))}: a class and a domain; "
            "is the layout class/domain/image? It should be domain/class/image"
        )
