"""What is paid for is saved before anything else happens; a stand-in vendor in this process keeps count."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vl2v.data import audit, open_dataset
from vl2v.embeddings.bill import LedgerBudget
from vl2v.embeddings.fetch import fetch, fetch_texts
from vl2v.embeddings.ledger import Ledger
from vl2v.embeddings.plan import Views, plan
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import TeacherError
from vl2v.teachers.paid.teacher import (
    CANARY_IMAGE,
    CANARY_SIZE,
    CANARY_TEXT,
    BudgetReached,
    Embedded,
    Forecast,
    Query,
    Refused,
)

PRICE = 10


class Vendor:
    """A paid teacher that answers two at a time, the later one first, and refuses one image."""

    name, fingerprint, dim, logit_scale, currency = "vendor:m", "v" * 32, 8, None, "USD"
    doubt = ""

    def __init__(self) -> None:
        self.budget: LedgerBudget | None = None
        self.queried: list[str | bytes] = []
        self.refuses = ""
        self.model = 0

    def row(self, content: bytes) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") + self.model
        row = np.random.default_rng(seed).standard_normal(self.dim).astype(np.float32)
        return row / np.linalg.norm(row)

    def forecast(self, kind, sizes):
        count = len(list(sizes))
        return Forecast(-(-count // 2), 0, PRICE * count, 0.0)

    def query(self, kind, items) -> Iterator[Embedded | Refused]:
        queue = list(enumerate(items))
        for start in range(0, len(queue), 2):
            pair = queue[start : start + 2]
            good = [(i, item) for i, item in pair if getattr(item, "name", "") != self.refuses or not self.refuses]
            number = self.budget.reserve(Query(kind, len(good), 0, PRICE * len(good)))
            contents = [item.encode() if isinstance(item, str) else item.data for _, item in good]
            self.queried += contents
            vectors = np.stack([self.row(content) for content in contents][::-1])
            yield Embedded(tuple(i for i, _ in good)[::-1], vectors, lambda n=number: self.budget.settle(n, "answered"))
            for position, item in pair:
                if (position, item) not in good:
                    yield Refused(position, "too ugly")


@pytest.fixture
def images(tmp_path: Path):
    draw = np.random.default_rng(0)
    for domain in ("photo", "sketch"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / domain / name).mkdir(parents=True)
            for i in range(3):
                pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / domain / name / f"{i}.png")
    return open_dataset(tmp_path / "images")


@pytest.fixture
def store(tmp_path: Path):
    with EmbeddingStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger(tmp_path / "store") as opened:
        yield opened


def ask(vendor: Vendor, store: EmbeddingStore, ledger: Ledger, images, budget: int = 10_000):
    vendor.budget = LedgerBudget(ledger, vendor.name, "USD", budget, "test")
    queries = plan(store, vendor, images, audit(images), ["a cat", "a dog"], Views())
    seen: list[tuple[int, int]] = []
    refused = fetch(queries, store, vendor, lambda task, done, total, remark: seen.append((done, total)))
    return refused, seen


def test_every_embedding_is_saved_paid_and_never_queried_for_again(store, ledger, images) -> None:
    vendor = Vendor()
    refused, seen = ask(vendor, store, ledger, images)
    assert refused == [] and seen[0] == (0, 14) and seen[-1] == (14, 14)
    assert ledger.committed(vendor.name) == PRICE * (12 + 2 + 2), "and the canaries"
    assert {entry.status for entry in ledger.entries()} == {"answered"}
    found = audit(images)
    from vl2v.embeddings.schema import image_key

    kept = store.get(vendor.fingerprint, [image_key(sha256) for sha256 in found.sha256])
    expected = np.stack([vendor.row(images.read(i)) for i in range(12)])
    np.testing.assert_allclose(kept, expected, atol=1e-3)
    queried = len(vendor.queried)
    assert ask(vendor, store, ledger, images)[1] == []
    assert len(vendor.queried) == queried


def test_at_the_budget_all_embeddings_are_saved_and_more_money_goes_on(store, ledger, images) -> None:
    vendor = Vendor()
    with pytest.raises(BudgetReached, match="all embeddings are saved: raise --budget"):
        ask(vendor, store, ledger, images, budget=PRICE * 9)
    assert ledger.committed(vendor.name) == PRICE * 8 == PRICE * len(vendor.queried)
    ask(vendor, store, ledger, images, budget=PRICE * 100)
    queries = [content for content in vendor.queried if content not in (CANARY_IMAGE, CANARY_TEXT.encode())]
    assert len(queries) == len(set(queries)) == 14


def test_a_refused_image_is_listed_and_the_rest_answered(store, ledger, images) -> None:
    vendor = Vendor()
    vendor.refuses = "photo/dog/1.png"
    refused, seen = ask(vendor, store, ledger, images)
    assert [(refusal.path, refusal.reason) for refusal in refused] == [("photo/dog/1.png", "too ugly")]
    assert seen[-1] == (14, 14)
    vendor.refuses = ""
    assert ask(vendor, store, ledger, images)[1][-1] == (1, 1)


def test_another_model_under_the_same_name_is_found_out(store, ledger, images) -> None:
    vendor = Vendor()
    with pytest.raises(BudgetReached):
        ask(vendor, store, ledger, images, budget=PRICE * 9)
    vendor.model = 1
    with pytest.raises(TeacherError, match=r"embeds a cached text differently than before \(cosine"):
        ask(vendor, store, ledger, images)


def test_texts_alone_are_bought_as_carefully(store, ledger) -> None:
    vendor = Vendor()
    vendor.budget = LedgerBudget(ledger, vendor.name, "USD", 1000, "test")
    fetch_texts(store, vendor, ["a cat", "a dog", "a cow"])
    assert ledger.committed(vendor.name) == PRICE * (3 + 2), "and the canaries"
    fetch_texts(store, vendor, ["a cat"])
    assert len(vendor.queried) == 5
    vendor.model = 1
    with pytest.raises(TeacherError, match="embeds a cached text differently"):
        fetch_texts(store, vendor, ["a hen"])


def test_a_wrong_first_embedding_leaves_nothing_behind(store, ledger, images) -> None:
    vendor = Vendor()
    vendor.dim = 7  # of the text canary; what comes after has 8
    query = vendor.query

    def once_wrong(kind, items):
        yield from query(kind, items)
        vendor.dim = 8

    vendor.query = once_wrong
    with pytest.raises(TeacherError, match=r"1 embeddings of 8 numbers were due, the shape is \(1, 7\)"):
        ask(vendor, store, ledger, images)
    assert {entry.status for entry in ledger.entries()} == {"answered"}, "they are paid for"
    assert store.queries() == []
    assert ask(vendor, store, ledger, images)[1][-1] == (14, 14)


def test_the_canary_is_an_image() -> None:
    assert Image.open(io.BytesIO(CANARY_IMAGE)).size == CANARY_SIZE
