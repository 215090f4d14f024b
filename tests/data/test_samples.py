"""IconDG is what it says: balanced enough, attributed, clean, and unpacked once whoever asks first."""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vl2v.data import archives, audit, inspect, open_dataset
from vl2v.errors import DataError
from vl2v.teachers import open_clip

ARCHIVE = Path(str(files("vl2v").joinpath("assets", "icondg.zip")))
DOMAINS = ("emoji", "outline", "pixel", "silhouette", "solid")
OPEN = {"MIT", "Apache-2.0", "CC0-1.0", "ISC", "CC-BY-4.0", "CC-BY-3.0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archives.icondg(tmp_path_factory.mktemp("samples") / "icondg")


def test_every_cell_has_at_least_five_images(folder: Path) -> None:
    dataset = open_dataset(folder)
    cells = Counter(zip(dataset.domain_ids.tolist(), dataset.labels.tolist(), strict=True))
    assert dataset.domains == DOMAINS
    assert len(dataset.classes) >= 40
    assert len(cells) == len(DOMAINS) * len(dataset.classes)
    assert min(cells.values()) >= 5
    assert max(cells.values()) <= 35
    assert 3_000 <= len(dataset) <= 5_000
    assert ARCHIVE.stat().st_size < 12_000_000


def test_it_opens_with_nothing_set_aside_and_no_duplicates(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert dataset.excluded == ()
    assert dataset.splits is None
    evaluated = audit(dataset)
    assert evaluated.problems == {}
    assert len({bytes(digest) for digest in evaluated.sha256}) == len(dataset)
    inspect(dataset, evaluated, ["pixel"])


def test_every_image_is_attributed_to_an_open_set(folder: Path) -> None:
    with (folder / "ATTRIBUTION.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["file"] for row in rows) == sorted(open_dataset(folder).paths)
    assert all(row[key] for row in rows for key in ("set", "icon", "author", "licence", "url"))
    assert {row["licence"] for row in rows} <= OPEN
    page = (folder / "LICENSES.md").read_text(encoding="utf-8")
    assert all(f"[{name}](" in page for name in {row["set"] for row in rows})


def test_images_are_square_and_differ_between_domains_and_classes(folder: Path) -> None:
    seen: defaultdict[bytes, set[str]] = defaultdict(set)
    for path in open_dataset(folder).paths:
        image = Image.open(folder / path)
        assert image.format == "PNG"
        assert image.size == (96, 96)
        pixels = np.asarray(image.convert("RGB"))
        assert pixels.min() < 240, path  # something is drawn
        small = np.asarray(image.convert("L").resize((24, 24))) // 32
        seen[hashlib.sha256(small.tobytes()).digest()].add(path)
    assert [paths for paths in seen.values() if len(paths) > 1] == []


def test_members_are_stored_in_order_and_plain() -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        members = archive.infolist()
    assert [member.filename for member in members] == sorted(member.filename for member in members)
    assert {member.compress_type for member in members} == {zipfile.ZIP_STORED}
    assert {member.date_time for member in members} == {(2026, 1, 1, 0, 0, 0)}


def test_two_processes_unpack_at_once(tmp_path: Path) -> None:
    call = "from vl2v.data.archives import icondg; print(icondg())"
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", call], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=900) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    first, second = (Path(out.strip()) for out, _ in outputs)
    assert first == second
    assert first.name == f"icondg-{hashlib.sha256(ARCHIVE.read_bytes()).hexdigest()[:12]}"
    assert [entry.name for entry in first.parent.iterdir()] == [first.name]
    with zipfile.ZipFile(ARCHIVE) as archive:
        assert sum(1 for path in first.rglob("*") if path.is_file()) == len(archive.namelist())


def test_it_is_unpacked_once(folder: Path) -> None:
    before = (folder / "ATTRIBUTION.csv").stat().st_mtime_ns
    assert archives.icondg(folder) == folder
    assert (folder / "ATTRIBUTION.csv").stat().st_mtime_ns == before


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="empty, writable folder"):
        archives.icondg(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


def test_a_damaged_archive_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "files", lambda _: tmp_path)
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "icondg.zip").write_bytes(ARCHIVE.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"icondg\.zip: truncated or damaged .*reinstall vl2v"):
        archives.icondg(tmp_path / "out" / "icondg")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_tiny_vlm_is_there_or_its_absence_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (archives, open_clip):
        monkeypatch.setattr(module, "files", lambda _: tmp_path)
    with pytest.raises(DataError, match="tiny VLM is not in this installation"):
        open_clip.tiny_vlm()
    (tmp_path / "assets" / "tiny-vlm").mkdir(parents=True)
    assert open_clip.tiny_vlm() == tmp_path / "assets" / "tiny-vlm"
    with pytest.raises(DataError, match=r"assets/icondg\.zip is missing"):
        archives.icondg(tmp_path / "icondg")


def test_icondg_is_opened_by_name_unless_a_folder_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert open_dataset("icondg").domains == DOMAINS
    (tmp_path / "icondg" / "drawn" / "dog").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "icondg" / "drawn" / "dog" / "1.png")
    assert open_dataset("icondg").domains == ("drawn",)
