"""Evaluation: metrics, calibration, and results by domain."""

from vl2v.evaluation.metrics import Metrics, fit_temperature, measure, unknown_threshold
from vl2v.evaluation.table import Evaluation, Role, Row

__all__ = ["Evaluation", "Metrics", "Role", "Row", "fit_temperature", "measure", "unknown_threshold"]
