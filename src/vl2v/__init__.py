"""vl2v: small image classifiers, taught by a vision-language model, that work on domains they never saw.

The command line's verbs are functions here. They are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.lazy import lazily

if TYPE_CHECKING:
    from vl2v.benchmark.run import benchmark
    from vl2v.data.layouts import open_dataset
    from vl2v.export.student import export_student as export
    from vl2v.report.page import write_report as report
    from vl2v.runs.adapting import adapt
    from vl2v.runs.check import check_teacher as check
    from vl2v.runs.evaluate import evaluate
    from vl2v.runs.folder import Run
    from vl2v.runs.predict import add_class, load
    from vl2v.runs.predict import predict_files as predict
    from vl2v.runs.query import embed
    from vl2v.runs.train import distill
    from vl2v.serving.serve import serve
    from vl2v.students.classifier import Classifier
    from vl2v.teachers import open_teacher

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "vl2v.students.classifier",
    "Run": "vl2v.runs.folder",
    "adapt": "vl2v.runs.adapting",
    "add_class": "vl2v.runs.predict",
    "benchmark": "vl2v.benchmark",
    "check": "vl2v.runs.check:check_teacher",
    "distill": "vl2v.runs.train",
    "embed": "vl2v.runs.query",
    "evaluate": "vl2v.runs.evaluate",
    "export": "vl2v.export",
    "load": "vl2v.runs.predict",
    "open_dataset": "vl2v.data",
    "open_teacher": "vl2v.teachers",
    "predict": "vl2v.runs.predict:predict_files",
    "report": "vl2v.report",
    "serve": "vl2v.serving.serve",
}

__all__ = [
    "Classifier",
    "Run",
    "adapt",
    "add_class",
    "benchmark",
    "check",
    "distill",
    "embed",
    "evaluate",
    "export",
    "load",
    "open_dataset",
    "open_teacher",
    "predict",
    "report",
    "serve",
]

__getattr__ = lazily(__name__, _HOMES)
