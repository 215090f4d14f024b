"""The KServe protocol, version 2, with its binary extension."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from vl2v import __version__
from vl2v.deploy.prediction import Prediction
from vl2v.serving.requests import ANY_BODY, IMAGES, body, failures, kind_of, parsed, plain_body, unpacked
from vl2v.serving.service import Service, client_of

VERSION = "1"
LENGTH = "Inference-Header-Content-Length"  # bytes of JSON, before the binary tensors
_BINARY = {"required": ["binary_data_size"], "properties": {"binary_data_size": {"type": "integer", "minimum": 0}}}
_KINDS = ("", "application/json", "application/octet-stream")  # a form of a page elsewhere has others
_PACKED = 1024  # bytes: less isn't compressed
_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n")


class Tensor(BaseModel):
    """A tensor: `pixels` (UINT8 [n, s, s, 3]) or `image` (BYTES [n], base64 of files; binary: the files)."""

    name: Literal["pixels", "image"]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(min_length=1, max_length=4)]
    datatype: Literal["UINT8", "BYTES"]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class Wanted(BaseModel):
    """An output that is wanted."""

    name: Literal["label", "best", "probabilities"]
    parameters: dict[str, Any] | None = None


class Inference(BaseModel):
    """A query of the KServe protocol."""

    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=1)]
    outputs: list[Wanted] | None = None

    def binary(self, output: str) -> bool | None:
        """Return whether an output is wanted as binary data; None: it isn't wanted."""
        all_of_them = _flag(self.parameters, "binary_data_output", False)
        if not self.outputs:
            return all_of_them
        return next(
            (_flag(each.parameters, "binary_data", all_of_them) for each in self.outputs if each.name == output), None
        )


def kserve_routes(service: Service) -> APIRouter:
    """Return the routes below `/v2`, except the server's health."""
    routes = APIRouter()
    inference = body(Inference)
    schema = inference["requestBody"]["content"]["application/json"]["schema"]
    schema["properties"]["inputs"]["items"] = _tensor_schema(service.student.card["image_size"])

    @routes.get("/v2")
    async def server() -> dict[str, Any]:
        """Tell what speaks the KServe protocol here."""
        return {"name": "vl2v", "version": __version__, "extensions": ["binary_tensor_data"]}

    @routes.get("/v2/models/{model}", responses=failures(404))
    async def model_metadata(model: str) -> dict[str, Any]:
        """Describe the model in the terms of the KServe protocol."""
        _check(model, service.name)
        size, count = service.student.card["image_size"], len(service.student.classes)
        return {
            "name": service.name,
            "versions": [VERSION],
            "platform": "onnxruntime_onnx",
            "inputs": [
                {"name": "image", "datatype": "BYTES", "shape": [-1], "parameters": {"content_type": "base64"}},
                {"name": "pixels", "datatype": "UINT8", "shape": [-1, size, size, 3]},
            ],
            "outputs": [
                {"name": "label", "datatype": "BYTES", "shape": [-1]},
                {"name": "best", "datatype": "BYTES", "shape": [-1]},
                {
                    "name": "probabilities",
                    "datatype": "FP32",
                    "shape": [-1, count],
                    "parameters": {"classes": service.student.classes},
                },
            ],
        }

    @routes.get("/v2/models/{model}/ready", responses=failures(404, 503))
    async def model_ready(model: str, request: Request) -> dict[str, bool]:
        """Tell whether the next image would be taken, in the terms of the KServe protocol."""
        _check(model, service.name)
        service.check_ready(client_of(request))
        return {"ready": True}

    @routes.post(
        "/v2/models/{model}/infer",
        responses=failures(*ANY_BODY, 404, 429),
        openapi_extra=inference,
    )
    async def infer(model: str, request: Request) -> Response:
        """Say what is in images, in the terms of the KServe protocol."""
        _check(model, service.name)
        client = client_of(request)
        service.check_room(client)
        wanted, rest = await _inference(request)
        predictions = await service.predictions(_things(wanted, rest, service.student.card["image_size"]), client)
        return _response(wanted, predictions, service.name, request.headers.get("accept-encoding", ""))

    versioned = "/v2/models/{model}/versions/{version}"

    @routes.get(versioned, responses=failures(404))
    async def version_metadata(model: str, version: str) -> dict[str, Any]:
        """Describe a version of the model."""
        _check(model, service.name, version)
        return await model_metadata(model)

    @routes.get(f"{versioned}/ready", responses=failures(404, 503))
    async def version_ready(model: str, version: str, request: Request) -> dict[str, bool]:
        """Tell whether the next image would be taken by a version of the model."""
        _check(model, service.name, version)
        return await model_ready(model, request)

    @routes.post(f"{versioned}/infer", responses=failures(*ANY_BODY, 404, 429), openapi_extra=inference)
    async def version_infer(model: str, version: str, request: Request) -> Response:
        """Say what is in images, by a version of the model."""
        _check(model, service.name, version)
        return await infer(model, request)

    return routes


