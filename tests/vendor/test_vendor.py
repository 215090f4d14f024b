"""The vendor's server, on loopback, as clients meet it."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from loopback import until
from vl2v.teachers import open_teacher
from vl2v.teachers.protocol import EncodedImage
from vl2v.vendor.app import create_app
from vl2v.vendor.batching import BadImage
from vl2v.vendor.keys import add_key, read_keys
from vl2v.vendor.meter import Meter
from vl2v.vendor.requests import Read, Refusal

from .helpers import ask, image, sold, uri
from .servers import DIM, Stub, row, running


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


def test_the_real_tiny_teacher_is_served(tmp_path):
    tiny = open_teacher("tiny")
    with running(tmp_path / "vendor", tiny, name="tiny") as vendor:
        data = image(3)
        answer = ask(vendor, [uri(data)], "image", model="tiny").json()
        np.testing.assert_allclose(
            answer["data"][0]["embedding"], tiny.embed_images([EncodedImage("", data)])[0], atol=1e-6
        )


def test_every_route_without_a_key(vendor):
    routes = httpx2.get(f"{vendor.url}/openapi.json", timeout=300).json()["paths"]
    assert set(routes) == {"/v1/embeddings", "/v1/models", "/v1/models/{model}", "/health", "/metrics"}
    for path, methods in routes.items():
        for method in methods:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
                answer = httpx2.request(method, vendor.url + path, headers=headers, json=_question(method), timeout=300)
                assert answer.status_code == (401 if path.startswith("/v1") else 200), (path, headers)
    for path in ("/docs", "/redoc", "/v1/../health/x"):
        assert httpx2.get(vendor.url + path, timeout=300).status_code == 404
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
