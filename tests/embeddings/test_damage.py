"""A damaged store never gives a wrong embedding, and never loses one without a word: it would be paid for again."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from stores import sql
from vl2v.embeddings.ledger import Ledger
from vl2v.embeddings.rows import FILE_NAME
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import StoreError
from vl2v.teachers.paid.teacher import Query

from .test_store import ONE, TWO, Facts, some_keys, unit_rows

COUNT = 400
EARLIER = Path(__file__).parents[1] / "formats" / "v1"
VECTORS = {ONE.fingerprint: unit_rows(COUNT, seed=1), TWO.fingerprint: unit_rows(COUNT, seed=2)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two teachers' embeddings of the same texts, large enough for pages of every kind."""
    folder = tmp_path_factory.mktemp("whole")
    with EmbeddingStore(folder) as store:
        for teacher in (ONE, TWO):
            store.register(teacher)
            for start in range(0, COUNT, 100):
                rows = VECTORS[teacher.fingerprint][start : start + 100]
                store.put(teacher.fingerprint, some_keys(100, start), rows, kind="text")
        store.repair()  # the index is in the large table
    sql(store.file, "PRAGMA wal_checkpoint(TRUNCATE)")
    return folder


def losses(folder: Path, *, read_only: bool) -> int:
    """Return how often a store says that something is damaged; fail if it hides a loss."""
    errors = 0
    try:
        store = EmbeddingStore(folder, read_only=read_only)
    except StoreError:
        return 1
    with store:
        for fingerprint, vectors in VECTORS.items():
            try:
                assert store.cached(fingerprint, some_keys(COUNT)).all(), "embeddings are missing, and nothing is said"
                found = store.get_half(fingerprint, some_keys(COUNT))
                store.check(fingerprint)
            except StoreError as error:
                assert "\n" not in str(error)
                errors += 1
            else:
                np.testing.assert_array_equal(found, vectors.astype(np.float16))
    return errors


