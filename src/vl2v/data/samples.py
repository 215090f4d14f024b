"""What comes in the package for trying things out: IconDG, a small multi-domain benchmark, and a tiny VLM."""

from __future__ import annotations

import hashlib
import os
import tempfile
from importlib.resources import files
from pathlib import Path

from vl2v.data.archives import unpack
from vl2v.errors import DataError

_ATTRIBUTION = "ATTRIBUTION.csv"


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
        _unpack(archive, root)
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


def _unpack(archive: Path, root: Path) -> None:
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
