"""The fetch loop: read a chunk of pictures, ask the teacher, keep the answers durably, go on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from vl2v.embeddings.store import EmbeddingStore, flaw, image_key, text_key
from vl2v.errors import DataError, TeacherError

if TYPE_CHECKING:
    from vl2v.embeddings.plan import Plan
    from vl2v.teachers import EncodedImage, Teacher

T = TypeVar("T")
Question = tuple[int, int]  # dataset index, view

CHUNK = 256  # questions between two commits: at most this many answers are lost to a crash
CHUNK_BYTES = 64 * 2**20  # of large photographs fewer, so that memory stays flat


def fetch(
    plan: Plan, store: EmbeddingStore, teacher: Teacher, progress: Callable[[int, int], None] | None = None
) -> None:
    """Ask all that the plan has left; each chunk is on the disk before the next is asked.

    While the teacher works on one chunk, a second thread reads (and augments) the next. Killed at any moment, a new
    plan asks only for what had not arrived.

    Args:
        plan: from `vl2v.embeddings.plan` with the same store and teacher.
        store: opened for writing.
        teacher: who is asked.
        progress: called with (questions done, questions in all) at the start and after each chunk.

    Raises:
        DataError: a picture has changed or vanished since the audit.
        TeacherError: the teacher's answer has the wrong shape, or rows that are not finite unit vectors.
        StoreError: the store cannot take the answers.
    """
    store.register(teacher)
    done, report = 0, progress or (lambda done, total: None)
    report(done, plan.questions)
    for start in range(0, len(plan.texts_to_ask), CHUNK):
        texts = plan.texts_to_ask[start : start + CHUNK]
        vectors = _checked(teacher, teacher.embed_texts(texts), len(texts))
        store.put(teacher.fingerprint, [text_key(text) for text in texts], vectors, kind="text")
        done += len(texts)
        report(done, plan.questions)
    names = plan.views.names
    for questions, images in _one_ahead(_chunks(plan)):
        vectors = _checked(teacher, teacher.embed_images(images), len(images))
        keys = [image_key(plan.sha256[index], names[view]) for index, view in questions]
        store.put(teacher.fingerprint, keys, vectors, kind="image")
        done += len(questions)
        report(done, plan.questions)


def _chunks(plan: Plan) -> Iterator[tuple[list[Question], list[EncodedImage]]]:
    questions: list[Question] = []
    images: list[EncodedImage] = []
    size = 0
    for question, image in _encoded(plan):
        questions.append(question)
        images.append(image)
        size += len(image.data)
        if len(images) == CHUNK or size >= CHUNK_BYTES:
            yield questions, images
            questions, images, size = [], [], 0
    if images:
        yield questions, images


def _encoded(plan: Plan) -> Iterator[tuple[Question, EncodedImage]]:
    """Yield every question with what the teacher is sent; a picture is read and decoded once for all its views."""
    from vl2v.teachers import EncodedImage

    for index, group in groupby(plan.to_ask, key=lambda question: question[0]):
        views = tuple(view for _, view in group)
        name = plan.dataset.paths[index]
        sent = plan.views.encoded(_unchanged(plan, index), plan.sha256[index], views)
        for view, data in zip(views, sent, strict=True):
            yield (index, view), EncodedImage(name=name, data=data)


def _unchanged(plan: Plan, index: int) -> bytes:
    name = plan.dataset.paths[index]
    try:
        data = plan.dataset.read(index)
    except OSError as error:
        raise DataError(f"{name}: cannot be read any more ({error.strerror}): run the command again") from None
    if hashlib.sha256(data).digest() != plan.sha256[index]:
        raise DataError(f"{name}: has changed since it was read for the plan: run the command again")
    return data


def _checked(teacher: Teacher, vectors: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    wrong = flaw(vectors, (count, teacher.dim))
    if wrong:
        raise TeacherError(f"{teacher.name}: {wrong}; nothing of this batch was kept: check the teacher")
    return vectors


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items, the next one always being prepared in a second thread."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
