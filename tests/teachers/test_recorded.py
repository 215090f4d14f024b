from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from vl2v.errors import TeacherError
from vl2v.teachers import open_teacher
from vl2v.teachers.protocol import EncodedImage, gives_weights

VENDOR = Path(__file__).parents[3] / "shared/data/pacs-vendor"
PACS = Path(__file__).parents[3] / "shared/data/PACS"
FILES = {"photo/dog/a.jpg": b"one", "photo/cat/a.jpg": b"two", "sketch/dog/b.png": b"three"}
VECTORS = np.eye(3, 4, dtype=np.float16) * 2
TEXTS = ["a dog", "a cat"]


def record(
    folder: Path, names: list[str], vectors=VECTORS, *, sha256: bool | int = False, texts=TEXTS, answers=None
) -> Path:
    """Write a recording of `FILES` under other names; `sha256` for all of them, or for the first few."""
    hashes = [hashlib.sha256(data).hexdigest() for data in FILES.values()]
    known = len(names) if sha256 is True else int(sha256)
    with (folder / "images.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [(name, hashes[i % 3] if i < known else "") for i, name in enumerate(names)]
        csv.writer(file).writerows([("path", "sha256"), *rows])
    with (folder / "texts.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text",), *((text,) for text in texts)])
    np.save(folder / "image_embeddings.npy", vectors)
    np.save(folder / "text_embeddings.npy", np.eye(len(texts), 4) if answers is None else answers)
    return folder


def ask(folder: Path, *names: str, data: bytes | None = None) -> list[int]:
    """Return which recorded vector was answered for each."""
    images = [EncodedImage(name, FILES.get(name, b"other") if data is None else data) for name in names]
    rows = open_teacher(f"recorded:{folder}").embed_images(images)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)
    return [int(row.argmax()) for row in rows]


def test_by_path_in_any_order(tmp_path):
    record(tmp_path, list(FILES))
    assert ask(tmp_path, *reversed(FILES)) == [2, 1, 0]
    assert not gives_weights(open_teacher(f"recorded:{tmp_path}"))


def test_by_content_alone(tmp_path):
    record(tmp_path, list(FILES), sha256=True)
    lines = (tmp_path / "images.csv").read_text().splitlines()
    (tmp_path / "images.csv").write_text("\n".join(line.partition(",")[2] for line in lines))
    assert ask(tmp_path, *reversed(FILES)) == [2, 1, 0]
    (tmp_path / "images.csv").write_text("\n".join([*(line.partition(",")[2] for line in lines[:3]), '""']))
    with pytest.raises(TeacherError, match="line 4: neither a sha256 nor a path"):
        open_teacher(f"recorded:{tmp_path}")


def test_by_content_whatever_the_name(tmp_path):
    record(tmp_path, ["x/1.jpg", "x/2.jpg", "x/3.png"], sha256=True)
    assert ask(tmp_path, *FILES) == [0, 1, 2]


def test_a_hashed_row_never_stands_for_another_content(tmp_path):
    record(tmp_path, list(FILES), sha256=True)
    with pytest.raises(TeacherError, match=r"no embedding of 1 of 1 images, first photo/dog/a\.jpg"):
        ask(tmp_path, "photo/dog/a.jpg", data=b"edited")


def test_hashes_for_some_only(tmp_path):
    record(tmp_path, ["x/1.jpg", "photo/cat/a.jpg", "sketch/dog/b.png"], sha256=1)
    assert ask(tmp_path, *FILES) == [0, 1, 2]


def test_by_the_only_path_that_ends_so(tmp_path):
    record(tmp_path, [f"/home/someone/PACS/{name}" for name in FILES])
    assert ask(tmp_path, *FILES) == [0, 1, 2]
    assert ask(tmp_path, "cat/a.jpg", "b.png") == [1, 2]


def test_a_tail_of_two_paths_is_refused(tmp_path):
    record(tmp_path, [f"PACS/{name}" for name in FILES])
    with pytest.raises(TeacherError, match=r"first a\.jpg \(1 of them fit more than one recorded path\)"):
        ask(tmp_path, "b.png", "a.jpg")


def test_half_a_name_is_no_tail(tmp_path):
    record(tmp_path, [f"PACS/{name}" for name in FILES])
    with pytest.raises(TeacherError, match="no embedding"):
        ask(tmp_path, "og/b.png")


