"""Names of a package that are imported when they are first used: `import vl2v` alone is quick and small."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's `__getattr__`.

    Args:
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


_one_at_a_time = threading.Lock()


def import_lightly(*modules: str) -> None:
    """Import modules of timm or open_clip without PyTorch's compiler, which doubles the time until a run's first step.

    They use a few files of torchvision, whose `__init__` imports all of its models, and with them the compiler. What
    they import here are these very files, from packages whose `__init__` isn't run (see `_stand_ins`); whoever imports
    torchvision afterwards gets it whole. Where it is imported already, or a version of theirs needs more of it, they
    are imported as ever. Only a thread of someone else that imports torchvision within this second would find too
    little of it; no thread of ours imports it.

    Args:
        modules: in the order in which they are imported.
    """
    with _one_at_a_time:
        before = set(sys.modules)
        if "torchvision" not in before:
            try:
                with _stand_ins():
                    for name in modules:
                        import_module(name)
                return
            except (ImportError, AttributeError):
                begun = {"torchvision", *(name.partition(".")[0] for name in modules)}
                for name in sys.modules.keys() - before:
                    if name.partition(".")[0] in begun:
                        del sys.modules[name]
        for name in modules:
            import_module(name)


class _Later:
    """A class or function of a module that is imported when it is used."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _found(self) -> Any:
        return getattr(import_module(self._module), self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._found()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._found(), name)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self._found())


def _lazy_module(name: str) -> ModuleType:
    def found(attribute: str) -> _Later:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return _Later(name, attribute)

    module = ModuleType(name)
    module.__path__ = []
    module.__getattr__ = found  # type: ignore[method-assign]
    return module


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Find torchvision's files without running the `__init__` of torchvision and torchvision.ops.

    Its models aren't found, nor is wandb, both of which timm does without, and a function that must not be compiled
    isn't marked as such, since marking imports the compiler. What open_clip takes from transformers, for text towers
    that few models have, is imported when it is used.
    """
    import torch.compiler

    spec = find_spec("torchvision")
    (folder,) = (spec and spec.submodule_search_locations) or [""]
    stand_ins: dict[str, ModuleType | None] = {"torchvision.models": None}
    if "wandb" not in sys.modules:
        stand_ins["wandb"] = None
    if "transformers" not in sys.modules and find_spec("transformers"):
        stand_ins |= {name: _lazy_module(name) for name in ("transformers", "transformers.modeling_outputs")}
    for name in ("torchvision", "torchvision.ops"):
        stand_ins[name] = package = ModuleType(name)
        package.__spec__ = ModuleSpec(name, None, is_package=True)
        package.__path__ = [folder + name.removeprefix("torchvision").replace(".", "/")]
    sys.modules.update(stand_ins)  # type: ignore[arg-type]  # None: not found
    marking = torch.compiler.disable
    torch.compiler.disable = lambda function=None, **_: function or (lambda marked: marked)
    try:
        yield
    finally:
        torch.compiler.disable = marking
        for name in stand_ins:
            sys.modules.pop(name, None)
