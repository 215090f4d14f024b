"""The vendor's server against a bare FastAPI route, what it does when it is overloaded, and who waits for whom.

    python benchmarks/vendor.py

Both send as many bytes to the same request (one text, base64) from 32 connections, in turns, each in a process of its
own; the teacher is a stub. The bare route runs once with uvicorn's plain loop and parser, and once with those of the
vendor. Every request has an Idempotency-Key of its own, as our own client sends it. What counts is the processor time a
request of the whole server process: other work on the machine changes it less than the rate. Then the vendor's queue is
made short and it is queried by four times as many connections: responses by status, and how long the successful ones
took. Last, a polite client (ten requests a second, texts and small images in turns) beside another key that sends what
takes longest, with the teacher `tiny`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from loopback import load, serve_app

DIM, CONNECTIONS = 512, 32


class Stub:
    """Embeds at once, or after so many seconds a batch."""

    name, fingerprint, dim, logit_scale = "stub", "s" * 32, DIM, 1.0

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.rows = np.full((CONNECTIONS, DIM), DIM**-0.5, np.float32)  # of a whole batch

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        if self.seconds:
            time.sleep(self.seconds)
        return self.rows[: len(texts)]

    embed_images = embed_texts


def serve(kind: str, folder: Path, seconds: float, waiting: int, pipe: Connection) -> None:
    if kind.startswith("bare"):
        app, keys = bare(), ["none"]
        options = {"http": "h11", "loop": "asyncio"} if kind == "bare, h11" else {}
    else:
        from vl2v.teachers import open_teacher
        from vl2v.vendor.app import create_app
        from vl2v.vendor.keys import add_key, read_keys
        from vl2v.vendor.meter import Meter

        file, options = folder / f"{time.time_ns()}.toml", {}
        keys = [add_key(file, name, price=1) for name in ("polite", "hostile")]
        teacher = open_teacher("tiny") if kind == "tiny" else Stub(seconds)
        meter = Meter(file.with_suffix(".sqlite"))
        app = create_app(teacher, read_keys(file), meter, batch=CONNECTIONS, waiting=waiting)
    serve_app(app, lambda port: pipe.send((port, keys)), **options)


def bare() -> Any:
    from fastapi import FastAPI, Response

    app = FastAPI()
    fixed = json.dumps({"data": [{"index": 0, "embedding": "A" * (4 * DIM * 4 // 3)}], "model": "stub", "usage": {}})

    @app.post("/v1/embeddings")
    async def embeddings() -> Response:
        return Response(fixed.encode(), media_type="application/json")

    return app


class Requests:
    """Whole requests of one client, each with an Idempotency-Key of its own."""

    def __init__(self, key: str, things: list[Any], model: str = "stub", repeated: bool = False) -> None:
        self.bodies = []
        for thing in things:
            modality = "image" if thing[0].startswith("data:") else "text"
            body = {"model": model, "input": thing, "encoding_format": "base64", "modality": modality}
            self.bodies.append(json.dumps(body).encode())
        self.key, self.repeated = key, repeated

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, number: int) -> bytes:
        body = self.bodies[number % len(self.bodies)]
        same = "" if self.repeated else f"Idempotency-Key: {uuid.uuid4()}\r\n"
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.key}\r\n{same}"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def running(kind: str, folder: Path, pause: float = 0.0, waiting: int = 512) -> Iterator[tuple[int, int, list[str]]]:
    """Run a server; yield its process, port and keys."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(kind, folder, pause, waiting, theirs), daemon=True)
    process.start()
    try:
        port, keys = ours.recv()
        yield process.pid or 0, port, keys
    finally:
        process.kill()
        process.join()


