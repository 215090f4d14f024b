"""Which timm models can be students, how wide their features are, and weights that come from a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model
from torch import nn

from vl2v.errors import StudentError
from vl2v.students.backbone import licence_of, output_width, pretrained_backbone
from vl2v.students.classifier import Classifier
from vl2v.students.student import Student, new_projector


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Weights of a small ViT for images of 160 pixels a side."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=10).state_dict(), tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


def test_a_vit_takes_another_image_size(file: Path) -> None:
    ours, spec = pretrained_backbone("test_vit", str(file), image_size=96)
    at_home, _ = pretrained_backbone("test_vit", str(file), image_size=160)
    at_home.set_input_size(img_size=96)  # timm's own way
    pixels = torch.randn(2, 3, 96, 96)
    assert spec.image_size == 96
    assert torch.equal(ours.eval()(pixels), at_home.eval()(pixels))


def test_weights_of_another_model_are_refused(file: Path) -> None:
    with pytest.raises(StudentError, match=r"vit.safetensors: \d+ of \d+ tensors don't fit the student"):
        pretrained_backbone("vit_tiny_patch16_224", str(file), image_size=96)


HIDDEN = (  # a layer stands between the pooled features and the classifier
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "lcnet_035",
    "ghostnet_050",
    "hgnetv2_b0",
    "fasternet_t0",
    "efficientvit_b0",
)


@pytest.mark.parametrize("name", [*HIDDEN, "test_vit", "test_nfnet", "mobileone_s0", "deit_tiny_distilled_patch16_224"])
def test_the_width_is_that_of_what_the_backbone_gives(name: str) -> None:
    backbone, spec = pretrained_backbone(name, "none", image_size=64)
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, 3, 64, 64))
    assert output_width(name, 64) == features.shape[1]
    assert Student(backbone, nn.Identity(), spec).width == features.shape[1]


@pytest.mark.parametrize(("name", "wrong", "right"), [("crossvit_9_240", 64, 240), ("test_vit", 40, 32)])
def test_a_size_that_a_model_cannot_take_is_refused_with_one_that_it_can(name: str, wrong: int, right: int) -> None:
    with pytest.raises(
        StudentError, match=rf"^student {name}: can't take images of {wrong} .* use image size {right}$"
    ):
        pretrained_backbone(name, "none", image_size=wrong)
    assert output_width(name, right) > 0


class Odd(nn.Module):
    """What no student can be: several outputs, a map of features, or no gradients."""

    num_features = 3

    def __init__(self, gives: str = "", **_: object) -> None:
        super().__init__()
        self.gives, self.conv = gives, nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> object:
        x = self.conv(x)
        gives = {"pair": (x, x), "map": x, "pair in training": (x, x) if self.training else x.mean((2, 3))}
        return gives[self.gives] if self.gives in gives else x.mean((2, 3)).detach()


@register_model
def odd_gives_pair(pretrained: bool = False, **kwargs: object) -> nn.Module:
    return Odd("pair")


@register_model
def odd_gives_map(pretrained: bool = False, **kwargs: object) -> nn.Module:
    return Odd("map")


@register_model
def odd_gives_pair_in_training(pretrained: bool = False, **kwargs: object) -> nn.Module:
    return Odd("pair in training")


@register_model
def odd_gives_constants(pretrained: bool = False, **kwargs: object) -> nn.Module:
    return Odd("constants")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("odd_gives_pair", "2 outputs instead of one vector"),
        ("odd_gives_pair_in_training", "2 outputs instead of one vector"),
        ("odd_gives_map", r"3 x 32 x 32 numbers instead of one vector"),
        ("odd_gives_constants", "no gradients"),
    ],
)
def test_a_model_that_gives_no_vector_is_refused_by_name(name: str, why: str) -> None:
    with pytest.raises(StudentError, match=rf"^student {name}: can't be a student, it (gives|has) {why}.*; choose"):
        pretrained_backbone(name, "none", image_size=32)


def test_measuring_draws_nothing_from_the_seed() -> None:
    torch.manual_seed(3)
    first, _ = pretrained_backbone("test_convnext", "none", image_size=32)  # measured now, and cached from here on
    torch.manual_seed(3)
    second, _ = pretrained_backbone("test_convnext", "none", image_size=32)
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("name", ["mobileone_s0", "repvit_m0_9", "levit_128s"])
def test_a_re_parameterised_student_is_exported_fused(name: str) -> None:
    from vl2v.export.network import Network

    backbone, spec = pretrained_backbone(name, "none", image_size=64)
    student = Student(backbone, new_projector(output_width(name, 64), 5, 0), spec).eval()
    network = Network(Classifier(student, ["a", "b"], torch.eye(5)[:2]), form="closed").eval()
    before, after = (sum(isinstance(part, nn.BatchNorm2d) for part in whole.modules()) for whole in (backbone, network))
    assert after < before / 4, "the student itself stays as it was trained"
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), student.embed(pixels)[:, :2], rtol=1e-4, atol=1e-5)


FASTVIT = """
from pathlib import Path
import open_clip
import torch
from torch import nn
from vl2v.config import TrainConfig
from vl2v.students.backbone import pretrained_backbone
from vl2v.students.student import Student, new_projector
from vl2v.teachers.open_clip import build_open_clip_tower
from vl2v.training.loop import Trainer

torch.manual_seed(0)
backbone, spec = pretrained_backbone("fastvit_t8", "none", image_size=64)
tower = build_open_clip_tower({**open_clip.get_model_config("MobileCLIP2-S0"), "quick_gelu": False})
for student in Student(backbone, new_projector(768, 5, 0), spec), Student(tower, nn.Identity(), spec):
    Trainer(Path("run"), TrainConfig(accelerator="cpu", precision="fp32"), 0, alone=True).prepare(student)
    student.eval()
    for _ in range(2):
        out = student(torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8))
        out.square()[:, 0].sum().backward()
    print(out.shape[1], all(weight.grad.isfinite().all() for weight in student.parameters()))
"""


def test_fastvit_trains_on_a_cpu_and_so_does_mobileclips_image_tower() -> None:
    """With channels last, oneDNN ends the process: so in one of its own."""
    done = subprocess.run([sys.executable, "-c", FASTVIT], capture_output=True, text=True)
    assert done.stdout.split() == ["5", "True", "512", "True"], done.stderr


def test_the_starts_that_the_docs_name_can_be_built_and_have_the_licence_that_they_name() -> None:
    page = (Path(__file__).parents[2] / "docs" / "students.md").read_text()
    table = page.split("<!-- starts -->")[1].split("<!-- end of starts -->")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines() if "`" in line][1:]
    assert len(rows) == 7
    for name, _, licence in rows:
        assert licence_of(name) == licence
        assert output_width(name, 224) > 0
