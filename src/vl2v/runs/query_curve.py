"""Are more queries worth it? A first student's accuracy against the number of queried images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vl2v.embeddings.bill import Cost, cost, with_budget
from vl2v.embeddings.select import random_order
from vl2v.embeddings.store import EmbeddingStore
from vl2v.embeddings.targets import the_teacher
from vl2v.embeddings.views import clean_images
from vl2v.errors import ConfigError
from vl2v.runs.datasets import open_sources
from vl2v.runs.features import aligned
from vl2v.runs.query import free_features
from vl2v.runs.session import open_session
from vl2v.runs.settings import resolve
from vl2v.session import Progress, Session, silent

FEWEST = 64  # embeddings that a curve needs
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
SEEDS = 3
WORTH = 0.005  # half a point of accuracy


@dataclass(frozen=True)
class Point:
    """Mean accuracy (0 to 1) with this many queried images, and its standard error over draws of them."""

    images: int
    accuracy: float
    error: float


@dataclass(frozen=True)
class Advice:
    """What the queries so far brought, and what the rest would cost.

    Attributes:
        points: the curve; the last one is of all cached embeddings.
        left: training images that weren't queried.
        cost: of querying them; None for a teacher that costs nothing.
    """

    points: tuple[Point, ...]
    left: int
    cost: Cost | None

    def gain(self) -> tuple[float, float]:
        """Return what the remaining images may add to the accuracy, and its standard error.

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
            return "every training image was queried: there is nothing left to query"
        gain, error = self.gain()
        price = f" ({self.cost.price()})" if self.cost else ""
        rest = f"the {self.left:,} images that are left{price}"
        expected = f"{rest} may add {100 * gain:.1f} points (standard error {100 * error:.1f})"
        if gain >= WORTH and gain > error:
            return f"worth querying more: {expected}"
        if gain + 2 * error < WORTH:
            return f"not worth querying more: {expected}"
        return f"uncertain: {expected}; query a few hundred more, then run this again"


def advise(
    settings: Mapping[str, Any],
    *,
    preset: str = "default",
    store: Path | str | None = None,
    progress: Progress = silent,
) -> Advice:
    """Return how a first student's validation accuracy grows with the queried images; query nothing.

    The first student is the projector, aligned on the free student's features (`vl2v.runs.features.aligned`); of the
    images that are cached, an eighth, a quarter, half and all are taken, three times at random.

    Args:
        settings: as for `embed`.
        preset: as for `embed`.
        store: the folder of the embedding store.
        progress: called with the progress.

    Raises:
        ConfigError: fewer than 64 training images were queried, or not all class prompts.
    """
    config = resolve(settings, preset)
    shared = Session.of(store, progress=progress)
    sources = open_sources(config, shared)
    teacher = the_teacher(config.teacher)
    with EmbeddingStore(shared.store) as embeddings, with_budget(teacher, shared, "vl2v embed --advise") as spending:
        session = open_session(config, embeddings, teacher, spending, sources, clean_images(config), progress)
        plan = session.plan(sources.training)
        cached = sources.training[session.cached(sources.training)]
        if len(cached) < FEWEST or plan.pending_texts:
            raise ConfigError(
                f"--advise: {len(cached)} of {len(sources.training)} training images and {plan.cached_texts} of "
                f"{plan.texts} texts are queried; query at least {FEWEST} images first, for example with "
                "--select 300"
            )
        held = sources.queried[:0] if sources.labelled else sources.split.val  # which the teacher's word validates
        features = free_features(config, sources, progress)
        points = []
        for share in SHARES:
            count = round(share * len(cached))
            accuracies = []
            for seed in range(SEEDS):
                drawn = np.union1d(cached[random_order(len(cached), seed)[:count]], held)
                _, scores = aligned(config, sources, features, session.targets(drawn), seed, steps=300)
                accuracies.append(scores.accuracy)
            error = float(np.std(accuracies, ddof=1) / SEEDS**0.5)
            points.append(Point(count, float(np.mean(accuracies)), error))
        return Advice(tuple(points), len(sources.training) - len(cached), cost(plan, teacher, spending))
