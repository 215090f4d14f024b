"""Weights that come from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from vl2v.errors import StudentError
from vl2v.students import pretrained_backbone


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Weights of a small ViT for pictures of 160 pixels a side."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=10).state_dict(), tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


def test_a_vit_takes_another_picture_size(file: Path) -> None:
    ours, spec = pretrained_backbone("test_vit", str(file), image_size=96)
    at_home, _ = pretrained_backbone("test_vit", str(file), image_size=160)
    at_home.set_input_size(img_size=96)  # timm's own way
    pixels = torch.randn(2, 3, 96, 96)
    assert spec.image_size == 96
    assert torch.equal(ours.eval()(pixels), at_home.eval()(pixels))


def test_weights_of_another_model_are_refused(file: Path) -> None:
    with pytest.raises(StudentError, match=r"vit.safetensors: \d+ of \d+ tensors don't fit the student"):
        pretrained_backbone("vit_tiny_patch16_224", str(file), image_size=96)
