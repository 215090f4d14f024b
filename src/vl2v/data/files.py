"""Which files of a folder are images to use, and why the others are not."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from vl2v.data.dataset import Excluded

SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".bmp"))
SUFFIXES |= {".dib", ".gif", ".tif", ".tiff"}
PASSED_OVER = "thumbnails and other files of a system's own"
_SYSTEM_FOLDERS = re.compile(
    r"__macosx|@eadir|@__thumb|@tmp|@(recently-snapshot|recycle|sharebin|sharesnap)|#recycle|[#~]snapshots?"
    r"|\$recycle\.bin|system volume information|found\.\d{3}|lost\+found|network trash folder|temporary items"
    r"|__pycache__",
    re.IGNORECASE,
)
"""Of macOS, Windows, Synology, QNAP, NetApp, ext4 and Python; what begins with a dot is hidden anyway."""
_SYSTEM_FILES = re.compile(
    r"(eh)?thumbs(_vista)?\.db(:.*)?|desktop\.ini|icon\r|picasa\.ini|zbthumbnail\.info|.*:zone\.identifier",
    re.IGNORECASE,
)
_IN_CLOUD = re.compile(r"\..+\.icloud")
NO_SUFFIX = "a file without a suffix"
_OUTSIDE = "a link to outside the dataset's folder"
_NOWHERE = "a link to nothing"
_NOT_UTF8 = "its name is not UTF-8"


def one_form(name: str) -> str:
    """Return a name in the one Unicode form (NFC) that names are compared in; macOS writes another (NFD)."""
    return unicodedata.normalize("NFC", name)


def printable(name: str) -> str:
    """Return a path with its bytes that are no UTF-8 written out."""
    return name.encode("utf-8", "backslashreplace").decode()


def image_files(root: Path, besides: Sequence[Path] = ()) -> tuple[list[tuple[str, ...]], list[Excluded]]:
    """Return the images' paths as parts, and what was set aside; the folders `besides` are not entered.

    Hidden files, and notes beside a dataset's folders, are passed over without a word; placeholders of images that
    macOS moved into iCloud are not.
    """
    inside = os.path.realpath(root) + os.sep
    elsewhere = set(map(os.path.realpath, besides))
    found: list[tuple[str, ...]] = []
    excluded: list[Excluded] = []

    def unreadable(error: OSError) -> None:
        excluded.append(Excluded(printable(os.path.relpath(error.filename, root)), f"can't be read ({error.strerror})"))

    for folder, folders, names in os.walk(root, followlinks=True, onerror=unreadable):
        parts = Path(folder).relative_to(root).parts
        excluded += [
            Excluded(printable("/".join((*parts, name))), "in iCloud only")
            for name in sorted(names)
            if _IN_CLOUD.fullmatch(name) and Path(name.removesuffix(".icloud")).suffix.lower() in SUFFIXES
        ]
        names = [name for name in names if not name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        own = [name for name in names if _SYSTEM_FILES.fullmatch(name)]
        if parts and all(map(_SYSTEM_FOLDERS.fullmatch, folders)) and len(own) == len(names):
            excluded.append(Excluded("/".join(parts), "an empty folder"))  # but for what is hidden or the system's own
        excluded += [Excluded("/".join((*parts, name)), PASSED_OVER) for name in sorted(own) if parts]
        entered = []
        for name in sorted(folders):
            if _SYSTEM_FOLDERS.fullmatch(name):
                excluded += _passed_over(root, (*parts, name))
                continue
            if os.path.realpath(os.path.join(folder, name)) in elsewhere:
                continue
            reason = _bad_folder(root, (*parts, name), inside)
            if reason is None:
                entered.append(name)
            else:
                excluded.append(Excluded(printable("/".join((*parts, name))), reason))
        folders[:] = entered
        for name in sorted(names):
            if name in own or (not parts and Path(name).suffix.lower() not in SUFFIXES):
                continue  # notes and licences beside the folders
            reason = _bad_file(os.path.join(folder, name), inside)
            if reason is None:
                found.append((*parts, name))
            else:
                excluded.append(Excluded(printable("/".join((*parts, name))), reason))
    return found, excluded


def _passed_over(root: Path, parts: tuple[str, ...]) -> list[Excluded]:
    below = Path(*parts)
    files = [Path(folder, name) for folder, _, names in os.walk(root / below) for name in names]
    images = sorted(file.relative_to(root).as_posix() for file in files if file.suffix.lower() in SUFFIXES)
    return [Excluded(printable(image), PASSED_OVER) for image in images]


def _bad_folder(root: Path, parts: tuple[str, ...], inside: str) -> str | None:
    if printable(parts[-1]) != parts[-1]:
        return _NOT_UTF8
    if not os.path.islink(root.joinpath(*parts)):
        return None
    real = os.path.realpath(root.joinpath(*parts)) + os.sep
    if not real.startswith(inside):
        return _OUTSIDE
    above = (os.path.realpath(root.joinpath(*parts[:count])) + os.sep for count in range(len(parts)))
    return "a link to a folder that it is in" if any(folder.startswith(real) for folder in above) else None


def _bad_file(path: str, inside: str) -> str | None:
    suffix = os.path.splitext(path)[1]
    if printable(path) != path:
        return _NOT_UTF8
    if os.path.islink(path) and not os.path.exists(path):
        return _NOWHERE
    if os.path.islink(path) and not os.path.realpath(path).startswith(inside):
        return _OUTSIDE
    if suffix.lower() not in SUFFIXES:
        return f"not an image ({suffix})" if suffix else NO_SUFFIX
    return None if os.path.isfile(path) else "not a file"  # a pipe would be waited for