def processor_time(process: int) -> float:
    """Return the seconds that a process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(kind: str, folder: Path, seconds: float) -> tuple[float, float]:
    """Return microseconds of processor time a request, and requests a second."""
    with running(kind, folder) as (process, port, keys):
        requests: Any = Requests(keys[0], [["a photo of a dog"]])
        asyncio.run(load(port, requests, CONNECTIONS, 1.0))
        before = processor_time(process)
        statuses, _ = asyncio.run(load(port, requests, CONNECTIONS, seconds))
        assert set(statuses) == {200}, statuses
        return 1e6 * (processor_time(process) - before) / statuses.total(), statuses.total() / seconds


def crowd(folder: Path, seconds: float) -> None:
    print("| 50 ms a batch, queue of 32 | 200/s | 429 | errors | p50 ms | p99 ms |\n" + "| --- " * 6 + "|")
    for connections in (CONNECTIONS, 4 * CONNECTIONS):
        with running("vendor", folder, 0.05, CONNECTIONS) as (_, port, keys):
            requests: Any = Requests(keys[0], [["a photo of a dog"]])
            statuses, times = asyncio.run(load(port, requests, connections, seconds))
        errors = statuses.total() - statuses[200] - statuses[429]
        p50, p99 = (1000 * np.percentile(times, share) for share in (50, 99))
        rate = statuses[200] / seconds
        print(f"| {connections} connections | {rate:.0f} | {statuses[429]} | {errors} | {p50:.0f} | {p99:.0f} |")


def png(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def hostile_load(port: int, key: str, things: list[Any], seconds: float) -> dict[int, int]:
    requests: Any = Requests(key, things, "tiny")
    statuses, _ = asyncio.run(load(port, requests, 4, seconds + 2))
    return dict(statuses)


def fairness(folder: Path, seconds: float) -> None:
    polite = [["a photo of a dog"], [png(224, 224)]]
    cases: dict[str, list[Any]] = {
        "nobody": [],
        "32 images of 8000 x 8000": [[png(8000, 8000)] * 32],
        "2 images of 8000 x 8000": [[png(8000, 8000)] * 2],
        "32 images of 2000 x 2000, the last one broken": [[png(2000, 2000)] * 31 + [png(2000, 2000)[:-400]]],
        "2,048 texts of 10,000 characters": [["x y " * 2500] * 2048],
        "50 texts of 10,000 characters": [["x y " * 2500] * 50],
        "2,048 texts of 240 characters": [["x y " * 60] * 2048],
    }
    print("| beside it, on 4 connections | its responses | polite p50 ms | p99 ms | errors |\n" + "| --- " * 5 + "|")
    for words, hostile in cases.items():
        with running("tiny", folder) as (_, port, keys):
            requests: Any = Requests(keys[0], polite, "tiny")
            asyncio.run(load(port, requests, 1, 1.0))
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                theirs = pool.submit(hostile_load, port, keys[1], hostile, seconds) if hostile else None
                time.sleep(1.5 if theirs else 0)  # that process has to start
                statuses, times = asyncio.run(load(port, requests, 2, seconds, rate=10))
                others = theirs.result() if theirs else {}
        responses = ", ".join(f"{count} of {status}" for status, count in sorted(others.items())) or "-"
        p50, p99 = (1000 * np.percentile(times, share) for share in (50, 99))
        errors = statuses.total() - statuses[200]
        print(f"| {words} | {responses} | {p50:.0f} | {p99:.0f} | {errors} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("time", "crowd", "fairness"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if given.only in (None, "time"):
            kinds = ("bare, h11", "bare", "vendor")
            print("| us of processor time a request (requests/s) | bare, h11 | bare | vendor | vendor / bare |")
            print("| --- " * 5 + "|")
            ratios = []
            for repeat in range(given.repeats):
                found = [measure(kind, folder, given.seconds) for kind in kinds]
                ratios.append(found[2][0] / found[1][0])
                cells = " | ".join(f"{time:.0f} ({rate:.0f})" for time, rate in found)
                print(f"| {repeat + 1} | {cells} | {ratios[-1]:.2f} |", flush=True)
            print(f"\nmedian ratio {statistics.median(ratios):.2f} (bar: under 1)\n")
        if given.only in (None, "crowd"):
            crowd(folder, given.seconds)
        if given.only in (None, "fairness"):
            fairness(folder, given.seconds)


if __name__ == "__main__":
    sys.exit(main())
