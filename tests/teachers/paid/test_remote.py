"""Teachers behind an API, against a real server on loopback that can misbehave in every way it likes."""

from __future__ import annotations

import base64
import io
import itertools
import json
import logging
import os
import socket
import ssl
import subprocess
import threading
import time
import traceback
import tracemalloc
import zlib
from contextlib import suppress
from functools import partial

import httpx2
import numpy as np
import pytest
from PIL import Image

from vl2v.embeddings.bill import Cost
from vl2v.embeddings.fetch import fetch_texts
from vl2v.embeddings.schema import text_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, StoreError, TeacherError
from vl2v.teachers import open_teacher
from vl2v.teachers.paid import attempts
from vl2v.teachers.paid.failures import retry_after
from vl2v.teachers.paid.limits import RateLimit
from vl2v.teachers.paid.line import Reply
from vl2v.teachers.paid.requests import prepare
from vl2v.teachers.paid.teacher import CANARY_IMAGE, CANARY_TEXT, BudgetReached, Embedded, Refused
from vl2v.teachers.prompts import check_prompts
from vl2v.teachers.protocol import EncodedImage

from .test_pace import Clock
from .vendor import DIM, KEY, Budget, Vendor, row

KINDS = {
    "openai-compatible": "VL2V_API_KEY",
    "jina": "JINA_API_KEY",
    "cohere": "CO_API_KEY",
    "voyage": "VOYAGE_API_KEY",
}
PRICES = """
[{kind}.models."m-1"]
price = {{ image = 0.001, text = 0.0005 }}
{more}
"""

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def vendor():
    with Vendor() as server:
        yield server
        server.shutdown()


@pytest.fixture
def rent(vendor, monkeypatch, tmp_path):
    def opened(kind="openai-compatible", more="", budget=10**9, model="m-1"):
        table = tmp_path / "vendors.toml"
        table.write_text(PRICES.format(kind=kind, more=more))
        monkeypatch.setenv("VL2V_VENDORS", str(table))
        monkeypatch.setenv(KINDS[kind], KEY)
        teacher = open_teacher(f"{kind}:{vendor.url}#{model}")
        teacher.budget = Budget(budget)
        return teacher

    return opened


