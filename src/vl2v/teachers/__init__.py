"""Teachers: frozen vision-language models, one file each, behind one small protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vl2v.teachers.prompts import check_prompts, domain_template, prompts_for, text_classifier
from vl2v.teachers.protocol import BackboneSpec, EncodedImage, Teacher, WhiteBox, gives_weights
from vl2v.teachers.registry import is_white_box, open_teacher, teacher_kinds

if TYPE_CHECKING:
    from torch import nn


def build_tower(build: dict[str, Any]) -> nn.Module:
    """Return an image tower without its weights, from `BackboneSpec.build`."""
    if build["kind"] == "open_clip":
        from vl2v.teachers.open_clip import build_open_clip_tower

        return build_open_clip_tower(build)
    from vl2v.teachers.hf import build_hf_tower

    return build_hf_tower(build)


__all__ = [
    "BackboneSpec",
    "EncodedImage",
    "Teacher",
    "WhiteBox",
    "build_tower",
    "check_prompts",
    "domain_template",
    "gives_weights",
    "is_white_box",
    "open_teacher",
    "prompts_for",
    "teacher_kinds",
    "text_classifier",
]
