"""Tiny random models in folders, and images: everything that a teacher needs without a network."""

from __future__ import annotations

import io
import json
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"

DIM = 16
SIZE = 32
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TIMM = {"timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": SIZE}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": DIM, "vision_cfg": VIT, "text_cfg": TEXT},
    "quick": {"embed_dim": DIM, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "timm": {"embed_dim": DIM, "vision_cfg": TIMM, "text_cfg": TEXT},
    "coca": {
        "embed_dim": DIM,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        "custom_text": True,
    },
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def image_files() -> list[bytes]:
    """Nine different files, PNG and JPEG in turns, of odd sizes."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(9):
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((40 + 7 * i, 64 - 3 * i)).save(buffer, "JPEG" if i % 2 else "PNG")
        files.append(buffer.getvalue())
    return files


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return what makes a folder with a random open_clip model of one of `CONFIGS`."""

    def make(kind: str, change: Callable[[Any], None] | None = None) -> Path:
        import open_clip
        import torch
        from safetensors.torch import save_file

        folder = tmp_path_factory.mktemp(kind)
        preprocess = {"size": SIZE, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}
        config = {"model_cfg": CONFIGS[kind], "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{folder}")
        if change is not None:
            change(model)
        state = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")
        return folder

    return make


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return what makes a folder with a random transformers model, "clip" or "siglip"."""

    def make(kind: str, change: Callable[[Any], None] | None = None) -> Path:
        import torch
        import transformers

        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision = {**layers, "image_size": SIZE, "patch_size": 16}
        text = {**layers, "vocab_size": 600, "max_position_embeddings": 24}
        statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
        if kind == "clip":
            text |= {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
            config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=DIM)
            model = transformers.CLIPModel(config)
            sizes = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
            transformers.CLIPImageProcessor(**sizes, **statistics).save_pretrained(folder)
        else:
            text |= {"projection_size": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
            model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text))
            processor = transformers.SiglipImageProcessor(size={"height": SIZE, "width": SIZE}, **statistics)
            processor.save_pretrained(folder)
        if change is not None:
            change(model)
        model.save_pretrained(folder)
        _tokenizer(kind).save_pretrained(folder)
        return folder

    return make


def _tokenizer(kind: str) -> Any:
    import transformers
    from open_clip.tokenizer import bytes_to_unicode

    if kind == "clip":  # bytes only, nothing merged
        letters = list(bytes_to_unicode().values())
        names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        return transformers.CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[])
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    names = ["<unk>", "</s>", *string.printable]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
