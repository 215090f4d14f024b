"""Broken uploads for the server, drawn by number."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable

from PIL import Image

Upload = tuple[str, bytes]  # Content-Type and body
CONNECTIONS = 8
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def whole(draw: random.Random) -> bytes:
    """Return an image file."""
    side = draw.randrange(1, 200)
    image = Image.frombytes("RGB", (side, side), draw.randbytes(3 * side * side))
    buffer = io.BytesIO()
    image.save(buffer, draw.choice(FORMATS))
    return buffer.getvalue()


def truncated(draw: random.Random) -> bytes:
    """Return the first part of an image file."""
    data = whole(draw)
    return data[: draw.randrange(len(data))]


def flipped(draw: random.Random) -> bytes:
    """Return an image file with some bytes changed."""
    data = bytearray(whole(draw))
    for _ in range(draw.randrange(1, 20)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def noise(draw: random.Random) -> bytes:
    """Return random bytes, often with the first bytes of an image's format."""
    start = draw.choice((b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\x00\x00\x00\x00WEBP", b"BM"))
    return start + draw.randbytes(draw.randrange(5000))


def claimed(draw: random.Random) -> bytes:
    """Return a PNG or BMP whose header claims huge dimensions."""
    width, height = (draw.choice((0, 1, 2**16, 2**24, 2**31 - 1)) for _ in range(2))
    if draw.random() < 0.3:
        header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, draw.choice((1, 8, 24, 32)), 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + draw.randbytes(200)
    head = struct.pack(">IIBBBBB", width, height, draw.choice((1, 8, 16)), draw.choice((0, 2, 3, 6)), 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(bytes(100)))


def bomb(draw: random.Random) -> bytes:
    """Return a small PNG of at least 80 megapixels."""
    side = draw.randrange(9000, 12000)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(bytes(side * (side // 8 + 2)), 1))
    )


def large(draw: random.Random) -> bytes:
    """Return a small file of an image that is just not too large."""
    buffer = io.BytesIO()
    Image.new("RGB", (draw.randrange(7000, 8000), 7900)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def other(draw: random.Random) -> bytes:
    """Return another kind of file."""
    return draw.choice(
        (b"", b"%PDF-1.7\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"PK\x03\x04", b"\x7fELF", b"#!/bin/sh\n",
         b"II*\x00" + bytes(50), b"\x00\x00\x00 ftypheic", b"http://127.0.0.1/", b"/etc/passwd")
    )  # fmt: skip


FILES: dict[str, Callable[[random.Random], bytes]] = {
    "truncated": truncated,
    "flipped bytes": flipped,
    "random bytes": noise,
    "huge dimensions": claimed,
    "bomb": bomb,
    "very large": large,
    "another kind of file": other,
}


def as_upload(data: bytes, draw: random.Random) -> tuple[str, Upload]:
    """Return a file as a multipart or JSON request to an address."""
    text = base64.b64encode(data).decode()
    way = draw.randrange(3)
    if way == 0:
        head = b'--x\r\nContent-Disposition: form-data; name="p"; filename="p"\r\n\r\n'
        return "/predict", ("multipart/form-data; boundary=x", head + data + b"\r\n--x--\r\n")
    if way == 1:
        return "/predict", ("application/json", json.dumps({"images": [text]}).encode())
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}
    return "/v2/models/student/infer", ("application/json", json.dumps({"inputs": [tensor]}).encode())


def broken_form(draw: random.Random) -> tuple[str, Upload]:
    """Return a multipart request that isn't one."""
    form = "multipart/form-data"
    kind = draw.choice((f"{form}; boundary=x", form, f"{form}; boundary=", f"{form}; boundary={'x' * 300}"))
    head = b'Content-Disposition: form-data; name="p"; filename="'
    parts = [b"--x", b"\r\n", b"--x--", head, b"\r\n\r\n", draw.randbytes(50)]
    return "/predict", (kind, b"".join(draw.choice(parts) for _ in range(draw.randrange(12))))


def broken_json(draw: random.Random) -> tuple[str, Upload]:
    """Return JSON, or nearly, that isn't asked for."""
    body = draw.choice(
        (b"", b"{", b"null", b"[]", b"[" * 100_000, b'{"images": 1}', b'{"images": [null]}',
         b'{"images": "\xff"}',
         b'{"images": {"a": 1e999}}', b'{"name": ""}', b'{"name": "\\u0000"}', b'{"embedding": [NaN], "name": "x"}')
    )  # fmt: skip
    address = draw.choice(("/predict", "/classes", "/teacher", "/v2/models/student/infer", "/v2/models/%00/infer"))
    return address, (draw.choice(("application/json", "text/plain", "", "application/json; charset=utf-7")), body)


def broken_tensor(draw: random.Random) -> tuple[str, Upload]:
    """Return a tensor that doesn't fit."""
    shape = [draw.choice((-1, 0, 1, 3, 2**31, 2**63)) for _ in range(draw.randrange(6))]
    data = draw.choice(([], [1, 2], [[1], [2, 3]], ["x"], [2**70], [1.5] * 12, [None], [{}], [True], ["AAAA"] * 70))
    names = draw.choice(("pixels", "image", "x")), draw.choice(("UINT8", "BYTES", "FP32"))
    tensor = {"name": names[0], "datatype": names[1], "shape": shape, "data": data}
    return "/v2/models/student/infer", ("application/json", json.dumps({"inputs": [tensor]}).encode())


WEIGHTS = (600, 600, 600, 600, 20, 2, 300, 300, 300, 300)
REQUESTS = {"broken multipart": broken_form, "broken JSON": broken_json, "broken tensor": broken_tensor}


def upload(number: int, seed: int = 0) -> tuple[str, str, Upload]:
    """Return the kind, the address and the body of one upload; every tenth is whole."""
    draw = random.Random(f"{seed} {number}")
    if number % 10 == 0:
        return "whole", *as_upload(whole(draw), draw)
    kind = draw.choices((*FILES, *REQUESTS), WEIGHTS)[0]
    if kind in FILES:
        return kind, *as_upload(FILES[kind](draw), draw)
    return kind, *REQUESTS[kind](draw)


async def send(port: int, first: int, last: int) -> Counter[tuple[str, int]]:
    """Send uploads first to last; return how many of each kind were answered with each status, 0: not at all."""
    found: Counter[tuple[str, int]] = Counter()
    numbers = iter(range(first, last))

    async def one() -> None:
        for number in numbers:
            kind, address, (form, body) = upload(number)
            head = f"POST {address} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {form}"
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                answer = await reader.read()
                writer.close()
                found[kind, int(answer[9:12])] += 1
            except (OSError, ValueError):
                found[kind, 0] += 1

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return found


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
