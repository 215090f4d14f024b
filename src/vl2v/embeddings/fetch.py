"""The fetch loop: read images, query the teacher, save the embeddings durably.

A local teacher is queried chunk by chunk; of a paid one each embedding is saved the moment it arrives, and only then
settled in the ledger.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vl2v.embeddings.plan import Plan
from vl2v.embeddings.schema import image_key, text_key
from vl2v.embeddings.store import EmbeddingStore, flaw
from vl2v.errors import DataError, TeacherError
from vl2v.io import retried
from vl2v.session import Progress, silent
from vl2v.teachers.paid.teacher import CANARY_IMAGE, CANARY_TEXT, SAME, Embedded, Kind, PaidTeacher, Refused, as_paid
from vl2v.teachers.protocol import EncodedImage, Teacher

T = TypeVar("T")
Pending = tuple[int, int]  # dataset index, view

CHUNK = 256  # queries between two commits: at most this many embeddings are lost to a crash
CHUNK_BYTES = 64 * 2**20  # of large photographs fewer, so that memory stays flat


@dataclass(frozen=True)
class Refusal:
    """An image that the teacher refuses."""

    path: str
    reason: str


def fetch(
    plan: Plan,
    store: EmbeddingStore,
    teacher: Teacher,
    progress: Progress = silent,
    check_texts: Callable[[], None] = lambda: None,
) -> list[Refusal]:
    """Send all queries that the plan has left; embeddings are on the disk before many more are queried.

    While the teacher works on one chunk, a second thread reads (and augments) the next. Killed at any moment, a new
    plan queries only what had not arrived.

    Args:
        progress: called with the queries done, at the start and after each chunk.
        check_texts: called when all texts are in the store, before the first image is queried; may raise.

    Returns:
        The images that a paid teacher refused, with its reasons.

    Raises:
        BudgetReached: a paid teacher's next query could pass the budget; every embedding paid for is saved.
        DataError: an image has changed or vanished since the audit.
        TeacherError: the teacher's output has the wrong shape, or rows that are not finite unit vectors; a paid
            teacher can't be queried, or isn't the model any more that it was.
        StoreError: the store cannot take the embeddings.
    """

    task = f"querying {teacher.name}"
    if plan.queries:
        progress(task, 0, plan.queries, "")
    paid = as_paid(teacher)
    if paid is not None:
        return _buy(plan, store, paid, progress, check_texts) if plan.queries else []
    store.register(teacher)
    done = 0
    for start in range(0, len(plan.pending_texts), CHUNK):
        texts = plan.pending_texts[start : start + CHUNK]
        vectors = _checked(teacher, teacher.embed_texts(texts), len(texts))
        store.put(teacher.fingerprint, [text_key(text) for text in texts], vectors, kind="text")
        done += len(texts)
        progress(task, done, plan.queries, "")
    if plan.pending:
        check_texts()
    names = plan.views.names
    for queries, found in _embedded(plan, teacher):
        vectors = _checked(teacher, found, len(queries))
        keys = [image_key(plan.contents[index], names[view]) for index, view in queries]
        of_views = [names[view] for _, view in queries]
        store.put(teacher.fingerprint, keys, vectors, kind="image", views=of_views)
        done += len(queries)
        progress(task, done, plan.queries, "")
    return []


def fetch_texts(store: EmbeddingStore, teacher: Teacher, texts: Sequence[str], *, checked: bool = False) -> None:
    """Query the texts that aren't cached, and save their embeddings.

    Args:
        checked: a paid teacher was found to be the model that it was, in this session.

    Raises:
        BudgetReached, TeacherError, StoreError: as `fetch` does.
    """

    store.recognise(teacher)
    keys = [text_key(text) for text in texts]
    missing = [text for text, cached in zip(texts, store.cached(teacher.fingerprint, keys), strict=True) if not cached]
    paid = as_paid(teacher)
    if missing and paid is not None:
        if not checked:
            same_model(store, paid)
        for _ in _buy_texts(store, paid, missing):
            pass
    elif missing:
        vectors = _checked(teacher, teacher.embed_texts(missing), len(missing))
        store.register(teacher)
        store.put(teacher.fingerprint, [text_key(text) for text in missing], vectors, kind="text")


def fetch_image(store: EmbeddingStore, teacher: Teacher, data: bytes, *, checked: bool = False) -> NDArray[np.float32]:
    """Return the embedding [d] of an image file's bytes, queried and saved if it isn't cached.

    Args:
        checked: a paid teacher was found to be the model that it was, in this session.

    Raises:
        BudgetReached, TeacherError, StoreError: as `fetch` does.
    """

    key, image = image_key(hashlib.sha256(data).digest()), EncodedImage("the image", data)
    store.recognise(teacher)
    if not store.cached(teacher.fingerprint, [key])[0]:
        paid = as_paid(teacher)
        if paid is not None:
            if not checked:
                same_model(store, paid)
            for outcome in _saved(store, paid, "image", [key], iter([image])):
                if not isinstance(outcome, int):
                    raise TeacherError(f"{teacher.name}: won't take the image: {outcome.reason}")
        else:
            vectors = _checked(teacher, teacher.embed_images([image]), 1)
            store.register(teacher)
            store.put(teacher.fingerprint, [key], vectors, kind="image")
    return np.asarray(store.get(teacher.fingerprint, [key])[0])


def _buy(
    plan: Plan, store: EmbeddingStore, teacher: PaidTeacher, progress: Progress, check_texts: Callable[[], None]
) -> list[Refusal]:
    """Query a paid teacher, several requests in flight; every embedding is saved first and paid for then."""
    same_model(store, teacher)
    task, done = f"querying {teacher.name}", 0
    for count in _buy_texts(store, teacher, plan.pending_texts):
        done += count
        progress(task, done, plan.queries, "")
    if plan.pending:
        check_texts()
    names, keys, paths, of_views = plan.views.names, [], [], []

    def images() -> Iterator[EncodedImage]:
        for (index, view), image in _encoded(plan):
            keys.append(image_key(plan.contents[index], names[view]))
            paths.append(image.name)
            of_views.append(names[view])
            yield image

    refusals = []
    for outcome in _saved(store, teacher, "image", keys, images(), of_views):
        if isinstance(outcome, int):
            done += outcome
        else:
            refusals.append(Refusal(paths[outcome.position], outcome.reason))
            done += 1
        progress(task, done, plan.queries, "")
    return refusals


def _buy_texts(store: EmbeddingStore, teacher: PaidTeacher, texts: Sequence[str]) -> Iterator[int]:
    """Yield how many embeddings were saved, reply by reply."""
    for outcome in _saved(store, teacher, "text", [text_key(text) for text in texts], texts):
        if not isinstance(outcome, int):
            raise TeacherError(f"{teacher.name}: won't take the text {texts[outcome.position]!r}: {outcome.reason}")
        yield outcome


def _saved(
    store: EmbeddingStore,
    teacher: PaidTeacher,
    kind: Kind,
    keys: Sequence[bytes],
    items: Iterator[EncodedImage] | Sequence[str],
    views: Sequence[str] = (),
) -> Iterator[int | Refused]:
    """Query all items and save the embeddings; yield how many of a reply were saved, or what is refused."""

    for reply in teacher.query(kind, items):
        if isinstance(reply, Refused):
            yield reply
            continue
        vectors = _checked(teacher, reply.vectors, len(reply.positions))
        of_views = [views[i] for i in reply.positions] if views else ()
        store.put(teacher.fingerprint, [keys[i] for i in reply.positions], vectors, kind=kind, views=of_views)
        reply.settle()
        yield len(reply.positions)


def same_model(store: EmbeddingStore, teacher: PaidTeacher) -> None:
    """Query one cached text and image again; a vendor can change a model under its name.

    Nothing is saved of a new teacher before both have one dimension: a single wrong reply decides nothing.

    Raises:
        TeacherError: the embeddings are another model's.
    """

    canaries: tuple[tuple[Kind, bytes, Sequence[str] | Sequence[EncodedImage]], ...] = (
        ("text", text_key(CANARY_TEXT), [CANARY_TEXT]),
        ("image", image_key(hashlib.sha256(CANARY_IMAGE).digest()), [EncodedImage("canary", CANARY_IMAGE)]),
    )
    given: list[tuple[Kind, bytes, Embedded]] = []
    try:
        for kind, key, items in canaries:
            for reply in teacher.query(kind, items):
                if not isinstance(reply, Embedded):
                    raise TeacherError(f"{teacher.name}: won't take even a small image: {reply.reason}")
                given.append((kind, key, reply))
        given.extend(_seen(store, teacher, given[-1][2]))
        store.register(teacher)
        for kind, key, reply in given:
            _compare(store, teacher, kind, key, _checked(teacher, reply.vectors, 1))
    finally:
        for _, _, reply in given:
            reply.settle()


def _seen(store: EmbeddingStore, teacher: PaidTeacher, canary: Embedded) -> Iterator[tuple[Kind, bytes, Embedded]]:
    """Query once per store the canary's data URI as a text: a server that sees images embeds it differently.

    Raises:
        TeacherError: it has the image's embedding, so images are taken for texts.
    """

    of_image: Callable[[bytes], str | None] | None = getattr(teacher, "image_as_text", None)
    text = of_image(CANARY_IMAGE) if of_image else None
    if not text or store.cached(teacher.fingerprint, [text_key(text)])[0]:
        return
    for reply in teacher.query("text", [text]):
        if not isinstance(reply, Embedded):
            return  # too long a text, so the image wasn't taken for one before
        yield "text", text_key(text), reply
        cosine = float(reply.vectors[0] @ canary.vectors[0])
        if cosine > SAME:
            raise TeacherError(
                f"{teacher.name}: embeds an image's data URI as a text (cosine {cosine:.3f}), as servers do that "
                'overlook the field "modality": it can\'t see images; none was saved: give another server or model'
            )


def _compare(store: EmbeddingStore, teacher: PaidTeacher, kind: Kind, key: bytes, vectors: NDArray[np.float32]) -> None:
    """Save the first embedding of a canary; compare later ones with it.

    Raises:
        TeacherError: they are another model's.
    """
    if not store.cached(teacher.fingerprint, [key])[0]:
        store.put(teacher.fingerprint, [key], vectors, kind=kind)
        return
    cosine = float(store.get(teacher.fingerprint, [key])[0] @ vectors[0])
    if cosine < SAME:
        raise TeacherError(
            f"{teacher.name}: embeds a cached {kind} differently than before (cosine {cosine:.3f}): its "
            "model was changed under its name; give it a new --store, or ask the vendor for the old version"
        )


def _embedded(plan: Plan, teacher: Teacher) -> Iterator[tuple[list[Pending], NDArray[np.float32]]]:
    """Yield queries and their embeddings; a teacher that can goes on embedding while these are saved."""
    chunks = _one_ahead(_chunks(plan))
    stream = getattr(teacher, "embed_stream", None)
    if stream is None:
        for queries, images in chunks:
            yield queries, teacher.embed_images(images)
        return
    under_way: deque[list[Pending]] = deque()

    def begun() -> Iterator[list[EncodedImage]]:
        for queries, images in chunks:
            under_way.append(queries)
            yield images

    for vectors in stream(begun(), len(plan.pending)):
        yield under_way.popleft(), vectors


def _chunks(plan: Plan) -> Iterator[tuple[list[Pending], list[EncodedImage]]]:
    queries: list[Pending] = []
    images: list[EncodedImage] = []
    size = 0
    for query, image in _encoded(plan):
        queries.append(query)
        images.append(image)
        size += len(image.data)
        if len(images) == CHUNK or size >= CHUNK_BYTES:
            yield queries, images
            queries, images, size = [], [], 0
    if images:
        yield queries, images


def _encoded(plan: Plan) -> Iterator[tuple[Pending, EncodedImage]]:
    """Yield every query with what the teacher is sent; an image is read and decoded once for all its views."""

    for index, group in groupby(plan.pending, key=lambda query: query[0]):
        views = tuple(view for _, view in group)
        name = plan.dataset.paths[index]
        sent = plan.views.encoded(_unchanged(plan, index), plan.sha256[index], views)
        for view, data in zip(views, sent, strict=True):
            yield (index, view), EncodedImage(name=name, data=data)


def _unchanged(plan: Plan, index: int) -> bytes:
    name = plan.dataset.paths[index]

    def read() -> bytes:
        data = plan.dataset.read(index)
        if hashlib.sha256(data).digest() != plan.sha256[index]:
            raise DataError(f"{name}: has changed since it was read for the plan: run the command again")
        return data

    try:
        return retried(read, OSError, DataError)
    except OSError as error:
        raise DataError(f"{name}: cannot be read any more ({error.strerror}): run the command again") from None


def _checked(teacher: Teacher, vectors: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    wrong = flaw(vectors, (count, teacher.dim))
    if wrong:
        raise TeacherError(f"{teacher.name}: {wrong}; nothing of this batch was saved: check the teacher")
    return vectors


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items, the next one always being prepared in a second thread."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
