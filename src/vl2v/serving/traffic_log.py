"""What the server remembers of live traffic: the network's outputs, and images only where that is wanted."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vl2v.deploy.drift import WINDOW, Drift, drift
from vl2v.deploy.prediction import Prediction
from vl2v.deploy.runtime import Exported
from vl2v.errors import ConfigError, DataError, RunError, StudentError
from vl2v.io import NEW, write_bytes
from vl2v.names import UNKNOWN

FORMAT = 1
_OURS = re.compile(r"[0-9a-f]{64}\.[a-z]{3,4}")
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
HALF = 128 * 2**20  # bytes of a log, after which another is begun; the one before stays

Rows = NDArray[np.float32]


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


class TrafficLog:
    """The latest outputs, and a log of all of them where one is wanted.

    Args:
        log: a file that lines are added to: time, prediction, and the output in half precision. At 128 MB it is renamed
            to NAME.1, replacing an older one, and a new one is begun.
        images: where the images themselves are saved, if their owner wants that.

    Raises:
        DataError: the log can't be written, or is another student's.
    """

    def __init__(self, student: Exported, log: Path | None = None, images: ImageLog | None = None) -> None:
        self.student = student
        self.images = images
        self._latest: deque[tuple[Rows, Prediction]] = deque(maxlen=WINDOW)
        self._path = log
        if log is not None and _older(log).is_file():  # it would be replaced one day
            with _reading(_older(log)) as opened:
                _check(opened.readline(), _older(log), student)
        self._log = None if log is None else _opened(log, student)

    def add(self, rows: Rows, predictions: Sequence[Prediction]) -> None:
        """Remember outputs [n, d] and the predictions that followed from them.

        A log that can't be written, as on a full disk, ends with a warning.
        """
        self._latest.extend(zip(rows, predictions, strict=True))
        if self._log is None:
            return
        now = round(time.time(), 3)
        half = np.clip(rows, -65504, 65504).astype("<f2")
        lines = [
            json.dumps(
                {"at": now, "label": prediction.label, "best": prediction.best, "out": base64.b64encode(row).decode()}
            )
            for row, prediction in zip(half, predictions, strict=True)
        ]
        try:
            self._log.write(("\n".join(lines) + "\n").encode())
            self._log.flush()
            if self._log.tell() > HALF:
                self._turn()
        except (OSError, DataError) as error:
            logging.getLogger(__name__).warning("the log ends here, serving continues: %s", error)
            self.close()

    def drift(self) -> Drift | None:
        """Return how far the latest traffic is from the training domains; None: nothing is known of these."""
        if "reference" not in self.student.card or not self._latest:
            return None
        rows, predictions = zip(*self._latest, strict=True)
        unknown = sum(prediction.label == UNKNOWN for prediction in predictions) / len(predictions)
        best = [prediction.best for prediction in predictions]
        sure = [prediction.probability for prediction in predictions]
        return drift(np.stack(rows), best, sure, unknown, self.student.card["reference"])

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            with suppress(OSError):  # what it holds back still can't be written
                self._log.close()
            self._log = None

    def _turn(self) -> None:
        """Put the log aside and begin a new one."""
        assert self._log is not None and self._path is not None
        self._log.close()
        self._path.replace(_older(self._path))
        self._log = _opened(self._path, self.student)


@dataclass(frozen=True)
class Traffic:
    """Live images of a log.

    Attributes:
        rows: the network's outputs [n, d].
        times: of the images, seconds since the epoch.
        broken: lines that can't be read: the server was killed while it wrote them.
    """

    rows: Rows
    times: list[float]
    labels: list[str]
    best: list[str]
    broken: int

    @property
    def span(self) -> tuple[str, str] | None:
        """When the first and the last of them came, local time; None: there are none."""
        ends = [datetime.fromtimestamp(at).astimezone() for at in (*self.times[:1], *self.times[-1:])]
        return (ends[0].isoformat(" ", "seconds"), ends[1].isoformat(" ", "seconds")) if ends else None


def read_log(path: Path, student: Exported, *, last: int = WINDOW) -> Traffic:
    """Return the latest images of a log and of the one before it.

    Raises:
        DataError: no such log, or another student's.
    """
    lines: deque[bytes] = deque(maxlen=last)
    older = _older(path)
    for file in (older, path) if older.is_file() else (path,):
        with _reading(file) as opened:
            _check(opened.readline(), file, student)
            lines.extend(opened)
    entries = [entry for entry in map(_entry, lines) if entry is not None]
    rows = np.stack([row for row, *_ in entries]) if entries else np.zeros((0, 1), np.float32)
    times = [at for _, at, _, _ in entries]
    labels, best = [label for _, _, label, _ in entries], [best for *_, best in entries]
    return Traffic(rows, times, labels, best, len(lines) - len(entries))


def owner(log: Path, students: Sequence[Exported]) -> Exported:
    """Return the one of some students whose log it is.

    Raises:
        DataError: no such log, or another student's.
    """
    with _reading(log) as opened:
        line = opened.readline()
    for student in students:
        if _header_of(line, log) == _header(student):
            return student
    raise DataError(f"{log}: another student's log; give the export that was served")


def monitor(log: Path, student: Exported, *, last: int = WINDOW) -> tuple[Traffic, Drift]:
    """Return the latest images of a log, and how far they are from what the student learned.

    Raises:
        DataError: no such log, or another student's.
        StudentError: the export doesn't say what the student learned.
    """
    if "reference" not in student.card:
        raise StudentError("this export has nothing that live traffic can be compared with; export again")
    traffic = read_log(log, student, last=last)
    unknown = traffic.labels.count(UNKNOWN) / max(len(traffic.labels), 1)
    sure = [one.probability for one in student.predictions(traffic.rows)] if len(traffic.rows) else []
    return traffic, drift(traffic.rows, traffic.best, sure, unknown, student.card["reference"])


def _entry(line: bytes) -> tuple[Rows, float, str, str] | None:
    try:
        entry = json.loads(line)
        row = np.frombuffer(base64.b64decode(entry["out"], validate=True), "<f2").astype(np.float32)
        return row, float(entry["at"]), str(entry["label"]), str(entry["best"])
    except (ValueError, KeyError, TypeError):
        return None


def _older(log: Path) -> Path:
    """Return where the log is that was full before this one."""
    return log.with_name(f"{log.name}.1")


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as opened:
            yield opened
    except FileNotFoundError:
        raise DataError(f"{path}: no such log; `vl2v serve --log {path}` writes one") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None


def _opened(path: Path, student: Exported) -> BinaryIO:
    try:
        opened = os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "ab+")
        opened.seek(0)
        first = opened.readline()
        if first:
            _check(first, path, student)
            opened.seek(-1, os.SEEK_END)
            if opened.read() != b"\n":
                opened.write(b"\n")  # what was cut off stays a line of its own
        else:
            opened.write(json.dumps(_header(student)).encode() + b"\n")
        opened.flush()
    except OSError as error:
        raise DataError(f"--log {path}: can't be written ({error.strerror})") from None
    return opened


def _header(student: Exported) -> dict[str, Any]:
    card = json.dumps(student.card, sort_keys=True).encode()
    return {"vl2v log": FORMAT, "student": hashlib.sha256(card).hexdigest()[:16]}


def _header_of(line: bytes, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("vl2v log") != FORMAT:
        raise DataError(f"{path}: not a log of `vl2v serve --log`")
    return header


def _check(line: bytes, path: Path, student: Exported) -> None:
    if _header_of(line, path) != _header(student):
        raise DataError(f"{path}: another student's log; give each student its own")
