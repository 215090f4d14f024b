"""What tests of the vendor share: requests of a client, and what was sold."""

from __future__ import annotations

import base64
import io
import sqlite3
from typing import Any

import httpx2
import numpy as np
from PIL import Image


def image(seed: int, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(buffer, form)
    return buffer.getvalue()


def uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def ask(vendor, things: Any, modality: str = "text", key: str | None = None, **more: Any) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {key or vendor.key}", **more.pop("headers", {})}
    body = {"model": "stub:m", "input": things, "modality": modality, **more}
    return httpx2.post(f"{vendor.url}/v1/embeddings", json=body, headers=headers, timeout=300)


def sold(vendor) -> list[tuple[Any, ...]]:
    with sqlite3.connect(vendor.ledger) as db:
        return db.execute("SELECT client, kind, count, micro FROM sold ORDER BY id").fetchall()
