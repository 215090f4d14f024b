"""Our server against LitServe with the same student: one image a request, base64 in JSON, from 64 connections.

    pip install litserve
    python benchmarks/litserve_against.py student.onnx

Both decode images and gather up to 32 for the network; LitServe in a process a core with one thread each, ours in as
many threads. They take turns. Processor time counts all processes of a server; on a busy machine it says more than the
rate does.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import litserve
import numpy as np
from serve import CONNECTIONS, Process, requests_of, serve

import vl2v.deploy.runtime
from loopback import load

CORES = len(os.sched_getaffinity(0))


class Student(litserve.LitAPI):
    """The student as LitServe's examples would write it."""

    def setup(self, device: str) -> None:
        self.student = vl2v.deploy.runtime.load(os.environ["STUDENT"], threads=1)

    def decode_request(self, request):  # no type: LitServe would have FastAPI read one
        return self.student.view(base64.b64decode(request["images"]))

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, pixels: np.ndarray) -> Any:
        return self.student.predictions(self.student.run(pixels))

    def unbatch(self, predictions: Any) -> Any:
        return predictions

    def encode_response(self, prediction: Any) -> Any:
        return {"model": "student", "predictions": [dataclasses.asdict(prediction)]}


def theirs(file: Path, seconds: float) -> tuple[float, float]:
    """Return LitServe's images a second, and processor milliseconds an image."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, str(file), "--port", str(port)]
    process = subprocess.Popen(command, process_group=0, stdout=subprocess.DEVNULL)
    try:
        while not _up(port):
            assert process.poll() is None
            time.sleep(0.2)
        return measured(port, seconds, lambda: used(process.pid))
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def ours(file: Path, seconds: float) -> tuple[float, float]:
    """Return our server's images a second, and processor milliseconds an image."""
    with Process(serve, file) as server:
        return measured(server.first, seconds, server.ask)


def measured(port: int, seconds: float, spent: Callable[[], float]) -> tuple[float, float]:
    requests = requests_of(1, as_json=True)
    asyncio.run(load(port, requests, CONNECTIONS, 1))
    before = spent()
    statuses, _ = asyncio.run(load(port, requests, CONNECTIONS, seconds))
    assert set(statuses) == {200}, statuses
    return statuses[200] / seconds, 1000 * (spent() - before) / statuses[200]


def used(group: int) -> float:
    """Return the processor seconds of all processes of a group."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12]) if int(fields[2]) == group else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def _up(port: int) -> bool:
    try:
        return urlopen(f"http://127.0.0.1:{port}/health").status == 200
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--port", type=int, help="only serve, with LitServe")
    given = parser.parse_args()
    if given.port:
        os.environ["STUDENT"] = str(given.file)
        api = Student(max_batch_size=32, batch_timeout=0.002)
        server = litserve.LitServer(api, accelerator="cpu", workers_per_device=CORES)
        server.run(host="127.0.0.1", port=given.port, num_api_servers=1, log_level="error", generate_client_file=False)
        return
    print("| turn | LitServe, images/s | ours | ratio | LitServe, ms of processor an image | ours | ratio |")
    print("| --- " * 7 + "|")
    for turn in range(given.turns):
        (rate, cost), (our_rate, our_cost) = theirs(given.file, given.seconds), ours(given.file, given.seconds)
        rates = f"{rate:.0f} | {our_rate:.0f} | {our_rate / rate:.2f}"
        print(f"| {turn + 1} | {rates} | {cost:.1f} | {our_cost:.1f} | {cost / our_cost:.2f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
