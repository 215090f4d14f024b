"""What a report shows of a student: the part that an answer hangs on, the plane, and small images."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vl2v.report.map import Plane, lit, occlusion
from vl2v.report.page import sprite
from vl2v.students.classifier import Classifier
from vl2v.students.student import Student
from vl2v.teachers.protocol import BackboneSpec


class Corner(nn.Module):
    """A network that sees only how bright the upper left quarter is, against the rest's grey."""

    def forward(self, x: Tensor) -> Tensor:
        side = x.shape[-1] // 2
        brightness = x[:, 0, :side, :side].mean((1, 2))
        return torch.stack([brightness, -brightness], 1)


def test_occlusion_finds_the_part_that_the_prediction_hangs_on() -> None:
    spec = BackboneSpec({}, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    classifier = Classifier(Student(Corner(), nn.Identity(), spec, "linear"), ["bright", "dark"], None)
    white = torch.full((2, 32, 32, 3), 255, dtype=torch.uint8)
    done: list[int] = []
    drops, least = occlusion(classifier, white, lambda task, number, total, remark: done.append(number))
    assert drops.shape == (2, 8, 8) and done == [1, 2]
    assert drops[:, :4, :4].min() > 0.005 > 1e-6 > drops[:, 5:].max() == drops[:, :, 5:].max()
    whole = classifier.probabilities(white)[0, 0].item()
    covered = white[:1].clone()
    covered[:, :8, :8] = 128
    np.testing.assert_allclose(least, classifier.probabilities(covered)[0, 0].item(), atol=1e-6)
    assert (least < whole).all()
    shown = lit(np.zeros((32, 32, 3), np.uint8), drops[0])
    assert shown[:12, :12].max() < 60 and shown[24:, 24:].min() > 120  # as it was, and pale


def test_the_plane_holds_what_varies_most() -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    along = rng.normal(size=(50, 6)) * [5, 3, 1e-6, 1e-6, 1e-6, 1e-6]
    vectors = along @ axes.T + 7
    plane = Plane(vectors)
    assert plane.explained > 0.999
    flat = plane.of(vectors)
    apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(flat[:, None] - flat[None], axis=-1), apart, atol=1e-4)


def test_a_sheet_has_its_images_row_by_row() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pixels = [np.full((20, 20, 3), colour, np.uint8) for colour in colours]
    data = sprite(pixels, side=16, columns=2)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB"))
    assert sheet.shape == (32, 32, 3)
    for (x, y), colour in zip([(8, 8), (24, 8), (8, 24)], colours, strict=True):
        assert abs(sheet[y, x].astype(int) - colour).max() < 25
