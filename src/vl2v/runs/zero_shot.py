"""The teacher itself, without a student, as it is and adapted: the rows that every student is held against."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vl2v.data.dataset import DomainDataset
from vl2v.data.splits import leave_out
from vl2v.embeddings.schema import image_key
from vl2v.embeddings.session import TeacherSession
from vl2v.embeddings.store import EmbeddingStore
from vl2v.embeddings.targets import TeacherTargets, the_teacher
from vl2v.embeddings.views import clean_images
from vl2v.errors import TeacherError
from vl2v.evaluation.adapted import AdaptedTeacher, Embedded, adapted
from vl2v.evaluation.metrics import measure
from vl2v.evaluation.table import Evaluation, Role, Row
from vl2v.io import write_text
from vl2v.runs.datasets import Sources, open_data, usable
from vl2v.runs.evaluate import TEACHER, measured, validation
from vl2v.runs.predictions import Predictions, content
from vl2v.runs.session import fit_scale
from vl2v.runs.settings import resolve
from vl2v.session import Progress, Session, silent

FEW = 10  # images with a label and an embedding; fewer adapt nothing
CLIP_SCALE = 100.0  # of a teacher that reports none: calibration depends on it, accuracy doesn't


def measure_teacher(settings: Mapping[str, Any], out: Path, *, store: Path, progress: Progress = silent) -> Evaluation:
    """Measure the teacher on every domain from the embeddings that the store has; nothing is queried.

    Images that it refused or wasn't queried about aren't measured; the evaluation's notes say how many.

    Args:
        settings: as for `distill`; the target domains are marked unseen. With `teacher.adapt="auto"`, the teacher
            is adapted to the training images of the others.
        out: a folder for `evaluation.json` and `predictions.safetensors`.
        store: the folder of the embedding store.
        progress: called with the progress.

    Raises:
        TeacherError: an embedding is missing.
    """
    config = resolve(settings)
    data = config.data
    dataset, found = usable(open_data(data), Session(store, progress=progress))
    teacher = the_teacher(config.teacher)
    sources = [name for name in dataset.domains if name not in data.target]
    val = validation(data, dataset, sources)
    rows: list[Row] = []
    notes: list[str] = []
    predictions = Predictions.nothing(dataset.classes, dataset.domains, content(dataset, found))
    with EmbeddingStore(store, read_only=True) as embeddings:
        views = clean_images(config)
        session = TeacherSession(
            config, embeddings, teacher, None, dataset, found, sources, views, progress, fit_scale=fit_scale
        )
        texts = session.texts()
        scale = config.teacher.logit_scale or teacher.logit_scale or CLIP_SCALE
        fitted = None
        if config.teacher.adapt == "auto":
            split = leave_out(dataset, data.target, fraction=data.holdout, trial_seed=data.split_seed)
            targets = TeacherTargets(dataset.labels, session.targets(split.train).images, texts, scale)
            fitted = adapted_teacher(targets, dataset, split.train)
        for number, domain in enumerate(dataset.domains):
            progress("evaluating", number, len(dataset.domains), domain)
            indices = measured(config, dataset, domain, val)
            keys = [image_key(found.contents[i], views.names[0]) for i in indices]
            there = embeddings.cached(teacher.fingerprint, keys)
            if not len(indices) or not there.any():
                if domain in data.target:
                    raise TeacherError(
                        f"{teacher.name}: has no embeddings of {domain} in the store; run `vl2v embed` first"
                    )
                continue
            if not there.all():
                notes.append(
                    f"{domain}: {(~there).sum():,} of {len(there):,} images have no embedding, and don't count"
                )
            indices = indices[there]
            images = embeddings.get(teacher.fingerprint, [key for key, one in zip(keys, there, strict=True) if one])
            scores = scale * (images @ texts.T) if fitted is None else fitted.logits(images)
            logits = torch.from_numpy(scores.astype(np.float32))
            labels = torch.from_numpy(dataset.labels[indices])
            role: Role = "unseen" if domain in data.target else "seen"
            rows.append(Row(TEACHER, domain, role, measure(logits, labels)))
            predictions.add(dataset, indices, labels, logits, 1.0, logits, data)
    evaluation = Evaluation(tuple(rows), tuple(notes), classes=dataset.classes)
    predictions.save(out)
    write_text(out / "evaluation.json", json.dumps(evaluation.to_json(), indent=2))
    return evaluation


def adapted_teacher(
    targets: TeacherTargets, dataset: DomainDataset, images: NDArray[np.int64]
) -> AdaptedTeacher | None:
    """Return the teacher adapted to labelled images of the source domains; None where they are too few to tell.

    Args:
        targets: the teacher's embeddings; images that it wasn't queried about don't count.
        dataset: the images.
        images: dataset indices; those for validation aren't to be among them.
    """
    assert targets.images is not None and targets.texts is not None
    queried = targets.queried(images[dataset.labels[images] >= 0])
    labels = dataset.labels[queried]
    if len(queried) < FEW or len(np.unique(labels)) < 2:
        return None
    embeddings = targets.images[queried, 0].astype(np.float32)
    return adapted(Embedded(embeddings, targets.texts, labels, dataset.domain_ids[queried], targets.scale))


def with_adapted_teacher(targets: TeacherTargets, sources: Sources, progress: Progress) -> TeacherTargets:
    """Return the same targets, with the logits of the teacher adapted to the training images (`teacher.adapt`)."""
    fitted = adapted_teacher(targets, sources.dataset, sources.split.train)
    if fitted is None or not fitted.blend:
        progress("the teacher stays zero-shot", 1, 1, "")
        return targets
    progress("the teacher is adapted", 1, 1, f"blend {fitted.blend:g}, shrinkage {fitted.shrinkage:g}")
    return replace(targets, adapted=np.hstack([fitted.weight, fitted.bias[:, None]]))
