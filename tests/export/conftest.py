"""One little student, trained once, and its exports, each made once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import vl2v
from once import made_once
from vl2v.export.formats import FORMATS
from vl2v.export.parity import Parity
from vl2v.export.student import export_student


@pytest.fixture(scope="session")
def run(trained: Callable[[str], vl2v.Run]) -> vl2v.Run:
    return trained("adip")


@pytest.fixture(scope="session")
def store(trained: Callable[[str], vl2v.Run]) -> Path:
    return trained("adip").folder.with_name("store")


class Made(NamedTuple):
    """An export, and how it compares with its student."""

    path: Path
    parity: Parity


@pytest.fixture(scope="session")
def made(
    trained: Callable[[str], vl2v.Run], store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Made]:
    """Return what exports the student, each way once for all tests."""

    def each(kind: str = "onnx", form: str = "closed", int8: bool = False, preprocess: str | None = None) -> Made:
        name = f"student{FORMATS[kind]}"

        def make(folder: Path) -> None:
            options: Any = {"form": form, "int8": int8, "preprocess": preprocess, "store": store}
            parity = export_student(trained("adip"), folder / name, kind, **options)
            (folder / "parity.json").write_text(json.dumps(asdict(parity)))

        folder = made_once(tmp_path_factory, f"export-{kind}-{form}-{int8}-{preprocess}", make)
        return Made(folder / name, Parity(**json.loads((folder / "parity.json").read_text())))

    return each


@pytest.fixture(scope="session")
def closed(made: Callable[..., Made]) -> Path:
    return made().path


@pytest.fixture(scope="session")
def outside(made: Callable[..., Made]) -> Path:
    return made(preprocess="outside").path


@pytest.fixture(scope="session")
def opened(made: Callable[..., Made]) -> Path:
    return made(form="open").path


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Yield an empty folder, and the address at which it is served."""
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *given: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
