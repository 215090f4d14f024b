"""Report: results to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.lazy import lazily

if TYPE_CHECKING:
    from vl2v.report.images import accuracy_bars, answer_grid
    from vl2v.report.write import write_report

_HOMES = {
    "accuracy_bars": "vl2v.report.images",
    "answer_grid": "vl2v.report.images",
    "write_report": "vl2v.report.write",
}

__all__ = ["accuracy_bars", "answer_grid", "write_report"]

__getattr__ = lazily(__name__, _HOMES)
