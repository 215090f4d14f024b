"""What benchmarks on frozen features share: a dataset as the pretrained student and the teacher see it."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from vl2v.embeddings.plan import Views
from vl2v.embeddings.store import EmbeddingStore
from vl2v.evaluation.ridge import Taught
from vl2v.runs.datasets import open_sources
from vl2v.runs.features import Features
from vl2v.runs.query import open_session
from vl2v.runs.settings import resolve
from vl2v.runs.start import new_backbone
from vl2v.session import Session, silent
from vl2v.students.student import Student
from vl2v.teachers import the_teacher
from vl2v.training.device import OneDevice
from vl2v.tree import assignments, merge


def frozen(given: argparse.Namespace) -> tuple[Taught, Sequence[str]]:
    """Return features, embeddings, classes and domains of the training images, and the domains' names.

    Args:
        given: data, teacher, size and pairs (of --set) of a command.
    """
    tree = {
        "data": {"path": given.data},
        "teacher": {"spec": given.teacher},
        "student": {"image_size": given.size},
    }
    config = resolve(merge(tree, assignments(given.pairs)))
    with tempfile.TemporaryDirectory() as folder, EmbeddingStore(Path(folder)) as store:
        sources = open_sources(config, Session(Path(folder)))
        session = open_session(config, store, the_teacher(config.teacher), None, sources, Views(), silent)
        session.query()
        targets = session.targets()
    indices = sources.training
    assert targets.images is not None and targets.texts is not None
    backbone, spec = new_backbone(config)
    student = Student(backbone, nn.Identity(), spec)
    features = Features(student, sources.dataset, OneDevice(config.train), config.data.processes, silent).of(indices)
    images, domains = targets.images[indices, 0].astype(np.float32), sources.dataset.domain_ids[indices]
    taught = Taught(features.numpy(), images, targets.texts, targets.labels[indices], domains)
    return taught, sources.dataset.domains
