"""Models of open_clip: by name and pretraining, or from a local folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vl2v.errors import TeacherError
from vl2v.teachers.local import LocalTeacher
from vl2v.teachers.protocol import TowerSpec


def open_open_clip(rest: str, **options: Any) -> LocalTeacher:
    """Open "MODEL/PRETRAINED" or "local-dir:PATH".

    Raises:
        TeacherError: an unknown model or pretraining, a folder that isn't a model, weights that can't be fetched.
    """
    import open_clip

    local = rest.startswith("local-dir:")
    model_name, pretrained = (rest, None) if local or "/" not in rest else rest.rsplit("/", 1)
    if not local and (model_name, pretrained) not in open_clip.list_pretrained():
        raise TeacherError(
            f"open_clip:{rest}: no such model and pretraining; write MODEL/PRETRAINED, for example "
            "ViT-B-32/laion2b_s34b_b79k, or local-dir:PATH"
        )
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(model_name, pretrained=pretrained)
        tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:
        raise TeacherError(f"open_clip:{rest}: can't be opened ({_first_line(error)})") from None
    config = open_clip.get_model_preprocess_cfg(model)
    size = config["size"] if isinstance(config["size"], int) else config["size"][0]

    def tower() -> tuple[nn.Module, TowerSpec]:
        build = {"kind": "open_clip", **_vision(open_clip, model_name), "quick_gelu": _quick_gelu(model)}
        return copy.deepcopy(model.visual).cpu(), TowerSpec(build, size, tuple(config["mean"]), tuple(config["std"]))

    def encode_texts(texts: Any) -> Tensor:
        tokens = tokenizer(list(texts)).to(next(model.parameters()).device)
        encoded: Tensor = model.encode_text(tokens)
        return encoded

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
        about={"kind": "open_clip", "preprocess": config, "library": open_clip.__version__.split(".")[0]},
        **options,
    )


def open_tiny(rest: str, **options: Any) -> LocalTeacher:
    """Open the tiny model that comes with vl2v: for trying and testing, not for work."""
    from vl2v.data.samples import tiny_vlm

    teacher = open_open_clip(f"local-dir:{tiny_vlm()}", **options)
    teacher.name = "tiny"
    return teacher


def build_open_clip_tower(build: dict[str, Any]) -> nn.Module:
    """Return an image tower without its weights."""
    from open_clip.model import _build_vision_tower

    tower: nn.Module = _build_vision_tower(build["embed_dim"], dict(build["vision_cfg"]), build["quick_gelu"])
    return tower


def _vision(open_clip: Any, model_name: str) -> dict[str, Any]:
    """Return the image half of a model's configuration; its weights come from elsewhere."""
    if model_name.startswith("local-dir:"):
        path = Path(model_name.removeprefix("local-dir:")) / "open_clip_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
    else:
        config = open_clip.get_model_config(model_name)
    vision = {**config["vision_cfg"]}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    return {"embed_dim": config["embed_dim"], "vision_cfg": vision}


def _quick_gelu(model: nn.Module) -> bool:
    return any(type(module).__name__ == "QuickGELU" for module in model.modules())


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