def test_views_of_an_image_recorded_by_path_are_refused(tmp_path):
    teacher = open_teacher(f"recorded:{record(tmp_path, list(FILES))}")
    name = "photo/dog/a.jpg"
    teacher.embed_images([EncodedImage(name, b"one")])
    with pytest.raises(TeacherError, match=r"two contents of photo/dog/a\.jpg.*teacher\.views=0"):
        teacher.embed_images([EncodedImage(name, b"a view of it")])


def test_missing_images_are_counted_and_named(tmp_path):
    record(tmp_path, list(FILES))
    with pytest.raises(TeacherError, match=r"no embedding of 4 of 5 images, first 0\.jpg, 1\.jpg, 2\.jpg; record"):
        ask(tmp_path, "photo/dog/a.jpg", *(f"{i}.jpg" for i in range(4)))


def test_missing_texts_say_what_there_is(tmp_path):
    teacher = open_teacher(f"recorded:{record(tmp_path, list(FILES))}")
    assert teacher.embed_texts(["a cat", "a dog"]).argmax(1).tolist() == [1, 0]
    with pytest.raises(
        TeacherError, match=r"of 2 of 3 texts: 'a cow', 'a hen'; it has 2 texts: 'a dog', 'a cat'; .*articles=false"
    ):
        teacher.embed_texts(["a dog", "a cow", "a hen"])
    with pytest.raises(TeacherError, match=r"of 5 of 5 texts: '0', '1', '2' \(and 2 more\)"):
        teacher.embed_texts(list("01234"))


def test_logit_scale_and_name(tmp_path):
    record(tmp_path, list(FILES))
    teacher = open_teacher(f"recorded:{tmp_path}")
    assert (teacher.name, teacher.logit_scale, teacher.dim) == (f"recorded:{tmp_path.name}", None, 4)
    (tmp_path / "vendor.json").write_text(json.dumps({"name": "acme-7", "logit_scale": 20}))
    opened = open_teacher(f"recorded:{tmp_path}")
    assert (opened.name, opened.logit_scale) == ("recorded:acme-7", 20.0)
    assert opened.fingerprint == teacher.fingerprint


def test_fingerprint_changes_with_an_embedding(tmp_path):
    before = open_teacher(f"recorded:{record(tmp_path, list(FILES))}").fingerprint
    changed = VECTORS.copy()
    changed[2, 3] = 1
    assert open_teacher(f"recorded:{record(tmp_path, list(FILES), changed)}").fingerprint != before


def test_the_same_twice_is_one_and_different_ones_are_refused(tmp_path):
    names = [*FILES, "photo/dog/a.jpg"]
    record(tmp_path, names, VECTORS[[0, 1, 2, 0]], texts=[*TEXTS, "a dog"], answers=np.eye(3, 4)[[0, 1, 0]])
    assert ask(tmp_path, *FILES) == [0, 1, 2]
    record(tmp_path, names, VECTORS[[0, 1, 2, 1]])
    with pytest.raises(TeacherError, match=r"'photo/dog/a\.jpg' has two different embeddings \(rows 0, 3\)"):
        ask(tmp_path, *FILES)


def test_a_table_as_a_spreadsheet_writes_it(tmp_path):
    record(tmp_path, list(FILES))
    text = (tmp_path / "images.csv").read_text()
    (tmp_path / "images.csv").write_text("\ufeff" + text, encoding="utf-8")
    assert ask(tmp_path, *FILES) == [0, 1, 2]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.full((3, 4), np.nan), "3 rows are NaN or zero, first row 0"),
        (np.eye(3, 4) * [[1], [0], [1]], "1 rows are NaN or zero, first row 1"),
        (np.full((3, 4), np.inf), "NaN or zero"),
        (np.eye(3, 5), "image embeddings have 5 numbers, text embeddings 4"),
        (np.eye(2, 4), "2 rows of embeddings, but its table has 3"),
        (np.ones(3), r"not an array \[n, d\]"),
        (np.eye(3, 4, dtype=np.int64), "floating point"),
        (np.array([[None]]), "not readable as an array"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_embeddings_that_cannot_be(tmp_path, vectors, message):
    record(tmp_path, list(FILES), vectors)
    with pytest.raises(TeacherError, match=message) as caught:
        open_teacher(f"recorded:{tmp_path}")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("images.csv", None, "images.csv: missing"),
        ("images.csv", b"file\nx\n", "no rows, or no column 'sha256' or 'path'"),
        ("texts.csv", b"text\n", "no rows, or no column 'text'"),
        ("texts.csv", b"text\n\xff\xfe\n", "not readable as CSV in UTF-8"),
        ("text_embeddings.npy", b"", "not readable as an array"),
        ("vendor.json", b"{", "not readable as JSON"),
        ("vendor.json", b"[]", "not a table"),
        ("vendor.json", b'{"logit_scale": -1}', "isn't a positive number"),
        ("vendor.json", b'{"logit_scale": "20"}', "isn't a positive number"),
    ],
)
def test_files_that_cannot_be(tmp_path, file, content, message):
    record(tmp_path, list(FILES))
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(TeacherError, match=message) as caught:
        open_teacher(f"recorded:{tmp_path}")
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_folder_and_no_options(tmp_path):
    with pytest.raises(TeacherError, match="no such folder"):
        open_teacher(f"recorded:{tmp_path / 'none'}")
    with pytest.raises(TeacherError, match="takes no precision"):
        open_teacher(f"recorded:{tmp_path}", precision="fp32")


