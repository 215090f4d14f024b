from __future__ import annotations

import math

import pytest
import torch

from vl2v.evaluation.metrics import Evaluation, Metrics, Row, fit_temperature, measure, unknown_threshold


def test_balanced_accuracy_weighs_classes_that_occur_equally() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    logits = torch.eye(3)[torch.tensor([0, 0, 0, 2])] * 5
    found = measure(logits, labels)
    assert found.accuracy == 0.75
    assert found.balanced_accuracy == 0.5  # class 2 doesn't occur
    assert found.images == 4


def test_ece_is_the_gap_between_confidence_and_accuracy() -> None:
    confident = torch.tensor([[0.9, 0.1]] * 10).log()
    labels = torch.tensor([0] * 6 + [1] * 4)
    assert measure(confident, labels).ece == pytest.approx(0.3, abs=1e-6)


def test_the_temperature_undoes_a_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(20000, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(honest.softmax(-1), 1, generator=generator)[:, 0]
    assert fit_temperature(honest * 5, labels) == pytest.approx(5, rel=0.05)
    assert fit_temperature(honest / 5, labels) == pytest.approx(0.2, rel=0.05)


def test_the_temperature_stays_finite_where_all_predictions_are_right() -> None:
    for count, sharpness in ((3, 4), (300, 4), (300, 1000)):
        labels = torch.arange(count) % 3
        logits = sharpness * torch.eye(3)[labels]
        surest = (logits / fit_temperature(logits, labels)).softmax(-1).amax(-1)
        torch.testing.assert_close(surest, torch.full((count,), 1 - 2 / 3 / (count + 2)), atol=1e-4, rtol=0)


def test_the_threshold_keeps_95_in_100_right_predictions() -> None:
    best = torch.linspace(0.5, 1, 101)
    logits = torch.stack([best, 1 - best], 1).clamp_min(1e-6).log()
    threshold = unknown_threshold(logits, torch.zeros(101, dtype=torch.long))
    assert measure(logits, torch.zeros(101, dtype=torch.long), threshold).known == pytest.approx(0.95, abs=0.02)


def test_an_evaluation_survives_json() -> None:
    rows = tuple(
        Row("student", domain, role, Metrics(3, share, share, 0.1, 1.0))
        for domain, role, share in (("a", "seen", 0.9), ("b", "unseen", 0.4))
    )
    evaluation = Evaluation(rows, ("a note",))
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    worst = evaluation.worst()
    assert worst is not None and worst.domain == "b"
    assert evaluation.mean(role="seen") == 0.9
    assert evaluation.mean("teacher") is None


def test_logits_that_say_nothing_keep_their_temperature() -> None:
    assert fit_temperature(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])) == 1
    assert math.isnan(fit_temperature(torch.full((4, 3), torch.nan), torch.tensor([0, 1, 2, 0])))
