"""Intervals hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from vl2v.evaluation.compare import Share, paired_difference, wilson


@pytest.mark.parametrize(
    ("correct", "total", "interval"),
    [(8, 10, (0.4902, 0.9433)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (0, 0, (0.0, 1.0))],
)
def test_wilson_as_in_the_tables(correct: int, total: int, interval: tuple[float, float]) -> None:
    assert wilson(correct, total) == pytest.approx(interval, abs=1e-4)


def test_a_share_has_its_accuracy_and_interval() -> None:
    share = Share("sketch", 10, 8)
    assert share.accuracy == 0.8
    assert share.interval == wilson(8, 10)


def test_a_clear_difference_on_the_same_images_is_seen_and_none_is_none() -> None:
    better, worse = np.ones(100, bool), np.arange(100) < 80
    found = paired_difference(better, worse)
    assert found.mean == pytest.approx(0.2) and 0 < found.low < 0.2 < found.high
    other = paired_difference(worse, better)
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low))
    none = paired_difference(worse, worse)
    assert none.mean == 0 and none.low < 0 < none.high


def test_noise_is_taken_for_better_in_one_of_forty_samples_at_most() -> None:
    rng = np.random.default_rng(0)
    fooled = 0
    for _ in range(1000):
        before = rng.random(200) < 0.7
        others = [np.where(rng.random(200) < 0.1, rng.random(200) < 0.7, before) for _ in range(7)]
        fooled += any(paired_difference(other, before, comparisons=7).low > 0 for other in others)
    assert fooled <= 25
