from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vl2v.data.auditing import Audit, audit
from vl2v.data.dataset import DomainDataset
from vl2v.data.layouts import open_dataset
from vl2v.embeddings.fetch import fetch
from vl2v.embeddings.plan import Views, plan
from vl2v.embeddings.schema import image_key, text_key
from vl2v.embeddings.session import targets
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, DataError, StoreError, TeacherError
from vl2v.teachers.protocol import EncodedImage

FETCH = import_module("vl2v.embeddings.fetch")  # the package's own name `fetch` is the function
TEXTS = ["a photo of a cat", "a photo of a dog", "a photo of a cat"]


class HashTeacher:
    """Answers from the pixels alone, so that equal images get equal answers; counts what it is asked."""

    name = "test:hash"
    fingerprint = "a" * 16
    dim = 16
    logit_scale = None

    def __init__(self) -> None:
        self.queried: list[str] = []
        self.seen: list[bytes] = []

    def row(self, content: bytes) -> NDArray[np.float32]:
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        row = np.random.default_rng(seed).standard_normal(self.dim).astype(np.float32)
        return row / np.linalg.norm(row)

    def embed_images(self, images: Sequence[EncodedImage]) -> NDArray[np.float32]:
        self.queried += [image.name for image in images]
        self.seen += [image.data for image in images]
        return np.stack([self.row(pixels_of(image.data).tobytes()) for image in images])

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.queried += texts
        return np.stack([self.row(text.encode()) for text in texts])


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture
def dataset(tmp_path: Path) -> DomainDataset:
    """Two domains x two classes x 3 images; one of them a copy of another, in another domain."""
    root = tmp_path / "images"
    draw = np.random.default_rng(0)
    for domain in ("photo", "sketch"):
        for name in ("cat", "dog"):
            (root / domain / name).mkdir(parents=True)
            for i in range(3):
                pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / domain / name / f"{i}.png")
    (root / "sketch/dog/2.png").write_bytes((root / "photo/cat/0.png").read_bytes())
    return open_dataset(root)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddingStore]:
    with EmbeddingStore(tmp_path / "store") as opened:
        yield opened


def test_every_content_is_queried_once_and_never_again(dataset: DomainDataset, store: EmbeddingStore) -> None:
    teacher, found = HashTeacher(), audit(dataset)
    todo = plan(store, teacher, dataset, found, TEXTS, Views())
    assert (todo.images, todo.distinct, todo.cached, len(todo.pending)) == (12, 11, 0, 11)
    assert (todo.texts, todo.cached_texts, todo.pending_texts) == (2, 0, tuple(TEXTS[:2]))
    assert todo.summary() == (
        "images: 12 (1 of them copies): 11 queries, 0 cached, 11 pending\ntexts: 2 queries, 0 cached, 2 pending"
    )
    steps: list[tuple[int, int]] = []
    fetch(todo, store, teacher, lambda task, done, total, remark: steps.append((done, total)))
    assert steps == [(0, 13), (2, 13), (13, 13)]
    assert sorted(teacher.queried) == sorted([*TEXTS[:2], *dataset.paths[:11]])

    again = plan(store, teacher, dataset, found, TEXTS, Views())
    assert (again.queries, again.cached, again.cached_texts) == (0, 11, 2)
    fetch(again, store, teacher)
    assert len(teacher.queried) == 13
    assert [(q.kind, q.count) for q in store.queries()] == [("text", 2), ("image", 11)]


