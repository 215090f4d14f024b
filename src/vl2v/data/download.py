"""A big file over HTTP: in one piece at last, whatever happens on the way."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vl2v.errors import DataError, writing
from vl2v.io import locked, write_text
from vl2v.session import Progress, silent

if TYPE_CHECKING:
    import httpx2

TRIES = 5
CONNECT, TIMEOUT = 20.0, 60.0
_REDIRECTS = 5


@dataclass(frozen=True)
class _Part:
    """What is there of a file, and what the server says to show that it is still the same file."""

    file: Path

    @property
    def notes(self) -> Path:
        return self.file.with_name(self.file.name + ".json")

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def validator(self, url: str) -> str | None:
        """Return the strong ETag or date that came with the part from this very address."""
        try:
            said = json.loads(self.notes.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return said.get("validator") if isinstance(said, dict) and said.get("url") == url else None

    def note(self, url: str, validator: str | None) -> None:
        with writing(self.notes, DataError):
            self.notes.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


class _TryAgain(Exception):
    """The connection or the server failed; what has arrived so far is saved."""


class _Elsewhere(Exception):
    """This address won't do; another may."""


def fetch(
    urls: Sequence[str],
    target: Path,
    *,
    sha256: str | None = None,
    most: int | None = None,
    progress: Progress = silent,
    pause: float = 1.0,
) -> str:
    """Download a file and return its SHA-256 in hexadecimal; the file appears whole or not at all.

    A part file beside it is resumed, in the next run too, if the server says by its ETag or date that the file is
    still the same; else it starts over.

    Args:
        urls: the same file at one or several addresses, tried in order.
        target: where it goes; the folder exists.
        sha256: what it must be.
        most: bytes that it may have.
        progress: called with the megabytes that are there.
        pause: seconds before the second try; each further one waits twice as long.

    Raises:
        DataError: no address has it, another checksum, too large, or a disk that is full.
    """
    part = _Part(target.with_name(target.name + ".part"))
    reasons = []
    for url in urls:
        try:
            _whole(url, part, most, progress, pause)
            break
        except _Elsewhere as error:
            reasons.append(f"{urlsplit(url).hostname}: {error}")
    else:
        rest = f"; {part.size:,} bytes are saved, the same command resumes" if part.size else ""
        raise DataError(f"{target.name} can't be downloaded ({'; '.join(reasons)}){rest}")
    found = sha256_of(part.file)
    if sha256 is not None and found != sha256:
        part.remove()
        raise DataError(
            f"{target.name}: SHA-256 is {found}, it should be {sha256}; it isn't the expected file, and was deleted"
        )
    os.replace(part.file, target)
    part.remove()
    return found


