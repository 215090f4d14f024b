"""What a teacher gives a training: targets from the store, online embeddings, its tower, a new class's embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vl2v.config import PromptConfig, TeacherConfig
from vl2v.data.auditing import Audit
from vl2v.embeddings.schema import image_key, text_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.embeddings.views import Views
from vl2v.errors import ConfigError
from vl2v.teachers import open_teacher
from vl2v.teachers.prompts import domain_template, prompts_for, text_classifier
from vl2v.teachers.protocol import BackboneSpec, Teacher, gives_weights

if TYPE_CHECKING:
    from torch import Tensor, nn


Indices = NDArray[np.int64]
OnlineTeacher = Callable[["Tensor"], "Tensor"]
"""Embeds uint8 pixels [n, s, s, 3] anew: I(x) [n, d]."""


@dataclass(frozen=True)
class TeacherTargets:
    """Everything that a student learns of its images from the teacher and the labels, by dataset index.

    Attributes:
        labels: [N], -1 for unlabelled.
        images: teacher embeddings [N, 1 + K, d], the clean image's first, zeros for images that weren't queried;
            None without a teacher.
        texts: T [C, d]; None without a teacher.
        online: for an online teacher: uint8 pixels [n, s, s, 3] -> I(x) [n, d].
        domains: [N].
        anchors: embeddings of each class in each source domain's words [C, D, d]; None unless the method wants them.
        adapted: W and b, side by side, of an adapted teacher's logits I(x) . W^T + b [C, d + 1]; None: s I(x) . T^T.
    """

    labels: NDArray[np.int64]
    images: NDArray[np.float16] | None = None
    texts: NDArray[np.float32] | None = None
    scale: float = 1.0
    online: OnlineTeacher | None = None
    domains: NDArray[np.int64] | None = None
    anchors: NDArray[np.float32] | None = None
    adapted: NDArray[np.float32] | None = None

    def queried(self, indices: Indices) -> Indices:
        """Return those of the images that have a teacher embedding."""
        return indices[:0] if self.images is None else indices[self.images[indices, 0].any(1)]


def targets(
    store: EmbeddingStore,
    fingerprint: str,
    audit: Audit,
    views: Views,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
) -> NDArray[np.float16]:
    """Return the image targets I(x) of training: float16 [n, 1 + k, dim], the clean view first, unit rows.

    Args:
        indices: n of the audit's images; None: all of them.

    Raises:
        StoreError: embeddings are missing or damaged; the message counts them and names the command that gets them.
    """
    chosen = range(len(audit.sha256)) if indices is None else [int(i) for i in indices]
    keys = [image_key(audit.contents[index], name) for index in chosen for name in views.names]
    rows = store.get_half(fingerprint, keys)
    return rows.reshape(len(chosen), len(views), rows.shape[1])


def text_targets(store: EmbeddingStore, fingerprint: str, prompts: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """Return the class targets T [C, d] of training, unit rows.

    Raises:
        StoreError: embeddings are missing or damaged.
    """
    return text_classifier([store.get(fingerprint, [text_key(text) for text in group]) for group in prompts])


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
        prompts: settings of the run's class prompts.
        domains: the run's source domains, for domain prompts.
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
