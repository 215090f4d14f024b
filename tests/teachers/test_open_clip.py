from __future__ import annotations

import io
import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from vl2v.errors import DataError, TeacherError
from vl2v.teachers import open_teacher
from vl2v.teachers.protocol import EncodedImage


@pytest.fixture(scope="module")
def vit(open_clip_folder):
    return open_clip_folder("vit")


def opened(folder, **options):
    return open_teacher(f"open_clip:local-dir:{folder}", **{"precision": "fp32", **options})


def edit(folder, *keys, value):
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    place = config
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    file.write_text(json.dumps(config))


def test_embeds_as_open_clip_does(vit, image_files):
    import open_clip
    import torch

    teacher = opened(vit)
    assert (teacher.name, teacher.dim) == (f"open_clip:local-dir:{vit}", 16)
    assert teacher.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{vit}")
    inputs = torch.stack([preprocess(Image.open(io.BytesIO(data)).convert("RGB")) for data in image_files])
    texts = ["a photo of a dog", "an umbrella"]
    with torch.no_grad():
        images = model.eval().encode_image(inputs, normalize=True)
        words = model.encode_text(open_clip.get_tokenizer(f"local-dir:{vit}")(texts), normalize=True)
    got = teacher.embed_images([EncodedImage(f"{i}", data) for i, data in enumerate(image_files)])
    np.testing.assert_allclose(got, images, atol=2e-6)
    np.testing.assert_allclose(teacher.embed_texts(texts), words, atol=2e-6)


def test_what_was_read_before_an_image_that_cannot_be_is_embedded(vit, image_files):
    teacher = opened(vit)
    images = [EncodedImage(f"{i}", data) for i, data in enumerate(image_files)]

    def chunks():
        yield images[:2]
        yield images[2:]
        raise DataError("the third chunk can't be read")

    found = []
    with pytest.raises(DataError, match="third"):
        found.extend(teacher.embed_stream(chunks(), 2 * len(images)))
    np.testing.assert_allclose(np.concatenate(found), teacher.embed_images(images), atol=1e-6)


def test_fingerprint_stays_with_the_same_model(vit, tmp_path):
    shutil.copytree(vit, tmp_path / "moved")
    assert opened(tmp_path / "moved").fingerprint == opened(vit).fingerprint


def test_fingerprint_changes_with_one_weight(vit, open_clip_folder):
    import torch

    def change(model):
        with torch.no_grad():
            model.visual.conv1.weight[0, 0, 0, 0] += 1e-3

    assert opened(open_clip_folder("vit")).fingerprint == opened(vit).fingerprint
    assert opened(open_clip_folder("vit", change)).fingerprint != opened(vit).fingerprint


def test_fingerprint_changes_with_precision(vit):
    prints = {precision: opened(vit, precision=precision).fingerprint for precision in ("fp32", "bf16", "auto")}
    assert prints["fp32"] != prints["bf16"]
    assert prints["auto"] in (prints["fp32"], prints["bf16"])


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("model_cfg", "quick_gelu"), True),
        (("model_cfg", "vision_cfg", "head_width"), 8),
        (("preprocess_cfg", "mean"), [0.5, 0.5, 0.5]),
        (("preprocess_cfg", "interpolation"), "bilinear"),
        (("model_cfg", "text_cfg", "tokenizer_kwargs"), {"clean": "canonicalize"}),
    ],
)
def test_fingerprint_changes_with_the_configuration(vit, tmp_path, keys, value):
    folder = shutil.copytree(vit, tmp_path / "other")
    edit(folder, *keys, value=value)
    assert opened(folder).fingerprint != opened(vit).fingerprint


def test_quick_gelu_tower(open_clip_folder):
    import torch

    from vl2v.teachers import build_tower

    teacher = opened(open_clip_folder("quick"))
    copied, spec = teacher.image_tower()
    assert spec.build["quick_gelu"]
    tower = build_tower(spec.build)
    assert [type(m) for m in tower.modules()] == [type(m) for m in copied.modules()]
    assert "QuickGELU" in {type(module).__name__ for module in tower.modules()}
    assert isinstance(tower(torch.zeros(1, 3, 32, 32)), torch.Tensor)


def test_weights_with_quick_gelu_are_run_with_it():
    import open_clip

    from vl2v.teachers.open_clip import with_quick_gelu

    assert with_quick_gelu(open_clip, "ViT-B-32", "openai")
    assert not with_quick_gelu(open_clip, "ViT-B-32", "laion2b_s34b_b79k")
    assert not with_quick_gelu(open_clip, "local-dir:x", None)


def test_weights_that_give_nan(open_clip_folder, image_files):
    import torch

    def change(model):
        with torch.no_grad():
            model.visual.proj.fill_(float("nan"))

    teacher = opened(open_clip_folder("vit", change))
    with pytest.raises(TeacherError, match="NaN or zeros; try precision fp32"):
        teacher.embed_images([EncodedImage("a", image_files[0])])


def test_halves_of_different_dimensions(vit, image_files):
    teacher = opened(vit)
    encode = teacher._encode_images
    teacher._encode_images = lambda pixels: encode(pixels)[:, :-1]
    with pytest.raises(TeacherError, match="embeds images in 15 dimensions, texts in 16; take a model whose"):
        teacher.embed_images([EncodedImage("a", image_files[0])])


@pytest.mark.parametrize("broken", [False, True])
def test_side_by_side_and_then_all_threads_again(vit, image_files, monkeypatch, broken):
    import torch

    teacher = opened(vit)
    images = [EncodedImage(f"{i}", data) for i, data in enumerate(image_files)]
    alone = teacher.embed_images(images)
    monkeypatch.setattr("vl2v.teachers.local.BATCH", 2)
    torch.set_num_threads(3)
    try:
        if broken:
            with pytest.raises(TeacherError, match=r"^broken: "):
                teacher.embed_images([*images[:3], EncodedImage("broken", b""), *images])
        else:
            np.testing.assert_allclose(teacher.embed_images(images), alone, atol=2e-6)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("rest", ["ViT-B-32/none", "ViT-B-99/openai", "ViT-B-32", ""])
def test_unknown_models(rest):
    with pytest.raises(TeacherError, match="no such model and pretraining; write MODEL/PRETRAINED"):
        open_teacher(f"open_clip:{rest}")


def test_unknown_precision(vit):
    with pytest.raises(TeacherError, match="precision 'fp8': choose one of auto, fp32, bf16"):
        opened(vit, precision="fp8")


def remove_weights(folder):
    (folder / "open_clip_model.safetensors").unlink()


def cut_weights(folder):
    file = folder / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def remove_config(folder):
    (folder / "open_clip_config.json").unlink()


def break_config(folder):
    (folder / "open_clip_config.json").write_text("{")


def change_width(folder):
    edit(folder, "model_cfg", "vision_cfg", "width", value=64)


def remove_all(folder):
    shutil.rmtree(folder)


@pytest.mark.parametrize("spoil", [remove_weights, cut_weights, remove_config, break_config, change_width, remove_all])
def test_folders_that_are_no_model(vit, tmp_path, spoil, caplog):
    folder = shutil.copytree(vit, tmp_path / "spoilt")
    spoil(folder)
    with caplog.at_level(logging.CRITICAL), pytest.raises(TeacherError, match="can't be opened") as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
