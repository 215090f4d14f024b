"""Which training pictures a rented teacher is asked about, when not all are to be."""

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
from vl2v.runs.asking import Asking
from vl2v.runs.features import Features, aligned
from vl2v.runs.folder import read_json
from vl2v.runs.sources import Sources

Indices = NDArray[np.int64]


def choose(asking: Asking, sources: Sources, features: Features, run: Path | None = None) -> Indices | None:
    """Return the training pictures to ask about (dataset indices, sorted); None: every picture.

    The choice is made once and kept: in the store's folder for runs alike, and as `asked.json` in the run folder,
    so that a run that is gone on with learns from the very pictures that it began with.

    Args:
        asking: the teacher and the pictures.
        sources: which of them are for training.
        features: of the free student, for the strategies that look at pictures.
        run: the run folder.
    """
    wanted = asking.config.teacher.select
    if wanted is None:
        return None
    kept = [] if run is None else [run / "asked.json"]
    with ExitStack() as alone:
        if wanted != "known":
            shared = asking.store.path / "chosen" / f"{_digest(asking, sources)}.json"
            kept.append(shared)
            alone.enter_context(locked(shared.with_suffix(".lock")))
        found = next((file for file in kept if file.is_file()), None)
        contents = asking.contents(asking.same(sources.training))
        if found is None:
            chosen = set(asking.contents(asking.same(_choose(asking, sources, features))))
        else:
            chosen = set(read_json(found))
        for file in kept:
            if not file.is_file():
                write_text(file, json.dumps(sorted(chosen)))
    return sources.training[[place for place, content in enumerate(contents) if content in chosen]]


def _choose(asking: Asking, sources: Sources, features: Features) -> Indices:
    config = asking.config
    everything = sources.training
    if config.teacher.select == "known":
        return everything[asking.known(everything)]
    _, first = np.unique(asking.same(everything), return_index=True)
    pictures = everything[np.sort(first)]  # of copies, one
    count = min(int(config.teacher.select or 0), len(pictures))
    match config.teacher.strategy:
        case "random":
            return pictures[random_order(len(pictures), config.seed)[:count]]
        case "balanced":
            labels, domains = asking.dataset.labels[pictures], asking.dataset.domain_ids[pictures]
            return pictures[balanced_order(labels, domains, config.seed)[:count]]
        case "kcenter":
            return pictures[k_center_order(_features(features, everything, pictures), count)]
        case "uncertainty":
            return _uncertain(asking, sources, features, pictures, count)


def _uncertain(asking: Asking, sources: Sources, features: Features, pictures: Indices, count: int) -> Indices:
    """Return half of the pictures by k-center, then those that a student of their answers is least certain of."""
    found = _features(features, sources.training, pictures)
    half = k_center_order(found, count // 2)
    asking.ask(pictures[half])
    answers = asking.answers(pictures[half])
    assert answers.texts is not None
    student, _ = aligned(asking.config, sources, features, answers, asking.config.seed)
    rest = np.setdiff1d(np.arange(len(pictures)), half)
    with torch.no_grad():
        logits = student.logits(torch.from_numpy(found[rest]), torch.from_numpy(answers.texts), answers.scale)
    more = rest[uncertain_order(logits.cpu().numpy())[: count - len(half)]]
    return np.concatenate([pictures[half], pictures[more]])


def _features(features: Features, everything: Indices, pictures: Indices) -> NDArray[np.float32]:
    """Return F(x) of some of all training pictures; all are computed, Align wants them anyway."""
    rows = torch.from_numpy(np.searchsorted(everything, pictures))
    return features.of(everything)[rows].numpy()


def _digest(asking: Asking, sources: Sources) -> str:
    """Return a name for everything that decides the choice."""
    config = asking.config
    decides = hashlib.sha256()
    decides.update(config.teacher.model_dump_json(include={"select", "strategy"}).encode())
    decides.update(config.student.model_dump_json().encode())
    decides.update(f"{config.seed} {asking.teacher.fingerprint}".encode())
    training = sources.training
    decides.update("".join(asking.contents(asking.same(training))).encode())
    decides.update(asking.dataset.labels[training].tobytes() + asking.dataset.domain_ids[training].tobytes())
    return decides.hexdigest()[:32]
