"""A few runs through a bad network; benchmarks/faults.py does two hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from system.faults import CALM, DONE, IMAGES, MIXED, OUT_OF_BUDGET, PRICE, Outcome, campaign, make_images, problems

AMPLE = 20 * IMAGES * PRICE


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def calm(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = campaign(tmp_path_factory.mktemp("calm") / "run", images, CALM, 0, budget=AMPLE, kills=0)
    assert outcome.ended == DONE and len(outcome.answers) == IMAGES
    assert outcome.billed == outcome.committed == PRICE * (IMAGES + 2 + 3), "images, texts, and the canaries"
    return outcome


@pytest.mark.parametrize(("fault", "kills"), [(MIXED, 2), ("drop", 0), ("duplicate", 1), (CALM, 3)])
def test_nothing_is_lost_and_nothing_overspent(
    fault: str, kills: int, images: Path, calm: Outcome, tmp_path: Path
) -> None:
    outcome = campaign(tmp_path / "run", images, fault, 1, budget=AMPLE, kills=kills)
    assert problems(outcome, calm) == []
    assert outcome.ended == DONE


def test_a_budget_that_does_not_suffice_is_not_passed(images: Path, calm: Outcome, tmp_path: Path) -> None:
    outcome = campaign(tmp_path / "run", images, MIXED, 2, budget=40 * PRICE, kills=1)
    assert problems(outcome, calm) == []
    assert outcome.ended == OUT_OF_BUDGET and outcome.billed <= 40 * PRICE