def _tensor_schema(size: int) -> dict[str, Any]:
    """Return the JSON schema of an input tensor: what fits it is refused for undecodable data only (400)."""

    def variant(name: str, datatype: str, shapes: list[list[dict[str, int]]], items: dict[str, Any]) -> dict[str, Any]:
        count = {"type": "integer", "minimum": 1, "maximum": IMAGES}
        sides = [
            {"type": "array", "prefixItems": [count, *rest], "items": False, "minItems": 1 + len(rest)}
            for rest in shapes
        ]
        return {
            "type": "object",
            "properties": {
                "name": {"const": name},
                "datatype": {"const": datatype},
                "shape": {"anyOf": sides},
                "data": {"type": "array", "items": items, "minItems": 1},
                "parameters": {"type": "object"},
            },
            "required": ["name", "datatype", "shape"],
            "anyOf": [
                {"required": ["data"], "properties": {"parameters": {"not": {"required": ["binary_data_size"]}}}},
                {"required": ["parameters"], "not": {"required": ["data"]}, "properties": {"parameters": _BINARY}},
            ],
        }

    byte = {"type": "integer", "minimum": 0, "maximum": 255}
    pixels = [{"const": size}, {"const": size}, {"const": 3}]
    return {
        "anyOf": [
            variant("image", "BYTES", [[], [{"const": 1}]], {"type": "string", "contentEncoding": "base64"}),
            variant("pixels", "UINT8", [pixels], {"anyOf": [byte, {"type": "array"}]}),
        ]
    }


def _check(model: str, name: str, version: str = VERSION) -> None:
    if model != name:
        raise HTTPException(404, f"no such model; there is {name!r}")
    if version != VERSION:
        raise HTTPException(404, f"no such version of {name!r}; there is {VERSION!r}")


async def _inference(request: Request) -> tuple[Inference, bytes]:
    """Return what is wanted, and the binary tensors' bytes."""
    if kind_of(request) not in _KINDS:
        raise HTTPException(415, "Content-Type: application/json or application/octet-stream is needed")
    whole, length = await plain_body(request), request.headers.get(LENGTH)
    if length is None:
        return parsed(whole, Inference), b""
    if not (length.isascii() and length.isdigit() and int(length) <= len(whole)):
        raise HTTPException(400, f"{LENGTH}: bytes of JSON at the body's start, at most all of them")
    return parsed(whole[: int(length)], Inference), whole[int(length) :]


def _things(wanted: Inference, rest: bytes, size: int) -> list[bytes] | list[NDArray[np.uint8]]:
    """Return files' bytes, or pixels [s, s, 3], one an image.

    Raises:
        HTTPException: not of the form that the model's metadata describe.
    """
    (tensor,) = wanted.inputs
    given = _binary(tensor, rest)
    if not 1 <= tensor.shape[0] <= IMAGES:
        raise HTTPException(422, f"inputs[0].shape: 1 to {IMAGES} images a request")
    if (tensor.name, tensor.datatype) == ("image", "BYTES") and tensor.shape[1:] in ([], [1]):
        files = _texts(tensor.data) if given is None else [_plain(each) for each in _elements(given)]
        if len(files) != tensor.shape[0]:
            raise HTTPException(400, f"inputs[0]: {len(files)} images; the shape says {tensor.shape[0]}")
        return files
    if (tensor.name, tensor.datatype) == ("pixels", "UINT8") and tensor.shape[1:] == [size, size, 3]:
        if given is None:
            return list(_pixels(tensor.data, tensor.shape))
        if len(given) != tensor.shape[0] * size * size * 3:
            raise HTTPException(400, f"inputs[0]: {len(given)} bytes; the shape says {tensor.shape}")
        return list(np.frombuffer(given, np.uint8).reshape(tensor.shape))
    raise HTTPException(422, f"inputs[0]: image, BYTES, [n], or pixels, UINT8, [n, {size}, {size}, 3]")


