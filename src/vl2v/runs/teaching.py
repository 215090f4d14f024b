"""The queries of a run before it starts: how many are left, how long they take, and what they cost."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from vl2v.config import RunConfig
from vl2v.embeddings.bill import cost, with_budget
from vl2v.embeddings.plan import Plan, fixed_views
from vl2v.embeddings.session import TeacherSession, dim_of
from vl2v.embeddings.store import EmbeddingStore
from vl2v.methods import Task
from vl2v.privacy import public_name
from vl2v.runs.datasets import Sources
from vl2v.runs.features import Indices
from vl2v.runs.query import open_session
from vl2v.runs.settings import has_tower
from vl2v.runs.start import candidates, selected_before
from vl2v.session import Progress, Session
from vl2v.students.backbone import image_size_of
from vl2v.teachers import the_teacher
from vl2v.teachers.paid.teacher import as_paid
from vl2v.teachers.protocol import EncodedImage, Teacher
from vl2v.training.batches import read_again

SAMPLE = 4  # queries by which a local teacher is measured


@dataclass(frozen=True)
class Teaching:
    """The queries of a run.

    Attributes:
        name: of the teacher; "" if none is queried.
        queries: how many are left.
        cached: how many aren't.
        seconds: they take.
        price: in words.
        unlabelled: how many of the images without labels are learnt from; roughly, where they aren't selected yet.
        passed: how many images pass through the student as it starts, once, to select those that are queried.
    """

    name: str = ""
    queries: int = 0
    cached: int = 0
    seconds: float = 0.0
    price: str = "free"
    unlabelled: int = 0
    passed: int = 0

    def __str__(self) -> str:
        if not self.name:
            return "no teacher is queried"
        toy = " (for trying, not for work)" if self.name == "tiny" else ""
        return f"teacher {self.name}{toy}: {self.queries:,} queries ({self.cached:,} cached), {self.price}"


def teaching_of(
    config: RunConfig, task: Task, sources: Sources, store: EmbeddingStore, budget: float, progress: Progress
) -> tuple[Teaching, Teacher | None, int]:
    """Return the queries of a run, its teacher, and d of the teacher's space; nothing is put into the store."""
    if task.queries == "nothing" and not has_tower(config, task):
        return Teaching(), None, 0
    progress("opening the teacher", 0, 1, "")
    teacher = the_teacher(config.teacher)
    name = public_name(teacher.name)
    with with_budget(teacher, Session(store.path, budget), "vl2v distill") as spending:
        progress("opening the teacher", 1, 1, "")
        if task.queries == "nothing":
            return Teaching(), teacher, dim_of(store, teacher)
        size = image_size_of(config.student.name, config.student.image_size) if config.teacher.views else 0
        views = fixed_views(config, size)
        session = open_session(config, store, teacher, spending, sources, views, progress)
        wanted, unlabelled, passed = _queried(session, task, sources)
        queries = session.plan(wanted)
        dim = dim_of(store, teacher)
        cached = queries.cached + queries.cached_texts
        seconds, price = 0.0, "free"
        if as_paid(teacher) is None:
            seconds = _seconds_of(queries, teacher)
        else:
            forecast = cost(queries, teacher, spending)
            assert forecast is not None
            seconds, price = forecast.forecast.seconds, forecast.price()
        return Teaching(name, queries.queries, cached, seconds, price, unlabelled, passed), teacher, dim


def _queried(session: TeacherSession, task: Task, sources: Sources) -> tuple[Indices | None, int, int]:
    """Return the images that will be queried, or as many others, and `unlabelled` and `passed` of `Teaching`.

    None: all of them. Of those that nobody has selected yet, as many as possible are still to be queried, so that
    their price isn't more.
    """
    if task.queries == "texts":
        return np.zeros(0, np.int64), 0, 0
    wanted, pool = session.config.teacher, sources.split.unlabelled
    if wanted.select is None:
        return None, len(pool), 0
    if wanted.select == "known":
        found: Indices | None = sources.queried[session.cached(sources.queried)]
    else:
        found = selected_before(session, sources)
    if found is not None:
        return found, int(np.isin(found, pool).sum()), 0
    before, images = candidates(session, sources)
    images = images[np.argsort(session.cached(images), kind="stable")]
    count = min(int(wanted.select), len(images))
    unlabelled = round(count * np.isin(images, pool).sum() / max(1, len(images)))
    passed = 0 if wanted.strategy in ("random", "balanced") else len(sources.queried)
    return np.concatenate([before, images[:count]]), unlabelled, passed


def _seconds_of(queries: Plan, teacher: Teacher) -> float:
    """Return how long a local teacher's pending queries will take, measured on some of them."""
    seconds = 0.0
    if queries.pending:
        indices = [index for index, _ in queries.pending[:SAMPLE]]
        images = [EncodedImage(queries.dataset.paths[i], read_again(queries.dataset, i, bytes)) for i in indices]
        teacher.embed_images(images[:1])
        start = time.perf_counter()
        teacher.embed_images(images)
        seconds += (time.perf_counter() - start) / len(images) * len(queries.pending)
    if queries.pending_texts:
        texts = list(queries.pending_texts[:SAMPLE])
        start = time.perf_counter()
        teacher.embed_texts(texts)
        seconds += (time.perf_counter() - start) / len(texts) * len(queries.pending_texts)
    return seconds
