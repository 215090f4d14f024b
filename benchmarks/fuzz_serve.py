"""Broken uploads, many of them: whether the server falls over, and whether its memory grows.

    python benchmarks/fuzz_serve.py student.onnx

Truncated images, random bytes, headers that claim huge dimensions, real decompression bombs, other kinds of files,
broken multipart and broken JSON, tensors that don't fit; between them whole images, which must be predicted. Prints
responses by kind and status, and the server's memory after the first tenth and in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from serving.fuzz import send


def memory(process: int) -> float:
    """Return the resident memory of a process in MB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--uploads", type=int, default=10_000)
    given = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vl2v", "serve", str(given.file), "--port", str(port)]
    process = subprocess.Popen(command)
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.1)
        found: Counter[tuple[str, int]] = Counter()
        sizes = []
        for tenth in range(10):
            found += asyncio.run(send(port, given.uploads * tenth // 10, given.uploads * (tenth + 1) // 10))
            sizes.append(memory(process.pid))
        alive = process.poll() is None
    finally:
        process.terminate()
        process.wait()
    statuses = sorted({status for _, status in found})
    print("| | " + " | ".join(map(str, statuses)) + " |\n" + "| --- " * (len(statuses) + 1) + "|")
    for kind in sorted({kind for kind, _ in found}):
        print(f"| {kind} | " + " | ".join(str(found[kind, status] or "") for status in statuses) + " |")
    print(
        f"\n{found.total()} uploads; resident memory after each tenth, MB: {', '.join(f'{size:.0f}' for size in sizes)}"
    )
    good = alive and not any(status == 0 or status >= 500 for status in statuses) and found["whole", 200] > 0
    print("no crash, no 5xx" if good else "BROKEN")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
