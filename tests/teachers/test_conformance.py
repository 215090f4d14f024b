"""What every teacher keeps, whatever it is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vl2v.errors import TeacherError
from vl2v.teachers import open_teacher
from vl2v.teachers.protocol import EncodedImage, Teacher, gives_weights

TEXTS = ["a photo of a dog", "a photo of an elephant", "a long text of scissors, umbrellas, hours and unicorns " * 3]
KINDS = ["vit", "timm", "coca", "clip", "siglip", "recorded"]


@pytest.fixture(scope="module", params=KINDS)
def teacher(request, open_clip_folder, hf_folder, image_files, tmp_path_factory) -> Teacher:
    kind = request.param
    if kind == "recorded":
        folder = tmp_path_factory.mktemp("recorded")
        record(folder, image_files)
        return open_teacher(f"recorded:{folder}")
    return open_teacher(spec_of(kind, open_clip_folder, hf_folder), precision="fp32")


def spec_of(kind, open_clip_folder, hf_folder) -> str:
    return f"hf:{hf_folder(kind)}" if kind in ("clip", "siglip") else f"open_clip:local-dir:{open_clip_folder(kind)}"


def record(folder: Path, image_files: list[bytes]) -> None:
    rng = np.random.default_rng(0)
    np.save(folder / "image_embeddings.npy", rng.normal(size=(len(image_files), 8)).astype(np.float16))
    np.save(folder / "text_embeddings.npy", rng.normal(size=(len(TEXTS), 8)).astype(np.float16))
    names = "".join(f"{i}.png\n" for i in range(len(image_files)))
    (folder / "images.csv").write_text("path\n" + names, encoding="utf-8")
    (folder / "texts.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in TEXTS), encoding="utf-8")


@pytest.fixture(scope="module")
def images(image_files) -> list[EncodedImage]:
    return [EncodedImage(f"{i}.png", data) for i, data in enumerate(image_files)]


def test_says_what_it_is(teacher):
    assert isinstance(teacher, Teacher)
    assert teacher.name.split(":")[0] in ("open_clip", "hf", "recorded")
    assert len(teacher.fingerprint) >= 16
    int(teacher.fingerprint, 16)
    assert teacher.logit_scale is None or teacher.logit_scale > 0


def test_unit_rows_of_the_right_shape(teacher, images):
    for rows, count in ((teacher.embed_images(images), len(images)), (teacher.embed_texts(TEXTS), len(TEXTS))):
        assert rows.shape == (count, teacher.dim)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_no_queries_no_embeddings(teacher):
    assert teacher.embed_images([]).shape == (0, teacher.dim)
    assert teacher.embed_texts([]).shape == (0, teacher.dim)


def test_the_same_again(teacher, images):
    np.testing.assert_array_equal(teacher.embed_images(images), teacher.embed_images(images))
    np.testing.assert_array_equal(teacher.embed_texts(TEXTS), teacher.embed_texts(TEXTS))


def test_order_and_company_do_not_matter(teacher, images):
    rows = teacher.embed_images(images)
    assert np.abs(rows[0] - rows[1]).max() > 1e-4
    np.testing.assert_allclose(teacher.embed_images(images[::-1])[::-1], rows, atol=2e-6)
    np.testing.assert_allclose(np.concatenate([teacher.embed_images([image]) for image in images]), rows, atol=2e-6)
    texts = teacher.embed_texts(TEXTS)
    assert np.abs(texts[0] - texts[1]).max() > 1e-4
    np.testing.assert_allclose(np.concatenate([teacher.embed_texts([text]) for text in TEXTS]), texts, atol=2e-6)


def test_more_images_than_a_batch(teacher, images, monkeypatch):
    rows = teacher.embed_images(images)
    monkeypatch.setattr("vl2v.teachers.local.BATCH", 2)
    np.testing.assert_allclose(teacher.embed_images(images), rows, atol=2e-6)
    np.testing.assert_allclose(teacher.embed_images(images[:2]), rows[:2], atol=2e-6)


def test_an_image_that_is_none(teacher, images):
    with pytest.raises(TeacherError, match=r"broken\.jpg"):
        teacher.embed_images([*images, EncodedImage("broken.jpg", b"no image")])


def test_tower_embeds_as_the_teacher(teacher, images):
    if not gives_weights(teacher):
        pytest.skip("a black box")
    import torch

    from vl2v.teachers import build_tower

    copied, spec = teacher.image_tower()
    assert all(parameter.requires_grad for parameter in copied.parameters())
    rebuilt = build_tower(spec.build)
    rebuilt.load_state_dict(copied.state_dict())
    pixels = torch.randint(0, 256, (3, 3, spec.image_size, spec.image_size), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    answers = teacher.embed_pixels(pixels)
    for tower in (copied, rebuilt):
        with torch.no_grad():
            out = tower.eval()((pixels / 255 - mean) / std)
        assert out.shape == (3, teacher.dim)
        torch.testing.assert_close(torch.nn.functional.normalize(out, dim=-1), answers, atol=1e-5, rtol=0)
    before = teacher.embed_images(images)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(teacher.embed_images(images), before)


def test_tower_spec_is_plain_json(teacher):
    if not gives_weights(teacher):
        pytest.skip("a black box")
    import json

    _, spec = teacher.image_tower()
    assert json.loads(json.dumps(spec.build)) == spec.build
    assert (spec.image_size, spec.mean, spec.std) == (32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def test_pixels_with_other_statistics_and_sizes(teacher):
    if not gives_weights(teacher):
        pytest.skip("a black box")
    import torch

    pixels = torch.randint(0, 256, (2, 3, 48, 40), dtype=torch.uint8)
    own = teacher.embed_pixels(pixels)
    same = teacher.embed_pixels(pixels, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    other = teacher.embed_pixels(pixels, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    torch.testing.assert_close(own, same)
    assert (own - other).abs().max() > 1e-4
    torch.testing.assert_close(own.norm(dim=1), torch.ones(2))
    assert not own.is_inference()


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_bfloat16_is_close_and_its_tower_exact(kind, open_clip_folder, hf_folder, images):
    spec = spec_of(kind, open_clip_folder, hf_folder)
    exact, quick = open_teacher(spec, precision="fp32"), open_teacher(spec, precision="bf16")
    for a, b in (
        (exact.embed_images(images), quick.embed_images(images)),
        (exact.embed_texts(TEXTS), quick.embed_texts(TEXTS)),
    ):
        assert b.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(b, axis=1), 1, atol=1e-5)
        assert (a * b).sum(1).min() > 0.995
    before = quick.embed_images(images)
    assert np.abs(before - exact.embed_images(images)).max() > 0
    (tower, _), (same, _) = exact.image_tower(), quick.image_tower()
    for a, b in zip(tower.state_dict().values(), same.state_dict().values(), strict=True):
        assert a.dtype == b.dtype
        assert a.equal(b)
    np.testing.assert_array_equal(quick.embed_images(images), before)
