from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from vl2v import teachers
from vl2v.errors import TeacherError
from vl2v.teachers import is_white_box, open_teacher, teacher_kinds
from vl2v.teachers.protocol import Teacher


class Constant:
    """A third party's teacher."""

    fingerprint = "0" * 16
    dim = 2
    logit_scale = None

    def __init__(self, rest: str, **options: object) -> None:
        self.name, self.options = rest, options

    def embed_images(self, images):
        return np.tile(np.float32([1, 0]), (len(images), 1))

    def embed_texts(self, texts):
        return np.tile(np.float32([1, 0]), (len(texts), 1))


@pytest.fixture
def third_party(monkeypatch):
    """Install entry points, without a package."""
    points = [
        EntryPoint("constant", f"{__name__}:Constant", teachers.GROUP),
        EntryPoint("broken", "no_such_package_of_ours:open", teachers.GROUP),
    ]
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[Constant.__module__])

    def entry_points(*, group: str, name: str | None = None):
        return [point for point in points if point.group == group and name in (None, point.name)]

    monkeypatch.setattr(teachers, "entry_points", entry_points)


def test_a_third_partys_teacher(third_party):
    teacher = open_teacher("constant:with:colons", price=3)
    assert isinstance(teacher, Teacher)
    assert (teacher.name, teacher.options) == ("with:colons", {"price": 3})
    assert teacher_kinds()[-2:] == ["constant", "broken"]


def test_weights_are_at_hand_of_whoever_gives_them(third_party, monkeypatch):
    assert is_white_box("open_clip:ViT-B-32/openai") and not is_white_box("jina:jina-clip-v2")
    assert not is_white_box("constant:x")
    monkeypatch.setattr(Constant, "image_tower", lambda self: None, raising=False)
    monkeypatch.setattr(Constant, "embed_pixels", lambda self, pixels, mean=None, std=None: None, raising=False)
    assert is_white_box("constant:x")


def test_a_third_partys_teacher_that_cannot_be_imported(third_party):
    with pytest.raises(TeacherError, match=r"teacher 'broken': no_such_package_of_ours:open can't be loaded"):
        open_teacher("broken:x")


def test_unknown_kinds():
    with pytest.raises(TeacherError, match="teacher 'openclip': unknown kind; did you mean open_clip"):
        open_teacher("openclip:ViT-B-32/openai")
    with pytest.raises(TeacherError, match="choose one of open_clip, hf, recorded, tiny"):
        open_teacher("zzz")


def test_importing_is_light():
    heavy = "{'torch', 'open_clip', 'transformers', 'timm', 'pyarrow'}"
    code = f"import sys, vl2v.teachers; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