@pytest.mark.parametrize("seed", range(6))
def test_no_flipped_bit_and_no_cut_gives_a_wrong_embedding_or_hides_a_loss(
    seed: int, whole: Path, tmp_path: Path
) -> None:
    luck, intact = random.Random(seed), (whole / FILE_NAME).read_bytes()
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    result = 0
    for attempt in range(40):
        data = bytearray(intact)
        start = luck.randrange(len(data))
        match attempt % 4:
            case 0:
                data[start] ^= 1 << luck.randrange(8)
            case 1:
                data[start : start + 64] = luck.randbytes(64)
            case 2:
                data[start : start + 512] = bytes(512)
            case 3:
                data = data[: max(1, start)]
        (tmp_path / FILE_NAME).write_bytes(data[: len(intact)])
        for name in ("-wal", "-shm"):
            (tmp_path / (FILE_NAME + name)).unlink(missing_ok=True)
        result += losses(tmp_path, read_only=bool(attempt % 3)) > 0
    assert result > 5


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE teachers SET fingerprint = 'other' WHERE id = 1",
        "UPDATE teachers SET dim = 12 WHERE id = 2",
        "UPDATE teachers SET same_as = 1 WHERE id = 2",
        "UPDATE teachers SET answers = 7",
        "DELETE FROM teachers WHERE id = 1",
        "DELETE FROM teachers",
        "UPDATE questions SET teacher = 2 WHERE id = 1",
        "DELETE FROM questions WHERE id = 3",
        "UPDATE answers SET question = 5 WHERE id = 17",
        "UPDATE answers SET key = (SELECT key FROM answers WHERE id = 18) WHERE id = 17",
        "UPDATE answers SET vector = (SELECT vector FROM answers WHERE id = 18) WHERE id = 17",
        "UPDATE answers SET key = zeroblob(16) WHERE id = 17",
        "DELETE FROM answers WHERE id = 17",
        "DELETE FROM answers WHERE id > 700",
        "UPDATE places SET teacher = 3 - teacher",
        "UPDATE places SET half_key = half_key + 1 WHERE answer = 9",
        "UPDATE OR REPLACE places SET answer = 10 WHERE answer = 9",
        "DELETE FROM places WHERE answer = 9",
        "DELETE FROM places",
    ],
)
def test_no_changed_field_does(change: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    with sqlite3.connect(tmp_path / FILE_NAME) as file:
        assert file.execute(change).rowcount > 0
    file.close()
    assert losses(tmp_path, read_only=True) > 0


def test_what_is_lost_is_counted_and_repair_saves_the_rest(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    with sqlite3.connect(tmp_path / FILE_NAME) as file:
        file.execute("DELETE FROM places WHERE answer = 9")
        file.execute("DELETE FROM answers WHERE id = 17")
        file.execute("UPDATE answers SET vector = zeroblob(48) WHERE id = 18")
        file.execute("DELETE FROM questions WHERE teacher = 2")
    file.close()
    with EmbeddingStore(tmp_path) as store:
        with pytest.raises(StoreError, match=r"3 of 400 embeddings of tiny:one are lost or damaged"):
            store.cached(ONE.fingerprint, some_keys(COUNT))
        with pytest.raises(StoreError, match=r"400 of 400 embeddings of tiny:two"):
            store.check(TWO.fingerprint)
        assert store.repair() == 1
        known = store.cached(ONE.fingerprint, some_keys(COUNT))
        assert np.flatnonzero(~known).tolist() == [16, 17]
        store.put(ONE.fingerprint, some_keys(2, 16), VECTORS[ONE.fingerprint][16:18], kind="text")
    assert losses(tmp_path, read_only=True) == 0


def test_a_store_of_version_1_is_read_and_becomes_one_of_today(tmp_path: Path) -> None:
    shutil.copytree(EARLIER / "store", tmp_path, dirs_exist_ok=True)
    with EmbeddingStore(tmp_path, read_only=True) as old:
        (teacher,) = old.teachers()
        keys = [key for key, *_ in old.keys(teacher.fingerprint)]
        before = old.get_half(teacher.fingerprint, keys)
    for _ in range(2):
        with EmbeddingStore(tmp_path) as new:
            assert sql(new.file, "PRAGMA user_version") == [(3,)]
            np.testing.assert_array_equal(new.get_half(teacher.fingerprint, keys), before)
            assert not new.cached(teacher.fingerprint, [bytes(16)])[0]  # and nothing is said to be lost
    with EmbeddingStore(tmp_path) as new:
        sql(new.file, "UPDATE answers SET crc = crc + 1 WHERE id = 1")
        with pytest.raises(StoreError, match="fail their checksum"):
            new.get_half(teacher.fingerprint, keys)


def test_a_store_of_version_2_is_read_and_names_its_views_from_then_on(tmp_path: Path) -> None:
    shutil.copytree(EARLIER.with_name("v2") / "store", tmp_path, dirs_exist_ok=True)
    with EmbeddingStore(tmp_path, read_only=True) as old:
        assert old.views() is None and [kind for _, kind, _ in old.keys("0123")].count("image") == 4
        keys = [key for key, _, _ in old.keys("0123")]
        before = old.get_half("0123", keys)
    with EmbeddingStore(tmp_path) as new:
        np.testing.assert_array_equal(new.get_half("0123", keys), before)
        new.put("0123", [bytes(16)], np.eye(1, 8, dtype=np.float32), kind="image", views=["clean"])
        assert new.views() is None  # of four images it can't be known
        assert [view for _, _, view in new.keys("0123")] == ["", "", "", "", "", "", "clean"]
        with EmbeddingStore(tmp_path / "other") as other, other.absorbing(new):
            pass
    with EmbeddingStore(tmp_path / "other", read_only=True) as other:
        assert other.views() is None and other.keys("0123")[-1] == (bytes(16), "image", "clean")


def test_a_new_store_names_its_views(tmp_path: Path) -> None:
    with EmbeddingStore(tmp_path) as store:
        store.register(ONE)
        store.put(ONE.fingerprint, some_keys(2), VECTORS[ONE.fingerprint][:2], kind="image", views=["clean", "a/48"])
        store.put(ONE.fingerprint, some_keys(1, 2), VECTORS[ONE.fingerprint][2:3], kind="text")
        assert store.views() == {"clean", "a/48"}
        assert [row[1:] for row in store.keys(ONE.fingerprint)] == [("image", "clean"), ("image", "a/48"), ("text", "")]


def test_a_store_that_is_gone_beside_its_ledger_is_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.settle(ledger.reserve("jina:m", "runs/a", "USD", Query("image", 7, 70, 9), None), "answered", 70, 9)
    (tmp_path / FILE_NAME).write_bytes(b"")
    EmbeddingStore(tmp_path).close()
    assert "7 embeddings were paid for" in caplog.text
    caplog.clear()
    EmbeddingStore(tmp_path).close()
    assert not caplog.text


class Spelt(Facts):
    """A teacher whose address had other spellings."""

    def was_spelt(self, name: str, fingerprint: str) -> bool:
        return (name, fingerprint) == (TWO.name, TWO.fingerprint)


@pytest.mark.parametrize("read_only", [False, True])
def test_what_stands_under_another_spelling_is_found_under_both(tmp_path: Path, read_only: bool) -> None:
    with EmbeddingStore(tmp_path) as store:
        store.register(TWO)
        store.put(TWO.fingerprint, some_keys(10), unit_rows(10), kind="text")
    with EmbeddingStore(tmp_path, read_only=read_only) as store:
        store.recognise(Spelt())
        assert store.cached(ONE.fingerprint, some_keys(10)).all()
    with EmbeddingStore(tmp_path) as store:
        store.register(Spelt())
        store.put(ONE.fingerprint, some_keys(10, 5), unit_rows(10), kind="text")
        assert len(store.get(ONE.fingerprint, some_keys(15))) == 15
    with EmbeddingStore(tmp_path, read_only=True) as store:  # a run that knows the old one only
        np.testing.assert_array_equal(
            store.get(TWO.fingerprint, some_keys(15)), store.get(ONE.fingerprint, some_keys(15))
        )
        assert store.cached(ONE.fingerprint, some_keys(20)).sum() == 15


@pytest.mark.parametrize("change", ["micro = 1", "balance = 1", "teacher = 'b'", "status = 'lost', query = 1"])
def test_a_changed_entry_of_the_ledger_is_noticed(change: str, tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.settle(ledger.reserve("jina:m", "runs/a", "USD", Query("image", 7, 70, 9), None), "answered", 70, 8)
        assert ledger.committed("jina:m") == 8 and len(ledger.entries()) == 1
        sql(tmp_path / "ledger.sqlite", "DROP TRIGGER fixed", f"UPDATE entries SET {change} WHERE id = 2")
        with pytest.raises(StoreError, match="is damaged"):
            ledger.entries()