def megabytes(size: int) -> int:
    """Return megabytes, rounded up, of bytes."""
    return -(-size // 10**6)


def sha256_of(file: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _whole(url: str, part: _Part, most: int | None, progress: Progress, pause: float) -> None:
    """Go on until the part is the whole file; a failure after which more came than before doesn't count."""
    import httpx2

    failures = 0
    with httpx2.Client(timeout=httpx2.Timeout(TIMEOUT, connect=CONNECT), follow_redirects=False) as client:
        while True:
            before = part.size
            try:
                _some(client, url, part, most, progress)
                return
            except (httpx2.RequestError, _TryAgain) as error:
                failures = 1 if part.size > before else failures + 1
                if failures >= TRIES:
                    raise _Elsewhere(" ".join(str(error).split()) or type(error).__name__) from None
                time.sleep(pause * 2 ** (failures - 1))
            except httpx2.InvalidURL as error:
                raise _Elsewhere(str(error)) from None


def _some(client: httpx2.Client, url: str, part: _Part, most: int | None, progress: Progress) -> None:
    """Request once, from where the part ends, and write what comes."""
    validator = part.validator(url)
    headers = {"Accept-Encoding": "identity"}
    if part.size and validator is not None:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": validator}
    response = _follow(client, url, headers)
    try:
        start = _start(response, part)
        if start is None:
            return
        total = start + int(response.headers.get("Content-Length", -start))
        _room(part, start, total, most)
        if start == 0:
            part.remove()  # before the note: a part must never stand beside another file's validator
            part.note(url, _validator(response))
        _write(response, part, start, total, most, progress)
    finally:
        response.close()


def _follow(client: httpx2.Client, url: str, headers: dict[str, str]) -> httpx2.Response:
    """Send a request, follow redirects, but never from https to http."""
    for _ in range(_REDIRECTS):
        response = client.send(client.build_request("GET", url, headers=headers), stream=True)
        if not response.is_redirect:
            return response
        there = str(response.url.join(response.headers["Location"]))
        response.close()
        if urlsplit(url).scheme == "https" and urlsplit(there).scheme != "https":
            raise _Elsewhere(f"sends us to an address without encryption, {there}")
        url = there
    raise _Elsewhere(f"more than {_REDIRECTS} redirects")


def _start(response: httpx2.Response, part: _Part) -> int | None:
    """Return at which byte the response begins: where the part ends, or 0: anew; nothing if the part is the whole."""
    status = response.status_code
    if status == 200:
        return 0
    if status == 206:
        said = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if said is None or int(said[1]) != part.size:
            part.remove()
            raise _TryAgain("the server sent another range than was requested")
        return part.size
    if status == 416:
        if response.headers.get("Content-Range") == f"bytes */{part.size}":
            return None
        part.remove()
        raise _TryAgain("the server has no more of it")
    if status in (408, 429) or status >= 500:
        raise _TryAgain(f"the server says {status}")
    raise _Elsewhere(f"the server says {status}")


def _validator(response: httpx2.Response) -> str | None:
    """Return a strong ETag, else the date of the last change, else nothing."""
    etag: str = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return etag
    date: str | None = response.headers.get("Last-Modified")
    return date


def _room(part: _Part, start: int, total: int, most: int | None) -> None:
    if most is not None and total > most:
        raise _Elsewhere(f"{total:,} bytes, but it should have {most:,} at most")
    free = shutil.disk_usage(part.file.parent).free
    if total - start > free:
        raise DataError(
            f"{part.file.parent}: {total - start:,} bytes are still to come, only {free:,} are free; free some space"
        )


def _write(
    response: httpx2.Response, part: _Part, start: int, total: int, most: int | None, progress: Progress
) -> None:
    done = start
    try:
        with part.file.open("ab" if start else "wb") as file:
            for chunk in response.iter_raw():
                done += len(chunk)
                if most is not None and done > most:
                    part.remove()
                    raise _Elsewhere(f"more than {most:,} bytes")
                file.write(chunk)
                progress(f"downloading {part.file.stem}", megabytes(done), megabytes(max(total, 0)), "MB")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(
            f"{part.file}: can't be written ({error.strerror}); free some space, and run it again"
        ) from None
    if 0 < total != done:
        raise _TryAgain(f"the connection ended after {done:,} of {total:,} bytes")


class Lock:
    """The hashes of what was downloaded, in a file beside the data: the first time decides, and is compared later."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> dict[str, Any]:
        """Return dataset -> file -> its hash and size.

        Raises:
            DataError: the file is broken.
        """
        try:
            entries = json.loads(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise DataError(f"{self.file}: can't be read ({error}); delete it to trust the next download") from None
        if not isinstance(entries, dict):
            raise DataError(f"{self.file}: not a lock file; delete it to trust the next download")
        return entries

    def sha256(self, dataset: str, name: str) -> str | None:
        """Return the hash of a file at its first download."""
        sha256: str | None = self.read().get(dataset, {}).get(name, {}).get("sha256")
        return sha256

    def add(self, dataset: str, name: str, sha256: str, size: int) -> None:
        """Note a file's hash.

        Raises:
            DataError: the file of hashes is broken, or can't be written.
        """
        with locked(self.file.with_name(f".{self.file.name}.lock")):  # another dataset may be downloaded beside
            entries = self.read()
            entries.setdefault(dataset, {})[name] = {"sha256": sha256, "bytes": size}
            write_text(self.file, json.dumps(entries, indent=2, sort_keys=True) + "\n", DataError)
