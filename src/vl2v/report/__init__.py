"""Report: results to look at."""

from vl2v.report.pictures import accuracy_bars, answer_grid

__all__ = ["accuracy_bars", "answer_grid"]
