"""What a run ships: a student, its classes and their texts, a temperature and an "unknown" threshold."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vl2v.config import Section, expected
from vl2v.data.augment import Fit
from vl2v.deploy.prediction import Prediction, Predictor, prediction
from vl2v.errors import StudentError
from vl2v.io import replacing, write_tensors
from vl2v.names import listed
from vl2v.privacy import HIDDEN, without_secrets
from vl2v.students.backbone import build_backbone, without_memory
from vl2v.students.student import Student, as_logits, evaluating
from vl2v.table import Table
from vl2v.teachers.protocol import BackboneSpec

FORMAT = 1
LARGEST = 4096  # pixels a side


class _Backbone(Section):
    build: dict[str, Any]
    image_size: int = Field(gt=0, le=LARGEST)
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    fit: Fit = "stretch"


class _Card(Section):
    """What `student.json` has to say; a file may come from anybody."""

    format: int
    backbone: _Backbone
    head: Literal["text", "linear"]
    features: int = Field(ge=0)
    out: int = Field(ge=0)
    classes: list[str] = Field(min_length=1)
    scale: FiniteFloat
    temperature: FiniteFloat = Field(gt=0)
    threshold: FiniteFloat
    about: dict[str, Any]


@dataclass(repr=False)
class Classifier(Predictor):
    """A student that names what it sees; `vl2v.load` opens one.

    Attributes:
        student: the network.
        classes: C class names.
        texts: T [C, d], unit rows; None for students with a linear head.
        scale: the teacher's logit scale s.
        temperature: divides the logits; fitted on the source domains' validation images.
        threshold: probability below which the prediction is "unknown".
        about: where it comes from (teacher, prompts, method), JSON types only.

    Examples:
        >>> student = Classifier.load("runs/a/student")
        >>> student.predict(["images/paint/ball/00.png"])[0].best in student.classes
        True
    """

    student: Student
    classes: list[str]
    texts: Tensor | None
    scale: float = 1.0
    temperature: float = 1.0
    threshold: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Classifier({', '.join(f'{name} {value}' for name, value in self._facts())})"

    def _repr_html_(self) -> str:
        return Table(["student", ""], self._facts(), left=["student", ""]).render("html")

    def _facts(self) -> list[tuple[str, str]]:
        """Return what a person wants to know of it first."""
        return [
            ("backbone", str(self.student.spec.build.get("name", self.student.spec.build["kind"]))),
            ("method", str(self.about.get("method", "unknown"))),
            ("pixels", str(self.image_size)),
            ("classes", f"{len(self.classes)}: {listed(self.classes)}"),
        ]

    def logits(self, pixels: Tensor) -> Tensor:
        """Return logits [n, C] on the CPU, before the temperature, of uint8 pixels [n, s, s, 3]."""
        with evaluating(self.student):
            return as_logits(self.student(pixels), self.texts, self.scale).cpu()

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return calibrated probabilities [n, C] of uint8 pixels [n, s, s, 3]."""
        return (self.logits(pixels) / self.temperature).softmax(-1)

    def predict_pixels(self, pixels: Tensor) -> list[Prediction]:
        """Return one prediction an image of uint8 pixels [n, s, s, 3]."""
        return [prediction(self.classes, row, self.threshold) for row in self.probabilities(pixels).tolist()]

    def check_new(self, name: str) -> str:
        """Return the name under which a class of this name can join the others.

        Raises:
            StudentError: the head is linear, or as `vl2v.names.new_class_name` does.
        """
        if self.texts is None:
            raise self._fixed_head()
        return super().check_new(name)

    @property
    def image_size(self) -> int:
        """Pixels a side that the network takes."""
        return self.student.spec.image_size

    @property
    def fit(self) -> Fit:
        """How images become squares."""
        return self.student.spec.fit

    def _predict(self, pixels: NDArray[np.uint8]) -> list[Prediction]:
        return self.predict_pixels(torch.from_numpy(pixels))

    def _class_embeddings(self) -> NDArray[np.float32]:
        if self.texts is None:
            raise self._fixed_head()
        return self.texts.cpu().numpy()

    def _set_class_embeddings(self, embeddings: NDArray[np.float32]) -> None:
        assert self.texts is not None
        self.texts = torch.from_numpy(embeddings).to(self.texts)

    def _fixed_head(self) -> StudentError:
        method = self.about.get("method", "this method")
        return StudentError(
            f"{method} trains a fixed head: classes are added by text only to students that classify by texts"
        )

    def save(self, folder: Path) -> None:
        """Write `student.safetensors` and `student.json`, each in one step.

        Raises:
            StudentError: the disk is full, or the folder can't be written to.
        """
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
            "backbone": asdict(self.student.spec),
            "head": self.student.head,
            **sizes,
            "classes": self.classes,
            "scale": self.scale,
            "temperature": self.temperature,
            "threshold": self.threshold,
            "about": self.about,
        }
        with replacing(folder / "student.json", StudentError) as card_file:
            card_file.write_text(json.dumps(card, indent=2))
            write_tensors(folder / "student.safetensors", tensors, {"format": "pt"}, StudentError)

    @classmethod
    def load(cls, folder: Path | str) -> Classifier:
        """Return the classifier of a folder that `save` wrote.

        Raises:
            StudentError: a file is missing or corrupt, or the weights don't fit.
        """
        folder = Path(folder)
        try:
            card = json.loads((folder / "student.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "student.safetensors")
        except FileNotFoundError as error:
            raise StudentError(f"{error.filename}: missing; is {folder} a finished run's student folder?") from None
        except (ValueError, OSError, RecursionError, SafetensorError) as error:
            raise StudentError(f"{folder}: the student is corrupt ({error}); train it again") from None
        card = _checked(folder, card)
        if "pictures" in card["about"]:  # as earlier versions called it
            card["about"]["images"] = card["about"].pop("pictures")
        student = _described(folder, card, tensors)
        texts = tensors.pop("texts", None)
        student.load_state_dict(tensors)
        keys = ("classes", "scale", "temperature", "threshold", "about")
        return cls(student.eval(), texts=None if texts is None else texts.float(), **{key: card[key] for key in keys})


def _checked(folder: Path, card: Any) -> dict[str, Any]:
    """Return `student.json` with every value of its type.

    Raises:
        StudentError: it is of another version, or a value is missing or out of range.
    """
    found = card.get("format") if isinstance(card, dict) else None
    if found is None:
        raise StudentError(f"{folder}: the student is corrupt (student.json has no format); train it again")
    if found != FORMAT:
        raise StudentError(f"{folder}: format {found}, this version reads {FORMAT}; update vl2v")
    try:
        checked = _Card.model_validate(card).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StudentError(f"{folder}: student.json: {where}: {expected(first)}") from None
    teacher = checked["about"].get("teacher")
    if isinstance(teacher, dict) and isinstance(teacher.get("spec"), str):
        teacher["spec"] = without_secrets(teacher["spec"]).replace(HIDDEN, "")
    return checked


def _described(folder: Path, card: dict[str, Any], tensors: dict[str, Tensor]) -> Student:
    """Return the student that `student.json` describes, once it is known that its weights are these.

    It is built without memory first: a description may be of anything, the weights are what they are.

    Raises:
        StudentError: the description or the weights can't be used.
    """
    try:
        with without_memory():
            built = _built(card)
            wanted = {key: value.shape for key, value in built.state_dict().items()}
            bounds = {key for key, value in built.named_buffers() if not key.endswith(("running_mean", "running_var"))}
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = type(error).__name__
        raise StudentError(f"{folder}: student.json describes no student that is known ({reason})") from None
    found = {key: value.shape for key, value in tensors.items()}
    texts = found.pop("texts", None)
    classes, width = len(card["classes"]), card["out"]
    if card["head"] == "text":
        fits = texts is not None and len(texts) == 2 and texts[0] == classes and width in (0, texts[1])
    else:
        fits = texts is None and width == classes
    if not fits or found != wanted:
        raise StudentError(f"{folder}: the weights don't fit the student that student.json describes")
    if any(tensor.isnan().any() or (tensor.isinf().any() and key not in bounds) for key, tensor in tensors.items()):
        raise StudentError(f"{folder}: the weights hold NaN or infinity; train it again")
    return _built(card)


def _built(card: dict[str, Any]) -> Student:
    spec = BackboneSpec(**card["backbone"])
    projector = nn.Linear(card["features"], card["out"]) if card["out"] else nn.Identity()
    return Student(build_backbone(spec), projector, spec, card["head"])


def at_size(classifier: Classifier, size: int) -> Classifier:
    """Return a classifier with the same weights for images of another size; itself where the size is its own.

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
        raise StudentError(f"{name} can't take images of {size} pixels ({type(error).__name__})") from None
    return replace(classifier, student=student)
