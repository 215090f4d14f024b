"""Hostile images beside polite clients: how long these wait, and how much memory the server takes.

    python benchmarks/hostile.py student.onnx

64 clients send, again and again, files of up to 2 MB that are large once they are decoded; 8 polite ones send a small
JPEG each, wait for the answer, and send the next. Prints answers by status, the polite clients' times, and the most
memory that the server and its processes had together, looked at 20 times a second (shared pages counted once).
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

HOSTILE, POLITE = 64, 8


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def hostile() -> list[bytes]:
    """Return files of up to 2 MB, of many kinds."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (700, 900, 3), dtype=np.uint8))
    files = [
        saved(Image.new("I;16", (8000, 8000)), "PNG"),
        saved(Image.new("RGBA", (8000, 8000)), "PNG"),
        saved(Image.new("RGB", (8000, 7900)), "PNG"),
        saved(Image.new("RGB", (8000, 7900)), "JPEG"),
        saved(Image.new("RGB", (7000, 7000)), "JPEG", progressive=True),
        saved(Image.new("CMYK", (6000, 6000)), "JPEG"),
        saved(Image.new("L", (7000, 7000)), "PNG"),
        saved(Image.new("RGB", (5000, 5000)), "WEBP", quality=10),
        saved(Image.new("P", (8000, 8000)), "GIF"),
        saved(Image.new("1", (9000, 9000)), "PNG"),
        saved(Image.new("RGB", (4000, 3000)), "JPEG"),
        saved(noise, "PNG"),
        saved(noise, "PNG")[:900_000],
    ]
    assert all(len(file) <= 2 * 2**20 for file in files), [len(file) for file in files]
    return files


def request(file: bytes) -> bytes:
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + file + b"\r\n--x--\r\n"
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Content-Type: multipart/form-data; boundary=x\r\nConnection: close\r\n\r\n".encode() + body


async def post(port: int, sent: bytes) -> int:
    """Return the status; 0: the connection ended without one."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(sent)
            return int((await reader.read())[9:12])
        finally:
            writer.close()
    except (OSError, ValueError):
        return 0


async def meet(port: int, seconds: float) -> tuple[Counter[int], Counter[int], list[float]]:
    bombs, small = [request(file) for file in hostile()], request(saved(Image.new("RGB", (227, 227), "red"), "JPEG"))
    bad: Counter[int] = Counter()
    good: Counter[int] = Counter()
    times: list[float] = []
    stop = time.perf_counter() + seconds

    async def flood(number: int) -> None:
        while time.perf_counter() < stop:
            bad[await post(port, bombs[number % len(bombs)])] += 1
            number += HOSTILE

    async def ask() -> None:
        while time.perf_counter() < stop:
            start = time.perf_counter()
            good[await post(port, small)] += 1
            times.append(time.perf_counter() - start)

    await asyncio.gather(*(flood(number) for number in range(HOSTILE)), *(ask() for _ in range(POLITE)))
    return bad, good, times


def family(process: int) -> Iterator[int]:
    """Return a process and those that it started."""
    yield process
    try:
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from family(int(child))
    except OSError:
        return


def memory(process: int) -> float:
    """Return the memory of a process and those that it started, in MB."""
    total = 0
    for each in family(process):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
        except (OSError, StopIteration):
            continue
    return total / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=30)
    given = parser.parse_args()
    command = [sys.executable, "-m", "vl2v", "serve", str(given.file), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert server.stderr is not None
    line = server.stderr.readline()
    port, done, most = int(line.rpartition(":")[2]), threading.Event(), [memory(server.pid)]

    def watch() -> None:
        while not done.wait(0.05):
            most.append(memory(server.pid))

    watcher = threading.Thread(target=watch)
    try:
        watcher.start()
        idle = most[0]
        bad, good, times = asyncio.run(meet(port, given.seconds))
        time.sleep(2)
        after = memory(server.pid)
    finally:
        done.set()
        watcher.join()
        server.terminate()
        server.wait()
    p50, p99 = np.percentile(times, (50, 99))
    print("| hostile answers | polite answers | polite p50, s | p99, s | most, s | idle, MB | most, MB | after, MB |")
    print("| --- " * 8 + "|")
    tell = lambda found: ", ".join(f"{count} x {status}" for status, count in sorted(found.items()))  # noqa: E731
    row = f"{p50:.2f} | {p99:.2f} | {max(times):.2f} | {idle:.0f} | {max(most):.0f} | {after:.0f}"
    print(f"| {tell(bad)} | {tell(good)} | {row} |")


if __name__ == "__main__":
    main()
