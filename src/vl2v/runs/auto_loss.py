"""What a run chooses by its images: lambda and temperature, before it trains anything, and the last projector."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vl2v.embeddings.targets import TeacherTargets
from vl2v.evaluation.ridge import Fit, Taught, best_lambda, fitted, fitted_head, lambda_accuracies
from vl2v.evaluation.temperature import soft_temperature
from vl2v.io import read_json, write_text
from vl2v.methods import Task
from vl2v.runs.datasets import Sources
from vl2v.runs.features import Features
from vl2v.runs.zero_shot import adapted_teacher
from vl2v.session import Progress
from vl2v.students.student import Student
from vl2v.training.batches import batch_targets
from vl2v.training.device import Device
from vl2v.training.processes import from_first

SHARES = (0.75, 0.5, 0.25)  # of the way from a parent's weights to those of the student adapted from it
FORGOTTEN = 0.005  # of the validation images: what the student may lose of its parent's accuracy on them
FEW = 10  # images with a label and an embedding; fewer say nothing


NewFeatures = Callable[[Student], Features]


def settled(
    task: Task,
    run: Path,
    sources: Sources,
    targets: TeacherTargets,
    features: Features,
    fabric: Device,
    progress: Progress,
) -> Task:
    """Return the task with numbers for those of its settings that are "auto": chosen by the teacher's embeddings.

    They stand in the run's `chosen.json`, with how accurate each lambda was; what was chosen there before is taken.

    Args:
        task: how the student learns.
        run: the run folder.
        sources: the images to learn from.
        targets: the teacher's embeddings.
        features: of the backbone as it starts.
        fabric: every process of a run calls this.
        progress: called with what was chosen.
    """
    file, names = run / "chosen.json", task.automatic
    if not names:
        return task
    chosen: dict[str, Any] = from_first(fabric, lambda: read_json(file, {}))
    missing = [name for name in names if name not in chosen]
    if "lambda" in missing:
        chosen |= _best_lambda(sources, targets, features, fabric)
    if "temperature" in missing:
        chosen["temperature"] = from_first(fabric, lambda: _soft_temperature(sources, targets))
    if missing:
        from_first(fabric, lambda: write_text(file, json.dumps(chosen, indent=2)))
    for name in names:
        progress(f"{name} {chosen[name]:g}", 1, 1, "")
    return task.with_chosen({name: chosen[name] for name in names})


def _soft_temperature(sources: Sources, targets: TeacherTargets) -> float:
    """Return the temperature for the teacher's embeddings of the images to learn from; 2 where there are few."""
    assert targets.images is not None and targets.texts is not None
    queried = targets.queried(_images(sources, targets))
    if len(queried) < FEW:
        return 2.0
    nowhere = np.zeros_like(queried)
    return soft_temperature(batch_targets(targets, queried, nowhere).logits().numpy(), targets.scale)


def _best_lambda(sources: Sources, targets: TeacherTargets, features: Features, fabric: Device) -> dict[str, Any]:
    """Return the lambda that is best for domains left out, and how good each is; a half where few were queried."""
    assert targets.images is not None and targets.texts is not None
    indices = _images(sources, targets)
    images, texts = targets.images[indices, 0], targets.texts
    queried = (targets.labels[indices] >= 0) & images.any(1)
    if queried.sum() < FEW:
        return {"lambda": 0.5}
    found = features.of(indices).numpy()  # the very ones that Align learns from
    usable = indices[queried]
    labels, groups = targets.labels[usable], sources.dataset.domain_ids[usable]
    taught = Taught(found[queried], images[queried].astype(np.float32), texts, labels, groups)
    accuracies = from_first(fabric, lambda: lambda_accuracies(taught))
    return {"lambda": best_lambda(accuracies, len(usable)), "accuracies": accuracies}


def align_again(student: Student, sources: Sources, targets: TeacherTargets, features: Features) -> float | None:
    """Give a trained student the projector that fits its backbone best, in closed form; return the lambda of it.

    None: there are too few images with a label and an embedding to tell, and nothing has changed.

    Args:
        student: its backbone is trained.
        sources: the images to learn from.
        targets: the teacher's; where an image wasn't queried about, its class's text stands for one.
        features: of the backbone as it ended.
    """
    fit = _projector(sources, targets, features)
    if fit is None:
        return None
    _put(student, fit)
    return fit.lambda_


