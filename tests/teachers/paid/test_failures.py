"""Teachers behind an API that refuses, breaks off, or does not answer at all."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
import pytest

from vl2v.embeddings.fetch import fetch_texts
from vl2v.embeddings.schema import text_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import StoreError, TeacherError
from vl2v.teachers.paid import attempts
from vl2v.teachers.paid.limits import RateLimit
from vl2v.teachers.paid.line import Reply, retry_after
from vl2v.teachers.paid.teacher import Embedded, Refused
from vl2v.teachers.protocol import EncodedImage

from .helpers import KINDS, changed, cut, encoded, numbered, put, right, status, together
from .test_rate_limit import Clock
from .vendor import DIM, KEY, Budget

pytestmark = pytest.mark.usefixtures("quick_retries")

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
def test_what_goes_wrong_is_requested_again_and_stays_on_the_bill(name, rent, vendor):
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
    monkeypatch.setattr("vl2v.teachers.paid.line.time", lambda: 1_800_000_000.0)
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
