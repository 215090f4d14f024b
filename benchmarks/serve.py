"""The server against a bare onnxruntime loop, its latency at half load, and what it does when it is overloaded.

    python benchmarks/serve.py student.onnx

The loop and the server do the same: decode JPEGs of 227 x 227 pixels, and put them through the network in batches; the
loop with as many threads as suit it best. They take turns, each in a process of its own, and each with the other core
half taken: the load comes from a third process, which would otherwise burden the server alone, so while the loop runs
that process sends the same requests at the same rate to a server that responds at once. Ratios of the same turn, wall
clock and processor time; medians. Then the server is queried at half the rate that it can do, on a schedule that waits
for nobody, in turns with a loop that does the same without HTTP (its p99 tells how quiet the machine is), and at four
times that rate.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from loopback import load, serve_app

IMAGES, CONNECTIONS = 64, 64


def jpegs() -> list[bytes]:
    """Return files of 227 x 227 pixels, about as large as photographs of that size."""
    rng, found = np.random.default_rng(0), []
    for _ in range(IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).resize((227, 227))
        buffer = io.BytesIO()
        coarse.save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def loop(file: Path, batch: int, threads: int, seconds: float, pipe: Connection) -> None:
    """Decode and infer in a loop; send images a second, and processor seconds an image."""
    import vl2v.deploy.runtime

    student, images = vl2v.deploy.runtime.load(file, threads=threads), jpegs()

    def once(start: int) -> None:
        student.run(np.stack([student.view(images[(start + i) % IMAGES]) for i in range(batch)]))

    once(0)
    pipe.send("ready")
    pipe.recv()
    start, used, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        once(done)
        done += batch
    pipe.send((done / (time.perf_counter() - start), (time.process_time() - used) / done))


def paced(file: Path, rate: float, seconds: float, pipe: Connection) -> None:
    """Decode and infer images that are due at fixed times; send the seconds that each took from then."""
    import vl2v.deploy.runtime

    student, images, times = vl2v.deploy.runtime.load(file, threads=1), jpegs(), []
    student.run(student.view(images[0])[None])
    pipe.send("ready")
    begin = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = begin + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        student.run(student.view(images[number % IMAGES])[None])
        times.append(time.perf_counter() - due)
    pipe.send(times)


H11 = {"http": "h11", "loop": "asyncio"}  # uvicorn's plain parser and loop


def serve(file: Path | None, options: dict[str, str], pipe: Connection) -> None:
    """Serve a student, or (None) one fixed response; send the port, and processor seconds on request."""
    import threading

    if file is None:
        from starlette.applications import Starlette
        from starlette.responses import Response
        from starlette.routing import Route

        async def predict(request: Any) -> Response:
            await request.body()
            return Response(b"{}", media_type="application/json")

        app: Any = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
    else:
        from vl2v.deploy.runtime import load
        from vl2v.serving.serve import application

        with tempfile.TemporaryDirectory() as folder:
            app = application(load(file, threads=1), None, 0, Path(folder), None, (), "student", "")

    def tell() -> None:
        while pipe.recv() == "time":
            usage = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send(usage.ru_utime + usage.ru_stime)

    def listening(port: int) -> None:
        pipe.send(port)
        threading.Thread(target=tell, daemon=True).start()

    serve_app(app, listening, **options)


def requests_of(batch: int, *, as_json: bool = False) -> list[bytes]:
    """Return whole requests, multipart or JSON."""
    found, files = [], jpegs()
    if as_json:
        bodies = [json.dumps({"images": base64.b64encode(data).decode()}).encode() for data in files]
        head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
        return [f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    for start in range(0, IMAGES, batch):
        parts = [
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="p.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
            + data
            + b"\r\n"
            for data in files[start : start + batch]
        ]
        body = b"".join(parts) + b"--x--\r\n"
        head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x"
        found.append(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return found


class Process:
    """A process and a pipe to it."""

    def __init__(self, target: Any, *words: Any) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=target, args=(*words, theirs), daemon=True)
        self.process.start()
        self.first = self.pipe.recv()

    def ask(self) -> Any:
        self.pipe.send("time")
        return self.pipe.recv()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.join()


def saturate(
    file: Path | None, batch: int, seconds: float, options: dict[str, str] | None = None
) -> tuple[float, float]:
    """Return the server's images a second, and its processor seconds an image."""
    with Process(serve, file, options or {}) as server:
        connections = max(4, CONNECTIONS // batch)
        asyncio.run(load(server.first, requests_of(batch), connections, 1))
        used, start = server.ask(), time.perf_counter()
        statuses, _ = asyncio.run(load(server.first, requests_of(batch), connections, seconds))
        took = time.perf_counter() - start
        assert set(statuses) == {200}, statuses
        done = statuses[200] * batch
        return done / took, (server.ask() - used) / done


def parsers(file: Path, turns: int, seconds: float) -> None:
    """Print the processor time a request of one image, by parser and loop, also of a route that does nothing."""
    print("| ms of processor time a request | h11, asyncio | httptools, uvloop | saved |\n" + "| --- " * 4 + "|")
    for turn in range(turns):
        for name, served in (("a route that does nothing", None), ("the server", file)):
            plain, ours = (1000 * saturate(served, 1, seconds, options)[1] for options in (H11, {}))
            print(f"| {turn + 1}: {name} | {plain:.2f} | {ours:.2f} | {plain - ours:.2f} |", flush=True)


def bare(file: Path, batch: int, threads: int, seconds: float, rate: float) -> tuple[float, float]:
    """Return the loop's images a second, and its processor seconds an image, beside a load of the same rate."""
    with Process(serve, None, {}) as idle, Process(loop, file, batch, threads, seconds) as process:
        process.pipe.send("go")
        asyncio.run(load(idle.first, requests_of(batch), 8, seconds, rate / batch))
        found: tuple[float, float] = process.pipe.recv()
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--parsers", action="store_true", help="only uvicorn's parsers and loops, side by side")
    given = parser.parse_args()
    if given.parsers:
        parsers(given.file, given.turns, given.seconds)
        return
    rate = 0.0
    print("| images a request | loop, images/s | server, images/s | ratio | ratio of processor time |")
    print("| --- | --- | --- | --- | --- |")
    for batch in (1, 8, 32):
        rows = []
        for _ in range(given.turns):
            served, used = saturate(given.file, batch, given.seconds)
            loops = [
                bare(given.file, 32 if batch == 1 else batch, threads, given.seconds, served) for threads in (1, 2)
            ]
            fastest, leanest = max(speed for speed, _ in loops), min(cost for _, cost in loops)
            rows.append((fastest, served, served / fastest, leanest / used))
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        print(f"| {batch} | {medians[0]:.0f} | {medians[1]:.0f} | {medians[2]:.2f} | {medians[3]:.2f} |", flush=True)
        rate = rate or medians[1]
    print("\n| load | 200/s | 429 | errors | p50 ms | p99 ms | p99 / p50 |\n" + "| --- " * 7 + "|")
    for _ in range(given.turns):
        with Process(paced, given.file, rate / 2, given.seconds) as process:
            tell("half, without HTTP", Counter(), process.pipe.recv(), given.seconds)
        tell("half", *at_rate(given.file, rate / 2, CONNECTIONS, given.seconds), given.seconds)
    tell("four times", *at_rate(given.file, 4 * rate, 8 * CONNECTIONS, 2 * given.seconds), 2 * given.seconds)


def at_rate(file: Path, rate: float, connections: int, seconds: float) -> tuple[Counter[int], list[float]]:
    with Process(serve, file, {}) as server:
        asyncio.run(load(server.first, requests_of(1), CONNECTIONS, 1))
        return asyncio.run(load(server.first, requests_of(1), connections, seconds, rate))


def tell(words: str, statuses: Counter[int], times: list[float], seconds: float) -> None:
    errors = statuses.total() - statuses[200] - statuses[429]
    p50, p99 = (1000 * np.percentile(times, percent) for percent in (50, 99))
    row = f"{words} | {len(times) / seconds:.0f} | {statuses[429]} | {errors} | {p50:.0f} | {p99:.0f}"
    print(f"| {row} | {p99 / p50:.1f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
