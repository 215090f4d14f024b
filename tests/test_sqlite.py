"""Files that several processes make at the same moment."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

from vl2v.embeddings import EmbeddingStore, Ledger

FILES = 50  # without its care, opening fails in one of thirty


def _open(barrier: Barrier, folder: Path) -> None:
    for number in range(FILES):
        barrier.wait(300)
        with EmbeddingStore(folder / str(number)):
            pass
        barrier.wait(300)
        with Ledger(folder / str(number)):
            pass


def test_processes_that_begin_at_once_open_one_store_and_one_ledger(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    processes = [context.Process(target=_open, args=(barrier, tmp_path)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    with EmbeddingStore(tmp_path / "0") as store, Ledger(tmp_path / "0") as ledger:
        assert store.teachers() == [] and ledger.entries() == []
