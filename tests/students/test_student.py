"""The student as a module."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from vl2v.students.student import Student, new_projector
from vl2v.teachers.protocol import BackboneSpec


class Mean(nn.Module):
    """Three features: the mean of each colour."""

    num_features = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def student(head: str = "text") -> Student:
    spec = BackboneSpec({}, 4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return Student(Mean(), new_projector(3, 5, 0), spec, head)


def test_inputs_come_from_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    pixels, features = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, 3)
    elsewhere = student().to("meta")  # computes no values, and mixes with no other device
    for x in (pixels, features):
        assert elsewhere(x).device.type == "meta"
