"""Leads: the interval covers the truth about as often as it says, and chance isn't called a lead."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from vl2v.evaluation.compare import Marks, Runs, best_is_sure, lead

TARGETS = tuple(("PACS", name) for name in ("art", "cartoon", "photo", "sketch"))
A, B, C = ("one", "a"), ("one", "b"), ("two", "c")


def marks(right: np.ndarray, pictures: np.ndarray | None = None) -> Marks:
    """Return what was right of pictures, by default of the first so many."""
    return Marks(np.arange(len(right)) if pictures is None else pictures, right.astype(bool))


def runs(
    accuracy: float, rng: np.random.Generator, hard: np.ndarray, seeds: int = 3, luck: float = 0.02, targets: int = 4
) -> Runs:
    """Return right answers about up to four targets; pictures differ in how hard they are, seeds in their luck."""
    return {
        target: {seed: marks(rng.random(len(hard)) < accuracy + rng.normal(0, luck) - hard) for seed in range(seeds)}
        for target in TARGETS[:targets]
    }


def test_the_lead_is_the_mean_of_the_targets_differences():
    one = {A: {0: marks(np.array([1, 1, 1, 0]))}, B: {0: marks(np.array([1, 0]))}}
    other = {A: {0: marks(np.array([1, 0, 0, 0]))}, B: {0: marks(np.array([1, 1]))}}
    found = lead(one, other)
    assert found is not None
    assert found.mean == pytest.approx((0.5 - 0.5) / 2)
    assert (found.wins, found.losses, found.runs, found.seeds) == (1, 1, 2, 1)
    assert not found.sure  # a single seed is never sure


def test_only_what_both_have_is_compared():
    right, wrong = marks(np.ones(5)), marks(np.zeros(5))
    found = lead({A: {0: right, 1: right}, B: {0: right}}, {A: {1: wrong, 2: wrong}})
    assert found is not None and found.mean == 1 and found.runs == 1
    assert lead({A: {0: right}}, {B: {0: right}}) is None


def test_pictures_are_paired_by_their_index():
    """A teacher that refused some answers about others; each seed's may be other ones."""
    one = {A: {0: marks(np.array([1, 1, 0, 0])), 1: marks(np.array([1, 0]), np.array([3, 9]))}}
    other = {A: {0: marks(np.array([1, 0]), np.array([2, 0])), 1: marks(np.array([0, 0, 1]), np.array([9, 8, 3]))}}
    found = lead(one, other)
    assert found is not None and found.mean == pytest.approx(((1 - 0) + (0 - 1)) / 2 / 2) and found.runs == 2
    assert (found.wins, found.losses) == (0, 0)
    assert lead(one, {A: {0: marks(np.ones(2), np.array([7, 8]))}}) is None


def test_datasets_count_alike_however_many_targets_they_have():
    right, wrong = marks(np.ones(5)), marks(np.zeros(5))
    found = lead({A: {0: right}, B: {0: right}, C: {0: wrong}}, {A: {0: wrong}, B: {0: wrong}, C: {0: right}})
    assert found is not None and found.mean == found.low == found.high == 0
    found = lead({A: {0: right}, B: {0: wrong}, C: {0: right}}, {A: {0: wrong}, B: {0: wrong}, C: {0: wrong}})
    assert found is not None and found.mean == pytest.approx((0.5 + 1) / 2)


@pytest.mark.parametrize(("seeds", "targets", "alone"), [(2, 1, 0), (2, 3, 0), (3, 1, 0), (5, 4, 0), (3, 4, 1)])
def test_few_seeds_are_seldom_sure_of_what_is_luck(seeds: int, targets: int, alone: int):
    """Training's luck is nearly all there is: pictures differ by chance only, and there are many."""
    rng = np.random.default_rng(seeds)
    hard = np.zeros(2000)

    def equal() -> Runs:
        other = runs(0.6, rng, hard, seeds, 0.1, alone)  # of a dataset that has no other target
        moved = {("VLCS", target): found for (_, target), found in other.items()}
        return {**runs(0.6, rng, hard, seeds, 0.1, targets), **moved}

    found = [lead(equal(), equal(), rounds=300) for _ in range(200)]
    assert sum(one.sure for one in found) <= 18  # of 200; 10 would be ideal


@pytest.mark.parametrize("luck", [0.02, 0.1])
def test_equal_methods_are_seldom_told_apart_and_different_ones_mostly_are(luck: float):
    rng = np.random.default_rng(0)
    hard = rng.uniform(-0.2, 0.2, 400)
    equal = [lead(runs(0.6, rng, hard, 3, luck), runs(0.6, rng, hard, 3, luck), rounds=300) for _ in range(200)]
    better = [lead(runs(0.8, rng, hard), runs(0.7, rng, hard), rounds=300) for _ in range(30)]
    assert sum(found.sure for found in equal) <= 14  # of 200; 10 would be ideal
    assert sum(found.sure and found.low > 0 for found in better) >= 27


def test_the_interval_is_that_of_drawing_picture_by_picture():
    """What is drawn by kinds of pictures is the same as a table of how often each picture is drawn."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(-0.2, 0.2, 500)
    one, other = runs(0.7, rng, hard), runs(0.65, rng, hard)
    means = []
    for target in TARGETS:
        table = np.stack([one[target][s].right.astype(float) - other[target][s].right for s in range(3)])
        pictures = rng.poisson(1, (20000, 500))
        seeds = rng.multinomial(3, np.full(3, 1 / 3), size=20000) / 3
        means.append((seeds * (pictures / pictures.sum(1, keepdims=True) @ table.T)).sum(1))
    low, high = np.quantile(np.mean(means, 0), [0.025, 0.975])
    found = lead(one, other, rounds=20000)
    assert found is not None
    student_t = 2.306  # of 8 degrees of freedom, against the normal distribution's 1.96
    stretched = [found.mean + 1.5**0.5 * student_t / 1.96 * (end - found.mean) for end in (low, high)]
    assert [found.low, found.high] == pytest.approx(stretched, abs=0.001)


def test_half_a_million_pictures_take_little_memory():
    rng = np.random.default_rng(0)
    one, other = ({TARGETS[0]: {s: marks(rng.random(500_000) < 0.6) for s in range(3)}} for _ in range(2))
    tracemalloc.start()
    found = lead(one, other)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is not None and most < 100e6  # a table of 2,000 draws of each would have 4 GB


def test_the_best_must_be_ahead_of_every_other():
    rng = np.random.default_rng(1)
    hard = np.zeros(1000)
    table = {
        "good": runs(0.8, rng, hard, luck=0),
        "fair": runs(0.7, rng, hard, luck=0),
        "bad": runs(0.5, rng, hard, luck=0),
    }
    assert best_is_sure(table, list(table)) == "good"
    assert best_is_sure({**table, "twin": runs(0.8, rng, hard, luck=0)}, [*table, "twin"]) is None
    assert best_is_sure(table, ["good"]) is None
