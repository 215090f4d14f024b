"""An exported student, and servers of it on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import vl2v
from loopback import Loopback
from once import copied_once
from vl2v.deploy.runtime import Exported, load
from vl2v.export.student import export_student
from vl2v.serving.app import create_app
from vl2v.serving.service import TeacherClient
from vl2v.serving.traffic_log import ImageLog, TrafficLog
from vl2v.teachers import open_teacher
from vl2v.teachers.protocol import Teacher


@pytest.fixture(scope="session")
def run(trained: Callable[[str], vl2v.Run], tmp_path_factory: pytest.TempPathFactory) -> vl2v.Run:
    """Return a run with exports in both forms, its store beside it."""

    def make(folder: Path) -> None:
        shutil.copytree(trained("adip").folder.parent, folder, dirs_exist_ok=True)
        made = vl2v.Run(folder / "adip")
        export_student(made, made.folder / "student.onnx", form="open", store=folder / "store")
        export_student(made, made.folder / "closed.onnx", store=folder / "store")

    return vl2v.Run(copied_once(tmp_path_factory, "served", make) / "adip")


@pytest.fixture(scope="session")
def opened(run: vl2v.Run) -> Path:
    """Return the export in the open form."""
    return run.folder / "student.onnx"


@pytest.fixture(scope="session")
def closed(run: vl2v.Run) -> Path:
    """Return the export in the closed form."""
    return run.folder / "closed.onnx"


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
        source = open_teacher(teacher) if isinstance(teacher, str) else teacher
        teacher_client = TeacherClient(student, self.store, source, budget)
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
