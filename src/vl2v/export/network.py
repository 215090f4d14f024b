"""What is exported: the student's network with its preprocessing, and the card that says what it is."""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vl2v.export.model_card import public_about
from vl2v.runtime import FORMAT
from vl2v.students import Classifier


class Network(nn.Module):
    """Pixels [n, s, s, 3] (uint8) to logits [n, C] (closed) or unit embeddings [n, d] (open)."""

    mean: Tensor
    std: Tensor
    texts: Tensor | None

    def __init__(self, classifier: Classifier, *, form: str) -> None:
        super().__init__()
        student = classifier.student
        self.backbone, self.projector = student.backbone, student.projector
        self.normalised = student.head == "text"
        self.size = student.spec.image_size
        self.register_buffer("mean", student.mean.clone())
        self.register_buffer("std", student.std.clone())
        texts = classifier.texts if form == "closed" else None
        self.register_buffer("texts", None if texts is None else texts * classifier.scale)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return what the student's own forward does, in one piece."""
        x = (pixels.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std
        out: Tensor = self.projector(self.backbone(x))
        if self.normalised:
            out = functional.normalize(out, dim=-1)
        return out if self.texts is None else out @ self.texts.T

    @property
    def example(self) -> Tensor:
        """Pixels to trace it with."""
        return torch.zeros(2, self.size, self.size, 3, dtype=torch.uint8)


def card_of(classifier: Classifier, form: str, precision: str) -> dict[str, Any]:
    """Return what an export says of itself, plain types only."""
    card = {
        "format": FORMAT,
        "form": form,
        "image_size": classifier.student.spec.image_size,
        "classes": classifier.classes,
        "scale": classifier.scale,
        "temperature": classifier.temperature,
        "threshold": classifier.threshold,
        "precision": precision,
        "about": public_about(classifier.about),
    }
    if classifier.about.get("teacher"):  # what another class's text is asked of, and how
        card["teacher"] = classifier.about["teacher"]["fingerprint"]
        card["prompts"] = classifier.about["prompts"]
    if form == "open" and classifier.texts is not None:
        card["texts"] = base64.b64encode(classifier.texts.float().numpy().tobytes()).decode()
    return card
