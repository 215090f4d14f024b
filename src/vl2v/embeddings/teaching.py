"""What a teacher contributes apart from cached embeddings: its tower, online embeddings, a new class's embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vl2v.config import PromptConfig, RunConfig, TeacherConfig
from vl2v.embeddings.store import EmbeddingStore, text_key
from vl2v.embeddings.targets import text_targets
from vl2v.embeddings.views import Views
from vl2v.errors import ConfigError
from vl2v.teachers import BackboneSpec, Teacher, domain_template, gives_weights, open_teacher, prompts_for

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vl2v.embeddings.targets import OnlineTeacher


def the_teacher(config: TeacherConfig) -> Teacher:
    """Open the teacher of a configuration."""
    options = {} if config.precision == "auto" else {"precision": config.precision}
    return open_teacher(config.spec, **options)


def class_text(
    name: str,
    prompts: PromptConfig,
    domains: Sequence[str],
    fingerprint: str,
    store: EmbeddingStore,
    query: Callable[[list[str]], None],
) -> NDArray[np.float32]:
    """Return the text embedding [d] of a class, a unit vector.

    Args:
        name: of the class.
        prompts: settings of the run's class prompts.
        domains: the run's source domains, for domain prompts.
        fingerprint: of the run's teacher.
        store: of its embeddings.
        query: called with the class's prompts if some aren't cached; saves their embeddings.

    Raises:
        StoreError: it didn't.
    """
    (texts,) = prompts_for([name], prompts, domains)
    keys = [text_key(text) for text in texts]
    if not store.cached(fingerprint, keys).all():
        query(texts)
    return np.asarray(text_targets(store, fingerprint, [texts])[0])


def anchor_prompts(classes: Sequence[str], prompts: PromptConfig, domains: Sequence[str]) -> list[list[list[str]]]:
    """Return the texts of every class in each domain's words alone: for each domain those of every class."""
    templates = [domain_template(domain, articles=prompts.articles) for domain in domains]
    alone = [prompts.model_copy(update={"templates": [text], "domain_prompts": False}) for text in templates]
    return [prompts_for(classes, one, []) for one in alone]


def online(config: TeacherConfig, teacher: Teacher) -> OnlineTeacher:
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


def clean_images(config: RunConfig) -> Views:
    """Return the clean view alone, as the teacher gets it."""
    return Views(clean_fit=config.teacher.fit)


def fixed_views(config: RunConfig, image_size: int) -> Views:
    """Return the views that the teacher is queried about, for a student of this input size in pixels."""
    wanted = config.teacher
    if not wanted.views:
        return clean_images(config)
    return Views(wanted.views, wanted.view_seed, image_size, config.data.fit, wanted.fit)


def tower(teacher: Teacher, statistics: str = "own") -> tuple[nn.Module, BackboneSpec]:
    """Return a copy of the teacher's image tower and its spec, for students that start from it.

    Args:
        teacher: a white box.
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
