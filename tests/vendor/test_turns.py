"""Clients that want more than their turn: in the queue, in the body, in processor time."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor

from loopback import until
from vl2v.vendor.keys import add_key, read_keys

from .helpers import ask, image, sold, uri
from .servers import Stub, running


def test_one_clients_load_does_not_hold_up_another(tmp_path):
    teacher, before = Stub(), []
    rows = teacher.rows

    def counting(contents):
        if b"short" in contents:
            before.append(sum(teacher.batches))
        return rows(contents)

    teacher.rows = counting
    with running(tmp_path / "vendor", teacher) as vendor, ThreadPoolExecutor(8) as pool:
        polite = add_key(tmp_path / "vendor" / "keys.toml", "polite")
        vendor.keys.replace(read_keys(tmp_path / "vendor" / "keys.toml").keys)
        teacher.gate.clear()
        heavy = pool.submit(ask, vendor, [f"{i} " + "x" * 200 for i in range(2000)])
        until(lambda: vendor.meter.held("client") == 2000)
        light = pool.submit(ask, vendor, "short", key=polite)
        until(lambda: vendor.meter.held("polite") == 1, [light])
        teacher.gate.set()
        assert light.result().status_code == heavy.result().status_code == 200
    (done,) = before
    assert done < 1000, "of 2,000 that came first"


def test_a_clients_quota_of_the_queue_is_its_own(tmp_path):
    teacher = Stub()
    with running(tmp_path / "vendor", teacher, waiting=4, batch=1) as vendor, ThreadPoolExecutor(12) as pool:
        polite = add_key(tmp_path / "vendor" / "keys.toml", "polite")
        vendor.keys.replace(read_keys(tmp_path / "vendor" / "keys.toml").keys)
        teacher.gate.clear()
        futures = [pool.submit(ask, vendor, f"text {i}") for i in range(10)]
        until(lambda: any(future.done() and future.result().status_code == 429 for future in futures))
        light = pool.submit(ask, vendor, "short", key=polite)
        until(lambda: vendor.meter.held("polite") == 1, [light])
        teacher.gate.set()
        assert light.result().status_code == 200


def half_sent(vendor, length: int, begin: bytes) -> bytes:
    """Return all that is answered to a request of which only the beginning of the body is ever sent."""
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {vendor.key}\r\nContent-Length: {length}"
    port = int(vendor.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(head.encode() + b"\r\n\r\n" + begin)
        return b"".join(iter(lambda: client.recv(2**16), b""))  # until it hangs up


def test_a_body_that_comes_too_slowly_is_hung_up_on(vendor, monkeypatch):
    monkeypatch.setattr("vl2v.vendor.bodies.SECONDS", 0.2)
    answer = half_sent(vendor, 1000, b'{"model": ')
    assert answer.startswith(b"HTTP/1.1 408 ") and b"connection: close" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_slow"
    monkeypatch.undo()
    assert sold(vendor) == [] and ask(vendor, "still there").status_code == 200


def test_who_has_too_much_waiting_is_turned_away_before_the_body(tmp_path):
    with running(tmp_path / "vendor", waiting=2, batch=1) as vendor, ThreadPoolExecutor(1) as pool:
        vendor.teacher.gate.clear()
        waits = pool.submit(ask, vendor, [f"text {i}" for i in range(8)])
        until(lambda: vendor.meter.held("client") == 8, [waits])
        answer = half_sent(vendor, 20_000_000, b"")
        vendor.teacher.gate.set()
        assert answer.startswith(b"HTTP/1.1 429 ") and b"retry-after: 1" in answer.lower()
        assert waits.result().status_code == 200


def test_images_that_take_too_much_processor_time_are_refused(vendor, monkeypatch):
    monkeypatch.setattr("vl2v.vendor.batching.SECONDS", 0.0)
    answer = ask(vendor, [uri(image(0)), uri(image(1))], "image")
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "too_expensive"
    assert sold(vendor) == [] and vendor.meter.held("client") == 0
