"""How a trained student becomes what a run ships: its last layer fitted, its probabilities calibrated, its card."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vl2v.config import RunConfig
from vl2v.embeddings.session import TeacherTargets
from vl2v.errors import DataError
from vl2v.evaluation.metrics import fit_temperature, unknown_threshold
from vl2v.evaluation.ridge import Fit, Taught, fitted, fitted_head
from vl2v.methods import Task
from vl2v.runs.datasets import Sources
from vl2v.runs.evaluate import classifier_logits
from vl2v.runs.features import Features
from vl2v.runs.settings import has_tower, refits
from vl2v.runs.start import FEW, adapted_teacher, learnt_images
from vl2v.session import Progress
from vl2v.students.backbone import weights_of
from vl2v.students.classifier import Classifier
from vl2v.students.student import Student
from vl2v.teachers.protocol import Teacher

ANY = ("refit", "only", "auto")  # of `train.head`: whichever head is better
SHARES = (0.75, 0.5, 0.25)  # of the way from a parent's weights to those of the student adapted from it
FORGOTTEN = 0.005  # of the validation images: what the student may lose of its parent's accuracy on them
NewFeatures = Callable[[Student], Features]


def align_again(student: Student, sources: Sources, targets: TeacherTargets, features: Features) -> float | None:
    """Give a trained student the projector that fits its backbone best, in closed form; return the lambda of it.

    None: there are too few images with a label and an embedding to tell, and nothing has changed.

    Args:
        student: its backbone is trained.
        targets: the teacher's; where an image wasn't queried about, its class's text stands for one.
        features: of the backbone as it ended.
    """
    fit = _projector(sources, targets, features)
    if fit is None:
        return None
    _put(student, fit)
    return fit.lambda_


def refit(
    student: Student, task: Task, sources: Sources, targets: TeacherTargets, features: Features, how: str
) -> tuple[str, str]:
    """Fit a trained student's last layer in closed form (`train.head`); return what became of it, and in a few words.

    A text head's projector is fitted as `align_again` does. A linear head is fitted to the labels, if there are any;
    where the teacher was queried about images, a projector with the class embeddings is fitted as well, and what is
    better on source domains left out is taken.

    Args:
        student: its backbone is trained; a head may become a text head.
        features: of the backbone as it ended.
        how: "refit", "only", or "auto": if it is better on the source domains' validation images than as trained; or
            the one head that may be fitted, "text" or "linear".

    Returns:
        "text", "linear" or "trained".
    """
    before, old = _accuracy(student, sources, targets, features), (student.projector, student.head)
    queried = task.queries == "images" or student.head == "text"
    fits: dict[str, Fit | None] = {"text": _projector(sources, targets, features) if queried else None}
    if student.head == "linear" and sources.labelled:
        train = sources.split.train
        fits["linear"] = fitted_head(
            features.of(train).numpy(), targets.labels[train], sources.dataset.domain_ids[train],
            len(sources.dataset.classes),
        )  # fmt: skip
    there = {head: fit for head, fit in fits.items() if fit is not None and how in (head, *ANY)}
    if not there:
        return "trained", "the head stays as trained: too few images to fit another"
    head = max(there, key=lambda name: there[name].accuracy)
    student.projector = nn.Linear(student.width, len(there[head].bias)).to(student.mean.device)
    student.head = head
    _put(student, there[head])
    after = _accuracy(student, sources, targets, features)
    words = f"{100 * before:.1f} to {100 * after:.1f}% on validation images"
    if how == "auto" and after <= before:
        student.projector, student.head = old
        return "trained", f"the head stays as trained ({words})"
    return head, f"a {head} head in closed form ({words})"


def start_head(student: Student, sources: Sources, features: Features) -> str:
    """Fit the linear head of a student that isn't trained yet; return in a few words how good it is.

    It is what LP-FT (Kumar et al., ICLR 2022) trains with steps: the ridge regression of the labels on the frozen
    features, with the temperature that the validation images want.
    """
    train, val = sources.split.train, sources.split.val
    labels, domains = sources.dataset.labels, sources.dataset.domain_ids
    _put(student, fitted_head(features.of(train).numpy(), labels[train], domains[train], len(sources.dataset.classes)))
    validated = torch.from_numpy(labels[val])
    with torch.no_grad():
        logits = student.projector(features.of(val).to(student.mean.device)).cpu()
        temperature = fit_temperature(logits, validated)
        for weight in student.projector.parameters():
            weight.div_(temperature)
    right = (logits.argmax(-1) == validated).double().mean()
    return f"the head starts in closed form: {right:.1%} on validation images"


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
        features: makes the features of a student as it is.

    Returns:
        In a few words how far it went.
    """
    parent = parent.to(student.mean.device)
    floor = _accuracy(parent, sources, targets, features(parent)) - FORGOTTEN
    start = parent.state_dict()
    trained = {key: value.clone() for key, value in student.state_dict().items()}
    alike = start.keys() == trained.keys() and all(start[key].shape == trained[key].shape for key in start)
    for share in SHARES if alike else (1.0,):
        if share < 1:
            mixed = {k: start[k].lerp(v, share) if v.is_floating_point() else v for k, v in trained.items()}
            student.load_state_dict(mixed)
        if (found := _accuracy(student, sources, targets, features(student))) >= floor:
            return f"{100 * share:g}% of the way from the parent: {100 * found:.1f}% on validation images"
    student.projector, student.head = parent.projector, parent.head
    student.load_state_dict(start)
    return "the student stays as its parent is: on validation images every other one is worse"


