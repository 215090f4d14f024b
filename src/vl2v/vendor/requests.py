"""What clients send: the schema of a request and its limits, checked before any work is done; and its document."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from typing import Annotated, Any, Literal

import msgspec

from vl2v.data import decoding
from vl2v.data.decoding import ImageError, image_size
from vl2v.teachers.protocol import EncodedImage
from vl2v.vendor.addresses import Address, Addresses, Unfetched
from vl2v.vendor.batching import Image

IMAGES, TEXTS = 32, 2048  # a request
TEXT_LENGTH = 10_000
CHARACTERS = 500_000  # all texts of a request together
IMAGE_PIXELS = decoding.MAX_PIXELS
PIXELS = 2 * IMAGE_PIXELS  # all images of a request together
LAYERS = 10  # scans of a progressive JPEG that cost as much as one image; more count as more pixels
BODY = 64 * 2**20
INLINE = 2**15  # bytes of a body that is parsed faster than a thread starts

_PNG = b"\x89PNG\r\n\x1a\n"
_AT = re.compile(r"^(.*?)(?: - at `\$\.?(.*)`)?$", re.DOTALL)
Text = Annotated[str, msgspec.Meta(min_length=1)]


class Query(msgspec.Struct, forbid_unknown_fields=True):
    """The query: texts, or images as data URIs (or URLs, of hosts that the server fetches from)."""

    model: str
    input: Text | Annotated[list[Text], msgspec.Meta(min_length=1, max_length=TEXTS)]
    modality: Literal["text", "image"] | None = "text"
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    user: str | None = None


class Embedding(msgspec.Struct):
    """One embedding; base64 is of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class Usage(msgspec.Struct):
    """The bill: a text or an image counts as a token; `micro` is millionths of the currency."""

    prompt_tokens: int
    total_tokens: int
    micro: int


class Response(msgspec.Struct):
    """The embeddings, in the order of the input."""

    model: str
    id: str
    created: int
    data: list[Embedding]
    usage: Usage
    object: Literal["list"] = "list"


class Problem(msgspec.Struct):
    """What was wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(msgspec.Struct):
    """A problem."""

    error: Problem


class Refusal(Exception):
    """A response other than 200, in OpenAI's form."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers or {}


class Read(msgspec.Struct, frozen=True):
    """A parsed request, within its limits.

    Attributes:
        texts: the items; empty for images.
        images: likewise, or where they are that have to be fetched; empty for texts.
        body_digest: SHA-256 of the body.
    """

    query: Query
    kind: Literal["text", "image"]
    texts: list[str]
    images: list[Image | Address]
    body_digest: bytes

    @property
    def count(self) -> int:
        """How many items there are."""
        return len(self.texts) or len(self.images)


_decoder = msgspec.json.Decoder(Query)


def read(body: bytes, model: str, dim: int, addresses: Addresses) -> Read:
    """Return the request in a body.

    Raises:
        Refusal: it doesn't follow the schema, is for another model or dimension, over a limit, or an image is missing.
    """
    try:
        query = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"not JSON: {error}", "invalid_json") from None
    if query.model != model:
        raise Refusal(404, f"no model {query.model[:100]!r}; there is {model!r}", "model_not_found", "model")
    if query.dimensions is not None and query.dimensions != dim:
        message = f"dimensions: {query.dimensions}; this model's embeddings have {dim}, leave it out"
        raise Refusal(400, message, "invalid_dimensions", "dimensions")
    given = [query.input] if isinstance(query.input, str) else query.input
    body_digest = hashlib.sha256(body).digest()
    if query.modality != "image":
        return Read(query, "text", _texts(given), [], body_digest)
    if len(given) > IMAGES:
        raise Refusal(400, f"input: {len(given)} images; at most {IMAGES} a request", "too_many_images", "input")
    images = [_image(i, text, addresses) for i, text in enumerate(given)]
    check_pixels([image for image in images if isinstance(image, Image)])
    return Read(query, "image", [], images, body_digest)


