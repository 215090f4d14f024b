"""The teacher itself on the unseen domains, without a student: the row that every student is held against."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vl2v.embeddings import EmbeddingStore, Views, image_key
from vl2v.errors import TeacherError
from vl2v.evaluation import Evaluation, Role, Row, measure
from vl2v.io import write_text
from vl2v.progress import Progress, silent
from vl2v.runs.datasets import open_data, usable
from vl2v.runs.evaluate import TEACHER, measured, validation
from vl2v.runs.predictions import Predictions, content
from vl2v.runs.session import TeacherSession
from vl2v.runs.settings import resolve
from vl2v.runs.teaching import the_teacher

CLIP_SCALE = 100.0  # of a teacher that doesn't tell: calibration depends on it, accuracy doesn't


def measure_teacher(settings: Mapping[str, Any], out: Path, *, store: Path, progress: Progress = silent) -> Evaluation:
    """Measure the zero-shot teacher on every domain from answers that the store has; nothing is asked.

    Images that it refused or wasn't asked about aren't measured; the evaluation's notes say how many.

    Args:
        settings: as for `distill`; the target domains are marked unseen.
        out: a folder for `evaluation.json` and `predictions.safetensors`.
        store: the folder of the embedding store.
        progress: called as the work goes on.

    Raises:
        TeacherError: an answer is missing.
    """
    config = resolve(settings)
    data = config.data
    dataset, found = usable(open_data(data), store, progress)
    teacher = the_teacher(config.teacher)
    sources = [name for name in dataset.domains if name not in data.target]
    val = validation(data, dataset, sources)
    rows: list[Row] = []
    notes: list[str] = []
    kept = Predictions.nothing(dataset.classes, dataset.domains, content(dataset, found))
    with EmbeddingStore(store, read_only=True) as answers:
        session = TeacherSession(config, answers, teacher, None, dataset, found, sources, Views(), progress)
        texts = session.texts()
        scale = config.teacher.logit_scale or teacher.logit_scale or CLIP_SCALE
        for number, domain in enumerate(dataset.domains):
            progress("evaluating", number, len(dataset.domains), domain)
            indices = measured(config, dataset, domain, val)
            keys = [image_key(found.contents[i]) for i in indices]
            there = answers.known(teacher.fingerprint, keys)
            if not len(indices) or not there.any():
                if domain in data.target:
                    raise TeacherError(f"{teacher.name}: wasn't asked about {domain}; run `vl2v embed` first")
                continue
            if not there.all():
                notes.append(f"{domain}: {(~there).sum():,} of {len(there):,} images have no answer, and don't count")
            indices = indices[there]
            images = answers.get(teacher.fingerprint, [key for key, one in zip(keys, there, strict=True) if one])
            logits = torch.from_numpy((images @ texts.T).astype(np.float32)) * scale
            labels = torch.from_numpy(dataset.labels[indices])
            role: Role = "unseen" if domain in data.target else "seen"
            rows.append(Row(TEACHER, domain, role, measure(logits, labels)))
            kept.add(dataset, indices, labels, logits, 1.0, logits, data)
    evaluation = Evaluation(tuple(rows), tuple(notes), classes=dataset.classes)
    kept.save(out)
    write_text(out / "evaluation.json", json.dumps(evaluation.to_json(), indent=2))
    return evaluation
