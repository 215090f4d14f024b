"""Images without any label: what validates them, and what is said of a student that learnt from them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from vl2v.data.auditing import Audit
from vl2v.embeddings.targets import TeacherTargets
from vl2v.errors import DataError
from vl2v.evaluation.intervals import wilson
from vl2v.evaluation.table import Row
from vl2v.runs.datasets import Sources
from vl2v.students.classifier import Classifier
from vl2v.training.batches import batch_targets


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


def agreement_note(classifier: Classifier) -> str:
    """Return a line on a student whose accuracy nobody knows."""
    share, images = (classifier.about[f"validation_{what}"] for what in ("agreement", "images"))
    return (
        f"no labels, so accuracy isn't known: on {images:,} held-out images the student agrees with the teacher on "
        f"{100 * share:.1f}%; `vl2v evaluate RUN --data SAMPLE` measures its accuracy on a few images with labels"
    )


def sample_notes(rows: Sequence[Row], sample: Audit, learnt: Audit) -> list[str]:
    """Return how sure an accuracy is that was measured on a labelled sample, and whether its images were learnt from.

    Args:
        rows: of the student, by domain.
        sample: of the labelled images.
        learnt: of the images without labels that the student learnt from.
    """
    images = sum(row.metrics.images for row in rows)
    right = sum(round(row.metrics.accuracy * row.metrics.images) for row in rows)
    if not images:
        return []
    low, high = wilson(right, images)
    notes = [
        f"{right} of {images} images right: {100 * right / images:.1f}%, 95% interval {100 * low:.1f} to "
        f"{100 * high:.1f}% if they were drawn at random"
    ]
    common = len(set(sample.sha256) & set(learnt.sha256))
    if common:
        notes.append(f"{common} of them are among the images that it learnt from, without their labels")
    return notes
