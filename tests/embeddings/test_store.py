from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import stores
from stores import sql, writing
from vl2v.embeddings import rows as rows_module
from vl2v.embeddings.schema import image_key, text_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import StoreError

DIM = 24


@dataclass(frozen=True)
class Facts:
    name: str = "tiny:one"
    fingerprint: str = "0123456789abcdef"
    dim: int = DIM
    logit_scale: float | None = 20.0


ONE = Facts()
TWO = Facts(name="tiny:two", fingerprint="fedcba9876543210")


def unit_rows(n: int, seed: int = 0, dim: int = DIM) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def some_keys(n: int, start: int = 0) -> list[bytes]:
    return [text_key(f"text {i}") for i in range(start, start + n)]


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    with EmbeddingStore(tmp_path / "store") as store:
        store.register(ONE)
        store.put(ONE.fingerprint, some_keys(50), unit_rows(50), kind="text")
    return tmp_path / "store"


def test_what_was_put_comes_back_in_the_order_of_the_keys(tmp_path: Path) -> None:
    rows, keys = unit_rows(2500), some_keys(2500)
    with EmbeddingStore(tmp_path) as store:
        store.register(ONE)
        store.put(ONE.fingerprint, keys, rows, kind="text")
    with EmbeddingStore(tmp_path) as store:
        order = [*np.random.default_rng(1).permutation(2500).tolist(), 7, 7, 7]
        wanted = [keys[i] for i in order]
        half = store.get_half(ONE.fingerprint, wanted)
        single = store.get(ONE.fingerprint, wanted)
    np.testing.assert_array_equal(half, rows[order].astype(np.float16))
    np.testing.assert_allclose(single, rows[order], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(single, axis=1), 1, atol=1e-6)


def test_no_keys_no_embeddings(filled: Path) -> None:
    with EmbeddingStore(filled) as store:
        assert store.get(ONE.fingerprint, []).shape == (0, DIM)
        assert store.cached(ONE.fingerprint, []).shape == (0,)


def test_another_teacher_never_uses_the_first_ones_embeddings(filled: Path) -> None:
    with EmbeddingStore(filled) as store:
        assert not store.cached(TWO.fingerprint, some_keys(50)).any()
        with pytest.raises(StoreError, match=r"holds no embeddings of teacher fedc.*vl2v embed"):
            store.get(TWO.fingerprint, some_keys(1))
        store.register(TWO)
        assert not store.cached(TWO.fingerprint, some_keys(50)).any()
        store.put(TWO.fingerprint, some_keys(50), unit_rows(50, seed=9), kind="text")
        np.testing.assert_array_equal(store.get_half(ONE.fingerprint, some_keys(50)), unit_rows(50).astype(np.float16))
        assert [t.name for t in store.teachers()] == ["tiny:one", "tiny:two"]


def test_keys_differ_by_kind_and_by_view() -> None:
    sha = b"cat".ljust(32)
    keys = {image_key(sha), image_key(sha, "v1/k0"), image_key(sha, "v1/k1"), text_key(sha.decode() + "clean")}
    assert len(keys) == 4
    assert {len(key) for key in keys} == {16}
    with pytest.raises(ValueError, match="32 bytes"):
        image_key(b"short")


def test_keys_that_share_their_first_half_are_distinguished(tmp_path: Path) -> None:
    keys = [b"same-8-b" + bytes([i] * 8) for i in range(5)]
    with EmbeddingStore(tmp_path) as store:
        store.register(ONE)
        store.put(ONE.fingerprint, keys[:4], unit_rows(4), kind="text")
        assert store.cached(ONE.fingerprint, keys).tolist() == [True] * 4 + [False]
        np.testing.assert_array_equal(
            store.get_half(ONE.fingerprint, keys[3::-1]), unit_rows(4)[::-1].astype(np.float16)
        )


def test_missing_embeddings_are_counted_with_the_remedy(filled: Path) -> None:
    with (
        EmbeddingStore(filled) as store,
        pytest.raises(StoreError, match=r"3 of 8 embeddings of tiny:one .* are missing: `vl2v embed` queries them"),
    ):
        store.get(ONE.fingerprint, some_keys(8, start=45))


