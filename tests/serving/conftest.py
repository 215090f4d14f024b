"""An exported student, and servers of it on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import vl2v
from little import quick_settings
from loopback import Loopback
from vl2v.deploy.runtime import Exported, load
from vl2v.export.student import export_student
from vl2v.serving.app import create_app
from vl2v.serving.image_log import ImageLog
from vl2v.serving.teacher_client import TeacherClient
from vl2v.serving.traffic_log import TrafficLog
from vl2v.teachers import open_teacher
from vl2v.teachers.protocol import Teacher


@pytest.fixture(scope="session")
def run(shapes: Path, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> vl2v.Run:
    """Return a run with an export in the open form, its store beside it."""
    folder = tmp_path_factory.mktemp("served")
    made = vl2v.distill(quick_settings(shapes, recording), folder / "run", store=folder / "store")
    export_student(made, made.folder / "student.onnx", form="open", store=folder / "store")
    return made


@pytest.fixture(scope="session")
def opened(run: vl2v.Run) -> Path:
    """Return the export in the open form."""
    return run.folder / "student.onnx"


@pytest.fixture(scope="session")
def closed(run: vl2v.Run) -> Path:
    """Return the export in the closed form."""
    file = run.folder / "closed.onnx"
    export_student(run, file, store=run.folder.with_name("store"))
    return file


@pytest.fixture(scope="session")
def image(shapes: Path) -> bytes:
    """Return an image file's bytes."""
    return (shapes / "paint" / "ball" / "00.png").read_bytes()


http = httpx2.Client(timeout=120, limits=httpx2.Limits(max_keepalive_connections=0))  # patient, and without a memory


class Servers:
    """Starts servers on loopback."""

    def __init__(self, opened: Path, store: Path) -> None:
        self.opened = opened
        self.store = store
        self.running: list[Loopback] = []

    def __call__(
        self,
        student: Path | Exported | None = None,
        teacher: Teacher | str | None = None,
        budget: float = 0,
        log: Path | None = None,
        images: ImageLog | None = None,
        **more: Any,
    ) -> str:
        """Start a server and return its address."""
        student = student if isinstance(student, Exported) else load(student or self.opened, threads=1)
        asked = open_teacher(teacher) if isinstance(teacher, str) else teacher
        teacher_client = TeacherClient(student, self.store, asked, budget)
        self.running.append(Loopback(create_app(student, teacher_client, TrafficLog(student, log, images), **more)))
        return self.running[-1].url

    def stop(self) -> None:
        """Stop all of them."""
        while self.running:
            self.running.pop().stop()


@pytest.fixture
def served(opened: Path, tmp_path: Path) -> Iterator[Servers]:
    """Return what starts servers; they are stopped in the end."""
    servers = Servers(opened, tmp_path / "store")
    yield servers
    servers.stop()
