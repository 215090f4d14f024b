"""A bad network between a client and a vendor, and a client that is killed: what may be lost, and what may not.

`campaign` runs one client to its end through a proxy that drops, delays, cuts, duplicates, reorders and corrupts, and
says what came of it. tests/system/test_faults.py runs a few, benchmarks/faults.py two hundred.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from vendor.servers import Running, Stub
from vl2v.data import audit, open_dataset
from vl2v.embeddings.ledger import FILE_NAME, Ledger
from vl2v.embeddings.schema import image_key
from vl2v.embeddings.store import EmbeddingStore

PRICE, BATCH, IN_FLIGHT, IMAGES = 10, 4, 4, 48
CALM = "calm"
MIXED = "mixed"
LOSING = ("drop", "cut", "500 afterwards", "HTML", "NaN", "dimension", "one too few", "twice")
"""After these the vendor has sold what the client can't use."""

CLIENT = """
import sys
from pathlib import Path
import stamina
from vl2v.data import audit, open_dataset
from vl2v.embeddings.bill import LedgerBudget
from vl2v.embeddings.ledger import Ledger
from vl2v.embeddings.store import EmbeddingStore
from vl2v.embeddings.plan import Views
from vl2v.embeddings.fetch import fetch
from vl2v.embeddings.plan import plan
from vl2v.errors import TeacherError
from vl2v.teachers import open_teacher
from vl2v.teachers.paid.teacher import BudgetReached

stamina.set_testing(True, attempts=8, cap=True)  # retries without the waits between them
images, store, spec, budget = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
dataset = open_dataset(images)
found = audit(dataset, cache=store / "audit.sqlite")
teacher = open_teacher(spec)
with EmbeddingStore(store) as answers, Ledger(store) as ledger:
    teacher.budget = LedgerBudget(ledger, teacher.name, "USD", budget, "client")
    try:
        fetch(plan(answers, teacher, dataset, found, ["a ball", "a box"], Views()), answers, teacher)
    except BudgetReached:
        sys.exit(3)
    except TeacherError as error:
        print(error, file=sys.stderr)
        sys.exit(4)
"""
DONE, OUT_OF_BUDGET, GAVE_UP = 0, 3, 4


