"""What comes in the package for trying things out: IconDG, a small multi-domain benchmark, and a tiny VLM."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import tempfile
import zipfile
from importlib.resources import files
from pathlib import Path

from vl2v.errors import DataError

MAX_MEMBERS = 20_000
MAX_BYTES = 100_000_000
_ATTRIBUTION = "ATTRIBUTION.csv"


def icondg(root: Path | None = None) -> Path:
    """Return IconDG's folder (domain/class/picture), unpacked at the first call.

    The folder appears whole or not at all, so that processes may ask for it at the same time.

    Args:
        root: where to unpack it; without it, a folder in the user's cache that is named by the archive's hash.

    Raises:
        DataError: the archive is missing or not what it should be, `root` holds something else, or the disk refuses.
    """
    archive = files("vl2v").joinpath("assets", "icondg.zip")
    if not archive.is_file():
        raise DataError("IconDG is not in this installation: assets/icondg.zip is missing; reinstall vl2v")
    data = archive.read_bytes()
    if root is None:
        from platformdirs import user_cache_dir  # here: an exported student runs without it

        digest = hashlib.sha256(data).hexdigest()
        root = Path(user_cache_dir("vl2v", appauthor=False)) / f"icondg-{digest[:12]}"
    if not (root / _ATTRIBUTION).is_file():
        _unpack(data, root)
    return root


def tiny_vlm() -> Path:
    """Return the folder of the tiny VLM, an open_clip model (configuration, weights, tokenizer).

    Raises:
        DataError: this installation has none.
    """
    folder = Path(str(files("vl2v").joinpath("assets", "tiny-vlm")))
    if not folder.is_dir():
        raise DataError("the tiny VLM is not in this installation: assets/tiny-vlm is missing; reinstall vl2v")
    return folder


def _unpack(data: bytes, root: Path) -> None:
    """Unpack an archive beside `root`, then move it there in one step."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
            whole = Path(temporary) / root.name
            whole.mkdir()
            _extract(data, whole)
            try:
                os.replace(whole, root)
            except OSError:
                # Another process was faster: its folder is as good as ours.
                if not (root / _ATTRIBUTION).is_file():
                    raise
    except OSError as error:
        raise DataError(
            f"IconDG can't be unpacked to {root} ({error.strerror}); give it an empty, writable folder"
        ) from None


def _extract(data: bytes, folder: Path) -> None:
    """Write an archive's files below a folder, after a look at every name, kind and size."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_BYTES:
                raise DataError("IconDG's archive holds more than it should; reinstall vl2v")
            for member in members:
                target = _inside(folder, member)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("xb") as sink:
                    shutil.copyfileobj(source, sink)
    except zipfile.BadZipFile as error:
        raise DataError(f"IconDG's archive is damaged ({error}); reinstall vl2v") from None


def _inside(folder: Path, member: zipfile.ZipInfo) -> Path:
    """Return where a member goes; only regular files strictly inside the folder are let through."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    target = (folder / member.filename).resolve()
    if kind not in (0, stat.S_IFREG) or member.is_dir() or folder.resolve() not in target.parents:
        raise DataError(f"IconDG's archive holds {member.filename!r}, which it should not; reinstall vl2v")
    return target
