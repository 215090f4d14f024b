"""Querying a vendor: throughput with several requests in flight, and what the client costs an image.

    python benchmarks/remote.py

A vendor on loopback that responds after 200 ms, one 227 x 227 JPEG a request: images a second through
`vl2v.embeddings.fetch` (read, hashed, sent, checked, saved durably, billed) with 8 requests in flight against 1. Then
32 images a request and no latency: this process's own CPU time an image, on one core, and its parts.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import multiprocessing
import os
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from vl2v.data import audit, open_dataset
from vl2v.embeddings.bill import LedgerBudget
from vl2v.embeddings.fetch import fetch
from vl2v.embeddings.ledger import Ledger
from vl2v.embeddings.plan import Views, plan
from vl2v.embeddings.store import EmbeddingStore
from vl2v.teachers import open_teacher

DIM = 512


def vendor(latency: float, pipe: Connection) -> None:
    """Serve in a process of its own, so that its work isn't counted as the client's."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(latency)
            rows = [hashlib.shake_128((body["modality"] + thing).encode()).digest(4 * DIM) for thing in body["input"]]
            vectors = [np.frombuffer(row, "<u4").astype("<f4") - 2**31 for row in rows]
            sent = [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
            data = [{"index": index, "embedding": vector} for index, vector in enumerate(sent)]
            reply = json.dumps({"model": body["model"], "data": data, "usage": {"total_tokens": len(data)}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()


def images(folder: Path, count: int) -> Path:
    draw = np.random.default_rng(0)
    for number in range(count):
        coarse = draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        file = folder / ("ink", "oil")[number % 2] / ("ball", "box")[number // 2 % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((227, 227)).save(buffer, "JPEG", quality=90)
        file.write_bytes(buffer.getvalue())
    return folder


def ask(folder: Path, data: Path, latency: float, a_request: int, in_flight: int) -> tuple[float, float, int]:
    """Return seconds, CPU seconds of this process, and images."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=vendor, args=(latency, theirs), daemon=True)
    process.start()
    try:
        url = f"http://127.0.0.1:{ours.recv()}/v1"
        table = folder / "vendors.toml"
        table.write_text(f"[openai-compatible]\nimages_a_request = {a_request}\nin_flight = {in_flight}\ndim = {DIM}\n")
        os.environ["VL2V_VENDORS"] = str(table)
        teacher = open_teacher(f"openai-compatible:{url}#m")
        dataset = open_dataset(data)
        found = audit(dataset)
        store = Path(tempfile.mkdtemp(dir=folder))
        with EmbeddingStore(store) as embeddings, Ledger(store) as ledger:
            teacher.budget = LedgerBudget(ledger, teacher.name, "USD", 0, "benchmark")
            queries = plan(embeddings, teacher, dataset, found, [], Views())
            wall, cpu = time.perf_counter(), time.process_time()
            fetch(queries, embeddings, teacher)
            return time.perf_counter() - wall, time.process_time() - cpu, len(queries.pending)
    finally:
        process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        few, many = images(folder / "few", given.requests), images(folder / "many", 2000)
        print("| requests in flight | images/s | ratio |\n| --- | --- | --- |")
        alone = 0.0
        for in_flight in (1, 8):
            seconds, _, count = ask(folder, few, 0.2, 1, in_flight)
            alone = alone or count / seconds
            print(f"| {in_flight} | {count / seconds:.1f} | {count / seconds / alone:.2f} |", flush=True)
        costs = []
        for _ in range(3):
            _, cpu, count = ask(folder, many, 0.0, 32, 4)
            costs.append(1000 * cpu / count)
        print(
            f"\nclient's CPU time an image: {np.median(costs):.2f} ms ({', '.join(f'{c:.2f}' for c in costs)}), bar 2"
        )


if __name__ == "__main__":
    main()
