"""Every file read, hashed and decoded once, before anything is asked or trained; duplicates and mistakes found."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vl2v.data.dataset import DomainDataset, Excluded
from vl2v.data.decoding import PictureError, decode

Progress = Callable[[int, int], None]
_CHUNK = 256
_Key = tuple[str, int, int]  # path, size, time of the last change


@dataclass(frozen=True)
class Audit:
    """What the files of a dataset hold.

    Attributes:
        sha256: [n] of each file's bytes, 32 bytes; empty where it can't be read.
        problems: dataset index -> why the picture can't be used.
    """

    sha256: tuple[bytes, ...]
    problems: dict[int, str]


def audit(
    dataset: DomainDataset, *, cache: Path | None = None, workers: int = 2, progress: Progress | None = None
) -> Audit:
    """Read, hash and decode every file once.

    Args:
        dataset: whose files.
        cache: a SQLite file that remembers files by path, size and time, so that the next time is quick.
        workers: threads.
        progress: called with (files done, files in all).
    """
    keys = [_key(dataset.file(i)) for i in range(len(dataset))]
    with closing(_open(cache)) as db:
        known = _known(db, keys)
        todo = [i for i, key in enumerate(keys) if key not in known]
        found = dict(known)
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(todo), _CHUNK):
                chunk = todo[start : start + _CHUNK]
                fresh = dict(
                    zip((keys[i] for i in chunk), pool.map(_look, (dataset.file(i) for i in chunk)), strict=True)
                )
                found |= fresh
                _remember(db, fresh)
                if progress is not None:
                    progress(len(keys) - len(todo) + start + len(chunk), len(keys))
    verdicts = [found[key] for key in keys]
    return Audit(
        tuple(sha256 for sha256, _ in verdicts), {i: problem for i, (_, problem) in enumerate(verdicts) if problem}
    )


def set_aside(dataset: DomainDataset, found: Audit) -> DomainDataset:
    """Return the dataset without the pictures that can't be used; they are listed in `excluded`."""
    return dataset.without(found.problems)


def _key(path: Path) -> _Key:
    try:
        stat = os.stat(path)
    except OSError:
        return str(path.absolute()), -1, -1
    return str(path.absolute()), stat.st_size, stat.st_mtime_ns


def _look(path: Path) -> tuple[bytes, str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        return b"", f"can't be read ({error.strerror})"
    try:
        decode(data)
    except PictureError as error:
        return hashlib.sha256(data).digest(), str(error)
    return hashlib.sha256(data).digest(), ""


def _open(cache: Path | None) -> sqlite3.Connection:
    """Open the cache; it can be deleted at any time, so one that is broken is begun anew."""
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _prepared(cache)
    except sqlite3.DatabaseError as error:
        if cache is None or isinstance(error, sqlite3.OperationalError):
            raise
        cache.unlink()
        return _prepared(cache)


def _prepared(cache: Path | None) -> sqlite3.Connection:
    db = sqlite3.connect(cache or ":memory:", timeout=60)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute(
        "CREATE TABLE IF NOT EXISTS files "
        "(path TEXT PRIMARY KEY, size INTEGER, time INTEGER, sha256 BLOB, problem TEXT)"
    )
    return db


def _known(db: sqlite3.Connection, keys: Sequence[_Key]) -> dict[_Key, tuple[bytes, str]]:
    known = {}
    wanted = set(keys)
    for start in range(0, len(keys), 500):
        paths = [path for path, _, _ in keys[start : start + 500]]
        marks = ",".join("?" * len(paths))
        for path, size, time, sha256, problem in db.execute(f"SELECT * FROM files WHERE path IN ({marks})", paths):
            if (path, size, time) in wanted and size >= 0:
                known[path, size, time] = (sha256, problem)
    return known


def _remember(db: sqlite3.Connection, found: dict[_Key, tuple[bytes, str]]) -> None:
    with db:
        db.executemany(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
            [(*key, *verdict) for key, verdict in found.items()],
        )


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
    for name in target:
        dataset.domain_index(name)
    good = set_aside(dataset, found)
    rows = {domain: dict.fromkeys(dataset.classes, 0) for domain in dataset.domains}
    for label, domain in zip(good.labels, good.domain_ids, strict=True):
        if label >= 0:
            rows[good.domains[domain]][good.classes[label]] += 1
    findings = [*_unusable(good.excluded), *_copies(dataset, found, target), *_gaps(rows), *_names(dataset)]
    return Inspection(rows, tuple(findings), good.excluded)


def _unusable(excluded: Sequence[Excluded]) -> Iterator[str]:
    for reason, count in Counter(e.reason.split(" (")[0] for e in excluded).most_common():
        first = next(e.path for e in excluded if e.reason.startswith(reason))
        yield f"{count} files set aside: {reason}, first {first}"


def _copies(dataset: DomainDataset, found: Audit, target: Sequence[str]) -> Iterator[str]:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(found.sha256):
        if index not in found.problems:
            groups[digest].append(index)
    copies = [group for group in groups.values() if len(group) > 1]
    torn = [group for group in copies if len({int(dataset.labels[i]) for i in group} - {-1}) > 1]
    across = [group for group in copies if len(np.unique(dataset.domain_ids[group])) > 1]
    unseen = {dataset.domain_index(name) for name in target}
    leaks = [
        g
        for g in across
        if {int(d) for d in dataset.domain_ids[g]} & unseen and {int(d) for d in dataset.domain_ids[g]} - unseen
    ]
    if copies:
        extra = sum(len(group) - 1 for group in copies)
        yield f"{extra} exact copies; the teacher is asked about each content once. First: {_both(dataset, copies[0])}"
    if torn:
        yield f"{len(torn)} pictures with two different classes; remove the wrong one. First: {_both(dataset, torn[0])}"
    if leaks:
        yield f"leakage: {len(leaks)} pictures are in a target and a source domain. First: {_both(dataset, leaks[0])}"
    elif across:
        yield (
            f"{len(across)} pictures are in several domains: leakage if one is a target. First: "
            f"{_both(dataset, across[0])}"
        )


def _both(dataset: DomainDataset, group: Sequence[int]) -> str:
    return f"{dataset.paths[group[0]]} and {dataset.paths[group[1]]}"


def _gaps(rows: dict[str, dict[str, int]]) -> Iterator[str]:
    for domain, counts in rows.items():
        missing = [name for name, count in counts.items() if not count]
        if missing and len(missing) < len(counts):
            yield f"domain {domain} has no {', '.join(missing[:5])}; its accuracy is over the other classes"
        elif missing:
            yield f"domain {domain} has no pictures with labels"
    if len(rows) == 1:
        yield "one domain only: nothing can be left out to measure how the student does elsewhere"


def _names(dataset: DomainDataset) -> Iterator[str]:
    if len(dataset.classes) < 2:
        yield f"one class only ({', '.join(dataset.classes)}): a classifier needs two"
    for names, kind in ((dataset.classes, "classes"), (dataset.domains, "domains")):
        alike: dict[str, list[str]] = defaultdict(list)
        for name in names:
            alike[name.lower().replace(" ", "_").replace("-", "_")].append(name)
        for group in alike.values():
            if len(group) > 1:
                yield f"{kind} {' and '.join(group)} look like one; rename the folders to the same"
    both = {name.lower() for name in dataset.classes} & {name.lower() for name in dataset.domains}
    if both:
        yield f"{', '.join(sorted(both))}: a class and a domain; the layout should be domain/class/image"
