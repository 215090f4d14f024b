"""How far live traffic is from what a student learned: distances of mean embeddings, and the share of "unknown"."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 30  # pictures; with fewer nothing is said
WINDOW = 1000  # the latest pictures that are looked at
NEAR, FAR = 0.5, 1.0  # distances at which the verdict changes
POINTS = 0.05  # that the share of "unknown" may rise by before anything is said

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Drift:
    """Live traffic against the training domains.

    Attributes:
        pictures: how many were looked at.
        distance: of their mean from the nearest training domain's, where 1 is how far a training domain typically is
            from the one nearest to it; None where the student learned from one domain, or there are too few pictures.
        nearest: that training domain.
        unknown: share of them with the answer "unknown".
        expected: that share on the training domains' validation pictures.
    """

    pictures: int
    distance: float | None
    nearest: str | None
    unknown: float
    expected: float

    @property
    def more_unknown(self) -> bool:
        """Whether "unknown" is more frequent than on validation pictures, beyond chance (3 standard errors)."""
        error = math.sqrt(max(self.expected * (1 - self.expected), 1e-4) / max(self.pictures, 1))
        return self.unknown - self.expected > max(POINTS, 3 * error)

    def verdict(self) -> str:
        """Return a sentence for people."""
        if self.pictures < FEWEST:
            return f"too few pictures to tell ({self.pictures} of {FEWEST})"
        if self.distance is None:
            where = "where pictures come from can't be told: the student learned from one domain"
        elif self.distance < NEAR:
            where = f"pictures look like those of {self.nearest}"
        elif self.distance < FAR:
            where = f"pictures differ from every training domain, least from {self.nearest}"
        else:
            where = "pictures are as far from every training domain as these are from one another, or farther"
        drifted = self.more_unknown or (self.distance or 0) >= FAR
        advice = "drift: look at some of them, and measure the accuracy on a labelled sample" if drifted else "no alarm"
        more = "more" if self.more_unknown else "not more"
        return f"{where}; {more} unknown than expected; {advice}"


def reference(outputs: Mapping[str, Rows], unknown: float) -> dict[str, Any]:
    """Return what an export's card keeps of the training domains, JSON types only.

    Args:
        outputs: domain -> what the network gave for its validation pictures [n, d].
        unknown: share of all of them with the answer "unknown".
    """
    domains = {
        name: {"mean": base64.b64encode(rows.mean(0).astype("<f4").tobytes()).decode(), "error": _error(rows)}
        for name, rows in outputs.items()
    }
    return {"domains": domains, "unknown": unknown}


def drift(rows: Rows, unknown: float, kept: Mapping[str, Any]) -> Drift:
    """Return how far live traffic is from the training domains.

    Means of finitely many pictures are never at the same place, even if the pictures are of one kind: the variance that
    this accounts for is taken off squared distances.

    Args:
        rows: what the network gave for live pictures [n, d].
        unknown: share of them with the answer "unknown".
        kept: from `reference`.
    """
    domains, expected = kept["domains"], kept["unknown"]
    if len(rows) < FEWEST or len(domains) < 2:
        return Drift(len(rows), None, None, unknown, expected)
    means = {name: np.frombuffer(base64.b64decode(each["mean"]), "<f4") for name, each in domains.items()}
    errors = {name: each["error"] for name, each in domains.items()}
    apart = dict.fromkeys(means, np.inf)
    for one, other in itertools.permutations(means, 2):
        apart[one] = min(apart[one], _distance(means[one] - means[other], errors[one] + errors[other]))
    here, error = rows.mean(0), _error(rows)
    away = {name: _distance(here - mean, error + errors[name]) for name, mean in means.items()}
    nearest = min(away, key=away.__getitem__)
    typical = max(float(np.median(list(apart.values()))), 1e-6)
    return Drift(len(rows), away[nearest] / typical, nearest, unknown, expected)


def _error(rows: Rows) -> float:
    """Return the expected squared distance of the mean of rows [n, d] from the true one."""
    return float(rows.var(0, ddof=1).sum() / len(rows)) if len(rows) > 1 else 0.0


def _distance(difference: Rows, error: float) -> float:
    return float(np.sqrt(max(float(difference @ difference) - error, 0.0)))
