"""What a dataset and its prompts take of a teacher: what is cached in the store, and what is left to query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vl2v.data.auditing import Audit
from vl2v.data.dataset import DomainDataset
from vl2v.embeddings.rows import TeacherFacts
from vl2v.embeddings.schema import image_key, text_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.embeddings.views import Views
from vl2v.errors import DataError


@dataclass(frozen=True)
class Plan:
    """The queries of a dataset and its class prompts; the same content is queried once, whatever its name.

    Attributes:
        sha256: of each image's file, 32 bytes each.
        contents: what each image's embeddings are stored under, 32 bytes each; see `Audit.contents`.
        views: which views of an image are queried.
        distinct: how many different contents the images have.
        cached: how many of the `distinct * len(views)` image queries are cached.
        pending: (dataset index, view) of the others, an image's views next to each other.
        texts: how many different texts there are.
        cached_texts: how many of them are cached.
        pending_texts: the others.
    """

    dataset: DomainDataset
    sha256: tuple[bytes, ...]
    contents: tuple[bytes, ...]
    views: Views
    distinct: int
    cached: int
    pending: tuple[tuple[int, int], ...]
    texts: int
    cached_texts: int
    pending_texts: tuple[str, ...]

    @property
    def images(self) -> int:
        """How many images the dataset has, copies included."""
        return len(self.sha256)

    @property
    def queries(self) -> int:
        """How many queries are pending: images' views and texts."""
        return len(self.pending) + len(self.pending_texts)

    @property
    def keys(self) -> list[bytes]:
        """The store's keys of the pending image queries."""
        names = self.views.names
        return [image_key(self.contents[index], names[view]) for index, view in self.pending]

    def left(self, store: EmbeddingStore, teacher: TeacherFacts) -> Plan:
        """Return the plan without the image queries that a store has cached by now."""
        return replace(self, pending=tuple(self.pending[i] for i in _missing(store, teacher, self.keys)))

    def summary(self) -> str:
        """Return two lines for people: the images, and the texts."""
        copies = self.images - self.distinct
        return (
            f"images: {self.images:,}"
            + (f" ({copies:,} of them copies)" if copies else "")
            + (f" in {len(self.views)} views ({self.views})" if self.views.k else "")
            + f": {self.distinct * len(self.views):,} queries, {self.cached:,} cached, {len(self.pending):,} pending\n"
            f"texts: {self.texts:,} queries, {self.cached_texts:,} cached, {len(self.pending_texts):,} pending"
        )


def plan(
    store: EmbeddingStore | None,
    teacher: TeacherFacts,
    dataset: DomainDataset,
    audit: Audit,
    texts: Sequence[str],
    views: Views,
) -> Plan:
    """Compare what training needs with what is cached; query nothing.

    Args:
        store: None where there is no store yet: nothing is cached then.
        dataset: the images, the unreadable ones set aside.
        audit: of this very dataset: the contents' hashes.
        texts: all prompts of all classes; repeated ones count once.

    Raises:
        DataError: the audit found an image unreadable that is still in the dataset.
        StoreError: the store cannot be read.
    """
    if len(audit.sha256) != len(dataset):
        raise ValueError(f"an audit of {len(audit.sha256)} images for a dataset of {len(dataset)}")
    if audit.problems:
        index, reason = next(iter(sorted(audit.problems.items())))
        raise DataError(f"{dataset.paths[index]}: {reason} ({len(audit.problems)} such images): set them aside first")
    if store is not None:
        store.recognise(teacher)
    hashes = audit.contents
    first = {sha256: index for index, sha256 in reversed(list(enumerate(hashes)))}
    queries = [(index, view) for index in sorted(first.values()) for view in range(len(views))]
    names = views.names
    missing = _missing(store, teacher, [image_key(hashes[index], names[view]) for index, view in queries])
    wanted = list(dict.fromkeys(texts))
    texts_missing = _missing(store, teacher, [text_key(text) for text in wanted])
    return Plan(
        dataset=dataset,
        sha256=audit.sha256,
        contents=hashes,
        views=views,
        distinct=len(first),
        cached=len(queries) - len(missing),
        pending=tuple(queries[i] for i in missing),
        texts=len(wanted),
        cached_texts=len(wanted) - len(texts_missing),
        pending_texts=tuple(wanted[i] for i in texts_missing),
    )


def _missing(store: EmbeddingStore | None, teacher: TeacherFacts, keys: Sequence[bytes]) -> list[int]:
    if store is None:
        return list(range(len(keys)))
    return [int(i) for i in np.flatnonzero(~store.cached(teacher.fingerprint, keys))]