def image_of(index: int, data: bytes) -> Image:
    """Return an image with its size, without decoding it.

    Raises:
        Refusal: not an image, or too large.
    """
    where = f"input[{index}]"
    try:
        width, height = struct.unpack(">II", data[16:24]) if data[:8] == _PNG and len(data) > 24 else image_size(data)
    except ImageError as error:
        raise Refusal(400, f"{where} can't be decoded: {error}", "invalid_image", where) from None
    if width * height > IMAGE_PIXELS:
        message = f"{where} can't be decoded: too large ({width}x{height} pixels); at most {IMAGE_PIXELS}"
        raise Refusal(400, message, "invalid_image", where)
    layers = data.count(b"\xff\xda") if data[:2] == b"\xff\xd8" else 1
    return Image(index, EncodedImage(where, data), width * height * max(1, -(-layers // LAYERS)))


def check_pixels(images: list[Image]) -> None:
    """Check the number of pixels of all images together.

    Raises:
        Refusal: they have too many.
    """
    pixels = sum(image.pixels for image in images)
    if pixels > PIXELS:
        message = (
            f"input: {-(-pixels // 10**6)} megapixels to decode; at most {PIXELS // 10**6} a request: "
            "send fewer images at a time, or smaller ones"
        )
        raise Refusal(400, message, "too_many_pixels", "input")


def _texts(given: list[str]) -> list[str]:
    lengths = [*map(len, given)]
    if max(lengths) > TEXT_LENGTH:
        where = f"input[{next(i for i, length in enumerate(lengths) if length > TEXT_LENGTH)}]"
        raise Refusal(400, f"{where}: over {TEXT_LENGTH} characters", "text_too_long", where)
    if sum(lengths) > CHARACTERS:
        message = f"input: {sum(lengths)} characters; at most {CHARACTERS} a request: send fewer texts at a time"
        raise Refusal(400, message, "text_too_long", "input")
    return given


def _image(index: int, text: str, addresses: Addresses) -> Image | Address:
    where = f"input[{index}]"
    head, comma, rest = text.partition(",")
    try:
        if not text.startswith("data:"):
            return addresses.parse(text)
        if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
            raise Refusal(400, f"{where}: give images as data:image/...;base64,...", "invalid_image", where)
        return image_of(index, base64.b64decode("".join(rest.split()), validate=True))
    except Unfetched as error:
        raise Refusal(400, f"{where}: {error}; give it as data:image/...;base64,...", "invalid_image", where) from None
    except (binascii.Error, ValueError):
        raise Refusal(400, f"{where}: not base64", "invalid_image", where) from None


def _invalid(error: str) -> Refusal:
    """Return the refusal of a body that is not a `Query`."""
    found = _AT.match(error)
    what, where = found.groups() if found else (error, "")
    param = (where or "").partition("[")[0] or None
    if param == "input" and re.search(r"got `(int|float|array)`", what):
        message = f"{where}: send texts, not tokens (LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
        return Refusal(422, message, "tokens_not_taken", "input")
    return Refusal(422, f"{where}: {what}" if where else what, "invalid_request", where or None)


STATUSES = {
    400: "an image can't be decoded or is not fetched, too much in one request, other dimensions, or not JSON",
    401: "no key, or a wrong or revoked one",
    403: "the quota is used up",
    404: "no such model",
    408: "the body arrived too slowly",
    409: "the Idempotency-Key was used for another request",
    413: "the body is too large",
    422: "the body doesn't follow the schema",
    429: "too fast, or the queue is full; see Retry-After",
    500: "the model failed; nothing was billed",
    503: "waited too long, the ledger can't be written, or the server is stopping; nothing was billed",
}
_KEY: list[dict[str, list[str]]] = [{"key": []}]


def document() -> bytes:
    """Return the OpenAPI document of the server, as JSON."""
    embeddings = {
        "summary": "Embed texts, or images given as data URIs, in one shared space.",
        "operationId": "embeddings",
        "security": _KEY,
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "schema": {"type": "string", "maxLength": 255},
                "description": "a repeated request with it gets the same response for a day, and is billed once",
            }
        ],
        "requestBody": {"required": True, "content": _content("Query")},
        "responses": {"200": {"description": "embedded and billed", "content": _content("Response")}, **_failures()},
    }
    models: dict[str, Any] = {
        "summary": "The model, its limits, and its prices for this key.",
        "security": _KEY,
    }
    named = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    paths = {
        "/v1/embeddings": {"post": embeddings},
        "/v1/models": {"get": {**models, "operationId": "models", "responses": {**_object(), **_failures(401)}}},
        "/v1/models/{model}": {
            "get": {
                **models,
                "operationId": "model",
                "parameters": [named],
                "responses": {**_object(), **_failures(401, 404)},
            }
        },
        "/health": {"get": {"summary": "Whether the server is up.", "operationId": "health", "responses": _object()}},
        "/metrics": {
            "get": {
                "summary": "Prometheus metrics; no client is named.",
                "operationId": "metrics",
                "responses": {
                    "200": {"description": "metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}
                },
            }
        },
    }
    _, found = msgspec.json.schema_components([Query, Response, Failure], ref_template="#/components/schemas/{name}")
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "vl2v vendor", "version": "2"},
            "paths": paths,
            "components": {
                "schemas": found,
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _object() -> dict[str, Any]:
    return {"200": {"description": "as described", "content": {"application/json": {"schema": {"type": "object"}}}}}


def _failures(*statuses: int) -> dict[str, Any]:
    return {
        str(status): {"description": words, "content": _content("Failure")}
        for status, words in STATUSES.items()
        if not statuses or status in statuses
    }
