"""Drift is told from what a student learned from; which of its classes come, and chance, aren't drift."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from vl2v.deploy.drift import Drift, drift, reference

D, CLASSES = 24, tuple(f"class {k}" for k in range(54))
_of_all = np.random.default_rng(0)
CENTRES = 1.5 * _of_all.normal(size=(54, D))  # of classes
SURENESS = _of_all.normal(size=54)  # some are recognised less surely
DOMAINS = dict(zip(("art", "cartoon", "photo"), 0.5 * _of_all.normal(size=(3, D)), strict=True))
ELSEWHERE = 0.8 * _of_all.normal(size=D)


class Images(NamedTuple):
    rows: np.ndarray
    best: list[str]
    sure: np.ndarray

    @property
    def unknown(self) -> np.ndarray:
        return self.sure < 0.3


def drawn(rng: np.random.Generator, domain: np.ndarray, shares: np.ndarray, count: int) -> Images:
    """Return what a student that is right in most cases gives for images of a domain with a mix of classes."""
    classes = rng.choice(54, count, p=shares / shares.sum())
    rows = CENTRES[classes] + domain + 1.2 * rng.normal(size=(count, D))
    best = ((rows[:, None] - CENTRES) ** 2).sum(-1).argmin(1)
    sure = 1 / (1 + np.exp(-(1 + SURENESS[classes] + rng.normal(size=count))))
    return Images(rows.astype(np.float32), [CLASSES[k] for k in best], sure)


def card(rng: np.random.Generator, count: int, domains: Sequence[str] = tuple(DOMAINS)) -> Any:
    """Return what an export has of `count` validation images, as it comes out of its file."""
    shares = 1 / np.arange(2, 56)
    parts = {name: drawn(rng, DOMAINS[name], shares, count // len(domains)) for name in domains}
    unknown = np.concatenate([part.unknown for part in parts.values()])
    return json.loads(json.dumps(reference({name: tuple(part) for name, part in parts.items()}, unknown)))


def drift_of(images: Images, card: Any) -> Drift:
    return drift(images.rows, images.best, images.sure, float(images.unknown.mean()), card)


def mixes(rng: np.random.Generator) -> dict[str, np.ndarray]:
    five, one = np.zeros(54), np.zeros(54)
    five[:5], one[rng.integers(54)] = 1, 1
    return {"five": five, "one": one, "re-weighted": rng.gamma(0.3, size=54), "even": np.ones(54)}


@pytest.mark.parametrize("count", [51, 300])
def test_another_mix_of_classes_is_no_drift_and_other_images_are(count: int) -> None:
    alarms: dict[str, list[bool]] = {}
    for seed in range(25):
        rng = np.random.default_rng([seed, count])
        known, domain = card(rng, count), list(DOMAINS.values())[seed % 3]
        for name, shares in mixes(rng).items():
            alarms.setdefault(name, []).append(drift_of(drawn(rng, domain, shares, 400), known).alarm)
        usual = 1 / np.arange(2, 56)
        for name, change in (("elsewhere", 1), ("further", 2)):
            images = drawn(rng, domain + change * ELSEWHERE, usual, 400)
            alarms.setdefault(name, []).append(drift_of(images, known).alarm)
        images = drawn(rng, domain, usual, 400)
        alarms.setdefault("unsure", []).append(drift_of(images._replace(sure=images.sure * 0.25), known).alarm)
    rates = {name: float(np.mean(raised)) for name, raised in alarms.items()}
    assert all(rates[name] <= 0.04 for name in ("five", "one", "re-weighted", "even")), rates
    assert rates["further"] == rates["unsure"] == 1, rates
    assert count == 51 or rates["elsewhere"] == 1, rates


def test_the_nearest_domain_is_named_and_a_mixture_of_them_is_near() -> None:
    rng = np.random.default_rng(1)
    known = card(rng, 600)
    for name, domain in DOMAINS.items():
        found = drift_of(drawn(rng, domain, np.ones(54), 500), known)
        assert found.nearest == name and not found.alarm and "no alarm" in found.verdict()
    far = drift_of(drawn(rng, 3 * ELSEWHERE, np.ones(54), 500), known)
    assert far.distance is not None and far.distance > 1 and "drift: inspect some" in far.verdict()
    assert "`vl2v adapt RUN --images FOLDER`" in far.verdict() and "--log-images" in far.verdict()


def test_the_same_image_again_and_again_is_no_evidence() -> None:
    rng = np.random.default_rng(2)
    known = card(rng, 300)
    images = drawn(rng, DOMAINS["art"], np.ones(54), 1)
    again = Images(np.repeat(images.rows, 500, 0), images.best * 500, np.repeat(images.sure, 500))
    assert not drift_of(again, known).alarm


def test_unknown_is_expected_of_the_classes_that_come() -> None:
    rng = np.random.default_rng(3)
    known = card(rng, 900)
    shares = np.zeros(54)
    shares[int(SURENESS[:5].argmax())] = 1  # a class that is recognised surely
    found = drift_of(drawn(rng, DOMAINS["art"], shares, 500), known)
    assert found.expected < 0.8 * known["unknown"] and abs(found.unknown - found.expected) < 0.03


def test_a_class_that_was_added_later_and_a_single_domain_are_no_drift() -> None:
    rng = np.random.default_rng(4)
    known = card(rng, 300, ["photo"])
    images = drawn(rng, DOMAINS["photo"], np.ones(54), 500)
    found = drift_of(images, known)
    assert found.distance is not None and not found.alarm and found.nearest == "photo"
    assert not drift_of(
        images._replace(best=["new" if i % 50 == 0 else b for i, b in enumerate(images.best)]), known
    ).alarm


def test_a_small_reference_is_called_too_small_where_it_finds_nothing() -> None:
    rng = np.random.default_rng(7)
    few, enough = card(rng, 51), card(rng, 300)
    near, far = (drawn(rng, DOMAINS["art"] + 3 * away * ELSEWHERE, np.ones(54), 400) for away in (0, 1))
    silent = drift_of(near, few)
    assert not silent.alarm and silent.verdict().startswith("too few reference images to tell (51 of ")
    assert drift_of(far, few).alarm and "drift: inspect" in drift_of(far, few).verdict()
    assert drift_of(near, enough).wanted == 0 and "no alarm" in drift_of(near, enough).verdict()


def test_repeated_images_count_once() -> None:
    rng = np.random.default_rng(8)
    known, images = card(rng, 300), drawn(rng, 9 * ELSEWHERE, np.ones(54), 60)
    again = Images(np.repeat(images.rows[:29], 50, 0), images.best[:29] * 50, np.repeat(images.sure[:29], 50))
    again = again._replace(best=[best for best in images.best[:29] for _ in range(50)])
    assert drift_of(again, known).verdict() == "too few images to tell (29 of 30)"
    twice = Images(np.tile(images.rows, (2, 1)), images.best * 2, np.tile(images.sure, 2))
    once = drift_of(images, known)
    assert (drift_of(twice, known).images, drift_of(twice, known).distance) == (
        once.images,
        once.distance,
    ) and once.alarm


def test_too_little_tells_nothing() -> None:
    rng = np.random.default_rng(5)
    few = drift_of(drawn(rng, 9 * ELSEWHERE, np.ones(54), 29), card(rng, 300))
    assert few.distance is None and not few.alarm and few.verdict() == "too few images to tell (29 of 30)"


def test_a_reference_of_the_first_version_is_read() -> None:
    def kept(mean: Sequence[float], error: float) -> dict[str, Any]:
        return {"mean": base64.b64encode(np.array(mean, "<f4").tobytes()).decode(), "error": error}

    first = {
        "centres": {"": kept([0, 0], 0.001), "dog": kept([3, 0], 0.001)},
        "unknown": 0.05,
        "pictures": 400,
        "domains": {"art": kept([0, 1], 0.001), "photo": kept([0, -1], 0.001)},
    }
    rng = np.random.default_rng(6)
    rows = np.array([3.0, 1.0]) + 0.1 * rng.normal(size=(100, 2))
    near = drift(rows.astype(np.float32), ["dog"] * 100, [0.9] * 100, 0.05, first)
    assert near.distance is not None and near.distance < 0.3 and near.nearest == "art" and not near.alarm
    away = drift((rows + np.array([0, 4])).astype(np.float32), ["dog"] * 100, [0.9] * 100, 0.05, first)
    assert away.distance is not None and away.distance > 1 and away.alarm
    assert drift(rows.astype(np.float32), ["dog"] * 100, [0.9] * 100, 0.4, first).alarm  # more unknown
