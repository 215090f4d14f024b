"""Files that are there whole or not at all: replaced in one step and durably, with checksums and locks.

The only module that replaces a file. What it has written survives a crash and a power cut: the new
content is on the disk before it takes the file's name, and the name before anything that it replaces is deleted.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vl2v.errors import RunError, VL2VError, writing

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

T = TypeVar("T")

NEW = ".new"  # ends the name of a file that is being written


@contextmanager
def replacing(path: Path, error: type[VL2VError] = RunError, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary file's path; once the block has written it, it replaces `path`, durably.

    If the block fails, `path` is as it was. Writers of one file at a time have to be one: see `locked`.

    Args:
        path: of the file; its folder is made if it isn't there.
        error: what is raised where the disk is full or may not be written to.
        durable: whether to wait for the disk; what is quickly made again needn't.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a" / "notes.txt"
        >>> with replacing(file) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> file.read_text()
        'whole'
    """
    temporary = path.with_name(path.name + NEW)
    with writing(path, error):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if durable:
                sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)


def write_bytes(path: Path, data: bytes, error: type[VL2VError] = RunError, *, durable: bool = True) -> None:
    """Write a file in one step; see `replacing`."""
    with replacing(path, error, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str, error: type[VL2VError] = RunError) -> None:
    """Write a text file (UTF-8) in one step, durably; see `replacing`."""
    write_bytes(path, text.encode(), error)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None, error: type[VL2VError] = RunError
) -> None:
    """Write a safetensors file in one step, durably; see `replacing`. Tensors that share memory are written apart."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    with replacing(path, error) as temporary:
        try:
            save_file(apart, temporary, metadata)
        except SafetensorError as failure:  # what it says of a full disk
            raise error(f"{path}: can't be written ({failure}); free some space, and run it again") from None


_ANOTHER = "free some space, or let TMPDIR name another folder, then give the same command again"


def temporary_directory() -> tempfile.TemporaryDirectory[str]:
    """Return a new folder that is removed with this object.

    Raises:
        RunError: there is no folder for temporary files that can be written to.
    """
    try:
        return tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    except OSError as error:
        raise RunError(f"no temporary folder can be written to ({error.strerror}); {_ANOTHER}") from None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder, removed afterwards, for files that libraries write.

    Each of these has words of its own for a full disk, and some have none: they write half a file. So when the block
    fails, whatever the error, and the folder can't take 64 MB more, then that is what is raised.

    Raises:
        RunError: there is no folder for temporary files that can be written to, or its disk is full.
    """
    with temporary_directory() as name:
        try:
            yield Path(name)
        except RunError:
            raise
        except Exception:
            try:
                Path(name, "probe").write_bytes(bytes(2**26))
            except OSError as error:
                raise RunError(f"{name}: temporary files can't be written ({error.strerror}); {_ANOTHER}") from None
            raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(arrays: Mapping[str, NDArray[Any]], beside: str) -> str:
    """Return the CRC-32 of contiguous arrays, their names, and the text that stands beside them."""
    crc = zlib.crc32(beside.encode())
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name].data, zlib.crc32(name.encode(), crc))
    return str(crc)


@contextmanager
def locked(file: Path, *, wait: bool = True, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock between processes while the block lasts; the operating system frees that of a process that dies.

    Args:
        file: of the lock; its folder is made if it isn't there, the file stays.
        wait: whether to wait for another process that holds it.
        waiting: called once, before the wait, if there is one.

    Raises:
        filelock.Timeout: another process holds it, and `wait` is false.
    """
    from filelock import FileLock, Timeout

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise
        if waiting is not None:
            waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


WAITS = (0.1, 0.5, 2.0)  # seconds before a file is read again: a network disk may be back by then


def retried(read: Callable[[], T], *errors: type[Exception]) -> T:
    """Return what `read` returns; called again a few times, with pauses, when it raises one of these errors."""
    for wait in WAITS:
        try:
            return read()
        except errors:
            time.sleep(wait)
    return read()


def read_json(path: Path, otherwise: Any = None) -> Any:
    """Return what a JSON file says; `otherwise` where there is none.

    Raises:
        RunError: it can't be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return otherwise
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: can't be read ({error}); delete it, and give the same command again") from None
