"""The vendor's server, on loopback, as clients meet it."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import logging
import os
import re
import signal
import socket
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from loopback import started_server, until, until_accepted
from vl2v.errors import ConfigError, StoreError
from vl2v.teachers import open_teacher
from vl2v.teachers.protocol import EncodedImage
from vl2v.vendor import meter as meters
from vl2v.vendor.app import create_app
from vl2v.vendor.batching import BadImage
from vl2v.vendor.keys import add_key, read_keys, revoke_key
from vl2v.vendor.meter import Meter, Sale
from vl2v.vendor.requests import Read, Refusal

from .servers import DIM, Stub, row, running


@pytest.fixture
def vendor(tmp_path):
    with running(tmp_path / "vendor", price=5) as opened:
        yield opened


def image(seed: int, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(buffer, form)
    return buffer.getvalue()


def blank(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def layered(scans: int) -> bytes:
    """Return a progressive JPEG whose last scan comes again and again."""
    buffer = io.BytesIO()
    Image.new("L", (2000, 2000)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def ask(vendor, things: Any, modality: str = "text", key: str | None = None, **more: Any) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {key or vendor.key}", **more.pop("headers", {})}
    body = {"model": "stub:m", "input": things, "modality": modality, **more}
    return httpx2.post(f"{vendor.url}/v1/embeddings", json=body, headers=headers, timeout=300)


def sold(vendor) -> list[tuple[Any, ...]]:
    with sqlite3.connect(vendor.ledger) as db:
        return db.execute("SELECT client, kind, count, micro FROM sold ORDER BY id").fetchall()


def test_openais_own_client_talks_to_it(vendor):
    import openai

    client = openai.OpenAI(base_url=f"{vendor.url}/v1", api_key=vendor.key)
    answer = client.embeddings.create(model="stub:m", input=["a cat", "a dog"])  # it asks for base64 by itself
    np.testing.assert_allclose([d.embedding for d in answer.data], [row(b"a cat"), row(b"a dog")], atol=1e-7)
    data = image(1)
    images = client.embeddings.create(
        model="stub:m", input=[uri(data)], encoding_format="float", extra_body={"modality": "image"}
    )
    np.testing.assert_allclose(images.data[0].embedding, row(data), atol=1e-7)
    assert [model.id for model in client.models.list()] == ["stub:m"]
    assert client.models.retrieve("stub:m").id == "stub:m"
    with pytest.raises(openai.UnprocessableEntityError, match="send texts, not tokens"):
        client.embeddings.create(model="stub:m", input=[[1, 2]])
    with pytest.raises(openai.AuthenticationError, match="a valid key is needed"):
        openai.OpenAI(base_url=f"{vendor.url}/v1", api_key="sk-no").embeddings.create(model="stub:m", input="a")
    assert sold(vendor) == [("client", "text", 2, 10), ("client", "image", 1, 5)]


def test_our_own_client_and_the_vendor_agree_to_the_query(vendor, tmp_path, monkeypatch):
    from vl2v.embeddings.bill import LedgerBudget
    from vl2v.embeddings.ledger import Ledger

    monkeypatch.setenv("VL2V_API_KEY", vendor.key)
    teacher = open_teacher(f"openai-compatible:{vendor.url}/v1#stub:m")
    with Ledger(tmp_path) as ledger:
        teacher.budget = LedgerBudget(ledger, teacher.name, "USD", 10**6, "test")
        images = [EncodedImage(str(i), image(i)) for i in range(70)]
        np.testing.assert_allclose(teacher.embed_images(images), [row(i.data) for i in images], atol=1e-6)
        assert teacher.embed_texts(["a", "b"]).shape == (2, DIM)
        bought = [(e.kind, e.count, e.micro) for e in ledger.entries()]
        assert sorted(bought) == sorted(
            row[1:] for row in sold(vendor)
        )  # several in flight: each side has its own order


def test_the_real_tiny_teacher_is_for_rent(tmp_path):
    tiny = open_teacher("tiny")
    with running(tmp_path / "vendor", tiny, name="tiny") as vendor:
        data = image(3)
        answer = ask(vendor, [uri(data)], "image", model="tiny").json()
        np.testing.assert_allclose(
            answer["data"][0]["embedding"], tiny.embed_images([EncodedImage("", data)])[0], atol=1e-6
        )


def test_every_route_without_a_key(vendor):
    routes = httpx2.get(f"{vendor.url}/openapi.json").json()["paths"]
    assert set(routes) == {"/v1/embeddings", "/v1/models", "/v1/models/{model}", "/health", "/metrics"}
    for path, methods in routes.items():
        for method in methods:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
                answer = httpx2.request(method, vendor.url + path, headers=headers, json=_question(method))
                assert answer.status_code == (401 if path.startswith("/v1") else 200), (path, headers)
    for path in ("/docs", "/redoc", "/v1/../health/x"):
        assert httpx2.get(vendor.url + path).status_code == 404
    assert sold(vendor) == []


def _question(method: str) -> Any:
    return {"model": "stub:m", "input": "a"} if method == "post" else None


@pytest.mark.parametrize(
    ("things", "modality", "status", "words"),
    [
        ([uri(image(0)), uri(b"not an image")], "image", 400, r"input\[1\] can't be decoded: not an image"),
        ([uri(image(0)[:200])], "image", 400, r"input\[0\] can't be decoded: truncated"),
        (["http://169.254.169.254/latest"], "image", 400, "not on the list of those that are fetched"),
        (["file:///etc/passwd"], "image", 400, "not on the list of those that are fetched"),
        (["data:image/png;base64,###"], "image", 400, "not base64"),
        ([uri(image(0))] * 33, "image", 400, "33 images; at most 32"),
        ([uri(blank(7000, 7000))] * 3, "image", 400, "147 megapixels to decode; at most 128 a request"),
        ([uri(blank(8000, 8001))], "image", 400, r"too large \(8000x8001 pixels"),
        ([uri(layered(400))], "image", 400, "megapixels to decode"),
        (["x" * 10_000] * 51, "text", 400, "510000 characters; at most 500000 a request"),
        ([[9906, 1917], [2]], "text", 422, r"input\[0\]: send texts, not tokens.*check_embedding_ctx_length=False"),
        ([9906, 1917], "text", 422, "send texts, not tokens"),
        (["x" * 10_001], "text", 400, "over 10000 characters"),
        ([], "text", 422, "input"),
        ([""], "text", 422, "input"),
        ("a", "sound", 422, "modality"),
    ],
)
def test_what_is_not_answered_is_explained_and_not_billed(vendor, things, modality, status, words):
    answer = ask(vendor, things, modality)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert re.search(words, error["message"]) and error["type"] == "invalid_request_error"
    assert sold(vendor) == [] and vendor.meter.sold("client") == 0


def test_a_bomb_and_a_huge_body(vendor):
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    answer = ask(vendor, [uri(bomb.getvalue())], "image")
    assert answer.status_code == 400 and "too large (9000x9000 pixels)" in answer.text
    headers = {"Authorization": f"Bearer {vendor.key}", "Content-Type": "application/json"}

    sent: list[int] = []

    def long():
        for number in range(200):
            sent.append(number)
            yield b" " * 2**20

    try:
        streamed = httpx2.post(f"{vendor.url}/v1/embeddings", content=long(), headers=headers, timeout=30)
        assert streamed.status_code == 413
    except (httpx2.WriteError, httpx2.ReadError):
        pass  # it hung up on us
    assert len(sent) < 200
    assert ask(vendor, "still there").status_code == 200


def test_another_clients_bad_image_fails_nobody_else(vendor):
    vendor.teacher.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, vendor, "hold the teacher up")
        until(lambda: vendor.meter.held("client"))
        good = pool.submit(ask, vendor, [uri(image(1))], "image")
        bad = pool.submit(ask, vendor, [uri(image(2)), uri(image(1)[:200])], "image")
        assert bad.result().status_code == 400, "at once, while the teacher is still busy"
        vendor.teacher.gate.set()
        statuses = [future.result().status_code for future in (first, good)]
    assert statuses == [200, 200]
    assert sum(count for _, _, count, _ in sold(vendor)) == 2


def test_what_a_refused_request_held_is_freed_at_once(tmp_path, monkeypatch):
    class Failing(Stub):
        def rows(self, contents: list[bytes]) -> np.ndarray:
            if b"fail" in contents:
                raise RuntimeError
            return super().rows(contents)

    monkeypatch.setattr(logging.getLogger("vl2v.vendor.app"), "disabled", True)  # pytest's records hold what failed
    key = add_key(tmp_path / "keys.toml", "client")
    meter = Meter(tmp_path / "sold.sqlite")
    app = create_app(Failing(), read_keys(tmp_path / "keys.toml"), meter)
    statuses = []

    async def sent(things: str | list[str], modality: str, number: int) -> None:
        body = json.dumps({"model": "stub:m", "input": things, "modality": modality}).encode()
        headers = {"authorization": f"Bearer {key}", "content-length": f"{len(body)}", "idempotency-key": f"{number}"}
        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings"}
        scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: dict[str, Any]) -> None:
            statuses.append(message.get("status"))

        await app(scope, receive, send)

    async def requests() -> None:
        for number, (things, modality) in enumerate(
            [("fail", "text"), (uri(image(1)[:200]), "image"), ("x" * 10_001, "text"), (["not an image"], "image")]
        ):
            await sent(things, modality, number)
            await sent("good", "text", 10 + number)
        await sent("other than before", "text", 10)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(requests())
        app.readers.close()
        app.batcher.close()
        left = [each for each in gc.get_objects() if isinstance(each, Read | Refusal | BadImage | RuntimeError)]
    finally:
        gc.enable()
        meter.close()
    assert statuses[::2] == [500, 200, 400, 200, 400, 200, 400, 200, 409]
    assert not left


def test_requests_of_many_are_answered_in_batches(vendor):
    with ThreadPoolExecutor(24) as pool:
        vendor.teacher.gate.clear()
        futures = [pool.submit(ask, vendor, f"text {i}") for i in range(24)]
        until(lambda: vendor.meter.held("client") == 24)
        vendor.teacher.gate.set()
        for i, future in enumerate(futures):
            np.testing.assert_allclose(future.result().json()["data"][0]["embedding"], row(f"text {i}".encode()))
    assert sum(vendor.teacher.batches) == 24 and len(vendor.teacher.batches) <= 4
    assert sold(vendor) == [("client", "text", 1, 5)] * 24


def test_overload_is_turned_away_not_collapsed_under(tmp_path):
    with running(tmp_path / "vendor", waiting=4, batch=1) as vendor:
        vendor.teacher.gate.clear()
        with ThreadPoolExecutor(12) as pool:
            futures = [pool.submit(ask, vendor, f"text {i}") for i in range(12)]
            until(lambda: sum(future.done() for future in futures) >= 7)
            vendor.teacher.gate.set()
            answers = [future.result() for future in futures]
        busy = [answer for answer in answers if answer.status_code == 429]
        assert 7 <= len(busy) <= 8 and all(answer.headers["Retry-After"] == "1" for answer in busy)
        assert vendor.meter.sold("client") == 12 - len(busy) and vendor.meter.held("client") == 0


def test_a_rate_and_a_quota_are_told_apart(tmp_path):
    with running(tmp_path / "vendor", rate=3, quota=4) as vendor:
        assert [ask(vendor, "a").status_code for _ in range(3)] == [200] * 3
        fast = ask(vendor, "a")
        assert fast.status_code == 429 and 0 < int(fast.headers["Retry-After"]) <= 60
        assert fast.json()["error"]["code"] == "rate_limit_exceeded"
    with running(tmp_path / "other", quota=4) as vendor:
        assert ask(vendor, ["a", "b", "c"]).status_code == 200
        assert ask(vendor, ["a", "b"]).json()["error"]["code"] == "insufficient_quota"
        assert ask(vendor, "a").status_code == 200
        assert ask(vendor, "a").status_code == 403


def test_a_quota_holds_when_many_ask_at_once_and_after_a_restart(tmp_path):
    with running(tmp_path / "vendor", quota=10) as vendor:
        with ThreadPoolExecutor(30) as pool:
            statuses = [answer.status_code for answer in pool.map(lambda i: ask(vendor, f"{i}"), range(30))]
        assert statuses.count(200) == 10 and statuses.count(403) == 20
        key = vendor.key
    from vl2v.vendor.meter import Meter

    meter = Meter(tmp_path / "vendor" / "sold.sqlite")
    assert meter.sold("client") == 10
    assert not meter.hold(read_keys(tmp_path / "vendor" / "keys.toml").find(key), 1)
    meter.close()


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


def test_a_ledger_from_before_replies_is_gone_on_with(tmp_path):
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


def test_one_clients_load_does_not_hold_up_another(tmp_path):
    teacher = Stub()
    with running(tmp_path / "vendor", teacher) as vendor, ThreadPoolExecutor(8) as pool:
        polite = add_key(tmp_path / "vendor" / "keys.toml", "polite")
        vendor.keys.replace(read_keys(tmp_path / "vendor" / "keys.toml").keys)
        teacher.gate.clear()
        heavy = pool.submit(ask, vendor, [f"{i} " + "x" * 200 for i in range(2000)])
        until(lambda: vendor.meter.held("client") == 2000)
        light = pool.submit(ask, vendor, "short", key=polite)
        until(lambda: vendor.meter.held("polite") == 1, [light])
        teacher.gate.set()
        assert light.result().status_code == 200
        done = sum(teacher.batches)
        assert heavy.result().status_code == 200
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


def test_prices_by_kind(tmp_path):
    with running(tmp_path / "vendor", price=5, price_image=40) as vendor:
        ask(vendor, ["a", "b"])
        ask(vendor, [uri(image(0))], "image")
        assert [sale[1:] for sale in sold(vendor)] == [("text", 2, 10), ("image", 1, 40)]
        headers = {"Authorization": f"Bearer {vendor.key}"}
        about = httpx2.get(f"{vendor.url}/v1/models/stub:m", headers=headers).json()
        assert about["price_micro"] == {"image": 40, "text": 5} and about["id"] == "stub:m"
        assert about == httpx2.get(f"{vendor.url}/v1/models", headers=headers).json()["data"][0]
        assert httpx2.get(f"{vendor.url}/v1/models/other", headers=headers).status_code == 404


def test_what_other_clients_send_by_default(vendor):
    headers = {"Authorization": f"Bearer {vendor.key}"}
    bodies = [  # LangChain without its tokens, LlamaIndex, litellm, curl
        {"input": ["a"], "model": "stub:m", "encoding_format": "base64"},
        {"input": ["a"], "model": "stub:m", "encoding_format": "base64", "user": None},
        {"input": ["a"], "model": "stub:m", "encoding_format": None, "dimensions": None},
        {"input": "a", "model": "stub:m"},
        {"input": "a", "model": "stub:m", "dimensions": DIM},
    ]
    for body in bodies:
        answer = httpx2.post(f"{vendor.url}/v1/embeddings", json=body, headers=headers)
        assert answer.status_code == 200, (body, answer.text)
        sent = answer.json()["data"][0]["embedding"]
        vector = np.frombuffer(base64.b64decode(sent), "<f4") if isinstance(sent, str) else sent
        np.testing.assert_allclose(vector, row(b"a"), atol=1e-6)
    other = httpx2.post(f"{vendor.url}/v1/embeddings", json={**bodies[3], "dimensions": 8}, headers=headers)
    assert other.status_code == 400 and other.json()["error"]["param"] == "dimensions"
    assert f"8; this model's embeddings have {DIM}" in other.json()["error"]["message"]
    wrong = httpx2.put(f"{vendor.url}/v1/embeddings", json=bodies[3], headers=headers)
    assert wrong.status_code == 405 and wrong.headers["Allow"] == "POST"


def test_metrics_count_and_name_nobody(vendor):
    ask(vendor, ["a", "b"])
    ask(vendor, "a", key="wrong")
    text = httpx2.get(f"{vendor.url}/metrics").text
    assert 'vl2v_questions_total{kind="text"} 2.0' in text and 'vl2v_requests_total{status="401"} 1.0' in text
    assert "client" not in text


def test_a_failing_model_tells_its_log_alone(tmp_path, caplog):
    class Broken(Stub):
        def rows(self, contents):
            raise RuntimeError("out of memory")

    with running(tmp_path / "vendor", Broken()) as vendor:
        answer = ask(vendor, "what only the client knows")
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "the model failed; nothing was billed"
        assert sold(vendor) == []
        (record,) = caplog.records
        assert record.levelname == "ERROR" and "RuntimeError: out of memory" in caplog.text
        assert "what only the client knows" not in caplog.text and vendor.key not in caplog.text


def test_a_ledger_that_can_not_be_written_is_told_logged_and_gone_on_with(vendor, caplog):
    with closing(sqlite3.connect(vendor.ledger)) as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON sold BEGIN SELECT RAISE(ABORT, 'no room'); END")
        for _ in range(2):
            answer = ask(vendor, "what only the client knows")
            assert answer.status_code == 503
            assert answer.json()["error"]["message"] == "the ledger can't be written; nothing was billed"
        db.execute("DROP TRIGGER full")
    assert [record.exc_info[1].args for record in caplog.records] == [("no room",)] * 2
    assert "what only the client knows" not in caplog.text and vendor.key not in caplog.text
    assert ask(vendor, "a").status_code == 200
    assert sold(vendor) == [("client", "text", 1, 5)]
    assert vendor.meter.sold("client") == 1 and vendor.meter.held("client") == 0


def test_keys_are_kept_as_hashes_and_never_written(vendor, tmp_path, capfd):
    ask(vendor, "a")
    ask(vendor, ["x"] * 3000)
    files = [file for file in (tmp_path / "vendor").rglob("*") if file.is_file()]
    assert len(files) >= 2
    assert not [file for file in files if vendor.key.encode() in file.read_bytes()]
    assert vendor.key not in "".join(capfd.readouterr())
    assert os.stat(tmp_path / "vendor" / "keys.toml").st_mode & 0o077 == 0


def test_key_files(tmp_path):
    file = tmp_path / "keys.toml"
    one, two = add_key(file, "one", quota=3), add_key(file, "two")
    keys = read_keys(file)
    assert keys.find(one).quota == 3 and keys.find(two).name == "two" and keys.find("three") is None
    with pytest.raises(ConfigError, match="there is a key named 'one' already"):
        add_key(file, "one")
    file.write_text('[[key]]\nname = "x"\nsha256 = "short"\n')
    with pytest.raises(ConfigError, match=r"\[\[key\]\] sha256: string should match"):
        read_keys(file)
    with pytest.raises(ConfigError, match="`vl2v vendor keys add` makes it"):
        read_keys(tmp_path / "none.toml")


def test_a_revoked_key_is_not_accepted_and_its_name_not_given_away(vendor, tmp_path):
    file = tmp_path / "vendor" / "keys.toml"
    before = read_keys(file).keys
    revoke_key(file, "client")
    (after,) = read_keys(file).keys
    assert after.revoked is not None and after.model_copy(update={"revoked": None}) == before[0]
    assert read_keys(file).find(vendor.key) is None and os.stat(file).st_mode & 0o077 == 0
    assert ask(vendor, "a").status_code == 200, "until the server reads the file again"
    vendor.keys.replace(read_keys(file).keys)
    assert ask(vendor, "a").status_code == 401
    for name, words in (("client", "was revoked on"), ("nobody", "its keys are client")):
        with pytest.raises(ConfigError, match=words):
            revoke_key(file, name)
    with pytest.raises(ConfigError, match="there is a key named 'client' already"):
        add_key(file, "client")


def test_keys_are_listed_with_what_they_bought(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from vl2v.cli.vendor import app

    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    runner.invoke(app, ["keys", "add", "alice", "--price", "20", "--price-image", "30"], catch_exceptions=False)
    runner.invoke(app, ["keys", "add", "bob", "--rate", "60"], catch_exceptions=False)
    with closing(Meter(tmp_path / "sold.sqlite")) as meter:
        for client, kind, count, micro in [("alice", "image", 3, 90), ("alice", "text", 2, 40), ("eve", "text", 1, 7)]:
            meter.write([(Sale(client, kind, count, micro, "n"), np.ones((count, DIM), np.float32))])
    runner.invoke(app, ["keys", "revoke", "bob"], catch_exceptions=False)
    printed = runner.invoke(app, ["keys", "list"], catch_exceptions=False).stdout
    rows = [line.strip("\u2502 ") for line in printed.splitlines() if line.startswith("\u2502")]
    alice, bob, eve = [" ".join(row.replace("\u2502", "").split()) for row in rows]
    assert alice == "alice - - 30 20 2 3 2 0.000130 -"
    assert bob.startswith("bob 60 - 0 0 0 0 0 0.000000 20")
    assert eve == "eve - - - - 1 0 1 0.000007 no key"


def test_told_to_stop_it_answers_and_bills_what_it_accepted(tmp_path):
    files = ["--keys", str(tmp_path / "keys.toml")]
    key = add_key(tmp_path / "keys.toml", "me")
    more = ["--teacher", "tiny", "--ledger", str(tmp_path / "sold.sqlite")]
    process, url = started_server("vendor", "serve", *files, *more)
    try:
        body = {"model": "tiny", "input": [uri(image(i)) for i in range(8)], "modality": "image"}
        headers = {"Authorization": f"Bearer {key}"}
        (tmp_path / "broken").write_text("[[key")
        keys = (tmp_path / "keys.toml").read_bytes()
        os.replace(tmp_path / "broken", tmp_path / "keys.toml")
        process.send_signal(signal.SIGHUP)  # the keys stay as they were
        (tmp_path / "keys.toml.new").write_bytes(keys)
        os.replace(tmp_path / "keys.toml.new", tmp_path / "keys.toml")
        other = add_key(tmp_path / "keys.toml", "other")
        process.send_signal(signal.SIGHUP)
        models = f"{url}/v1/models"
        until(lambda: httpx2.get(models, headers={"Authorization": f"Bearer {other}"}).status_code == 200)
        assert httpx2.get(models, headers=headers).status_code == 200
        with ThreadPoolExecutor(4) as pool:
            futures = [
                pool.submit(httpx2.post, f"{url}/v1/embeddings", json=body, headers=headers, timeout=300)
                for _ in range(4)
            ]
            until_accepted(url, 32)
            process.send_signal(signal.SIGTERM)
            answers = [future.result() for future in futures]
        assert process.wait(300) in (0, -signal.SIGTERM)
    finally:
        process.kill()
    assert [answer.status_code for answer in answers] == [200] * 4
    with sqlite3.connect(tmp_path / "sold.sqlite") as db:
        assert db.execute("SELECT sum(count) FROM sold").fetchone() == (32,)
    assert "Traceback" not in process.stderr.read()


def test_it_keeps_to_its_own_openapi_document(tmp_path):
    import schemathesis
    from hypothesis import HealthCheck, given, settings

    with running(tmp_path / "vendor") as vendor:
        schema = schemathesis.openapi.from_url(f"{vendor.url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) == 5
        for operation in operations:

            @given(case=operation.as_strategy())
            @settings(
                max_examples=25 if operation.method == "post" else 5,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            def conforms(case: Any) -> None:
                case.call_and_validate(headers={"Authorization": f"Bearer {vendor.key}"})

            conforms()
