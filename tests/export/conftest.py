"""One little student, trained once, and its ONNX exports."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

import vl2v
from little import quick_settings
from vl2v.export.student import export_student


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def run(shapes: Path, recording: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> vl2v.Run:
    folder = tmp_path_factory.mktemp("runs") / "adip"
    return vl2v.distill(quick_settings(shapes, recording), folder, store=store)


@pytest.fixture(scope="session")
def closed(run: vl2v.Run, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("closed") / "student.onnx"
    parity = export_student(run, file, store=store)
    assert parity.same == 1 and parity.difference <= 1e-4 and set(parity.accuracy) == {"chalk", "ink"}
    return file


@pytest.fixture(scope="session")
def outside(run: vl2v.Run, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("outside") / "student.onnx"
    export_student(run, file, preprocess="outside", store=store)
    return file


@pytest.fixture(scope="session")
def opened(run: vl2v.Run, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("open") / "student.onnx"
    export_student(run, file, form="open", store=store)
    return file


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Return the folder of what runs exports in Node and in a browser, installed where npm is."""
    folder = Path(__file__).parents[1] / "node"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no Node.js with npm")
    with FileLock(folder / ".installing"):
        if not (folder / "node_modules" / ".package-lock.json").is_file():
            words = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"npm can't install: {done.stderr.strip().splitlines()[-1]}")
    return folder / "node_modules"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Yield an empty folder, and the address at which it is served."""
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *given: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