def encoded(seed: int, mode: str = "RGB", form: str = "PNG", size: int = 24, **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def numbered(count: int) -> list[EncodedImage]:
    return [EncodedImage(f"{i}.png", encoded(i)) for i in range(count)]


def right(contents: list[bytes]) -> np.ndarray:
    rows = np.stack([row(content) for content in contents])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_vendor_is_understood(kind, rent, vendor):
    teacher = rent(kind, more="dim = 12")
    images = [
        EncodedImage("a", encoded(1, form="JPEG")),
        EncodedImage("b", encoded(2)),
        EncodedImage("c", encoded(3)),
    ]
    np.testing.assert_allclose(teacher.embed_images(images), right([i.data for i in images]), atol=1e-6)
    texts = ["a photo of a cat", "a photo of a dog"]
    np.testing.assert_allclose(teacher.embed_texts(texts), right([t.encode() for t in texts]), atol=1e-6)
    headers, body = vendor.requests[0]
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "m-1" and "http" not in json.dumps(body)
    assert set(teacher.budget.statuses()) == {"answered"}
    assert teacher.budget.committed == 3 * 1000 + 2 * 500
    assert teacher.dim == DIM and teacher.name == f"{kind}:{vendor.url}#m-1"


def test_a_plan_needs_neither_network_nor_key(rent, vendor, monkeypatch):
    teacher = rent("jina", more="requests_a_minute = 4\nimages_a_request = 10")
    monkeypatch.delenv("JINA_API_KEY")
    again = open_teacher(teacher.name)
    assert again.fingerprint == teacher.fingerprint != open_teacher(f"{teacher.name}2").fingerprint
    assert open_teacher(f"{teacher.name}?dimensions=64").fingerprint != teacher.fingerprint
    forecast = teacher.forecast("image", [(10, 10)] * 95)
    assert (forecast.requests, forecast.micro, forecast.seconds) == (10, 95_000, 150.0)
    assert teacher.forecast("text", [(20, 1)]).micro == 500
    assert vendor.requests == []
    with pytest.raises(TeacherError, match=r"wants a key; put it into the environment as JINA_API_KEY"):
        teacher.embed_texts(["a"])


def test_nothing_is_asked_without_a_purse_or_a_price(rent, vendor):
    teacher = rent("cohere", model="m-2")
    with pytest.raises(TeacherError, match=r'no price known; put \[cohere\.models\."m-2"\] price'):
        teacher.embed_texts(["a"])
    teacher = rent()
    teacher.budget = None
    with pytest.raises(TeacherError, match="is a paid teacher: query it with"):
        teacher.embed_texts(["a"])
    assert vendor.requests == []


def test_the_budget_is_reserved_before_a_request_leaves(rent, vendor):
    teacher = rent(more="images_a_request = 2", budget=7 * 1000)
    got = []
    with pytest.raises(BudgetReached):
        for answer in teacher.query("image", numbered(20)):
            got += answer.positions
            answer.settle()
    assert len(got) == len(set(got)) == 6, "what is in flight is still answered, and nothing more leaves"
    assert vendor.sold == 6 and teacher.budget.committed == 6000


def test_a_vendor_that_tells_its_prices_is_believed_before_anything_is_asked(rent, vendor):
    vendor.models = [{"id": "m-1", "dim": DIM, "price_micro": {"image": 40, "text": 4}}]
    vendor.always = changed(lambda answer: answer["usage"].update(micro=33))
    teacher = rent(budget=100)
    assert teacher.forecast("image", [(9, 9)] * 3).micro == 120 and teacher.dim == DIM
    assert len(teacher.embed_images(numbered(2))) == 2
    assert [query.micro for query in teacher.budget.reserved] == [80]
    assert teacher.budget.committed == 33, "what it says it billed counts"
    with pytest.raises(BudgetReached):
        teacher.embed_images(numbered(2))
    assert len(vendor.requests) == 1


NOTHING_TOLD = "no price known: counted as free"


def test_a_server_whose_price_nobody_knows_is_free_and_said_to_be_doubtful(rent, vendor, monkeypatch):
    vendor.models = [{"id": "m-2"}]
    teacher = rent(model="m-2", budget=0)
    cost = Cost(teacher.forecast("image", [(9, 9)] * 3), "USD", "", teacher.doubt)
    assert cost.price() == f"at most 0.00 USD, unverified ({NOTHING_TOLD})"
    assert len(teacher.embed_images(numbered(2))) == 2
    assert [entry["note"] for entry in teacher.budget.settled.values()] == [NOTHING_TOLD], "the bill says so, too"

    vendor.models = [{"id": "m-2", "dim": DIM, "price_micro": {"image": 40, "text": 4}}]
    monkeypatch.delenv("VL2V_API_KEY")
    plan = open_teacher(teacher.name)
    assert plan.forecast("image", [(9, 9)]).micro == 0
    assert plan.doubt == f"{NOTHING_TOLD}; its list of prices failed: 401"
    monkeypatch.setenv("VL2V_API_KEY", KEY)
    plan = open_teacher(teacher.name)
    assert plan.forecast("image", [(9, 9)]).micro == 40 and plan.doubt == ""


def test_a_server_that_cannot_be_reached_told_no_prices(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    teacher = open_teacher("openai-compatible:http://127.0.0.1:1#m")
    assert teacher.forecast("image", [(9, 9)]).micro == 0
    assert teacher.doubt.startswith(f"{NOTHING_TOLD}; its list of prices failed: ")
    teacher.budget = Budget()
    with pytest.raises(TeacherError, match="gave up after 8 attempts, the last one: no connection"):
        teacher.embed_texts(["a"])
    assert set(teacher.budget.statuses()) == {"rejected"}


def test_what_an_answer_says_it_cost_is_reserved_from_then_on(rent, vendor):
    vendor.always = changed(lambda answer: answer["usage"].update(micro=20 * len(answer["data"])))
    teacher = rent(model="m-2", more="[openai-compatible]\nimages_a_request = 2", budget=90)
    with pytest.raises(BudgetReached):
        teacher.embed_images(numbered(20))
    assert [query.micro for query in teacher.budget.reserved] == [0, 40] and teacher.budget.committed == 80


def test_many_requests_at_once_but_the_first_alone(rent, vendor):
    teacher = rent(more="images_a_request = 1\nin_flight = 6")
    assert len(teacher.embed_images(numbered(1))) == 1 and vendor.most_at_once == 1
    vendor.always, met = together(vendor, 6)
    teacher.embed_images(numbered(25))
    assert met.is_set() and vendor.most_at_once == 6


def together(vendor, count):
    """Return a fault that holds requests until so many are in, and the event of that."""
    met = threading.Event()

    def held(handler, body):
        if vendor.now >= count:
            met.set()
        met.wait(60)
        return False

    return held, met


def status(code, content=None, **headers):
    return lambda handler, body: handler.answer(code, content or {"error": {"message": "no"}}, **headers) or True


def changed(change):
    def fault(handler, body):
        answer = handler.made(body)
        change(answer)
        handler.answer(200, answer)
        return True

    return fault


def cut(handler, body):
    handler.made(body)
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{")
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def put(answer, number, value):
    answer["data"][number]["embedding"] = value


REDUCED = "You have not yet added your payment method in the billing page and will have reduced rate limits of 3 RPM"
FAULTS = {
    "429": (status(429), "rejected"),
    "429 of one who hasn't paid yet": (status(429, {"detail": REDUCED}), "rejected"),
    "429 with a date": (status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), "rejected"),
    "503": (status(503, b"<html>busy</html>", Retry_After="0.01"), "rejected"),
    "408": (status(408), "lost"),
    "425": (status(425), "lost"),
    "499": (status(499), "lost"),
    "500": (status(500), "lost"),
    "504 in HTML": (status(504, b"<html>gateway</html>"), "lost"),
    "HTML with 200": (lambda h, b: h.answer(200, b"<html>welcome</html>") or True, "lost"),
    "half an answer": (cut, "lost"),
    "one too few": (changed(lambda a: a["data"].pop()), "wrong"),
    "one twice": (changed(lambda a: a["data"].append(a["data"][0])), "wrong"),
    "a wrong number": (changed(lambda a: a["data"][0].update(index=7)), "wrong"),
    "NaN": (changed(lambda a: put(a, 0, [float("nan")] * DIM)), "wrong"),
    "zeros": (changed(lambda a: put(a, 1, [0.0] * DIM)), "wrong"),
    "another dimension": (changed(lambda a: put(a, 1, [1.0] * (DIM - 1))), "wrong"),
    "no vector": (changed(lambda a: put(a, 0, None)), "wrong"),
    "no data": (changed(lambda a: a.pop("data")), "wrong"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_goes_wrong_is_asked_again_and_stays_on_the_bill(name, rent, vendor):
    fault, outcome = FAULTS[name]
    teacher = rent(more="dim = 12")
    vendor.faults = [fault]
    images = numbered(3)
    np.testing.assert_allclose(teacher.embed_images(images), right([i.data for i in images]), atol=1e-6)
    assert teacher.budget.statuses() == [outcome, "answered"]
    assert teacher.budget.committed == 3000 * (1 if outcome == "rejected" else 2)
    keys = [headers["Idempotency-Key"] for headers, _ in vendor.requests]
    assert len(keys) == 2 and keys[0] == keys[1]


def test_an_answer_that_does_not_come_in_time_may_have_been_counted(rent, vendor, monkeypatch):
    monkeypatch.setattr(attempts, "TIMEOUT", 0.3)
    over = threading.Event()
    vendor.faults = [lambda handler, body: over.wait(60)]
    teacher = rent()
    try:
        assert len(teacher.embed_images(numbered(3))) == 3
    finally:
        over.set()
    *lost, answered = teacher.budget.statuses()
    assert set(lost) == {"lost"} and answered == "answered", "on a busy machine more than one may be late"
    assert teacher.budget.settled[0]["note"] == "no complete response within 0.3 seconds"
    assert teacher.budget.committed == 3000 * (len(lost) + 1)


@pytest.mark.parametrize(("code", "outcome"), [(429, "rejected"), (503, "rejected"), (500, "lost"), (408, "lost")])
def test_nobody_waits_for_a_month(code, outcome, rent, vendor):
    vendor.always = status(code, Retry_After="2592000")
    teacher = rent()
    with pytest.raises(TeacherError, match=f"{code}, the vendor wants no request for 43200 minutes; every"):
        teacher.embed_texts(["a"])
    assert len(vendor.requests) == 1 and teacher.budget.statuses() == [outcome]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Fri, 15 Jan 2027 08:01:30 GMT"}, 90),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"x-ratelimit-reset": "1800000030"}, 30),
        ({"x-ratelimit-reset": "1800000030000"}, 30),
        ({"x-ratelimit-reset": "30"}, 30),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "7", "x-ratelimit-reset": "30"}, 7),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7),
        ({"retry-after": "soon"}, None),
        # of no use: the attempts' own pauses, which grow, take their place
        ({"retry-after": "0"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({"x-ratelimit-reset": "1700000000"}, None),
    ],
)
def test_how_long_a_vendor_wants_to_be_left_alone(headers, seconds, monkeypatch):
    monkeypatch.setattr("vl2v.teachers.paid.failures.time", lambda: 1_800_000_000.0)
    assert retry_after(Reply(429, headers, b"")) == seconds
    every_answer_has_it = "x-ratelimit-reset" in headers and "retry-after" not in headers
    assert retry_after(Reply(500, headers, b"")) == (None if every_answer_has_it else seconds)


def test_an_unknown_models_dimension_is_not_what_its_first_answer_says(rent, vendor, tmp_path):
    def short(answer):
        put(answer, 0, [1.0] * (DIM - 1))

    teacher = rent()
    vendor.faults = [changed(short)]
    with EmbeddingStore(tmp_path / "store") as store:
        with pytest.raises(TeacherError, match=r"unusable response \(vectors of shape \(12,\), not \(11,\)\)"):
            fetch_texts(store, teacher, ["a cat"])
        assert store.teachers() == [] and teacher.budget.statuses() == ["answered", *["wrong"] * 8], (
            "all is on the bill"
        )
        again = rent()
        fetch_texts(store, again, ["a cat"])
        assert [known.dim for known in store.teachers()] == [DIM]
        np.testing.assert_allclose(store.get(again.fingerprint, [text_key("a cat")]), right([b"a cat"]), atol=1e-3)


def test_no_connection_costs_nothing_and_gives_up_in_words(rent, vendor):
    teacher = rent()
    vendor.shutdown()
    vendor.server_close()
    with pytest.raises(
        TeacherError, match=r"gave up after 8 attempts, the last one: no connection \(ConnectError: .*\)"
    ):
        teacher.embed_texts(["a"])
    assert set(teacher.budget.statuses()) == {"rejected"} and teacher.budget.committed == 0


TERMINAL = {
    "401": (
        status(401, {"error": {"message": f"bad key {KEY}"}}),
        r"401, the key in VL2V_API_KEY isn't accepted: bad key \*\*\*",
    ),
    "403 balance": (
        status(403, {"detail": "x", "code": "AUTHZ_INSUFFICIENT_BALANCE"}),
        "money or quota is used up: AUTHZ_INSUFFICIENT_BALANCE x",
    ),
    "429 quota": (
        status(429, {"error": {"code": "insufficient_quota"}}),
        "money or quota is used up: insufficient_quota",
    ),
    "402": (status(402), "money or quota is used up: no"),
    "403 billing": (status(403, {"error": {"message": "see Billing"}}), "money or quota is used up: see Billing"),
    "403": (status(403), "403, the key in VL2V_API_KEY isn't accepted: no"),
    "498": (status(498), "498: no"),
    "404": (status(404, {"detail": "INPUT_MODEL_NOT_FOUND"}), "404, no such model or address: INPUT_MODEL_NOT_FOUND"),
    "302": (status(302, Location="http://example.invalid/"), "302"),
}


@pytest.mark.parametrize("name", TERMINAL)
def test_there_is_no_point_in_asking_again(name, rent, vendor):
    fault, words = TERMINAL[name]
    vendor.always = fault
    teacher = rent(more="images_a_request = 1")
    with pytest.raises(TeacherError, match=words):
        teacher.embed_images(numbered(5))
    assert len(vendor.requests) == 1 and teacher.budget.committed == 0


def test_after_the_end_what_is_in_flight_is_still_answered(rent, vendor):
    teacher = rent(more="images_a_request = 1\nin_flight = 4")
    gate = threading.Event()

    def slow(handler, body):
        gate.wait(60)
        return False

    def broke(handler, body):
        status(403, {"detail": "insufficient_balance"})(handler, body)
        gate.set()
        return True

    vendor.faults = [lambda h, b: False, slow, slow, broke]
    got = []
    with pytest.raises(TeacherError, match="used up"):
        for answer in teacher.query("image", numbered(30)):
            got += answer.positions
    assert len(got) == len(vendor.requests) - 1 >= 3


@pytest.fixture
def warm(rent, vendor):
    """A teacher of which nobody wonders what a first answer costs, and who is at rest."""
    teacher = rent(more="images_a_request = 1\nin_flight = 4")
    teacher.embed_images(numbered(1))
    vendor.requests.clear()
    return teacher


def handed_on_before(teacher, error: str) -> list[int]:
    """Return the images whose answers are handed on, and settled, before the ledger's error is raised."""
    got: list[int] = []
    with pytest.raises(StoreError, match=error):
        for answer in teacher.query("image", numbered(30)):
            got += answer.positions
            answer.settle()
    return got


def test_a_ledger_that_fails_costs_no_answer_that_is_in_flight(warm, vendor):
    held, met = together(vendor, 3)
    gate = threading.Event()

    class Full(Budget):
        left = 3

        def reserve(self, query):
            with self.lock:
                self.left -= 1
                last = self.left < 0
            if not last:
                return super().reserve(query)
            assert met.wait(60)
            gate.set()
            raise StoreError("the disk is full")

    vendor.always = lambda handler, body: held(handler, body) or not gate.wait(60)
    warm.budget = Full()
    got = handed_on_before(warm, "the disk is full")
    assert len(set(got)) == len(got) == len(vendor.requests) == 3
    assert warm.budget.statuses() == ["answered"] * 3


def test_a_payment_that_cannot_be_noted_costs_no_answer_that_is_in_flight(warm, vendor):
    class Locked(Budget):
        failed = False

        def settle(self, *args, **about):
            if not self.failed:
                self.failed = True
                raise StoreError("another writes")
            super().settle(*args, **about)

    vendor.always, _ = together(vendor, 4)
    warm.budget = Locked()
    got = handed_on_before(warm, "another writes")
    assert len(set(got)) == len(got) == len(vendor.requests) == 4
    assert sorted(warm.budget.statuses()) == ["answered"] * 3 + ["reserved"], "counted in full"

    vendor.always, warm.budget = None, Locked()
    (answer,) = warm.query("image", numbered(1))
    with pytest.raises(StoreError, match="another writes"):
        answer.settle()


@pytest.mark.parametrize("code", [400, 413, 422])
def test_one_bad_image_is_found_and_the_rest_answered(code, rent, vendor):
    images = numbered(8)
    bad = images[5].data

    def choosy(handler, body):
        contents = [handler.content(thing) for thing in body["input"]]
        if bad not in contents:
            return False
        return status(code, {"error": {"message": "cannot identify image"}})(handler, body)

    vendor.always = choosy
    teacher = rent()
    found = list(teacher.query("image", images))
    refused = [answer for answer in found if isinstance(answer, Refused)]
    assert [(r.position, "cannot identify image" in r.reason) for r in refused] == [(5, True)]
    answered = sorted(i for answer in found if isinstance(answer, Embedded) for i in answer.positions)
    assert answered == [0, 1, 2, 3, 4, 6, 7]
    assert vendor.sold == 7, "each image is paid for once"
    with pytest.raises(TeacherError, match=rf"won't take '5\.png': {code} cannot identify image"):
        teacher.embed_images(images)


def test_a_request_that_is_too_large_is_halved_until_it_fits(rent, vendor):
    def small(handler, body):
        return len(body["input"]) > 3 and status(413, b"<html>too large</html>")(handler, body)

    vendor.always = small
    teacher = rent()
    assert len(teacher.embed_images(numbered(16))) == 16
    assert vendor.sold == 16 and teacher.budget.committed == 16_000, "each image is paid for once"
    assert sorted(set(teacher.budget.statuses())) == ["answered", "rejected"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_request_is_larger_than_the_vendor_takes(kind, rent, vendor):
    image, text = encoded(1), "東京タワーの写真" * 9
    limit = 6 * len(image)
    teacher = rent(kind, more=f"images_a_request = 50\ntexts_a_request = 500\nrequest_bytes = {limit}")
    teacher.embed_images([EncodedImage("a", image)] * 20)
    assert len(vendor.requests) == 5, "four fit in"
    teacher.embed_texts([text] * 200)
    sizes = [int(headers["Content-Length"]) for headers, _ in vendor.requests]
    assert limit / 2 < max(sizes) <= limit and vendor.sold == 220
    assert len(rent(kind, more="request_bytes = 1000").embed_images(numbered(2))) == 2, "each alone if nothing helps"


@pytest.mark.parametrize("limit", ["tokens_a_request = 35", "tokens_a_minute = 35", "items_a_minute = 3"])
def test_no_request_has_more_than_is_allowed_at_once(limit, rent, vendor, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(attempts, "RateLimit", partial(RateLimit, clock=clock, sleep=clock.sleep))
    teacher = rent(more=f"tokens_an_image = 10\nimages_a_request = 16\nin_flight = 1\n{limit}")
    teacher.embed_images(numbered(7))
    assert [len(body["input"]) for _, body in vendor.requests] == [3, 3, 1]


@pytest.mark.parametrize("limit", ["requests_a_minute = 2", "items_a_minute = 4", "tokens_a_minute = 40"])
def test_a_minute_has_no_more_than_the_vendor_allows(limit, rent, vendor, monkeypatch):
    clock, times = Clock(), []
    monkeypatch.setattr(attempts, "RateLimit", partial(RateLimit, clock=clock, sleep=clock.sleep))
    teacher = rent(more=f"tokens_an_image = 10\nimages_a_request = 2\nin_flight = 1\n{limit}")
    assert teacher.forecast("image", [(9, 9)] * 12).seconds == 180
    vendor.always = lambda handler, body: times.append(clock.now)
    teacher.embed_images(numbered(12))
    assert times == [0, 0, 60, 60, 120, 120]


def names_in_turn(*names: str):
    """Return a fault: a gateway that answers under these names in turn, whatever it is asked."""
    turns = itertools.cycle(names)
    return lambda handler, body: changed(lambda answer: answer.update(model=next(turns)))(handler, body)


def test_a_gateway_with_several_names_for_one_model_is_told_of_once(rent, vendor, caplog):
    teacher = rent(more="images_a_request = 1\nin_flight = 3")
    vendor.always = names_in_turn("m-1", "m-1-b", "m-1-c")
    images = numbered(30)
    np.testing.assert_allclose(teacher.embed_images(images), right([i.data for i in images]), atol=1e-6)
    assert set(teacher.budget.statuses()) == {"answered"}
    assert len(vendor.requests) <= 30 + 2 * 2 * 4, "only canaries are asked about again"
    result = [record.getMessage() for record in caplog.records if "one model" in record.getMessage()]
    assert len(result) == 1 and "names its model 'm-1' and 'm-1-" in result[0]
    before = len(vendor.requests)
    teacher.embed_images(images)
    assert len(vendor.requests) == before + 30


@pytest.mark.parametrize("same", ["text", "image", None])
def test_another_model_under_another_name_ends_the_session(same, rent, vendor):
    teacher = rent(more="images_a_request = 1\nin_flight = 1")

    def turned(handler, body):
        if vendor.sold < 3:
            return False

        def another(answer):
            answer["model"] = "m-1-turbo"
            for item in answer["data"] if body["modality"] != same else ():
                item["embedding"] = base64.b64encode(row(b"another")[::-1].tobytes()).decode()

        return changed(another)(handler, body)

    teacher.embed_texts([CANARY_TEXT])
    teacher.embed_images([EncodedImage("canary", CANARY_IMAGE)])
    vendor.always = turned
    with pytest.raises(TeacherError, match="from 'm-1' to 'm-1-turbo' during the session: it embeds a known"):
        teacher.embed_images(numbered(4))
    assert teacher.budget.statuses().count("wrong") == 1


def test_a_model_that_is_never_asked_again_under_its_name_cannot_be_compared(rent, vendor):
    teacher = rent(more="images_a_request = 1\nin_flight = 1")
    vendor.faults = [lambda h, b: False, changed(lambda a: a.update(model="m-1-turbo"))]
    with pytest.raises(TeacherError, match="from 'm-1' to 'm-1-turbo' during the session: and nothing shows whether"):
        teacher.embed_images(numbered(4))


def test_usage_wins_and_the_estimate_learns(rent, vendor):
    more = "tokens_an_image = 2\nimages_a_request = 2\nin_flight = 1"
    teacher = rent("voyage", more=more)
    teacher.limits = teacher.limits.model_copy(update={"price": type(teacher.limits.price)(image_tokens=100.0)})
    teacher.embed_images(numbered(6))
    assert [query.tokens for query in teacher.budget.reserved] == [4, 20, 20], "10 tokens an image, it turned out"
    assert [entry["micro"] for entry in teacher.budget.settled.values()] == [2000, 2000, 2000]


ODD = {"negative": -5, "NaN": float("nan"), "a word": "120", "a fraction": 12.5, "true": True, "a list": [3]}


@pytest.mark.parametrize("figure", ["total_tokens", "micro"])
@pytest.mark.parametrize("name", ODD)
def test_odd_figures_count_as_reserved_and_are_told_of_once(name, figure, rent, vendor, caplog):
    teacher = rent(more="tokens_an_image = 2\nimages_a_request = 2\nin_flight = 1")
    teacher.limits = teacher.limits.model_copy(update={"price": type(teacher.limits.price)(image_tokens=100.0)})
    teacher.embed_images(numbered(2))
    vendor.always = changed(lambda answer: answer["usage"].update({figure: ODD[name]}))
    teacher.embed_images(numbered(6))
    assert [query.micro for query in teacher.budget.reserved] == [400, 2000, 2000, 2000]
    assert [entry["micro"] for entry in teacher.budget.settled.values()] == [2000] * 4
    result = [record for record in caplog.records if "of its usage" in record.getMessage()]
    assert len(result) == 1 and "of its usage" in teacher.budget.settled[3]["note"]


def test_no_tokens_at_all_where_tokens_are_paid_is_odd_too(rent, vendor):
    teacher = rent(more="tokens_an_image = 2")
    teacher.limits = teacher.limits.model_copy(update={"price": type(teacher.limits.price)(image_tokens=100.0)})
    vendor.always = changed(lambda answer: answer["usage"].update(total_tokens=0))
    teacher.embed_images(numbered(2))
    assert teacher.budget.committed == 400


@pytest.mark.parametrize("figure", [10**30, 1e300, 50 * 1000])
def test_a_figure_that_cannot_be_true_ends_the_session_and_what_was_in_flight_is_kept(figure, rent, vendor):
    teacher = rent(more="images_a_request = 1\nin_flight = 4", budget=30_000)
    teacher.embed_images(numbered(1))
    vendor.requests.clear()
    vendor.always, _ = together(vendor, 4)
    held = vendor.always
    vendor.always = lambda h, b: held(h, b) or changed(lambda answer: answer["usage"].update(micro=figure))(h, b)
    got = []
    with pytest.raises(TeacherError, match="can't be trusted, and what was possible is counted; all embeddings are"):
        for answer in teacher.query("image", numbered(40)):
            got += answer.positions
            answer.settle()
    assert len(got) == len(vendor.requests) == 4
    assert teacher.budget.committed == 5000 and set(teacher.budget.statuses()) == {"answered"}


def test_a_first_answer_that_cannot_be_true_counts_as_reserved(rent, vendor):
    teacher = rent(model="m-2", budget=90)
    vendor.always = changed(lambda answer: answer["usage"].update(micro=10**30))
    with pytest.raises(TeacherError, match="its counting can't be trusted"):
        teacher.embed_images(numbered(3))
    assert teacher.budget.committed == 0


def test_an_answer_without_end_is_broken_off(rent, vendor, monkeypatch):
    monkeypatch.setattr(attempts, "TIMEOUT", 0.5)

    def trickling(handler, body):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        with suppress(OSError):
            while True:
                handler.wfile.write(b" ")
                time.sleep(0.05)
        return True

    vendor.faults = [trickling]
    teacher = rent()
    assert len(teacher.embed_images(numbered(2))) == 2
    assert teacher.budget.statuses()[0] == "lost"


@pytest.mark.parametrize("code", [200, 500])
def test_a_body_that_unpacks_to_gigabytes_takes_no_memory(code, rent, vendor):
    bomb = zlib.compressobj(wbits=31)
    packed = b"".join(bomb.compress(bytes(2**20)) for _ in range(128)) + bomb.flush()
    vendor.faults = [lambda h, b: h.answer(code, packed, Content_Encoding="gzip") or True]
    teacher = rent()
    tracemalloc.start()
    try:
        teacher.embed_images(numbered(2))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**25
    assert teacher.budget.statuses() == ["wrong" if code == 200 else "lost", "answered"]


def test_packed_answers_are_understood(rent, vendor):
    def packed(handler, body):
        content = zlib.compress(json.dumps(handler.made(body)).encode(), wbits=31)
        return handler.answer(200, content, Content_Encoding="gzip") or True

    vendor.always = packed
    images = numbered(2)
    np.testing.assert_allclose(rent().embed_images(images), right([i.data for i in images]), atol=1e-6)
    vendor.faults = [lambda h, b: h.answer(200, b"?", Content_Encoding="br") or True]
    assert len(rent().embed_images(images)) == 2


def test_what_the_budget_does_not_allow_does_not_wait_for_its_turn(rent, vendor, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(attempts, "RateLimit", partial(RateLimit, clock=clock, sleep=clock.sleep))
    more = "tokens_an_image = 10\nimages_a_request = 1\nin_flight = 4\ntokens_a_minute = 10"
    teacher = rent(more=more, budget=2000)
    with pytest.raises(BudgetReached):
        teacher.embed_images(numbered(12))
    assert vendor.sold == 2 and clock.now == 60, "the second image has its turn after a minute"


def test_another_thread_can_end_what_is_being_asked(rent, vendor):
    vendor.always = status(503, Retry_After="600")
    teacher = rent()
    said: list[str] = []

    def ask() -> None:
        try:
            teacher.embed_texts(["a"])
        except TeacherError as error:
            said.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    while not teacher.budget.settled:
        thread.join(0.01)
    teacher.stop()
    thread.join(60)
    assert not thread.is_alive() and "stopped: nothing more was sent; the bill so far: 0 millionths" in said[0]
    assert len(vendor.requests) == 1 and set(teacher.budget.statuses()) == {"rejected"}


def test_an_answer_that_is_useless_twice_is_not_asked_for_under_the_same_key(rent, vendor):
    replies: dict[str, bytes] = {}

    def remembers(handler, body):
        key = handler.headers["Idempotency-Key"]
        if key not in replies:
            answer = handler.made(body)
            if not replies:
                put(answer, 0, [float("nan")] * DIM)
            replies[key] = json.dumps(answer).encode()
        return handler.answer(200, replies[key]) or True

    vendor.always = remembers
    teacher = rent()
    assert len(teacher.embed_images(numbered(1))) == 1
    assert teacher.budget.statuses() == ["wrong", "wrong", "answered"] and len(replies) == 2


def test_the_key_is_nowhere_to_be_seen(rent, vendor, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    seen = [repr(teacher := rent())]
    vendor.always = status(401, {"error": {"message": f"the key {KEY} is wrong"}})
    for trouble in (status(401, {"error": {"message": f"the key {KEY} is wrong"}}), cut, status(500, KEY.encode())):
        vendor.always = trouble
        try:
            teacher.embed_texts(["a"])
        except TeacherError as error:
            seen += [str(error), repr(error)]
            seen += traceback.TracebackException.from_exception(error, capture_locals=True).format()
            assert error.__context__ is None or not isinstance(error.__context__, httpx2.HTTPError)
    seen += [caplog.text, *capsys.readouterr(), json.dumps([e["note"] for e in teacher.budget.settled.values()])]
    assert len(seen) > 9 and not [text for text in seen if KEY in text]


def test_a_key_from_a_file_that_others_cannot_read(rent, monkeypatch, tmp_path, vendor):
    teacher = rent("jina")
    monkeypatch.delenv("JINA_API_KEY")
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    monkeypatch.setenv("JINA_API_KEY_FILE", str(file))
    os.chmod(file, 0o644)
    with pytest.raises(ConfigError, match=r"JINA_API_KEY_FILE: others can read .*; chmod 600 it"):
        teacher.embed_texts(["a"])
    os.chmod(file, 0o600)
    teacher.embed_texts(["a"])
    assert vendor.requests[0][0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("jina:", "write it as jina:MODEL, or URL#MODEL"),
        ("openai-compatible:m", "write it as openai-compatible:URL#MODEL"),
        ("openai-compatible:ftp://x#m", "write it as"),
        ("jina:m?size=3", "unknown option 'size'; there is"),
    ],
)
def test_specs_that_say_too_little(spec, words):
    with pytest.raises(TeacherError, match=words):
        open_teacher(spec)


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        ("voyage:voyage-multimodal-3", {(100, 100): 90, (1000, 1000): 1786, (4000, 4000): 3572}),
        ("cohere:embed-v4.0", {(227, 227): 1639, (512, 512): 1639, (1000, 1000): 6250, (4000, 4000): 15367}),
        ("jina:jina-clip-v2", {(227, 227): 4000, (512, 513): 8000, (2000, 1000): 32_000}),
    ],
)
def test_the_tokens_of_an_image_are_as_the_vendor_counts_them(spec, sizes, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    teacher = open_teacher(spec)
    assert {size: teacher.forecast("image", [size]).tokens for size in sizes} == sizes
    assert teacher.forecast("text", [(len("zoë".encode()), 1)]).tokens == 12


def test_a_price_that_nobody_published_is_called_unverified_until_it_is_ones_own(monkeypatch, tmp_path):
    table = tmp_path / "vendors.toml"
    monkeypatch.setenv("VL2V_VENDORS", str(table))
    table.write_text("[jina]\nin_flight = 50\n")
    assert open_teacher("jina:jina-clip-v2").doubt.startswith("price and tokens of an image not found in public")
    assert open_teacher("voyage:voyage-multimodal-3").doubt == ""
    table.write_text('[jina.models."jina-clip-v2"]\nprice = { image_tokens = 0.02 }\n')
    teacher = open_teacher("jina:jina-clip-v2")
    assert teacher.doubt == "" and teacher.dim == 1024
    assert teacher.forecast("image", [(500, 500)] * 1000).micro == 80_000
    table.write_text("[jina]\nprice = { image = 1 }\n[openai-compatible]\nprice = { image = 0.5 }\n")
    assert open_teacher("jina:jina-clip-v2").doubt, "the model's price is still the table's"
    assert open_teacher("openai-compatible:http://127.0.0.1:1#m").doubt == ""


def test_another_treatment_of_images_is_another_teacher(rent):
    plain, faster = rent(), rent(more="in_flight = 3\nrequests_a_minute = 7")
    assert plain.fingerprint == faster.fingerprint
    for more in ("image_pixels = 4000", "image_bytes = 4000", 'formats = ["PNG"]'):
        assert rent(more=more).fingerprint != plain.fingerprint


def test_a_wrong_entry_in_the_table(rent):
    with pytest.raises(TeacherError, match=r"vendors\.toml: jina\.in_flight: must be greater than"):
        rent("jina", more="in_flight = 0")


def test_images_are_sent_as_they_are_where_that_is_clear():
    for data in (encoded(1), encoded(1, form="JPEG"), encoded(1, "L", "JPEG")):
        assert prepare(data, ("JPEG", "PNG"), 10**6, 10**6).data is data
    exif = Image.Exif()
    exif[0x0112] = 6
    unclear = {
        "rotated": encoded(1, form="JPEG", exif=exif),
        "CMYK": encoded(1, "CMYK", "JPEG"),
        "palette": encoded(1, "P", "PNG"),
        "alpha": encoded(1, "RGBA", "PNG"),
        "16 bits": encoded(1, "I;16", "PNG") if hasattr(Image, "I16") else encoded(1, "1", "PNG"),
        "BMP": encoded(1, form="BMP"),
        "animated": encoded(1, "P", "GIF"),
    }
    for name, data in unclear.items():
        sent = prepare(data, ("JPEG", "PNG"), 10**6, 10**6)
        assert sent.data is not data and sent.mime == "image/png", name
        assert Image.open(io.BytesIO(sent.data)).mode == "RGB", name


def test_images_are_made_to_fit():
    large = encoded(1, size=300)
    small = prepare(large, ("JPEG", "PNG"), 10**6, 100 * 100)
    assert (small.width, small.height) == (100, 100) and small.mime == "image/png"
    light = prepare(large, ("JPEG", "PNG"), 60_000, 10**6)
    assert light.mime == "image/jpeg" and len(light.data) <= 60_000
    tiny = prepare(large, ("JPEG", "PNG"), 2_000, 10**6)
    assert len(tiny.data) <= 2_000 and tiny.width < 300


def test_a_self_made_certificate_is_told_of_and_can_be_trusted(tmp_path, monkeypatch):
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([*made, *names, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server = Vendor(context)
    monkeypatch.setenv("VL2V_API_KEY", KEY)
    spec = f"openai-compatible:{server.url.replace('http:', 'https:')}#m"
    teacher = open_teacher(spec)
    teacher.budget = Budget()
    with pytest.raises(TeacherError, match=r"its certificate isn't trusted \(.*self.signed.*SSL_CERT_FILE") as error:
        teacher.embed_texts(["a"])
    assert "\n" not in str(error.value) and set(teacher.budget.statuses()) == {"rejected"} and not server.requests
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    trusting = open_teacher(spec)
    trusting.budget = Budget()
    assert trusting.embed_texts(["a"]).shape == (1, DIM)
    server.shutdown()


def test_images_are_scaled_to_the_sides_that_a_vendor_takes() -> None:
    def side(width: int, height: int) -> tuple[int, int]:
        buffer = io.BytesIO()
        Image.new("RGB", (width, height)).save(buffer, "PNG")
        sent = prepare(buffer.getvalue(), ("JPEG", "PNG"), 10**6, 10**6, (11, 1000))
        assert Image.open(io.BytesIO(sent.data)).size == (sent.width, sent.height)
        return sent.width, sent.height

    assert side(64, 48) == (64, 48)
    assert side(5, 10) == (11, 22)
    assert side(2000, 400) == (1000, 200)
    assert side(2000, 3) == (1000, 11)


@pytest.mark.parametrize(
    ("spec", "words", "fits"),
    [
        ("azure-vision:https://a.example#2023-04-15", 70, True),
        ("azure-vision:https://a.example#2023-04-15", 71, False),
        ("gemini:gemini-embedding-2", 8192, True),
        ("gemini:gemini-embedding-2", 8193, False),
        ("jina:jina-clip-v2", 8192, True),
        ("jina:jina-clip-v2", 8193, False),
    ],
)
def test_texts_longer_than_a_vendor_documents_are_refused_before_the_first_query(
    spec: str, words: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZURE_VISION_KEY", "GEMINI_API_KEY", "JINA_API_KEY"):
        monkeypatch.setenv(name, "k")
    text, teacher = " ".join(["word"] * words), open_teacher(spec)
    if fits:
        assert not check_prompts(["one", "two"], [["a"], [text]], teacher)
        return
    with pytest.raises(ConfigError, match=f"class 'two': .* too long \\({words} words.*prompts.overrides.two"):
        check_prompts(["one", "two"], [["a"], [text]], teacher)
