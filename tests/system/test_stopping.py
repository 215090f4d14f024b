"""One Ctrl-C, or one SIGTERM, ends what costs money: no attempt more, what was in flight saved or on the bill.

And it ends a training, with a line; the same command resumes.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from PIL import Image

from forks import Forked
from little import quick_settings
from loopback import until
from teachers.paid.vendor import KEY, Vendor
from vendor.servers import running
from vl2v.embeddings.ledger import Entry, Ledger
from vl2v.embeddings.store import EmbeddingStore
from vl2v.teachers.paid.teacher import CANARY_IMAGE, CANARY_TEXT

TABLE = """
["openai-compatible".models."m"]
price = { image = 0.0001, text = 0.0001 }
[openai-compatible]
images_a_request = 1
in_flight = 4
"""
ENOUGH = 300.0  # seconds after which the test gives up; nothing is measured by it


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    with Vendor() as server:
        yield server
        server.shutdown()


@pytest.fixture
def embedding(tmp_path: Path):
    """Return a function that starts a command that queries a teacher about forty images, in a process of its own."""
    draw = np.random.default_rng(0)
    for number in range(40):
        file = tmp_path / "data" / ("ink", "oil")[number % 2] / ("ball", "box")[number // 2 % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    (tmp_path / "vendors.toml").write_text(TABLE)

    def started(teacher: str, key: str, *verb: str, program: str = "") -> Forked:
        environment = {"VL2V_VENDORS": str(tmp_path / "vendors.toml"), "VL2V_API_KEY": key}
        verb, data = verb or ("embed",), str(tmp_path / "data")
        where = ("--data", f"d={data}") if "benchmark" in verb else ("--data", data, "--store", str(tmp_path / "store"))
        words = (*verb, "--budget", "1", "--teacher", f"openai-compatible:{teacher}", *where)
        return Forked(*words, errors=tmp_path / "errors.txt", program=program, **environment)

    return started


@pytest.fixture
def session(vendor: Vendor, embedding):
    return lambda *verb, **more: embedding(f"{vendor.url}#m", KEY, *verb, **more)


def after(count: int, fault, vendor: Vendor) -> threading.Event:
    """Let so many requests be answered and the others meet a fault; return the event that four have met it."""
    met, seen = threading.Event(), []

    def faulty(handler, body) -> bool:
        if len(vendor.requests) <= count:
            return False
        seen.append(time.monotonic())
        if len(seen) >= 4:
            met.set()
        return fault(handler, body)

    vendor.always = faulty
    return met


def refused(status: int, **headers: str):
    return lambda handler, body: handler.answer(status, {"error": {"message": "no"}}, **headers) or True


def bill(store: Path) -> list[Entry]:
    with Ledger(store) as ledger:
        return ledger.entries()


def saved(store: Path) -> int:
    """Return how many images' embeddings are in a store."""
    with EmbeddingStore(store, read_only=True) as opened:
        return sum(batch.count for batch in opened.queries() if batch.kind == "image")


VERBS = {
    "embed": ("embed",),
    "distill": ("distill", "--student", "test_efficientnet", "--set", "student.weights=none", "--image-size", "32"),
    "teacher check": ("teacher", "check"),
    "benchmark": ("benchmark", "--methods", "kd", "--targets", "oil", "--seeds", "1"),
}


@pytest.mark.parametrize(
    ("verb", "fault", "number"),
    [
        ("embed", "500", signal.SIGINT),
        ("embed", "hanging", signal.SIGTERM),
        ("distill", "hanging", signal.SIGINT),
        ("teacher check", "503", signal.SIGTERM),
        ("benchmark", "hanging", signal.SIGINT),
        ("benchmark", "503", signal.SIGTERM),
    ],
)
def test_a_signal_ends_the_spending(
    verb: str, fault: str, number: signal.Signals, vendor: Vendor, session, tmp_path: Path
) -> None:
    over = threading.Event()
    faults = {
        "500": refused(500),
        "503": refused(503, Retry_After="20"),
        "hanging": lambda handler, body: over.wait(ENOUGH),
    }
    met = after(12, faults[fault], vendor)
    outs = {"distill": ("--out", str(tmp_path / "run"), "--target", "oil"), "benchmark": ("--out", str(tmp_path))}
    process = session(*VERBS[verb], *outs.get(verb, ()))
    try:
        assert met.wait(ENOUGH)
        process.send_signal(number)
        code, said = process.wait(ENOUGH), process.errors.read_text()
        sent = len(vendor.requests)
    finally:
        over.set()
        process.kill()
    assert code == 128 + number, said
    (line,) = [line for line in said.splitlines() if "stopped: nothing more was sent" in line]
    assert "Traceback" not in said and "the bill so far: 0.0" in line and "the same command resumes" in line
    entries = bill(tmp_path / "store")
    statuses = [entry.status for entry in entries]
    assert "reserved" not in statuses, "each is accounted for"
    assert sent <= len(statuses) and statuses.count("rejected") <= (4 if fault != "503" else 8)
    assert all(entry.micro == (0 if entry.status == "rejected" else 100 * entry.count) for entry in entries)
    if fault == "hanging":
        assert "4 in flight are broken off and may have been billed (0.0004 USD, counted)" in line
        assert statuses.count("lost") == 4
    answered = sum(entry.count for entry in entries if entry.status == "answered" and entry.kind == "image")
    assert saved(tmp_path / "store") == answered > 0, "what arrived is saved"


