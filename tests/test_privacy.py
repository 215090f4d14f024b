"""Names that others see hold no place of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from vl2v.privacy import public_name


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("openai-compatible:http://10.0.0.7:8000/v1#m", "openai-compatible:m"),
        ("openai-compatible:http://me:word@10.0.0.7:8000/v1#org/m", "openai-compatible:org/m"),
        ("openai-compatible:http://10.0.0.7:8000/v1#/data/models/m", "openai-compatible:m"),
        ("openai-compatible:http://10.0.0.7:8000", "openai-compatible:"),
        ("recorded:/home/me/answers", "recorded:answers"),
        ("recorded:mine/answers", "recorded:answers"),
        (r"recorded:C:\Users\me\answers", "recorded:answers"),
        ("open_clip:local-dir:/home/me/mine", "open_clip:mine"),
        ("open_clip:local-dir:mine", "open_clip:mine"),
        ("open_clip:ViT-B-16//home/me/w.pt", "open_clip:w.pt"),
        ("open_clip:ViT-B-16/openai", "open_clip:ViT-B-16/openai"),
        ("hf:../mine", "hf:mine"),
        ("hf:user/repo", "hf:user/repo"),
        ("jina:jina-clip-v2", "jina:jina-clip-v2"),
        ("tiny", "tiny"),
        ("~/secret/w.pth", "w.pth"),
        (r"C:\me\w.pth", "w.pth"),
        ("a photo, taken at night: a {}", "a photo, taken at night: a {}"),
        ("art/painting", "art/painting"),
    ],
)
def test_paths_are_left_out_and_nothing_else(spec: str, name: str) -> None:
    assert public_name(spec) == name


def test_a_folder_that_is_there_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "me" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("hf:me/mine") == "hf:mine"
    assert public_name(f"hf:{'x' * 5000}/mine") == f"hf:{'x' * 5000}/mine"  # no file's name is that long
