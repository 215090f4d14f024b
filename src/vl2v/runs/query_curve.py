"""Are more queries worth it? The curve of a first student's accuracy against how many images were asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vl2v.embeddings import EmbeddingStore
from vl2v.embeddings.bill import Cost, cost, with_budget
from vl2v.embeddings.select import random_order
from vl2v.embeddings.teaching import clean_images, the_teacher
from vl2v.errors import ConfigError
from vl2v.progress import Progress, silent
from vl2v.runs.datasets import open_sources
from vl2v.runs.features import aligned
from vl2v.runs.query import free_features
from vl2v.runs.session import open_session
from vl2v.runs.settings import resolve
from vl2v.session import Session

FEWEST = 64  # answers without which there is no curve
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
SEEDS = 3
WORTH = 0.005  # half a point of accuracy


@dataclass(frozen=True)
class Point:
    """Mean accuracy (0 to 1) with so many answers, and its standard error over draws of the images."""

    images: int
    accuracy: float
    error: float


@dataclass(frozen=True)
class Advice:
    """What the answers so far brought.

    Attributes:
        points: the curve; the last one is all that is known.
        left: training images that weren't asked about.
        cost: of asking about them; None for a teacher that costs nothing.
    """

    points: tuple[Point, ...]
    left: int
    cost: Cost | None

    def gain(self) -> tuple[float, float]:
        """Return what the rest of the images may add to the accuracy, and the standard error of that.

        Each doubling is taken to add as much less than the one before as the last did than the one before it.
        """
        *_, before, half, whole = self.points
        last, previous = whole.accuracy - half.accuracy, half.accuracy - before.accuracy
        shrink = min(max(last / previous, 0.0), 1.0) if previous > 0 else 0.5
        doublings = np.log2(1 + self.left / whole.images)
        steps = np.arange(1, int(np.ceil(doublings)) + 1)
        parts = np.minimum(1.0, doublings - steps + 1) * shrink**steps
        error = (whole.error**2 + half.error**2) ** 0.5
        return float(max(last, 0.0) * parts.sum()), float(error * max(1.0, parts.sum()))

    def verdict(self) -> str:
        """Return a sentence or two for people."""
        if not self.left:
            return "every training image was asked about: there is nothing left to ask"
        gain, error = self.gain()
        price = f" ({self.cost.price()})" if self.cost else ""
        rest = f"the {self.left:,} images that are left{price}"
        expected = f"{rest} may add {100 * gain:.1f} points (standard error {100 * error:.1f})"
        if gain >= WORTH and gain > error:
            return f"worth asking more: {expected}"
        if gain + 2 * error < WORTH:
            return f"not worth asking more: {expected}"
        return f"hard to tell: {expected}; ask about a few hundred more and look again"


def advise(
    settings: Mapping[str, Any],
    *,
    preset: str = "default",
    store: Path | str | None = None,
    progress: Progress = silent,
) -> Advice:
    """Return how a first student's validation accuracy grows with the images asked about; ask nothing.

    The first student is the projector, aligned on the free student's features (`vl2v.runs.features.aligned`); of the
    images that are known, an eighth, a quarter, half and all are taken, three times at random.

    Args:
        settings: as for `embed`.
        preset: as for `embed`.
        store: the folder of the embedding store.
        progress: called as the work goes on.

    Raises:
        ConfigError: fewer than 64 training images were asked about, or not the classes' texts.
    """
    config = resolve(settings, preset)
    shared = Session.of(store, progress=progress)
    sources = open_sources(config, shared)
    teacher = the_teacher(config.teacher)
    with EmbeddingStore(shared.store) as answers, with_budget(teacher, shared, "vl2v embed --advise") as spending:
        session = open_session(config, answers, teacher, spending, sources, clean_images(config), progress)
        plan = session.plan(sources.training)
        known = sources.training[session.cached(sources.training)]
        if len(known) < FEWEST or plan.pending_texts:
            raise ConfigError(
                f"--advise: {len(known)} of {len(sources.training)} training images and {plan.cached_texts} of "
                f"{plan.texts} texts are answered; ask about at least {FEWEST} images first, for example with "
                "--select 300"
            )
        features = free_features(config, sources, progress)
        points = []
        for share in SHARES:
            count = round(share * len(known))
            accuracies = []
            for seed in range(SEEDS):
                drawn = np.sort(known[random_order(len(known), seed)[:count]])
                _, scores = aligned(config, sources, features, session.targets(drawn), seed, steps=300)
                accuracies.append(scores.accuracy)
            error = float(np.std(accuracies, ddof=1) / SEEDS**0.5)
            points.append(Point(count, float(np.mean(accuracies)), error))
        return Advice(tuple(points), len(sources.training) - len(known), cost(plan, teacher, spending))
