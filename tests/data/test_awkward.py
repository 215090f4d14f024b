"""Folders and files as public bug reports of neighbouring projects describe them: each is read rightly, or reported."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from awkward import draw, folder, labels, report
from vl2v.data import audit, open_dataset
from vl2v.data.decoding import ImageError, decode
from vl2v.errors import DataError


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
