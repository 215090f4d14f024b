"""The examples in docstrings run, and every public name has one."""

from __future__ import annotations

import doctest
import inspect
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import vl2v
from little import quick_settings

SOURCE = Path(vl2v.__file__).parent
MODULES = sorted(
    ".".join(("vl2v", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    for file in SOURCE.rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def folder(shapes: Path, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder that the examples run in: images, a recorded teacher beside them, and a finished run."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(shapes, folder / "images")
    shutil.copytree(recording, folder / "vendor")
    vl2v.distill(quick_settings(folder / "images", folder / "vendor"), folder / "runs" / "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name: str, folder: Path) -> None:
    assert not doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE).failed


@pytest.mark.parametrize("name", vl2v.__all__)
def test_every_public_name_has_an_example_and_a_signature(name: str) -> None:
    found = getattr(vl2v, name)
    assert inspect.signature(found).parameters
    if not inspect.ismodule(found):  # a package that is called as a function has it where the function is
        assert ">>> " in (inspect.getdoc(found) or ""), f"{name} has no example"


def test_a_package_that_is_called_is_a_function_whichever_is_imported_first(folder: Path) -> None:
    import vl2v.report.run

    assert vl2v.report("runs/a", "page.html") == Path("page.html") and inspect.ismodule(vl2v.report.run)
