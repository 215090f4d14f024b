"""Models of open_clip: by name and pretraining, or from a local folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vl2v.errors import DataError, TeacherError, reason
from vl2v.lazy import import_lightly
from vl2v.system import without_logs
from vl2v.teachers.local import PROBE, LocalTeacher
from vl2v.teachers.protocol import BackboneSpec

LOCAL = "local-dir:"
UNCUT = 4096  # tokens: more than any text tower reads


def open_open_clip(rest: str, **options: Any) -> LocalTeacher:
    """Open "MODEL/PRETRAINED" or "local-dir:PATH".

    The bias of SigLIP's logits is ignored: it is the same for every class.

    Raises:
        TeacherError: an unknown model or pretraining, a folder that isn't a model, weights that can't be fetched.
    """
    import_lightly("open_clip")
    import open_clip

    local = rest.startswith(LOCAL)
    model_name, pretrained = (rest, None) if local or "/" not in rest else rest.rsplit("/", 1)
    if not local and (model_name, pretrained) not in open_clip.list_pretrained():
        raise TeacherError(
            f"open_clip:{rest}: no such model and pretraining; write MODEL/PRETRAINED, for example "
            "ViT-B-32/laion2b_s34b_b79k, or local-dir:PATH"
        )
    try:
        with without_logs():
            model, preprocess = open_clip.create_model_from_pretrained(
                model_name, pretrained=pretrained, force_quick_gelu=with_quick_gelu(open_clip, model_name, pretrained)
            )
            tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:
        raise TeacherError(f"open_clip:{rest}: can't be opened ({reason(error)})") from None
    config = open_clip.get_model_preprocess_cfg(model)
    size = config["size"] if isinstance(config["size"], int) else config["size"][0]
    settings = {**_settings(open_clip, model_name), "quick_gelu": _is_quick(model)}

    def tower() -> tuple[nn.Module, BackboneSpec]:
        build = {"kind": "open_clip", **_image_half(settings)}
        copied = build_open_clip_tower(build)
        copied.load_state_dict(model.visual.state_dict())
        return copied, BackboneSpec(build, size, tuple(config["mean"]), tuple(config["std"]))

    def encode_texts(texts: Any) -> Tensor:
        encoded: Tensor = model.encode_text(tokenizer(list(texts)).to(model.logit_scale.device))
        return encoded

    def read_texts(texts: Sequence[str]) -> list[tuple[tuple[int, ...], bool]]:
        read = tokenizer(list(texts)).tolist()
        whole = tokenizer(list(texts), context_length=UNCUT).tolist()
        return [(tuple(few), few != more[: len(few)]) for few, more in zip(read, whole, strict=True)]

    return LocalTeacher(
        f"open_clip:{rest}",
        model.float(),
        preprocess=preprocess,
        encode_images=model.encode_image,
        encode_texts=encode_texts,
        tower=tower,
        logit_scale=model.logit_scale.detach().exp().item(),
        size=size,
        mean=config["mean"],
        std=config["std"],
        about={
            "kind": "open_clip",
            "model": settings,  # the same weights embed differently with other heads or another activation
            "preprocess": config,
            "tokens": tokenizer(list(PROBE)).tolist(),
            "library": open_clip.__version__.split(".")[0],
        },
        read_texts=read_texts,
        **options,
    )


def open_tiny(rest: str, **options: Any) -> LocalTeacher:
    """Open the tiny model that comes with vl2v: for trying and testing, not for work."""
    teacher = open_open_clip(f"local-dir:{tiny_vlm()}", **options)
    teacher.name = "tiny"
    return teacher


def tiny_vlm() -> Path:
    """Return the folder of the tiny VLM, an open_clip model (configuration, weights, tokenizer).

    Raises:
        DataError: this installation has none.
    """
    folder = Path(str(files("vl2v").joinpath("assets", "tiny-vlm")))
    if not folder.is_dir():
        raise DataError("the tiny VLM is not in this installation: assets/tiny-vlm is missing; reinstall vl2v")
    return folder


def build_open_clip_tower(build: dict[str, Any]) -> nn.Module:
    """Return an image tower without its weights; nothing is fetched, whatever a file from elsewhere wants."""
    from open_clip.model import _build_vision_tower

    half = _image_half(build)
    if ":" in str(half["vision_cfg"].get("timm_model_name")):  # not one of timm's own
        raise TeacherError(f"{half['vision_cfg']['timm_model_name']}: not a model of timm")
    tower: nn.Module = _build_vision_tower(half["embed_dim"], half["vision_cfg"], half["quick_gelu"])
    return tower


def _settings(open_clip: Any, model_name: str) -> dict[str, Any]:
    """Return a model's configuration, as open_clip keeps it."""
    settings: dict[str, Any]
    if model_name.startswith(LOCAL):
        path = Path(model_name.removeprefix(LOCAL)) / "open_clip_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
    else:
        settings = open_clip.get_model_config(model_name)
    return settings


def _image_half(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what the image tower is built from; its weights come from elsewhere."""
    vision = {**settings["vision_cfg"], "output_tokens": False}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    return {"embed_dim": settings["embed_dim"], "vision_cfg": vision, "quick_gelu": settings["quick_gelu"]}


def with_quick_gelu(open_clip: Any, model_name: str, pretrained: str | None) -> bool:
    """Return whether the weights were trained with QuickGELU, which open_clip only warns of."""
    published = open_clip.get_pretrained_cfg(model_name, pretrained) if pretrained else {}
    return bool(published.get("quick_gelu", False))


def _is_quick(model: nn.Module) -> bool:
    return any(type(module).__name__ == "QuickGELU" for module in model.modules())
