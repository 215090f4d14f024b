"""A corrupted dataset: its domains, its resumption, and that it can be opened and measured like any other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from little import CLASSES
from vl2v.data.corrupted import corrupt_dataset
from vl2v.data.layouts import open_dataset
from vl2v.errors import ConfigError, DataError

KINDS = ("snow", "pixelate")


def files(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.jpg")}


def test_its_domains_are_the_corruptions(shapes: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    written = corrupt_dataset(
        open_dataset(shapes),
        tmp_path / "c",
        kinds=KINDS,
        severities=(1, 3),
        domains=["ink"],
        progress=lambda task, done, total, remark: seen.append((done, total)),
    )
    dataset = open_dataset(tmp_path / "c")
    assert set(dataset.domains) == set(written.domains) == {"clean", "snow-1", "snow-3", "pixelate-1", "pixelate-3"}
    assert dataset.classes == CLASSES and not dataset.excluded
    assert np.bincount(dataset.domain_ids).tolist() == [36] * 5 and written.images == 36
    assert seen[-1] == (180, 180)


def test_an_image_is_the_same_in_any_company(shapes: Path, tmp_path: Path) -> None:
    dataset = open_dataset(shapes)
    corrupt_dataset(dataset, tmp_path / "one", kinds=KINDS, severities=[3], domains=["ink"], workers=1)
    corrupt_dataset(dataset, tmp_path / "two", kinds=["snow"], severities=[2, 3], domains=["paint", "ink"], workers=2)
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    both = one.keys() & two.keys()
    assert len(both) == 2 * 36 and all(one[name] == two[name] for name in both)
    corrupt_dataset(dataset, tmp_path / "seed", kinds=["snow"], severities=[3], domains=["ink"], seed=1)
    other = files(tmp_path / "seed")
    assert all((one[name] == other[name]) == name.startswith("clean/") for name in other)


def test_killed_it_goes_on_and_more_can_be_added(shapes: Path, tmp_path: Path) -> None:
    dataset = open_dataset(shapes)

    def stop(task: str, done: int, total: int, remark: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corrupt_dataset(dataset, tmp_path / "c", kinds=KINDS, severities=[3], progress=stop)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "c").rglob("*.jpg")}
    assert before
    corrupt_dataset(dataset, tmp_path / "c", kinds=KINDS, severities=[3, 5])
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    corrupt_dataset(dataset, tmp_path / "whole", kinds=KINDS, severities=[3, 5])
    assert files(tmp_path / "c") == files(tmp_path / "whole")


def test_another_folder_is_left_alone(shapes: Path, tmp_path: Path) -> None:
    dataset = open_dataset(shapes)
    corrupt_dataset(dataset, tmp_path / "c", kinds=["snow"], severities=[3], domains=["ink"], images=2)
    for change in ({"seed": 1}, {"size": 32}, {"images": 3}, {"domains": ["chalk"]}):
        given = {"domains": ["ink"], "images": 2, **change}
        with pytest.raises(DataError, match="made from other images, or with another size or seed"):
            corrupt_dataset(dataset, tmp_path / "c", kinds=["snow"], severities=[3], **given)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="holds something else"):
        corrupt_dataset(dataset, shapes, kinds=["snow"], severities=[3])


def test_mistakes_are_reported_before_anything_is_written(shapes: Path, tmp_path: Path) -> None:
    dataset = open_dataset(shapes)
    with pytest.raises(ConfigError, match="no corruption is called 'rain'"):
        corrupt_dataset(dataset, tmp_path / "c", kinds=["rain"], severities=[3])
    with pytest.raises(ConfigError, match="severity 9"):
        corrupt_dataset(dataset, tmp_path / "c", kinds=["snow"], severities=[9])
    with pytest.raises(ConfigError, match="must be 1 or more"):
        corrupt_dataset(dataset, tmp_path / "c", kinds=["snow"], severities=[1], images=0)
    with pytest.raises(DataError, match="no domain 'inc'; did you mean ink"):
        corrupt_dataset(dataset, tmp_path / "c", kinds=["snow"], severities=[1], domains=["inc"])
    assert not (tmp_path / "c").exists()


def test_a_class_can_not_lead_out_of_the_folder(shapes: Path, tmp_path: Path) -> None:
    shutil.copy(shapes / "ink/ball/00.png", tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("path,class,domain\na.png,../../up,ink\n")
    with pytest.raises(DataError, match="can't be a folder"):
        corrupt_dataset(open_dataset(tmp_path / "m.csv"), tmp_path / "c", kinds=["snow"], severities=[1])


def test_large_images_are_shrunk_and_broken_ones_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "one" / "ball"
    folder.mkdir(parents=True)
    Image.new("RGB", (600, 300), "red").save(folder / "large.png")
    Image.new("RGB", (30, 50), "red").save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    written = corrupt_dataset(open_dataset(tmp_path / "set"), tmp_path / "c", kinds=["contrast"], severities=[1])
    assert (written.images, written.unreadable) == (2, 1)
    sizes = sorted(Image.open(file).size for file in (tmp_path / "c" / "clean").rglob("*.jpg"))
    assert sizes == [(30, 50), (448, 224)]
    for file in folder.iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(DataError, match="none of the 3 chosen images can be read"):
        corrupt_dataset(open_dataset(tmp_path / "set"), tmp_path / "d", kinds=["contrast"], severities=[1])