# Waits for what is in flight however slow the machine is.
PATIENT = "from vl2v.teachers.paid import session; session.GRACE = 60; from vl2v.cli import main; main()"


def test_what_still_arrives_is_saved(vendor: Vendor, session, tmp_path: Path) -> None:
    gate = threading.Event()
    met = after(12, lambda handler, body: not gate.wait(ENOUGH), vendor)
    process = session(program=PATIENT)
    try:
        assert met.wait(ENOUGH)
        process.send_signal(signal.SIGINT)
        gate.set()
        code, said = process.wait(ENOUGH), process.errors.read_text()
    finally:
        gate.set()
        process.kill()
    assert code == 130, said
    entries = bill(tmp_path / "store")
    assert {entry.status for entry in entries} == {"answered"} and len(entries) == len(vendor.requests) < 40
    assert saved(tmp_path / "store") == sum(entry.count for entry in entries if entry.kind == "image")
    assert session().wait(ENOUGH) == 0


def test_what_was_in_flight_of_a_killed_client_is_not_bought_again(embedding, tmp_path: Path) -> None:
    with running(tmp_path / "vendor", price=100) as seller:
        arrived, bought, calls = threading.Semaphore(0), Counter[bytes](), count(1)
        answer = seller.teacher.rows

        def rows(contents: list[bytes]) -> np.ndarray:
            bought.update(contents)
            if next(calls) == 9:  # is in flight until the client has been killed
                seller.teacher.gate.clear()
            arrived.release()
            return answer(contents)

        seller.teacher.rows = rows
        process = embedding(f"{seller.url}/v1#stub:m", seller.key)
        try:
            for _ in range(9):
                assert arrived.acquire(timeout=ENOUGH)
        finally:
            process.kill()
        seller.teacher.gate.set()
        open_ = [entry for entry in bill(tmp_path / "store") if entry.status == "reserved"]
        assert open_, "something was in flight"
        again = embedding(f"{seller.url}/v1#stub:m", seller.key)
        assert again.wait(ENOUGH) == 0, again.errors.read_text()
        twice = {content for content, times in bought.items() if times > 1}
        assert twice <= {CANARY_TEXT.encode(), CANARY_IMAGE}, "only the canaries, which both runs ask about"
        sold = seller.meter.sold("client")
        assert sold == bought.total() >= 40 + 2
        entries = bill(tmp_path / "store")
    assert sum(entry.micro for entry in entries) >= 100 * sold


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_ends_the_training(workers: int, shapes: Path, recording: Path, tmp_path: Path) -> None:
    settings = quick_settings(shapes, recording)
    settings["data"]["workers"] = workers
    settings["stages"]["distill"] |= {"steps": 1_000_000, "eval_every": 2}
    config, out, errors = tmp_path / "config.toml", tmp_path / "run", tmp_path / "errors.txt"
    config.write_text(tomli_w.dumps(settings))
    rows: list[str] = []

    def written() -> list[str]:
        file = out / "metrics.jsonl"
        return file.read_text().splitlines() if file.exists() else []

    for number in (signal.SIGINT, signal.SIGTERM):
        process = Forked("distill", "--config", config, "--out", out, "--store", tmp_path / "store", errors=errors)
        try:
            until(lambda: len(written()) > len(rows) + 3, seconds=ENOUGH)
            process.send_signal(number)
            code, said = process.wait(ENOUGH), errors.read_text()
        finally:
            process.kill()
        assert code == 128 + number, said
        assert said.endswith("interrupted; the same command resumes where it stopped\n") and "Traceback" not in said
        assert written()[:3] == (rows or written())[:3], "the second one resumed where the first had stopped"
        rows[:] = written()