def test_the_targets_are_the_teachers_embeddings_in_the_datasets_order(
    dataset: DomainDataset, store: EmbeddingStore
) -> None:
    teacher, found, views = HashTeacher(), audit(dataset), Views(k=2, seed=3, size=16)
    fetch(plan(store, teacher, dataset, found, TEXTS, views), store, teacher)
    wanted = targets(store, teacher.fingerprint, found, views)
    assert wanted.shape == (12, 3, 16)
    assert wanted.dtype == np.float16
    assert wanted.flags.c_contiguous
    for i, sha256 in enumerate(found.sha256):
        image = Image.open(io.BytesIO(dataset.read(i))).convert("RGB")
        seen = [np.asarray(image), views.pixels(image, sha256, 1), views.pixels(image, sha256, 2)]
        np.testing.assert_array_equal(wanted[i], [teacher.row(p.tobytes()).astype(np.float16) for p in seen])
    some = targets(store, teacher.fingerprint, found, views, np.array([5, 2]))
    np.testing.assert_array_equal(some, wanted[[5, 2]])
    clean = targets(store, teacher.fingerprint, found, Views())
    np.testing.assert_array_equal(clean[:, 0], wanted[:, 0])
    cat = store.get_half(teacher.fingerprint, [text_key(TEXTS[0])])[0]
    np.testing.assert_array_equal(cat, teacher.row(TEXTS[0].encode()).astype(np.float16))


def test_more_views_ask_only_for_what_is_new(dataset: DomainDataset, store: EmbeddingStore) -> None:
    teacher, found = HashTeacher(), audit(dataset)
    fetch(plan(store, teacher, dataset, found, TEXTS, Views()), store, teacher)
    more = plan(store, teacher, dataset, found, TEXTS, Views(k=2, size=16))
    assert (more.cached, len(more.pending), more.pending_texts) == (11, 22, ())
    assert "in 3 views (clean, and 2 of 16 px): 33 queries, 11 cached, 22 pending" in more.summary()
    fetch(more, store, teacher)
    other_seed = plan(store, teacher, dataset, found, TEXTS, Views(k=2, seed=1, size=16))
    assert (other_seed.cached, len(other_seed.pending)) == (11, 22)


def test_an_interrupted_fetch_goes_on_where_it_stopped(
    dataset: DomainDataset, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tiring(HashTeacher):
        def embed_images(self, images: Sequence[EncodedImage]) -> NDArray[np.float32]:
            if len(self.queried) > 5:
                raise KeyboardInterrupt
            return super().embed_images(images)

    monkeypatch.setattr(FETCH, "CHUNK", 4)
    found, first, second = audit(dataset), Tiring(), HashTeacher()
    with pytest.raises(KeyboardInterrupt):
        fetch(plan(store, first, dataset, found, TEXTS, Views()), store, first)
    fetch(plan(store, second, dataset, found, TEXTS, Views()), store, second)
    assert len(first.queried) == 6  # 2 texts, 4 images
    assert len(second.queried) == 7
    assert not set(first.queried) & set(second.queried)
    targets(store, second.fingerprint, found, Views())


def test_large_files_make_small_chunks(
    dataset: DomainDataset, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FETCH, "CHUNK_BYTES", 1)
    teacher = HashTeacher()
    fetch(plan(store, teacher, dataset, audit(dataset), [], Views()), store, teacher)
    assert [question.count for question in store.queries()] == [1] * 11


def test_without_a_store_nothing_is_known_and_nothing_is_written(dataset: DomainDataset) -> None:
    todo = plan(None, HashTeacher(), dataset, audit(dataset), TEXTS, Views(k=1))
    assert (len(todo.pending), len(todo.pending_texts)) == (22, 2)


@pytest.mark.parametrize(
    ("happen", "words"), [("change", "has changed since"), ("vanish", "photo/dog/1.png")], ids=["changed", "vanished"]
)
def test_a_file_that_is_not_what_was_planned_is_named(
    dataset: DomainDataset, store: EmbeddingStore, happen: str, words: str
) -> None:
    teacher = HashTeacher()
    todo = plan(store, teacher, dataset, audit(dataset), [], Views())
    file = dataset.root / "photo/dog/1.png"
    if happen == "change":
        file.write_bytes((dataset.root / "photo/dog/2.png").read_bytes())
    else:
        file.unlink()
    with pytest.raises(DataError, match=words):
        fetch(todo, store, teacher)
    assert teacher.queried == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda rows: rows[:-1], r"11 embeddings of 16 numbers were due, the shape is \(10, 16\)"),
        (lambda rows: rows[:, :8], r"11 embeddings of 16 numbers were due, the shape is \(11, 8\)"),
        (lambda rows: rows * np.inf, "11 of 11 embeddings are not finite"),
        (lambda rows: rows * 0, "11 of 11 embeddings are zero"),
    ],
)
def test_a_teachers_bad_embedding_is_refused(dataset: DomainDataset, store: EmbeddingStore, spoil, words: str) -> None:
    class Spoilt(HashTeacher):
        def embed_images(self, images: Sequence[EncodedImage]) -> NDArray[np.float32]:
            return spoil(super().embed_images(images))

    teacher = Spoilt()
    with pytest.raises(TeacherError, match=f"test:hash: {words}"):
        fetch(plan(store, teacher, dataset, audit(dataset), [], Views()), store, teacher)
    assert store.queries() == []


