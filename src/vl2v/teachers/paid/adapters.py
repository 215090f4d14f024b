"""Each vendor's format: what a request's body is, and how its responses, its usage and its errors are read.

One client (`vl2v.teachers.paid.client`) speaks them all.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vl2v.teachers.paid.requests import SentImage
from vl2v.teachers.paid.teacher import Kind

Things = Sequence[SentImage] | Sequence[str]
Json = Any


@dataclass(frozen=True)
class Adapter:
    """A vendor's protocol.

    Attributes:
        path: of the embedding end point, after the base URL; {model} stands for the model, {kind} for Image or Text.
        key: the environment variable of the API key.
        body: (model, kind, things, dimensions) -> the request; bytes go as they are, anything else as JSON.
        rows: response -> the vectors as they were sent, in the order of the items.
        tokens: response -> tokens that are billed, to be summed up, as the vendor gives them; none where it doesn't.
        micro: response -> what it cost, where a vendor says so itself; None where it doesn't.
        modality: whether a field of the request alone says that its items are images: some servers overlook it.
        prices: whether GET /models may list prices and the dimension, as `vl2v vendor serve` does.
        header: of HTTP in which the key goes, up to the key.
        hint: what to say of a request that was refused, beside the vendor's own words.
    """

    path: str
    key: str
    key_needed: bool
    body: Callable[[str, Kind, Things, int | None], Json]
    rows: Callable[[Json], list[Any]]
    tokens: Callable[[Json], list[Any]]
    micro: Callable[[Json], Any] = lambda response: None
    modality: bool = False
    prices: bool = False
    hint: str = ""
    header: str = "Authorization: Bearer "


def vector(row: Any) -> NDArray[np.float32]:
    """Return a vector that was sent as numbers or as base64 of little-endian float32.

    Raises:
        ValueError, TypeError: it is neither.
    """
    if isinstance(row, str):
        return np.frombuffer(base64.b64decode(row, validate=True), "<f4")
    return np.asarray(row, np.float32)


def by_index(response: Json) -> list[Any]:
    """Return `data[].embedding` in the order of `data[].index`.

    Raises:
        ValueError, TypeError, KeyError: there is no such thing, or an index is missing or there twice.
    """
    found = {int(item["index"]): item["embedding"] for item in response["data"]}
    if sorted(found) != list(range(len(response["data"]))):
        raise ValueError(f"{len(response['data'])} embeddings with the indices {sorted(found)[:5]}...")
    return [found[i] for i in range(len(found))]


def total_tokens(response: Json) -> list[Any]:
    """Return `usage.total_tokens`."""
    return _given(response.get("usage"), "total_tokens")


def _own_price(response: Json) -> Any:
    """Return `usage.micro`, which `vl2v vendor serve` gives."""
    return next(iter(_given(response.get("usage"), "micro")), None)


def _given(figures: Json, *names: str) -> list[Any]:
    """Return those figures that there are; what should be a table and isn't stands for itself."""
    if not isinstance(figures, dict):
        return [] if figures is None else [str(figures)]
    return [figures[name] for name in names if figures.get(name) is not None]


def _openai_body(model: str, kind: Kind, things: Things, dimensions: int | None) -> Json:
    sent = [thing if isinstance(thing, str) else thing.uri for thing in things]
    body = {"model": model, "input": sent, "modality": kind, "encoding_format": "base64"}
    return body if dimensions is None else {**body, "dimensions": dimensions}


def _jina_body(model: str, kind: Kind, things: Things, dimensions: int | None) -> Json:
    sent = [{"text": thing} if isinstance(thing, str) else {"image": thing.base64} for thing in things]
    body = {"model": model, "input": sent, "normalized": False, "embedding_type": "base64"}
    return body if dimensions is None else {**body, "dimensions": dimensions}


def _cohere_body(model: str, kind: Kind, things: Things, dimensions: int | None) -> Json:
    body: dict[str, Any] = {"model": model, "embedding_types": ["float"]}
    if kind == "image":
        body |= {"images": [thing.uri for thing in things if not isinstance(thing, str)], "input_type": "image"}
    else:
        body |= {"texts": list(things), "input_type": "classification"}
    if "/" in model:  # vLLM's models are named so, and take no input_type
        del body["input_type"]
    return body if dimensions is None else {**body, "output_dimension": dimensions}


def _cohere_rows(response: Json) -> list[Any]:
    return list(response["embeddings"]["float"])


def _cohere_tokens(response: Json) -> list[Any]:
    meta = response.get("meta")
    billed = meta.get("billed_units") if isinstance(meta, dict) else meta
    return _given(billed, "input_tokens", "image_tokens")


