"""Evaluation: metrics, calibration, comparisons, and results by domain."""
