"""Querying a teacher about a dataset, apart from any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from vl2v.config import RunConfig
from vl2v.embeddings.bill import Cost, cost, with_budget
from vl2v.embeddings.fetch import Refusal
from vl2v.embeddings.plan import Plan
from vl2v.embeddings.select import BY_STUDENT
from vl2v.embeddings.session import TeacherSession
from vl2v.embeddings.store import EmbeddingStore
from vl2v.embeddings.targets import the_teacher, tower_of
from vl2v.embeddings.views import Views, clean_images, fixed_views
from vl2v.methods import find_method
from vl2v.runs.datasets import Sources, open_everything, open_sources
from vl2v.runs.session import open_session
from vl2v.runs.settings import Options, has_tower, resolve, settings_of
from vl2v.session import Progress, Session, silent
from vl2v.teachers.protocol import Teacher

if TYPE_CHECKING:
    from vl2v.runs.cluster import Cluster
    from vl2v.runs.features import Features


@dataclass(frozen=True)
class QueryReport:
    """What a dataset takes of a teacher, and what came of it.

    Attributes:
        plan: the queries, and what was cached before.
        cost: of the queries, forecast before they were sent; None for a teacher that costs nothing.
        refused: images that the teacher refused.
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
    from vl2v.runs.features import selected

    if dry_run and config.teacher.strategy in BY_STUDENT:  # as many, though not the same
        config = config.model_copy(update={"teacher": config.teacher.model_copy(update={"strategy": "random"})})
        session = replace(session, config=config)
    return selected(session, sources, free_features(config, sources, session.progress))


def free_features(config: RunConfig, sources: Sources, progress: Progress) -> Features:
    """Return the features of the untrained student."""
    from torch import nn

    from vl2v.runs.features import Features, new_backbone
    from vl2v.students.student import Student
    from vl2v.training.device import OneDevice

    backbone, spec = new_backbone(config)
    fabric = OneDevice(config.train)
    student = Student(backbone, nn.Identity(), spec).to(fabric.device)
    return Features(student, sources.dataset, fabric, config.data.workers, progress)
