"""What a run chooses by its pictures: lambda and temperature, before it trains anything, and the last projector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import nn

from vl2v.config import RunConfig
from vl2v.evaluation.shares import Taught, best_share, fitted, image_shares
from vl2v.evaluation.softness import soft_temperature
from vl2v.runs.features import Features
from vl2v.runs.folder import write_text
from vl2v.runs.report import Report
from vl2v.runs.sources import Sources
from vl2v.students import Student
from vl2v.training import Answers, from_first

FEW = 10  # pictures with a label and an answer; fewer tell nothing


def settled(
    config: RunConfig,
    run: Path,
    sources: Sources,
    answers: Answers,
    features: Features,
    fabric: Fabric,
    report: Report,
) -> RunConfig:
    """Return the settings, with numbers for those of the loss that are chosen by what the teacher answered ("auto").

    Args:
        config: the settings.
        run: the run folder.
        sources: the pictures to learn from.
        answers: the teacher's.
        features: of the backbone as it starts.
        fabric: every process of a run calls this.
        report: told what was chosen.
    """
    chosen: dict[str, float] = {}
    if config.loss.lambda_ == "auto":
        chosen["lambda_"] = image_share(run, sources, answers, features, fabric)
    if config.loss.temperature == "auto":
        chosen["temperature"] = temperature(sources, answers)
    for name, value in chosen.items():
        report(f"{name.removesuffix('_')} {value:g}", 1, 1, "")
    return config.model_copy(update={"loss": config.loss.model_copy(update=chosen)})


def temperature(sources: Sources, answers: Answers) -> float:
    """Return the temperature at which the teacher's answers about the pictures to learn from are soft enough.

    Where too few are known, it is 2.
    """
    assert answers.images is not None and answers.texts is not None
    images = answers.images[_pictures(sources, answers), 0].astype(np.float32)
    known = images[images.any(1)]
    return soft_temperature(known, answers.texts, answers.scale) if len(known) >= FEW else 2.0


def image_share(run: Path, sources: Sources, answers: Answers, features: Features, fabric: Fabric) -> float:
    """Return the lambda that is best for domains left out; how good each is stands in the run's `lambda.json`.

    Args:
        run: the run folder; what was chosen there before is taken.
        sources: the pictures to learn from.
        answers: the teacher's; where too few are known, lambda is a half.
        features: of the backbone as it starts.
        fabric: every process of a run calls this.
    """
    file = run / "lambda.json"
    pictures = _pictures(sources, answers)
    told = from_first(fabric, lambda: json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None)
    assert answers.images is not None and answers.texts is not None
    images, texts = answers.images[pictures, 0], answers.texts
    known = (answers.labels[pictures] >= 0) & images.any(1)
    if told is None and known.sum() >= FEW:
        found = features.of(pictures).numpy()  # the very ones that Align learns from
        places = pictures[known]
        labels, groups = answers.labels[places], sources.dataset.domain_ids[places]

        def chosen() -> dict[str, Any]:
            accuracies = image_shares(Taught(found[known], images[known].astype(np.float32), texts, labels, groups))
            told = {"lambda": best_share(accuracies, len(places)), "accuracies": accuracies}
            write_text(file, json.dumps(told, indent=2))
            return told

        told = from_first(fabric, chosen)
    return float(told["lambda"]) if told else 0.5


def align_again(student: Student, sources: Sources, answers: Answers, features: Features) -> float | None:
    """Give a trained student the projector that fits its backbone best, in closed form; return the lambda of it.

    None: there are too few pictures with a label and an answer to tell, and nothing has changed.

    Args:
        student: its backbone is trained.
        sources: the pictures to learn from.
        answers: the teacher's; where a picture wasn't asked about, its class's text stands for one.
        features: of the backbone as it ended.
    """
    assert answers.images is not None and answers.texts is not None
    pictures = _pictures(sources, answers)
    pictures = pictures[answers.labels[pictures] >= 0]
    labels, images, texts = answers.labels[pictures], answers.images[pictures, 0].astype(np.float32), answers.texts
    asked = images.any(1)
    if asked.sum() < FEW:
        return None
    images[~asked] = texts[labels[~asked]]
    fit = fitted(Taught(features.of(pictures).numpy(), images, texts, labels, sources.dataset.domain_ids[pictures]))
    assert isinstance(student.projector, nn.Linear)
    with torch.no_grad():
        student.projector.weight.copy_(torch.from_numpy(fit.weight))
        student.projector.bias.copy_(torch.from_numpy(fit.bias))
    return fit.share


def _pictures(sources: Sources, answers: Answers) -> NDArray[np.int64]:
    """Return the pictures that something is learnt from (dataset indices, sorted)."""
    return np.sort(np.concatenate(sources.groups(answers.answered(sources.split.unlabelled))))
