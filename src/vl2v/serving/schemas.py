"""Requests and responses, as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from vl2v.serving.access import OPEN
from vl2v.serving.requests import IMAGES, Images

ANY_BODY = (400, 403, 408, 413, 415, 422)  # what any body can be answered with
STATUSES = {
    400: "an image can't be decoded, or the body isn't what its Content-Type says",
    401: "no key, or a wrong one",
    402: "the budget for the teacher is used up",
    403: "the request is a page's elsewhere, whose origin isn't among those of --origin",
    404: "no such thing",
    408: "the body came too slowly",
    409: "not with this student, or not with what is known here",
    413: "the body is too large",
    415: "another Content-Type is needed",
    422: "the body isn't of the form that is described here",
    429: "too much is waiting; Retry-After tells for how long",
    502: "the teacher can't be queried; the server's log says why",
    503: "too much is waiting to take more",
}


class Failure(BaseModel):
    """What was wrong."""

    error: str


class Prediction(BaseModel):
    """The prediction for an image; `label` is the best class, or "unknown"."""

    label: str
    best: str
    probability: float
    probabilities: dict[str, float]


class Predictions(BaseModel):
    """One prediction an image, in order."""

    model: str
    predictions: list[Prediction]


class Classes(BaseModel):
    """All classes; `obstacle` says why none can be added by its name alone, if so."""

    classes: list[str]
    obstacle: str | None


class TeacherFacts(BaseModel):
    """The teacher that can be queried, and its bill."""

    name: str
    paid: bool
    bill: str | None


class About(BaseModel):
    """The model that is served."""

    model: str
    form: Literal["open", "closed"]
    precision: str
    image_size: int
    threshold: float
    images: int
    bytes: int
    saves_images: bool
    teacher: TeacherFacts | None


class Opinion(BaseModel):
    """The teacher's zero-shot prediction for an image."""

    answer: Prediction
    teacher: TeacherFacts


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the responses other than success."""
    return {status: {"description": STATUSES[status], "model": Failure} for status in statuses}


def body(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a body that is read by hand."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema(model)}}}}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's schema without references: it stands alone."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            reference = value.get("$ref")
            return whole(parts[reference.rpartition("/")[2]]) if reference else {k: whole(v) for k, v in value.items()}
        return [whole(each) for each in value] if isinstance(value, list) else value

    found: dict[str, Any] = whole(schema)
    return found


_FILE = {"type": "string", "format": "binary"}
_FILES = {
    "type": "object",
    "title": "ImageFiles",
    "required": ["image"],
    "properties": {"image": {"type": "array", "items": _FILE, "minItems": 1, "maxItems": IMAGES}},
}
SEVERAL: dict[str, Any] = body(Images)
SEVERAL["requestBody"]["required"] = False  # a wanted body of two kinds makes openapi-python-client forget an import
SEVERAL["requestBody"]["content"]["multipart/form-data"] = {"schema": _FILES}


def locked(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI document that tells of the key."""
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        for operation in operations.values() if path not in OPEN else ():
            operation["security"] = [{"key": []}]
            operation["responses"]["401"] = {"description": STATUSES[401]}
    return schema