def _accuracy(student: Student, sources: Sources, targets: TeacherTargets, features: Features) -> float:
    """Return a student's accuracy (0 to 1) on the source domains' validation images, by its features of them."""
    labels = torch.from_numpy(sources.dataset.labels[sources.split.val])
    texts = torch.from_numpy(targets.texts) if student.head == "text" and targets.texts is not None else None
    with torch.no_grad():
        logits = student.logits(features.of(sources.split.val), texts, 1.0)
    return float((logits.argmax(-1).cpu() == labels).double().mean())


def _projector(sources: Sources, targets: TeacherTargets, features: Features) -> Fit | None:
    """Return the projector that fits the images that something is learnt from; None where they are too few.

    The class of an image without a label is the one that the teacher names, adapted to the labelled images.
    """
    if targets.images is None or targets.texts is None:
        return None
    indices = learnt_images(sources, targets)
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


def fit_last_layer(
    student: Student,
    config: RunConfig,
    task: Task,
    sources: Sources,
    targets: TeacherTargets,
    parent: Student | None,
    new_features: NewFeatures,
    progress: Progress,
    head: str,
) -> str:
    """Give a trained student the last layer that it ships; return what "auto" or "refit" came to (`refit`), or head.

    Args:
        parent: that it was adapted from, if it was.
        new_features: makes the features of a student as it is.
        progress: called with what became of it.
        head: `train.head`, or what it came to before.
    """
    student.fold()
    if head != "trained" and refits(config, task):
        trained = new_features(student)
        if head != "method":
            found, words = refit(student, task, sources, targets, trained, head)
            if head == "only" and found == "trained" and parent is None and not has_tower(config, task):
                raise DataError(
                    f"{sources.dataset.root}: too few images that the teacher was queried about, or that have labels, "
                    f"to fit a last layer to, and train.head = 'only' trains nothing else; it takes {FEW}"
                )
            head = found
            progress(words, 1, 1, "")
        elif (best := align_again(student, sources, targets, trained)) is not None:
            progress(f"last layer fitted once more, lambda {best:g}", 1, 1, "")
    if parent is not None:
        progress(toward_parent(student, parent, sources, targets, new_features), 1, 1, "")
    return head


def classifier_for(
    student: Student,
    config: RunConfig,
    sources: Sources,
    teacher: Teacher | None,
    targets: TeacherTargets,
    *,
    own_tower: bool,
) -> Classifier:
    """Return what a run ships, not calibrated yet."""
    texts = torch.from_numpy(targets.texts) if student.head == "text" and targets.texts is not None else None
    scale = targets.scale if student.head == "text" else 1.0
    card = _about(config, sources, teacher, targets, own_tower=own_tower)
    return Classifier(student, list(sources.dataset.classes), texts, scale=scale, about=card)


def _about(
    config: RunConfig, sources: Sources, teacher: Teacher | None, targets: TeacherTargets, *, own_tower: bool
) -> dict[str, Any]:
    """Return where a student comes from."""
    about_teacher = None
    if teacher is not None:
        queried = targets.texts is not None
        scale = targets.scale if queried else config.teacher.logit_scale or teacher.logit_scale or 1.0
        about_teacher = {
            "spec": teacher.name,
            "fingerprint": teacher.fingerprint,
            "scale": scale,
            "fit": config.teacher.fit,
        }
    return {
        "method": config.method,
        "seed": config.seed,
        "sources": sources.names,
        "target": config.data.target,
        "images": sources.counts,
        "teacher": about_teacher,
        "weights": "the teacher's own" if own_tower else weights_of(config.student.name, config.student.weights),
        "prompts": config.prompts.model_dump(),
        **_parent(config),
    }


def _parent(config: RunConfig) -> dict[str, Any]:
    """Return the name and the digest of the run that a student was adapted from, if it was."""
    if config.student.parent is None:
        return {}
    weights = (config.student.parent / "student" / "student.safetensors").read_bytes()
    return {"parent": {"run": config.student.parent.name, "sha256": hashlib.sha256(weights).hexdigest()}}


def calibrate(classifier: Classifier, sources: Sources, workers: int, probabilities: Tensor | None) -> None:
    """Fit the temperature and the "unknown" threshold on the validation images; without labels to the teacher's word.

    Args:
        classifier: is calibrated.
        probabilities: the teacher's, of the validation images [n, C], where none has a label.
    """
    logits = classifier_logits(classifier, sources.dataset, sources.split.val, workers)
    labels = torch.from_numpy(sources.dataset.labels[sources.split.val])
    right = (logits.argmax(1) == labels).double().mean().item()
    if probabilities is None:
        classifier.about["validation_accuracy"] = right
    else:
        classifier.about |= {"validation_agreement": right, "validation_images": len(labels)}
    classifier.temperature = fit_temperature(logits, labels if probabilities is None else probabilities)
    classifier.threshold = unknown_threshold(logits / classifier.temperature, labels)
