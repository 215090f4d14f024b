"""Which modules of vl2v one command goes through: those of which it calls a function; importing them doesn't count.

    vl2v data sample --out icondg
    python benchmarks/modules.py distill --data icondg --teacher tiny --target outline --image-size 64 \\
        --set stages.align.steps=2 --set stages.distill.steps=2 --set data.workers=0 --out runs/modules

Prints the modules by package, and their number.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import vl2v
from vl2v.cli import main

SOURCE = f"{Path(vl2v.__file__).parent}/"
entered: set[str] = set()


def note(frame: FrameType | None, event: str, _: Any) -> None:
    """Note the file of a function of vl2v that is called, if no module is being imported meanwhile."""
    assert frame is not None
    file = frame.f_code.co_filename
    if event != "call" or file in entered or not file.startswith(SOURCE):
        return
    while frame is not None:
        if frame.f_code.co_filename.startswith(SOURCE) and not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return  # the body of a module or of a class
        frame = frame.f_back
    entered.add(file)


def show() -> None:
    """Print what was entered."""
    packages: dict[str, list[str]] = defaultdict(list)
    for file in sorted(file.removeprefix(SOURCE).removesuffix(".py") for file in entered):
        package, _, module = file.rpartition("/")
        packages[package or "."].append(module)
    for package, modules in packages.items():
        print(f"{package}: {', '.join(modules)}")
    print(f"{len(entered)} modules in {len(packages)} packages")


if __name__ == "__main__":
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        main()
    finally:
        sys.setprofile(None)
        show()
