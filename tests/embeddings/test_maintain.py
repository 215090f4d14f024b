"""`vl2v store`: a person lists, checks, exports and removes embeddings, and loses nothing that was paid for."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.embeddings.test_store import ONE, TWO, Facts, some_keys, unit_rows
from typer.testing import CliRunner

from vl2v.cli.app import app
from vl2v.embeddings.schema import image_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import StoreError

PAID = Facts(name="jina:jina-clip-v2", fingerprint="aaaa456789abcdef")
IMAGE = hashlib.sha256(b"image").digest()


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    with EmbeddingStore(tmp_path / "store") as store:
        for teacher in (ONE, PAID):
            store.register(teacher)
            store.put(teacher.fingerprint, some_keys(50), unit_rows(50), kind="text")
            store.put(teacher.fingerprint, [image_key(IMAGE)], unit_rows(1, seed=1), kind="image")
    return tmp_path / "store"


def call(store: Path, *words: str) -> str:
    done = CliRunner().invoke(app, ["store", *words, "--store", str(store)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_ls_and_info_without_torch(filled: Path) -> None:
    assert "jina:jina-clip-v2" in call(filled, "ls")
    assert "102 embeddings of 2 teachers" in call(filled, "info")
    code = (
        "import sys; from typer.testing import CliRunner; from vl2v.cli.app import app\n"
        f"for word in ('ls', 'info'): assert not CliRunner().invoke(app, ['store', word, '--store', {str(filled)!r}])"
        ".exit_code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rm_takes_one_teacher_and_paid_ones_only_on_request(filled: Path) -> None:
    call(filled, "rm", ONE.name, "--yes")
    with pytest.raises(StoreError, match="--paid-too"):
        call(filled, "rm", PAID.name, "--yes")
    with EmbeddingStore(filled, read_only=True) as store:
        assert [one.name for one in store.teachers()] == [PAID.name]
        store.check(PAID.fingerprint)
        assert store.cached(PAID.fingerprint, some_keys(50)).all()
    assert (
        CliRunner().invoke(app, ["store", "rm", PAID.name, "--paid-too", "--store", str(filled)], input="n").exit_code
    )
    call(filled, "gc")
    assert "51" in call(filled, "info")
    call(filled, "rm", PAID.fingerprint[:4], "--yes", "--paid-too")
    assert "0 embeddings of 0 teachers" in call(filled, "info")


def test_a_writer_whose_teacher_was_removed_is_reported(filled: Path) -> None:
    with EmbeddingStore(filled) as writer:
        writer.register(TWO)
        writer.put(TWO.fingerprint, some_keys(1), unit_rows(1), kind="text")
        with EmbeddingStore(filled) as other:
            other.remove(TWO.fingerprint)
        with pytest.raises(StoreError, match="removed meanwhile"):
            writer.put(TWO.fingerprint, some_keys(1), unit_rows(1), kind="text")


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_an_export_is_read_without_vl2v(filled: Path, tmp_path: Path, ending: str) -> None:
    from vl2v.embeddings.maintain import export

    file = tmp_path / f"out.{ending}"
    with EmbeddingStore(filled, read_only=True) as store:
        assert export(store, file, ONE.name, [IMAGE]) == 51
    if ending == "npz":
        read = np.load(file)
        vectors, hashes, name = read["embedding"], read["sha256"].tolist(), str(read["teacher"])
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table(file)
        vectors = np.array(table["embedding"].to_pylist(), np.float32)
        hashes, name = table["sha256"].to_pylist(), table.schema.metadata[b"teacher"].decode()
    np.testing.assert_allclose(vectors[:50], unit_rows(50), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert name == ONE.name and hashes[50] == IMAGE.hex() and not any(hashes[:50])


def test_commands_on_nothing_make_no_store(tmp_path: Path) -> None:
    for words in (["ls"], ["info"], ["repair"], ["gc"], ["rm", "x", "--yes"], ["export", str(tmp_path / "a.npz")]):
        with pytest.raises(StoreError, match="no embedding store"):
            call(tmp_path / "none", *words)
    assert not (tmp_path / "none").exists()