def clip_retrieval(folder: Path, columns: tuple[str, str] = ("image_path", "caption")) -> Path:
    """Write two parts as clip-retrieval does; part 10 comes after part 2."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for sub in ("img_emb", "text_emb", "metadata"):
        (folder / sub).mkdir()
    parts = {2: [0, 1], 10: [2]}
    names, captions = list(FILES), ["a dog", "a cat", None]
    for part, rows in parts.items():
        np.save(folder / "img_emb" / f"img_emb_{part}.npy", VECTORS[rows])
        np.save(folder / "text_emb" / f"text_emb_{part}.npy", VECTORS[rows])
        table = {columns[0]: [f"/data/{names[i]}" for i in rows], columns[1]: [captions[i] for i in rows]}
        schema = arrow.schema([(column, arrow.string()) for column in columns])
        parquet.write_table(arrow.table(table, schema=schema), folder / "metadata" / f"metadata_{part}.parquet")
    return folder


def test_clip_retrieval(tmp_path):
    clip_retrieval(tmp_path)
    assert ask(tmp_path, *FILES) == [0, 1, 2]
    teacher = open_teacher(f"recorded:{tmp_path}")
    assert teacher.embed_texts(["a cat"]).argmax() == 1
    with pytest.raises(TeacherError, match="no embedding of 1 of 1 texts: 'a cow'"):
        teacher.embed_texts(["a cow"])


def test_clip_retrieval_incomplete(tmp_path):
    clip_retrieval(tmp_path)
    (tmp_path / "text_emb" / "text_emb_10.npy").unlink()
    with pytest.raises(TeacherError, match="2 rows of embeddings, but its table has 3"):
        open_teacher(f"recorded:{tmp_path}")
    (tmp_path / "text_emb" / "text_emb_2.npy").unlink()
    with pytest.raises(TeacherError, match=r"clip-retrieval's layout has img_emb/\*\.npy, text_emb/\*\.npy"):
        open_teacher(f"recorded:{tmp_path}")


def test_clip_retrieval_with_other_columns(tmp_path):
    clip_retrieval(tmp_path, ("url", "caption"))
    with pytest.raises(TeacherError, match="no image_path and caption; it has url, caption"):
        open_teacher(f"recorded:{tmp_path}")


@pytest.mark.skipif(not (VENDOR.is_dir() and PACS.is_dir()), reason="the PACS recording isn't on this machine")
def test_the_pacs_vendor():
    teacher = open_teacher(f"recorded:{VENDOR}")
    assert (teacher.name, teacher.dim, teacher.logit_scale) == ("recorded:pacs-vendor", 384, 20.0)
    rows = list(csv.DictReader((VENDOR / "images.csv").open()))[::1500]
    vectors = np.load(VENDOR / "image_embeddings.npy", mmap_mode="r")[::1500].astype(np.float32)
    got = teacher.embed_images([EncodedImage("any name", (PACS / row["path"]).read_bytes()) for row in rows])
    np.testing.assert_allclose(got, vectors, atol=1e-3)
    classes = sorted({row["path"].split("/")[1] for row in rows})
    texts = teacher.embed_texts([f"a photo of a {name}" for name in classes])
    right = [row["path"].split("/")[1] == classes[i] for row, i in zip(rows, (got @ texts.T).argmax(1), strict=True)]
    assert np.mean(right) > 0.5
