"""Drift: whether live images still look like the training domains, whatever their mix of classes.

The mix of classes, and of training domains, moves the mean of a network's outputs, and isn't drift. So images are
compared with the reference's images of the same predicted class, and the remaining difference with the nearest mixture
of domains: Hotelling's two-sample test (Annals of Mathematical Statistics 1931), once on the directions in which images
vary most and once on the confidence. The mean of a class with few reference images is shrunk to the mean of all (an
empirical Bayes estimate). The variance includes both samples' errors and that of the shrinkage.
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

VERSION = 2  # of the reference in a card; 1 had no version
FEWEST = 30  # distinct live images; fewer are not compared
ENOUGH = 200  # reference images beside one a class; with fewer only gross changes are found (docs/monitoring.md)
WINDOW = 1000  # the latest images, which are compared
POINTS = 0.05  # rise of the share of "unknown" that is mentioned

LEVEL, STRICT = 0.95, 0.99  # nominal, of each of the two tests; strict with few reference images. docs/monitoring.md
MOST = 32  # directions
EACH = 8  # degrees of freedom per direction
KEPT = 48  # directions of the reference's scatter in a card
CONFUSED = 0.05  # variance of a predicted class's mean due to the other true classes in it, in units of an image's
STEPS = 500  # of the search for the nearest mixture
DRAWS = 40_000  # for the quantile of Hotelling's statistic
TINY = 1e-12

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """Live images against the training domains.

    Attributes:
        images: how many were compared; repeated images count once.
        distance: from the nearest mixture of the training domains, class by class, in units of what chance explains: 1
            and more is an alarm. None where it can't be computed.
        nearest: the training domain with the largest share of that mixture.
        unknown: share of the prediction "unknown".
        expected: that share on the reference, for the same mix of classes.
        of: reference images: of the training domains' validation split.
        wanted: reference images that finding small changes takes; 0 if there are enough.
    """

    images: int
    distance: float | None
    nearest: str | None
    unknown: float
    expected: float
    of: int
    alarm: bool = False
    wanted: int = 0

    def verdict(self) -> str:
        """Return a sentence for people."""
        if self.wanted and not self.alarm and self.images >= FEWEST:
            return f"too few reference images to tell ({self.of} of {self.wanted}): only gross changes would be found"
        if self.images < FEWEST:
            return f"too few images to tell ({self.images} of {FEWEST})"
        if self.distance is None:
            where = "the nearest domain isn't known: the student learned from one only"
        elif self.distance < 1:
            where = f"images look like those of the training domains, most like {self.nearest}"
        else:
            where = f"images differ from those of the training domains, least from {self.nearest}"
        more = "more" if self.unknown - self.expected > POINTS else "not more"
        advice = (
            "drift: inspect some of them, measure the accuracy on a labelled sample, and adapt the student to them: "
            "`vl2v adapt RUN --images FOLDER`, or `--from FOLDER` with what `vl2v serve --log-images FOLDER` saved"
        )
        return f"{where}; {more} unknown than expected; {advice if self.alarm else 'no alarm'}"


def reference(outputs: Mapping[str, tuple[Rows, Sequence[str], Sequence[float]]], unknown: Sequence[bool]) -> Any:
    """Return the reference that goes into an export's card, JSON types only.

    Args:
        outputs: domain -> the network's outputs for its validation images [n, d], their best classes, and the
            probabilities of these.
        unknown: whether the prediction was "unknown", for all of them in this order.
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
    """Compare live images with the training domains.

    Args:
        rows: the network's outputs for live images [n, d].
        best: the best class of each.
        unknown: share of the prediction "unknown".
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
    if not len(rows):
        return Drift(0, None, None, *shares)
    wanted = len(known) + ENOUGH
    level = LEVEL if card["images"] >= wanted else STRICT
    points = _points(rows, sure, card["scale"]) - _unpacked(card["mean"])
    _, once = np.unique(points.round(2), axis=0, return_index=True)  # an image that comes again tells nothing new
    points, number = points[once], number[once]
    if len(points) < FEWEST:
        return Drift(len(points), None, None, *shares)
    counts = np.bincount(number, minlength=len(numbers))
    left = points - (_sums(points, number, len(numbers)) / np.maximum(counts, 1)[:, None])[number]
    freedom = int(len(points) - (counts > 0).sum() + max(card["images"] - len(known), 0))
    scatter = (left.T @ left + _scatter(card)) / max(freedom, 1)
    variances, axes = np.linalg.eigh(scatter)
    most = max(1, min(MOST, freedom // EACH, len(axes)))
    confidence = np.zeros((len(axes), 1))
    confidence[-1] = 1 / math.sqrt(max(scatter[-1, -1], TINY))
    means = np.stack([_unpacked(known[name]["mean"]) if name in known else np.zeros(len(axes)) for name in numbers])
    of = np.array([each["images"] for each in seen])
    whitened = (axes[:, -most:] / np.sqrt(np.maximum(variances[-most:], TINY)), confidence)
    tests = [
        _test(card, points.mean(0) @ axis, counts / len(points), means @ axis, of, axis, len(points), freedom, level)
        for axis in whitened
    ]
    (distance, weights), (unsure, _) = tests
    distance = math.sqrt(max(distance, unsure))
    nearest = list(card["domains"])[int(weights.argmax())]
    return Drift(len(points), distance, nearest, *shares, distance >= 1, 0 if card["images"] >= wanted else wanted)


def _test(
    card: Mapping[str, Any],
    mean: Floats,
    shares: Floats,
    means: Floats,
    counts: NDArray[np.int64],
    axis: Floats,
    live: int,
    freedom: int,
    level: float,
) -> tuple[float, Floats]:
    """Return Hotelling's statistic over its quantile, and the weights of the domains.

    Args:
        card: from `reference`.
        mean: of live images [k], in whitened coordinates: the variance within a class is 1 in each.
        shares: of the predicted classes [C].
        means: of the reference's images of each class [C, k].
        counts: of these [C].
        axis: the directions [D, k].
        freedom: degrees of freedom of the variance.
    """
    size, total = len(mean), card["images"]
    spread = float((counts @ means**2).sum() + (_scatter(card) @ axis * axis).sum()) / max(total - 1, 1) / size
    prior = 1 / max(spread - 1, 0.05)  # weight of the mean of all classes, in images
    weight = counts + prior
    offsets = np.stack([_unpacked(each["mean"]) for each in card["domains"].values()]) @ axis
    of = np.array([each["images"] for each in card["domains"].values()])
    centre = spread * float((counts / total) @ (counts / total))  # variance of the mean of all classes
    apart = mean - (shares * counts / weight) @ means
    variance = 1 / live + shares**2 @ (1 / weight + CONFUSED) + (shares @ (prior / weight)) ** 2 * centre
    weights = _mixture(offsets, apart)
    rest = apart - weights @ offsets
    other = weights - of / of.sum()  # at the reference's own shares, the error of its domains is that of its mean
    return float(rest @ rest) / (variance + float(other**2 @ (1 / of))) / _limit(size, freedom, level), weights


@cache
def _limit(size: int, freedom: int, level: float) -> float:
    """Return a quantile of Hotelling's T^2, from draws of its two chi-squares."""
    rng, rest = np.random.default_rng(0), max(freedom - size + 1, 1)
    draws = rng.chisquare(size, DRAWS) / rng.chisquare(rest, DRAWS) * max(freedom, 1)
    return float(np.quantile(draws, level))


def _points(rows: Rows, sure: Sequence[float], scale: float) -> Floats:
    """Return rows [n, d] in units of their spread, with half the logit of the confidence as one more column."""
    chance = np.clip(np.asarray(sure, float), 1e-6, 1 - 1e-6)
    return np.column_stack([np.asarray(rows, float) / scale, 0.5 * np.log(chance / (1 - chance))])


def _sums(points: Floats, number: NDArray[np.int64], classes: int) -> Floats:
    sums = np.zeros((classes, points.shape[1]))
    np.add.at(sums, number, points)
    return sums


def _scatter(card: Mapping[str, Any]) -> Floats:
    """Return the scatter matrix within the reference's classes [D, D], isotropic beyond the directions in the card."""
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
    """Compare with a reference of version 1: distance 1 is that between training domains.

    It has no confidences, and can take another mix of many classes for drift.
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
    unit = max(float(np.median(apart)), math.sqrt(float(np.median(errors))))  # never finer than what can be measured
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
