"""What a person does with a store by hand: list it, export it, merge it, remove a teacher, reclaim space."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vl2v.embeddings.ledger import FILE_NAME as LEDGER
from vl2v.embeddings.ledger import Ledger
from vl2v.embeddings.rows import TeacherRecord
from vl2v.embeddings.schema import image_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import StoreError, need_extra
from vl2v.io import replacing
from vl2v.teachers.paid.limits import canonical_spec

FREE = ("tiny", "open_clip", "hf", "recorded")  # kinds that never send a bill
COPIED = 10_000  # embeddings that are exported at a time


@dataclass(frozen=True)
class Summary:
    """One teacher in a store; `paid`: its embeddings cost money, or may have."""

    teacher: TeacherRecord
    images: int
    texts: int
    paid: bool


def summaries(store: EmbeddingStore) -> list[Summary]:
    """Return what a store holds, a row a teacher, oldest first."""
    billed = set()
    if (store.path / LEDGER).is_file():
        with Ledger(store.path) as ledger:
            billed = {entry.teacher for entry in ledger.entries()}
    found = []
    for teacher in store.teachers():
        kinds = [kind for _, kind, _ in store.keys(teacher.fingerprint)]
        spec = canonical_spec(teacher.name)
        paid = spec in billed or spec.partition(":")[0] not in FREE
        found.append(Summary(teacher, kinds.count("image"), kinds.count("text"), paid))
    return found


def find_teacher(store: EmbeddingStore, wanted: str | None) -> Summary:
    """Return the teacher with this name or fingerprint (or its beginning); None: the store's only one.

    Raises:
        StoreError: there is none, or more than one.
    """
    teachers = summaries(store)
    found = [
        one for one in teachers
        if wanted is None or one.teacher.name == wanted or (wanted and one.teacher.fingerprint.startswith(wanted))
    ]  # fmt: skip
    if len(found) == 1:
        return found[0]
    what = f"no teacher {wanted}" if wanted and not found else f"{len(found)} teachers fit"
    names = ", ".join(f"{one.teacher.name} ({one.teacher.fingerprint})" for one in found or teachers) or "none"
    raise StoreError(f"{store.path}: {what}; give a name or a fingerprint: {names}")


def remove(store: EmbeddingStore, wanted: str, *, paid_too: bool = False) -> Summary:
    """Delete one teacher's embeddings; the ledger stays as it is.

    Raises:
        StoreError: no such teacher, or its embeddings were paid for and `paid_too` is False.
    """
    found = find_teacher(store, wanted)
    if found.paid and not paid_too:
        raise StoreError(
            f"{store.path}: the embeddings of {found.teacher.name} were, or may have been, paid for; "
            "add --paid-too to delete them all the same"
        )
    store.remove(found.teacher.fingerprint)
    return found


def export(store: EmbeddingStore, file: Path, wanted: str | None = None, hashes: Sequence[bytes] = ()) -> int:
    """Write a teacher's embeddings as .npz or .parquet; return how many.

    A row has the embedding (float32 [dim], a unit vector), its key in the store, and whether it is of an image or a
    text. Keys are one-way: an image's SHA-256 is given only if it is among `hashes`, its view is the clean one then.

    Args:
        file: ends with .npz or .parquet; replaced in one step.
        wanted: as for `find_teacher`.
        hashes: SHA-256 of images that may be among them.

    Raises:
        StoreError: another ending, no such teacher, or a damaged embedding.
        MissingExtra: Parquet without pyarrow.
    """
    if file.suffix not in (".npz", ".parquet"):
        raise StoreError(f"{file}: give a name that ends with .npz or .parquet")
    teacher = find_teacher(store, wanted).teacher
    rows = store.keys(teacher.fingerprint)
    clean = {image_key(digest): digest.hex() for digest in hashes}
    scale = "" if teacher.logit_scale is None else str(teacher.logit_scale)
    facts = {"teacher": teacher.name, "fingerprint": teacher.fingerprint, "logit_scale": scale}
    columns: dict[str, list[str]] = {
        "key": [key.hex() for key, _, _ in rows],
        "kind": [kind for _, kind, _ in rows],
        "sha256": [clean.get(key, "") for key, _, _ in rows],
        "view": [view or ("clean" if key in clean else "") for key, _, view in rows],
    }
    if file.suffix == ".npz":
        vectors = store.get(teacher.fingerprint, [key for key, _, _ in rows])
        arrays: dict[str, Any] = {name: np.array(values, np.str_) for name, values in columns.items()}
        arrays |= {name: np.array(value) for name, value in facts.items()}
        with replacing(file, StoreError) as temporary, temporary.open("wb") as stream:
            np.savez(stream, embedding=vectors, **arrays)
        return len(rows)
    arrow = need_extra("pyarrow", "parquet")
    parquet = need_extra("pyarrow.parquet", "parquet")
    fields = [(name, arrow.string()) for name in columns]
    schema = arrow.schema([*fields, ("embedding", arrow.list_(arrow.float32(), teacher.dim))], metadata=facts)
    with replacing(file, StoreError) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for start in range(0, len(rows), COPIED):
            part = slice(start, start + COPIED)
            vectors = store.get(teacher.fingerprint, [key for key, _, _ in rows[part]])
            cells = arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.ravel()), teacher.dim)
            writer.write_table(arrow.table([*(v[part] for v in columns.values()), cells], schema=schema))
    return len(rows)


def collect(store: EmbeddingStore) -> int:
    """Give unused space back to the disk; every embedding stays. Return the bytes won."""
    before = store.file.stat().st_size
    store.compact()
    return before - store.file.stat().st_size


@dataclass(frozen=True)
class Merged:
    """What a store took over from another: embeddings and paid queries that it didn't have."""

    embeddings: int
    queries: int


def merge(shard: Path, into: Path) -> Merged:
    """Put everything that one store has into another, made if it isn't there; the first one is left as it is.

    What is there already stays as it is. Merging again adds nothing; killed, it can be given again.

    Raises:
        StoreError: not a store, a damaged embedding, or embeddings that differ; nothing is taken over then.
    """
    if shard.resolve() == into.resolve():
        raise StoreError(f"{shard}: can't be merged into itself; give another --into")
    with ExitStack() as opened:
        theirs = opened.enter_context(EmbeddingStore(shard, read_only=True))
        ours = opened.enter_context(EmbeddingStore(into))
        bills = [opened.enter_context(Ledger(path)) for path in (shard, into) if (shard / LEDGER).is_file()]
        with ours.absorbing(theirs) as embeddings:  # durable after the bill: a crash counts too much, never too little
            queries = bills[1].absorb(bills[0]) if bills else 0
        return Merged(embeddings, queries)
