"""Whether live traffic still looks like what a student learned from, whichever of its classes come.

Which classes come, and from which of the training domains, moves the mean of what a network gives, and isn't drift. So
an image is compared with those that got the same best class, and what remains is held against the nearest mixture of
domains: Hotelling's two-sample test (Annals of Mathematical Statistics 1931), once on the directions in which images
differ most and once on the confidence. A class that the reference has few images of is known badly, and its mean is
drawn to that of all (an empirical Bayes estimate); what that and the finite reference account for is in the variance.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 2  # of what a card has; 1 had no version
FEWEST = 30  # images; with fewer nothing is said
WINDOW = 1000  # the latest images that are compared
POINTS = 0.05  # that the share of "unknown" may rise by before it is mentioned

LEVEL = 0.99  # of each of the two tests
MOST = 24  # directions
EACH = 8  # degrees of freedom a direction takes
KEPT = 48  # directions of the reference's scatter that a card has
CONFUSED = 0.05  # variance of a class's mean that comes of the other classes among it, as a share of an image's
STEPS = 500  # of the search for the nearest mixture
DRAWS = 40_000  # that the limit of chance is taken of
TINY = 1e-12

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """Live traffic against the training domains.

    Attributes:
        images: how many were compared.
        distance: how far they are from the nearest mixture of the training domains' images of the same classes, where
            from 1 it isn't chance; None where there are too few of them.
        nearest: the training domain that has most of that mixture.
        unknown: share of them with the prediction "unknown".
        expected: that share on the training domains' validation images, if the same classes came.
        of: how many these were.
        alarm: whether it is drift.
    """

    images: int
    distance: float | None
    nearest: str | None
    unknown: float
    expected: float
    of: int
    alarm: bool = False

    def verdict(self) -> str:
        """Return a sentence for people."""
        if self.images < FEWEST:
            return f"too few images to tell ({self.images} of {FEWEST})"
        if self.distance is None:
            where = "where images come from can't be told: the student learned from one domain"
        elif self.distance < 1:
            where = f"images look like those of the training domains, most like {self.nearest}"
        else:
            where = f"images differ from those of the training domains, least from {self.nearest}"
        more = "more" if self.unknown - self.expected > POINTS else "not more"
        advice = "drift: look at some of them, and measure the accuracy on a labelled sample"
        return f"{where}; {more} unknown than expected; {advice if self.alarm else 'no alarm'}"


def reference(outputs: Mapping[str, tuple[Rows, Sequence[str], Sequence[float]]], unknown: Sequence[bool]) -> Any:
    """Return what an export's card has of the training domains, JSON types only.

    Args:
        outputs: domain -> what the network gave for its validation images [n, d], the best class of each, and that
            one's probability.
        unknown: of all of them, in this order, whether the prediction was "unknown".
    """
    best = np.array([label for _, labels, _ in outputs.values() for label in labels])
    domain = np.repeat(np.arange(len(outputs)), [len(labels) for _, labels, _ in outputs.values()])
    rows = np.concatenate([each for each, _, _ in outputs.values()])
    scale = float(rows.std()) or 1.0
    points = _points(rows, [p for *_, sure in outputs.values() for p in sure], scale)
    mean = points.mean(0)
    points = points - mean
    names, number = np.unique(best, return_inverse=True)
    counts = np.bincount(number)
    sums = _sums(points, number, len(names))
    left = points - (sums / counts[:, None])[number]
    found, directions = np.linalg.eigh(left.T @ left)
    kept = max(min(KEPT, points.shape[1], len(points) - 1), 1)
    return {
        "version": VERSION,
        "images": len(points),
        "unknown": float(np.mean(unknown)),
        "scale": scale,
        "mean": _packed(mean),
        "classes": {
            str(name): {
                "images": int(counts[k]),
                "unknown": int(np.sum(np.asarray(unknown)[number == k])),
                "mean": _packed(sums[k] / counts[k]),
            }
            for k, name in enumerate(names)
        },
        "domains": {
            name: {"images": int((domain == k).sum()), "mean": _packed(left[domain == k].mean(0))}
            for k, name in enumerate(outputs)
        },
        "scatter": {
            "directions": _packed(directions[:, -kept:]),
            "sums": [float(value) for value in found[-kept:]],
            "rest": float(found[:-kept].clip(0).sum() / max(len(found) - kept, 1)),
        },
    }


def drift(rows: Rows, best: Sequence[str], sure: Sequence[float], unknown: float, card: Mapping[str, Any]) -> Drift:
    """Return how far live traffic is from the training domains.

    Args:
        rows: what the network gave for live images [n, d].
        best: the best class of each.
        sure: its probability.
        unknown: share of them with the prediction "unknown".
        card: from `reference`, of this version or the first.
    """
    if card.get("version", 1) < VERSION:
        return _by_version_1(rows, best, unknown, card)
    known = card["classes"]
    numbers = {name: number for number, name in enumerate(dict.fromkeys([*known, *best]))}
    number = np.array([numbers[label] for label in best], np.int64)
    seen = [known.get(name, {"images": 0, "unknown": 0}) for name in numbers]
    missed = [(each["unknown"] + card["unknown"]) / (each["images"] + 1) for each in seen]
    expected = float(np.array(missed)[number].mean()) if len(number) else card["unknown"]
    shares = (unknown, expected, card["images"])
    if len(rows) < FEWEST:
        return Drift(len(rows), None, None, *shares)
    points = _points(rows, sure, card["scale"]) - _unpacked(card["mean"])
    counts = np.bincount(number, minlength=len(numbers))
    left = points - (_sums(points, number, len(numbers)) / np.maximum(counts, 1)[:, None])[number]
    live = _distinct(points)
    freedom = int(max(live - (counts > 0).sum(), 0) + max(card["images"] - len(known), 0))
    scatter = (left.T @ left * (live / len(points)) + _scatter(card)) / max(freedom, 1)
    variances, axes = np.linalg.eigh(scatter)
    most = max(1, min(MOST, freedom // EACH, len(axes)))
    confidence = np.zeros((len(axes), 1))
    confidence[-1] = 1 / math.sqrt(max(scatter[-1, -1], TINY))
    means = np.stack([_unpacked(known[name]["mean"]) if name in known else np.zeros(len(axes)) for name in numbers])
    of = np.array([each["images"] for each in seen])
    whitened = (axes[:, -most:] / np.sqrt(np.maximum(variances[-most:], TINY)), confidence)
    tests = [
        _test(card, points.mean(0) @ axis, counts / len(points), means @ axis, of, axis, live, freedom)
        for axis in whitened
    ]
    (distance, weights), (unsure, _) = tests
    distance = math.sqrt(max(distance, unsure))
    return Drift(len(rows), distance, list(card["domains"])[int(weights.argmax())], *shares, alarm=distance >= 1)


def _test(
    card: Mapping[str, Any],
    mean: Floats,
    shares: Floats,
    means: Floats,
    counts: NDArray[np.int64],
    axis: Floats,
    live: float,
    freedom: int,
) -> tuple[float, Floats]:
    """Return Hotelling's statistic, where chance stays below 1, and the weights of the domains.

    Args:
        card: from `reference`.
        mean: of live traffic [k], in whitened coordinates: the variance within a class is 1 in each.
        shares: of its classes [C].
        means: of the reference's images of each [C, k].
        counts: how many these were [C].
        axis: the directions [D, k].
        live: how many images came, repeated ones not counted.
        freedom: that the variance was estimated with.
    """
    size, total = len(mean), card["images"]
    spread = float((counts @ means**2).sum() + (_scatter(card) @ axis * axis).sum()) / max(total - 1, 1) / size
    prior = 1 / max(spread - 1, 0.05)  # images that what is known of all classes is worth to each
    weight = counts + prior
    offsets = np.stack([_unpacked(each["mean"]) for each in card["domains"].values()]) @ axis
    of = np.array([each["images"] for each in card["domains"].values()])
    centre = spread * float((counts / total) @ (counts / total))  # variance of the mean that these are drawn to
    apart = mean - (shares * counts / weight) @ means
    variance = 1 / live + shares**2 @ (1 / weight + CONFUSED) + (shares @ (prior / weight)) ** 2 * centre
    weights = _mixture(offsets, apart)
    rest = apart - weights @ offsets
    return float(rest @ rest) / (variance + float(weights**2 @ (1 / of))) / _limit(size, freedom), weights


@cache
def _limit(size: int, freedom: int) -> float:
    """Return what chance exceeds in one case of a hundred: Hotelling's T^2, from draws of its two chi-squares."""
    rng, rest = np.random.default_rng(0), max(freedom - size + 1, 1)
    draws = rng.chisquare(size, DRAWS) / rng.chisquare(rest, DRAWS) * max(freedom, 1)
    return float(np.quantile(draws, LEVEL))


