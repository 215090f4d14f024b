"""CLIP, SigLIP and SigLIP 2 through transformers: a hub repository or a local folder."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vl2v.errors import TeacherError, need_extra
from vl2v.teachers.local import LocalTeacher
from vl2v.teachers.protocol import TowerSpec

KINDS = ("clip", "siglip", "siglip2")


def open_hf(rest: str, **options: Any) -> LocalTeacher:
    """Open a repository or folder of a CLIP, SigLIP or SigLIP 2 (fixed resolution) model.

    Only safetensors weights are read, and no code of the repository is run.

    Raises:
        MissingExtra: transformers isn't installed.
        TeacherError: it can't be fetched or read, or is of another kind.
    """
    need_extra("transformers", "hf")
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(rest)
        if config.model_type not in KINDS:
            raise TeacherError(f"hf:{rest}: a {config.model_type} model; {', '.join(KINDS)} can teach")
        model = transformers.AutoModel.from_pretrained(rest, use_safetensors=True)
        processor = transformers.AutoImageProcessor.from_pretrained(rest)
        tokenizer = transformers.AutoTokenizer.from_pretrained(rest)
    except (OSError, ValueError, RuntimeError) as error:
        raise TeacherError(f"hf:{rest}: can't be opened ({str(error).splitlines()[0]})") from None
    siglip = config.model_type != "clip"
    length = config.text_config.max_position_embeddings
    size = config.vision_config.image_size

    def preprocess(image: Any) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def encode_texts(texts: Any) -> Tensor:
        padding = "max_length" if siglip else True  # SigLIP was trained on padded texts
        tokens = tokenizer(list(texts), padding=padding, truncation=True, max_length=length, return_tensors="pt")
        return _vectors(model.get_text_features(**tokens.to(model.device)))

    def tower() -> tuple[nn.Module, TowerSpec]:
        build = {"kind": "hf", "model_type": config.model_type, "config": _vision(config)}
        copied = build_hf_tower(build)
        copied.load_state_dict(_tower_state(copied, model))
        return copied, TowerSpec(build, size, tuple(processor.image_mean), tuple(processor.image_std))

    return LocalTeacher(
        f"hf:{rest}",
        model.float(),
        preprocess=preprocess,
        encode_images=lambda pixels: _vectors(model.get_image_features(pixel_values=pixels)),
        encode_texts=encode_texts,
        tower=tower,
        logit_scale=model.logit_scale.detach().exp().item(),
        size=size,
        mean=processor.image_mean,
        std=processor.image_std,
        about={"kind": "hf", "preprocess": processor.to_dict(), "library": transformers.__version__.split(".")[0]},
        **options,
    )


class HFTower(nn.Module):
    """A transformers image tower that takes pixels [n, 3, s, s] and gives [n, d]."""

    def __init__(self, model_type: str, config: dict[str, Any]) -> None:
        super().__init__()
        import transformers

        if model_type == "clip":
            self.vision = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**config))
        else:
            settings = transformers.AutoConfig.for_model(f"{model_type}_vision_model", **config)
            kinds = {"siglip": transformers.SiglipVisionModel, "siglip2": transformers.Siglip2VisionModel}
            self.vision = kinds[model_type](settings)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return [n, d], not normalised."""
        out = self.vision(pixel_values=pixels)
        vectors: Tensor = out.image_embeds if hasattr(out, "image_embeds") else out.pooler_output
        return vectors


def build_hf_tower(build: dict[str, Any]) -> nn.Module:
    """Return an image tower without its weights."""
    need_extra("transformers", "hf")
    return HFTower(build["model_type"], build["config"])


def _vision(config: Any) -> dict[str, Any]:
    settings: dict[str, Any] = copy.deepcopy(config.vision_config.to_dict())
    if config.model_type == "clip":
        settings["projection_dim"] = config.projection_dim
    return {key: value for key, value in settings.items() if isinstance(value, int | float | str | bool)}


def _tower_state(tower: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """Return the whole model's image half under the tower's names."""
    state = model.state_dict()
    found = {}
    for key in tower.state_dict():
        name = key.removeprefix("vision.")
        found[key] = state[name] if name in state else state["vision_model." + name]
    return {key: value.detach().cpu().clone() for key, value in found.items()}


def _vectors(out: Any) -> Tensor:
    vectors: Tensor = out if isinstance(out, torch.Tensor) else out.pooler_output
    return vectors
