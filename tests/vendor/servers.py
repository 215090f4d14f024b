"""A vendor for tests: the real server on loopback, over a teacher that answers from contents alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from loopback import Loopback
from vl2v.data.decoding import decode
from vl2v.teachers.protocol import EncodedImage
from vl2v.vendor.app import create_app
from vl2v.vendor.keys import add_key, read_keys
from vl2v.vendor.meter import Meter

DIM = 16
OPTIONS = ("rate", "quota", "price", "price_image", "price_text")


class Stub:
    """Answers with a vector that the content decides; can be held up, and counts its batches."""

    name, fingerprint, dim, logit_scale = "stub:m", "s" * 32, DIM, 20.0

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self.rows([text.encode() for text in texts])

    def embed_images(self, images: Sequence[EncodedImage]) -> np.ndarray:
        for image in images:
            decode(image.data)
        return self.rows([image.data for image in images])

    def rows(self, contents: list[bytes]) -> np.ndarray:
        self.gate.wait(300)
        self.batches.append(len(contents))
        return np.stack([row(content) for content in contents])


def row(content: bytes) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


class Running:
    """A vendor under way: its address, a key, its teacher and its meter."""

    def __init__(self, folder: Path, teacher: Any, **limits: Any) -> None:
        self.teacher = teacher
        self.ledger = folder / "sold.sqlite"
        keys = folder / "keys.toml"
        options = {name: limits.pop(name) for name in OPTIONS if name in limits}
        names = [key.name for key in read_keys(keys).keys] if keys.exists() else []
        self.key = add_key(keys, f"client {len(names)}" if names else "client", **options)
        self.meter = Meter(self.ledger)
        self.keys = read_keys(keys)
        app = create_app(teacher, self.keys, self.meter, **limits)
        self.loopback = Loopback(app)
        self.url = self.loopback.url

    def stop(self) -> None:
        self.loopback.stop()
        self.meter.close()


@contextmanager
def running(folder: Path, teacher: Any = None, **limits: Any) -> Iterator[Running]:
    """Run a vendor while the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    vendor = Running(folder, teacher or Stub(), **limits)
    try:
        yield vendor
    finally:
        vendor.teacher.gate.set() if hasattr(vendor.teacher, "gate") else None
        vendor.stop()
