"""The latest images of live traffic, in a folder, where that is wanted: what `vl2v adapt --from` learns from."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from vl2v.errors import ConfigError, RunError
from vl2v.io import NEW, write_bytes

_OURS = re.compile(r"[0-9a-f]{64}\.[a-z]{3,4}")
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}


class ImageLog:
    """A folder of the latest images that were predicted, each once, by the SHA-256 of its bytes.

    Files are readable by their owner alone. The oldest are deleted when the folder would become too large.

    Args:
        folder: that is new, empty, or an earlier server's.
        most: bytes of all images.

    Raises:
        ConfigError: the folder holds other files, or can't be written to.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for unfinished in folder.glob(f"*{NEW}"):  # of a server that was killed
                if _OURS.fullmatch(unfinished.name.removesuffix(NEW)):
                    unfinished.unlink()
            entries = list(folder.iterdir())
            foreign = [entry.name for entry in entries if not _OURS.fullmatch(entry.name)]
            if foreign:
                raise ConfigError(
                    f"--log-images {folder}: holds {foreign[0]}; "
                    "give it a folder of its own: old files there are deleted"
                )
            found = sorted((entry.stat().st_mtime_ns, entry.name, entry.stat().st_size) for entry in entries)
        except OSError as error:
            raise ConfigError(f"--log-images {folder}: can't be written ({error.strerror})") from None
        self._sizes = OrderedDict((name, size) for _, name, size in found)
        self._bytes = sum(self._sizes.values())
        self._failed = False
        self._lock = threading.Lock()
        self._tidy()

    def add(self, images: Sequence[bytes]) -> None:
        """Save image files that aren't there yet; a folder that can't be written, as on a full disk, ends the log."""
        with self._lock:
            self._add(images)

    def _add(self, images: Sequence[bytes]) -> None:
        for data in images if not self._failed else ():
            name = hashlib.sha256(data).hexdigest() + _suffix(data)
            if name in self._sizes or len(data) > self.most:
                continue
            try:
                write_bytes(self.folder / name, data, durable=False)
                os.chmod(self.folder / name, 0o600)
            except (RunError, OSError) as error:
                self._failed = True
                logging.getLogger(__name__).warning("no more images are saved, serving continues: %s", error)
                return
            self._sizes[name] = len(data)
            self._bytes += len(data)
            self._tidy()

    def _tidy(self) -> None:
        while self._bytes > self.most:
            name, size = self._sizes.popitem(last=False)
            with suppress(OSError):
                (self.folder / name).unlink()
            self._bytes -= size


def _suffix(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _SUFFIXES.get(image.format or "", ".png")
    except OSError:
        return ".png"
