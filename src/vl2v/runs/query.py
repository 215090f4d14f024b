"""Querying a teacher about a dataset, apart from any training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from vl2v.config import RunConfig
from vl2v.embeddings.bill import Cost, LedgerBudget, cost, with_budget
from vl2v.embeddings.fetch import Refusal
from vl2v.embeddings.plan import BY_STUDENT, Plan, Views, clean_images, fixed_views, random_order
from vl2v.embeddings.session import TeacherSession
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, VL2VWarning, did_you_mean
from vl2v.methods import find_method
from vl2v.runs.datasets import Sources, open_everything, open_sources
from vl2v.runs.settings import Options, has_tower, resolve, settings_of
from vl2v.session import Progress, Session, silent
from vl2v.table import Table
from vl2v.teachers import online_teacher, the_teacher, tower_of
from vl2v.teachers.prompts import check_prompts, prompts_for
from vl2v.teachers.protocol import Teacher

if TYPE_CHECKING:
    from vl2v.runs.cluster import Cluster


def open_session(
    config: RunConfig,
    store: EmbeddingStore,
    teacher: Teacher,
    spending: LedgerBudget | None,
    sources: Sources,
    views: Views,
    progress: Progress,
) -> TeacherSession:
    """Return the session that queries a teacher about the images to learn from.

    Raises:
        ConfigError: settings that don't go together.
    """
    wanted = config.teacher
    store.recognise(teacher)
    if queries_online(config):
        online_teacher(wanted, teacher)  # refuses a black box before anything is paid
    if wanted.online and wanted.views:
        raise ConfigError("teacher.online and teacher.views exclude one another; set teacher.online=false, or no views")
    dataset = sources.dataset
    _check_names(config.prompts.overrides, (*dataset.classes, *sources.others))
    names = (*dataset.classes, *sources.others)
    for note in check_prompts(names, prompts_for(names, config.prompts, sources.names), teacher):
        warnings.warn(note, VL2VWarning, stacklevel=2)
    of_run = dataset, sources.audit, sources.names, views, progress, sources.others
    anchors = find_method(config.method).anchors
    return TeacherSession(config, store, teacher, spending, *of_run, with_anchors=anchors, fit_scale=fit_scale)


def fit_scale(cosines: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the logit scale with which a teacher's probabilities fit the labels best (Guo et al., ICML 2017).

    Args:
        cosines: I(x) T' [n, C].
        labels: [n].
    """
    import torch

    from vl2v.evaluation.metrics import fit_temperature

    return 1 / fit_temperature(torch.from_numpy(cosines), torch.from_numpy(labels))


def queries_online(config: RunConfig) -> bool:
    """Return whether the teacher embeds every augmented batch anew, for methods that learn from image embeddings."""
    return config.teacher.online and find_method(config.method).queries == "images"


def _check_names(overrides: Iterable[str], classes: Sequence[str]) -> None:
    """Refuse overrides of classes that are misspelt; others may be for classes that come later."""
    for name in set(overrides) - set(classes):
        if hint := did_you_mean(name, set(classes) - set(overrides)):
            raise ConfigError(f"prompts.overrides.{name}: the data have no such class; {hint}")


@dataclass(frozen=True)
class QueryReport:
    """What a dataset takes of a teacher, and what came of it.

    Attributes:
        plan: the queries, and what was cached before.
        cost: of the queries, forecast before they were sent; None for a teacher that costs nothing.
        bill: spent and reserved in all, of the budget; "" for a teacher that costs nothing.
    """

    plan: Plan
    cost: Cost | None
    refused: tuple[Refusal, ...]
    bill: str

    def summary(self) -> str:
        """Return a few lines for people: images, texts, and what they cost."""
        return self.plan.summary() + ("" if self.cost is None else f"\n{self.cost.summary()}")


