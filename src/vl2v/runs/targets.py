"""What a run makes of its teacher's targets before it trains: lambda, temperature, logits adapted, labels guessed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vl2v.data.dataset import DomainDataset
from vl2v.embeddings.session import TeacherTargets
from vl2v.errors import DataError
from vl2v.evaluation.adapted import AdaptedTeacher, Embedded, adapted
from vl2v.evaluation.metrics import soft_temperature
from vl2v.evaluation.ridge import Taught, best_lambda, lambda_accuracies
from vl2v.io import read_json, write_text
from vl2v.methods import Task
from vl2v.runs.datasets import Sources
from vl2v.runs.features import Features
from vl2v.runs.folder import CHOSEN
from vl2v.session import Progress
from vl2v.training.batches import batch_targets
from vl2v.tree import Tree

FEW = 10  # images with a label and an embedding; fewer say nothing


def automatic(
    task: Task, run: Path, sources: Sources, targets: TeacherTargets, features: Features, progress: Progress
) -> dict[str, float]:
    """Return numbers for those of a task's settings that are "auto": chosen by the teacher's embeddings.

    They stand in the run's `chosen.json`, with how accurate each lambda was; what was chosen before is taken.

    Args:
        features: of the backbone as it starts.
        progress: called with what was chosen.
    """
    chosen: Tree = read_json(run / CHOSEN, {})
    names = task.automatic
    missing = [name for name in names if name not in chosen]
    if "lambda" in missing:
        chosen["lambda"] = 0.5  # where few images were queried
        if (taught := _taught(sources, targets, features)) is not None:
            chosen["accuracies"] = lambda_accuracies(taught)
            chosen["lambda"] = best_lambda(chosen["accuracies"], len(taught.labels))
    if "temperature" in missing:
        chosen["temperature"] = _soft_temperature(sources, targets)
    if missing:
        write_text(run / CHOSEN, json.dumps(chosen, indent=2))
    for name in names:
        progress(f"{name} {chosen[name]:g}", 1, 1, "")
    return {name: chosen[name] for name in names}


def _soft_temperature(sources: Sources, targets: TeacherTargets) -> float:
    """Return the temperature for the teacher's embeddings of the images to learn from; 2 where there are few."""
    assert targets.images is not None and targets.texts is not None
    queried = targets.queried(learnt_images(sources, targets))
    if len(queried) < FEW:
        return 2.0
    nowhere = np.zeros_like(queried)
    return soft_temperature(batch_targets(targets, queried, nowhere).logits().numpy(), targets.scale)


def _taught(sources: Sources, targets: TeacherTargets, features: Features) -> Taught | None:
    """Return the images that lambda is chosen on; None where few were queried."""
    assert targets.images is not None and targets.texts is not None
    indices = learnt_images(sources, targets)
    images = targets.images[indices, 0]
    queried = (targets.labels[indices] >= 0) & images.any(1)
    if queried.sum() < FEW:
        return None
    found = features.of(indices).numpy()  # the very ones that Align learns from
    usable = indices[queried]
    labels, groups = targets.labels[usable], sources.dataset.domain_ids[usable]
    return Taught(found[queried], images[queried].astype(np.float32), targets.texts, labels, groups)


def adapted_teacher(
    targets: TeacherTargets, dataset: DomainDataset, images: NDArray[np.int64]
) -> AdaptedTeacher | None:
    """Return the teacher adapted to labelled images of the source domains; None where they are too few to tell.

    Args:
        targets: the teacher's embeddings; images that it wasn't queried about don't count.
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


def labelled_by_teacher(sources: Sources, targets: TeacherTargets) -> tuple[Sources, Tensor]:
    """Return the images with the teacher's predictions for the labels of the held-out ones, which validate by that.

    What isn't held out stays without a label: it is learnt from the embeddings.

    Returns:
        The sources, with those held-out images that were queried, and the teacher's probabilities of these [n, C].

    Raises:
        DataError: none of them, or none of the others, was queried.
    """
    held = targets.queried(sources.split.val)
    learnt = targets.queried(sources.split.unlabelled)
    for count, images, what in (
        (len(held), sources.split.val, "are held out"),
        (len(learnt), sources.split.unlabelled, "are to be learnt from"),
    ):
        if not count:
            raise DataError(
                f"{sources.dataset.root}: the teacher was queried about none of the {len(images)} images that {what}; "
                "raise teacher.select (--select)"
            )
    probabilities = batch_targets(targets, held, np.zeros_like(held)).logits().softmax(-1)
    labels = sources.dataset.labels.copy()
    labels[held] = probabilities.argmax(-1).numpy()
    dataset, split = replace(sources.dataset, labels=labels), replace(sources.split, val=held)
    return replace(sources, dataset=dataset, split=split), probabilities


def learnt_images(sources: Sources, targets: TeacherTargets) -> NDArray[np.int64]:
    """Return the images that something is learnt from (dataset indices, sorted)."""
    return np.unique(np.concatenate(sources.groups(targets.queried(sources.split.unlabelled))))
