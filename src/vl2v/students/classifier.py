"""What a run ships: a student, its classes and their texts, a temperature and an "unknown" threshold."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vl2v.errors import DataError, StudentError
from vl2v.prediction import Prediction, prediction
from vl2v.students.backbone import BackboneSpec, build_backbone
from vl2v.students.student import Student, as_logits, evaluating

FORMAT = 1


@dataclass
class Classifier:
    """A student that names what it sees.

    Attributes:
        student: the network.
        classes: C class names.
        texts: T [C, d], unit rows; None for students with a linear head.
        scale: the teacher's logit scale s.
        temperature: divides the logits; fitted on the source domains' validation pictures.
        threshold: probability below which the answer is "unknown".
        about: where it comes from (teacher, prompts, method), JSON types only.
    """

    student: Student
    classes: list[str]
    texts: Tensor | None
    scale: float = 1.0
    temperature: float = 1.0
    threshold: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)

    def logits(self, pixels: Tensor) -> Tensor:
        """Return logits [n, C], before the temperature, of uint8 pixels [n, s, s, 3]."""
        with evaluating(self.student):
            return as_logits(self.student(pixels), self.texts, self.scale)

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return calibrated probabilities [n, C] of uint8 pixels [n, s, s, 3]."""
        return (self.logits(pixels) / self.temperature).softmax(-1)

    def predict(self, pictures: Sequence[bytes | Path | str]) -> list[Prediction]:
        """Return one prediction a picture (a file's bytes or its path), in order.

        Raises:
            PictureError: a picture that can't be decoded.
            DataError: a file that can't be read.
        """
        from vl2v.data import decode, evaluation_view

        size = self.student.spec.image_size
        files = (picture if isinstance(picture, bytes) else _bytes(Path(picture)) for picture in pictures)
        views = [evaluation_view(decode(data), size) for data in files]
        chunks = [torch.from_numpy(np.stack(views[i : i + 64])) for i in range(0, len(views), 64)]
        return [prediction for chunk in chunks for prediction in self.predict_pixels(chunk)]

    def predict_pixels(self, pixels: Tensor) -> list[Prediction]:
        """Return one prediction a picture of uint8 pixels [n, s, s, 3]."""
        return [prediction(self.classes, row, self.threshold) for row in self.probabilities(pixels).tolist()]

    def add_class(self, name: str, text: NDArray[np.float32]) -> None:
        """Add a class by its text embedding [d]: no training.

        Raises:
            StudentError: the head is linear, the class is there already, or the dimension is another.
        """
        if self.texts is None:
            method = self.about.get("method", "this method")
            raise StudentError(
                f"{method} trains a fixed head: classes are added by text only to students that classify by texts"
            )
        if name in self.classes:
            raise StudentError(f"class {name!r} is there already")
        if text.shape != self.texts.shape[1:]:
            raise StudentError(
                f"class {name!r}: embedding of {text.shape[0]} numbers, the student has {self.texts.shape[1]}"
            )
        self.texts = torch.cat([self.texts, torch.from_numpy(text)[None].to(self.texts)])
        self.classes.append(name)

    def save(self, folder: Path) -> None:
        """Write `student.safetensors` and `student.json`, each in one step."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.contiguous() for key, value in self.student.state_dict().items()}
        if self.texts is not None:
            tensors["texts"] = self.texts.contiguous()
        sizes = {"features": 0, "out": 0}
        if isinstance(self.student.projector, nn.Linear):
            sizes = {
                "features": self.student.projector.in_features,
                "out": self.student.projector.out_features,
            }
        card = {
            "format": FORMAT,
            "backbone": self.student.spec.to_json(),
            "head": self.student.head,
            **sizes,
            "classes": self.classes,
            "scale": self.scale,
            "temperature": self.temperature,
            "threshold": self.threshold,
            "about": self.about,
        }
        save_file(tensors, folder / "student.safetensors.new", metadata={"format": "pt"})
        (folder / "student.json.new").write_text(json.dumps(card, indent=2), encoding="utf-8")
        for name in ("student.safetensors", "student.json"):
            (folder / f"{name}.new").replace(folder / name)

    @classmethod
    def load(cls, folder: Path) -> Classifier:
        """Return the classifier of a folder that `save` wrote.

        Raises:
            StudentError: a file is missing or corrupt, or the weights don't fit.
        """
        try:
            card = json.loads((folder / "student.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "student.safetensors")
        except FileNotFoundError as error:
            raise StudentError(f"{error.filename}: missing; is {folder} a finished run's student folder?") from None
        except (ValueError, OSError, SafetensorError) as error:
            raise StudentError(f"{folder}: the student is corrupt ({error}); train it again") from None
        if card.get("format") != FORMAT:
            raise StudentError(f"{folder}: format {card.get('format')}, this version reads {FORMAT}; update vl2v")
        texts = tensors.pop("texts", None)
        spec = BackboneSpec.from_json(card["backbone"])
        projector = nn.Linear(card["features"], card["out"]) if card["out"] else nn.Identity()
        student = Student(build_backbone(spec), projector, spec, card["head"])
        try:
            student.load_state_dict(tensors)
        except RuntimeError:
            raise StudentError(f"{folder}: the weights don't fit the student that student.json describes") from None
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise StudentError(f"{folder}: the weights hold NaN or infinity; train it again")
        keys = ("classes", "scale", "temperature", "threshold", "about")
        return cls(student.eval(), texts=texts, **{key: card[key] for key in keys})


def at_size(classifier: Classifier, size: int) -> Classifier:
    """Return a classifier with the same weights for pictures of another size; itself where the size is its own.

    The position embeddings of timm's transformers are resampled. Temperature and threshold stay as they were fitted.

    Raises:
        StudentError: the backbone can't take that size.
    """
    old = classifier.student
    if size == old.spec.image_size:
        return classifier
    backbone = copy.deepcopy(old.backbone)
    student = Student(backbone, old.projector, replace(old.spec, image_size=size), old.head).eval()
    try:
        if callable(resize := getattr(backbone, "set_input_size", None)):
            resize(img_size=(size, size))
        with torch.no_grad():
            student(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    except Exception as error:  # each backbone has errors of its own for sizes
        name = old.spec.build.get("name", "the student")
        raise StudentError(f"{name} can't take pictures of {size} pixels ({type(error).__name__})") from None
    return replace(classifier, student=student)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None
