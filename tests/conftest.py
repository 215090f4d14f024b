"""Small real things that tests share: images on the disk, a recording of a teacher, quick settings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from filelock import FileLock

from little import draw_all, quick_settings, record
from once import copied_once, made_once, shared_base
from vl2v.runs.folder import Run

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SECONDS: dict[str, float] = json.loads(Path(__file__).with_name("seconds.json").read_text())  # by file, measured


@pytest.fixture
def quick_retries() -> Iterator[None]:
    """Let a paid teacher's client retry without the waits between its attempts."""
    import stamina

    stamina.set_testing(True, attempts=8, cap=True)
    yield
    stamina.set_testing(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where there are several processes, let what takes long come first, so that none is left with it in the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: -SECONDS.get(item.nodeid.partition("::")[0].removeprefix("tests/"), 0))


@pytest.fixture(scope="session")
def quick_python() -> Iterator[str]:
    """Return a program that stands for Python: what it starts has torch and what belongs to it imported already."""
    from forks import quick_programs

    with quick_programs() as folder:
        yield str(folder / "quick-python")


@pytest.fixture(scope="session", autouse=True)
def new_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep out what the user of this machine has in caches and settings; all processes share the new ones."""
    home = shared_base(tmp_path_factory) / "home"
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("cache", "config", "data"):
            patch.setenv(f"XDG_{kind.upper()}_HOME", str(home / kind))
        yield


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of 3 domains x 3 classes x 12 images."""
    return made_once(tmp_path_factory, "shapes", draw_all)


@pytest.fixture(scope="session")
def recording(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the recording of a teacher that was queried about all shapes; `worded`, beside it, has more texts."""

    def make(folder: Path) -> None:
        record(shapes, folder / "worded", worded=True)
        record(shapes, folder / "recording")

    return made_once(tmp_path_factory, "teacher", make) / "recording"


@pytest.fixture
def quick(shapes: Path, recording: Path) -> dict[str, Any]:
    """Return settings of a run that takes a second or two."""
    return quick_settings(shapes, recording)


@pytest.fixture(scope="session")
def trained(shapes: Path, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Return what gives a run of a method with `quick_settings`, its store beside it: trained once for all tests."""
    from vl2v.runs.train import distill

    def run(method: str = "adip") -> Run:
        def make(folder: Path) -> None:
            distill(quick_settings(shapes, recording, method), folder / method, store=folder / "store")

        return Run(copied_once(tmp_path_factory, f"trained-{method}", make) / method)

    return run


@pytest.fixture(scope="session")
def tiny(shapes: Path) -> dict[str, Any]:
    """Return settings of what queries the smallest VLM about the shapes."""
    return {"data": {"path": str(shapes)}, "teacher": {"spec": "tiny", "precision": "fp32"}}


@pytest.fixture(scope="session")
def embedded(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the store that one process fills with them."""
    from vl2v.runs.query import embed

    def make(folder: Path) -> None:
        assert embed(tiny, store=folder).plan.queries == 108 + 3

    return copied_once(tmp_path_factory, "embedded", make)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Yield one browser for all tests of a module: each loads its page anew."""
    from browser import chromium

    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Return the folder of what runs exports in Node and in a browser, installed where npm is."""
    folder = Path(__file__).with_name("node")
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no Node.js with npm")
    with FileLock(folder / ".installing"):
        installed, wanted = folder / "node_modules" / ".package-lock.json", folder / "package-lock.json"
        if not installed.is_file() or installed.stat().st_mtime < wanted.stat().st_mtime:
            words = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"npm can't install: {done.stderr.strip().splitlines()[-1]}")
    return folder / "node_modules"


@pytest.fixture(scope="session")
def axe(node_modules: Path) -> str:
    """Return the script that finds what is not accessible in a page."""
    return (node_modules / "axe-core" / "axe.min.js").read_text("utf-8")
