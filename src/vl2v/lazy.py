"""Names of a package that are imported when they are first used: `import vl2v` alone is quick and small."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's `__getattr__`.

    Args:
        package: its name.
        homes: public name -> the module that it is in, with `:NAME` after it where it has another name there; none
            for a subpackage that can be called (`make_callable`). No other module of the package may have that name.
    """

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, inner = homes[name].partition(":")
        found = import_module(module)
        value = found if inner == "" and module == f"{package}.{name}" else getattr(found, inner or name)
        setattr(sys.modules[package], name, value)
        return value

    return getattr_


def make_callable(package: str, home: str) -> None:
    """Let a package be called as the function that it is named after: `vl2v.report("runs/a")`.

    The name stands for both, whichever is used first: Python gives a package's name to its module when it is imported.

    Args:
        package: its name.
        home: MODULE:NAME of the function, imported at the first call.
    """
    module, _, name = home.partition(":")

    class CallablePackage(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(import_module(module), name)(*args, **kwargs)

        @property
        def __signature__(self) -> Any:
            import inspect

            return inspect.signature(getattr(import_module(module), name))

    sys.modules[package].__class__ = CallablePackage
