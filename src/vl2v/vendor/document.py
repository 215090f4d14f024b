"""The OpenAPI document of the vendor's server."""

from __future__ import annotations

from typing import Any

import msgspec

from vl2v.vendor.requests import schemas

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
    """Return the document, as JSON."""
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
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "vl2v vendor", "version": "2"},
            "paths": paths,
            "components": {
                "schemas": schemas(),
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
