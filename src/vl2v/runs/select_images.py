"""Which training images a rented teacher is asked about, when not all are to be."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vl2v.embeddings.select import balanced_order, k_center_order, random_order, uncertain_order
from vl2v.io import locked, write_text
from vl2v.runs.datasets import Sources
from vl2v.runs.features import Features, aligned
from vl2v.runs.folder import read_json
from vl2v.runs.session import TeacherSession

Indices = NDArray[np.int64]


def choose(session: TeacherSession, sources: Sources, features: Features, run: Path | None = None) -> Indices | None:
    """Return the training images to ask about (dataset indices, sorted); None: every image.

    The choice is made once and kept: in the store's folder for runs alike, and as `asked.json` in the run folder,
    so that a run that is gone on with learns from the very images that it began with.

    Args:
        asking: the teacher and the images.
        sources: which of them are for training.
        features: of the free student, for the strategies that look at images.
        run: the run folder.
    """
    wanted = session.config.teacher.select
    if wanted is None:
        return None
    kept = [] if run is None else [run / "asked.json"]
    with ExitStack() as alone:
        if wanted != "known":
            shared = session.store.path / "chosen" / f"{_digest(session, sources)}.json"
            kept.append(shared)
            alone.enter_context(locked(shared.with_suffix(".lock")))
        found = next((file for file in kept if file.is_file()), None)
        contents = session.contents(session.same(sources.training))
        if found is None:
            chosen = set(session.contents(session.same(_choose(session, sources, features))))
        else:
            chosen = set(read_json(found))
        for file in kept:
            if not file.is_file():
                write_text(file, json.dumps(sorted(chosen)))
    return sources.training[[place for place, content in enumerate(contents) if content in chosen]]


def _choose(session: TeacherSession, sources: Sources, features: Features) -> Indices:
    config = session.config
    everything = sources.training
    if config.teacher.select == "known":
        return everything[session.known(everything)]
    _, first = np.unique(session.same(everything), return_index=True)
    images = everything[np.sort(first)]  # of copies, one
    count = min(int(config.teacher.select or 0), len(images))
    match config.teacher.strategy:
        case "random":
            return images[random_order(len(images), config.seed)[:count]]
        case "balanced":
            labels, domains = session.dataset.labels[images], session.dataset.domain_ids[images]
            return images[balanced_order(labels, domains, config.seed)[:count]]
        case "kcenter":
            return images[k_center_order(_features(features, everything, images), count)]
        case "uncertainty":
            return _uncertain(session, sources, features, images, count)


def _uncertain(session: TeacherSession, sources: Sources, features: Features, images: Indices, count: int) -> Indices:
    """Return half of the images by k-center, then those that a student of their answers is least certain of."""
    found = _features(features, sources.training, images)
    half = k_center_order(found, count // 2)
    session.ask(images[half])
    answers = session.answers(images[half])
    assert answers.texts is not None
    student, _ = aligned(session.config, sources, features, answers, session.config.seed)
    rest = np.setdiff1d(np.arange(len(images)), half)
    with torch.no_grad():
        logits = student.logits(torch.from_numpy(found[rest]), torch.from_numpy(answers.texts), answers.scale)
    more = rest[uncertain_order(logits.cpu().numpy())[: count - len(half)]]
    return np.concatenate([images[half], images[more]])


def _features(features: Features, everything: Indices, images: Indices) -> NDArray[np.float32]:
    """Return F(x) of some of all training images; all are computed, Align wants them anyway."""
    rows = torch.from_numpy(np.searchsorted(everything, images))
    return features.of(everything)[rows].numpy()


def _digest(session: TeacherSession, sources: Sources) -> str:
    """Return a name for everything that decides the choice."""
    config = session.config
    decides = hashlib.sha256()
    decides.update(config.teacher.model_dump_json(include={"select", "strategy"}).encode())
    decides.update(config.student.model_dump_json().encode())
    decides.update(f"{config.seed} {session.teacher.fingerprint}".encode())
    training = sources.training
    decides.update("".join(session.contents(session.same(training))).encode())
    decides.update(session.dataset.labels[training].tobytes() + session.dataset.domain_ids[training].tobytes())
    return decides.hexdigest()[:32]
