"""Stores that were filled apart become one: nothing lost, nothing counted twice, nothing contradictory."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vl2v.cli.app import app
from vl2v.embeddings.bill import LedgerBudget
from vl2v.embeddings.ledger import Ledger
from vl2v.embeddings.maintain import merge
from vl2v.embeddings.schema import text_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import StoreError
from vl2v.teachers.paid.teacher import Query


@dataclass(frozen=True)
class Facts:
    name: str = "vendor:a"
    fingerprint: str = "0123456789abcdef"
    dim: int = 24
    logit_scale: float | None = 20.0


ONE, TWO = Facts(), Facts("vendor:b", "fedcba9876543210", 8)
DRAWN = np.random.default_rng(0).standard_normal((3000, 24))


def rows(numbers: Sequence[int], dim: int = 24) -> np.ndarray:
    return DRAWN[numbers, :dim] / np.linalg.norm(DRAWN[numbers, :dim], axis=1, keepdims=True)


def keys(numbers: Sequence[int]) -> list[bytes]:
    return [text_key(f"text {number}") for number in numbers]


def fill(path: Path, numbers: Sequence[int], teacher: Facts = ONE, of: Sequence[int] | None = None) -> Path:
    """Save the embeddings of some queries; `of`: those of other ones instead."""
    with EmbeddingStore(path) as store:
        store.register(teacher)
        store.put(teacher.fingerprint, keys(numbers), rows(of or numbers, teacher.dim), kind="text")
    return path


def contents(path: Path) -> dict[str, list[object]]:
    """Return all that a store and its ledger have, without their own numbers."""
    found: dict[str, list[object]] = {}
    with EmbeddingStore(path, read_only=True) as store:
        found["questions"] = sorted((q.asked_at, q.teacher, q.kind, q.count) for q in store.queries())
        for teacher in store.teachers():
            known = [i for i in range(3000) if store.cached(teacher.fingerprint, keys([i]))[0]]
            found[teacher.name] = [known, store.get_half(teacher.fingerprint, keys(known)).tobytes()]
    with Ledger(path) as ledger:
        found["bill"] = sorted(entry.row() for entry in ledger.entries())
    return found


def test_what_two_nodes_queried_is_in_one_store_and_again_changes_nothing(tmp_path: Path) -> None:
    first, second = fill(tmp_path / "a", range(2500)), fill(tmp_path / "b", range(2400, 3000))
    fill(second, range(10), TWO)
    into = tmp_path / "all"
    assert [merge(first, into).embeddings, merge(second, into).embeddings] == [2500, 510]
    whole = contents(into)
    assert whole["vendor:a"] == [list(range(3000)), rows(range(3000)).astype(np.float16).tobytes()]
    assert whole["vendor:b"] == [list(range(10)), rows(range(10), 8).astype(np.float16).tobytes()]
    assert [(teacher, count) for _, teacher, _, count in whole["questions"]] == [
        ("vendor:a", 2500),
        ("vendor:a", 600),
        ("vendor:b", 10),
    ]
    assert merge(first, into).embeddings == merge(second, into).embeddings == 0 and contents(into) == whole
    fill(first, range(2990, 3000))  # it grew: ten answers that are known elsewhere, and the question that brought them
    assert merge(first, into).embeddings == 0
    assert [count for *_, count in contents(into)["questions"]] == [2500, 600, 10, 10]


def test_every_paid_query_is_on_the_bill_once(tmp_path: Path) -> None:
    shards = [fill(tmp_path / name, [number]) for number, name in enumerate("ab")]
    for shard in shards:
        with Ledger(shard) as ledger:
            spending = LedgerBudget(ledger, "vendor:a", "USD", None, f"runs/{shard.name}")
            spending.settle(spending.reserve(Query("image", 1, 10, 60)), "answered", micro=30, model="m-1")
            spending.settle(spending.reserve(Query("text", 1, 10, 20)), "rejected")
            spending.reserve(Query("image", 1, 10, 60))  # in flight, or killed
    into = tmp_path / "all"
    assert [merge(shard, into).queries for shard in (*shards, *shards)] == [3, 3, 0, 0]
    with Ledger(shards[0]) as ledger:
        LedgerBudget(ledger, "vendor:a", "USD", None, "runs/a").settle(5, "answered", micro=50, model="m-1")
    assert merge(shards[0], into).queries == 0  # how the open one ended comes after
    with Ledger(into) as ledger:
        assert ledger.committed("vendor:a") == 30 + 50 + 30 + 60 == sum(entry.micro for entry in ledger.entries())
        assert [e.status for e in ledger.entries("runs/a")] == ["answered", "rejected", "answered"]
        assert [e.status for e in ledger.entries("runs/b")] == ["answered", "rejected", "reserved"]


def test_embeddings_that_contradict_each_other_are_refused_whole(tmp_path: Path) -> None:
    into = fill(tmp_path / "all", range(100))
    other = fill(tmp_path / "other", range(90, 1500), of=[90, 7, *range(92, 1500)])
    with Ledger(other) as ledger:
        ledger.reserve("vendor:a", "runs/a", "USD", Query("image", 1, 1, 9), None)
    before = contents(into)
    result = CliRunner().invoke(app, ["store", "merge", str(other), "--into", str(into)])
    assert isinstance(result.exception, StoreError) and "\n" not in str(result.exception)
    assert "1 embeddings of vendor:a differ" in str(result.exception) and keys([91])[0].hex() in str(result.exception)
    assert contents(into) == before


def test_rounding_is_no_contradiction_and_the_first_embedding_stays(tmp_path: Path) -> None:
    into, other = fill(tmp_path / "all", [0]), tmp_path / "other"
    with EmbeddingStore(other) as store:
        store.register(ONE)
        close = rows([0]) + 1e-3
        store.put(ONE.fingerprint, keys([0]), close / np.linalg.norm(close), kind="text")
    before = contents(into)["vendor:a"]
    assert merge(other, into).embeddings == 0 and contents(into)["vendor:a"] == before != contents(other)["vendor:a"]


def test_damage_is_not_spread(tmp_path: Path) -> None:
    other = fill(tmp_path / "other", range(10))
    with sqlite3.connect(other / "answers.sqlite") as db:
        db.execute("UPDATE answers SET crc = crc + 1 WHERE id = 4")
    with pytest.raises(StoreError, match=r"other.*1 of 10 embeddings of vendor:a fail their checksum"):
        merge(other, tmp_path / "all")
    with EmbeddingStore(tmp_path / "all") as store:
        assert not store.cached(ONE.fingerprint, keys(range(10))).any() and not store.queries()


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no embedding store here"):
        merge(tmp_path / "nothing", tmp_path / "all")
    with pytest.raises(StoreError, match="can't be merged into itself"):
        merge(fill(tmp_path / "a", [1]), tmp_path / "a" / ".." / "a")
    fill(tmp_path / "b", [1], Facts(dim=8))
    with pytest.raises(StoreError, match="give it a store of its own"):
        merge(tmp_path / "b", tmp_path / "a")