def embed(
    settings: Mapping[str, Any] | None = None,
    *,
    data: Path | str | Mapping[str, Any] | None = None,
    teacher: str | Mapping[str, Any] | None = None,
    student: str | Mapping[str, Any] | None = None,
    method: str | None = None,
    target: str | Sequence[str] | None = None,
    preset: str = "default",
    store: Path | str | None = None,
    budget: float = 0,
    dry_run: bool = False,
    cluster: Cluster | None = None,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> QueryReport:
    """Query every image of a dataset (`data.target` left out) and every class prompt, once.

    With `teacher.select`, the selected training images only.

    Args:
        settings: as for `distill`, all of them: views, for example, are of the student's input size. So are the
            keywords, which are laid over it.
        data: the images.
        teacher: to query.
        student: that will be trained.
        method: that will train it.
        target: left out, as it will be of training.
        preset: as for `distill`.
        store: the folder of the embedding store; by default the one that all runs share.
        budget: lifetime spending limit of this store for a paid teacher, in the vendor's currency.
        dry_run: only plan, query nothing. (A strategy that goes by a first student can't select its
            images before some are queried.)
        cluster: where the images are embedded; by default in this process.
        progress: called with the progress.
        **options: see `vl2v.runs.settings.Options`.

    Raises:
        BudgetReached: every embedding paid for is saved; the same call with a larger budget resumes.
        ConfigError: a cluster that can't start a task.
        StudentError: a student that can't be trained; nothing is queried then.

    Examples:
        >>> queried = embed(data="images", teacher="recorded:vendor", dry_run=True)
        >>> queried.cost is None  # a recording costs nothing
        True
    """
    given = settings_of(settings, data=data, teacher=teacher, student=student, method=method, target=target, **options)
    config = resolve(given, preset)
    session = Session.of(store, budget, progress)
    opened = open_everything if config.teacher.select is None else open_sources
    sources = opened(config, session)
    source = the_teacher(config.teacher)
    views = _views(config, source)
    with EmbeddingStore(session.store) as embeddings, with_budget(source, session, "vl2v embed") as spending:
        queries = open_session(config, embeddings, source, spending, sources, views, progress)
        if cluster is not None:
            queries = replace(queries, fetch=partial(cluster.fetch, config=config.teacher))
        chosen = _chosen(queries, sources, dry_run=dry_run)
        plan = queries.plan(chosen)
        forecast = cost(plan, source, spending)
        refused = [] if dry_run else queries.query(chosen)
        return QueryReport(plan, forecast, tuple(refused), spending.bill() if spending else "")


def _views(config: RunConfig, teacher: Teacher) -> Views:
    """Return the views to query, after checking that the student can be trained on them."""
    from vl2v.students.backbone import image_size_of, output_width

    if not has_tower(config, find_method(config.method)):
        size = image_size_of(config.student.name, config.student.image_size)
        output_width(config.student.name, size)
    elif config.teacher.views:
        size = tower_of(teacher)[1].image_size
    return fixed_views(config, size) if config.teacher.views else clean_images(config)


def _chosen(session: TeacherSession, sources: Sources, *, dry_run: bool) -> NDArray[np.int64] | None:
    config = session.config
    if config.teacher.select is None:
        return None
    from vl2v.runs.start import free_features, selected, selected_before

    if dry_run and (before := selected_before(session, sources)) is not None:
        return before
    if dry_run and config.teacher.strategy in BY_STUDENT:  # as many, though not the same
        config = config.model_copy(update={"teacher": config.teacher.model_copy(update={"strategy": "random"})})
        session = replace(session, config=config)
    return selected(session, sources, free_features(config, sources, session.progress))


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
        labelled: whether the curve is of accuracy; else, where no image has a label, of agreement with the teacher.
        pool: whether there are images without labels beside those with labels.
    """

    points: tuple[Point, ...]
    left: int
    cost: Cost | None
    labelled: bool = True
    pool: bool = False

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
            return "every training image was queried"
        gain, error = self.gain()
        price = f" ({self.cost.price()})" if self.cost else ""
        rest = f"the {self.left:,} images that are left{price}"
        expected = f"{rest} may add {100 * gain:.1f} points (standard error {100 * error:.1f})"
        if gain >= WORTH and gain > error:
            return f"worth querying more: {expected}"
        if gain + 2 * error < WORTH:
            return f"not worth querying more: {expected}"
        return f"uncertain: {expected}; query a few hundred more, then run this again"

    def table(self) -> Table:
        """Return the curve of accuracy against queries, with the verdict on more of them."""
        rows = [[f"{p.images:,}", f"{100 * p.accuracy:.1f}", f"{100 * p.error:.1f}"] for p in self.points]
        notes = [self.verdict()]
        if self.pool:
            notes.append("the source domains can't tell what images without labels add on unseen domains")
        what = "accuracy" if self.labelled else "agreement"
        title = (
            "a first student's accuracy % on the source domains' validation images"
            if self.labelled
            else "on how many % of the held-out images a first student agrees with the teacher"
        )
        return Table(["images queried", what, "standard error"], rows, (), notes, title, left=())


def advise(
    settings: Mapping[str, Any],
    *,
    preset: str = "default",
    store: Path | str | None = None,
    progress: Progress = silent,
) -> Advice:
    """Return how a first student's validation accuracy grows with the queried images; query nothing.

    The first student is the projector, aligned on the free student's features; of the cached images an eighth, a
    quarter, half and all are taken, three times at random.

    Args:
        settings: as for `embed`.
        preset: as for `embed`.
        store: the folder of the embedding store.

    Raises:
        ConfigError: fewer than 64 training images were queried, or not all class prompts.
    """
    from vl2v.runs.start import aligned, free_features

    config = resolve(settings, preset)
    shared = Session.of(store, progress=progress)
    sources = open_sources(config, shared)
    teacher = the_teacher(config.teacher)
    with EmbeddingStore(shared.store) as embeddings, with_budget(teacher, shared, "vl2v embed --advise") as spending:
        session = open_session(config, embeddings, teacher, spending, sources, clean_images(config), progress)
        plan = session.plan(sources.queried)
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
        rest = replace(session, views=_views(config, teacher)).plan(sources.queried)  # a run queries every view
        left = int((~session.cached(sources.queried)).sum())
        pool = sources.labelled and len(sources.split.unlabelled) > 0
        return Advice(tuple(points), left, cost(rest, teacher, spending), sources.labelled, pool)
