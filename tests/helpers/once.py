"""What takes long to make is made by one of the test processes, for all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

Make = Callable[[Path], object]
"""Fills a folder."""


def shared_base(factory: pytest.TempPathFactory) -> Path:
    """Return the temporary folder that all processes of a test run have in common."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(factory: pytest.TempPathFactory, name: str, make: Make) -> Path:
    """Return a folder that the first process fills that wants it; the others wait. Nobody changes what is in it."""
    folder = shared_base(factory) / "made" / name
    folder.parent.mkdir(exist_ok=True)
    done = folder.with_name(f"{name}.done")
    with FileLock(folder.with_name(f"{name}.lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed halfway
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def copied_once(factory: pytest.TempPathFactory, name: str, make: Make) -> Path:
    """Return this process's copy of such a folder: while a database is open, files beside it come and go."""
    folder = factory.getbasetemp() / "copied" / name
    if not folder.exists():
        shutil.copytree(made_once(factory, name, make), folder)
    return folder
