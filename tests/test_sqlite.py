"""Files that several processes make at the same moment, and disks that several machines share."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from vl2v.embeddings.ledger import Ledger
from vl2v.embeddings.store import EmbeddingStore

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


@pytest.mark.parametrize(
    ("mounted", "mode"),
    [
        ("disk / ext4 rw\nhost:/home {place} nfs4 rw", "truncate"),
        ("disk / ext4 rw\nhost:/home {place} nfs4 rw\ndisk {place} ext4 rw", "wal"),
        ("host:/home /elsewhere nfs4 rw\noverlay / overlay rw", "wal"),
        ("share / 9p rw", "truncate"),
    ],
)
def test_a_disk_that_machines_share_has_the_journal_that_works_there(
    mounted: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a disk"
    place.mkdir()
    (tmp_path / "mounts").write_text(mounted.format(place=str(place).replace(" ", "\\040")))
    monkeypatch.setattr("vl2v.sqlite.MOUNTS", tmp_path / "mounts")
    (tmp_path / "link").symlink_to(place)
    with EmbeddingStore(place / "store") as store, Ledger(tmp_path / "link" / "store") as ledger:
        for opened in (store, ledger):
            assert opened._db.execute("PRAGMA journal_mode").fetchone() == (mode,)
        assert not store.teachers()
    with EmbeddingStore(place / "store", read_only=True) as store:
        assert not store.teachers()
