"""Zip and tar archives from strangers: only regular files, only inside the folder, only so much; and IconDG's own."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from vl2v.data.download import megabytes
from vl2v.errors import DataError
from vl2v.session import Progress, silent

Placing = Callable[[str], list[str]]
"""Where a member goes: its path in the archive -> paths below the folder; none is to leave it out."""

_ATTRIBUTION = "ATTRIBUTION.csv"
_CHUNK = 1024**2
_BLOCK = 16 * 1024**2  # tarfile reads a whole header at once, of whatever length the archive claims
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, gzip.BadGzipFile, NotImplementedError)


@dataclass(frozen=True)
class Limits:
    """What an archive may hold at most.

    Attributes:
        members: files and folders.
        unpacked: bytes of all files.
        file: bytes of one file.
    """

    members: int = 2_000_000
    unpacked: int = 200 * 1024**3
    file: int = 2 * 1024**3


def limits_for(archive: Path) -> Limits:
    """Return limits for an archive of images, which are compressed already: 20 times its own size."""
    return Limits(unpacked=20 * archive.stat().st_size + 64 * 1024**2)


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    kind: str
    """"file", "folder", or what else it is."""
    open: Callable[[], IO[bytes]]


def unpack(
    archive: Path,
    folder: Path,
    *,
    targets_of: Placing | None = None,
    limits: Limits | None = None,
    progress: Progress = silent,
) -> int:
    """Write an archive's files below a folder and return how many were written.

    Hidden files and macOS' shadow folder are left out. Nothing is ever overwritten.

    Args:
        archive: .zip, .tar, .tar.gz or .tgz, recognised by content.
        folder: exists; a fresh one.
        targets_of: where each file goes; by default where the archive has it.
        limits: by default `limits_for(archive)`.
        progress: called with the megabytes of the archive that are read.

    Raises:
        DataError: a member is a link or device, leads out of the folder, is there twice, or the archive is more than
            the limits allow, truncated or damaged. What was written until then stays: the folder is the caller's.
    """
    limits = limits or limits_for(archive)
    targets_of = targets_of or (lambda name: [name])
    inside = folder.resolve()
    written = members = unpacked = 0
    whole = archive.stat().st_size
    try:
        with archive.open("rb") as file:
            for member in _members(file, archive, limits):
                members += 1
                unpacked += member.size
                _check(archive, member, limits, members, unpacked)
                if member.kind == "file" and not _hidden(member.name):
                    written += _write(archive, member, inside, targets_of)
                progress(f"unpacking {archive.name}", megabytes(min(file.tell(), whole)), megabytes(whole), "MB")
    except _BROKEN as error:
        raise DataError(
            f"{archive}: truncated or damaged ({' '.join(str(error).split())}); download it again"
        ) from None
    except FileExistsError as error:
        raise DataError(
            f"{archive}: two of its files have the same path {error.filename}; get it from its source"
        ) from None
    return written


def _members(file: BinaryIO, archive: Path, limits: Limits) -> Iterator[_Member]:
    start = file.read(4)
    file.seek(0)
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _zip_members(file, archive, limits)
    if start[:2] == b"\x1f\x8b":
        return _tar_members(gzip.GzipFile(fileobj=file))
    return _tar_members(file)


def _zip_members(file: BinaryIO, archive: Path, limits: Limits) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as opened:
        if len(opened.infolist()) > limits.members:
            raise _too_much(archive, f"{len(opened.infolist()):,} members")
        for info in opened.infolist():
            kind = _zip_kind(info)
            yield _Member(info.filename, info.file_size, kind, lambda info=info: opened.open(info))  # type: ignore[misc]


def _zip_kind(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 0x1:
        return "an encrypted file"
    mode = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir():
        return "folder" if mode in (0, stat.S_IFDIR) else "a special file"
    if mode in (0, stat.S_IFREG):
        return "file"
    return "a link" if mode == stat.S_IFLNK else "a special file"


class _Careful(io.RawIOBase):
    """A stream that refuses to be read in more than a block at once: a header that claims to be huge."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile) -> None:
        self._stream = stream

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or size > _BLOCK:
            raise tarfile.ReadError("a header that is too long")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _tar_members(stream: BinaryIO | gzip.GzipFile) -> Iterator[_Member]:
    with tarfile.open(fileobj=_Careful(stream), mode="r:") as opened:
        while (info := opened.next()) is not None:
            yield _Member(info.name, info.size, _tar_kind(info), lambda info=info: _opened(opened, info))  # type: ignore[misc]
            opened.members.clear()  # type: ignore[attr-defined]  # a million of them would fill the memory
        stream.seek(opened.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a broken header for the end
            raise tarfile.ReadError("it has no end")


def _opened(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    if file is None:
        raise tarfile.ReadError(f"{info.name} can't be read")
    return file


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
        return "file"
    if info.isdir():
        return "folder"
    return "a link" if info.issym() or info.islnk() else "a special file"


def _check(archive: Path, member: _Member, limits: Limits, members: int, unpacked: int) -> None:
    if member.kind not in ("file", "folder"):
        raise DataError(f"{archive}: {member.name!r} is {member.kind}, which no dataset needs; not unpacked")
    if member.size < 0:
        raise tarfile.ReadError(f"{member.name!r} has a negative size")
    if members > limits.members:
        raise _too_much(archive, f"more than {limits.members:,} members")
    if member.size > limits.file:
        raise _too_much(archive, f"{member.name!r} of {member.size:,} bytes")
    if unpacked > limits.unpacked:
        raise _too_much(archive, f"more than {limits.unpacked:,} bytes")


def _too_much(archive: Path, what: str) -> DataError:
    return DataError(f"{archive}: holds {what}, more than such an archive should; get it from its source")


def _hidden(name: str) -> bool:
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


def _write(archive: Path, member: _Member, inside: Path, targets_of: Placing) -> int:
    _inside(archive, inside, member.name)  # as it stands, also where it is to go elsewhere, or nowhere
    targets = [_inside(archive, inside, path) for path in targets_of(_plain(member.name))]
    if not targets:
        return 0
    first, *others = targets
    first.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as source, first.open("xb") as sink:
        shutil.copyfileobj(source, sink, _CHUNK)
    if first.stat().st_size != member.size:
        raise tarfile.ReadError(f"{member.name} is shorter than it should be")
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        with first.open("rb") as source, other.open("xb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK)
    return len(targets)


def _plain(name: str) -> str:
    return PurePosixPath(name).as_posix()  # "./a//b" is a/b


def _inside(archive: Path, folder: Path, name: str) -> Path:
    """Return where a member goes: strictly inside the folder.

    Raises:
        DataError: it leads out, or is no plain relative path.
    """
    path = PurePosixPath(name)
    strange = any(letter in name for letter in "\0\\") or ":" in "".join(path.parts[:1])
    bad = strange or not name or path.is_absolute() or ".." in path.parts
    target = folder if bad else (folder / path).resolve()
    if bad or folder not in target.parents:
        raise DataError(f"{archive}: {name!r} leads out of the folder; not unpacked")
    return target


def icondg(root: Path | None = None) -> Path:
    """Return IconDG's folder (domain/class/image), unpacked at the first call.

    The folder appears whole or not at all, so that several processes may unpack it at the same time.

    Args:
        root: where to unpack it; without it, a folder in the user's cache that is named by the archive's hash.

    Raises:
        DataError: the archive is missing or not what it should be, `root` holds something else, or the disk refuses.
    """
    archive = Path(str(files("vl2v").joinpath("assets", "icondg.zip")))
    if not archive.is_file():
        raise DataError("IconDG is not in this installation: assets/icondg.zip is missing; reinstall vl2v")
    if root is None:
        from platformdirs import user_cache_dir  # here: an exported student runs without it

        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        root = Path(user_cache_dir("vl2v", appauthor=False)) / f"icondg-{digest[:12]}"
    if not (root / _ATTRIBUTION).is_file():
        _unpack_whole(archive, root)
    return root


def _unpack_whole(archive: Path, root: Path) -> None:
    """Unpack an archive beside `root`, then move it there in one step."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
            whole = Path(temporary) / root.name
            whole.mkdir()
            unpack(archive, whole)
            try:
                os.replace(whole, root)
            except OSError:
                # Another process was faster: its folder is as good as ours.
                if not (root / _ATTRIBUTION).is_file():
                    raise
    except DataError as error:
        raise DataError(f"{error}; reinstall vl2v") from None
    except OSError as error:
        raise DataError(
            f"IconDG can't be unpacked to {root} ({error.strerror}); give it an empty, writable folder"
        ) from None