def test_the_first_embedding_stays_and_every_query_is_remembered(filled: Path) -> None:
    before = time.time()
    with EmbeddingStore(filled) as store:
        twice = [*some_keys(2), text_key("new"), text_key("new")]
        store.put(ONE.fingerprint, twice, unit_rows(4, seed=5), kind="image")
        kept = store.get_half(ONE.fingerprint, twice)
        np.testing.assert_array_equal(kept[:2], unit_rows(50)[:2].astype(np.float16))
        np.testing.assert_array_equal(kept[2:], unit_rows(4, seed=5)[[2, 2]].astype(np.float16))
        first, second = store.queries()
    assert (first.kind, first.count, first.teacher, first.fingerprint) == ("text", 50, ONE.name, ONE.fingerprint)
    assert (second.kind, second.count) == ("image", 4)
    assert before <= second.asked_at <= time.time()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda rows: rows * np.nan, "tiny:one: 5 of 5 embeddings are not finite"),
        (lambda rows: np.where(np.arange(5)[:, None] == 3, 0, rows), "1 of 5 embeddings are zero .*number 3"),
        (lambda rows: rows * 30, "not of unit length"),
        (lambda rows: rows[:, :-1], r"5 embeddings of 24 numbers were due, the shape is \(5, 23\)"),
        (lambda rows: rows[:-1], r"were due, the shape is \(4, 24\)"),
    ],
)
def test_bad_vectors_are_refused_and_nothing_of_them_is_kept(tmp_path: Path, spoil, words: str) -> None:
    with EmbeddingStore(tmp_path) as store:
        store.register(ONE)
        with pytest.raises(StoreError, match=words):
            store.put(ONE.fingerprint, some_keys(5), spoil(unit_rows(5)), kind="text")
        assert not store.cached(ONE.fingerprint, some_keys(5)).any()
        assert store.queries() == []


def test_a_known_fingerprint_with_another_dimension_is_refused(filled: Path) -> None:
    with EmbeddingStore(filled) as store, pytest.raises(StoreError, match=r"embeddings have 32 numbers.*have 24"):
        store.register(Facts(dim=32))


def test_reading_works_while_another_writes(filled: Path) -> None:
    with EmbeddingStore(filled) as writer, EmbeddingStore(filled, read_only=True) as reader:
        with writing(writer.file) as db:
            db.execute("UPDATE questions SET count = 7")
            assert reader.cached(ONE.fingerprint, some_keys(50)).all()
            assert reader.queries()[0].count == 50
        writer.put(ONE.fingerprint, some_keys(5, start=50), unit_rows(5), kind="text")
        assert reader.cached(ONE.fingerprint, some_keys(55)).all()
        with pytest.raises(StoreError, match="cannot be opened or written"):
            reader.put(ONE.fingerprint, some_keys(1, start=90), unit_rows(1), kind="text")


