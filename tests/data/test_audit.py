from __future__ import annotations

import hashlib
import shutil
import time
from multiprocessing import get_context
from pathlib import Path

from vl2v.data import audit, inspect, open_dataset, set_aside


def spoil(shapes: Path, root: Path) -> Path:
    shutil.copytree(shapes, root)
    (root / "ink/ball/00.png").write_bytes(b"")
    (root / "ink/ball/01.png").write_bytes((root / "ink/ball/02.png").read_bytes()[:80])
    shutil.copy(root / "ink/box/05.png", root / "paint/box/copy.png")  # leakage
    shutil.copy(root / "chalk/cone/03.png", root / "chalk/ball/wrong.png")  # two classes
    shutil.copytree(root / "ink/box", root / "ink/Box")
    return root


def test_bad_files_are_set_aside_and_the_rest_is_hashed(shapes: Path, tmp_path: Path) -> None:
    root = spoil(shapes, tmp_path / "d")
    dataset = open_dataset(root)
    found = audit(dataset)
    assert {dataset.paths[i]: reason.split(" (")[0] for i, reason in found.problems.items()} == {
        "ink/ball/00.png": "empty file",
        "ink/ball/01.png": "truncated or corrupt",
    }
    assert all(found.sha256[i] == hashlib.sha256(dataset.read(i)).digest() for i in range(len(dataset)))
    kept = set_aside(dataset, found)
    assert len(kept) == len(dataset) - 2 and len(kept.excluded) == 2


def test_the_second_time_only_changed_files_are_read(shapes: Path, tmp_path: Path) -> None:
    root = tmp_path / "d"
    shutil.copytree(shapes, root)
    dataset = open_dataset(root)
    seen: list[int] = []
    first = audit(dataset, cache=tmp_path / "c.sqlite", progress=lambda done, total: seen.append(done))
    assert seen[-1] == len(dataset)
    changed = dataset.file(3)
    time.sleep(0.01)
    changed.write_bytes(b"now it is words")
    seen.clear()
    second = audit(dataset, cache=tmp_path / "c.sqlite", progress=lambda done, total: seen.append(done))
    assert list(second.problems) == [3] and len(seen) == 1
    assert [i for i in range(len(dataset)) if first.sha256[i] != second.sha256[i]] == [3]


def test_a_broken_cache_is_begun_anew(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "c.sqlite").write_bytes(b"no database at all" * 100)
    assert not audit(open_dataset(shapes), cache=tmp_path / "c.sqlite").problems


def _audit(shapes: Path, cache: Path) -> None:
    assert not audit(open_dataset(shapes), cache=cache).problems


def test_two_processes_share_a_cache(shapes: Path, tmp_path: Path) -> None:
    context = get_context("spawn")
    processes = [context.Process(target=_audit, args=(shapes, tmp_path / "c.sqlite")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def test_inspection_finds_what_would_spoil_a_training(shapes: Path, tmp_path: Path) -> None:
    dataset = open_dataset(spoil(shapes, tmp_path / "d"))
    inspection = inspect(dataset, audit(dataset), ["paint"])
    findings = "\n".join(inspection.findings)
    assert "1 files set aside: empty file, first ink/ball/00.png" in findings
    assert "pictures with two different classes" in findings
    assert "leakage: 1 pictures are in a target and a source domain" in findings
    assert "classes Box and box look like one" in findings
    assert "domain chalk has no Box" in findings
    assert inspection.rows["ink"]["ball"] == 10


def test_a_clean_dataset_has_nothing_to_mend(shapes: Path) -> None:
    dataset = open_dataset(shapes)
    assert inspect(dataset, audit(dataset)).findings == ()
