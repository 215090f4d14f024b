"""Names that can't be seen as they are written are refused, wherever a class or a domain enters."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vl2v import load
from vl2v.data import open_dataset
from vl2v.deploy.runtime import Exported
from vl2v.errors import DataError, StudentError
from vl2v.names import check_name, new_class_name

UNSEEN = {
    "zero width space": "\u200b",
    "zero width joiner": "\u200d",
    "word joiner": "\u2060",
    "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "right-to-left mark": "\u200f",
    "right-to-left override": "\u202e",
    "isolate": "\u2066",
    "tag": "\U000e0061",
    "hangul filler": "\u3164",
    "line separator": "\u2028",
    "escape": "\x1b",
    "new line": "\n",
}


@pytest.mark.parametrize("sign", UNSEEN.values(), ids=UNSEEN)
def test_a_name_with_what_cant_be_seen_is_refused(sign: str) -> None:
    for name in (f"ca{sign}t", f"{sign}cat", f"cat{sign}"):
        with pytest.raises(DataError, match=rf"U\+{ord(sign):04X}.*rename it"):
            check_name(name)


@pytest.mark.parametrize(
    "name", ["cat", "hot dog", "a|b", "<b>", "katze-ß", "дом", "猫", "كلب", "मछली", "e\u0301", "🚗"]
)
def test_names_of_all_languages_are_taken(name: str) -> None:
    assert check_name(name) == name


def test_names_are_checked_where_they_enter(tmp_path: Path) -> None:
    for path in ("photo/ca\u202et/1.png", "pho\u200bto/cat/1.png"):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        (root / path).parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / path)
        with pytest.raises(DataError, match=r"U\+20"):
            open_dataset(root)
    manifest = tmp_path / "m.csv"
    manifest.write_text(
        f"path,class,domain\n0/{'photo/ca' + chr(0x202E) + 't'}/1.png,do\u2066g,photo\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match=r"U\+2066"):
        open_dataset(manifest)
    card = {"form": "open", "classes": ["cat"], "texts": "AACAPw==", "scale": 1.0}
    with pytest.raises(StudentError, match=r"U\+200B"):
        Exported(lambda pixels: np.zeros((len(pixels), 1), np.float32), card).check_new("do\u200bg")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "no name"),
        ("  \u3000", "no name"),
        (".", "stands for a folder"),
        (" .. ", "stands for a folder"),
        *(
            (name, "'unknown' is what is pred")
            for name in ("unknown", "Unknown", "UNKNOWN ", "\uff35nknown", "Unknown_")
        ),
        *(
            (name, "'air plane' is there")
            for name in ("air plane", "Air Plane", "air  plane", "air_plane", " AIR\u00a0PLANE")
        ),
        *((name, "'caf\u00e9' is there") for name in ("cafe\u0301", "CAF\u00c9", "Cafe\u0301")),
        *((name, "'fish' is there") for name in ("\ufb01sh", "\uff26ish")),
        ("stra\u00dfe", "'STRASSE' is there"),
        ("cat\n", "can't be seen"),
    ],
)
def test_a_new_class_is_one_that_people_can_tell_from_the_others(name: str, message: str) -> None:
    with pytest.raises(StudentError, match=message):
        new_class_name(name, ["air plane", "caf\u00e9", "fish", "STRASSE"])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (" Air  Plane ", "Air Plane"),
        ("cafe\u0301", "caf\u00e9"),
        ("...", "..."),
        ("unknown bird", "unknown bird"),
        ("x\u00b2", "x\u00b2"),
    ],
)
def test_a_new_class_is_written_in_one_way(name: str, wanted: str) -> None:
    assert new_class_name(name, ["cat"]) == wanted


def test_a_student_in_torch_gains_and_loses_classes_as_its_export_does() -> None:
    folder = Path(__file__).parent / "formats"
    student = load(next(folder.glob("*/run")))
    assert student.texts is not None
    for name in list(student.classes)[1:]:
        student.remove_class(name)
    with pytest.raises(StudentError, match="the only one left"):
        student.remove_class(student.classes[0])
    with pytest.raises(StudentError, match="3 numbers, the student has"):
        student.add_class("star", np.zeros(3, np.float32))
    student.add_class(" star ", np.full(student.texts.shape[1], 0.25, np.float32))
    assert student.classes[1:] == ["star"] and student.texts[1].tolist() == [0.25] * student.texts.shape[1]
    assert list(student.predict([an_image()])[0].probabilities) == student.classes


def an_image() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    return data.getvalue()
