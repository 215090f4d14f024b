"""Datasets of other libraries are written once, and opened like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from vl2v.data import open_dataset, write_dataset
from vl2v.data.dataset import DomainDataset
from vl2v.data.decoding import ImageError, decode
from vl2v.errors import DataError


def labels(dataset: DomainDataset) -> list[tuple[str, str]]:
    names = [dataset.classes[label] if label >= 0 else "" for label in dataset.labels]
    return list(zip(names, [dataset.domains[i] for i in dataset.domain_ids], strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(12):
        file = tmp_path / "files" / ("cat", "dog", "emu")[number % 3] / f"{number:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), (20 * number, 90, 0)).save(file)
    return tmp_path / "files"


def test_an_image_folder_keeps_its_files_bytes(folder: Path, tmp_path: Path) -> None:
    theirs = ImageFolder(str(folder))
    domains = ["ink" if "0" in Path(path).stem else "oil" for path, _ in theirs.samples]
    dataset = open_dataset(write_dataset(theirs, tmp_path / "out", domain=domains.__getitem__))
    read = sorted(dataset.read(i) for i in range(len(dataset)))
    assert read == sorted(Path(path).read_bytes() for path, _ in theirs.samples)
    assert dataset.classes == ("cat", "dog", "emu") and dataset.domains == ("ink", "oil")
    assert sorted(labels(dataset)) == sorted(
        (theirs.classes[label], domain) for (_, label), domain in zip(theirs.samples, domains, strict=True)
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "I"])
def test_pairs_of_image_and_label_are_written_without_loss(mode: str, tmp_path: Path) -> None:
    pixels = Image.fromarray((np.arange(96, dtype=np.uint8) * 2).reshape(8, 12))
    image = pixels.convert(mode)
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.asarray(pixels).astype({"I;16": np.uint16, "I": np.int32}[mode]) * 257)
    dataset = open_dataset(write_dataset([(image, "a"), (image, "b")], tmp_path))
    expected = pixels.convert("1") if mode == "1" else pixels
    assert (np.asarray(decode(dataset.read(0)))[..., 0] == np.asarray(expected.convert("L"))).all()
    assert dataset.classes == ("a", "b") and dataset.domains == ("all",)


def test_pixels_of_32_bits_are_refused_as_in_anyones_file(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset([(Image.new("F", (4, 4), 0.5), "a"), (Image.new("L", (4, 4)), "b")], tmp_path))
    with pytest.raises(ImageError, match="not 8 or 16 bits a channel"):
        decode(dataset.read(0))


def test_a_second_call_writes_no_image_again(tmp_path: Path) -> None:
    pairs = [(Image.new("RGB", (8, 8), (number, 0, 0)), number % 2) for number in range(6)]
    first = write_dataset(pairs, tmp_path)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "images").iterdir()}
    assert write_dataset(pairs, tmp_path) == first
    assert times == {file: file.stat().st_mtime_ns for file in (tmp_path / "images").iterdir()}


class Frame:
    """What is used of a pandas frame."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = list(columns)
        self._rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return self._rows


def test_a_frame_of_paths_is_read_as_a_manifest_would_be(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.rglob("*.jpg"))
    columns = {"File_Path": [str(file) for file in files], "label": [float("nan"), *[1.0] * 5, *[2.0] * 6]}
    dataset = open_dataset(write_dataset(Frame({**columns, "region": ["north", None] * 6}), tmp_path / "out"))
    assert dataset.classes == ("1", "2") and dataset.domains == ("all", "north") and (dataset.labels < 0).sum() == 1
    with pytest.raises(DataError, match="no class column among File_Path"):
        write_dataset(Frame({"File_Path": columns["File_Path"]}), tmp_path / "out")


def test_a_hugging_face_dataset_keeps_bytes_names_and_domains(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    files = sorted(folder.rglob("*.jpg"))
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["emu", "cat", "dog"]),
            "domain": datasets.Value("string"),
        }
    )
    rows = {
        "picture": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "kind": [features["kind"].str2int(file.parent.name) for file in files],
        "domain": ["ink", "oil", "pen"] * 4,
    }
    theirs = datasets.Dataset.from_dict(rows, features=features)
    dataset = open_dataset(write_dataset(theirs, tmp_path / "out"))
    assert sorted(dataset.read(i) for i in range(12)) == sorted(file.read_bytes() for file in files)
    assert dataset.classes == ("cat", "dog", "emu") and dataset.domains == ("ink", "oil", "pen")
    assert sorted(labels(dataset)) == sorted(zip([file.parent.name for file in files], rows["domain"], strict=True))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert open_dataset(f"hf:{folder}").classes == ("cat", "dog", "emu")
    with pytest.raises(DataError, match=r"hf:.*nowhere: can't be loaded"):
        open_dataset(f"hf:{tmp_path}/nowhere")


@pytest.mark.parametrize("what", [3, {"a": 1}, "text", object()])
def test_what_is_no_dataset_is_said_to_be_none(what: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a dataset; give a folder"):
        write_dataset(what, tmp_path)
    with pytest.raises(DataError, match="not an image; give a PIL image"):
        write_dataset([(what, "a")], tmp_path) if not isinstance(what, str) else write_dataset([(3, "a")], tmp_path)
