"""Stores that were filled apart, on other machines or by other processes, put together into one."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vl2v.embeddings import ledger
from vl2v.embeddings.ledger import Ledger
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import StoreError


@dataclass(frozen=True)
class Merged:
    """What a store took over from another: embeddings and paid queries that it didn't have."""

    embeddings: int
    queries: int


def merge(shard: Path, into: Path) -> Merged:
    """Put everything that one store has into another, made if it isn't there; the first one is left as it is.

    What is there already stays as it is. Merging again adds nothing; killed, it can be given again.

    Args:
        shard: a store's folder, with or without a ledger.
        into: another's.

    Raises:
        StoreError: not a store, a damaged embedding, or embeddings that differ; nothing is taken over then.
    """
    if shard.resolve() == into.resolve():
        raise StoreError(f"{shard}: can't be merged into itself; give another --into")
    with ExitStack() as opened:
        theirs = opened.enter_context(EmbeddingStore(shard, read_only=True))
        ours = opened.enter_context(EmbeddingStore(into))
        bills = [opened.enter_context(Ledger(path)) for path in (shard, into) if (shard / ledger.FILE_NAME).is_file()]
        with ours.absorbing(
            theirs
        ) as embeddings:  # on the disk after the bill: a crash counts too much, never too little
            queries = bills[1].absorb(bills[0]) if bills else 0
        return Merged(embeddings, queries)
