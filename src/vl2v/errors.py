"""Errors that a person can act on: one line, what is wrong and what to do."""

from __future__ import annotations

import errno
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


class VL2VError(Exception):
    """A mistake in the settings or the data; the command line prints it and exits with 2."""


class ConfigError(VL2VError):
    """A setting that is unknown, missing or out of range."""


class DataError(VL2VError):
    """Images, labels, domains or manifests that cannot be used as they are."""


class TeacherError(VL2VError):
    """A teacher that can't be opened, or can't embed what it is queried with."""


class StoreError(VL2VError):
    """An embedding store that is corrupt, unwritable, full, or lacks an embedding."""


class StudentError(VL2VError):
    """A student that cannot be built, or whose weights do not fit."""


class RunError(VL2VError):
    """A run folder that cannot be started, resumed or read."""


class HubError(VL2VError):
    """A repository of the Hugging Face hub that can't be found, reached, read or written."""


class MissingExtra(VL2VError):
    """An optional dependency that is not installed."""


class VL2VWarning(UserWarning):
    """A warning; the command line prints it as a line and continues."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk, or a share of it, that is full."""


@contextmanager
def writing(path: Path, kind: type[VL2VError]) -> Iterator[None]:
    """Raise `kind` if the block can't write the file: a full disk, a folder that isn't one or may not be written to."""
    try:
        yield
    except OSError as error:
        what = "free some space, then give the same command again" if error.errno in FULL else "choose another folder"
        raise kind(f"{path}: can't be written ({error.strerror or error}); {what}") from None


def remedy(error: OSError) -> str:
    """Return what to do about a file that can't be read or written, of which nothing else is known."""
    if error.errno in FULL:
        return "free some space, then give the same command again"
    if isinstance(error, PermissionError):
        return "check its permissions"
    return "check that it is there and can be read, then give the same command again"


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return "did you mean X?" of the known name that is nearest to one; `otherwise` where none is near."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def reason(error: BaseException) -> str:
    """Return the first line of what an error says, or what kind it is of."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def need_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        extra: what brings it; "" for what vl2v itself depends on.

    Raises:
        MissingExtra: it, or something that it needs, is not installed, or can't be loaded; the message names what is
            missing and what to install.
    """
    install = f"pip install 'vl2v[{extra}]'" if extra else "pip install vl2v"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        foreign = missing.split(".")[0] != module.split(".")[0]
        needs = f", which {module.split('.')[0]} needs," if foreign else ""
        raise MissingExtra(f"{missing}{needs} is not installed: {install}") from None
    except (ImportError, OSError) as error:  # a library that lacks another one of the system, or is of another version
        why = " ".join(str(error).split())
        raise MissingExtra(f"{module} can't be loaded ({why}); install it again: {install}") from None