class Counting(Stub):
    """Counts how often each content was embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.times: Counter[bytes] = Counter()

    def rows(self, contents: list[bytes]) -> np.ndarray:
        self.times.update(contents)
        return super().rows(contents)


class Proxy(ThreadingHTTPServer):
    """Stands between; every request may meet a fault, and some kill the client.

    Args:
        vendor: base URL of the real one.
        fault: the kind that happens, "mixed", or "calm".
        seed: of the draws.
        share: of the requests that meet a fault.
    """

    daemon_threads = True

    def __init__(self, vendor: str, fault: str, seed: int, share: float = 0.2) -> None:
        super().__init__(("127.0.0.1", 0), _Between)
        self.vendor = vendor
        self.fault = fault
        self.share = share
        self.draws = random.Random(seed)
        self.lock = threading.Lock()
        self.happened: Counter[str] = Counter()
        self.seen = 0
        self.kill_at: int | None = None
        self.client: subprocess.Popen[str] | None = None
        self.ahead = httpx2.Client(base_url=vendor, timeout=30, limits=httpx2.Limits(max_connections=64))
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self) -> str:
        with self.lock:
            self.seen += 1
            if self.client is not None and self.seen == self.kill_at:
                self.client.kill()
            if self.fault == CALM or self.draws.random() >= self.share:
                return CALM
            kind = self.draws.choice(list(FAULTS)) if self.fault == MIXED else self.fault
            self.happened[kind] += 1
            return kind

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that a killed client left behind."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self.ahead.close()


class _Between(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        answer = self.server.ahead.get(self.path, headers={"Authorization": self.headers["Authorization"]})
        self.reply(answer.status_code, answer.content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.server.next_fault()
        try:
            if kind == CALM:
                answer = self.forward(body)
                self.reply(answer.status_code, answer.content)
            else:
                FAULTS[kind](self, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed

    def forward(self, body: bytes) -> httpx2.Response:
        kept = ("Authorization", "Idempotency-Key", "Content-Type")
        return self.server.ahead.post(self.path, content=body, headers={name: self.headers[name] for name in kept})

    def reply(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def changed(self, body: bytes, change: Any) -> None:
        answer = self.forward(body)
        if answer.status_code != 200:
            self.reply(answer.status_code, answer.content)
            return
        said = answer.json()
        change(said["data"], self.server.draws)
        self.reply(200, json.dumps(said).encode())

    def log_message(self, *args: Any) -> None:
        pass


def _drop(between: _Between, body: bytes) -> None:
    between.forward(body)
    between.hang_up()


def _delay(between: _Between, body: bytes) -> None:
    answer = between.forward(body)
    threading.Event().wait(between.server.draws.random() / 5)
    between.reply(answer.status_code, answer.content)


def _cut(between: _Between, body: bytes) -> None:
    content = between.forward(body).content
    between.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content[:-7])
    between.wfile.flush()
    between.hang_up()


def _duplicate(between: _Between, body: bytes) -> None:
    answers = [between.forward(body) for _ in range(2)]
    between.reply(answers[1].status_code, answers[1].content)


def _afterwards(between: _Between, body: bytes) -> None:
    between.forward(body)
    between.reply(500, b"oops")


def _html(between: _Between, body: bytes) -> None:
    between.forward(body)
    between.reply(200, b"<html>Welcome to the hotel's network</html>")


def _vector(value: Any) -> Any:
    def change(data: list[Any], draws: random.Random) -> None:
        data[draws.randrange(len(data))]["embedding"] = value

    return change


FAULTS: dict[str, Any] = {
    "no answer": lambda between, body: between.hang_up(),
    "drop": _drop,
    "delay": _delay,
    "cut": _cut,
    "duplicate": _duplicate,
    "reorder": lambda between, body: between.changed(body, lambda data, draws: draws.shuffle(data)),
    "429": lambda between, body: between.reply(429, b"{}"),
    "500": lambda between, body: between.reply(500, b"{}"),
    "500 afterwards": _afterwards,
    "503": lambda between, body: between.reply(503, b"<html>busy</html>", Retry_After="0"),
    "HTML": _html,
    "NaN": lambda between, body: between.changed(body, _vector([float("nan")] * 16)),
    "dimension": lambda between, body: between.changed(body, _vector([1.0] * 15)),
    "one too few": lambda between, body: between.changed(body, lambda data, draws: data.pop()),
    "twice": lambda between, body: between.changed(body, lambda data, draws: data.append(data[0])),
}


def make_images(folder: Path) -> Path:
    """Write 48 small images, two domains of two classes; return the folder."""
    draw = np.random.default_rng(0)
    for number in range(IMAGES):
        file = folder / ("ink", "oil")[number % 2] / ("ball", "box")[number // 2 % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return folder


@dataclass(frozen=True)
class Outcome:
    """What came of one campaign.

    Attributes:
        ended: exit code of the last client.
        starts: how often a client was started.
        kills: how often one was killed.
        happened: faults by kind.
        budget: in millionths.
        billed: by the vendor.
        committed: by the client's ledger.
        answers: image -> its answer's bytes as the store has them.
        again: embeddings that the vendor made more than once.
        excused: embeddings that faults and kills explain.
    """

    ended: int
    starts: int
    kills: int
    happened: dict[str, int]
    budget: int
    billed: int
    committed: int
    answers: dict[str, bytes]
    again: int
    excused: int


def campaign(folder: Path, images: Path, fault: str, seed: int, *, budget: int, kills: int) -> Outcome:
    """Run a client through a bad network until it is done or out of budget, killed so often on the way."""
    (folder / "vendor").mkdir(parents=True)
    teacher = Counting()
    vendor = Running(folder / "vendor", teacher, price=PRICE)
    proxy = Proxy(vendor.url, fault, seed)
    draws = random.Random(seed)
    spec = f"openai-compatible:{proxy.url}/v1#stub:m"
    (folder / "vendors.toml").write_text(
        f"[openai-compatible]\nimages_a_request = {BATCH}\nin_flight = {IN_FLIGHT}\ndim = 16\n"
        f"price = {{ image = {PRICE / 1e6}, text = {PRICE / 1e6} }}\n"
    )
    environment = {
        **os.environ,
        "VL2V_API_KEY": vendor.key,
        "VL2V_VENDORS": str(folder / "vendors.toml"),
        "OMP_NUM_THREADS": "1",
    }
    starts = killed = 0
    ended = GAVE_UP
    try:
        while ended not in (DONE, OUT_OF_BUDGET):
            starts += 1
            assert starts <= kills + 12, "it never ends"
            command = [sys.executable, "-c", CLIENT, str(images), str(folder / "store"), spec, str(budget)]
            with proxy.lock:
                proxy.client = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
                proxy.kill_at = proxy.seen + draws.randrange(1, 9) if killed < kills else None
            _, said = proxy.client.communicate(timeout=900)
            ended = proxy.client.returncode
            killed += ended < 0
            assert ended in (DONE, OUT_OF_BUDGET, GAVE_UP) or ended < 0, said
    finally:
        proxy.close()
        vendor.stop()
    with sqlite3.connect(vendor.ledger) as db:
        (billed,) = db.execute("SELECT coalesce(sum(micro), 0) FROM sold").fetchone()
    with Ledger(folder / "store") as ledger:
        committed = ledger.committed(spec)
    losing = sum(count for kind, count in proxy.happened.items() if kind in LOSING)
    canaries = 2 * starts + 1  # one of them once as a text, for a new store
    again = sum(times - 1 for times in teacher.times.values())
    return Outcome(
        ended,
        starts,
        killed,
        dict(proxy.happened),
        budget,
        billed,
        committed,
        kept_answers(folder / "store", images, spec),
        again,
        losing * BATCH + killed * (IN_FLIGHT + 1) * BATCH + canaries,
    )


def kept_answers(store: Path, images: Path, spec: str) -> dict[str, bytes]:
    """Return each image's answer, bit for bit as the store has it."""
    dataset = open_dataset(images)
    found = audit(dataset)
    if not (store / FILE_NAME).is_file():
        return {}
    with EmbeddingStore(store) as answers:
        fingerprint = next((teacher.fingerprint for teacher in answers.teachers()), "")
        keys = [image_key(sha256) for sha256 in found.sha256]
        known = answers.cached(fingerprint, keys)
        there = [key for key, here in zip(keys, known, strict=True) if here]
        rows = answers.get_half(fingerprint, there) if there else []
    names = [path for path, here in zip(dataset.paths, known, strict=True) if here]
    return {name: row.tobytes() for name, row in zip(names, rows, strict=True)}


def problems(outcome: Outcome, calm: Outcome) -> list[str]:
    """Return which promises were broken."""
    found = []
    if outcome.billed > outcome.budget:
        found.append(f"the vendor billed {outcome.billed} of a budget of {outcome.budget}")
    if outcome.committed > outcome.budget:
        found.append(f"the ledger has {outcome.committed} of a budget of {outcome.budget}")
    if outcome.billed > outcome.committed:
        found.append(f"the vendor billed {outcome.billed}, the ledger knows of {outcome.committed}")
    wrong = [name for name, answer in outcome.answers.items() if calm.answers[name] != answer]
    if wrong:
        found.append(f"{len(wrong)} answers differ from the calm run's: {wrong[0]}")
    if outcome.ended == DONE and len(outcome.answers) != IMAGES:
        found.append(f"{IMAGES - len(outcome.answers)} answers are lost")
    if outcome.again > outcome.excused:
        found.append(f"{outcome.again} were embedded again, {outcome.excused} can be explained")
    return found
