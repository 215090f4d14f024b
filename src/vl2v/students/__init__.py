"""Students: a small backbone, a projector, and the text classifier on top of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.lazy import lazily

if TYPE_CHECKING:
    from vl2v.deploy.prediction import Prediction
    from vl2v.students.backbone import build_backbone, output_width, pretrained_backbone
    from vl2v.students.classifier import Classifier, at_size
    from vl2v.students.depthwise import quick_depthwise
    from vl2v.students.hub import fetch, fetch_export, is_on_hub
    from vl2v.students.student import Student, as_logits, evaluating, new_projector
    from vl2v.teachers import BackboneSpec

_HOMES = {
    "BackboneSpec": "vl2v.teachers",
    "Classifier": "vl2v.students.classifier",
    "Prediction": "vl2v.deploy.prediction",
    "Student": "vl2v.students.student",
    "as_logits": "vl2v.students.student",
    "at_size": "vl2v.students.classifier",
    "build_backbone": "vl2v.students.backbone",
    "evaluating": "vl2v.students.student",
    "fetch": "vl2v.students.hub",
    "fetch_export": "vl2v.students.hub",
    "is_on_hub": "vl2v.students.hub",
    "new_projector": "vl2v.students.student",
    "output_width": "vl2v.students.backbone",
    "pretrained_backbone": "vl2v.students.backbone",
    "quick_depthwise": "vl2v.students.depthwise",
}

__all__ = [
    "BackboneSpec",
    "Classifier",
    "Prediction",
    "Student",
    "as_logits",
    "at_size",
    "build_backbone",
    "evaluating",
    "fetch",
    "fetch_export",
    "is_on_hub",
    "new_projector",
    "output_width",
    "pretrained_backbone",
    "quick_depthwise",
]

__getattr__ = lazily(__name__, _HOMES)
