"""Small real things that tests share: images on the disk, a recording of a teacher, quick settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest

from little import CLASSES, DOMAINS, draw, quick_settings, record

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

TOGETHER = ("tests/report/", "tests/serving/")  # folders whose files share what takes long to make
FIRST = (
    "tests/test_tutorials.py",
    "tests/benchmark/test_benchmark.py",
    "tests/training/test_devices.py",
    "tests/runs/test_methods.py",
    "tests/serving/",
    "tests/export/test_hub.py",
    "tests/export/test_device.py",
    "tests/export/test_choose.py",
    "tests/export/test_onnx.py",
    "tests/test_docs.py",
    "tests/report/",
    "tests/benchmark/test_odd_data.py",
    "tests/runs/test_cluster.py",
    "tests/runs/test_asking_less.py",
    "tests/vendor/test_vendor.py",
    "tests/system/test_faults.py",
    "tests/system/test_kill.py",
    "tests/system/test_paid.py",
)  # of what takes long, so that no process is left with it in the end


@pytest.fixture
def quick_retries() -> Iterator[None]:
    """Let a paid teacher's client retry without the waits between its attempts."""
    import stamina

    stamina.set_testing(True, attempts=8, cap=True)
    yield
    stamina.set_testing(False)


def whole(nodeid: str) -> str:
    """Return what one process does as a whole: a test's file, or its folder."""
    file = nodeid.partition("::")[0]
    return next((folder for folder in TOGETHER if file.startswith(folder)), file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where there are several processes, let what takes long come first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {name: place for place, name in enumerate(FIRST)}
        items.sort(key=lambda item: places.get(whole(item.nodeid), len(FIRST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return what gives out wholes. (`--dist loadgroup` gives out single tests: xdist 3.8 marks groups in names that
    pytest 9.2 doesn't read.)
    """
    from xdist.scheduler import LoadFileScheduling

    class Wholes(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return whole(nodeid)

    return Wholes(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def new_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep out what the user of this machine has in caches and settings; all processes share the new ones."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "home"
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("cache", "config", "data"):
            patch.setenv(f"XDG_{kind.upper()}_HOME", str(home / kind))
        yield


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of 3 domains x 3 classes x 12 images."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    rng = np.random.default_rng(0)
    for domain in DOMAINS:
        for name in CLASSES:
            (root / domain / name).mkdir(parents=True)
            for number in range(12):
                draw(name, domain, rng).save(root / domain / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def recording(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the recording of a teacher that was queried about all shapes; `worded`, beside it, has more texts."""
    folder = tmp_path_factory.mktemp("teacher")
    record(shapes, folder / "worded", worded=True)
    return record(shapes, folder / "recording")


@pytest.fixture
def quick(shapes: Path, recording: Path) -> dict[str, Any]:
    """Return settings of a run that takes a second or two."""
    return quick_settings(shapes, recording)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Yield one browser for all tests of a module: each loads its page anew."""
    from browser import chromium

    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