def _points(rows: Rows, sure: Sequence[float], scale: float) -> Floats:
    """Return rows [n, d] in units of their spread, and the logit of the confidence as one more column."""
    chance = np.clip(np.asarray(sure, float), 1e-6, 1 - 1e-6)
    return np.column_stack([np.asarray(rows, float) / scale, 0.5 * np.log(chance / (1 - chance))])


def _distinct(points: Floats) -> float:
    """Return how many independent images points [n, D] are worth (Kish): the same one again tells nothing new."""
    _, counts = np.unique(points.round(2), axis=0, return_counts=True)
    return float(len(points) ** 2 / (counts**2).sum())


def _sums(points: Floats, number: NDArray[np.int64], classes: int) -> Floats:
    sums = np.zeros((classes, points.shape[1]))
    np.add.at(sums, number, points)
    return sums


def _scatter(card: Mapping[str, Any]) -> Floats:
    """Return the sum of squares and products within the reference's classes [D, D]; beyond what is saved, all alike."""
    kept, rest = card["scatter"], card["scatter"]["rest"]
    directions = _unpacked(kept["directions"]).reshape(-1, len(kept["sums"]))
    scatter = (directions * (np.array(kept["sums"]) - rest)) @ directions.T
    scatter.flat[:: len(scatter) + 1] += rest
    return np.asarray(scatter)


