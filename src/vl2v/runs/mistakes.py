"""Labels that are probably wrong, found without a query: from the teacher's stored embeddings."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vl2v.config import RunConfig
from vl2v.data.dataset import DomainDataset
from vl2v.deploy.runtime import softmax
from vl2v.embeddings.maintain import find_teacher
from vl2v.embeddings.plan import clean_view
from vl2v.embeddings.rows import FILE_NAME
from vl2v.embeddings.schema import image_key, text_key
from vl2v.embeddings.session import text_targets
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import DataError, StoreError
from vl2v.io import write_text
from vl2v.runs.datasets import open_data, usable
from vl2v.session import Progress, Session, silent
from vl2v.teachers.prompts import prompts_for

FOLDS = 5
RIDGE = 1.0  # on centred unit embeddings; as for `vl2v.evaluation.alignment.probe`
TEMPERATURES = np.geomspace(1, 300, 40)  # that cosines or a regression's scores are multiplied by
Floats = NDArray[np.float64]


class Suspect(NamedTuple):
    """An image whose label is probably wrong.

    Attributes:
        suggested: the class that teacher and student together give.
        probability: of `label`, 0 to 1.
        of_suggested: the probability of `suggested`.
    """

    image: int
    label: int
    suggested: int
    probability: float
    of_suggested: float


def suspects(
    images: NDArray[np.float32], texts: NDArray[np.float32], labels: NDArray[np.int64], contents: Sequence[bytes]
) -> list[Suspect]:
    """Return the images whose label teacher and student agree to be wrong, the most suspect first.

    Args:
        images: I(x) [n, d], unit rows.
        texts: T [C, d], unit rows.
        labels: [n] classes.
        contents: [n] SHA-256 of each image, which decides its fold: copies of an image are in the same.

    Examples:
        >>> import hashlib
        >>> import numpy as np
        >>> from vl2v.runs.mistakes import suspects
        >>> rng = np.random.default_rng(0)
        >>> labels = np.arange(60) % 2
        >>> images = np.eye(8)[labels] + 0.1 * rng.normal(size=(60, 8))
        >>> images /= np.linalg.norm(images, axis=1, keepdims=True)
        >>> labels[7] = 0
        >>> contents = [hashlib.sha256(bytes([number])).digest() for number in range(60)]
        >>> [(one.image, one.suggested) for one in suspects(images, np.eye(8)[:2], labels, contents)]
        [(7, 1)]
    """
    teacher, student = _opinions(images, texts, labels, contents)
    together = _together(teacher, student)
    doubted = np.flatnonzero((teacher.argmax(1) != labels) & (student.argmax(1) != labels))
    suggested = together.argmax(1)
    doubted = doubted[suggested[doubted] != labels[doubted]]
    order = doubted[np.argsort(together[doubted, labels[doubted]], kind="stable")]
    return [
        Suspect(i, int(labels[i]), int(suggested[i]), float(together[i, labels[i]]), float(together[i, suggested[i]]))
        for i in order.tolist()
    ]


def probabilities(
    images: NDArray[np.float32], texts: NDArray[np.float32], labels: NDArray[np.int64], contents: Sequence[bytes]
) -> Floats:
    """Return the classes' probabilities [n, C] by teacher and student together; see `suspects`."""
    return _together(*_opinions(images, texts, labels, contents))


def _together(teacher: Floats, student: Floats) -> Floats:
    """Return the geometric mean of two classifiers' probabilities [n, C]."""
    return softmax((np.log(teacher + 1e-9) + np.log(student + 1e-9)) / 2)


def _opinions(
    images: NDArray[np.float32], texts: NDArray[np.float32], labels: NDArray[np.int64], contents: Sequence[bytes]
) -> tuple[Floats, Floats]:
    """Return the probabilities [n, C] of the zero-shot teacher, and of the student that never saw the image."""
    teacher = _probabilities(images.astype(float) @ texts.T, labels)
    scores, learnt = _left_out(images, labels, len(texts), contents)
    return teacher, np.where(learnt[:, None], _probabilities(scores, labels), teacher)


