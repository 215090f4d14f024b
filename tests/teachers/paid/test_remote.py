"""Teachers behind an API: prices, budgets and requests, against a real server on loopback."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vl2v.embeddings.bill import Cost
from vl2v.errors import TeacherError
from vl2v.teachers import open_teacher
from vl2v.teachers.paid.teacher import BudgetReached
from vl2v.teachers.protocol import EncodedImage

from .helpers import KINDS, changed, encoded, numbered, right, together
from .vendor import DIM, KEY, Budget

pytestmark = pytest.mark.usefixtures("quick_retries")


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


def test_nothing_is_queried_without_a_budget_or_a_price(rent, vendor):
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


def test_a_vendor_that_lists_its_prices_is_believed_before_anything_is_queried(rent, vendor):
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


def test_a_server_that_cannot_be_reached_gave_no_prices(monkeypatch, tmp_path):
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
