"""The vendor's server against a bare FastAPI route, and what it does when it is asked too much.

    python benchmarks/vendor.py

Both answer as many bytes to the same request (one text, base64) from 32 connections, in turns, each in a process of
its own; the teacher is a stub. Then the vendor's queue is made short and it is asked by four times as many connections:
answers by status, and how long those took that were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from loopback import load, serve_app

DIM, CONNECTIONS = 512, 32


class Stub:
    """Answers at once, or after so many seconds a batch."""

    name, fingerprint, dim, logit_scale = "stub", "s" * 32, DIM, 1.0

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.row = np.full(DIM, DIM**-0.5, np.float32)

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        time.sleep(self.seconds)
        return np.tile(self.row, (len(texts), 1))

    embed_images = embed_texts


def serve(kind: str, folder: Path, seconds: float, waiting: int, pipe: Connection) -> None:
    from fastapi import FastAPI, Response

    from vl2v.vendor.app import create_app
    from vl2v.vendor.keys import add_key, read_keys
    from vl2v.vendor.meter import Meter

    key = "none"
    if kind == "bare":
        app = FastAPI()
        fixed = json.dumps(
            {"data": [{"index": 0, "embedding": "A" * (4 * DIM * 4 // 3)}], "model": "stub", "usage": {}}
        ).encode()

        @app.post("/v1/embeddings")
        async def embeddings() -> Response:
            return Response(fixed, media_type="application/json")
    else:
        file = folder / f"{time.time_ns()}.toml"
        key = add_key(file, "benchmark", price=1)
        app = create_app(
            Stub(seconds), read_keys(file), Meter(file.with_suffix(".sqlite")), batch=CONNECTIONS, waiting=waiting
        )
    serve_app(app, lambda port: pipe.send((port, key)))


def request(key: str) -> bytes:
    """Return a whole request."""
    body = json.dumps({"model": "stub", "input": "a photo of a dog", "encoding_format": "base64"})
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json"
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def measure(kind: str, folder: Path, connections: int, seconds: float, pause: float = 0.0, waiting: int = 512) -> Any:
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(kind, folder, pause, waiting, theirs), daemon=True)
    process.start()
    port, key = ours.recv()
    try:
        asyncio.run(load(port, [request(key)], connections, 0.5))
        return asyncio.run(load(port, [request(key)], connections, seconds))
    finally:
        process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print("| requests/s, 32 connections | bare route | vendor | ratio |\n| --- | --- | --- | --- |")
        for repeat in range(given.repeats):
            rates = []
            for kind in ("bare", "vendor"):
                statuses, _ = measure(kind, folder, CONNECTIONS, given.seconds)
                assert set(statuses) == {200}, statuses
                rates.append(statuses.total() / given.seconds)
            ratios.append(rates[1] / rates[0])
            print(f"| {repeat + 1} | {rates[0]:.0f} | {rates[1]:.0f} | {ratios[-1]:.2f} |", flush=True)
        print(f"\nmedian ratio {statistics.median(ratios):.2f} (bar 0.5)\n")
        print("| 50 ms a batch, queue of 32 | answered/s | 429 | errors | p50 ms | p99 ms |\n" + "| --- " * 6 + "|")
        for connections in (CONNECTIONS, 4 * CONNECTIONS):
            statuses, times = measure("vendor", folder, connections, given.seconds, 0.05, CONNECTIONS)
            errors = statuses.total() - statuses[200] - statuses[429]
            p50, p99 = (1000 * np.percentile(times, share) for share in (50, 99))
            rate = statuses[200] / given.seconds
            print(f"| {connections} connections | {rate:.0f} | {statuses[429]} | {errors} | {p50:.0f} | {p99:.0f} |")


if __name__ == "__main__":
    sys.exit(main())
