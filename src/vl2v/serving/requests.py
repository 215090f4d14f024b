"""Pictures out of requests: multipart files, base64 in JSON, tensors of the KServe protocol."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

PICTURES = 64  # a request
BODY = 32 * 2**20  # bytes of a request

Model = TypeVar("Model", bound=BaseModel)
Base64 = Annotated[str, Field(min_length=1, json_schema_extra={"contentEncoding": "base64"})]
ClassName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class Pictures(BaseModel):
    """Pictures as base64 of their files' bytes; a data URI is taken, too, an address isn't."""

    model_config = ConfigDict(extra="forbid")

    pictures: Base64 | Annotated[list[Base64], Field(min_length=1, max_length=PICTURES)]

    def files(self) -> list[bytes]:
        """Return the files' bytes.

        Raises:
            HTTPException: not base64.
        """
        given = [self.pictures] if isinstance(self.pictures, str) else self.pictures
        return [_unpacked(text, f"pictures[{index}]") for index, text in enumerate(given)]


class OnePicture(BaseModel):
    """A picture as base64 of its file's bytes."""

    model_config = ConfigDict(extra="forbid")

    picture: Base64

    def file(self) -> bytes:
        """Return the file's bytes.

        Raises:
            HTTPException: not base64.
        """
        return _unpacked(self.picture, "picture")


class NewClass(BaseModel):
    """A class to add: by its name alone, or with its text's embedding."""

    model_config = ConfigDict(extra="forbid")

    name: ClassName
    embedding: Annotated[list[float], Field(min_length=1, max_length=100_000)] | None = None


class Tensor(BaseModel):
    """A tensor of the KServe protocol: `pixels` (UINT8 [n, s, s, 3]) or `image` (BYTES [n], base64 of files)."""

    name: Literal["pixels", "image"]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(min_length=1, max_length=4)]
    datatype: Literal["UINT8", "BYTES"]
    data: list[Any]
    parameters: dict[str, Any] | None = None


class Wanted(BaseModel):
    """An output that is asked for."""

    name: Literal["label", "best", "probabilities"]
    parameters: dict[str, Any] | None = None


class Inference(BaseModel):
    """A question of the KServe protocol."""

    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=1)]
    outputs: list[Wanted] | None = None

    def things(self, size: int) -> list[bytes] | list[NDArray[np.uint8]]:
        """Return files' bytes, or pixels [s, s, 3], one a picture.

        Raises:
            HTTPException: not of the form that the model's metadata describe.
        """
        (tensor,) = self.inputs
        if not 1 <= tensor.shape[0] <= PICTURES:
            raise HTTPException(422, f"inputs[0].shape: 1 to {PICTURES} pictures a request")
        if (tensor.name, tensor.datatype) == ("image", "BYTES") and tensor.shape == [len(tensor.data)]:
            if not all(isinstance(text, str) for text in tensor.data):
                raise HTTPException(422, "inputs[0].data: base64 of a picture's file each")
            return [_unpacked(text, f"inputs[0].data[{index}]") for index, text in enumerate(tensor.data)]
        if (tensor.name, tensor.datatype) == ("pixels", "UINT8") and tensor.shape[1:] == [size, size, 3]:
            return list(_pixels(tensor.data, tensor.shape))
        wanted = f"image, BYTES, [n], or pixels, UINT8, [n, {size}, {size}, 3]"
        raise HTTPException(422, f"inputs[0]: {wanted}, and as many data as the shape tells")


async def body_of(request: Request, model: type[Model]) -> Model:
    """Return a request's JSON body.

    Raises:
        HTTPException: another content type (a page elsewhere could send it unasked), not JSON, not of this form.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Content-Type: application/json is needed")
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        status = 400 if first["type"] == "json_invalid" else 422
        raise HTTPException(status, f"{where}: {first['msg']}".removeprefix(": ")) from None


async def files_of(request: Request) -> list[bytes]:
    """Return the pictures' bytes of a multipart or JSON request.

    Raises:
        HTTPException: neither, or nothing in it.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return (await body_of(request, Pictures)).files()
    async with request.form(max_files=PICTURES, max_fields=PICTURES) as form:
        files = [await value.read() for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise HTTPException(422, "no file in it: give each picture as a file, for example `curl -F picture=@x.jpg`")
    return files


def _unpacked(text: str, where: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(400, f"{where}: not base64 of a picture's file; addresses are not fetched") from None


def _pixels(data: list[Any], shape: list[int]) -> NDArray[np.uint8]:
    try:
        values = np.asarray(data)
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
            raise ValueError
        return values.astype(np.uint8).reshape(shape)
    except ValueError:
        raise HTTPException(422, "inputs[0].data: integers from 0 to 255, as many as the shape tells") from None
