"""What is billed, and saved for a client that asks again."""

from __future__ import annotations

import json
import socket
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx2
import numpy as np
import pytest

from loopback import until
from vl2v.errors import StoreError
from vl2v.vendor import meter as meters
from vl2v.vendor.meter import Meter, Sale

from .helpers import ask, image, sold, uri
from .servers import DIM, row, running


def test_one_request_asked_twice_is_billed_once(vendor):
    same = {"Idempotency-Key": "abc"}
    vendor.teacher.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(ask, vendor, ["a", "b"], headers=same) for _ in range(3)]
        until(lambda: vendor.meter.held("client"))
        vendor.teacher.gate.set()
        bodies = {future.result().content for future in futures}
    assert len(bodies) == 1 and sold(vendor) == [("client", "text", 2, 10)]
    assert ask(vendor, ["a", "b"], headers=same).content in bodies
    assert ask(vendor, ["c"], headers=same).status_code == 409
    assert ask(vendor, [uri(b"no")], "image", headers={"Idempotency-Key": "bad"}).status_code == 400
    assert len(sold(vendor)) == 1


def test_a_reply_outlives_the_server_and_stays_one_clients_own(tmp_path):
    same = {"Idempotency-Key": "abc"}
    with running(tmp_path / "vendor", price=5) as vendor:
        key, before = vendor.key, ask(vendor, ["a", "b"], headers=same).content
        images = ask(vendor, [uri(image(1))], "image", headers={"Idempotency-Key": "image"}).content
    with running(tmp_path / "vendor", price=5) as vendor:  # the other key is another client's
        assert ask(vendor, ["a", "b"], headers=same, key=key).content == before
        again = ask(vendor, [uri(image(1))], "image", headers={"Idempotency-Key": "image"}, key=key)
        assert again.content == images and again.headers["Idempotent-Replayed"] == "true"
        assert ask(vendor, ["c"], headers=same, key=key).status_code == 409
        assert vendor.teacher.batches == [] and len(sold(vendor)) == 2
        assert ask(vendor, ["c"], headers=same).status_code == 200


def test_a_client_that_dies_finds_its_answer_and_pays_once(vendor):
    vendor.teacher.gate.clear()
    body = json.dumps({"model": "stub:m", "input": ["a"]}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {vendor.key}\r\nIdempotency-Key: dead\r\n"
    with socket.create_connection(("127.0.0.1", int(vendor.url.rpartition(":")[2]))) as dying:
        dying.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: vendor.meter.held("client"))
    vendor.teacher.gate.set()
    until(lambda: vendor.meter.sold("client"))
    headers = {"Authorization": f"Bearer {vendor.key}", "Idempotency-Key": "dead"}
    answer = httpx2.post(f"{vendor.url}/v1/embeddings", content=body, headers=headers, timeout=60).json()
    np.testing.assert_allclose(answer["data"][0]["embedding"], row(b"a"), atol=1e-6)
    assert sold(vendor) == [("client", "text", 1, 5)] and vendor.teacher.batches == [1]


def test_saved_replies_are_bounded_by_age_and_by_client(tmp_path, monkeypatch):
    def one(meter: Meter, client: str, number: int) -> bytes:
        digest = f"{client} {number}".encode()
        meter.write([(Sale(client, "text", 1, 1, "n", digest, b"asked"), np.full(DIM, number, "<f4").tobytes())])
        return digest

    size = DIM * 4 + meters.OVERHEAD
    monkeypatch.setattr(meters, "REPLIES", 3 * size)
    meter = Meter(tmp_path / "sold.sqlite")
    other = one(meter, "b", 0)
    digests = [one(meter, "a", number) for number in range(6)]
    one(meter, "b", 1)
    saved = [meter.reply(digest) for digest in digests]
    assert [found is not None for found in saved] == [False] * 3 + [True] * 3
    assert saved[-1][1] == np.full(DIM, 5, "<f4").tobytes()
    assert meter.reply(other) is not None, "another client's flood drives out nobody's"
    monkeypatch.setattr(meters, "SAVED", 0.0)
    assert meter.reply(digests[-1]) is None
    one(meter, "b", 2)
    assert len(meter._numbers) == 1
    meter.close()
    with closing(sqlite3.connect(tmp_path / "sold.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM saved_replies").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM sold").fetchone() == (9,)


def test_replies_that_an_earlier_version_saved_are_found(tmp_path):
    file, sale = tmp_path / "ledger.sqlite", Sale("a", "text", 1, 5, "r-1", b"k" * 32, b"b" * 32)
    meter = Meter(file)
    meter.write([(sale, row(b"x").tobytes())])
    meter.close()
    with closing(sqlite3.connect(file)) as db:
        db.execute(
            "CREATE TABLE replies (id INTEGER PRIMARY KEY REFERENCES sold (id), client TEXT NOT NULL, "
            "digest BLOB NOT NULL UNIQUE, asked BLOB NOT NULL, vectors BLOB NOT NULL) STRICT"
        )
        db.execute("INSERT INTO replies SELECT * FROM saved_replies")
        db.execute("CREATE INDEX replies_of ON replies (client, id)")
        db.execute("DROP TABLE saved_replies")
        db.execute("PRAGMA user_version = 2")
        db.commit()
    for _ in range(2):
        meter = Meter(file)
        found = meter.reply(b"k" * 32)
        assert found == (sale, row(b"x").tobytes())
        meter.close()


def test_two_servers_write_to_one_ledger_while_one_takes_over(tmp_path):
    with closing(Meter(tmp_path / "sold.sqlite")) as old, closing(Meter(tmp_path / "sold.sqlite")) as new:
        for number, meter in enumerate([old, new, new, old, new]):
            sale = Sale("a", "text", 1, 5, f"r{number}", b"k%d" % number, b"b")
            meter.write([(sale, row(b"%d" % number).tobytes())])
            assert meter.reply(b"k%d" % number) == (sale, row(b"%d" % number).tobytes())
    with closing(sqlite3.connect(tmp_path / "sold.sqlite")) as db:
        joined = "SELECT s.id, s.request, r.digest FROM sold s JOIN saved_replies r USING (id) ORDER BY id"
        assert db.execute(joined).fetchall() == [(i + 1, f"r{i}", b"k%d" % i) for i in range(5)]


def test_a_ledger_from_before_replies_is_resumed(tmp_path):
    with closing(sqlite3.connect(tmp_path / "sold.sqlite")) as db:
        columns = "at REAL, client TEXT, kind TEXT, count INTEGER, micro INTEGER, request TEXT"
        db.execute(f"CREATE TABLE sold (id INTEGER PRIMARY KEY, {columns}) STRICT")
        db.execute("INSERT INTO sold VALUES (7, 1.0, 'client', 'text', 3, 15, 'x')")
        db.commit()
    with closing(Meter(tmp_path / "sold.sqlite")) as meter:
        assert meter.sold("client") == 3
        meter.write([(Sale("client", "image", 2, 10, "y", b"d", b"a"), np.ones((2, DIM), "<f4").tobytes())])
        assert meter.sold("client") == 5 and meter.reply(b"d")[0].micro == 10
    with closing(sqlite3.connect(tmp_path / "sold.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="written by a newer vl2v"):
        Meter(tmp_path / "sold.sqlite")
