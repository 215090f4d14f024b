"""A vendor on loopback for tests: speaks every protocol, checks what it is sent, and misbehaves on request."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from vl2v.teachers.paid.teacher import BudgetReached, Query

KEY = "sk-very-secret-0123456789"
DIM = 12

Fault = Callable[["Handler", dict[str, Any]], bool]
"""Answers in the vendor's place and returns True, or returns False to let it answer."""


def row(content: bytes) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    return 3.7 * np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)  # not of unit length


class Vendor(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.faults: list[Fault] = []  # the next requests', one each
        self.always: Fault | None = None
        self.models: list[dict[str, Any]] = []
        self.most_at_once = self.now = 0
        self.sold = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Vendor

    def do_GET(self) -> None:
        found = self.server.models
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self.answer(401, {"error": {"message": "a valid key is needed"}})
        else:
            self.answer(200 if found else 404, {"object": "list", "data": found})

    def do_POST(self) -> None:
        vendor = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with vendor.lock:
            vendor.requests.append((dict(self.headers), body))
            vendor.now += 1
            vendor.most_at_once = max(vendor.most_at_once, vendor.now)
            fault = vendor.faults.pop(0) if vendor.faults else vendor.always
        try:
            if fault is None or not fault(self, body):
                self.answer(200, self.made(body))
        finally:
            with vendor.lock:
                vendor.now -= 1

    def answer(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def made(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the right answer to a request of any of the protocols."""
        name = self.path.rsplit("/", 1)[-1]
        sees = body.get("modality") != "text"
        things = [self.content(thing) if sees else thing.encode() for thing in self.things(name, body)]
        with self.server.lock:
            self.server.sold += len(things)
        vectors = [row(thing) for thing in things]
        tokens = 10 * len(things)
        if name == "embed":
            billed = {"images": len(things), "input_tokens": tokens}
            floats = {"float": [vector.tolist() for vector in vectors]}
            return {"id": "1", "embeddings": floats, "meta": {"billed_units": billed}}
        as_text = body.get("encoding_format", body.get("embedding_type")) == "base64"
        sent = [base64.b64encode(v.astype("<f4").tobytes()).decode() if as_text else v.tolist() for v in vectors]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(sent)]
        usage = {"total_tokens": tokens, "prompt_tokens": tokens}
        return {"object": "list", "model": body["model"], "data": data[::-1], "usage": usage}

    def things(self, name: str, body: dict[str, Any]) -> list[Any]:
        if name == "multimodalembeddings":
            parts = [item["content"][0] for item in body["inputs"]]
            return [part.get("text") or part["image_base64"] for part in parts]
        if name == "embed":
            return body.get("texts") or body["images"]
        return [thing if isinstance(thing, str) else thing.get("text") or thing["image"] for thing in body["input"]]

    def content(self, thing: str) -> bytes:
        """Return an image's bytes or a text's; Jina's images have no prefix."""
        if thing.startswith("data:image/"):
            return base64.b64decode(thing.partition(",")[2])
        try:
            return base64.b64decode(thing, validate=True) if len(thing) > 60 else thing.encode()
        except ValueError:
            return thing.encode()

    def log_message(self, *args: Any) -> None:
        pass


class Budget:
    """Money in memory: keeps the budget and every entry."""

    def __init__(self, budget: int = 10**9) -> None:
        self.budget = budget
        self.reserved: list[Query] = []
        self.settled: dict[int, dict[str, Any]] = {}
        self.lock = threading.Lock()

    @property
    def committed(self) -> int:
        costs = [self.settled.get(i, {}).get("micro", query.micro) for i, query in enumerate(self.reserved)]
        return sum(costs)

    def reserve(self, query: Query) -> int:
        with self.lock:
            if self.committed + query.micro > self.budget:
                raise BudgetReached("no more money")
            self.reserved.append(query)
            return len(self.reserved) - 1

    def settle(self, number: int, status: str, *, tokens=None, micro=None, model="", note="") -> None:
        with self.lock:
            assert number not in self.settled
            query = self.reserved[number]
            paid = 0 if status == "rejected" else query.micro if micro is None else micro
            self.settled[number] = {"status": status, "tokens": tokens, "micro": paid, "model": model, "note": note}

    def key_of(self, digest: str) -> str | None:
        return None

    def bill(self) -> str:
        return f"{self.committed} millionths"

    def statuses(self) -> list[str]:
        return [self.settled[i]["status"] if i in self.settled else "reserved" for i in range(len(self.reserved))]