def test_a_second_writer_waits_its_turn_then_says_so(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("vl2v.sqlite", "vl2v.embeddings.rows"):
        monkeypatch.setattr(f"{module}.BUSY_SECONDS", 0.3)
    with EmbeddingStore(filled) as second:
        started = time.monotonic()
        with writing(second.file), pytest.raises(StoreError, match=r"another process has been writing for 0.3 s"):
            second.put(ONE.fingerprint, some_keys(1, start=90), unit_rows(1), kind="text")
        assert time.monotonic() - started >= 0.25
        second.put(ONE.fingerprint, some_keys(1, start=90), unit_rows(1), kind="text")


def test_a_read_only_store_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no embedding store here: `vl2v embed` makes one"):
        EmbeddingStore(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"file/store: cannot make the store's folder"):
        EmbeddingStore(tmp_path / "file" / "store")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_can_be_read_and_not_written(filled: Path) -> None:
    filled.chmod(0o500)
    try:
        with EmbeddingStore(filled, read_only=True) as store:
            assert store.cached(ONE.fingerprint, some_keys(50)).all()
        with pytest.raises(StoreError, match="check its permissions"):
            EmbeddingStore(filled)
    finally:
        filled.chmod(0o700)


def test_other_files_and_newer_schemas_are_refused(filled: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with sqlite3.connect(other / rows_module.FILE_NAME) as db:
        db.execute("CREATE TABLE mine (x)")
    with pytest.raises(StoreError, match="is not an embedding store"):
        EmbeddingStore(other)
    with sqlite3.connect(filled / rows_module.FILE_NAME) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match=r"newer vl2v \(schema 99\): upgrade"):
        EmbeddingStore(filled)


@pytest.mark.parametrize("damage", ["not a database", "header only", "pages"])
def test_a_corrupt_file_is_named_with_its_remedy(filled: Path, damage: str) -> None:
    file = filled / rows_module.FILE_NAME
    content = bytearray(file.read_bytes())
    match damage:
        case "not a database":
            file.write_bytes(b"images of cats" * 4096)
        case "header only":
            file.write_bytes(content[:4096])
        case "pages":
            content[rows_module.PAGE_BYTES :] = os.urandom(len(content) - rows_module.PAGE_BYTES)
            file.write_bytes(content)
    with pytest.raises(StoreError, match=r"answers.sqlite: the file is corrupt .*`vl2v embed` queries again"):  # noqa: SIM117
        with EmbeddingStore(filled) as store:
            store.get(ONE.fingerprint, some_keys(50))


def test_a_flipped_bit_is_noticed_and_repair_drops_only_that_row(filled: Path) -> None:
    file = filled / rows_module.FILE_NAME
    content = bytearray(file.read_bytes())
    place = content.find(unit_rows(50)[17].astype(np.float16).tobytes())
    content[place + 5] ^= 1
    file.write_bytes(content)
    keys = some_keys(50)
    with EmbeddingStore(filled) as store:
        assert store.get(ONE.fingerprint, keys[:17]).shape == (17, DIM)
        with pytest.raises(StoreError, match=rf"1 of 50 embeddings .* checksum \(first: key {keys[17].hex()}"):
            store.get(ONE.fingerprint, keys)
        assert store.repair() == 1
        assert store.cached(ONE.fingerprint, keys).tolist() == [i != 17 for i in range(50)]
        assert store.repair() == 0


def test_a_full_disk_keeps_all_that_was_acknowledged(tmp_path: Path) -> None:
    with EmbeddingStore(tmp_path) as store:
        store.register(ONE)
        store._db.execute("PRAGMA max_page_count = 20")
        done = 0
        with pytest.raises(StoreError, match="disk is full; all that was acknowledged is saved: free some space"):
            for done in range(0, 100_000, 500):
                store.put(ONE.fingerprint, some_keys(500, done), unit_rows(500, done), kind="text")
        assert done > 0
        assert store.cached(ONE.fingerprint, some_keys(done + 500)).sum() == done
        store._db.execute("PRAGMA max_page_count = 1000000")
        store.put(ONE.fingerprint, some_keys(500, done), unit_rows(500, done), kind="text")
        assert store.cached(ONE.fingerprint, some_keys(done + 500)).all()


def test_a_file_that_may_not_grow_is_explained(filled: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with EmbeddingStore(filled) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(StoreError, match="disk is full"):
                store.put(ONE.fingerprint, some_keys(999, 50), unit_rows(999), kind="text")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store.put(ONE.fingerprint, some_keys(999, 50), unit_rows(999), kind="text")
        assert store.cached(ONE.fingerprint, some_keys(1049)).all()


WRITER = """
import sys
from pathlib import Path
sys.path += sys.argv[3:]
from test_store import ONE, some_keys, unit_rows
from vl2v.embeddings.store import EmbeddingStore
store = EmbeddingStore(Path(sys.argv[1]))
store.register(ONE)
for batch in range(int(sys.argv[2]), 1_000_000):
    store.put(ONE.fingerprint, some_keys(32, 32 * batch), unit_rows(32, batch), kind="text")
    print(batch, flush=True)
"""


def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    draw = random.Random(0)
    for _ in range(5):
        start = acknowledged[-1] + 1 if acknowledged else 0
        imported = [str(Path(file).parent) for file in (__file__, stores.__file__)]
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(start), *imported]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        acknowledged += [int(writer.stdout.readline()) for _ in range(draw.randrange(1, 40))]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().split(b"\n")[:-1]]
        writer.wait()
    assert len(acknowledged) >= 5
    with EmbeddingStore(tmp_path, read_only=True) as store:  # a reader has to cope with what the dead writer left
        for batch in acknowledged:
            kept = store.get_half(ONE.fingerprint, some_keys(32, 32 * batch))
            assert zlib.crc32(kept) == zlib.crc32(unit_rows(32, batch).astype(np.float16))
        assert sql(store.file, "PRAGMA integrity_check") == [("ok",)]
