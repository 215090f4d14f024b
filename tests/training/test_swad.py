"""SWAD against the algorithm done by hand on one number."""

from __future__ import annotations

import pytest
import torch

from vl2v.methods.averaging import Swad


def run(losses: list[float], swad: Swad) -> Swad:
    """Two steps an evaluation; the weight at step t is t."""
    step = 0
    for loss in losses:
        for _ in range(2):
            step += 1
            swad.step({"w": torch.tensor([float(step)])})
        swad.evaluate(loss)
    return swad


def mean(swad: Swad) -> float:
    average = swad.average()
    assert average is not None
    return average["w"].item()


def test_without_a_valley_the_last_segment_counts() -> None:
    assert mean(run([5, 4, 3, 2], Swad())) == pytest.approx(7.5)  # steps 7 and 8


def test_the_valley_starts_with_the_first_of_three_that_is_lowest() -> None:
    # evaluation 2 (steps 3, 4) is the lowest of evaluations 2, 3, 4; all later ones stay under 1.3 x mean
    swad = run([5, 1.0, 1.1, 1.2, 1.1], Swad())
    assert swad.threshold == pytest.approx(1.1 * 1.3)
    assert mean(swad) == pytest.approx(sum(range(3, 11)) / 8)


def test_the_valley_ends_when_the_loss_has_risen_for_good() -> None:
    swad = run([1.0, 1.1, 1.2, 1.3, 9, 9, 9, 9, 9, 9, 1.0], Swad())
    assert swad.ended
    assert mean(swad) == pytest.approx(sum(range(1, 9)) / 8)  # evaluations 1 to 4


def test_overlapping_segments_reach_back_to_the_first_step() -> None:
    swad = run([5, 4, 3], Swad(overlapping=True))
    assert mean(swad) == pytest.approx(3.5)  # steps 1 to 6


def test_overlapping_segments_start_anew_at_the_given_steps() -> None:
    swad = run([5, 4, 3], Swad(overlapping=True, restarts=[4]))
    assert mean(swad) == pytest.approx(5.5)  # steps 5 and 6
    first, second = run([5, 4], Swad(overlapping=True, restarts=[4, 6])), Swad(overlapping=True, restarts=[4, 6])
    second.restore(*first.state())
    for step in (5, 6, 7, 8):
        second.step({"w": torch.tensor([float(step)])})
        if step % 2 == 0:
            second.evaluate(3 - step / 8)
    assert mean(second) == pytest.approx(7.5)  # an interruption doesn't forget how far it was


@pytest.mark.parametrize("cut", [1, 3, 5, 8])
def test_state_restores_to_the_same_average(cut: int) -> None:
    losses = [5, 1.0, 1.1, 1.2, 1.1, 1.3, 1.2, 2, 2, 2]
    whole = run(losses, Swad())
    first = run(losses[:cut], Swad())
    second = Swad()
    second.restore(*first.state())
    step = 2 * cut
    for loss in losses[cut:]:
        for _ in range(2):
            step += 1
            second.step({"w": torch.tensor([float(step)])})
        second.evaluate(loss)
    assert mean(second) == mean(whole)