def _left_out(
    images: NDArray[np.float32], labels: NDArray[np.int64], classes: int, contents: Sequence[bytes]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return each image's scores [n, C] by a student of the other folds, and whether that saw its class at all [n]."""
    folds = np.array([content[0] % FOLDS for content in contents], np.int64)
    scores, learnt = np.zeros((len(labels), classes)), np.zeros(len(labels), bool)
    for fold in np.unique(folds):
        here = folds == fold
        known, wanted = images[~here].astype(float), np.eye(classes)[labels[~here]]
        if not len(known):
            continue
        centre, mean = known.mean(0), wanted.mean(0)
        known -= centre
        weights = np.linalg.solve(known.T @ known + RIDGE * np.eye(known.shape[1]), known.T @ (wanted - mean))
        scores[here] = (images[here] - centre) @ weights + mean
        learnt[here] = np.isin(labels[here], labels[~here])
    return scores, learnt


def _probabilities(scores: Floats, labels: NDArray[np.int64]) -> Floats:
    """Return scores [n, C] as probabilities, at the temperature at which the labels are most probable."""
    rows = np.arange(len(labels))
    return min(
        (softmax(factor * scores) for factor in TEMPERATURES),
        key=lambda found: -float(np.log(found[rows, labels] + 1e-12).mean()),
    )


HEAD = ("path", "class", "domain", "suggested", "probability", "probability_of_suggested")


@dataclass(frozen=True)
class Mistakes:
    """Images whose labels are probably wrong.

    Attributes:
        suspects: the most suspect first; `image` and classes are indices of the dataset.
        checked: how many labelled images have an embedding.
        unknown: how many have none.
    """

    dataset: DomainDataset
    suspects: list[Suspect]
    checked: int
    unknown: int
    teacher: str

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row of `HEAD` for each suspect."""
        names, domains = self.dataset.classes, self.dataset.domains
        return [
            (
                self.dataset.paths[one.image],
                names[one.label],
                domains[self.dataset.domain_ids[one.image]],
                names[one.suggested],
                f"{one.probability:.4f}",
                f"{one.of_suggested:.4f}",
            )
            for one in self.suspects
        ]

    def write_csv(self, file: Path) -> None:
        """Write all suspects as CSV; the file can be given as `data.exclude`, once somebody has checked it."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([HEAD, *self.rows()])
        write_text(file, text.getvalue())


def find_mistakes(
    config: RunConfig, store: Path, *, teacher: str | None = None, progress: Progress = silent
) -> Mistakes:
    """Return the labels that a teacher and a linear student of its embeddings agree to be wrong; query nothing.

    Args:
        config: of a run: its images, class prompts and `teacher.fit`.
        teacher: its name or fingerprint; None: the store's only one.

    Raises:
        DataError: fewer than two classes with labelled images.
        StoreError: no such teacher, no embeddings of these images, or none of these class prompts.
    """
    dataset, found = usable(open_data(config.data), Session(store, progress=progress))
    if not (store / FILE_NAME).is_file():
        raise StoreError(f"{store}: no embeddings in it; run `vl2v embed` first")
    sources = [name for name in dataset.labelled_domains if name not in config.data.target]
    prompts = prompts_for(dataset.classes, config.prompts, sources)
    labelled = np.flatnonzero(dataset.labels >= 0)
    if len(np.unique(dataset.labels[labelled])) < 2:
        raise DataError(f"{dataset.root}: has labelled images of fewer than two classes, so no label can be mistaken")
    with EmbeddingStore(store, read_only=True) as embeddings:
        record = find_teacher(embeddings, teacher).teacher
        view = clean_view(config.teacher.fit)
        keys = [image_key(found.contents[i], view) for i in labelled]
        there = embeddings.cached(record.fingerprint, keys)
        if not there.any():
            raise StoreError(f"{store}: no embedding by {record.name} of any of these images; run `vl2v embed` first")
        if not embeddings.cached(record.fingerprint, [text_key(text) for group in prompts for text in group]).all():
            raise StoreError(
                f"{store}: not all class prompts are embedded by {record.name}; give the settings of your run "
                "(--config, --set), or run `vl2v embed` with these first"
            )
        images = embeddings.get(record.fingerprint, [key for key, one in zip(keys, there, strict=True) if one])
        texts = text_targets(embeddings, record.fingerprint, prompts)
    chosen = labelled[there]
    contents = [found.contents[i] for i in chosen]
    doubted = suspects(images, texts, dataset.labels[chosen], contents)
    doubted = [one._replace(image=int(chosen[one.image])) for one in doubted]
    return Mistakes(dataset, doubted, len(chosen), int((~there).sum()), record.name)