def _binary(tensor: Tensor, rest: bytes) -> bytes | None:
    """Return a tensor's bytes; None: its data are in the JSON."""
    length = (tensor.parameters or {}).get("binary_data_size")
    if length is None:
        if rest:
            raise HTTPException(
                400, f"{len(rest)} bytes are left over after the JSON; inputs[0] has no binary_data_size"
            )
        if tensor.data is None:
            raise HTTPException(422, "inputs[0].data: missing, and there is no binary_data_size")
        return None
    if tensor.data is not None:
        raise HTTPException(422, "inputs[0]: either data or binary_data_size")
    if length != len(rest) or isinstance(length, bool):
        raise HTTPException(400, f"inputs[0].parameters.binary_data_size: {len(rest)} bytes follow the JSON")
    return rest


def _elements(data: bytes) -> Iterator[bytes]:
    """Return the elements of a binary BYTES tensor: each has its length before it."""
    start = 0
    while start < len(data):
        stop = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if start + 4 > len(data) or stop > len(data):
            raise HTTPException(400, "inputs[0]: the binary data end within an element")
        yield data[start + 4 : stop]
        start = stop


def _plain(element: bytes) -> bytes:
    """Return a file that came as it is or in base64: no file of an image has letters of base64 alone."""
    return unpacked(element.decode("ascii"), "inputs[0]") if element and _BASE64.issuperset(element) else element


def _texts(data: list[Any] | None) -> list[bytes]:
    found = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in data or ()]
    if not all(isinstance(text, str) for text in found):
        raise HTTPException(400, "inputs[0].data: base64 of an image's file each")
    return [unpacked(text, f"inputs[0].data[{index}]") for index, text in enumerate(found)]


def _pixels(data: list[Any] | None, shape: list[int]) -> NDArray[np.uint8]:
    try:
        values = np.asarray(data)
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
            raise ValueError
        return values.astype(np.uint8).reshape(shape)
    except ValueError:
        raise HTTPException(400, f"inputs[0].data: integers from 0 to 255 that fill the shape {shape}") from None


def _response(wanted: Inference, predictions: Sequence[Prediction], name: str, accepted: str) -> Response:
    outputs, tail = [], b""
    for output, values in _outputs(predictions):
        binary = wanted.binary(output["name"])
        if binary is None:
            continue
        if binary:
            data = _packed(values)
            output["parameters"] = {"binary_data_size": len(data)}
            tail += data
        else:
            output["data"] = values
        outputs.append(output)
    reply = {"model_name": name, "model_version": VERSION, "outputs": outputs}
    text = json.dumps(reply if wanted.id is None else {**reply, "id": wanted.id}, ensure_ascii=False).encode()
    headers = {"Vary": "Accept-Encoding"}
    if tail:
        headers[LENGTH] = str(len(text))
    content, coding = text + tail, _coding(accepted)
    if coding and len(content) >= _PACKED:
        headers["Content-Encoding"] = coding
        content = gzip.compress(content, 1, mtime=0) if coding == "gzip" else zlib.compress(content, 1)
    return Response(content, 200, headers, "application/octet-stream" if tail else "application/json")


def _outputs(predictions: Sequence[Prediction]) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    for name, words in (("label", [each.label for each in predictions]), ("best", [each.best for each in predictions])):
        yield {"name": name, "datatype": "BYTES", "shape": [len(words)]}, words
    rows = [list(prediction.probabilities.values()) for prediction in predictions]
    shape = [len(rows), len(rows[0])]
    yield {"name": "probabilities", "datatype": "FP32", "shape": shape}, [each for row in rows for each in row]


def _packed(values: list[Any]) -> bytes:
    if isinstance(values[0], str):
        return b"".join(struct.pack("<I", len(word)) + word for word in (each.encode() for each in values))
    return np.array(values, "<f4").tobytes()


def _coding(accepted: str) -> str:
    """Return how a response may be compressed, by Accept-Encoding; "": not at all."""
    given = {
        name.strip().lower(): rest.replace(" ", "")
        for name, _, rest in (each.partition(";") for each in accepted.split(","))
    }
    return next((each for each in ("gzip", "deflate") if each in given and given[each] not in ("q=0", "q=0.0")), "")


def _flag(parameters: dict[str, Any] | None, name: str, otherwise: bool) -> bool:
    return (parameters or {}).get(name, otherwise) is True
