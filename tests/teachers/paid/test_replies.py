"""Teachers behind an API whose replies are odd: another model, wrong figures, no end."""

from __future__ import annotations

import base64
import itertools
import json
import threading
import time
import tracemalloc
import zlib
from contextlib import suppress
from functools import partial

import numpy as np
import pytest

from vl2v.errors import TeacherError
from vl2v.teachers.paid import attempts
from vl2v.teachers.paid.limits import RateLimit
from vl2v.teachers.paid.teacher import CANARY_IMAGE, CANARY_TEXT, BudgetReached
from vl2v.teachers.protocol import EncodedImage

from .helpers import changed, numbered, put, right, status, together
from .test_rate_limit import Clock
from .vendor import DIM, row

pytestmark = pytest.mark.usefixtures("quick_retries")


def names_in_turn(*names: str):
    """Return a fault: a gateway that answers under these names in turn, whatever it is asked."""
    turns = itertools.cycle(names)
    return lambda handler, body: changed(lambda answer: answer.update(model=next(turns)))(handler, body)


def test_a_gateway_with_several_names_for_one_model_is_reported_once(rent, vendor, caplog):
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


def test_a_model_that_is_never_queried_again_under_its_name_cannot_be_compared(rent, vendor):
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
def test_odd_figures_count_as_reserved_and_are_reported_once(name, figure, rent, vendor, caplog):
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


def test_another_thread_can_end_what_is_being_queried(rent, vendor):
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
