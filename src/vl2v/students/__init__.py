"""Students: a small backbone, a projector, and the text classifier on top of them."""

from vl2v.deploy.prediction import Prediction
from vl2v.students.backbone import build_backbone, output_width, pretrained_backbone
from vl2v.students.classifier import Classifier, at_size
from vl2v.students.depthwise import quick_depthwise
from vl2v.students.hub import fetch, fetch_export, is_on_hub
from vl2v.students.student import Student, as_logits, evaluating, new_projector
from vl2v.teachers import BackboneSpec

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
