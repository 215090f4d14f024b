"""The student before it is taught: as it starts, and a first one that is good for a few seconds' work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vl2v.config import RunConfig
from vl2v.embeddings.select import select_images
from vl2v.embeddings.session import TeacherSession, TeacherTargets
from vl2v.io import temporary_folder
from vl2v.methods import Task
from vl2v.methods.adip import align
from vl2v.methods.averaging import Scores
from vl2v.runs.datasets import Sources
from vl2v.runs.features import Features, Indices, rows_of
from vl2v.runs.settings import has_tower, resolve
from vl2v.runs.targets import labelled_by_teacher
from vl2v.session import Progress, derive
from vl2v.students.backbone import output_width, pretrained_backbone
from vl2v.students.student import Student, new_projector
from vl2v.teachers.protocol import BackboneSpec
from vl2v.training.batches import DomainBalancedSampler, FeatureBatches
from vl2v.training.device import OneDevice
from vl2v.training.learner import StageWork, Validation
from vl2v.training.loop import Trainer


def new_backbone(config: RunConfig) -> tuple[nn.Module, BackboneSpec]:
    """Return the student's backbone F as it comes; random weights are decided by the seed.

    Raises:
        StudentError: unknown model, weights that can't be had or don't fit.
    """
    wanted = config.student
    torch.manual_seed(derive(config.seed, "backbone"))
    backbone, spec = pretrained_backbone(
        wanted.name, wanted.weights, image_size=wanted.image_size, statistics=wanted.statistics
    )
    return backbone, replace(spec, fit=config.data.fit)


def new_student(config: RunConfig, task: Task, classes: int, base: tuple[nn.Module, BackboneSpec], dim: int) -> Student:
    """Return the student as it starts.

    Args:
        classes: how many.
        base: its backbone and spec: `new_backbone`'s, or `teaching.tower`'s for methods that start from that.
        dim: d of the teacher's space.
    """
    own_tower = has_tower(config, task)
    backbone, spec = base[0], replace(base[1], fit=config.data.fit)
    features = dim if own_tower else output_width(config.student.name, spec.image_size)
    seed = derive(config.seed, "projector")
    if task.head == "stacked":
        head = new_projector(dim, classes, derive(config.seed, "head"))
        return Student(backbone, nn.Sequential(new_projector(features, dim, seed), head), spec, "linear")
    if own_tower and task.head == "text" and all(stage.trains == "all" for stage in task.stages):
        return Student(backbone, nn.Identity(), spec)  # it ends in the teacher's space already
    return Student(backbone, new_projector(features, dim if task.head == "text" else classes, seed), spec, task.head)


def aligned(
    config: RunConfig,
    sources: Sources,
    features: Features,
    targets: TeacherTargets,
    seed: int,
    steps: int | None = None,
) -> tuple[Student, Scores]:
    """Return a first student, good for a few seconds' work: ADiP's Align on features alone, and how well it does.

    Args:
        config: of the run; Align's settings are ADiP's defaults unless it has its own.
        sources: the images to learn from, and to validate on.
        features: of them.
        targets: the teacher's embeddings, zeros for what wasn't queried.
    """
    settings = (config if "align" in config.stages else resolve({"data": {"path": config.data.path}})).stages["align"]
    if steps is not None:
        settings = settings.model_copy(update={"steps": steps, "eval_every": None})
    stage = align(0.5)
    assert targets.images is not None and targets.texts is not None
    spec, dim = features.student.spec, targets.texts.shape[1]
    probabilities = None
    if not sources.labelled:
        sources, probabilities = labelled_by_teacher(sources, targets)
    train, val = sources.training, sources.split.val
    found = features.of(train)
    seen = features.of(val)
    labels, texts = torch.from_numpy(sources.dataset.labels[val]), torch.from_numpy(targets.texts)
    labels = labels if probabilities is None else probabilities
    groups = sources.groups(targets.queried(sources.split.unlabelled))
    sampler = DomainBalancedSampler(groups, settings.batch_per_domain, derive(seed, "first"))
    student = Student(nn.Identity(), new_projector(found.shape[1], dim, derive(seed, "first projector")), spec)
    work = StageWork(
        stage,
        settings,
        FeatureBatches(
            sampler, found[:, None], targets, rows_of(train, sources.dataset), np.zeros(1, np.int64), sampler.seed
        ),
        Validation(lambda: [seen], labels, texts, targets.scale),
    )
    with temporary_folder() as folder:
        trainer = Trainer(folder, config.train, seed, progress=features.progress, alone=True)
        scores = trainer.fit(student, [(stage, lambda: work)])
    return student, scores


def selected(session: TeacherSession, sources: Sources, features: Features, run: Path | None = None) -> Indices | None:
    """Return the training images that a run queries its teacher about (dataset indices); None: every image."""

    def classify(targets: TeacherTargets, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        assert targets.texts is not None
        student, _ = aligned(session.config, sources, features, targets, session.config.seed)
        with torch.no_grad():
            logits = student.logits(torch.from_numpy(rows), torch.from_numpy(targets.texts), targets.scale)
        return logits.cpu().numpy()

    return select_images(session, sources.queried, lambda images: features.of(images).numpy(), classify, run)


def free_features(config: RunConfig, sources: Sources, progress: Progress) -> Features:
    """Return the features of the untrained student."""
    backbone, spec = new_backbone(config)
    fabric = OneDevice(config.train)
    student = Student(backbone, nn.Identity(), spec).to(fabric.device)
    return Features(student, sources.dataset, fabric, config.data.processes, progress)
