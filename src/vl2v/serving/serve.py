"""`vl2v serve`: a student on a port."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vl2v.deploy.runtime import Exported, exports_in, load, load_current
from vl2v.errors import ConfigError, StudentError, need_extra
from vl2v.privacy import read_secret
from vl2v.serving.traffic_log import ImageLog, TrafficLog
from vl2v.web.server import check_host, freeze_gc, listen

if TYPE_CHECKING:
    from fastapi import FastAPI

KEY = "VL2V_SERVE_KEY"
KEY_LENGTH, KEY_SIGNS = 16, 8
NEEDED = ("uvicorn", "httptools", "fastapi", "prometheus_client", "python_multipart")


def to_serve(path: Path, *, open_form: bool) -> list[tuple[Path, str]]:
    """Return the export that is to be served, and after it those that a run folder has besides; each with its kind.

    Args:
        path: an export, or a run folder.
        open_form: whether one in the open form goes before others.

    Raises:
        StudentError: there is none, or one is of other classes than the run's student has by now.
    """
    classes = _classes(path / "student" / "student.json")
    files = exports_in(path)
    found = [(file, load(file, threads=1) if classes is None else load_current(file, classes)) for file in files]
    found.sort(key=lambda each: open_form and each[1].card["form"] != "open")
    return [(file, student.kind) for file, student in found]


def _classes(card: Path) -> list[str] | None:
    """Return the classes of a run's student, read without its weights; None: there is none."""
    try:
        return list(json.loads(card.read_text(encoding="utf-8"))["classes"]) if card.is_file() else None
    except (OSError, ValueError, LookupError, TypeError):
        raise StudentError(f"{card}: corrupt; train the student again, or give the export's file") from None


def serve(
    file: Path,
    *,
    teacher: str | None = None,
    budget: float = 0,
    store: Path | None = None,
    log: Path | None = None,
    log_images: Path | None = None,
    log_images_mb: int = 1024,
    origins: Sequence[str] = (),
    name: str = "student",
    host: str = "127.0.0.1",
    port: int = 8080,
    announce: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests that were accepted are answered first.

    Clients need the key that the environment holds as VL2V_SERVE_KEY, or the file that VL2V_SERVE_KEY_FILE names.

    Args:
        file: an export.
        teacher: a teacher's spec, for new classes and its own predictions; the one that the student learned from.
        budget: lifetime spending limit of this store for a paid teacher, in the vendor's currency.
        store: of the teacher's embeddings; by default the one that all runs share.
        log: a file to which the network's outputs are added.
        log_images: a folder in which the images are saved that are predicted; by default none is.
        log_images_mb: megabytes of all of them; the oldest make way.
        origins: of pages elsewhere that may send requests from a browser.
        name: of the model.
        host: to listen on.
        port: to listen on; 0 takes a free one.
        announce: called with a line for people: what is served, and where.

    Raises:
        ConfigError: a host that others reach, without a key; a key that is easy to guess; a host or port that can't be
            listened on; a teacher that doesn't fit, or that an export in the closed form has no use for.
        StudentError: not an export.
        TeacherError: the teacher can't be opened.
        DataError: the log can't be written.
        ConfigError: the folder of images holds other files.
        MissingExtra: fastapi, httptools, uvicorn, prometheus-client or python-multipart isn't installed.

    Examples:
        >>> serve(Path("runs/a/student.onnx"), port=8000)  # doctest: +SKIP
    """
    for module in NEEDED:
        need_extra(module, "serve")
    key = read_secret(KEY)
    if not check_host(host) and not key:
        raise ConfigError(f"--host {host}: others can reach it; give clients a key, in {KEY} or {KEY}_FILE")
    if key and (len(key) < KEY_LENGTH or len(set(key)) < KEY_SIGNS):
        raise ConfigError(
            f"{KEY}: too easy to guess; at least {KEY_LENGTH} characters, {KEY_SIGNS} of them different: "
            "`openssl rand -hex 32` makes one"
        )
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every form that is broken
    student = load(file, threads=1)
    images = None if log_images is None else ImageLog(log_images, log_images_mb * 2**20)
    if images is not None:
        announce(f"every image that is predicted is saved in {log_images}, up to {log_images_mb} MB")
    app = application(student, teacher, budget, store, log, origins, name, key, images)
    listen(
        app, host, port, lambda address: announce(f"serving {file} ({student.kind}) at {address}"), app.state.stopping
    )


def application(
    student: Exported,
    teacher: str | None,
    budget: float,
    store: Path | None,
    log: Path | None,
    origins: Sequence[str],
    name: str,
    key: str,
    images: ImageLog | None = None,
) -> FastAPI:
    """Return what is served; see `serve`."""
    from vl2v.serving.app import create_app
    from vl2v.serving.service import TeacherClient
    from vl2v.session import default_store
    from vl2v.teachers import open_teacher

    opened = None if teacher is None else open_teacher(teacher)
    teacher_client = TeacherClient(student, store or default_store(), opened, budget)
    app = create_app(student, teacher_client, TrafficLog(student, log, images), name=name, key=key, origins=origins)
    app.state.stopping = teacher_client.stop
    freeze_gc()
    return app
