"""CLIP, SigLIP and SigLIP 2 through transformers: a hub repository or a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vl2v.errors import TeacherError, need_extra, reason
from vl2v.system import without_logs
from vl2v.teachers.local import PROBE, LocalTeacher
from vl2v.teachers.protocol import BackboneSpec

KINDS = ("clip", "siglip")
# What in a configuration says where and when it was saved, and doesn't change the embeddings.
_ELSEWHERE = ("_name_or_path", "architectures", "dtype", "model_type", "torch_dtype", "transformers_version")


def open_hf(rest: str, **options: Any) -> LocalTeacher:
    """Open a repository or folder of a CLIP, SigLIP or SigLIP 2 model.

    SigLIP 2's checkpoints of a fixed resolution call themselves "siglip" and are read as such; its NaFlex ones
    ("siglip2") take lists of patches instead of images and are refused. SigLIP's bias of the logits is ignored:
    it is the same for every class, so the cosines, times the scale, decide alike. Only safetensors weights are read,
    and no code of the repository is run.

    Raises:
        MissingExtra: transformers isn't installed.
        TeacherError: it can't be fetched or read, or is of another kind.
    """
    need_extra("transformers", "hf")
    import transformers

    try:
        with without_logs():
            config = transformers.AutoConfig.from_pretrained(rest)
            _check_kind(rest, config.model_type)
            model, loaded = transformers.AutoModel.from_pretrained(rest, use_safetensors=True, output_loading_info=True)
            processor = transformers.AutoImageProcessor.from_pretrained(rest)
            tokenizer = transformers.AutoTokenizer.from_pretrained(rest)
    except TeacherError:
        raise
    except Exception as error:  # of the hub, of files, of configurations: transformers raises many kinds
        raise TeacherError(f"hf:{rest}: can't be opened ({reason(error)}); give a repository or a folder") from None
    if loaded["missing_keys"]:  # transformers fills them with random numbers
        raise TeacherError(f"hf:{rest}: lacks {min(loaded['missing_keys'])} among its weights; take a whole checkpoint")
    siglip = config.model_type == "siglip"
    length = config.text_config.max_position_embeddings
    size = config.vision_config.image_size

    def preprocess(image: Any) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def tokenize(texts: Sequence[str]) -> dict[str, Tensor]:
        # All texts padded alike: a text's embedding doesn't depend on its neighbours.
        lower = [text.lower() for text in texts] if siglip else list(texts)
        tokens = tokenizer(lower, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        # SigLIP was trained on lower case, and without a mask: it attends to the padding.
        names = ("input_ids",) if siglip else ("input_ids", "attention_mask")
        return {name: tokens[name].to(model.device) for name in names}

    def read_texts(texts: Sequence[str]) -> list[tuple[tuple[int, ...], bool]]:
        read = tokenize(texts)["input_ids"].tolist()
        whole = tokenizer([text.lower() for text in texts] if siglip else list(texts), verbose=False)["input_ids"]
        return [(tuple(few), len(more) > length) for few, more in zip(read, whole, strict=True)]

    def tower() -> tuple[nn.Module, BackboneSpec]:
        build = {"kind": "hf", "model_type": config.model_type, "config": vision_settings(config)}
        copied = build_hf_tower(build)
        copied.load_state_dict(_tower_state(copied, model))
        return copied, BackboneSpec(build, size, tuple(processor.image_mean), tuple(processor.image_std))

    return LocalTeacher(
        f"hf:{rest}",
        model.float(),
        preprocess=preprocess,
        encode_images=lambda pixels: _vectors(model.get_image_features(pixel_values=pixels)),
        encode_texts=lambda texts: _vectors(model.get_text_features(**tokenize(texts))),
        tower=tower,
        logit_scale=model.logit_scale.detach().exp().item(),
        size=size,
        mean=processor.image_mean,
        std=processor.image_std,
        about={
            "kind": "hf",
            "model": _plain(config.to_dict()),
            "preprocess": _plain(processor.to_dict()),
            "tokens": tokenize(PROBE)["input_ids"].tolist(),
            "library": transformers.__version__.split(".")[0],
        },
        read_texts=read_texts,
        **options,
    )


class HFTower(nn.Module):
    """A transformers image tower that takes pixels [n, 3, s, s] and gives [n, d]."""

    def __init__(self, model_type: str, config: dict[str, Any]) -> None:
        super().__init__()
        import transformers

        if model_type == "clip":
            self.vision = transformers.CLIPVisionModelWithProjection(_config(transformers.CLIPVisionConfig, config))
        else:
            self.vision = transformers.SiglipVisionModel(_config(transformers.SiglipVisionConfig, config))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return [n, d], not normalised."""
        out = self.vision(pixel_values=pixels)
        vectors: Tensor = out.image_embeds if hasattr(out, "image_embeds") else out.pooler_output
        return vectors


def build_hf_tower(build: dict[str, Any]) -> nn.Module:
    """Return an image tower without its weights."""
    need_extra("transformers", "hf")
    return HFTower(build["model_type"], build["config"])


def vision_settings(config: Any) -> dict[str, Any]:
    """Return what a tower is built from: the image half of a configuration, plain values only."""
    settings = _plain(config.vision_config.to_dict())
    if config.model_type == "clip":
        settings["projection_dim"] = config.projection_dim
    return {key: value for key, value in settings.items() if isinstance(value, int | float | str | bool)}


def _config(kind: Any, settings: dict[str, Any]) -> Any:
    """Return a configuration of the fields it has: others can name code that transformers would fetch and run."""
    fields = kind().to_dict()
    return kind(**{key: value for key, value in settings.items() if key in fields and key not in _ELSEWHERE})


def _check_kind(rest: str, kind: str) -> None:
    if kind == "siglip2":
        raise TeacherError(
            f"hf:{rest}: a NaFlex model of SigLIP 2, which takes patches instead of images; "
            "use one of a fixed resolution, such as google/siglip2-base-patch16-224"
        )
    if kind not in KINDS:
        raise TeacherError(f"hf:{rest}: a {kind} model; {' and '.join(KINDS)} models can teach")


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _plain(value) if isinstance(value, dict) else value for key, value in tree.items() if key not in _ELSEWHERE
    }


def _tower_state(tower: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """Return the whole model's image half under the tower's names."""
    state = model.state_dict()
    found = {}
    for key in tower.state_dict():
        name = key.removeprefix("vision.")
        found[key] = state[name] if name in state else state["vision_model." + name]
    return {key: value.detach().cpu().clone() for key, value in found.items()}


def _vectors(out: Any) -> Tensor:
    vectors: Tensor = out if isinstance(out, Tensor) else out.pooler_output
    return vectors
