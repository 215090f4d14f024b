"""Teachers: frozen vision-language models, one file each, behind one small protocol; opened by name, "kind:rest".

Others join by an entry point of the group "vl2v.teachers".
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from vl2v.config import TeacherConfig
from vl2v.errors import ConfigError, TeacherError, did_you_mean
from vl2v.teachers.protocol import BackboneSpec, Teacher, gives_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

GROUP = "vl2v.teachers"
_PAID = ("openai-compatible", "jina", "cohere", "voyage", "gemini", "bedrock", "vllm", "azure-vision")
_BUILTIN = {
    "open_clip": "vl2v.teachers.open_clip:open_open_clip",
    "hf": "vl2v.teachers.hf:open_hf",
    "recorded": "vl2v.teachers.recorded:open_recorded",
    "tiny": "vl2v.teachers.open_clip:open_tiny",
    **dict.fromkeys(_PAID, "vl2v.teachers.paid.client:open_remote"),
}
_WHITE = ("open_clip", "hf", "tiny")
OnlineTeacher = Callable[["Tensor"], "Tensor"]
"""Embeds uint8 pixels [n, s, s, 3] anew: I(x) [n, d]."""


def open_teacher(spec: str, **options: Any) -> Teacher:
    """Return a teacher.

    Args:
        spec: "open_clip:MODEL/PRETRAINED", "open_clip:local-dir:PATH", "hf:REPO_OR_PATH", "recorded:FOLDER", "tiny",
            "openai-compatible:URL#MODEL", "jina:MODEL", "cohere:MODEL", "voyage:MODEL", "gemini:MODEL",
            "bedrock:MODEL", "vllm:URL#MODEL", "azure-vision:URL#MODEL", or a kind that an installed package brings.
        options: of that kind, for example `precision`.

    Raises:
        TeacherError: unknown kind, or a teacher that can't be opened.
        MissingExtra: an optional dependency that isn't installed.

    Examples:
        >>> teacher = open_teacher("recorded:vendor")
        >>> teacher.embed_texts(["a photo of a ball", "a photo of a box"]).shape
        (2, 16)
    """
    kind, _, rest = spec.partition(":")
    before, colon, path = rest.rpartition(":")
    return _factory(kind)(before + colon + os.path.expanduser(path), **options)


def the_teacher(config: TeacherConfig) -> Teacher:
    """Open the teacher of a configuration."""
    options = {} if config.precision == "auto" else {"precision": config.precision}
    return open_teacher(config.spec, **options)


def is_white_box(spec: str) -> bool:
    """Return whether a teacher's weights are at hand; one that an installed package brings is opened to see.

    Raises:
        TeacherError: as `open_teacher` does.
    """
    kind = spec.partition(":")[0]
    return kind in _WHITE if kind in _BUILTIN else gives_weights(open_teacher(spec))


def teacher_kinds() -> list[str]:
    """Return all kinds that can be opened."""
    return [*_BUILTIN, *(point.name for point in entry_points(group=GROUP))]


def online_teacher(config: TeacherConfig, teacher: Teacher) -> OnlineTeacher:
    """Return a function that queries the teacher with each augmented batch, as the authors' code does.

    Raises:
        ConfigError: the teacher is a black box.
    """
    if not gives_weights(teacher):
        raise ConfigError(
            f"teacher.online: {teacher.name} is a black box: every query would be paid for at every step; "
            "use teacher.views=K for fixed augmented views, or teacher.online=false"
        )
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    imagenet = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    mean, std = imagenet if config.statistics == "imagenet" else (None, None)

    def embed(pixels: Tensor) -> Tensor:
        return teacher.embed_pixels(pixels.permute(0, 3, 1, 2), mean=mean, std=std)

    return embed


def tower_of(teacher: Teacher, statistics: str = "own") -> tuple[nn.Module, BackboneSpec]:
    """Return a copy of the teacher's image tower and its spec, for students that start from it.

    Args:
        statistics: of the pixels, "own" or "imagenet".

    Raises:
        ConfigError: the teacher is a black box.
    """
    if not gives_weights(teacher):
        raise ConfigError(f"{teacher.name}: a black box; a student can't start from its image tower, use method adip")
    backbone, spec = teacher.image_tower()
    if statistics == "imagenet":
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        spec = replace(spec, mean=tuple(IMAGENET_DEFAULT_MEAN), std=tuple(IMAGENET_DEFAULT_STD))
    return backbone, spec


def build_tower(build: dict[str, Any]) -> nn.Module:
    """Return an image tower without its weights, from `BackboneSpec.build`."""
    if build["kind"] == "open_clip":
        from vl2v.teachers.open_clip import build_open_clip_tower

        return build_open_clip_tower(build)
    from vl2v.teachers.hf import build_hf_tower

    return build_hf_tower(build)


def _factory(kind: str) -> Callable[..., Teacher]:
    factory: Callable[..., Teacher]
    if kind in _BUILTIN:
        module, _, name = _BUILTIN[kind].partition(":")
        factory = getattr(importlib.import_module(module), name)
        return partial(factory, kind) if kind in _PAID else factory
    found: list[EntryPoint] = list(entry_points(group=GROUP, name=kind))
    if not found:
        hint = did_you_mean(kind, teacher_kinds(), f"choose one of {', '.join(teacher_kinds())}")
        raise TeacherError(f"teacher {kind!r}: unknown kind; {hint}")
    try:
        factory = found[0].load()
    except (ImportError, AttributeError) as error:
        raise TeacherError(f"teacher {kind!r}: {found[0].value} can't be loaded ({error}); reinstall it") from error
    return factory
