from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from PIL import Image

from vl2v.data import open_dataset
from vl2v.errors import DataError


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (len(name), 0, 0)).save(root / name)
    return root


def test_domain_class_picture_in_imagefolders_order(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    names = [
        "Art/dog/b.png",
        "Art/dog/a.png",
        "Art/cat/10.png",
        "Art/cat/9.png",
        "photo/dog/x.jpg",
        "photo/Zebra/y.png",
    ]
    dataset = open_dataset(put(tmp_path, *names))
    assert dataset.domains == ("Art", "photo") and dataset.classes == ("Zebra", "cat", "dog")
    for domain in dataset.domains:
        theirs = [os.path.relpath(path, tmp_path) for path, _ in ImageFolder(str(tmp_path / domain)).samples]
        assert [dataset.paths[i] for i in dataset.indices(domain)] == theirs


def test_class_picture_is_one_domain(tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, "dog/a.png", "cat/b.png"))
    assert dataset.domains == ("all",) and dataset.classes == ("cat", "dog")


def test_a_folder_of_one_benchmark_is_entered(tmp_path: Path) -> None:
    put(tmp_path, "terra_incognita/location_38/bird/a.png", "terra_incognita/location_43/cat/b.png")
    assert open_dataset(tmp_path).domains == ("location_38", "location_43")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_manifest_says_class_domain_and_split(tmp_path: Path, kind: str) -> None:
    put(tmp_path, "x/1.png", "x/2.png", "y/3.png")
    rows = [
        ("x/1.png", "cat", "a", "train"),
        ("x/2.png", "dog", "a", ""),
        ("y/3.png", "dog", "b", "val"),
        ("gone.png", "dog", "b", ""),
    ]
    columns = ("path", "class", "domain", "split")
    manifest = tmp_path / f"m.{kind}"
    if kind == "csv":
        with manifest.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    else:
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({name: [row[i] for row in rows] for i, name in enumerate(columns)})
        pyarrow.parquet.write_table(table, manifest)
    dataset = open_dataset(manifest)
    assert dataset.classes == ("cat", "dog") and dataset.splits == ("train", None, "val")
    assert [e.path for e in dataset.excluded] == ["gone.png"]


def test_what_is_no_picture_is_set_aside_with_the_reason(tmp_path: Path) -> None:
    put(tmp_path / "data", "a/cat/1.png", "a/dog/2.png", "b/cat/3.png", "b/loose.png")
    (tmp_path / "data/a/cat/notes.txt").write_text("x")
    (tmp_path / "data/a/cat/.hidden.png").write_text("x")
    put(tmp_path, "secret/cat/1.png")
    (tmp_path / "data/a/dog/out.png").symlink_to(tmp_path / "secret/cat/1.png")
    (tmp_path / "data/b/away").symlink_to(tmp_path / "secret")
    (tmp_path / "data/b/loop").symlink_to(tmp_path / "data/b")
    dataset = open_dataset(tmp_path / "data")
    assert len(dataset) == 3
    reasons = {e.path: e.reason for e in dataset.excluded}
    assert "link out of" in reasons["a/dog/out.png"] and "link out of" in reasons["b/away"]
    assert "it is in" in reasons["b/loop"] and "not a picture" in reasons["a/cat/notes.txt"]
    assert "not at domain/class/image" in reasons["b/loose.png"]


def test_a_list_of_files_is_left_out(tmp_path: Path) -> None:
    put(tmp_path / "domain_net", "clipart/cat/1.png", "clipart/dog/2.png", "real/cat/3.png")
    listed = tmp_path / "duplicates.txt"
    listed.write_text("clipart/cat/1.png\ndomain_net/real/cat/3.png\n")
    dataset = open_dataset(tmp_path / "domain_net", exclude=listed)
    assert dataset.paths == ("clipart/dog/2.png",) and len(dataset.excluded) == 2
    listed.write_text("nothing/here.png\n")
    with pytest.raises(DataError, match="none of its 1 lines names a picture"):
        open_dataset(tmp_path / "domain_net", exclude=listed)


def test_unlabelled_pictures_are_a_domain_of_their_own(tmp_path: Path) -> None:
    put(tmp_path / "data", "a/cat/1.png", "b/dog/2.png")
    put(tmp_path / "more", "x.png", "deep/er/y.png")
    dataset = open_dataset(tmp_path / "data", unlabelled=tmp_path / "more")
    assert dataset.domains == ("a", "b", "unlabelled") and dataset.labels.tolist() == [0, 1, -1, -1]
    assert all(dataset.read(i) for i in range(4))


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "no such folder or manifest"), ("empty", "no pictures at domain/class/image")]
)
def test_nothing_to_open_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / name)


def test_a_manifest_without_a_column_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,label\nx.png,cat\n")
    with pytest.raises(DataError, match="line 2 has no class; the columns are"):
        open_dataset(tmp_path / "m.csv")
