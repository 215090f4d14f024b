from __future__ import annotations

import pytest

from vl2v.config import StageConfig
from vl2v.training.learner import learning_rate


def test_cosine_goes_from_the_rate_to_nearly_zero() -> None:
    settings = StageConfig(steps=100, lr=2.0, schedule="cosine")
    assert learning_rate(settings, 0) == 2.0
    assert learning_rate(settings, 50) == pytest.approx(1.0)
    assert 0 < learning_rate(settings, 99) < 0.01


def test_warm_up_is_linear_and_constant_stays() -> None:
    settings = StageConfig(steps=100, lr=2.0, schedule="constant", warmup=4)
    assert [learning_rate(settings, step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert learning_rate(settings, 99) == 2.0
