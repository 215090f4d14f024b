"""vl2v: small image classifiers, taught by a vision-language model, that work on domains they never saw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.lazy import lazily

if TYPE_CHECKING:
    from vl2v.data import open_dataset
    from vl2v.runs import Run, adapt, add_class, check_teacher, distill, embed, load
    from vl2v.runs.evaluate import evaluate
    from vl2v.students import Classifier
    from vl2v.teachers import open_teacher

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "vl2v.students",
    "Run": "vl2v.runs",
    "adapt": "vl2v.runs",
    "add_class": "vl2v.runs",
    "check_teacher": "vl2v.runs",
    "distill": "vl2v.runs",
    "embed": "vl2v.runs",
    "evaluate": "vl2v.runs.evaluate",
    "load": "vl2v.runs",
    "open_dataset": "vl2v.data",
    "open_teacher": "vl2v.teachers",
}

__all__ = [
    "Classifier",
    "Run",
    "adapt",
    "add_class",
    "check_teacher",
    "distill",
    "embed",
    "evaluate",
    "load",
    "open_dataset",
    "open_teacher",
]

__getattr__ = lazily(__name__, _HOMES)
