"""What tests of stores share."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vl2v.embeddings.store import EmbeddingStore


def embeddings(path: Path) -> dict[bytes, np.ndarray]:
    """Return all embeddings of a store that has one teacher."""
    with EmbeddingStore(path, read_only=True) as store:
        (teacher,) = store.teachers()
        keys = [key for key, *_ in store.keys(teacher.fingerprint)]
        return dict(zip(keys, store.get(teacher.fingerprint, keys), strict=True))


def same_embeddings(one: Path, other: Path) -> bool:
    """Whether two stores have the same embeddings, up to the rounding of batches of another size."""
    first, second = embeddings(one), embeddings(other)
    return first.keys() == second.keys() and all(np.allclose(first[key], second[key], atol=2e-3) for key in first)


@contextmanager
def writing(file: Path) -> Iterator[sqlite3.Connection]:
    """Hold a database as a process does that writes to it."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")


def sql(file: Path, *statements: str) -> list[tuple[Any, ...]]:
    """Do to a database what vl2v doesn't; return what the last statement finds."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        *_, found = [db.execute(statement).fetchall() for statement in statements]
        return found
