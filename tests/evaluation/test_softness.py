"""How soft probabilities are, and the temperature that makes them so."""

from __future__ import annotations

import numpy as np
import pytest

from vl2v.evaluation.metrics import SOFTNESS, soft_temperature, softness


def units(rng: np.random.Generator, *shape: int) -> np.ndarray:
    found = rng.normal(size=shape).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_softness_is_entropy_over_that_of_a_blind_guess() -> None:
    assert softness(np.zeros((3, 7)), 1.0) == pytest.approx(1)
    assert softness(np.array([[1000.0, 0, 0]]), 1.0) == pytest.approx(0)
    odds = np.array([0.7, 0.2, 0.1])
    expected = -(odds * np.log(odds)).sum() / np.log(3)
    assert softness(4 * np.log(odds)[None], 4.0) == pytest.approx(expected)
    both = np.array([[1000.0, 0, 0], [0, 0, 0]])
    assert softness(both, 1.0) == pytest.approx(0.5)  # the mean of images


@pytest.mark.parametrize(("classes", "scale"), [(2, 5.0), (7, 20.0), (54, 40.0), (300, 100.0)])
def test_the_temperature_makes_any_teachers_predictions_as_soft(classes: int, scale: float) -> None:
    rng = np.random.default_rng(0)
    texts = units(rng, classes, 16)
    images = units(rng, 10_000, 16) + texts[rng.integers(classes, size=10_000)]
    logits = scale * images @ texts.T
    found = soft_temperature(logits, scale)
    assert softness(logits, 0.95 * found) < SOFTNESS < softness(logits, 1.05 * found)  # two digits
    assert soft_temperature(logits / 100, scale / 100) == pytest.approx(found / 100, rel=0.05)


def test_of_one_class_any_temperature_does() -> None:
    assert soft_temperature(np.zeros((5, 1), np.float32), 10.0) == 1.0
