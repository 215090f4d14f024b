"""Methods by name: those of this package, of others (entry point `vl2v.methods`), and of a person's own file."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from vl2v.config import RunConfig, Section, explained
from vl2v.errors import ConfigError
from vl2v.methods.base import Task

T = TypeVar("T", bound=type[Task])

LOOP = 3  # raised when what all methods share trains or measures differently: batches, augmentation, averaging
RENAMED = {"vl2v": "adip-plus"}
METHODS: dict[str, type[Task]] = {}
_FILES = (
    *("zero_shot", "adip", "adip_plus", "sd", "erm", "kd", "fd", "rise", "miro", "mixup", "coral", "sam", "soup"),
    *("wise_ft", "clipood"),
)


def register(name: str) -> Callable[[T], T]:
    """Return a decorator that registers a method under a name.

    Examples:
        >>> from vl2v.methods import METHODS, Task, register
        >>> @register("my-method")
        ... class MyMethod(Task):
        ...     title = "what it does in a few words"
        >>> METHODS.pop("my-method").name
        'my-method'
    """

    def registered(task: T) -> T:
        task.name = name
        METHODS[name] = task
        return task

    return registered


@cache
def load_builtin() -> None:
    """Import the methods of this package, in the order of lists, and those that other packages announce."""
    for file in _FILES:
        importlib.import_module(f"vl2v.methods.{file}")
    for point in entry_points(group="vl2v.methods"):
        register(point.name)(_checked(point.load(), f"entry point {point.name} of vl2v.methods"))


def find_method(name: str) -> type[Task]:
    """Return a method by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in METHODS:
        return METHODS[name]
    if name in RENAMED:
        raise ConfigError(f"method {name!r}: is called {RENAMED[name]} now; use --method {RENAMED[name]}")
    if ":" in name:
        raise ConfigError(f"method {name!r}: its file isn't loaded; files are loaded by `vl2v distill --method` alone")
    close = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(METHODS)}"
    raise ConfigError(f"method {name!r}: unknown; {hint}")


def load_method(name: str) -> str:
    """Return a method's name, after its file is loaded where it is "path/to/file.py:CLASS".

    A file is code: only a name that a person gave is to come here, never one that a run folder has.

    Raises:
        ConfigError: no such file or class, or not a method.
    """
    path, colon, attribute = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        return name
    file = Path(path).expanduser().resolve()
    full = f"{file}:{attribute}"
    if full in METHODS:
        return full
    spec = spec_from_file_location(f"vl2v_method_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"--method {name}: no such file")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"--method {name}: the file can't be loaded: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise ConfigError(f"--method {name}: the file has no {attribute}")
    register(full)(_checked(getattr(module, attribute), f"--method {name}"))
    return full


def _checked(found: object, what: str) -> type[Task]:
    if not isinstance(found, type) or not issubclass(found, Task):
        raise ConfigError(f"{what}: not a method: a method is a subclass of vl2v.methods.Task")
    return found


def own_settings(task: type[Task], given: Mapping[str, Any]) -> Section:
    """Return a method's own settings, checked.

    Raises:
        ConfigError: names every setting that the method doesn't have, or a value out of range.
    """
    names = [info.alias or name for name, info in task.Settings.model_fields.items()]
    foreign = [key for key in given if key not in names]
    if foreign:
        has = f"it has {', '.join(f'loss.{name}' for name in names)}" if names else "it has none of its own"
        raise ConfigError(
            "; ".join(f"loss.{key}: method {task.name} has no such setting" for key in foreign) + f"; {has}"
        )
    try:
        return task.Settings.model_validate(dict(given))
    except ValidationError as error:
        raise ConfigError(explained(error, "loss.")) from None


def task_of(config: RunConfig) -> Task:
    """Return a run's method, as its settings make it.

    Raises:
        ConfigError: there is none of that name, or settings that it doesn't have.
    """
    task = find_method(config.method)
    return task(own_settings(task, config.loss))


def version_of(name: str) -> str:
    """Return the version of a method and of the loop; results of different ones don't stand beside each other."""
    return f"{LOOP}.{find_method(name).version}"
