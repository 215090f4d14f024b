from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vl2v.data import audit, inspect, leave_out, open_dataset, set_aside
from vl2v.errors import DataError


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
    first = audit(dataset, cache=tmp_path / "c.sqlite", progress=lambda task, done, total, remark: seen.append(done))
    assert seen[-1] == len(dataset)
    changed = dataset.file(3)
    changed.write_bytes(b"now it is words")
    seen.clear()
    second = audit(dataset, cache=tmp_path / "c.sqlite", progress=lambda task, done, total, remark: seen.append(done))
    assert list(second.problems) == [3] and len(seen) == 1
    assert [i for i in range(len(dataset)) if first.sha256[i] != second.sha256[i]] == [3]


def test_a_broken_cache_is_begun_anew(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "c.sqlite").write_bytes(b"no database at all" * 100)
    assert not audit(open_dataset(shapes), cache=tmp_path / "c.sqlite").problems


def _audit(shapes: Path, cache: Path) -> None:
    assert not audit(open_dataset(shapes), cache=cache).problems


def test_two_processes_share_a_cache(shapes: Path, tmp_path: Path) -> None:
    context = get_context("spawn")
    processes = [context.Process(target=_audit, args=(shapes, tmp_path / "c.sqlite")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]


def test_inspection_finds_what_would_spoil_a_training(shapes: Path, tmp_path: Path) -> None:
    dataset = open_dataset(spoil(shapes, tmp_path / "d"))
    inspection = inspect(dataset, audit(dataset), ["paint"])
    findings = "\n".join(inspection.findings)
    assert "1 file set aside: empty file, first ink/ball/00.png" in findings
    assert "images with two different classes" in findings
    assert "leakage: 1 image in both a target and a source domain" in findings
    assert "classes 'Box' and 'box' look like the same" in findings
    assert "domain chalk has no images of Box" in findings
    assert inspection.rows["ink"]["ball"] == 10


def test_a_clean_dataset_has_nothing_to_mend(shapes: Path) -> None:
    dataset = open_dataset(shapes)
    (finding,) = inspect(dataset, audit(dataset)).findings  # of 108 shapes in chance places, four are in the same
    assert finding.startswith("4 images with near-copies in the same domain, first chalk/box/03.png and")
    kept = dataset.subset(np.flatnonzero(dataset.labels == dataset.classes.index("ball"))[:-1])
    findings = inspect(kept, audit(kept)).findings
    assert not [line for line in findings if "no images of box" not in line and "training would stop" not in line]


def test_a_cache_broken_inside_is_begun_anew(shapes: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c.sqlite"
    whole = audit(open_dataset(shapes), cache=cache)
    data = bytearray(cache.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    cache.write_bytes(data)
    assert audit(open_dataset(shapes), cache=cache) == whole
    assert (tmp_path / "c.sqlite.broken").exists()


def test_a_cache_that_cannot_be_written_is_named(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file/c.sqlite", tmp_path):
        with pytest.raises(DataError, match=r"can't be saved .*; free some space"):
            audit(open_dataset(shapes), cache=cache)


def test_stopped_it_goes_on_where_it_was(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["vl2v.data.auditing"]
    monkeypatch.setattr(module, "_CHUNK", 10)

    def stop(task: str, done: int, total: int, remark: str) -> None:
        if done == 40:
            raise KeyboardInterrupt

    dataset, cache = open_dataset(shapes), tmp_path / "c.sqlite"
    with pytest.raises(KeyboardInterrupt):
        audit(dataset, cache=cache, progress=stop)
    evaluated: list[str] = []
    look = module._read
    monkeypatch.setattr(module, "_read", lambda key: evaluated.append(key[0]) or look(key))
    again = audit(dataset, cache=cache)
    assert len(evaluated) == len(dataset) - 40 and again == audit(dataset)


def test_what_cannot_be_read_is_read_again_the_next_time(shapes: Path, tmp_path: Path) -> None:
    root = tmp_path / "d"
    shutil.copytree(shapes, root)
    dataset = open_dataset(root)
    (root / "ink/box/00.png").rename(tmp_path / "away.png")
    found = audit(dataset, cache=tmp_path / "c.sqlite")
    assert [reason[:13] for reason in found.problems.values()] == ["can't be read"]
    (tmp_path / "away.png").rename(root / "ink/box/00.png")
    assert not audit(dataset, cache=tmp_path / "c.sqlite").problems


@pytest.mark.parametrize("times", [1, 99])
def test_what_a_network_disk_fails_to_give_for_a_moment_is_read_again(
    times: int, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vl2v.io.WAITS", (0.0, 0.0))
    failures: Counter[str] = Counter()
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        failures[path.name] += 1
        if path.name == "03.png" and failures[path.name] <= times * 9:  # nine files have the name
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    problems = audit(open_dataset(shapes)).problems
    assert len(problems) == (0 if times == 1 else 9) and failures["03.png"] == (18 if times == 1 else 27)
    assert failures["02.png"] == 9


def test_a_domain_of_broken_files_is_an_error(shapes: Path, tmp_path: Path) -> None:
    root = tmp_path / "d"
    shutil.copytree(shapes, root)
    for file in (root / "ink").rglob("*.png"):
        file.write_bytes(b"")
    dataset = open_dataset(root)
    found = audit(dataset)
    with pytest.raises(DataError, match=r"none of the 36 images of domain ink can be used .*empty file"):
        set_aside(dataset, found)
    findings = "\n".join(inspect(dataset, found).findings)
    assert "36 files set aside: empty file, first ink/ball/00.png; replace or delete them" in findings
    assert "domain ink has no usable labelled images" in findings


def test_inspection_tells_of_classes_only_the_target_has_and_is_plain_json(shapes: Path, tmp_path: Path) -> None:
    root = tmp_path / "d"
    shutil.copytree(shapes, root)
    shutil.copytree(root / "paint/ball", root / "paint/star")
    dataset = open_dataset(root)
    inspection = inspect(dataset, audit(dataset), ["paint"])
    findings = "\n".join(inspection.findings)
    assert "no source domain has images of star" in findings and "12 images with two different classes" in findings
    assert json.loads(json.dumps(inspection.to_json()))["rows"]["paint"]["star"] == 12


def test_unlabelled_images_are_no_gap(shapes: Path) -> None:
    dataset = open_dataset(shapes, unlabelled=shapes / "paint")
    findings = inspect(dataset, audit(dataset)).findings
    assert not [line for line in findings if "unlabelled has" in line]


@pytest.mark.parametrize(
    ("names", "finding"),
    [
        (("a/cat/1.png", "b/cat/2.png"), "only one class"),
        (("cat/1.png", "dog/2.png"), "only one domain"),
        (("a/traffic light/1.png", "b/Traffic_Light/2.png"), "look like the same; rename"),
        (("cat/photo/1.png", "photo/cat/2.png"), "if the layout is class/domain/image"),
    ],
)
def test_inspection_tells_of_odd_layouts(tmp_path: Path, names: tuple[str, ...], finding: str) -> None:
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name)
    dataset = open_dataset(tmp_path)
    assert finding in "\n".join(inspect(dataset, audit(dataset)).findings)


def test_near_copies_across_domains_and_classes_are_reported(shapes: Path, tmp_path: Path) -> None:
    root = tmp_path / "d"
    shutil.copytree(shapes, root)
    for number in range(3):
        Image.open(root / f"ink/ball/{number:02d}.png").save(root / f"paint/box/copy{number}.jpg", quality=80)
    dataset = open_dataset(root)
    found = audit(dataset)
    result = "\n".join(inspect(dataset, found, ["paint"]).findings)
    assert "leakage: 3 images of a target with a near-copy" in result
    assert (
        "first ink/ball/00.png and paint/box/copy0.jpg" in result
        and "3 images with near-copies of another class" in result
    )
    assert "3 images with near-copies (saved again, scaled or converted) in other domains" in "\n".join(
        inspect(dataset, found).findings
    )


def test_a_file_in_anothers_stead_is_read_though_size_and_time_are_the_same(shapes: Path, tmp_path: Path) -> None:
    root = tmp_path / "d"
    shutil.copytree(shapes / "ink", root)
    dataset = open_dataset(root)
    first = audit(dataset, cache=tmp_path / "c.sqlite")
    file = dataset.file(0)
    before, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1  # a byte behind the pixels
    for change in ("in place", "by another file"):
        if change == "by another file":
            data[-2] ^= 1
            file.unlink()
        file.write_bytes(data)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        found = audit(dataset, cache=tmp_path / "c.sqlite")
        assert found.sha256[0] == hashlib.sha256(data).digest() != first.sha256[0], change
        assert found.sha256[1:] == first.sha256[1:]


def test_what_is_odd_about_files_is_reported_and_their_embeddings_are_new_ones(tmp_path: Path) -> None:
    ramp = np.linspace(0, 4000, 48)[:, None] + np.zeros((48, 48))
    for name in ("up", "down"):
        folder = tmp_path / "a" / name
        folder.mkdir(parents=True)
        Image.fromarray((ramp if name == "up" else ramp[::-1]).astype(np.uint16)).save(folder / "12 bits.png")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a/up/cut.jpg")
    cut = tmp_path / "a/up/cut.jpg"
    cut.write_bytes(cut.read_bytes()[:-2])
    dataset = open_dataset(tmp_path)
    found = audit(dataset)
    result = "\n".join(inspect(dataset, found).findings)
    assert "2 files with 16 bits a channel, fewer of them in use: scaled by the bits" in result
    assert "1 file with a JPEG without its end mark" in result and "first a/up/cut.jpg" in result
    same = [new == old for new, old in zip(found.contents, found.sha256, strict=True)]
    assert same == [path == "a/up/cut.jpg" for path in dataset.paths]


def test_what_a_manifest_leaves_empty_and_rare_classes_are_reported(tmp_path: Path) -> None:
    rows = [(f"{n}.png", ("cat", "dog", "")[n % 3], "ab"[n % 2]) for n in range(18)] + [("18.png", "rare", "a")]
    rng = np.random.default_rng(0)
    for name, *_ in rows:
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "m.csv").write_text("path,class,domain\n" + "\n".join(map(",".join, rows)))
    dataset = open_dataset(tmp_path / "m.csv")
    result = "\n".join(inspect(dataset, audit(dataset), ["b"]).findings)
    assert "6 images without a class in the manifest, first 14.png" in result
    assert "only one image of rare in the source domains" in result


def test_classes_that_the_split_leaves_nothing_to_train_on_are_named(tmp_path: Path) -> None:
    for number in range(10):
        for name in ("box", "ball"):
            file = tmp_path / name / f"{number}.png"
            file.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (9 * number, 0, 90 * (name == "box"))).save(file)
    (tmp_path / "rare").mkdir()
    Image.new("RGB", (8, 8), "green").save(tmp_path / "rare/1.png")
    dataset = open_dataset(tmp_path)
    found = audit(dataset)
    findings = {seed: "\n".join(inspect(dataset, found, split_seed=seed).findings) for seed in range(12)}
    untrained = {seed for seed, lines in findings.items() if "no image of rare to train on" in lines}
    for seed, lines in findings.items():
        split = leave_out(dataset, [], trial_seed=seed)
        assert (seed in untrained) == (dataset.classes.index("rare") in dataset.labels[split.val])
        assert ("only one image of rare" in lines) == (seed not in untrained)
    assert untrained and len(untrained) < 12


def test_inspection_says_what_would_stop_training(tmp_path: Path) -> None:
    for name in ("box", "Unknown"):
        for domain, count in (("paint", 5), ("ink", 1)):
            for number in range(count if name == "box" or domain == "paint" else 0):
                file = tmp_path / domain / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (9 * number, 30 * len(name), 0)).save(file)
    dataset = open_dataset(tmp_path)
    findings = "\n".join(inspect(dataset, audit(dataset)).findings)
    assert "training would stop: " in findings and "domain ink has 1 usable image and none of it for" in findings
    assert "class Unknown: training refuses it" in findings
