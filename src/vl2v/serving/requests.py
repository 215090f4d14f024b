"""Requests and responses, as the OpenAPI document describes them; images in multipart files and base64."""

from __future__ import annotations

import base64
import zlib
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from vl2v.serving.access import OPEN

IMAGES = 64  # a request
_NOT_ZERO: dict[str, Any] = {"contains": {"not": {"const": 0}}}
_BREAKS = str.maketrans("", "", " \t\r\n")
BODY = 32 * 2**20  # bytes of a request

Model = TypeVar("Model", bound=BaseModel)
Base64 = Annotated[str, Field(min_length=1, json_schema_extra={"contentEncoding": "base64"})]
_NOT_BLANK: dict[str, Any] = {"pattern": r"\S"}  # blanks around a name are stripped: as many letters are left
ClassName = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), Field(json_schema_extra=_NOT_BLANK)
]


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _renamed(given: Any, former: str, key: str) -> Any:
    if isinstance(given, dict) and former in given and key not in given:
        return {key if each == former else each: value for each, value in given.items()}
    return given


class Images(BaseModel):
    """Images as base64 of their files' bytes, one or a list; a data URI is taken, too, an address isn't."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[list[Base64], Field(min_length=1, max_length=IMAGES), BeforeValidator(_listed)]

    @model_validator(mode="before")
    @classmethod
    def former(cls, given: Any) -> Any:
        """Take the key that was called `pictures`."""
        return _renamed(given, "pictures", "images")

    def files(self) -> list[bytes]:
        """Return the files' bytes.

        Raises:
            HTTPException: not base64.
        """
        return [unpacked(text, f"images[{index}]") for index, text in enumerate(self.images)]


class OneImage(BaseModel):
    """An image as base64 of its file's bytes."""

    model_config = ConfigDict(extra="forbid")

    image: Base64

    @model_validator(mode="before")
    @classmethod
    def former(cls, given: Any) -> Any:
        """Take the key that was called `picture`."""
        return _renamed(given, "picture", "image")

    def file(self) -> bytes:
        """Return the file's bytes.

        Raises:
            HTTPException: not base64.
        """
        return unpacked(self.image, "image")


class NewClass(BaseModel):
    """A class to add: by its name alone, or with its text's embedding."""

    model_config = ConfigDict(extra="forbid")

    name: ClassName
    embedding: Annotated[list[float], Field(min_length=1, max_length=100_000, json_schema_extra=_NOT_ZERO)] | None = (
        None
    )


async def body_of(request: Request, model: type[Model]) -> Model:
    """Return a request's JSON body.

    Raises:
        HTTPException: another content type (a page elsewhere could send it unasked), not JSON, not of this form.
    """
    if kind_of(request) != "application/json":
        raise HTTPException(415, "Content-Type: application/json is needed")
    return parsed(await plain_body(request), model)


def kind_of(request: Request) -> str:
    """Return a request's content type, without its parameters."""
    return str(request.headers.get("content-type", "")).partition(";")[0].strip().lower()


def parsed(body: bytes, model: type[Model]) -> Model:
    """Return a JSON body.

    Raises:
        HTTPException: not JSON, or not of this form.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        status = 400 if first["type"] == "json_invalid" else 422
        raise HTTPException(status, f"{where}: {first['msg']}".removeprefix(": ")) from None


async def plain_body(request: Request) -> bytes:
    """Return a request's body, unpacked if it came compressed.

    Raises:
        HTTPException: it isn't what its Content-Encoding says, or too large.
    """
    body, coding = await request.body(), request.headers.get("content-encoding", "identity").strip().lower()
    if coding == "identity":
        return body
    if coding not in ("gzip", "deflate"):
        raise HTTPException(
            415, "Content-Encoding: gzip and deflate are understood", {"Accept-Encoding": "gzip, deflate"}
        )
    try:
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # both, by their headers
        plain = unpacker.decompress(body, BODY)
    except zlib.error:
        raise HTTPException(400, f"the body isn't {coding}, as its Content-Encoding says") from None
    if unpacker.unconsumed_tail:
        raise HTTPException(413, f"at most {BODY} bytes a request, unpacked")
    if not unpacker.eof:
        raise HTTPException(400, "the body is cut off")
    return plain


async def files_of(request: Request) -> list[bytes]:
    """Return the images' bytes of a multipart or JSON request.

    Raises:
        HTTPException: neither, or without an image.
    """
    if not kind_of(request) and not await request.body():
        raise HTTPException(
            400, 'no images: send files of a form (`curl -F image=@x.jpg`), or {"images": [...]} as JSON'
        )
    if kind_of(request) != "multipart/form-data":
        return (await body_of(request, Images)).files()
    async with request.form(max_files=IMAGES, max_fields=IMAGES) as form:
        files = [await value.read() for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise HTTPException(422, "no file in it: give each image as a file, for example `curl -F image=@x.jpg`")
    return files


def unpacked(text: str, where: str) -> bytes:
    """Return a file's bytes from their base64, with line breaks or without, or from a data URI.

    Raises:
        HTTPException: it isn't base64.
    """
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text.translate(_BREAKS), validate=True)
    except ValueError:
        raise HTTPException(400, f"{where}: not base64 of an image's file; addresses are not fetched") from None


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
