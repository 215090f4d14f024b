"""Hostile images beside polite clients: how long the polite ones wait, and how much memory the server takes.

    python benchmarks/hostile.py student.onnx

64 clients send files of up to 2 MB, most of which are large once they are decoded, one after another; 8 polite ones
send a small JPEG each, wait for the response and send the next. All have the same address, so that taking turns by
address helps nobody. Prints responses by status (0: none came), the polite clients' times, and the memory that the
server and its processes have together, read some 20 times a second (shared pages are counted once).
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from loopback import load

HOSTILE, POLITE = 64, 8


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def hostile() -> list[bytes]:
    """Return files of up to 2 MB, of many kinds."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (700, 900, 3), dtype=np.uint8))
    files = [
        encoded(Image.new("I;16", (8000, 8000)), "PNG"),
        encoded(Image.new("RGBA", (8000, 8000)), "PNG"),
        encoded(Image.new("RGB", (8000, 7900)), "PNG"),
        encoded(Image.new("RGB", (8000, 7900)), "JPEG"),
        encoded(Image.new("RGB", (7000, 7000)), "JPEG", progressive=True),
        encoded(Image.new("CMYK", (6000, 6000)), "JPEG"),
        encoded(Image.new("L", (7000, 7000)), "PNG"),
        encoded(Image.new("RGB", (5000, 5000)), "WEBP", quality=10),
        encoded(Image.new("P", (8000, 8000)), "GIF"),
        encoded(Image.new("1", (9000, 9000)), "PNG"),
        encoded(Image.new("RGB", (4000, 3000)), "JPEG"),
        encoded(noise, "PNG"),
        encoded(noise, "PNG")[:900_000],
    ]
    assert all(len(file) <= 2 * 2**20 for file in files), [len(file) for file in files]
    return files


def request(file: bytes) -> bytes:
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + file + b"\r\n--x--\r\n"
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode() + body


async def meet(port: int, seconds: float) -> tuple[Counter[int], Counter[int], list[float]]:
    """Return the statuses of the hostile clients and of the polite ones, and the seconds of these that were served."""
    bombs, small = [request(file) for file in hostile()], request(encoded(Image.new("RGB", (227, 227), "red"), "JPEG"))
    (bad, _), (good, times) = await asyncio.gather(
        load(port, bombs, HOSTILE, seconds), load(port, [small], POLITE, seconds)
    )
    return bad, good, times


def family(process: int) -> Iterator[int]:
    """Yield a process and those that it started."""
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
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=30)
    given = parser.parse_args()
    command = [sys.executable, "-m", "vl2v", "serve", str(given.file), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    done, used = threading.Event(), []

    def watch() -> None:
        while not done.wait(0.05):
            used.append(memory(server.pid))

    watcher = threading.Thread(target=watch)
    try:
        assert server.stderr is not None
        port, idle = int(server.stderr.readline().rpartition(":")[2]), memory(server.pid)
        watcher.start()
        bad, good, times = asyncio.run(meet(port, given.seconds))
    finally:
        done.set()
        server.terminate()
        server.wait()
    watcher.join()
    print("| hostile | polite | polite p50 s | p99 s | most s | idle MB | most MB | last MB |")
    print("| --- " * 8 + "|")
    counts = (", ".join(f"{count} x {status}" for status, count in sorted(found.items())) for found in (bad, good))
    p50, p99 = np.percentile(times, (50, 99))
    figures = f"{p50:.2f} | {p99:.2f} | {max(times):.2f} | {idle:.0f} | {max(used):.0f} | {used[-1]:.0f}"
    print("|", " | ".join(counts), "|", figures, "|")
    broken = any(status == 0 or status >= 500 for status in good) or any(status >= 500 for status in bad)
    return int(broken or max(used) > 700 or p99 > 2)


if __name__ == "__main__":
    sys.exit(main())
