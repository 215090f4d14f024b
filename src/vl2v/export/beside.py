"""Keeping an export beside a finished run's student; see `vl2v.deploy.beside`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from vl2v.deploy.beside import export_of
from vl2v.export.student import export_student
from vl2v.runs.folder import Run
from vl2v.session import Progress, silent

NEEDED = ("onnx", "onnxruntime", "onnxscript")


def keep_export(run: Run, store: Path | None = None, progress: Progress = silent) -> bool:
    """Keep an ONNX file beside a finished run's student, checked on its validation images.

    Returns:
        Whether there is one now: not where the packages of the extra `export` are missing.

    Raises:
        StudentError: the export differs from the student by more than 1e-4 of the largest logit.
        VL2VError: the run's images can't be read any more.
    """
    folder = run.folder / "student"
    file = export_of(folder)
    if file.is_file():
        return True
    if not all(map(find_spec, NEEDED)):
        return False
    form = "closed" if run.classifier.texts is None else "open"
    export_student(run, file, form=form, preprocess="outside", card=False, store=store, progress=progress)
    for old in folder.glob("network-*.onnx"):
        if old != file:
            old.unlink()
    return True