def refit(student: Student, task: Task, sources: Sources, targets: TeacherTargets, features: Features, how: str) -> str:
    """Fit a trained student's last layer in closed form (`train.head`); return in a few words what became of it.

    A text head's projector is fitted as `align_again` does. A linear head is fitted to the labels; where the teacher
    was queried about images, a projector with the class embeddings is fitted as well, and what is better on source
    domains left out is taken.

    Args:
        student: its backbone is trained; a head may become a text head.
        task: how it learnt.
        sources: the images to learn from.
        targets: the teacher's embeddings.
        features: of the backbone as it ended.
        how: "refit", "only", or "auto": if it is better on the source domains' validation images than as trained.
    """
    val = sources.split.val
    labels, seen = torch.from_numpy(sources.dataset.labels[val]), features.of(val)

    def accuracy() -> float:
        texts = torch.from_numpy(targets.texts) if student.head == "text" and targets.texts is not None else None
        with torch.no_grad():
            return float((student.logits(seen, texts, 1.0).argmax(-1).cpu() == labels).double().mean())

    before, old = accuracy(), (student.projector, student.head)
    queried = task.queries == "images" or student.head == "text"
    fits: dict[str, Fit | None] = {"text": _projector(sources, targets, features) if queried else None}
    if student.head == "linear":
        train = sources.split.train
        fits["linear"] = fitted_head(
            features.of(train).numpy(), targets.labels[train], sources.dataset.domain_ids[train],
            len(sources.dataset.classes),
        )  # fmt: skip
    there = {head: fit for head, fit in fits.items() if fit is not None}
    if not there:
        return "the head stays as trained: too few images to fit another"
    head = max(there, key=lambda name: there[name].accuracy)
    student.projector = nn.Linear(student.width, len(there[head].bias)).to(student.mean.device)
    student.head = head
    _put(student, there[head])
    after = accuracy()
    words = f"{100 * before:.1f} to {100 * after:.1f}% on validation images"
    if how == "auto" and after <= before:
        student.projector, student.head = old
        return f"the head stays as trained ({words})"
    return f"a {head} head in closed form ({words})"


def toward_parent(
    student: Student, parent: Student, sources: Sources, targets: TeacherTargets, features: NewFeatures
) -> str:
    """Let an adapted student keep what its parent knew: end it three quarters of the way from the parent, or nearer.

    The weights are interpolated, as WiSE-FT does (Wortsman et al., CVPR 2022, equation 1), and end as far from the
    parent's as the source domains' validation images allow: they lose half a point at most. A student with another
    head than its parent ends all the way, or stays.

    Args:
        student: adapted; its weights are changed.
        parent: that it started from.
        sources: the images to learn from, and to validate on.
        targets: the teacher's embeddings.
        features: makes the features of a student as it is.

    Returns:
        In a few words how far it went.
    """
    val = sources.split.val
    labels = torch.from_numpy(sources.dataset.labels[val])

    def accuracy(one: Student) -> float:
        texts = torch.from_numpy(targets.texts) if one.head == "text" and targets.texts is not None else None
        with torch.no_grad():
            return float((one.logits(features(one).of(val), texts, 1.0).argmax(-1).cpu() == labels).double().mean())

    parent = parent.to(student.mean.device)
    floor = accuracy(parent) - FORGOTTEN
    start = parent.state_dict()
    trained = {key: value.clone() for key, value in student.state_dict().items()}
    alike = all(start[key].shape == value.shape for key, value in trained.items())
    for share in SHARES if alike else (1.0,):
        if share < 1:
            mixed = {k: start[k].lerp(v, share) if v.is_floating_point() else v for k, v in trained.items()}
            student.load_state_dict(mixed)
        if (found := accuracy(student)) >= floor:
            return f"{100 * share:g}% of the way from the parent: {100 * found:.1f}% on validation images"
    student.projector, student.head = parent.projector, parent.head
    student.load_state_dict(start)
    return "the student stays as its parent is: on validation images every other one is worse"


def _projector(sources: Sources, targets: TeacherTargets, features: Features) -> Fit | None:
    """Return the projector that fits the images that something is learnt from; None where they are too few.

    The class of an image without a label is the one that the teacher names, adapted to the labelled images.
    """
    if targets.images is None or targets.texts is None:
        return None
    indices = _images(sources, targets)
    labels, images, texts = targets.labels[indices], targets.images[indices, 0].astype(np.float32), targets.texts
    queried = images.any(1)
    if not sources.labelled:
        labels = np.where(queried, (images @ texts.T).argmax(1), -1)  # the teacher's word, in place of any label
    if (queried & (labels >= 0)).sum() < FEW:
        return None
    images[~queried] = texts[labels[~queried]]
    guesses = None
    if (labels < 0).any():
        teacher = adapted_teacher(targets, sources.dataset, sources.split.train)
        guesses = (images @ texts.T if teacher is None else teacher.logits(images)).argmax(1)
    groups = sources.dataset.domain_ids[indices]
    return fitted(Taught(features.of(indices).numpy(), images, texts, labels, groups, guesses))


def _put(student: Student, fit: Fit) -> None:
    assert isinstance(student.projector, nn.Linear)
    with torch.no_grad():
        student.projector.weight.copy_(torch.from_numpy(fit.weight))
        student.projector.bias.copy_(torch.from_numpy(fit.bias))


def _images(sources: Sources, targets: TeacherTargets) -> NDArray[np.int64]:
    """Return the images that something is learnt from (dataset indices, sorted)."""
    return np.unique(np.concatenate(sources.groups(targets.queried(sources.split.unlabelled))))
