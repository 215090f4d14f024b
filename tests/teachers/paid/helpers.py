"""What tests of teachers behind an API share: images, prices, and faults of the vendor."""

from __future__ import annotations

import io
import socket
import threading

import numpy as np
from PIL import Image

from vl2v.teachers.protocol import EncodedImage

from .vendor import row

KINDS = {
    "openai-compatible": "VL2V_API_KEY",
    "jina": "JINA_API_KEY",
    "cohere": "CO_API_KEY",
    "voyage": "VOYAGE_API_KEY",
}


PRICES = """
[{kind}.models."m-1"]
price = {{ image = 0.001, text = 0.0005 }}
{more}
"""


def encoded(seed: int, mode: str = "RGB", form: str = "PNG", size: int = 24, **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def numbered(count: int) -> list[EncodedImage]:
    return [EncodedImage(f"{i}.png", encoded(i)) for i in range(count)]


def right(contents: list[bytes]) -> np.ndarray:
    rows = np.stack([row(content) for content in contents])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def together(vendor, count):
    """Return a fault that holds requests until so many are in, and the event of that."""
    met = threading.Event()

    def held(handler, body):
        if vendor.now >= count:
            met.set()
        met.wait(60)
        return False

    return held, met


def status(code, content=None, **headers):
    return lambda handler, body: handler.answer(code, content or {"error": {"message": "no"}}, **headers) or True


def changed(change):
    def fault(handler, body):
        answer = handler.made(body)
        change(answer)
        handler.answer(200, answer)
        return True

    return fault


def cut(handler, body):
    handler.made(body)
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{")
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def put(answer, number, value):
    answer["data"][number]["embedding"] = value
