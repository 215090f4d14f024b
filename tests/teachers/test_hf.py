from __future__ import annotations

import io
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from vl2v.errors import MissingExtra, TeacherError
from vl2v.teachers import open_teacher
from vl2v.teachers.protocol import EncodedImage

pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request, hf_folder):
    return hf_folder(request.param)


@pytest.fixture(scope="module")
def clip(hf_folder):
    return hf_folder("clip")


def opened(folder, **options):
    return open_teacher(f"hf:{folder}", **{"precision": "fp32", **options})


def test_embeds_as_transformers_does(folder, image_files):
    import torch
    import transformers

    teacher = opened(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in image_files]
    texts = ["a photo of a dog", "an umbrella"]
    siglip = model.config.model_type == "siglip"
    tokens = tokenizer(texts, padding="max_length", max_length=24, return_tensors="pt")
    if siglip:
        tokens = {"input_ids": tokens["input_ids"]}
    with torch.no_grad():
        out = model(**tokens, pixel_values=processor(images=images, return_tensors="pt")["pixel_values"])
    got = teacher.embed_images([EncodedImage(f"{i}", data) for i, data in enumerate(image_files)])
    np.testing.assert_allclose(got, out.image_embeds, atol=2e-6)
    np.testing.assert_allclose(teacher.embed_texts(texts), out.text_embeds, atol=2e-6)
    assert teacher.logit_scale == pytest.approx(model.logit_scale.exp().item())
    cosines = got @ teacher.embed_texts(texts).T
    bias = model.logit_bias.item() if siglip else 0.0
    np.testing.assert_allclose(cosines * teacher.logit_scale + bias, out.logits_per_image, atol=1e-4)


def test_siglip_reads_lower_case(hf_folder):
    teacher = opened(hf_folder("siglip"))
    upper, lower = teacher.embed_texts(["A photo of a Great DANE", "a photo of a great dane"])
    np.testing.assert_array_equal(upper, lower)


def test_fingerprint_changes_with_one_weight_and_precision(folder, hf_folder):
    import torch

    kind = json.loads((folder / "config.json").read_text())["model_type"]

    def change(model):
        with torch.no_grad():
            model.vision_model.embeddings.patch_embedding.weight[0, 0, 0, 0] += 1e-3

    before = opened(folder).fingerprint
    assert opened(hf_folder(kind)).fingerprint == before
    assert opened(hf_folder(kind, change)).fingerprint != before
    assert opened(folder, precision="bf16").fingerprint != before


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("preprocessor_config.json", "image_mean", [0.5, 0.5, 0.5]),
        ("config.json", "vision_config", {"num_attention_heads": 4}),
    ],
)
def test_fingerprint_changes_with_the_configuration(clip, tmp_path, file, key, value):
    other = shutil.copytree(clip, tmp_path / "other")
    settings = json.loads((other / file).read_text())
    settings[key] = {**settings[key], **value} if isinstance(value, dict) else value
    (other / file).write_text(json.dumps(settings))
    assert opened(other).fingerprint != opened(clip).fingerprint


def test_half_precision_weights(hf_folder, image_files):
    teacher = opened(hf_folder("clip", lambda model: model.half()))
    assert next(teacher.model.parameters()).dtype.is_floating_point
    copied, _ = teacher.image_tower()
    assert {str(parameter.dtype) for parameter in copied.parameters()} == {"torch.float32"}
    assert np.isfinite(teacher.embed_images([EncodedImage("a", image_files[0])])).all()


def test_siglip2_with_patches_is_refused(tmp_path):
    import transformers

    transformers.Siglip2Config().save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match=r"a NaFlex model of SigLIP 2.*fixed resolution"):
        opened(tmp_path)


def test_other_kinds_are_refused(tmp_path):
    import transformers

    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="a bert model; clip and siglip models can teach"):
        opened(tmp_path)


def remove_config(folder):
    (folder / "config.json").unlink()


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def remove_processor(folder):
    (folder / "preprocessor_config.json").unlink()


def change_width(folder):
    settings = json.loads((folder / "config.json").read_text())
    settings["vision_config"]["hidden_size"] = 64
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("spoil", [remove_config, remove_weights, cut_weights, remove_processor, change_width])
def test_folders_that_are_no_model(clip, tmp_path, spoil):
    folder = shutil.copytree(clip, tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises(TeacherError, match="can't be opened") as caught:
        opened(folder)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_there_are_not_made_up(clip, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(clip, tmp_path / "partial")
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TeacherError, match=r"lacks visual_projection\.weight"):
        opened(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(TeacherError, match="can't be opened") as caught:
        opened(tmp_path / "none")
    assert "\n" not in str(caught.value)


def test_without_transformers(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"vl2v\[hf\]"):
        opened(clip)