def test_targets_that_were_never_queried_for_say_so(dataset: DomainDataset, store: EmbeddingStore) -> None:
    teacher, found = HashTeacher(), audit(dataset)
    fetch(plan(store, teacher, dataset, found, TEXTS, Views()), store, teacher)
    with pytest.raises(StoreError, match=r"24 of 36 embeddings of test:hash .* are missing: `vl2v embed`"):
        targets(store, teacher.fingerprint, found, Views(k=2))


def test_unreadable_images_must_be_set_aside_first(dataset: DomainDataset, store: EmbeddingStore) -> None:
    found = Audit(sha256=audit(dataset).sha256, problems={3: "truncated"})
    with pytest.raises(DataError, match=r"photo/dog/0.png: truncated .*set them aside"):
        plan(store, HashTeacher(), dataset, found, TEXTS, Views())


def test_views_are_named_fixed_and_follow_the_content(dataset: DomainDataset) -> None:
    views = Views(k=3, seed=3, size=32)
    assert views.names == ("clean", *(f"domainbed-v1/32/seed3/k{k}" for k in range(3)))
    assert len(views) == 4
    data = dataset.read(0)
    sha256 = hashlib.sha256(data).digest()
    file, *augmented = views.encoded(data, sha256, (0, 1, 2, 3))
    assert file == data
    assert len({pixels_of(png).tobytes() for png in augmented}) == 3
    assert [pixels_of(png).shape for png in augmented] == [(32, 32, 3)] * 3
    assert views.encoded(data, sha256, (2,)) == [augmented[1]]
    np.testing.assert_array_equal(
        pixels_of(augmented[0]), views.pixels(Image.open(io.BytesIO(data)).convert("RGB"), sha256, 1)
    )
    assert Views(k=3, seed=4, size=32).encoded(data, sha256, (1,)) != augmented[:1]
    assert image_key(sha256) == image_key(sha256, views.names[0])


def test_every_fit_has_views_and_names_of_its_own(dataset: DomainDataset) -> None:
    wide = Image.new("RGB", (1500, 500), "red")
    wide.paste("blue", (500, 0, 1000, 500))
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    data, sha256 = buffer.getvalue(), hashlib.sha256(buffer.getvalue()).digest()
    assert Views(k=1, fit="pad", clean_fit="crop").names == ("clean/crop", "domainbed-v1/pad/224/seed0/k0")
    sent = {fit: pixels_of(Views(clean_fit=fit).encoded(data, sha256, (0,))[0]) for fit in ("stretch", "crop", "pad")}
    assert {fit: pixels.shape[0] for fit, pixels in sent.items()} == {"stretch": 1024, "crop": 500, "pad": 1024}
    assert (sent["crop"] == (0, 0, 255)).all() and (sent["pad"][0, 0] == (124, 116, 104)).all()
    assert (sent["stretch"][0, 0] == (255, 0, 0)).all() and (sent["stretch"][0, 512] == (0, 0, 255)).all()
    one, other = (Views(k=1, size=32, fit=fit).encoded(data, sha256, (0, 1)) for fit in ("stretch", "crop"))
    assert one[0] == other[0] == data and one[1] != other[1]


@pytest.mark.parametrize("wrong", [{"k": -1}, {"size": 0}])
def test_impossible_views_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        Views(**wrong)
