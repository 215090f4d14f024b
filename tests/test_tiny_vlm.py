"""The tiny VLM that comes in the package: size, loading without a network, answers that make sense."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vl2v.config import PromptConfig
from vl2v.data import open_dataset
from vl2v.data.archives import icondg
from vl2v.teachers import open_teacher
from vl2v.teachers.open_clip import tiny_vlm
from vl2v.teachers.prompts import prompts_for, text_classifier
from vl2v.teachers.protocol import EncodedImage, Teacher


@pytest.fixture(scope="module")
def teacher() -> Iterator[Teacher]:
    """The model, opened and used with every way out closed."""

    def refuse(*_: object) -> None:
        raise AssertionError("the tiny VLM asked for the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield open_teacher("tiny")


def cosines(teacher: Teacher, text: str, others: list[str]) -> dict[str, float]:
    rows = teacher.embed_texts([text, *others])
    return dict(zip(others, (rows[1:] @ rows[0]).tolist(), strict=True))


def accuracy(teacher: Teacher, every: int) -> tuple[float, dict[str, float]]:
    dataset = open_dataset(icondg())
    chosen = np.arange(0, len(dataset), every)
    texts = prompts_for(dataset.classes, PromptConfig())
    classifier = text_classifier([teacher.embed_texts(of_class) for of_class in texts])
    images = teacher.embed_images([EncodedImage(dataset.paths[i], dataset.read(i)) for i in chosen])
    right: NDArray[np.bool_] = (images @ classifier.T).argmax(1) == dataset.labels[chosen]
    domains = dataset.domain_ids[chosen]
    return right.mean(), {name: right[domains == k].mean() for k, name in enumerate(dataset.domains)}


def test_is_an_open_clip_folder_under_30_mb() -> None:
    folder = tiny_vlm()
    for name in ("open_clip_config.json", "open_clip_model.safetensors", "README.md"):
        assert (folder / name).is_file(), name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 30_000_000


def test_has_the_dimension_that_its_configuration_tells(teacher: Teacher) -> None:
    config = json.loads((tiny_vlm() / "open_clip_config.json").read_text(encoding="utf-8"))
    assert teacher.dim == config["model_cfg"]["embed_dim"] == 384


def test_has_a_useful_temperature(teacher: Teacher) -> None:
    assert teacher.logit_scale is not None
    assert 10 < teacher.logit_scale <= 100


def test_knows_icons_that_it_was_not_trained_on(teacher: Teacher) -> None:
    overall, by_domain = accuracy(teacher, every=13)
    assert overall >= 0.5
    # 54 classes: chance is 1.9%.
    assert min(by_domain.values()) >= 0.1, by_domain


def test_texts_of_like_meaning_are_near(teacher: Teacher) -> None:
    to_cat = cosines(teacher, "a photo of a cat", ["a photo of a dog", "a photo of a truck", "a photo of a house"])
    assert max(to_cat, key=to_cat.__getitem__) == "a photo of a dog"
    to_car = cosines(teacher, "a photo of a car", ["a photo of a truck", "a photo of a flower", "a photo of a bird"])
    assert max(to_car, key=to_car.__getitem__) == "a photo of a truck"


def test_a_word_stays_itself_in_other_templates(teacher: Teacher) -> None:
    words = ["dog", "cat", "elephant", "guitar", "horse", "house", "person", "airplane", "bicycle", "tree"]
    plain = teacher.embed_texts([f"a photo of a {word}" for word in words])
    drawn = teacher.embed_texts([f"a sketch of a {word}" for word in words])
    assert ((drawn @ plain.T).argmax(1) == np.arange(len(words))).all()


def test_long_texts_are_cut_and_not_refused(teacher: Teacher) -> None:
    rows = teacher.embed_texts(["a photo of a dog " * 20, ""])
    assert np.isfinite(rows).all()


def test_was_built_from_permissive_sets_only_and_none_of_icondg() -> None:
    sets: list[dict[str, str]] = json.loads(Path(tiny_vlm() / "sets.json").read_text(encoding="utf-8"))
    permissive = {"MIT", "Apache-2.0", "CC0-1.0", "ISC", "CC-BY-4.0", "CC-BY-3.0", "BSD-3-Clause", "Unlicense"}
    assert {one["licence"] for one in sets} <= permissive
    used = {row.split(",")[1] for row in (icondg() / "ATTRIBUTION.csv").read_text(encoding="utf-8").splitlines()[1:]}
    assert used
    assert not used & {one["prefix"] for one in sets}