def _packed(values: Floats) -> str:
    return base64.b64encode(values.astype("<f2").tobytes()).decode()


def _unpacked(text: str) -> Floats:
    return np.frombuffer(base64.b64decode(text), "<f2").astype(float)


def _mixture(points: Floats, goal: Floats) -> Floats:
    """Return the weights [K] of the mixture of points [K, d] that is nearest to one [d]."""
    weights = np.full(len(points), 1 / len(points))
    gram, cross = points @ points.T, points @ goal
    step = 1 / max(float(np.linalg.norm(gram, 2)), TINY)
    for _ in range(STEPS):  # projected gradient
        weights = _simplex(weights - step * (gram @ weights - cross))
    return weights


def _simplex(values: Floats) -> Floats:
    """Return the nearest weights: none negative, all of them 1."""
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(values) + 1)
    return np.asarray(np.maximum(values - excess[np.flatnonzero(falling > excess)[-1]], 0))


def _by_version_1(rows: Rows, best: Sequence[str], unknown: float, card: Mapping[str, Any]) -> Drift:
    """Return what a reference of the first version tells: 1 is as far as training domains are from one another.

    It knows nothing of how sure the student is of each class, and takes a shifted mix of many classes for drift.
    """
    domains, expected, of = card["domains"], card["unknown"], card["pictures"]
    error = math.sqrt(max(expected * (1 - expected), 1e-4) * (1 / max(len(rows), 1) + 1 / of))
    alarm = len(rows) >= FEWEST and unknown - expected > max(POINTS, 3 * error)
    shares = (unknown, expected, of)
    if len(rows) < FEWEST or len(domains) < 2:
        return Drift(len(rows), None, None, *shares, alarm=alarm)
    means = np.stack([_mean_1(each) for each in domains.values()])
    errors = np.array([each["error"] for each in domains.values()])
    others = [np.arange(len(means)) != one for one in range(len(means))]
    apart = [
        _distance_1(mean, error, means[rest], errors[rest])[0]
        for mean, error, rest in zip(means, errors, others, strict=True)
    ]
    unit = max(float(np.median(apart)), math.sqrt(float(np.median(errors))))  # never finer than what can be told
    centres = card["centres"]
    named = [label if label in centres else "" for label in best]  # "": the mean of all
    left = rows - np.stack([_mean_1(centres[label]) for label in named])
    share = {label: named.count(label) / len(named) for label in set(named)}
    uncertain = sum(part**2 * centres[label]["error"] for label, part in share.items())
    away, weights = _distance_1(left.mean(0), left.var(0, ddof=1).sum() / len(left) + uncertain, means, errors)
    distance = away / max(unit, 1e-6)
    return Drift(len(rows), distance, list(domains)[int(weights.argmax())], *shares, alarm=alarm or distance >= 1)


def _mean_1(kept: Mapping[str, Any]) -> Floats:
    return np.frombuffer(base64.b64decode(kept["mean"]), "<f4").astype(float)


def _distance_1(mean: Floats, error: float, means: Floats, errors: Floats) -> tuple[float, Floats]:
    """Return how far a mean [d] is from the nearest mixture of others [K, d], and the mixture's weights [K]."""
    centred, point = means - means.mean(0), mean - means.mean(0)
    weights = _mixture(centred, point)
    difference = point - weights @ centred
    return float(np.sqrt(max(difference @ difference - error - weights**2 @ errors, 0.0))), weights
