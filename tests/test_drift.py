"""Live traffic is told from what a student learned by distances of means, and not by chance."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from vl2v.drift import NEAR, drift, reference

_of_all = np.random.default_rng(0)
PLACES = _of_all.normal(size=(4, 64))  # of three training domains and another one
CLASSES = {name: 3 * _of_all.normal(size=64) for name in ("dog", "horse")}
DOMAINS = ("art", "cartoon", "photo")
Traffic = Callable[..., tuple[np.ndarray, list[str]]]


def drawn(seed: int) -> Traffic:
    """Return what draws traffic, the same whatever else was drawn."""
    rng = np.random.default_rng(seed)

    def traffic(place: np.ndarray, count: int, classes: tuple[str, ...] = ("dog", "horse")):
        """Return embeddings around a place, spread as far as places are from one another, and their classes."""
        labels = rng.choice(classes, count).tolist()
        noise = 1.4 * rng.normal(size=(count, 64))
        return (place + noise + np.stack([CLASSES[label] for label in labels])).astype(np.float32), labels

    return traffic


@pytest.fixture
def traffic() -> Traffic:
    return drawn(2)


@pytest.fixture(scope="module")
def kept() -> dict:
    traffic = drawn(1)
    outputs = {name: traffic(place, 400) for name, place in zip(DOMAINS, PLACES[:3], strict=True)}
    return json.loads(json.dumps(reference(outputs, 0.05)))  # as it comes out of a card


@pytest.mark.parametrize("count", [40, 1000])
def test_training_domains_and_their_mixtures_are_near(kept: dict, traffic: Traffic, count: int) -> None:
    for name, place in zip(DOMAINS, PLACES, strict=False):
        found = drift(*traffic(place, count), 0.05, kept)
        assert found.distance < NEAR and found.nearest == name and "no alarm" in found.verdict()
    parts = [traffic(place, count // 3 + 1) for place in PLACES[:3]]
    mixed = np.concatenate([rows for rows, _ in parts]), [label for _, labels in parts for label in labels]
    assert drift(*mixed, 0.05, kept).distance < NEAR


def test_which_classes_come_is_not_where_pictures_come_from(kept: dict, traffic: Traffic) -> None:
    for name in CLASSES:
        assert drift(*traffic(PLACES[0], 500, (name,)), 0.05, kept).distance < NEAR


def test_another_domain_is_as_far_as_they_are_from_one_another(kept: dict, traffic: Traffic) -> None:
    assert 0.7 < drift(*traffic(PLACES[3], 500), 0.05, kept).distance < 1.5
    way = [traffic(PLACES[0] + far * (PLACES[3] - PLACES[0]), 500) for far in (0, 1, 2)]
    assert all(nearer < farther for nearer, farther in pairwise(drift(*each, 0.05, kept).distance for each in way))
    assert "drift: look at some" in drift(*way[2], 0.05, kept).verdict()


def test_unknown_alarms_only_beyond_chance(kept: dict, traffic: Traffic) -> None:
    near, few = traffic(PLACES[0], 1000), traffic(PLACES[0], 40)
    assert not drift(*near, 0.07, kept).more_unknown and drift(*near, 0.2, kept).more_unknown
    assert not drift(*few, 0.15, kept).more_unknown  # six of 40: chance
    assert "more unknown than expected; drift" in drift(*near, 0.2, kept).verdict()


def test_too_little_tells_nothing(kept: dict, traffic: Traffic) -> None:
    few = drift(*traffic(PLACES[3], 29), 0.5, kept)
    assert few.distance is None and few.verdict() == "too few pictures to tell (29 of 30)"
    one = drift(*traffic(PLACES[3], 100), 0.05, reference({"photo": traffic(PLACES[0], 100)}, 0.05))
    assert one.distance is None and "learned from one domain" in one.verdict()
