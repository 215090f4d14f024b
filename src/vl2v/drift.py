"""How far live traffic is from what a student learned: distances of mean embeddings, and the share of "unknown"."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 30  # pictures; with fewer nothing is said
FEWEST_OF_CLASS = 5  # validation pictures that a class's mean is taken of
OTHERS = ""  # what is kept of classes with fewer, or added later: the mean of all pictures
WINDOW = 1000  # the latest pictures that are looked at
NEAR, FAR = 0.3, 1.0  # distances at which the verdict changes
POINTS = 0.05  # that the share of "unknown" may rise by before anything is said

STEPS = 500  # of the search for the nearest mixture

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """Live traffic against the training domains.

    Attributes:
        pictures: how many were looked at.
        distance: of their mean, less that of their classes, from the training domains' (from the nearest mixture of
            these), where 1 is how far a training domain typically is from the others; None where the student learned
            from one domain, or there are too few pictures.
        nearest: the training domain that has most of that mixture.
        unknown: share of them with the answer "unknown".
        expected: that share on the training domains' validation pictures.
        of: how many these were.
    """

    pictures: int
    distance: float | None
    nearest: str | None
    unknown: float
    expected: float
    of: int

    @property
    def more_unknown(self) -> bool:
        """Whether "unknown" is more frequent than on validation pictures, beyond chance (3 standard errors)."""
        variance = max(self.expected * (1 - self.expected), 1e-4)
        error = math.sqrt(variance * (1 / max(self.pictures, 1) + 1 / self.of))
        return self.unknown - self.expected > max(POINTS, 3 * error)

    def verdict(self) -> str:
        """Return a sentence for people."""
        if self.pictures < FEWEST:
            return f"too few pictures to tell ({self.pictures} of {FEWEST})"
        if self.distance is None:
            where = "where pictures come from can't be told: the student learned from one domain"
        elif self.distance < NEAR:
            where = f"pictures look like training domains, most like {self.nearest}"
        elif self.distance < FAR:
            where = f"pictures differ somewhat from the training domains, least from {self.nearest}"
        else:
            where = "pictures are at least as far from the training domains as these are from one another"
        drifted = self.more_unknown or (self.distance or 0) >= FAR
        advice = "drift: look at some of them, and measure the accuracy on a labelled sample" if drifted else "no alarm"
        more = "more" if self.more_unknown else "not more"
        return f"{where}; {more} unknown than expected; {advice}"


def reference(outputs: Mapping[str, tuple[Rows, Sequence[str]]], unknown: float) -> dict[str, Any]:
    """Return what an export's card keeps of the training domains, JSON types only.

    Which classes come says nothing of where pictures come from, but moves their mean: so the mean of its class, as far
    as there are pictures of it, is taken off every row, here and of live traffic.

    Args:
        outputs: domain -> what the network gave for its validation pictures [n, d], and the best class of each.
        unknown: share of all of them with the answer "unknown".
    """
    rows = np.concatenate([each for each, _ in outputs.values()])
    labels = np.array([label for _, best in outputs.values() for label in best])
    groups = {label: rows[labels == label] for label in dict.fromkeys(labels.tolist())}
    centres = {label: _kept(group) for label, group in groups.items() if len(group) >= FEWEST_OF_CLASS}
    kept = {"centres": {OTHERS: _kept(rows), **centres}, "unknown": unknown, "pictures": len(rows)}
    domains = {name: _kept(_without_class(each, best, kept)[0]) for name, (each, best) in outputs.items()}
    return {**kept, "domains": domains}


def drift(rows: Rows, best: Sequence[str], unknown: float, kept: Mapping[str, Any]) -> Drift:
    """Return how far live traffic is from the training domains.

    Means of finitely many pictures are never at the same place, even if the pictures are of one kind: the variance that
    this accounts for is taken off squared distances.

    Args:
        rows: what the network gave for live pictures [n, d].
        best: the best class of each.
        unknown: share of them with the answer "unknown".
        kept: from `reference`.
    """
    domains, shares = kept["domains"], (unknown, kept["unknown"], kept["pictures"])
    if len(rows) < FEWEST or len(domains) < 2:
        return Drift(len(rows), None, None, *shares)
    means = np.stack([_mean(each) for each in domains.values()]).astype(float)
    errors = np.array([each["error"] for each in domains.values()])
    others = [np.arange(len(means)) != place for place in range(len(means))]
    apart = [
        _distance(mean, error, means[rest], errors[rest])[0]
        for mean, error, rest in zip(means, errors, others, strict=True)
    ]
    unit = max(float(np.median(apart)), math.sqrt(float(np.median(errors))))  # never finer than what can be told
    residuals, uncertain = _without_class(rows, best, kept)
    away, weights = _distance(residuals.mean(0).astype(float), _error(residuals) + uncertain, means, errors)
    return Drift(len(rows), away / max(unit, 1e-6), list(domains)[int(weights.argmax())], *shares)


def _without_class(rows: Rows, best: Sequence[str], kept: Mapping[str, Any]) -> tuple[Rows, float]:
    """Return rows [n, d] less the mean of their class, and the expected squared error of their mean by that."""
    centres = kept["centres"]
    named = [label if label in centres else OTHERS for label in best]
    means = {label: _mean(centres[label]) for label in set(named)}
    shares = {label: named.count(label) / len(named) for label in means}
    return rows - np.stack([means[label] for label in named]), sum(
        share**2 * centres[label]["error"] for label, share in shares.items()
    )


def _kept(rows: Rows) -> dict[str, Any]:
    return {"mean": base64.b64encode(rows.mean(0).astype("<f4").tobytes()).decode(), "error": _error(rows)}


def _mean(kept: Mapping[str, Any]) -> Rows:
    return np.frombuffer(base64.b64decode(kept["mean"]), "<f4")


def _error(rows: Rows) -> float:
    """Return the expected squared distance of the mean of rows [n, d] from the true one."""
    return float(rows.var(0, ddof=1).sum() / len(rows)) if len(rows) > 1 else 0.0


def _distance(mean: Floats, error: float, means: Floats, errors: Floats) -> tuple[float, Floats]:
    """Return how far a mean [d] is from the nearest mixture of others [K, d], and the mixture's weights [K].

    Args:
        mean: of some pictures.
        error: its expected squared distance from the true one.
        means: of others.
        errors: theirs.
    """
    centred, point = means - means.mean(0), mean - means.mean(0)
    gram, cross = centred @ centred.T, centred @ point
    step = 1 / max(float(np.linalg.norm(gram, 2)), 1e-12)
    weights = np.full(len(means), 1 / len(means))
    for _ in range(STEPS):  # projected gradient
        weights = _simplex(weights - step * (gram @ weights - cross))
    difference = point - weights @ centred
    return float(np.sqrt(max(difference @ difference - error - weights**2 @ errors, 0.0))), weights


def _simplex(values: Floats) -> Floats:
    """Return the nearest weights: none negative, all of them 1."""
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(values) + 1)
    return np.asarray(np.maximum(values - excess[np.flatnonzero(falling > excess)[-1]], 0))