def _voyage_body(model: str, kind: Kind, things: Things, dimensions: int | None) -> Json:
    parts = [
        {"type": "text", "text": thing}
        if isinstance(thing, str)
        else {"type": "image_base64", "image_base64": thing.uri}
        for thing in things
    ]
    inputs = [{"content": [part]} for part in parts]
    body = {"model": model, "inputs": inputs, "input_type": None, "encoding_format": "base64", "truncation": True}
    return body if dimensions is None else {**body, "output_dimension": dimensions}


def _gemini_body(model: str, kind: Kind, things: Things, dimensions: int | None) -> Json:
    size = {} if dimensions is None else {"outputDimensionality": dimensions}
    parts = [
        {"text": thing} if isinstance(thing, str) else {"inlineData": {"mimeType": thing.mime, "data": thing.base64}}
        for thing in things
    ]
    return {"requests": [{"model": f"models/{model}", "content": {"parts": [part]}, **size} for part in parts]}


def _gemini_rows(response: Json) -> list[Any]:
    return [found["values"] for found in response["embeddings"]]


def _bedrock_body(model: str, kind: Kind, things: Things, dimensions: int | None) -> Json:
    """Return the request about one thing: Titan would average an image and a text that came together."""
    (thing,) = things
    if "titan" in model:
        sent = {"inputText": thing} if isinstance(thing, str) else {"inputImage": thing.base64}
        return sent if dimensions is None else {**sent, "embeddingConfig": {"outputEmbeddingLength": dimensions}}
    about: dict[str, Any] = {"embeddingPurpose": "CLASSIFICATION"}
    if isinstance(thing, str):
        about["text"] = {"truncationMode": "NONE", "value": thing}
    else:
        about["image"] = {"format": thing.mime.removeprefix("image/"), "source": {"bytes": thing.base64}}
    if dimensions is not None:
        about["embeddingDimension"] = dimensions
    return {"taskType": "SINGLE_EMBEDDING", "singleEmbeddingParams": about}


def _bedrock_rows(response: Json) -> list[Any]:
    return (
        [response["embedding"]] if "embedding" in response else [found["embedding"] for found in response["embeddings"]]
    )


def _vllm_body(model: str, kind: Kind, things: Things, dimensions: int | None) -> Json:
    (thing,) = things
    part = (
        {"type": "text", "text": thing}
        if isinstance(thing, str)
        else {"type": "image_url", "image_url": {"url": thing.uri}}
    )
    body = {"model": model, "messages": [{"role": "user", "content": [part]}], "encoding_format": "float"}
    return body if dimensions is None else {**body, "dimensions": dimensions}


def _azure_body(model: str, kind: Kind, things: Things, dimensions: int | None) -> Json:
    (thing,) = things
    return {"text": thing} if isinstance(thing, str) else thing.data


OPENAI = Adapter(
    "/embeddings",
    "VL2V_API_KEY",
    False,
    _openai_body,
    by_index,
    total_tokens,
    _own_price,
    True,
    True,
    "(a plain OpenAI-compatible server has no modality field and takes no images)",
)
JINA = Adapter("/embeddings", "JINA_API_KEY", True, _jina_body, by_index, total_tokens)
COHERE = Adapter("/embed", "CO_API_KEY", True, _cohere_body, _cohere_rows, _cohere_tokens)
VOYAGE = Adapter("/multimodalembeddings", "VOYAGE_API_KEY", True, _voyage_body, by_index, total_tokens)
GEMINI = Adapter(
    "/models/{model}:batchEmbedContents",
    "GEMINI_API_KEY",
    True,
    _gemini_body,
    _gemini_rows,
    lambda response: [],
    header="x-goog-api-key: ",
)
BEDROCK = Adapter(
    "/model/{model}/invoke",
    "AWS_BEARER_TOKEN_BEDROCK",
    True,
    _bedrock_body,
    _bedrock_rows,
    lambda response: _given(response, "inputTextTokenCount"),
)
VLLM = Adapter("/embeddings", "VLLM_API_KEY", False, _vllm_body, by_index, total_tokens)
AZURE_VISION = Adapter(
    "/computervision/retrieval:vectorize{kind}?api-version=2024-02-01&model-version={model}",
    "AZURE_VISION_KEY",
    True,
    _azure_body,
    lambda response: [response["vector"]],
    lambda response: [],
    header="Ocp-Apim-Subscription-Key: ",
)
ADAPTERS = {
    "openai-compatible": OPENAI,
    "jina": JINA,
    "cohere": COHERE,
    "voyage": VOYAGE,
    "gemini": GEMINI,
    "bedrock": BEDROCK,
    "vllm": VLLM,
    "azure-vision": AZURE_VISION,
}
