"""What the teacher contributes to a run: the texts' classifier and every picture's embedding, asked once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from torch import Tensor

from vl2v.config import PromptConfig, RunConfig, TeacherConfig
from vl2v.data import Audit, DomainDataset
from vl2v.embeddings import EmbeddingStore, Plan, Views, fetch, image_key, plan, targets, text_key
from vl2v.errors import ConfigError
from vl2v.evaluation import fit_temperature
from vl2v.runs.report import Report
from vl2v.runs.sources import Sources
from vl2v.students import BackboneSpec
from vl2v.students.backbone import IMAGENET_MEAN, IMAGENET_STD
from vl2v.teachers import Prompts, Teacher, WhiteBox, open_teacher, prompts_for, text_classifier
from vl2v.training.batches import Answers, Ask


def default_store() -> Path:
    """Return the folder of the store that all runs of a person share."""
    return Path(platformdirs.user_data_dir("vl2v", appauthor=False)) / "store"


def the_teacher(config: TeacherConfig) -> Teacher:
    """Open the teacher of a configuration."""
    options = {} if config.precision == "auto" else {"precision": config.precision}
    return open_teacher(config.spec, **options)


def class_prompts(classes: Sequence[str], prompts: PromptConfig, domains: Sequence[str]) -> list[list[str]]:
    """Return every text of every class; `domains` are the source domains, for domain prompts."""
    return prompts_for(classes, Prompts(**prompts.model_dump()), domains)


def make_plan(
    store: EmbeddingStore,
    teacher: Teacher,
    dataset: DomainDataset,
    audit: Audit,
    prompts: Sequence[Sequence[str]],
    views: Views,
) -> Plan:
    """Return what is to be asked about the pictures and the texts, and what is known already."""
    store.register(teacher)
    texts = list(dict.fromkeys(text for group in prompts for text in group))
    return plan(store, teacher, dataset, audit, texts, views)


def classifier_of(store: EmbeddingStore, fingerprint: str, prompts: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """Return T [C, d], from the texts' answers in the store."""
    return text_classifier([store.get(fingerprint, [text_key(text) for text in group]) for group in prompts])


def ask_teacher(
    config: RunConfig, store: EmbeddingStore, teacher: Teacher, sources: Sources, views: Views, report: Report
) -> Answers:
    """Ask the teacher what it wasn't asked yet, and return what the run's pictures are to be taught.

    Args:
        config: of the run.
        store: where answers are kept.
        teacher: is asked.
        sources: the pictures.
        views: the fixed views, if any.
        report: told how far it is.
    """
    dataset, val = sources.dataset, sources.split.val
    prompts = class_prompts(dataset.classes, config.prompts, sources.names)
    questions = make_plan(store, teacher, dataset, sources.audit, prompts, views)
    fetch(questions, store, teacher, lambda done, total: report(f"asking {teacher.name}", done, total, ""))
    images = targets(store, teacher.fingerprint, sources.audit, views)
    texts = classifier_of(store, teacher.fingerprint, prompts)
    scale = config.teacher.logit_scale or teacher.logit_scale
    if scale is None:  # a vendor that doesn't tell: the scale that fits its own answers best
        cosines = torch.from_numpy(images[val, 0].astype(np.float32) @ texts.T)
        scale = 1 / fit_temperature(cosines, torch.from_numpy(dataset.labels[val]))
    ask = online(config.teacher, teacher) if config.teacher.online else None
    return Answers(dataset.labels, images, texts, scale, ask)


def online(config: TeacherConfig, teacher: Teacher) -> Ask:
    """Return what asks the teacher anew about each augmented batch, as the authors' code does.

    Raises:
        ConfigError: the teacher is a black box.
    """
    if not isinstance(teacher, WhiteBox):
        raise ConfigError(
            f"teacher.online: {teacher.name} is a black box, each question would be paid for at every step; "
            "use teacher.views=K for fixed augmented views, or teacher.online=false"
        )
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if config.statistics == "imagenet" else (None, None)

    def ask(pixels: Tensor) -> Tensor:
        return teacher.embed_pixels(pixels.permute(0, 3, 1, 2), mean=mean, std=std)

    return ask


def tower(teacher: Teacher) -> tuple[torch.nn.Module, BackboneSpec]:
    """Return a copy of the teacher's image tower and its spec, for students that start from it.

    Raises:
        ConfigError: the teacher is a black box.
    """
    if not isinstance(teacher, WhiteBox):
        raise ConfigError(f"method sd: {teacher.name} is a black box; sd needs the weights, adip doesn't")
    module, spec = teacher.image_tower()
    return module, BackboneSpec(spec.build, spec.image_size, spec.mean, spec.std)


def zero_shot(
    store: EmbeddingStore, fingerprint: str, texts: NDArray[np.float32], audit: Audit, pictures: NDArray[np.int64]
) -> Tensor | None:
    """Return the teacher's cosines [n, C] for pictures, if all of its answers are in the store; else None."""
    keys = [image_key(audit.sha256[i]) for i in pictures]
    if not len(keys) or not store.known(fingerprint, keys).all():
        return None
    return torch.from_numpy(store.get(fingerprint, keys) @ texts.T)
