"""Whether a student's probabilities can be trusted: reliability, and accuracy against coverage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vl2v.report.charts import Chart, Series, axis, calibration, coverage
from vl2v.report.evaluated_run import EvaluatedRun
from vl2v.report.page import percent

Mask = NDArray[np.bool_]


def confidence(evaluated: EvaluatedRun) -> dict[str, Any]:
    """Return the reliability diagrams and the curve of coverage against accuracy."""
    predictions, right, unseen = evaluated.predictions, evaluated.right, evaluated.unseen
    groups = [(name, mine) for name, mine in (("unseen domains", unseen), ("seen domains", ~unseen)) if mine.any()]
    reliability, curves = [], []
    threshold = evaluated.classifier.threshold
    accuracies: list[float] = []
    for number, (name, mine) in enumerate(groups):
        reliability.append(
            _reliability(name, predictions["probability"][mine], predictions["uncalibrated"][mine], right[mine])
        )
        line = [
            (100 * share, 100 * hit, f"threshold {at:.3f}: coverage {share:.1%}, {hit:.1%} of it right")
            for at, share, hit in coverage(predictions["probability"][mine], right[mine])
        ]
        sure = predictions["probability"][mine] >= threshold
        curves.append(Series(name, number, line))
        accuracies += [point[1] for point in line]
        if sure.any():
            share, hit = float(sure.mean()), float(right[mine][sure].mean())
            words = f"{name}, threshold {threshold:.3f}: coverage {share:.1%}, {hit:.1%} of it right"
            curves.append(Series("", number, [(100 * share, 100 * hit, words)], kind="dots"))
            accuracies.append(100 * hit)
    chart = Chart(
        "Coverage against accuracy",
        axis("coverage: images above the threshold, %", [0, 100], low=0, high=100),
        axis("accuracy on these, %", accuracies, high=100),
        curves,
    )
    return {
        "reliability": reliability,
        "coverage": chart,
        "thresholds": _thresholds(evaluated, groups),
        "temperature": f"{evaluated.classifier.temperature:.3g}",
        "threshold": f"{threshold:.3f}",
    }


def _thresholds(evaluated: EvaluatedRun, groups: Sequence[tuple[str, Mask]]) -> dict[str, Any]:
    """Return what some thresholds, and the run's own, would cover and how much of that is right."""
    own = evaluated.classifier.threshold
    rows = []
    for threshold in sorted({0.0, 0.3, 0.5, 0.7, 0.9, own}):
        cells = []
        for _, mine in groups:
            sure = mine & (evaluated.predictions["probability"] >= threshold)
            hit = percent(evaluated.right[sure].mean()) if sure.any() else ""
            cells += [percent(sure.sum() / mine.sum()), hit]
        rows.append({"threshold": f"{threshold:.3g}", "own": threshold == own, "cells": cells})
    return {"groups": [name.partition(" ")[0] for name, _ in groups], "rows": rows}


def _reliability(
    name: str, probability: NDArray[np.float32], before: NDArray[np.float32], right: Mask
) -> tuple[Chart, str]:
    after, raw = calibration(probability, right), calibration(before, right)
    bins = len(after.counts)
    bars = [
        ((number + 0.5) * 100 / bins, 100 * hit, f"{count:,} predictions around {sure:.0%}: {hit:.0%} right")
        for number, (count, sure, hit) in enumerate(zip(after.counts, after.confidence, after.accuracy, strict=True))
        if count
    ]
    dots = [
        (100 * sure, 100 * hit, f"before the temperature: {count:,} predictions around {sure:.0%}, {hit:.0%} right")
        for count, sure, hit in zip(raw.counts, raw.confidence, raw.accuracy, strict=True)
        if count
    ]
    chart = Chart(
        f"Reliability, {name}",
        axis("probability, %", [0, 100], low=0, high=100),
        axis("share that is right, %", [0, 100], low=0, high=100),
        [
            Series("after the temperature", "student", bars, kind="bars", width=100 / bins),
            Series("", "soft", [(0, 0, ""), (100, 100, "")], dashed=True),
            Series("before", 1, dots, kind="dots"),
        ],
    )
    words = f"Expected calibration error {percent(raw.ece)}% before the temperature, {percent(after.ece)}% after it."
    return chart, words
